"""The stage `combine`: a phase's final model, made of the one that it started from and the one that it trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from lingraft.models.checkpoints import combine_checkpoints
from lingraft.models.weights import ModelWeights
from lingraft.records import flush_folder
from lingraft.stage import (
    CHECKPOINT,
    MEASURE_LIBRARIES,
    Json,
    Model,
    Needs,
    StageSpec,
    Work,
    Workplace,
    libraries,
    machine,
    stages_of,
)
from lingraft.study.stages.job import TrainingJob, part_identity


@dataclass(frozen=True, eq=False)
class Combine(StageSpec):
    """What a phase's strategies combine of two models, tensor by tensor.

    Needs: a tensor of each model at a time, which is not estimated; on disk a model in float32.

    Attributes:
        job: The phase.
        trained: The model that it trained.
    """

    kind: ClassVar[str] = "combine"
    is_discardable: ClassVar[bool] = True

    job: TrainingJob
    trained: Model

    @property
    def inputs(self) -> Mapping[str, Json]:
        """Both models, and the strategies that combine."""
        return {
            "before": self.job.parent.identity,
            "after": self.trained.identity,
            "strategy": [part_identity(part) for part in self.job.composition.parts if part.combines],
            "libraries": libraries(MEASURE_LIBRARIES),
        }

    @property
    def parents(self) -> tuple[StageSpec, ...]:
        """The stages that made the two models."""
        return stages_of(self.job.parent, self.trained)

    @property
    def needs(self) -> Needs:
        """A model in float32 on disk."""
        return Needs(disk_bytes=4 * self.trained.parameters or None)

    def work(self, place: Workplace) -> Work:
        """Write the combined model."""
        trust, composition = self.job.trust_remote_code, self.job.composition
        before, after = place.model(self.job.parent), place.model(self.trained)
        composition.check(ModelWeights(after, trust_remote_code=trust).names)
        combine_checkpoints(
            before, after, composition.combine, place.folder / CHECKPOINT, trust_remote_code=trust
        )
        flush_folder(place.folder / CHECKPOINT)
        return Work({}, machine())
