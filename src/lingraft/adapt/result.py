"""What adapting a model found, as frozen dataclasses: the points of the trade-off, the choice, and the report on it.

`records.to_json` writes them, cards, tables and pages read them. Scores lie in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

from lingraft.adapt.promise import AbilityLoss, Gain
from lingraft.intervals.changes import LimitAnswer

FORMAT = 1
"""Of what `lingraft adapt --json` and `lingraft rescue --json` print."""


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
        return f"alpha {self.alpha:g}" + (f", layers {self.kept_back} kept back" if self.kept_back else "")


@dataclass(frozen=True, kw_only=True)
class Walked:
    """A walk along the trade-off, on the selection part.

    Attributes:
        points: In the order in which they were looked at.
        chosen: The certified one with the most language ability, whose gain's interval lies above 0; None: there is
            none.
        nearest: What is kept where none was chosen: the one with the least loss among those that gained, else of all.
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
