"""What an adapted model may lose, and whether it lost more.

The loss of an ability is 1 - retention: the share of the start's score that is gone. One answer is given everywhere,
by `adapt`, `rescue` and `check`: held, broken or undecided, from the 95 % interval of the loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lingraft.errors import EXIT_ANSWER_IS_NO, EXIT_CANNOT_TELL, EXIT_DONE
from lingraft.evaluate.held_out import AnswerLoss, bits_difference, mean_bits
from lingraft.intervals.changes import Answer, LimitAnswer
from lingraft.intervals.confidence_intervals import bounds, fewest_for_no_change
from lingraft.intervals.macro_mean import (
    POWER_FACTOR,
    Interval,
    Scored,
    macro_mean,
    paired_difference,
    paired_ratio,
    values_of,
)
from lingraft.study.limits import ASSUMED_SHARE
from lingraft.text.language_tags import ENGLISH

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
    """What was gained of the languages that are learnt.

    Attributes:
        languages: BCP-47 tags.
        kind: `language ability`: of scores in [0, 1]; `bits per character`: of the loss of held-out answers, turned so
            that above 0 it fell.
        before: The start's, on the same items.
        after: The other model's.
        value: What was gained.
        low: Lower end of its 95 % interval; None: too few rows for one.
        high: Upper end.
        n: Items.
        answer: What the interval says.
    """

    languages: tuple[str, ...]
    kind: Literal["language ability", "bits per character"]
    before: float
    after: float
    value: float
    low: float | None
    high: float | None
    n: int
    answer: Answer

    @property
    def sentence(self) -> str:
        """The gain in words."""
        interval = "" if self.low is None or self.high is None else f" [{self.low:+.3f}, {self.high:+.3f}]"
        what = "loss in bits per character" if self.kind == "bits per character" else self.kind
        change = f"{self.before:.3f} -> {self.after:.3f}, gain {self.value:+.3f}{interval}"
        return f"{what} in {', '.join(self.languages)} {change}"


def gain_in_scores(before: Sequence[Scored], after: Sequence[Scored]) -> Gain:
    """Return what language ability gained, of the scores of two models on the same items."""
    found = paired_difference(before, after)
    return Gain(
        languages=tuple(sorted({one.language for one in before})),
        kind="language ability",
        before=macro_mean(before).value,
        after=macro_mean(after).value,
        value=found.value,
        low=found.low,
        high=found.high,
        n=found.n,
        answer=found.answer,
    )


def gain_in_bits(before: Sequence[AnswerLoss], after: Sequence[AnswerLoss]) -> Gain:
    """Return by how much the loss of held-out answers fell, of two models on the same rows."""
    found = bits_difference([(after, before)])
    return Gain(
        languages=tuple(sorted({one.language for one in before})),
        kind="bits per character",
        before=mean_bits([before]).value,
        after=mean_bits([after]).value,
        value=found.value,
        low=found.low,
        high=found.high,
        n=found.n,
        answer=found.answer,
    )


def ability_name(name: str) -> str:
    """Return how sentences call a promised ability."""
    return "English" if name == ENGLISH else name


def loss_sentence(loss: AbilityLoss) -> str:
    """Return what of an ability was lost, in words."""
    name = ability_name(loss.name)
    if loss.loss is None or loss.low is None or loss.high is None:
        return f"{name}: what was lost is not known: {loss.reason}"
    return (
        f"{name} {loss.before.value:.3f} -> {loss.after.value:.3f}, loss {100 * loss.loss:.1f} % "
        f"[{100 * loss.low:.1f}, {100 * loss.high:.1f}] of {loss.n} items"
    )


def undecided_sentence(loss: AbilityLoss) -> str:
    """Return what would decide whether a limit was kept: how many items, or which limit."""
    name, limit = ability_name(loss.name), f"{100 * loss.max_loss:g} %"
    if loss.certifiable_loss is None:
        return f"{loss_sentence(loss)}. Ask tasks that the model can do before it learns (--suite, --task)."
    if loss.items_needed is None:
        return (
            f"That nothing at all of {name} was lost cannot be shown by any number of items: {loss.n} can certify a "
            f"loss of {100 * loss.certifiable_loss:.1f} %. Allow a --max-loss above 0."
        )
    return (
        f"{loss.n} items cannot tell whether no more than {limit} of {name} was lost (they can certify "
        f"{100 * loss.certifiable_loss:.1f} %; {limit} needs about {loss.items_needed:,}): {loss_sentence(loss)}. Ask "
        "more items (--suite, --task), or allow a larger --max-loss."
    )


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


def promise_sentence(name: str, score: Interval, independent: float, max_loss: float) -> str:
    """Return what an evaluation will be able to certify, before anything is trained.

    Args:
        name: Of the promised ability.
        score: The start's.
        independent: Independent items.
        max_loss: What may be lost.
    """
    limit = f"{100 * max_loss:g} % of {ability_name(name)}"
    if score.low <= 0:
        return (
            f"! {limit} may be lost, and the model scores {score.value:.3f} [{score.low:.3f}, {score.high:.3f}] of it: "
            "nothing will show whether it was lost. Measure by tasks that it can do (--suite, --task)."
        )
    certifiable = POWER_FACTOR * math.sqrt(ASSUMED_SHARE / independent) / score.value
    needed = items_needed(round(independent), certifiable, max_loss, score.value)
    said = (
        f"{limit} may be lost, of a score of {score.value:.3f} [{score.low:.3f}, {score.high:.3f}]; if "
        f"{100 * ASSUMED_SHARE:g} % of the {independent:,.0f} independent items change, a loss of "
        f"{100 * certifiable:.1f} % can be certified"
    )
    if needed is None:
        return f"! {said}, and one of 0 only where the score rises. Allow a --max-loss above 0."
    if needed > independent:
        return (
            f"! {said}; {100 * max_loss:g} % needs about {needed:,}. Ask more items (--suite, --task), or allow a "
            "larger --max-loss; else the answer may well stay undecided."
        )
    return f"{said}."


def is_certified(before: Sequence[Scored], after: Sequence[Scored], max_loss: float, error: float) -> bool:
    """Return whether it is certified, with a one-sided error, that no more than `max_loss` was lost.

    The lower bound of after - (1 - max_loss) * before lies above 0, and the shown 95 % interval says the same.

    Args:
        before: Scores of the start.
        after: Scores of the other model, on the same items.
        max_loss: See `AbilityLoss`.
        error: Probability, at most 0.025, of certifying where more was lost.
    """
    rest = values_of(after).combined(1.0, values_of(before), max_loss - 1)
    if bounds(rest.clusters(), floor=-1.0, tail=error).low <= 0:
        return False
    return loss_of("", before, after, max_loss).answer == "held"


def answer_of(losses: Sequence[AbilityLoss]) -> LimitAnswer:
    """Return whether all abilities are held: broken where one is, held where all are, else undecided."""
    answers = {one.answer for one in losses}
    if "broken" in answers:
        return "broken"
    return "held" if answers == {"held"} else "undecided"
