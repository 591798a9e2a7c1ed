"""Intervals of macro means, and paired differences of two models on the same items.

The score of an ability is a macro mean: over languages, of the mean over tasks, of the mean over items.
Parallel items are no independent evidence: the items of one cluster (one content in several languages) are
resampled together.

Tasks, languages and columns of unequal size weigh their clusters unequally, and few clusters may carry half of a
mean. A stratum is what weighs about alike. Where in a stratum hardly any cluster varies, a bootstrap sees too
little: each stratum then gets an interval of its own, exact bounds or a bootstrap, and these are combined.

Sources: Clopper and Pearson 1934, "The use of confidence or fiducial limits" (exact bounds); Korn and Graubard 1998,
"Confidence intervals for proportions with small expected number of positive counts" (their effective number of
clusters under weights); Zou and Donner 2008, "Construction of confidence limits about effect measures" (the
combination: distances of the ends from the estimates add in squares).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy import stats

from lingraft.errors import EvaluationError
from lingraft.evaluate.resampling import (
    CONFIDENCE,
    RESAMPLES,
    Floats,
    Resampling,
    Value,
    draw_counts,
    percentiles,
)

# Where fewer clusters vary (differ from the most common value), a bootstrap sees too little: exact bounds take over.
FEWEST_VARYING = 5
_ALIKE = 2.0  # times the lightest cluster; simulated in the tests
_POWER_FACTOR = float(stats.norm.ppf(1 - (1 - CONFIDENCE) / 2) + stats.norm.ppf(0.8))  # 2.80


class Scored(Protocol):
    """What the functions below need of an item."""

    @property
    def task(self) -> str:
        """Task without its language."""

    @property
    def language(self) -> str:
        """BCP-47 tag."""

    @property
    def cluster(self) -> str:
        """Items of one task in the same cluster are resampled together."""

    @property
    def item(self) -> str:
        """Unique inside task and language."""

    @property
    def score(self) -> float:
        """In [0, 1]."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its 95 % interval.

    Attributes:
        value: The macro mean, in [0, 1].
        low: Lower end.
        high: Upper end.
        n: Items.
    """

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Difference:
    """A paired difference, after - before, with its 95 % interval.

    Attributes:
        value: Difference of the macro means, in [-1, 1].
        low: Lower end.
        high: Upper end.
        smallest_visible: The smallest true difference that this evaluation would have found with 80 % power
            (5 %, two-sided): 2.80 standard errors, the error taken as at least that of 5 clusters that differ by 1
            where fewer vary.
        n: Items.
        n_differing: Clusters whose score differs.
        exact: Whether exact bounds were used: in some stratum fewer than 5 clusters vary, that is, differ from 0
            or, where most changed by the same amount, from that amount.
    """

    value: float
    low: float
    high: float
    smallest_visible: float
    n: int
    n_differing: int
    exact: bool


def macro_mean(items: Sequence[Scored], *, seed: int = 0) -> Interval:
    """Return the mean over languages of the mean over tasks of the mean over items, with a 95 % interval.

    See `mean_over_columns`, of which it is the case of one column.
    """
    return mean_over_columns([items], seed=seed)


def mean_over_columns(columns: Sequence[Sequence[Scored]], *, seed: int = 0) -> Interval:
    """Return the mean over columns of their macro means, with a 95 % interval.

    Percentile bootstrap over clusters, 2,000 resamples, the same draw for all columns. Where in some stratum fewer
    than 5 clusters differ from the most common score, the bootstrap would be too narrow (without width where all are
    alike): there Clopper-Pearson bounds on the rises above and the falls below that score take over. For graded
    scores they are conservative, because no bounded score varies more than a two-valued one of the same mean.

    Raises:
        EvaluationError: There are no items.
    """
    resampling = Resampling([[_value(item, item.score) for item in items] for items in columns])
    found = _bounds(resampling, floor=0.0, seed=seed)
    return Interval(resampling.value(), found.low, found.high, _count(columns))


def paired_difference(before: Sequence[Scored], after: Sequence[Scored], *, seed: int = 0) -> Difference:
    """Return the difference of two models' macro means on the same items, with a 95 % interval.

    See `difference_over_columns`, of which it is the case of one column.
    """
    return difference_over_columns([(before, after)], seed=seed)


def difference_over_columns(
    pairs: Sequence[tuple[Sequence[Scored], Sequence[Scored]]], *, seed: int = 0
) -> Difference:
    """Return the mean over columns of the difference of two models' macro means, with a 95 % interval.

    Each column has its own two models, and both their scores on the same items. Percentile bootstrap over clusters
    of paired differences, the same draw for all columns. Where in some stratum fewer than 5 clusters vary: exact
    bounds of the gains and of the losses (Clopper-Pearson, 2.5 % each), subtracted; conservative. With fewer than 5
    of equal sign they do not exclude 0, as a sign test would not: 4 of 4 in one direction has p = 0.125.

    Raises:
        EvaluationError: A column's two models do not hold the same items, or there are none.
    """
    resampling = Resampling([_paired(before, after) for before, after in pairs])
    found = _bounds(resampling, floor=-1.0, seed=seed)
    means, _ = resampling.clusters()
    return Difference(
        value=resampling.value(),
        low=found.low,
        high=found.high,
        smallest_visible=min(_POWER_FACTOR * found.error, 1.0),
        n=_count([before for before, _ in pairs]),
        n_differing=int((_distinct(means) != 0).sum()),
        exact=found.exact,
    )


def _key(item: Scored) -> tuple[str, str, str]:
    return (item.task, item.language, item.item)


def _value(item: Scored, total: float) -> Value:
    return Value(item.task, item.language, item.cluster, total)


def _count(columns: Sequence[Sequence[Scored]]) -> int:
    """Count the items, those that stand in several columns once."""
    return len({_key(item) for items in columns for item in items})


def _paired(before: Sequence[Scored], after: Sequence[Scored]) -> list[Value]:
    later = {_key(item): item.score for item in after}
    earlier = {_key(item) for item in before}
    if later.keys() != earlier or len(after) != len(before):
        missing = sorted(earlier ^ later.keys())
        raise EvaluationError(
            f"two models can be compared on the same items only: {len(before)} and {len(after)} items, "
            f"{len(missing)} in only one of them ({missing[:3]})."
        )
    return [_value(item, later[_key(item)] - item.score) for item in before]


def _clopper_pearson(successes: float, n: float, alpha: float) -> tuple[float, float]:
    """Return the exact two-sided bounds of a rate; `successes` and `n` may lie between whole numbers."""
    low = float(stats.beta.ppf(alpha / 2, successes, n - successes + 1)) if successes > 0 else 0.0
    high = float(stats.beta.ppf(1 - alpha / 2, successes + 1, n - successes)) if successes < n else 1.0
    return low, high


@dataclass(frozen=True, slots=True)
class _Bounds:
    low: float
    high: float
    error: float  # standard error, the one that a planned study would reckon with
    exact: bool


def _bounds(resampling: Resampling, *, floor: float, seed: int) -> _Bounds:
    """Bound a macro mean of clusters that each lie in [floor, 1]."""
    value, (means, shares) = resampling.value(), resampling.clusters()
    strata = _strata(shares)
    if all(_varying(means[stratum]) >= FEWEST_VARYING for stratum in strata):
        replicates = resampling.replicates(seed)
        low, high = percentiles(replicates)
        return _Bounds(min(low, value), max(high, value), float(replicates.std(ddof=1)), exact=False)
    below, above, error = 0.0, 0.0, 0.0  # squares
    for stratum in strata:
        share = float(shares[stratum].sum())
        centre = float(means[stratum] @ shares[stratum]) / share
        part = _stratum_bounds(means[stratum], shares[stratum] / share, centre, floor, seed)
        below += (share * (centre - part.low)) ** 2
        above += (share * (part.high - centre)) ** 2
        error += (share * part.error) ** 2
    low, high = max(floor, value - below**0.5), min(1.0, value + above**0.5)
    return _Bounds(min(low, value), max(high, value), error**0.5, exact=True)


def _strata(shares: Floats) -> list[np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Divide clusters into those that weigh about alike: at most `_ALIKE` times the lightest of their stratum."""
    order = np.argsort(shares, kind="stable")
    found, start = [], 0
    while start < len(order):
        stop = int(np.searchsorted(shares[order], shares[order[start]] * _ALIKE, side="right"))
        found.append(order[start:stop])
        start = stop
    return found


