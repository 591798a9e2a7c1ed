"""The stage `train`: one phase of one cell, from the rows to the trained model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from lingraft.data.chat_format import CHAT_IDENTITY
from lingraft.data.encoded import EncodedTable
from lingraft.data.encodings import encode_once
from lingraft.models.checkpoints import save_checkpoint
from lingraft.models.compute import compute_for
from lingraft.models.context_length import at_most, context_length
from lingraft.models.loading import load_model, load_tokenizer
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
from lingraft.strategies.base import Context, check_plan, count_frozen_masks, freeze_plan
from lingraft.strategies.composition import build
from lingraft.study.stages.job import TRAINING_LIBRARIES, TrainingJob, training_identity
from lingraft.study.stages.prepare import Prepare
from lingraft.train.phase import Progress, train_phase
from lingraft.train.processes import PhaseTask, Processes, train_on_processes

if TYPE_CHECKING:
    from lingraft.data.chat import EncodedData
    from lingraft.strategies.base import FreezePlanRow, Mix
    from lingraft.train.phase import PhaseOutcome

_UNCOMPARED_TRAINING_FIELDS = {"report_to", "save_every"}
_SHOWN_DROPPED = 3  # places named in the record; all are counted


@dataclass(frozen=True, eq=False)
class Train(StageSpec):
    """The training of one phase; interrupted, it goes on from its last checkpoint.

    Needs: weights, gradients and both moments of AdamW, in float32 or in bf16, as if every parameter trained, divided
    between processes that share them. On disk the model in float32, and where it is saved on the way twice as many
    moments beside it.

    Attributes:
        job: The phase.
        states: What its strategies prepare, by kind.
        processes: How many processes train it; results differ by rounding alone, so they are no input.
    """

    kind: ClassVar[str] = "train"
    resumable: ClassVar[bool] = True
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
        training: dict[str, Any] = job.training.model_dump(mode="json", exclude=_UNCOMPARED_TRAINING_FIELDS)
        uses = job.composition.uses & set(job.replay_data)
        return {
            "parent": job.parent.identity,
            "base": None if self.base is None else self.base.identity,
            "data": job.data,
            "replay_data": {need: job.replay_data[need] for need in sorted(uses)},
            "strategy": training_identity(job.choice),
            "states": {kind: {"stage": state.fingerprint} for kind, state in self.states.items()},
            "training": training,
            "chat": CHAT_IDENTITY,
            "seed": job.seed,
            "libraries": libraries(TRAINING_LIBRARIES),
        }

    @property
    def parents(self) -> tuple[StageSpec, ...]:
        """The stages that made the model, the base and the states."""
        return (*stages_of(self.job.parent, self.base), *self.states.values())

    @property
    def needs(self) -> Needs:
        """Weights, gradients and moments; on disk the model, and its moments where it is saved on the way."""
        parameters, training = self.job.parent.parameters, self.job.training
        held = 2 if training.precision == "bf16_pure" else 4
        shared_by = self.processes.count if self.processes.sharded else 1
        on_disk = 4 if training.save_every == 0 else 16
        return Needs("accelerator", 4 * held * parameters // shared_by or None, on_disk * parameters or None)

    def work(self, place: Workplace) -> Work:
        """Train, and write the model."""
        job, folder, trust = self.job, place.folder, self.job.trust_remote_code
        shutil.rmtree(folder / CHECKPOINT, ignore_errors=True)
        parent = place.model(job.parent)
        compute = compute_for(job.training.precision)
        composition = job.composition
        context = Context(
            base=None if self.base is None else place.model(self.base),
            previous=parent,
            previous_data=job.previous_data,
            english=job.english,
            seed=job.seed,
            folder=folder,
            cache=place.cache,
            states={kind: place.folder_of(state) for kind, state in self.states.items()},
            trust_remote_code=trust,
            on_progress=place.progressed,
            compute=compute,
        )
        mix = composition.mix(job.examples, context)
        tokenizer = load_tokenizer(parent, trust_remote_code=trust)
        context_tokens = context_length(parent, trust_remote_code=trust)
        max_length = at_most(job.training.max_length, context_tokens)
        if max_length < job.training.max_length:
            place.watcher.noted(
                f"{job.label}: the model reads {max_length} tokens at once, so examples are truncated there and not at "
                f"`max_length` {job.training.max_length}."
            )
        encoded = encode_once(
            mix.examples,
            tokenizer,
            max_length,
            place.cache,
            max_refused_share=max((counts["max_broken_share"] for counts in job.counts), default=1.0),
            on_progress=partial(place.progressed, unit="rows are encoded"),
        )
        for note in _notes_on_data(job, mix, encoded, max_length):
            place.watcher.noted(note)
        unwrapped = load_model(parent, trust_remote_code=trust)
        composition.check([name for name, _ in unwrapped.named_parameters()])
        model = composition.wrap(unwrapped, context)
        trainable = composition.trainable(model, context)
        check_plan(model, trainable)
        plan = freeze_plan(model, trainable)
        if any(row.frozen_parameters for row in plan):
            place.watcher.freeze_plan(job.label, plan)
        rules = composition.rules(model, context)
        frozen_mask = count_frozen_masks(model, trainable, rules.frozen_mask)
        if frozen_mask:
            place.watcher.noted(f"{job.label}: {frozen_mask:,} numbers inside of what trains are frozen.")
        if self.processes.count == 1:
            outcome = train_phase(
                model,
                tokenizer,
                encoded.examples,
                job.training,
                trainable=trainable,
                folder=folder,
                seed=job.seed,
                on_progress=partial(_tell_progress, place),
                rules=rules,
            )
            save_checkpoint(composition.finish(model, folder), tokenizer, folder / CHECKPOINT)
        else:
            del model, unwrapped, rules  # each process makes its own
            outcome = self._train_on_processes(place, context, trainable, encoded.examples)
        times = {**machine(compute), **_training_times(outcome), "processes": self.processes.count}
        record = _training_record(job, mix, encoded, plan, outcome) | {"frozen_mask": frozen_mask}
        return Work(record, times)

    def _train_on_processes(
        self,
        place: Workplace,
        context: Context,
        trainable: Collection[str],
        encoded: EncodedTable,
    ) -> PhaseOutcome:
        assert encoded.folder is not None
        job, folder = self.job, place.folder
        task = PhaseTask(
            parent=context.previous.absolute(),
            base=None if context.base is None else context.base.absolute(),
            choice=job.choice,
            trainable=tuple(sorted(trainable)),
            training=job.training,
            states={kind: state.absolute() for kind, state in context.states.items()},
            encoded=encoded.folder.absolute(),
            folder=folder.absolute(),
            checkpoint=(folder / CHECKPOINT).absolute(),
            seed=job.seed,
            sharded=self.processes.sharded,
            trust_remote_code=job.trust_remote_code,
            launcher=os.getpid(),
        )
        return train_on_processes(task, self.processes.count, partial(_tell_progress, place))


def _tell_progress(place: Workplace, progress: Progress) -> None:
    place.watcher.stage_progressed(
        StageProgress(
            progress.step,
            progress.steps,
            progress.loss,
            progress.tokens_per_second,
            progress.seconds_left,
        )
    )


def _notes_on_data(job: TrainingJob, mix: Mix, encoded: EncodedData, max_length: int) -> Iterator[str]:
    """Say what of a phase's data was broken, missing, truncated or dropped; the record counts it as well."""
    for counts in job.counts:
        yield from _notes_on_set(counts)
    if mix.shortfall:
        yield (
            f"{job.label}: {mix.shortfall} replay examples fewer than asked for; "
            f"the realised share is {_replay_share(encoded):.3f}."
        )
    idle = [part.kind for part in build(job.choice).parts if part.holds_replayed]
    if idle and not encoded.examples.replayed_rows:
        yield (
            f"{job.label}: {idle[0]!r} acts on replayed rows, and there are none: the phase is trained without it. "
            "Give it a `share`, or compose it with a strategy that replays."
        )
    if mix.dropped:
        dropped = ", ".join(f"{reason} {count}" for reason, count in sorted(mix.dropped.items()))
        yield f"{job.label}: replay examples that were dropped: {dropped}."
    if encoded.truncated or encoded.dropped:
        yield (
            f"{job.label}: {encoded.truncated} examples truncated to {max_length} tokens, "
            f"{len(encoded.dropped)} dropped because the chat template refuses them or no answer was left."
        )
    for number, what in encoded.handled_sentences():
        yield f"{job.label}: {number} {what}."
    lost = mix.replayed - encoded.examples.replayed_rows
    if lost:
        yield (
            f"{job.label}: {lost} of the dropped examples were replayed; the realised share is "
            f"{_replay_share(encoded):.3f}."
        )


