"""The stage `prepare`: what a strategy makes once of the model that a phase starts from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

from lingraft.models.compute import compute_for
from lingraft.models.loading import load_model, load_tokenizer
from lingraft.stage import Json, Needs, StageSpec, Work, Workplace, libraries, machine, stages_of
from lingraft.strategies.base import Context, Strategy
from lingraft.study.stages.job import TRAINING_LIBRARIES, TrainingJob
from lingraft.train.memory import peak_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, eq=False)
class Prepare(StageSpec):
    """A state that one of a phase's strategies prepares; phases that start alike share it.

    Needs: the model in float32, and on disk a state that is taken to be as large (EWC's is; others' are smaller).

    Attributes:
        job: A phase that the state is for.
        part: The strategy.
        workers: Processes that answer where the strategy generates; the state does not depend on it.
    """

    kind: ClassVar[str] = "prepare"
    is_discardable: ClassVar[bool] = True

    job: TrainingJob
    part: Strategy
    workers: int = 1

    @property
    def inputs(self) -> Mapping[str, Json]:
        """The model, the options and rows that decide the state, and the arithmetic."""
        job, part = self.job, self.part
        return {
            "parent": job.parent.identity,
            "strategy": part.kind,
            "options": cast("Mapping[str, Json]", part.preparation),
            "data": {need: job.replay_data[need] for need in sorted(part.uses & set(job.replay_data))},
            "seed": job.seed if part.prepares_by_seed else None,
            "precision": compute_for(job.training.precision).inference_precision,
            "libraries": libraries(TRAINING_LIBRARIES),
        }

    @property
    def parents(self) -> tuple[StageSpec, ...]:
        """The stage that made the model."""
        return stages_of(self.job.parent)

    @property
    def needs(self) -> Needs:
        """The model in float32, in memory and once on disk."""
        size = 4 * self.job.parent.parameters or None
        return Needs("accelerator", size, size)

    def work(self, place: Workplace) -> Work:
        """Let the strategy look at the model and write its state."""
        job = self.job
        parent = place.model(job.parent)
        compute = compute_for(job.training.precision)

        def load() -> PreTrainedModel:
            model = load_model(parent, trust_remote_code=job.trust_remote_code)
            model.to(compute.device)  # type: ignore[arg-type]
            return model

        found = self.part.prepare(
            load,
            load_tokenizer(parent, trust_remote_code=job.trust_remote_code),
            Context(
                base=None,
                previous=parent,
                previous_data=job.previous_data,
                english=job.english,
                seed=job.seed,
                folder=place.folder,
                cache=place.cache,
                trust_remote_code=job.trust_remote_code,
                on_progress=place.progressed,
                compute=compute,
                noted=place.watcher.noted,
                workers=self.workers,
            ),
        )
        return Work(dict(found), machine(compute) | {"peak_bytes": peak_bytes()})
