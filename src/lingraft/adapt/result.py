"""What adapting a model found, as frozen dataclasses: the points of the trade-off, the choice, and the report on it.

`records.to_json` writes them, cards, tables and pages read them. Scores lie in [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lingraft.adapt.outlook import Outlook
from lingraft.adapt.promise import AbilityLoss, Gain
from lingraft.intervals.changes import LimitAnswer
from lingraft.models.checkpoints import WeightType
from lingraft.study.result import DataCounts

FORMAT = 1
"""Of what `lingraft adapt --json` and `lingraft rescue --json` print."""


def point_name(alpha: float, kept_back: str | None) -> str:
    """Return what a model on the way is called."""
    return f"alpha {alpha:g}" + (f", layers {kept_back} kept back" if kept_back else "")


@dataclass(frozen=True, kw_only=True)
class Point:
    """One model between the start and the trained one, as one part of the evaluation's items sees it.

    Attributes:
        alpha: Share of the way from the start (0) to the trained model (1); see the strategy `interpolate`.
        kept_back: Decoder layers that keep the start's weights, such as `0-9`; None: none do.
        losses: Of each promised ability, English first.
        gain: Of the languages that are learnt; None: nothing is asked in them.
        certified: Whether it is certified, by fixed-sequence testing, that no promised ability lost more than allowed.
        model: Fingerprint of the stage that made the model.
        evaluation: Fingerprint of the stage that evaluated it.
    """

    alpha: float
    kept_back: str | None
    losses: tuple[AbilityLoss, ...]
    gain: Gain | None
    certified: bool
    model: str
    evaluation: str

    @property
    def name(self) -> str:
        """How tables call it."""
        return point_name(self.alpha, self.kept_back)


@dataclass(frozen=True, kw_only=True)
class Walked:
    """A walk along the trade-off, on the selection part.

    Attributes:
        points: In the order in which they were looked at.
        chosen: The certified one with the most language ability, whose gain's interval lies above 0; None: there is
            none.
        nearest: What is kept where none was chosen: of the certified ones the one that gained the most, else the one
            that lost the least.
        answer: Held: one was chosen. Broken: the first point lost more than allowed, or nothing was gained. Undecided:
            the items cannot tell.
        sentence: The same in words, with what to do.
    """

    points: tuple[Point, ...]
    chosen: Point | None
    nearest: Point
    answer: LimitAnswer
    sentence: str

    @property
    def kept(self) -> Point:
        """The point whose model is kept."""
        return self.chosen or self.nearest


@dataclass(frozen=True, kw_only=True)
class Adapted:
    """What `lingraft adapt` or `lingraft rescue` did.

    Attributes:
        format: Of what is written.
        command: `adapt` or `rescue`.
        start: The model that was adapted (or that a damaged one is rescued towards), as the user named it.
        start_identity: What it is known by: the hash of its weights, or the stage that made them.
        trained: Of a rescue the damaged model, as the user named it; None: it was trained here.
        trained_identity: What that is known by; None: it was trained here.
        max_loss: What may be lost, in [0, 1).
        learnt: BCP-47 tags of the languages that were learnt.
        earlier: Those that an earlier `adapt` taught the start, which are promised as English is.
        data: The rows, set by set: read, broken, held out, trained.
        strategy: The training's strategies; None: nothing was trained.
        steps: Optimiser steps; 0: nothing was trained.
        seed: Of everything that was drawn.
        dtype: Type of the written weights.
        precision: Of the arithmetic of evaluation.
        outlook: What was known before the training; None: nothing was trained.
        walked: The walk on the selection part.
        report: The model that is kept, on the report part, on which nothing was chosen.
        answer: Held: chosen on the selection part with its confidence, and not broken on the report part. Broken: no
            model met the limit, or the report part says that this one did not. Undecided: neither can be shown.
        sentence: The same in words.
        folder: Where the model was written.
    """

    format: int
    command: str
    start: str
    start_identity: Mapping[str, str]
    trained: str | None
    trained_identity: Mapping[str, str] | None
    max_loss: float
    learnt: tuple[str, ...]
    earlier: tuple[str, ...]
    data: tuple[DataCounts, ...]
    strategy: str | None
    steps: int
    seed: int
    dtype: WeightType
    precision: str
    outlook: Outlook | None
    walked: Walked
    report: Point
    answer: LimitAnswer
    sentence: str
    folder: str