def _notes_on_set(counts: Mapping[str, Any]) -> Iterator[str]:
    """Say what of one data set was broken, missing or left out."""
    if counts["withheld"]:
        yield (
            f"{counts['source']}: {counts['withheld']} rows are not trained on, because another set of the study "
            "holds them out."
        )
    if counts["filtered"] or counts["incomplete_groups"]:
        filtered = ", ".join(f"{reason} {count}" for reason, count in counts["filtered"].items()) or "nothing"
        yield (
            f"{counts['source']}: filters left out or could not judge: {filtered}; "
            f"{counts['incomplete_groups'] or 0} parallel groups lack a language."
        )
    if counts["unknown_keys"]:
        keys = ", ".join(f"{key!r} ({rows} rows)" for key, rows in counts["unknown_keys"].items())
        yield f"{counts['source']}: messages have keys that nothing reads: {keys}."
    if counts["broken"] or counts["shortfall"]:
        yield (
            f"{counts['source']}: {counts['broken']} of {counts['rows']} rows are broken and left out "
            f"({'; '.join(counts['first_broken']) or 'none'}); {counts['shortfall']} rows fewer than `limit`."
        )


def _replay_share(encoded: EncodedData) -> float:
    """Return the realised share of replayed rows, in [0, 1], of those that are trained on."""
    return encoded.examples.replayed_rows / len(encoded.examples)


def _training_record(
    job: TrainingJob,
    mix: Mix,
    encoded: EncodedData,
    plan: Sequence[FreezePlanRow],
    outcome: PhaseOutcome,
) -> dict[str, Any]:
    """Return what a training stage records: the compared part, equal for equal runs."""
    return {
        "data": job.counts,
        "precision": job.training.precision,
        "examples": outcome.examples,
        "replayed": encoded.examples.replayed_rows,
        "replay_share": _replay_share(encoded),
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
        "plan": [
            {"part": row.part, "trainable": row.trainable_parameters, "frozen": row.frozen_parameters}
            for row in plan
        ],
        "losses": [[step, loss] for step, loss in outcome.losses],
    }


def _training_times(outcome: PhaseOutcome) -> dict[str, Any]:
    """Return a training's figures of time and machine, which two equal runs do not share."""
    return {
        "training_seconds": outcome.seconds,
        "tokens_per_second": outcome.tokens_per_second,
        "peak_bytes": outcome.peak_bytes,
        "resumed_from": outcome.resumed_from,
    }
