"""What becomes of a study whose disk fills up? Needs root, for a tmpfs of each size.

The study runs on disks of random sizes, from one that hardly holds its first file to one that holds all but the last.
It must stop in one line with exit code 2, leave no stage that looks finished and is not, and go on from what it has on
a larger disk, to the records of an undisturbed run.

    python benchmarks/full_disks.py            # 20 sizes, about a quarter of an hour on one core
    python benchmarks/full_disks.py --sizes 5
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import forked_study
from tiny_study import make_study


def _kept(record: str | bytes | None) -> dict[str, Any]:
    """Return a record without what changes when its artefacts are discarded later."""
    content: dict[str, Any] = json.loads(record or "{}")
    for artefact in content.get("artefacts", {}).values():
        del artefact["discarded"]
    return content | {"digest": ""}


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def main() -> int:
    """Run the study on disks of random sizes, print a table, and return 1 where something was lost or wrong."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--sizes", type=int, default=20, help="How many disks.")
    arguments.add_argument("--seed", type=int, default=0, help="Of the sizes.")
    given = arguments.parse_args()
    if os.geteuid():
        sys.exit("this script mounts file systems in memory: run it as root.")
    forked_study.preload()
    generator = random.Random(given.seed)
    counts: Counter[str] = Counter()
    rows, violations = [("disk, kB", "exit code", "stages finished", "it said", "then")], []
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        study, log, disk = make_study(work), work / "log", work / "disk"
        whole = forked_study.run(study, work / "whole", log)
        if whole.code:
            sys.exit(whole.output)
        expected = forked_study.found(work / "whole")
        largest = _size_of(work / "whole") // 1024
        disk.mkdir()
        for _ in range(given.sizes):
            size = generator.randint(8, largest)
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(disk)], check=True)
            try:
                full = forked_study.run(study, disk, log)
                done = {name: one for name, one in forked_study.found(disk).items() if name != "result"}
                is_sound = all(_kept(expected.get(name)) == _kept(record) for name, record in done.items())
                subprocess.run(["mount", "-o", "remount,size=1g", str(disk)], check=True)
                later = forked_study.run(study, disk, log)
                is_equal = forked_study.found(disk) == expected
            finally:
                subprocess.run(["umount", str(disk)], check=True)
            is_told = (
                full.code == 2 and full.last_line.startswith("DiskError") and "Traceback" not in full.output
            )
            is_right = (is_told or full.code == 0) and is_sound and later.code == 0 and is_equal
            counts["right" if is_right else "WRONG"] += 1
            then = (
                "equal records" if later.code == 0 and is_equal else f"exit {later.code}, equal: {is_equal}"
            )
            said = full.last_line.replace(scratch, "").replace("|", "/")
            rows.append((str(size), str(full.code), str(len(done)), said, then))
            if not is_right:
                violations.append(f"{size} kB: {full.output[-2000:]}\n{later.last_line}")
    print(forked_study.table(rows))
    print(dict(counts), *violations, sep="\n")
    return int(bool(violations))


if __name__ == "__main__":
    sys.exit(main())
