"""MPD of a data pair, as the paper defines it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

from lingraft.config.schema import Study
from lingraft.measures.base import Column, Figure, Found, Measure, MeasuredCell, Taken
from lingraft.measures.mpd import Difference
from lingraft.stage import FinishedStage

PAIR = "pair"


class MpdPair(Measure):
    """The distance of the base tuned on Phase 1's set from the base tuned on the cell's last set.

    Cost: a training of the base on each last set and seed. A mixed cell has none.

    Source: arXiv 2410.16006, Definition 2.
    """

    name: ClassVar[str] = "mpd_pair"
    title: ClassVar[str] = "MPD of the pair"
    meaning: ClassVar[str] = "MPD of the pair: the same between the base tuned on either phase's data."
    columns: ClassVar[tuple[Column, ...]] = (
        Column("MPD of the pair", "mean L2 distance between the base tuned on either set", "mpd", PAIR),
    )

    def check(self, study: Study) -> Iterator[str]:
        """It needs a base and Phase 1's data."""
        if study.model is None or study.phases[0].checkpoint is not None:
            yield "measures: mpd_pair tunes the base on each set; it needs `model` and a trained first phase."

    def stages(self, cell: MeasuredCell) -> Sequence[Taken]:
        """Return the distance for the last phase."""
        none = [Taken() for _ in cell.phases]
        if cell.is_mixed:
            return none
        trust = cell.study.trust_remote_code
        pair = Difference(f"pair {cell.label}", cell.phase_one, cell.tuned_base(), trust)
        return [*none[:-1], Taken({PAIR: pair})]

    def found(self, stage: FinishedStage) -> Found:
        """Return MPD."""
        return Found({"mpd": Figure(stage.result["mpd"])})
