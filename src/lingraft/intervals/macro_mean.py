"""Intervals of macro means, and paired differences of two models on the same items.

The score of an ability is a macro mean: over languages, of the mean over tasks, of the mean over items.
Parallel items are no independent evidence: the items of one cluster (one content in several languages) count together.
`confidence_intervals` says how an interval is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from scipy import special

from lingraft.errors import EvaluationError
from lingraft.intervals.changes import DEFAULT_MARGIN, Answer, answer
from lingraft.intervals.clusters import CONFIDENCE, ClusteredValues, Value
from lingraft.intervals.confidence_intervals import Bounds, bounds, distinct

POWER_FACTOR = float(special.ndtri(1 - (1 - CONFIDENCE) / 2) + special.ndtri(0.8))  # 2.80: 80 % power
_RATIO_PRECISION = 1e-4


class Scored(Protocol):
    """An item with its score.

    Attributes:
        task: Task without its language.
        language: BCP-47 tag.
        cluster: Items of one task in the same cluster are no independent evidence.
        item: Unique inside task and language.
        score: In [0, 1].
    """

    @property
    def task(self) -> str: ...  # noqa: D102
    @property
    def language(self) -> str: ...  # noqa: D102
    @property
    def cluster(self) -> str: ...  # noqa: D102
    @property
    def item(self) -> str: ...  # noqa: D102
    @property
    def score(self) -> float: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Interval:
    """A macro mean of `n` items, in [0, 1], with the ends of its 95 % interval."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Difference:
    """A paired difference of macro means, after - before, in [-1, 1], with the ends of its 95 % interval.

    Attributes:
        minimum_detectable_effect: The smallest true difference that this evaluation would have found with 80 % power
            (5 %, two-sided): 2.80 standard errors, the error taken as at least that of 5 clusters that differ by 1
            where fewer vary.
        n: Items.
        n_differing: Clusters whose score differs.
        exact: Whether exact bounds were used: in some stratum fewer than 5 clusters vary, that is, differ from 0
            or, where most changed by the same amount, from that amount.
        all_scores: The score that both models have on every item, which does not tell them apart; None: scores vary.
        margin: A change up to it counts as none: the limit that a study states for it, else the default.
        answer: What the interval says; of a mean over seeds, what all of theirs say.
    """

    value: float
    low: float
    high: float
    minimum_detectable_effect: float
    n: int
    n_differing: int
    exact: bool
    all_scores: float | None
    margin: float
    answer: Answer


@dataclass(frozen=True, slots=True)
class Ratio:
    """A macro mean after over one before, on the same items.

    Attributes:
        value: At least 0, with no upper end; None: the score before is 0, or not to be distinguished from it.
        low: Lower end of its 95 % interval; None as `value`.
        high: Upper end.
        n: Items.
        reason: Why it is None.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    reason: str | None


def values_of(items: Sequence[Scored]) -> ClusteredValues:
    """Return the scores of items as what a mean is taken of."""
    return ClusteredValues([[_value(item, item.score) for item in items]])


def macro_mean(items: Sequence[Scored]) -> Interval:
    """Return the mean over languages of the mean over tasks of the mean over items; see `mean_over_columns`."""
    return mean_over_columns([items])


def mean_over_columns(columns: Sequence[Sequence[Scored]]) -> Interval:
    """Return the mean over columns of their macro means, with a 95 % interval.

    Jeffreys' interval of the effective number of independent trials (`confidence_intervals`). Where in some stratum
    fewer than 5 clusters differ from the most common score, Clopper-Pearson bounds on the rises above and the falls
    below that score take over: at least as wide as they say. With 30 to 50 clusters it is too narrow where rates are
    within 0.1 of 0 or 1 and the items of a cluster are very alike (benchmarks/interval_coverage.py).

    Raises:
        EvaluationError: There are no items.
    """
    values = ClusteredValues([[_value(item, item.score) for item in items] for items in columns])
    found = bounds(values.clusters(), floor=0.0)
    return Interval(values.value(), found.low, found.high, _count(columns))


def paired_difference(
    before: Sequence[Scored], after: Sequence[Scored], margin: float = DEFAULT_MARGIN
) -> Difference:
    """Return the difference of two models' macro means on the same items; see `difference_over_columns`."""
    return difference_over_columns([(before, after)], margin)


