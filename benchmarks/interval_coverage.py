"""How often do the 95 % intervals of scores and of paired differences hold the truth?

    python benchmarks/interval_coverage.py [--simulations 4000]

Each cell draws that many evaluations whose true value is known and counts the intervals that hold it. Items are
independent or lie in clusters of unequal size (1 to 10 items, drawn once for each cell) whose rates are drawn from a
beta (Dirichlet) distribution: `alike` is their intra-cluster correlation. Graded scores are thirds. All evaluations of
a cell are bounded at once by the formulas of lingraft.intervals.confidence_intervals, written for one task in one
language; the first ones are compared with what lingraft reports. Beside it stands, for independent items that are right
or wrong, the percentile bootstrap (of infinitely many draws). Writes benchmarks/results/interval_coverage.json.

"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from coverage_runs import write_coverage
from scipy import special, stats

from lingraft.intervals.clusters import Floats
from lingraft.intervals.confidence_intervals import FEWEST_VARYING
from lingraft.intervals.macro_mean import macro_mean, paired_difference

RESULTS = Path(__file__).parent / "results" / "interval_coverage.json"
RATES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
CLUSTERED_RATES = (0.05, 0.1, 0.3, 0.5, 0.9, 0.95)
CHANGES = (
    (0.05, 0.05),
    (0.0, 0.05),
    (0.02, 0.08),
    (0.1, 0.1),
    (0.05, 0.2),
    (0.3, 0.3),
    (0.1, 0.6),
)  # gained, lost
LARGEST_CLUSTER = 10
COMPARED = 3  # evaluations of each cell that lingraft itself bounds
TAIL = 0.025


@dataclass(frozen=True)
class Cell:
    """One setting.

    Attributes:
        name: What it is.
        sizes: Items of each cluster.
        rates: Of a right answer; or of a gained and of a lost one.
        alike: Intra-cluster correlation.
        levels: Steps of a score: 1 is right or wrong, 3 are thirds.
    """

    name: Mapping[str, Any]
    sizes: Floats
    rates: tuple[float, ...]
    alike: float = 0.0
    levels: int = 1

    @property
    def truth(self) -> float:
        return self.rates[0] - (self.rates[1] if len(self.rates) == 2 else 0.0)


@dataclass(frozen=True)
class Item:
    """One item's score, as lingraft wants it."""

    task: str
    language: str
    cluster: str
    item: str
    score: float


def cells() -> Iterator[Cell]:
    one_by_one = {n: np.ones(n) for n in (100, 200, 1000)}
    generator = np.random.default_rng(0)
    sizes = {
        (clusters, alike): generator.integers(1, LARGEST_CLUSTER + 1, clusters).astype(float)
        for clusters in (30, 50, 100)
        for alike in (0.0, 0.1, 0.2, 0.4)
    }
    for n, own in one_by_one.items():
        yield from (Cell({"items": n, "rate": rate}, own, (rate,)) for rate in RATES)
    graded = one_by_one[100]
    yield from (Cell({"items": 100, "rate": r, "graded": True}, graded, (r,), levels=3) for r in RATES)
    for (clusters, alike), own in sizes.items():
        name = {"clusters": clusters, "alike": alike}
        yield from (Cell({**name, "rate": rate}, own, (rate,), alike) for rate in CLUSTERED_RATES)
    for n, own in one_by_one.items():
        yield from (Cell({"items": n, "gained": g, "lost": lost}, own, (g, lost)) for g, lost in CHANGES)
    for (clusters, alike), own in sizes.items():
        name = {"clusters": clusters, "alike": alike}
        yield from (Cell({**name, "gained": g, "lost": lost}, own, (g, lost), alike) for g, lost in CHANGES)


def drawn(cell: Cell, generator: np.random.Generator, simulations: int) -> list[Floats]:
    """Return the sums of scores, or of rises and of falls, by cluster; each [simulations, clusters]."""
    shape = (simulations, len(cell.sizes))
    whole = np.array([*cell.rates, 1 - sum(cell.rates)])
    rates = np.broadcast_to(whole[:, None, None], (len(whole), *shape))
    if cell.alike > 0:
        strength = whole * (1 - cell.alike) / cell.alike
        gammas = generator.gamma(strength[:, None, None], size=(len(whole), *shape))
        rates = gammas / gammas.sum(axis=0).clip(min=1e-300)
    trials = (cell.sizes * cell.levels).astype(int)
    first = generator.binomial(trials, rates[0].clip(0, 1)) / cell.levels
    if len(cell.rates) == 1:
        return [first]
    left = np.divide(rates[1], 1 - rates[0], out=np.zeros(shape), where=rates[0] < 1)
    second = generator.binomial((trials - first).astype(int), left.clip(0, 1))
    change = first - second
    return [
        change.clip(min=0),
        (-change).clip(min=0),
    ]  # of a cluster only what it gained or lost on the whole counts


