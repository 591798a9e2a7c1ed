"""The trade-off between a model and what it was trained to: walked outwards until more may be lost than is allowed.

Between the two lie models of interpolated weights. They are looked at in a fixed order, from the start outwards, and
the first one of which it cannot be certified that every promised ability is held ends the walk (fixed-sequence testing:
Angelopoulos et al. 2021, "Learn then Test", arXiv 2110.01052). So whichever of the certified ones is chosen, the
probability that it lost more than allowed is at most 5 %: 2.5 % for the chain of the whole model, which is the lower
end of the 95 % interval that is shown, and 2.5 % shared by the chains in which a group of layers keeps the start's
weights. Not walking a chain can only lower that, so one is left out where its end speaks the new languages no better
than what was chosen already.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from lingraft.adapt.promise import (
    AbilityLoss,
    Gain,
    ability_name,
    answer_of,
    gain_in_bits,
    gain_in_scores,
    is_certified,
    loss_of,
    loss_sentence,
    undecided_sentence,
)
from lingraft.adapt.result import Point, Walked, point_name
from lingraft.config.schema import StrategyChoice, StrategySpec
from lingraft.errors import EvaluationError
from lingraft.evaluate.common_items import common_items
from lingraft.evaluate.held_out import AnswerLoss, read_losses
from lingraft.evaluate.predictions import Prediction, read_predictions
from lingraft.evaluate.task_records import TaskRecord
from lingraft.intervals.changes import LimitAnswer
from lingraft.stage import FinishedStage
from lingraft.study.stages.evaluate import HELD_OUT, PREDICTIONS, recorded
from lingraft.text.language_tags import ENGLISH

ERROR = 0.025
"""One-sided, of the chain of the whole model; as much is shared by the chains of the groups of layers."""


@dataclass(frozen=True)
class Promise:
    """What may be lost, and of what.

    Attributes:
        max_loss: See `AbilityLoss`.
        earlier: BCP-47 tags of the languages that were learnt before, of which no more may be lost than of English.
        learnt: BCP-47 tags of the languages that are learnt now.
        is_rescue: Whether the trained model was given, so that nothing about its training can be advised.
    """

    max_loss: float
    earlier: tuple[str, ...] = ()
    learnt: tuple[str, ...] = ()
    is_rescue: bool = False


@dataclass(frozen=True)
class Answers:
    """What a model answered to one part of the items.

    Attributes:
        predictions: One per item.
        tasks: How each task was asked and scored.
        losses: Of the held-out answers.
    """

    predictions: tuple[Prediction, ...]
    tasks: dict[str, TaskRecord]
    losses: tuple[AnswerLoss, ...]


def answers_of(evaluation: FinishedStage) -> Answers:
    """Return what a finished evaluation left."""
    return Answers(
        read_predictions(evaluation.artefact(PREDICTIONS)),
        dict(recorded(evaluation).tasks),
        read_losses(evaluation.artefact(HELD_OUT)),
    )


@dataclass(frozen=True)
class Compared:
    """Two models' answers to the same items, by what is promised.

    Attributes:
        abilities: By language, English first: the scores before and after of each promised ability.
        learnt: The same of the languages that are learnt.
        losses: Loss of their held-out answers before and after, of the rows that both could be measured on.
    """

    abilities: dict[str, tuple[list[Prediction], list[Prediction]]]
    learnt: tuple[list[Prediction], list[Prediction]]
    losses: tuple[list[AnswerLoss], list[AnswerLoss]]


def compared(promise: Promise, start: Answers, other: Answers) -> Compared:
    """Return two models' answers to the items that both were asked alike.

    Raises:
        EvaluationError: No item of a promised ability is left.
    """
    common = common_items([start.predictions, other.predictions], [start.tasks, other.tasks])

    def of(name: str) -> tuple[list[Prediction], list[Prediction]]:
        before, after = (
            [
                one
                for one in own
                if (one.ability == "task_ability" if name == ENGLISH else one.language == name)
                and (name == ENGLISH or one.ability != "task_ability")
            ]
            for own in common.models
        )
        if not before:
            why = next(iter(common.refused.values()), "no task was asked in it")
            raise EvaluationError(f"{name}: what was lost of it cannot be known: {why}")
        return before, after

    before, after = ([one for one in own if one.ability == "language_ability"] for own in common.models)
    items = {one.item for one in start.losses} & {one.item for one in other.losses}
    bits = ([one for one in own if one.item in items] for own in (start.losses, other.losses))
    first, second = ([one for one in own if one.language in promise.learnt] for own in bits)
    return Compared(
        {name: of(name) for name in (ENGLISH, *promise.earlier)}, (before, after), (first, second)
    )


def judged(promise: Promise, pair: Compared) -> tuple[tuple[AbilityLoss, ...], Gain | None]:
    """Return what of each promised ability is lost, and what is gained of the languages that are learnt.

    The gain is one of scores where a task is asked in them, else of the loss of their held-out answers; None: neither.
    """
    losses = tuple(loss_of(name, *own, promise.max_loss) for name, own in pair.abilities.items())
    if pair.learnt[0]:
        return losses, gain_in_scores(*pair.learnt)
    return losses, gain_in_bits(*pair.losses) if pair.losses[0] else None


@dataclass(frozen=True)
class Candidate:
    """A model on the way.

    Attributes:
        alpha: See `Point`.
        kept_back: See there.
    """

    alpha: float
    kept_back: str | None = None

    @property
    def name(self) -> str:
        """How progress lines and tables call it."""
        return point_name(self.alpha, self.kept_back)

    @property
    def choice(self) -> StrategyChoice:
        """The interpolation that makes it."""
        layers = {} if self.kept_back is None else {self.kept_back: 0.0}
        options = {"alpha": self.alpha, "layers": layers}
        return StrategyChoice(parts=(StrategySpec(kind="interpolate", options=options),))


def alphas(steps: int) -> tuple[float, ...]:
    """Return so many alphas, evenly spaced, the last one 1."""
    return tuple(round(number / steps, 6) for number in range(1, steps + 1))


def layer_groups(layers: int, groups: int) -> tuple[str, ...]:
    """Return decoder layers in so many groups of about equal size, such as `0-9`; of fewer layers fewer groups."""
    groups = min(groups, layers)
    ends = [round(number * layers / groups) for number in range(groups + 1)] if groups else []
    return tuple(f"{first}-{last - 1}" if last - first > 1 else str(first) for first, last in pairwise(ends))


Look = Callable[[Candidate], tuple[Compared, str, str]]
"""Asks a candidate on the selection part; returns its answers beside the start's, and the fingerprints of the stages
that made and evaluated it."""


def walk(
    promise: Promise,
    look: Look,
    *,
    steps: Sequence[float],
    groups: Sequence[str],
    may_go_on: Callable[[], bool] = lambda: True,
) -> Walked:
    """Walk the trade-off, and choose.

    Args:
        promise: What may be lost.
        look: Asks a candidate.
        steps: Alphas, rising.
        groups: Groups of layers of which each gets a chain of its own.
        may_go_on: Asked before each candidate but the first; once it says no, what was found so far counts.
    """
    points: list[Point] = []

    def seen(candidate: Candidate, error: float) -> Point:
        pair, model, evaluation = look(candidate)
        losses, gain = judged(promise, pair)
        certified = all(is_certified(*own, promise.max_loss, error) for own in pair.abilities.values())
        point = Point(
            alpha=candidate.alpha,
            kept_back=candidate.kept_back,
            losses=losses,
            gain=gain,
            certified=certified,
            model=model,
            evaluation=evaluation,
        )
        points.append(point)
        return point

    stopped = False
    for alpha in steps:
        stopped = bool(points) and not may_go_on()
        if stopped or not seen(Candidate(alpha), ERROR).certified:
            break
    is_whole = bool(points) and points[-1].certified and points[-1].alpha == steps[-1]
    for group in groups if not is_whole else ():
        error = ERROR / len(groups)
        if stopped := stopped or not may_go_on():
            break
        end = seen(Candidate(steps[-1], group), error)
        others = (one for one in points if one.certified and one is not end)
        if _gained(end, len(groups)) <= max((_gained(one, len(groups)) for one in others), default=0.0):
            points[-1] = replace(end, certified=False)  # its turn would come after all smaller alphas
            continue
        chain_holds = True
        for alpha in steps[:-1]:
            if stopped := stopped or not may_go_on():
                break
            chain_holds = seen(Candidate(alpha, group), error).certified
            if not chain_holds:
                break
        if not chain_holds or stopped:
            points[points.index(end)] = replace(end, certified=False)
    return _choice(promise, points, stopped, len(groups))


def _gained(point: Point, groups: int) -> float:
    """Return what a point gained; where that is not known, the share of the change that it keeps, over all layers."""
    if point.gain is not None:
        return point.gain.value
    return point.alpha if point.kept_back is None else point.alpha * (1 - 1 / groups)


def _choice(promise: Promise, points: Sequence[Point], stopped: bool, groups: int) -> Walked:
    """Return what is chosen of the points that were looked at, and why."""
    limit = f"{100 * promise.max_loss:g} %"
    of = " and ".join(map(ability_name, (ENGLISH, *promise.earlier)))
    over = " The time allowed was over before all points were looked at." if stopped else ""
    certified = [one for one in points if one.certified]
    if certified:
        best = max(
            certified,
            key=lambda one: (one.gain is None or one.gain.answer == "rose", _gained(one, groups), one.alpha),
        )
        said = f"{best.name}: no more than {limit} of {of} was lost, with 95 % confidence"
        if best.gain is None or best.gain.answer == "rose":
            gained = "" if best.gain is None else f"; {best.gain.sentence}"
            return Walked(
                points=tuple(points),
                chosen=best,
                nearest=best,
                answer="held",
                sentence=f"{said}{gained}.{over}",
            )
        answer: LimitAnswer = "undecided" if best.gain.answer == "undecided" else "broken"
        advice = "Ask more items" if promise.is_rescue else "Train on more rows, or ask more items"
        said += f", but no gain is to be seen: {best.gain.sentence}. {advice}."
        return Walked(points=tuple(points), chosen=None, nearest=best, answer=answer, sentence=said + over)
    nearest = min(points, key=lambda one: max(loss.loss or 0.0 for loss in one.losses))
    if answer_of(points[0].losses) == "broken":
        worst = next(one for one in points[0].losses if one.answer == "broken")
        advice = "Take a mitigation (strategy=NAME), less training"
        if promise.is_rescue:
            advice = "Take more --steps, repair the model first (--train)"
        said = (
            f"{points[0].name} already loses more than {limit}: {loss_sentence(worst)}. {advice}, or allow a larger "
            "--max-loss."
        )
        return Walked(
            points=tuple(points), chosen=None, nearest=nearest, answer="broken", sentence=said + over
        )
    # Where all are held by a hair, the one that is nearest to the limit.
    unsure = max(points[0].losses, key=lambda one: (one.answer != "held", one.high or 0.0))
    said = undecided_sentence(unsure)
    return Walked(
        points=tuple(points), chosen=None, nearest=nearest, answer="undecided", sentence=said + over
    )
