"""The stage `combine`: a model made of two, such as a phase's final one of where it started and what it trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from lingraft.config.schema import StrategyChoice
from lingraft.models.checkpoints import WEIGHT_TYPES, WeightType, combine_checkpoints
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
from lingraft.strategies.composition import build
from lingraft.study.stages.job import part_identity


@dataclass(frozen=True, eq=False)
class Combine(StageSpec):
    """What strategies combine of two models, tensor by tensor.

    Needs: a tensor of each model at a time, which is not estimated; on disk a model.

    Attributes:
        before: The model that training started from.
        after: The model that was trained.
        choice: The strategies; those that do not combine are passed over.
        dtype: What the combined weights are rounded to.
        trust_remote_code: Run Python code that the models bring along.
    """

    kind: ClassVar[str] = "combine"
    is_discardable: ClassVar[bool] = True

    before: Model
    after: Model
    choice: StrategyChoice
    dtype: WeightType = "float32"
    trust_remote_code: bool = False

    @property
    def inputs(self) -> Mapping[str, Json]:
        """Both models, the strategies that combine, and the type where it is not float32."""
        inputs: dict[str, Json] = {
            "before": self.before.identity,
            "after": self.after.identity,
            "strategy": [part_identity(part) for part in build(self.choice).parts if part.combines],
            "libraries": libraries(MEASURE_LIBRARIES),
        }
        # float32 is not named, so that what was made before there was a choice is not made again.
        return inputs if self.dtype == "float32" else {**inputs, "dtype": self.dtype}

    @property
    def parents(self) -> tuple[StageSpec, ...]:
        """The stages that made the two models."""
        return stages_of(self.before, self.after)

    @property
    def starts_from(self) -> Model:
        """The model that was trained."""
        return self.after

    @property
    def needs(self) -> Needs:
        """A model on disk."""
        return Needs(disk_bytes=WEIGHT_TYPES[self.dtype].itemsize * self.after.parameters or None)

    def work(self, place: Workplace) -> Work:
        """Write the combined model."""
        trust, composition = self.trust_remote_code, build(self.choice)
        before, after = place.model(self.before), place.model(self.after)
        composition.check(ModelWeights(after, trust_remote_code=trust).names)
        combine_checkpoints(
            before,
            after,
            composition.combine,
            place.folder / CHECKPOINT,
            dtype=WEIGHT_TYPES[self.dtype],
            trust_remote_code=trust,
        )
        flush_folder(place.folder / CHECKPOINT)
        return Work({}, machine())
