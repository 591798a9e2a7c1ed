"""Does DES keep the paper's order on real data, what does its correction change, and what does sampling save?

    python benchmarks/similarity.py --first FILE --others FILE[:TAG] [FILE[:TAG] ...]

Compares the first data set (English) with each other one by the embedded encoder, to a precision and with every row.
Also two halves of 500 rows of the first. Writes benchmarks/results/similarity.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "similarity.json"
HALVES_OF = 500


def load(named: str) -> Sequence[Any]:
    """Return the rows of FILE or FILE:TAG."""
    from lingraft.config.schema import DataSource
    from lingraft.data.sources import load_data

    path, _, tag = named.partition(":")
    return load_data(DataSource(source=path, language=tag or "en", max_broken_share=0.05)).examples


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--first", required=True)
    parser.add_argument("--others", nargs="+", required=True)
    parser.add_argument("--precision", type=float, default=0.02)
    options = parser.parse_args()
    from lingraft.records import to_json
    from lingraft.similarity.comparison import compare_sets
    from lingraft.similarity.embedding_similarity import dataset_embedding_similarity
    from lingraft.similarity.encoders import load_encoder

    encoder = load_encoder("embedded")
    encoder.encode(["warm up"])
    first = load(options.first)
    halves = dataset_embedding_similarity(first[:HALVES_OF:2], first[1:HALVES_OF:2], encoder)
    pairs = []
    for named in options.others:
        sets = {"first": first, "other": load(named)}
        seconds = []
        found = []
        for precision in (options.precision, None):
            started = time.perf_counter()
            found.append(compare_sets(sets, encoder, precision=precision))
            seconds.append(time.perf_counter() - started)
        pairs.append(
            {
                "first": _name(options.first),
                "other": _name(named),
                "rows": list(found[1].rows),
                "to_precision": to_json(found[0].pairs[0, 1]),
                "every_row": to_json(found[1].pairs[0, 1]),
                "time_of_sampling_over_every_row": seconds[0] / seconds[1],
            }
        )
    result = {
        "question": "does DES keep the paper's order, what does its correction change, and what does sampling save",
        "precision": options.precision,
        "halves": to_json(halves),
        "pairs": pairs,
        "versions": {"lingraft": version("lingraft"), "encoder": encoder.name},
        "python": platform.python_version(),
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


def _name(named: str) -> str:
    path = Path(named.partition(":")[0])
    return f"{path.parent.name}/{path.stem}"


if __name__ == "__main__":
    main()