def _stratum_bounds(means: Floats, shares: Floats, centre: float, floor: float, seed: int) -> _Bounds:
    """Bound the weighted mean of one stratum; `shares` sum to 1."""
    draws = draw_counts(np.random.default_rng(seed), RESAMPLES, len(means)) * shares
    replicates = (draws @ means) / draws.sum(axis=1)
    error = float(replicates.std(ddof=1))
    if _varying(means) >= FEWEST_VARYING:
        return _Bounds(*percentiles(replicates), error, exact=False)
    low, high = _exact_bounds(means, shares, centre, floor)
    least = min(1.0, float(np.sqrt(FEWEST_VARYING)) / len(means))
    return _Bounds(low, high, max(error, least), exact=True)


def _distinct(means: Floats) -> Floats:
    """Means of parallel items are sums of products: what differs by rounding alone is made equal."""
    rounded: Floats = means.round(12)
    return rounded


def _most_common(means: Floats) -> float:
    values, counts = np.unique(_distinct(means), return_counts=True)
    return float(values[counts.argmax()])


def _varying(means: Floats) -> int:
    return int((_distinct(means) != _most_common(means)).sum())


def _exact_bounds(means: Floats, shares: Floats, centre: float, floor: float) -> tuple[float, float]:
    """Bound the weighted mean of clusters in [floor, 1] by bounds of their rises and falls from the most common one.

    Each gets half of the error, or all of it where the other cannot be.
    """
    usual = _most_common(means)
    upward, downward = 1.0 - usual, usual - floor  # how far one cluster can rise, and fall
    alpha = (1 - CONFIDENCE) / (2 if upward > 0 and downward > 0 else 1)
    n = 1 / float(shares @ shares)  # effective number; the number where they weigh alike
    low_rise, high_rise = _bound_mean(float((means - usual).clip(min=0) @ shares), upward, n, alpha)
    low_fall, high_fall = _bound_mean(float((usual - means).clip(min=0) @ shares), downward, n, alpha)
    low, high = usual + low_rise - high_fall, usual + high_rise - low_fall
    return min(max(floor, low), centre), max(min(1.0, high), centre)


def _bound_mean(mean: float, most: float, n: float, alpha: float) -> tuple[float, float]:
    """Bound a mean of n parts, each in [0, most]."""
    if most <= 0:
        return 0.0, 0.0
    low, high = _clopper_pearson(min(mean / most, 1.0) * n, n, alpha)
    return most * low, most * high
