"""What becomes of a finished study when one of its files is damaged?

Every file of every stage, of the cache and of the run folder is truncated, has a bit flipped, is emptied or removed,
one at a time; then the same command runs again. It must end with the records and the result of the undisturbed run, or
refuse in one line; never with other numbers under the same fingerprints.

    python benchmarks/damaged_files.py            # about a quarter of an hour on one core
    python benchmarks/damaged_files.py --share 4  # every fourth file
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import forked_study
from tiny_study import NAME, make_study


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    if content:
        content[len(content) // 2] ^= 4
        path.write_bytes(bytes(content))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "bit flipped": _flip,
    "emptied": lambda path: path.write_bytes(b""),
    "removed": lambda path: path.unlink(),
}


def main() -> int:
    """Damage one file after the other, print a table of counts, and return 1 where numbers differ."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--share", type=int, default=1, help="Take every n-th file.")
    every = arguments.parse_args().share
    forked_study.preload()
    counts: dict[str, Counter[str]] = {}
    violations = []
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        study, log = make_study(work), work / "log"
        first = forked_study.run(study, work / "whole", log)
        if first.code:
            sys.exit(first.output)
        expected = forked_study.found(work / "whole")
        files = sorted(path for path in (work / "whole" / NAME).rglob("*") if path.is_file())
        for path in files[::every]:
            name = path.relative_to(work / "whole" / NAME)
            for damage, apply in DAMAGES.items():
                shutil.rmtree(work / "runs", ignore_errors=True)
                shutil.copytree(work / "whole", work / "runs", copy_function=shutil.copy2)
                apply(work / "runs" / NAME / name)
                ended = forked_study.run(study, work / "runs", log)
                is_equal = forked_study.found(work / "runs") == expected
                if ended.code == 0 and is_equal:
                    outcome = "as before"
                elif ended.code == 2 and "Traceback" not in ended.output:
                    outcome = "refused"
                else:
                    outcome = "WRONG"
                    violations.append(
                        f"{name}, {damage}: exit {ended.code}, equal: {is_equal}: {ended.last_line}"
                    )
                counts.setdefault(damage, Counter())[outcome] += 1
    outcomes = ("as before", "refused", "WRONG")
    rows = [(damage, *(str(counts[damage][one]) for one in outcomes)) for damage in DAMAGES]
    print(forked_study.table([("file", *outcomes), *rows]))
    print(*violations, sep="\n")
    return int(bool(violations))


if __name__ == "__main__":
    sys.exit(main())
