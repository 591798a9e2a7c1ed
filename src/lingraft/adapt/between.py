"""Models between two, made, asked and chosen: what `adapt` and `rescue` have in common once there are two models.

Each candidate is a stage that combines the two, rounded to the type that is written, and a stage that evaluates it; so
what is scored is what is exported, and an interrupted walk goes on where it was. A candidate's weights are deleted when
it was asked, and made again if it is chosen.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from lingraft.adapt.promise import ability_name, answer_of, loss_sentence
from lingraft.adapt.result import Point, Walked
from lingraft.adapt.walk import (
    Answers,
    Candidate,
    Compared,
    Promise,
    alphas,
    answers_of,
    compared,
    judged,
    layer_groups,
    walk,
)
from lingraft.intervals.changes import LimitAnswer
from lingraft.models.checkpoints import WeightType
from lingraft.models.layers import layer_of
from lingraft.stage import MadeModel, Model
from lingraft.study.execute import Executor
from lingraft.study.stages.combine import Combine
from lingraft.study.stages.evaluate import Evaluate, Questions


@dataclass(frozen=True)
class Between:
    """Two models, and what is asked of those that lie between them.

    Attributes:
        start: The model that training started from, or that a damaged one is rescued towards.
        trained: The other one.
        selection: What is asked where the model is chosen.
        report: What is asked of the chosen one; no item of it is in `selection`.
        promise: What may be lost.
        dtype: Type of the weights that are written.
        executor: Makes the stages.
        trust_remote_code: Run Python code that the models bring along.
    """

    start: Model
    trained: Model
    selection: Questions
    report: Questions
    promise: Promise
    dtype: WeightType
    executor: Executor
    trust_remote_code: bool = False

    def combine(self, candidate: Candidate) -> Combine:
        """Return the stage that makes a candidate."""
        return Combine(
            candidate.name, self.start, self.trained, candidate.choice, self.dtype, self.trust_remote_code
        )

    def start_answers(self, asked: Questions) -> Answers:
        """Return what the start answers."""
        return answers_of(self.executor.make(Evaluate("start", self.start, asked, self.trust_remote_code)))

    def answers(self, candidate: Candidate, asked: Questions) -> tuple[Answers, str, str]:
        """Return what a candidate answers, and the fingerprints of the stages that made and asked it."""
        combine = self.combine(candidate)
        made = MadeModel(combine, self.trained.parameters)
        stage = Evaluate(candidate.name, made, asked, self.trust_remote_code)
        done = self.executor.make(stage)
        if self.executor.store.find(combine, with_artefacts=True) is not None:
            self.executor.store.discard(combine)
        return answers_of(done), combine.fingerprint, stage.fingerprint

    def look(self, candidate: Candidate, asked: Questions) -> tuple[Compared, str, str]:
        """Ask a candidate and the start; return their answers, and the fingerprints of the candidate's stages."""
        start = self.start_answers(asked)
        found, model, evaluation = self.answers(candidate, asked)
        return compared(self.promise, start, found), model, evaluation

    def walk(self, *, steps: int, groups: int, layers: int, deadline: float | None = None) -> Walked:
        """Walk from the start outwards, and choose; see `walk.walk`.

        Args:
            steps: Number of alphas.
            groups: Number of groups of layers.
            layers: Decoder layers of the model.
            deadline: `time.monotonic()` at which everything should be over; None: no bound.
        """
        longest = 0.0

        def look(candidate: Candidate) -> tuple[Compared, str, str]:
            nonlocal longest
            started = time.monotonic()
            found = self.look(candidate, self.selection)
            longest = max(longest, time.monotonic() - started)
            return found

        # After the walk the report part asks the start and the chosen model: as long as two candidates take.
        def may_go_on() -> bool:
            return deadline is None or time.monotonic() + 3 * longest < deadline

        return walk(
            self.promise,
            look,
            steps=alphas(steps),
            groups=layer_groups(layers, groups),
            may_go_on=may_go_on,
        )

    def reported(self, kept: Point) -> Point:
        """Return the kept point as the report part sees it."""
        pair, model, evaluation = self.look(Candidate(kept.alpha, kept.kept_back), self.report)
        losses, gain = judged(self.promise, pair)
        return replace(kept, losses=losses, gain=gain, model=model, evaluation=evaluation)


def final_answer(walked: Walked, report: Point) -> tuple[LimitAnswer, str]:
    """Return what is said of the model that is kept, and its sentence.

    The choice carries the confidence. The report part can only take it back: by itself it tests the model a second
    time, on other items, and where it says that more was lost than allowed, that is said.
    """
    found = "; ".join(loss_sentence(one) for one in report.losses)
    gained = "" if report.gain is None else f"; {report.gain.sentence}"
    said = f"{walked.sentence} On items on which nothing was chosen: {found}{gained}."
    if walked.chosen is None:
        return walked.answer, said
    if answer_of(report.losses) == "broken":
        worst = next(one for one in report.losses if one.answer == "broken")
        return "broken", f"{said} There, more of {ability_name(worst.name)} was lost than allowed."
    if report.gain is not None and report.gain.answer == "fell":
        return "broken", f"{said} There, language ability fell."
    return "held", said


def decoder_layers(names: tuple[str, ...]) -> int:
    """Return how many decoder layers a model has, by the names of its parameters."""
    return 1 + max((layer for name in names if (layer := layer_of(name)) is not None), default=-1)
