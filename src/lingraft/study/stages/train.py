"""The stage `train`: one phase of one cell, from the rows to the trained model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from lingraft.config.schema import Training
from lingraft.data.chat_format import CHAT_IDENTITY
from lingraft.data.encodings import encode_once
from lingraft.models.compute import Compute, compute_for
from lingraft.models.context_length import at_most, context_length
from lingraft.models.fused_loss import liger_version
from lingraft.models.loading import load_tokenizer
from lingraft.models.shape import ModelShape
from lingraft.records import to_json
from lingraft.stage import (
    CHECKPOINT,
    Json,
    Model,
    Needs,
    StageProgress,
    StageSpec,
    Work,
    Workplace,
    libraries,
    machine,
    stages_of,
)
from lingraft.strategies.base import Context
from lingraft.strategies.composition import Composition
from lingraft.study.stages.job import TRAINING_LIBRARIES, TrainingJob, training_identity
from lingraft.study.stages.prepare import Prepare
from lingraft.study.under_way import LOSSES
from lingraft.train.checkpoints import FOLDER
from lingraft.train.memory_plan import (
    Cut,
    HostMemory,
    LargestBatch,
    MemoryPlan,
    Setup,
    chosen_cut,
    free_memory,
    held_now,
    host_memory,
    largest_batch,
    memory_problem,
    training_memory,
)
from lingraft.train.mixed_rows import notes_on_mix
from lingraft.train.processes import Processes, train_on
from lingraft.train.run import PhasePlan, PhaseTask
from lingraft.train.trackers import TrackedRun
from lingraft.train.trainer import BatchPlan
from lingraft.train.watching import Progress

_SHOWN_DROPPED = 3  # places named in the record; all are counted


@dataclass(frozen=True, eq=False)
class Train(StageSpec):
    """The training of one phase; interrupted, it goes on from its last checkpoint.

    Needs: see `train.memory_plan`, for a micro-batch of the longest rows, all learned. On disk the model in float32,
    and where it is saved on the way two checkpoints of weights and float32 moments beside it.

    Attributes:
        job: The phase.
        states: What its strategies prepare, by kind.
        processes: How many processes train it; results differ by rounding alone, so they are no input.
    """

    kind: ClassVar[str] = "train"
    continues: ClassVar[tuple[str, ...]] = (FOLDER, LOSSES)
    is_discardable: ClassVar[bool] = True

    job: TrainingJob
    states: Mapping[str, Prepare] = field(default_factory=dict)
    processes: Processes = field(default_factory=Processes)

    @property
    def base(self) -> Model | None:
        """The base model, where a strategy needs it."""
        return self.job.base if "base" in self.job.composition.needs else None

    @property
    def inputs(self) -> Mapping[str, Json]:
        """The model, rows, strategies with their states, and training options."""
        job = self.job
        uses = job.composition.uses & set(job.replay_data)
        return {
            "parent": job.parent.identity,
            "base": None if self.base is None else self.base.identity,
            "data": job.data,
            "replay_data": {need: job.replay_data[need] for need in sorted(uses)},
            "strategy": training_identity(job.choice),
            "states": {kind: {"stage": state.fingerprint} for kind, state in self.states.items()},
            "training": job.training.compared(),
            "chat": CHAT_IDENTITY,
            "seed": job.seed,
            "libraries": libraries(TRAINING_LIBRARIES),
        }

    @property
    def parents(self) -> tuple[StageSpec, ...]:
        """The stages that made the model, the base and the states."""
        return (*stages_of(self.job.parent, self.base), *self.states.values())

    @property
    def starts_from(self) -> Model:
        """The model that training starts from."""
        return self.job.parent

    def memory(self, batch: LargestBatch, cut: Cut, *, base: int = 0, replicas: int = 1) -> MemoryPlan | None:
        """Return what it holds with a largest micro-batch; None: the model's shape is not known.

        Args:
            batch: The micro-batch, of all processes together.
            cut: How it is computed.
            base: Bytes that the process holds before.
            replicas: See `Setup`.
        """
        job, shape, compute = self.job, self.job.shape, compute_for(self.job.training.precision)
        if shape is None:
            return None
        setup = setup_of(job.composition, job.training, compute, cut, self.processes, replicas)
        own = batch.part(self.processes.count * cut.pieces)  # rows are dealt to the processes
        return training_memory(shape, own, setup, base=base, held=held_bytes(job.composition, shape, compute))

    @property
    def host(self) -> HostMemory | None:
        """What it takes of the machine's memory beside accelerators; None: none trains, or the shape is not known."""
        training, shape = self.job.training, self.job.shape
        compute = compute_for(training.precision)
        if shape is None or compute.device.type == "cpu":
            return None
        setup = setup_of(self.job.composition, training, compute, Cut(), self.processes)
        return host_memory(shape, setup, saves=training.saves)

    def replicas(self, batch: LargestBatch, *, base: int = 0) -> int:
        """Return how many groups of processes each hold a whole model between them; see `memory`.

        Where each of several nodes has room for it, its processes divide it between them, and only gradients travel
        from node to node (HSDP, Zhao et al. 2023, arXiv 2304.11277, section 3.2.2); else all processes divide it.
        """
        nodes = self.processes.nodes
        if nodes == 1 or not self.processes.sharded or self.processes.count == nodes:
            return 1
        planned = self.memory(batch, self.cut(batch, base=base, replicas=nodes), base=base, replicas=nodes)
        return nodes if planned is not None and memory_problem(planned.total, self._room) is None else 1

    @property
    def _room(self) -> int:
        """Bytes that are free for a process."""
        compute = compute_for(self.job.training.precision)
        # Processes of a node share its memory.
        share = self.processes.count // self.processes.nodes if compute.device.type == "cpu" else 1
        return free_memory(compute) // share

    def cut(self, batch: LargestBatch, *, base: int = 0, replicas: int = 1) -> Cut:
        """Return how a micro-batch is computed so that it fits this machine, as fast as it can be; see `memory`."""

        def planned(cut: Cut) -> MemoryPlan:
            found = self.memory(batch, cut, base=base, replicas=replicas)
            assert found is not None
            return found

        training = self.job.training
        if self.job.shape is None:
            return Cut(checkpointing=bool(training.gradient_checkpointing))
        return chosen_cut(batch.part(self.processes.count), training, planned, self._room)

    @property
    def fullest(self) -> LargestBatch:
        """A micro-batch of the longest rows, all learned."""
        return LargestBatch.fullest(self.job.training)

    @property
    def least_cut(self) -> Cut:
        """How such a one is computed; the longest rows that there are may need less."""
        return self.cut(self.fullest)

    @property
    def needs(self) -> Needs:
        """What the fullest micro-batch needs; on disk the model, and two checkpoints where it is saved on the way."""
        parameters, training = self.job.parent.parameters, self.job.training
        held = 2 if training.precision == "bf16_pure" else 4
        on_disk = 8 if self.processes.sharded else 4  # the model's pieces, too, until it is put together
        if training.saves:
            on_disk += 2 * (held + 8)
        memory, host, count = self.memory(self.fullest, self.least_cut), self.host, self.processes.count
        own = None if memory is None else memory.total
        on_processor = None if own is None else count * own
        return Needs(
            "accelerator",
            own,
            on_disk * parameters or None,
            processes=count,
            most_processes=count,
            host_bytes=on_processor if host is None else host.total,
        )

    def work(self, place: Workplace) -> Work:
        """Train, and write the model."""
        job = self.job
        note = partial(place.watcher.noted_of, job.label)
        checkpoint = place.folder / CHECKPOINT
        parent = place.model(job.parent)
        compute = compute_for(job.training.precision)
        context = Context(
            base=None if self.base is None else place.model(self.base),
            previous=parent,
            previous_data=job.previous_data,
            english=job.english,
            seed=job.seed,
            folder=place.folder,
            cache=place.cache,
            states={kind: place.folder_of(state) for kind, state in self.states.items()},
            trust_remote_code=job.trust_remote_code,
            on_progress=place.progressed,
            compute=compute,
            noted=note,
            workers=self.processes.workers,
        )
        mix = job.composition.mix(job.examples, context)
        reads = context_length(parent, trust_remote_code=job.trust_remote_code)
        max_length = at_most(job.training.max_length, reads)
        if max_length < job.training.max_length:
            note(
                f"the model reads {max_length} tokens at once, so examples are truncated there and not at "
                f"`max_length` {job.training.max_length}."
            )
        encoded = encode_once(
            mix.examples,
            load_tokenizer(parent, trust_remote_code=job.trust_remote_code),
            max_length,
            place.cache,
            max_refused_share=max((counts.max_broken_share for counts in job.counts), default=1.0),
            on_progress=partial(place.progressed, unit="rows are encoded"),
            noted=note,
        )
        replayed = encoded.examples.replayed_rows
        share = replayed / len(encoded.examples)
        shapes = BatchPlan(encoded.examples.lengths, job.training, job.seed).shapes
        largest = largest_batch(shapes, job.training.epochs * encoded.examples.predicted_tokens)
        replicas = self.replicas(largest, base=held_now(compute))
        cut = self.cut(largest, base=held_now(compute), replicas=replicas)
        planned = self.memory(largest, cut, base=held_now(compute), replicas=replicas)
        if (
            planned is not None
            and (problem := memory_problem(planned.total, free_memory(compute))) is not None
        ):
            note(problem)
        if self.processes.nodes > 1:
            note(_sentence_on_nodes(self.processes, replicas))
        for line in _notes_on_rows(job):
            place.watcher.noted(line)
        for line in notes_on_mix(job.composition, mix, encoded, max_length):
            note(line)

        def on_plan(plan: PhasePlan) -> None:
            place.check_given()  # the models are in memory now
            if any(row.frozen_parameters for row in plan.parts):
                place.watcher.freeze_plan(job.label, plan.parts)
            if plan.masked_parameters:
                note(
                    f"{plan.masked_parameters:,} parameters inside of tensors that train are frozen by a "
                    "mask."
                )

        def on_progress(now: Progress) -> None:
            speed = now.tokens_per_second
            place.watcher.stage_progressed(
                StageProgress(now.step, now.steps, now.loss, speed, now.seconds_left, mfu=now.mfu)
            )

        assert encoded.examples.folder is not None  # it lies in the cache
        task = PhaseTask(
            parent=parent.absolute(),
            base=None if context.base is None else context.base.absolute(),
            choice=job.choice,
            states={kind: state.absolute() for kind, state in context.states.items()},
            training=job.training,
            encoded=encoded.examples.folder.absolute(),
            folder=place.folder.absolute(),
            checkpoint=checkpoint.absolute(),
            seed=job.seed,
            trust_remote_code=job.trust_remote_code,
            run=TrackedRun(place.run_name, job.label),
            cut=cut,
            replicas=replicas,
        )
        trained = train_on(
            self.processes,
            task,
            on_plan=on_plan,
            on_progress=on_progress,
            on_note=note,
        )
        outcome = trained.outcome
        record = {
            "data": [to_json(one) for one in job.counts],
            "precision": job.training.precision,
            "examples": outcome.examples,
            "replayed": replayed,
            "replay_share": share,
            "replay_shortfall": mix.shortfall,
            "replay_dropped": dict(mix.dropped),
            "replay_origins": [
                {"kind": origin.kind, "model": origin.model, "settings": origin.settings, "rows": rows}
                for origin, rows in mix.origins
            ],
            "truncated": encoded.truncated,
            "dropped": len(encoded.dropped),
            "first_dropped": [f"{row.place}: {row.problem}" for row in encoded.dropped[:_SHOWN_DROPPED]],
            "handled": dict(sorted(encoded.handled.items())),
            "steps": outcome.steps,
            "tokens": outcome.tokens,
            "padded_tokens": outcome.padded_tokens,
            "supervised_tokens": outcome.supervised_tokens,
            "trainable_parameters": outcome.trainable_parameters,
            "frozen_parameters": outcome.frozen_parameters,
            "masked_parameters": trained.plan.masked_parameters,
            "plan": [
                {
                    "part": row.part,
                    "trainable": row.trainable_parameters,
                    "frozen": row.frozen_parameters,
                    "modules": [
                        {
                            "kind": one.kind,
                            "trainable": one.trainable_parameters,
                            "frozen": one.frozen_parameters,
                        }
                        for one in row.kinds
                    ],
                }
                for row in trained.plan.parts
            ],
            "losses": [[step, loss] for step, loss in outcome.losses],
        }
        timing = {
            "training_seconds": outcome.seconds,
            "tokens_per_second": outcome.tokens_per_second,
            "peak_bytes": outcome.peak_bytes,
            "resumed_from": outcome.resumed_from,
            "refused_checkpoints": outcome.refused_checkpoints,
            "processes": self.processes.count,
            "nodes": self.processes.nodes,
            "replicas": replicas if self.processes.sharded else self.processes.count,
            "compiled": outcome.compiled,
            "packed": outcome.packed,
            "pieces": cut.pieces,
            "gradient_checkpointing": cut.checkpointing,
            "mfu": outcome.mfu,
            "peak": None if outcome.peak is None else to_json(outcome.peak),
        }
        return Work(record, {**machine(compute), "liger": liger_version(compute.device), **timing})