def bounded(parts: list[Floats], sizes: Floats) -> tuple[Floats, Floats]:
    """Return the ends of the interval of every simulation."""
    shares = sizes / sizes.sum()
    clusters = 1 / float(shares @ shares)
    quantile = special.ndtri(1 - TAIL) / special.stdtrit(clusters - 1, 1 - TAIL)
    rates = [part.sum(axis=1) / sizes.sum() for part in parts]
    errors = [part / sizes.sum() - rate[:, None] * shares for part, rate in zip(parts, rates, strict=True)]
    variances = [(error**2 / (1 - shares)).sum(axis=1) for error in errors]
    trials = []
    for rate, variance in zip(rates, variances, strict=True):
        n = np.divide(rate * (1 - rate), variance, out=np.full(len(rate), clusters), where=variance > 0)
        n = np.where(variance > 0, n * quantile**2, clusters)
        trials.append(np.maximum(n, clusters) if sizes.max() <= 2 * sizes.min() else n)
    means = (parts[0] - (parts[1] if len(parts) == 2 else 0)) / sizes
    alike = [np.isclose(means, value).sum(axis=1) for value in (-1, 0, 1 / 3, 2 / 3, 1)]
    few = len(sizes) - np.max(alike, axis=0) < FEWEST_VARYING
    if len(parts) == 1:
        usual = jeffreys(rates[0], trials[0])
        exact = clopper_pearson(rates[0], np.maximum(trials[0], clusters), TAIL)
        return np.where(few, exact[0], usual[0]), np.where(few, exact[1], usual[1])
    return difference(rates, trials, errors, variances, shares, few)


def difference(
    rates: list[Floats],
    trials: list[Floats],
    errors: list[Floats],
    variances: list[Floats],
    shares: Floats,
    few: Floats,
) -> tuple[Floats, Floats]:
    scale = np.sqrt(variances[0] * variances[1])
    covariance = (errors[0] * errors[1] / (1 - shares)).sum(axis=1)
    correlation = np.divide(covariance, scale, out=np.zeros(len(scale)), where=scale > 0)
    (low_gain, high_gain), (low_loss, high_loss) = map(jeffreys, rates, trials)

    def joined(first: Floats, second: Floats) -> Floats:
        found: Floats = np.sqrt((first**2 + second**2 - 2 * correlation * first * second).clip(min=0))
        return found

    value = rates[0] - rates[1]
    low = value - joined(rates[0] - low_gain, high_loss - rates[1])
    high = value + joined(high_gain - rates[0], rates[1] - low_loss)
    n = np.full(len(value), 1 / float(shares @ shares))
    gain, loss = (clopper_pearson(rate, n, TAIL / 2) for rate in rates)
    return np.where(few, gain[0] - loss[1], low), np.where(few, gain[1] - loss[0], high)


def jeffreys(rate: Floats, n: Floats) -> tuple[Floats, Floats]:
    ends = (special.betaincinv(rate * n + 0.5, (1 - rate) * n + 0.5, tail) for tail in (TAIL, 1 - TAIL))
    low, high = ends
    return np.where(rate > 0, np.minimum(low, rate), 0.0), np.where(rate < 1, np.maximum(high, rate), 1.0)


def clopper_pearson(rate: Floats, n: Floats, tail: float) -> tuple[Floats, Floats]:
    hits, misses = rate * n, (1 - rate) * n
    low = special.betaincinv(hits.clip(min=1e-12), misses + 1, tail)
    high = special.betaincinv(hits + 1, misses.clip(min=1e-12), 1 - tail)
    return np.where(rate > 0, low, 0.0), np.where(rate < 1, high, 1.0)


def check(cell: Cell, parts: list[Floats], low: Floats, high: Floats) -> None:
    """Compare the first intervals with lingraft's own, of the same items."""
    for row in range(COMPARED):
        scored = [items(part[row] / cell.sizes, cell.sizes) for part in parts]
        found: Any = macro_mean(scored[0]) if len(scored) == 1 else paired_difference(scored[1], scored[0])
        if not np.allclose([found.low, found.high], [low[row], high[row]], atol=1e-9):
            raise SystemExit(f"{cell.name}: lingraft says {found}, this script {low[row]} to {high[row]}")


def items(means: Floats, sizes: Floats) -> list[Item]:
    """Return items of which each has its cluster's mean: an interval looks at no more of them."""
    clusters = np.repeat(np.arange(len(sizes)), sizes.astype(int))
    return [Item("task", "de", str(c), str(i), float(means[c])) for i, c in enumerate(clusters)]


def bootstrap_coverage(cell: Cell, rates: Floats) -> float | None:
    """Return the coverage of the percentile bootstrap; None: it has no closed form here."""
    n = len(cell.sizes)
    if len(cell.rates) == 2 or cell.levels > 1 or cell.sizes.max() > 1:
        return None
    low, high = (stats.binom.ppf(tail, n, rates) / n for tail in (TAIL, 1 - TAIL))
    return float(np.mean((low <= cell.truth) & (cell.truth <= high)))


def measured(cell: Cell, seed: int, simulations: int) -> dict[str, Any]:
    """Return a cell's coverage."""
    parts = drawn(cell, np.random.default_rng(seed), simulations)
    low, high = bounded(parts, cell.sizes)
    check(cell, parts, low, high)
    inside = (low <= cell.truth + 1e-12) & (cell.truth - 1e-12 <= high)
    found = {"seed": seed, **cell.name, "n": int(cell.sizes.sum()), "coverage": float(inside.mean())}
    bootstrap = bootstrap_coverage(cell, parts[0].sum(axis=1) / cell.sizes.sum())
    return found if bootstrap is None else found | {"bootstrap": bootstrap}


if __name__ == "__main__":
    write_coverage(__doc__, cells(), measured, RESULTS, 4000)
