"""Intervals of macro means, and paired differences of two models on the same items.

The score of an ability is a macro mean: over languages, of the mean over tasks, of the mean over items.
Parallel items are no independent evidence: the items of one cluster (one content in several languages) are
resampled together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy import stats

from lingraft.errors import EvaluationError
from lingraft.evaluate.resampling import CONFIDENCE, Floats, Resampling, Value, percentiles

# Where fewer clusters vary (differ from the most common value), a bootstrap sees too little: exact bounds take over.
FEWEST_VARYING = 5
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
        exact: Whether the exact bounds were used: fewer than 5 clusters vary, that is, differ from 0 or, where most
            changed by the same amount, from that amount.
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

    Percentile bootstrap over clusters, 2,000 resamples, the same draw for all columns. Where fewer than 5 clusters
    differ from the most common score, the bootstrap would be too narrow (without width where all are alike):
    Clopper-Pearson bounds on the rises above and the falls below that score take over. For graded scores they are
    conservative, because no bounded score varies more than a two-valued one of the same mean.

    Biases: the choice between the two is made over all tasks together, so a task on which all items score alike
    adds no width beside one on which they vary.

    Raises:
        EvaluationError: There are no items.
    """
    resampling = Resampling([[_value(item, item.score) for item in items] for items in columns])
    value, clusters = resampling.value(), resampling.cluster_means()
    if _varying(clusters) < FEWEST_VARYING:
        low, high = _exact_bounds(clusters, value, floor=0.0)
    else:
        low, high = percentiles(resampling.replicates(seed))
    return Interval(value, min(low, value), max(high, value), _count(columns))


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
    of paired differences, the same draw for all columns. Where fewer than 5 clusters vary: exact bounds of the
    gains and of the losses (Clopper-Pearson, 2.5 % each), subtracted; conservative. With fewer than 5 of equal sign
    they never exclude 0, as a sign test would not: 4 of 4 in one direction has p = 0.125.

    Raises:
        EvaluationError: A column's two models do not hold the same items, or there are none.
    """
    resampling = Resampling([_paired(before, after) for before, after in pairs])
    value, clusters = resampling.value(), resampling.cluster_means()
    replicates = resampling.replicates(seed)
    error = float(replicates.std(ddof=1))
    exact = _varying(clusters) < FEWEST_VARYING
    if exact:
        low, high = _exact_bounds(clusters, value, floor=-1.0)
        error = max(error, float(np.sqrt(FEWEST_VARYING)) / len(clusters))
    else:
        low, high = percentiles(replicates)
    return Difference(
        value=value,
        low=min(low, value),
        high=max(high, value),
        smallest_visible=min(_POWER_FACTOR * error, 1.0),
        n=_count([before for before, _ in pairs]),
        n_differing=int((clusters != 0).sum()),
        exact=exact,
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


def _clopper_pearson(successes: float, n: int, alpha: float) -> tuple[float, float]:
    """Return the exact two-sided bounds of a rate; `successes` may lie between whole numbers."""
    low = float(stats.beta.ppf(alpha / 2, successes, n - successes + 1)) if successes > 0 else 0.0
    high = float(stats.beta.ppf(1 - alpha / 2, successes + 1, n - successes)) if successes < n else 1.0
    return low, high


def _most_common(clusters: Floats) -> float:
    values, counts = np.unique(clusters, return_counts=True)
    return float(values[counts.argmax()])


def _varying(clusters: Floats) -> int:
    return int((clusters != _most_common(clusters)).sum())


def _exact_bounds(clusters: Floats, value: float, floor: float) -> tuple[float, float]:
    """Bound the mean of clusters in [floor, 1] by the bounds of their rises and falls from the most common one.

    Each gets half of the error, or all of it where the other cannot be. `value`, the macro mean, may weigh clusters
    unequally: the bounds are centred on it.
    """
    usual = _most_common(clusters)
    upward, downward = 1.0 - usual, usual - floor  # how far one cluster can rise, and fall
    alpha = (1 - CONFIDENCE) / (2 if upward > 0 and downward > 0 else 1)
    low_rise, high_rise = _bound_sum((clusters - usual).clip(min=0), upward, alpha)
    low_fall, high_fall = _bound_sum((usual - clusters).clip(min=0), downward, alpha)
    centre = usual + value - float(clusters.mean())
    return max(floor, centre + low_rise - high_fall), min(1.0, centre + high_rise - low_fall)


def _bound_sum(parts: Floats, most: float, alpha: float) -> tuple[float, float]:
    """Bound the mean of `parts`, each in [0, most]."""
    if most <= 0:
        return 0.0, 0.0
    low, high = _clopper_pearson(float(parts.sum()) / most, len(parts), alpha)
    return most * low, most * high
