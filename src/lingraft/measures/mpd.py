"""MPD: how far the weights moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from lingraft.measures.base import FROM_PREVIOUS, Column, Figure, Found, Measure, MeasuredCell, Taken
from lingraft.stage import (
    MEASURE_LIBRARIES,
    FinishedStage,
    Json,
    Model,
    StageSpec,
    Work,
    Workplace,
    libraries,
    machine,
    stages_of,
)


class Mpd(Measure):
    """The model parameter difference of each phase from the one before and from Phase 1.

    Source: arXiv 2410.16006, Definition 2; the paper compares another pair of models (`mpd_pair`).
    """

    name: ClassVar[str] = "mpd"
    title: ClassVar[str] = "MPD"
    meaning: ClassVar[str] = "MPD: mean L2 distance of the weight tensors from Phase 1."
    columns: ClassVar[tuple[Column, ...]] = (
        Column("MPD", "mean L2 distance of the weight tensors from Phase 1", "mpd"),
    )
    phase_columns: ClassVar[tuple[Column, ...]] = (
        Column(
            "MPD from previous",
            "mean L2 distance of the weight tensors from the phase before",
            "mpd",
            FROM_PREVIOUS,
        ),
    )

    def stages(self, cell: MeasuredCell) -> Sequence[Taken]:
        """Return the distance of each phase's model from each start."""
        return [
            Taken(
                {
                    place: Difference(
                        f"{'step' if place == FROM_PREVIOUS else 'from phase one'} to {phase.label}",
                        start.model,
                        phase.model,
                        cell.study.trust_remote_code,
                    )
                    for place, start in phase.starts.items()
                }
            )
            for phase in cell.phases
        ]

    def found(self, stage: FinishedStage) -> Found:
        """Return MPD."""
        return Found({"mpd": Figure(stage.result["mpd"])})


@dataclass(frozen=True, eq=False)
class Difference(StageSpec):
    """MPD of two models.

    Needs: not estimated; models are read in pieces of a megabyte.

    Attributes:
        first: The model that distances are taken from.
        second: The other one.
        trust_remote_code: Run Python code that a model brings along.
    """

    kind: ClassVar[str] = "difference"

    first: Model
    second: Model
    trust_remote_code: bool = False

    @property
    def inputs(self) -> Mapping[str, Json]:
        """Both models."""
        return {
            "first": self.first.identity,
            "second": self.second.identity,
            "libraries": libraries(MEASURE_LIBRARIES),
        }

    @property
    def parents(self) -> tuple[StageSpec, ...]:
        """The stages that made the models."""
        return stages_of(self.first, self.second)

    def work(self, place: Workplace) -> Work:
        """Read both models tensor by tensor."""
        from lingraft.models.weights import ModelWeights
        from lingraft.weights.difference import parameter_difference

        found = parameter_difference(
            *(
                ModelWeights(place.model(one), trust_remote_code=self.trust_remote_code)
                for one in (self.first, self.second)
            ),
            on_progress=partial(place.progressed, unit="tensors"),
        )
        result = {
            "mpd": found.mpd,
            "relative": found.relative,
            "n_tensors": len(found.tensors),
            "missing": list(found.missing),
            "tensors": [
                {"name": t.name, "layer": t.layer, "module": t.module, "l2": t.l2}
                | {"relative": t.relative, "cosine": t.cosine}
                for t in found.tensors
            ],
        }
        return Work(result, machine())