def difference_over_columns(
    pairs: Sequence[tuple[Sequence[Scored], Sequence[Scored]]], margin: float = DEFAULT_MARGIN
) -> Difference:
    """Return the mean over columns of the difference of two models' macro means, with a 95 % interval.

    Each column has its own two models, and both their scores on the same items. Jeffreys' intervals of the gains and
    of the losses, joined (`confidence_intervals`). Where in some stratum fewer than 5 clusters vary: exact bounds of
    the gains and of the losses (Clopper-Pearson, 2.5 % each), subtracted; conservative. With fewer than 5 of equal sign
    they do not exclude 0, as a sign test would not: 4 of 4 in one direction has p = 0.125.

    Args:
        pairs: Of each column the scores before and after.
        margin: A change up to it counts as none.

    Raises:
        EvaluationError: A column's two models do not hold the same items, or there are none.
    """
    values = ClusteredValues([paired_values(before, after) for before, after in pairs])
    clusters = values.clusters()
    found = bounds(clusters, floor=-1.0)
    scores = {item.score for pair in pairs for own in pair for item in own}
    all_scores = scores.pop() if len(scores) == 1 else None
    return Difference(
        value=values.value(),
        low=found.low,
        high=found.high,
        minimum_detectable_effect=min(POWER_FACTOR * found.error, 1.0),
        n=_count([before for before, _ in pairs]),
        n_differing=int((distinct(clusters.means) != 0).sum()),
        exact=found.exact,
        all_scores=all_scores,
        margin=margin,
        answer=answer(found.low, found.high, margin, all_scores),
    )


def paired_ratio(before: Sequence[Scored], after: Sequence[Scored]) -> Ratio:
    """Return after / before of two models' macro means on the same items; see `ratio_over_columns`."""
    return ratio_over_columns([(before, after)])


def ratio_over_columns(pairs: Sequence[tuple[Sequence[Scored], Sequence[Scored]]]) -> Ratio:
    """Return the mean over columns of the macro means after, divided by that of those before.

    Its 95 % interval holds every ratio r at which the interval of after - r * before holds 0 (Fieller 1954, "Some
    problems in interval estimation"), which is taken as `difference_over_columns` takes that of after - before. So it
    holds 1 exactly where the interval of the difference holds 0. Coverage: benchmarks/ratio_coverage.py.

    Raises:
        EvaluationError: As of `difference_over_columns`.
    """
    for before, after in pairs:
        paired_values(before, after)  # refuses other items
    n = _count([before for before, _ in pairs])
    later = [{_key(item): item.score for item in after} for _, after in pairs]
    earlier = [before for before, _ in pairs]
    below = ClusteredValues([[_value(item, item.score) for item in own] for own in earlier])
    above = ClusteredValues(
        [
            [_value(item, scores[_key(item)]) for item in own]
            for own, scores in zip(earlier, later, strict=True)
        ]
    )

    def rest(ratio: float) -> Bounds:
        """Return the interval of after - ratio * before, divided by a ratio above 1 to stay in [-1, 1]."""
        scale = max(1.0, ratio)
        return bounds(above.combined(1 / scale, below, -ratio / scale).clusters(), floor=-1.0)

    whole = below.value()
    if whole == 0:
        return Ratio(None, None, None, n, "the score before is 0")
    if bounds(below.combined(-1.0, below, 0.0).clusters(), floor=-1.0).high >= 0:
        return Ratio(None, None, None, n, f"the score before, {whole:.3f}, is not to be distinguished from 0")
    value, difference = above.value() / whole, rest(1.0)
    low, high = 0.0, 1.0
    if difference.low > 0 or rest(0.0).low > 0:
        low = _crossing(lambda ratio: rest(ratio).low > 0, value, float(difference.low > 0))
    if difference.high >= 0:
        high = max(1.0, 2 * value)
        while rest(high).high >= 0:
            high *= 2
    high = _crossing(lambda ratio: rest(ratio).high < 0, value, high)
    if difference.low <= 0 <= difference.high:
        low, high = min(low, 1.0), max(high, 1.0)
        if difference.exact:  # few items changed: what of them is unseen is bounded at a ratio of 1 alone
            low = max(0.0, min(low, 1 + difference.low / whole))
            high = max(high, 1 + difference.high / whole)
    return Ratio(value, low, high, n, None)


def _crossing(is_outside: Callable[[float], bool], inside: float, outside: float) -> float:
    """Return, to 1e-4, where between a ratio that may be true and one that may not the line is."""
    while abs(outside - inside) > _RATIO_PRECISION:
        middle = (inside + outside) / 2
        if is_outside(middle):
            outside = middle
        else:
            inside = middle
    return inside


def paired_values(before: Sequence[Scored], after: Sequence[Scored]) -> list[Value]:
    """Return what each item changed by, after - before; raise EvaluationError where the items are not the same."""
    later = {_key(item): item.score for item in after}
    earlier = {_key(item) for item in before}
    if later.keys() != earlier or len(after) != len(before):
        missing = sorted(earlier ^ later.keys())
        raise EvaluationError(
            f"two models can be compared on the same items only: {len(before)} and {len(after)} items, "
            f"{len(missing)} in only one of them ({missing[:3]})."
        )
    return [_value(item, later[_key(item)] - item.score) for item in before]


def _key(item: Scored) -> tuple[str, str, str]:
    return (item.task, item.language, item.item)


def _value(item: Scored, total: float) -> Value:
    return Value(item.task, item.language, item.cluster, total)


def _count(columns: Sequence[Sequence[Scored]]) -> int:
    """Count the items, those that stand in several columns once."""
    return len({_key(item) for items in columns for item in items})


def mean_of_known(values: Sequence[float | None]) -> float | None:
    """Return the mean of those that are known; None: none is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
