"""What an adapted model may lose, and whether it lost more.

The loss of an ability is 1 - retention: the share of the start's score that is gone. One answer is given everywhere,
by `adapt`, `rescue` and `check`: held, broken or undecided, from the 95 % interval of the loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lingraft.errors import EXIT_ANSWER_IS_NO, EXIT_CANNOT_TELL, EXIT_DONE
from lingraft.intervals.changes import LimitAnswer
from lingraft.intervals.confidence_intervals import bounds, fewest_for_no_change
from lingraft.intervals.macro_mean import (
    POWER_FACTOR,
    Difference,
    Interval,
    Scored,
    macro_mean,
    paired_difference,
    paired_ratio,
    values_of,
)

EXIT_CODES = {
    "held": EXIT_DONE,
    "broken": EXIT_ANSWER_IS_NO,
    "undecided": EXIT_CANNOT_TELL,
    "seeds_disagree": EXIT_CANNOT_TELL,
}


@dataclass(frozen=True, kw_only=True)
class AbilityLoss:
    """What of an ability is lost, relative to the start.

    Attributes:
        name: BCP-47 tag of the ability's language; `en`: task ability.
        before: The start's score.
        after: The other model's, on the same items.
        loss: 1 - after / before, at most 1; below 0 it rose. None, as `low` and `high`: the start's score is 0 or is
            not to be distinguished from it.
        low: Lower end of the 95 % interval (Fieller's, of the retention).
        high: Upper end.
        max_loss: What may be lost, in [0, 1).
        n: Items.
        answer: Held: the interval lies at or below `max_loss`; broken: above it; undecided: neither.
        reason: Why there is no loss; None: there is one.
        certifiable_loss: The smallest `max_loss` that as many items would certify in 4 of 5 cases if nothing is lost
            on average; it may be above 1. None as `loss`.
        items_needed: Items that would certify `max_loss` so; None: no number does (a `max_loss` of 0), or as `loss`.
    """

    name: str
    before: Interval
    after: Interval
    loss: float | None
    low: float | None
    high: float | None
    max_loss: float
    n: int
    answer: LimitAnswer
    reason: str | None
    certifiable_loss: float | None
    items_needed: int | None


@dataclass(frozen=True, kw_only=True)
class Gain:
    """What was gained of the languages that were learnt.

    Attributes:
        languages: BCP-47 tags.
        before: The start's language ability.
        after: The other model's, on the same items.
        difference: after - before, paired, with its 95 % interval.
    """

    languages: tuple[str, ...]
    before: Interval
    after: Interval
    difference: Difference


def loss_of(name: str, before: Sequence[Scored], after: Sequence[Scored], max_loss: float) -> AbilityLoss:
    """Return what of an ability is lost.

    Args:
        name: The ability's language.
        before: Scores of the start.
        after: Scores of the other model, on the same items.
        max_loss: What may be lost, in [0, 1).

    Raises:
        EvaluationError: The two do not hold the same items, or there are none.
    """
    ratio, difference = paired_ratio(before, after), paired_difference(before, after)
    start = macro_mean(before)
    loss = low = high = certifiable = needed = None
    answer: LimitAnswer = "undecided"
    if ratio.value is not None and ratio.low is not None and ratio.high is not None:
        loss, low, high = 1 - ratio.value, 1 - ratio.high, 1 - ratio.low
        answer = "held" if high <= max_loss else "broken" if low > max_loss else "undecided"
        certifiable = difference.minimum_detectable_effect / start.value
        needed = items_needed(ratio.n, certifiable, max_loss, start.value)
    return AbilityLoss(
        name=name,
        before=start,
        after=macro_mean(after),
        loss=loss,
        low=low,
        high=high,
        max_loss=max_loss,
        n=ratio.n,
        answer=answer,
        reason=ratio.reason,
        certifiable_loss=certifiable,
        items_needed=needed,
    )


def items_needed(n: int, certifiable_loss: float, max_loss: float, score: float) -> int | None:
    """Return how many items would certify a loss of `max_loss`, where `n` would certify `certifiable_loss`.

    Args:
        n: Items.
        certifiable_loss: See `AbilityLoss`.
        max_loss: See there; of 0 no number of items certifies it.
        score: The start's.
    """
    if max_loss == 0:
        return None
    return max(math.ceil(n * (certifiable_loss / max_loss) ** 2), fewest_for_no_change(max_loss * score))


def assumed_certifiable_loss(clusters: float, score: float, share: float) -> float:
    """Return the smallest loss that an evaluation could certify, before anything is trained.

    Args:
        clusters: Independent items.
        score: The start's, above 0.
        share: Assumed share of the items whose score changes by 1, rises and falls together.
    """
    return POWER_FACTOR * math.sqrt(share / clusters) / score


def is_certified(before: Sequence[Scored], after: Sequence[Scored], max_loss: float, error: float) -> bool:
    """Return whether it is certified, with a one-sided error, that no more than `max_loss` was lost.

    The lower bound of after - (1 - max_loss) * before lies above 0, and the shown 95 % interval says the same.

    Args:
        before: Scores of the start.
        after: Scores of the other model, on the same items.
        max_loss: See `AbilityLoss`.
        error: Probability, at most 0.025, of certifying where more was lost.
    """
    if loss_of("", before, after, max_loss).answer != "held":
        return False
    rest = values_of(after).combined(1.0, values_of(before), max_loss - 1)
    return bounds(rest.clusters(), floor=-1.0, tail=error).low > 0


def answer_of(losses: Sequence[AbilityLoss]) -> LimitAnswer:
    """Return whether all abilities are held: broken where one is, held where all are, else undecided."""
    answers = {one.answer for one in losses}
    if "broken" in answers:
        return "broken"
    return "held" if answers == {"held"} else "undecided"