def setup_of(
    composition: Composition,
    training: Training,
    compute: Compute,
    cut: Cut,
    processes: Processes,
    replicas: int = 1,
) -> Setup:
    """Return how strategies, options of training and processes train a model."""
    return Setup.of(
        training,
        compute,
        cut,
        processes.count,
        sharded=processes.sharded,
        needs_logits=composition.needs_logits,
        replicas=replicas,
    )


def held_bytes(composition: Composition, shape: ModelShape, compute: Compute) -> int:
    """Return the bytes that strategies hold of other models while they train."""
    return sum(
        part.held_bytes(shape.parameters, shape.trained, compute.held.itemsize) for part in composition.parts
    )


def _sentence_on_nodes(processes: Processes, replicas: int) -> str:
    if not processes.sharded:
        how = "each has the whole model"
    elif replicas == 1:
        how = "all of them divide the model"
    else:
        how = "those of a node divide the model, and each node has all of it (HSDP)"
    return f"{processes.count} processes on {processes.nodes} nodes train; {how}."


def _notes_on_rows(job: TrainingJob) -> Iterator[str]:
    """Say what of a phase's data sets is broken, missing or withheld, whoever trains on them."""
    for counts in job.counts:
        if counts.withheld:
            yield (
                f"{counts.source}: {counts.withheld} rows are not trained on, because another set of the study "
                "holds them out."
            )
        if counts.filtered or counts.incomplete_groups:
            filtered = (
                ", ".join(f"{reason} {count}" for reason, count in counts.filtered.items()) or "nothing"
            )
            yield (
                f"{counts.source}: filters left out or could not judge: {filtered}; "
                f"{counts.incomplete_groups or 0} parallel groups are without one of the languages."
            )
        if counts.unknown_keys:
            keys = ", ".join(f"{key!r} ({rows} rows)" for key, rows in counts.unknown_keys.items())
            yield f"{counts.source}: messages have keys that nothing reads: {keys}."
        if counts.broken or counts.shortfall:
            yield (
                f"{counts.source}: {counts.broken} of {counts.rows} rows are broken and left out "
                f"({'; '.join(counts.first_broken) or 'none'}); {counts.shortfall} rows fewer than `limit`."
            )
