"""How often does the 95 % interval of retention, a ratio of two models' scores on the same items, hold the truth?

    python benchmarks/ratio_coverage.py [--simulations 500]

Each cell draws that many pairs of models whose true ratio is known, on items that are right or wrong, independent or in
clusters of 1 to 5 items that all go alike (the worst case), and counts the intervals that hold it. There is none where
the score before is not to be distinguished from 0; these are counted apart. Writes results/ratio_coverage.json.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from coverage_runs import write_coverage

from lingraft.intervals.macro_mean import paired_ratio

RESULTS = Path(__file__).parent / "results" / "ratio_coverage.json"
RATES = (  # right before and after, lost, gained
    (0.5, 0.05, 0.05),
    (0.5, 0.0, 0.05),
    (0.45, 0.05, 0.0),
    (0.4, 0.2, 0.05),
    (0.8, 0.1, 0.05),
    (0.1, 0.1, 0.1),
    (0.1, 0.05, 0.2),
    (0.05, 0.3, 0.02),
)
LARGEST_CLUSTER = 5


@dataclass(frozen=True)
class Cell:
    """One setting: clusters, whether they hold one item each, and the rates of each outcome."""

    clusters: int
    is_clustered: bool
    rates: tuple[float, float, float]

    @property
    def truth(self) -> float:
        kept, lost, gained = self.rates
        return (kept + gained) / (kept + lost)


@dataclass(frozen=True)
class Item:
    """One item's score, as lingraft wants it."""

    task: str
    language: str
    cluster: str
    item: str
    score: float


def cells() -> Iterator[Cell]:
    for clusters in (40, 100, 300):
        yield from (Cell(clusters, False, rates) for rates in RATES)
    yield from (Cell(100, True, rates) for rates in RATES)


def measured(cell: Cell, seed: int, simulations: int) -> dict[str, Any]:
    """Return a cell's coverage."""
    generator = np.random.default_rng(seed)
    sizes = np.ones(cell.clusters, dtype=int)
    if cell.is_clustered:
        sizes = generator.integers(1, LARGEST_CLUSTER + 1, cell.clusters)
    kept, lost, gained = cell.rates
    inside = missing = 0
    for _ in range(simulations):
        draw = np.repeat(generator.random(cell.clusters), sizes)
        before, after = (
            draw < kept + lost,
            (draw < kept) | ((draw >= kept + lost) & (draw < kept + lost + gained)),
        )
        found = paired_ratio(items(before, sizes), items(after, sizes))
        if found.low is None or found.high is None:
            missing += 1
        else:
            inside += found.low - 1e-4 <= cell.truth <= found.high + 1e-4
    given = simulations - missing
    return {
        "seed": seed,
        "clusters": cell.clusters,
        "clustered": cell.is_clustered,
        "kept_lost_gained": cell.rates,
        "ratio": round(cell.truth, 4),
        "coverage": round(inside / given, 4) if given else None,
        "missing": missing,
    }


def items(
    right: np.ndarray[Any, np.dtype[np.bool_]], sizes: np.ndarray[Any, np.dtype[np.int_]]
) -> list[Item]:
    clusters = np.repeat(np.arange(len(sizes)), sizes)
    return [Item("task", "en", str(c), str(i), float(right[i])) for i, c in enumerate(clusters)]


if __name__ == "__main__":
    write_coverage(__doc__, cells(), measured, RESULTS, 500)
