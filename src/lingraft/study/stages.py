"""The stages of a study: prepare, train, combine, evaluate, similarity, difference, drift.

Each names all that its result depends on (the inputs of its fingerprint) and does its work in the folder that
the store gives it. Times go beside the compared part of the record.
"""

from __future__ import annotations

import gc
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lingraft.config.schema import UNCOMPARED_JUDGE_FIELDS, Evaluation, StrategyChoice, Training
from lingraft.data.chat_format import CHAT_IDENTITY
from lingraft.data.encodings import encode_once
from lingraft.data.example import Example
from lingraft.evaluate.harness import evaluate_model, truncated_prompts_sentence
from lingraft.evaluate.held_out import bits_by_language, held_out_losses, item_of, write_losses
from lingraft.evaluate.manifest import HAS_TEMPLATE, NO_TEMPLATE, manifest_of, outside_of_the_file
from lingraft.evaluate.predictions import write_predictions
from lingraft.evaluate.scores import score_summary
from lingraft.evaluate.task_runs import runs_of
from lingraft.evaluate.tasks import NotRunnableError, task_identities
from lingraft.models.checkpoints import combine_checkpoints
from lingraft.models.compute import Compute, compute_for, device_name
from lingraft.models.context_length import at_most, context_length
from lingraft.models.loading import load_model, load_tokenizer
from lingraft.models.vllm import VllmGenerator
from lingraft.models.weights import ModelWeights
from lingraft.records import fingerprint_of, read_json, write_json_atomically
from lingraft.representation.drift import drift_between
from lingraft.representation.states import encode_alike, model_states
from lingraft.similarity.embedding_similarity import dataset_embedding_similarity
from lingraft.strategies.base import Context
from lingraft.strategies.composition import build
from lingraft.study.events import StageProgress, Watcher
from lingraft.study.materials import combination_identity, training_identity
from lingraft.study.store import Stage, Store, Work
from lingraft.train.memory import peak_bytes
from lingraft.train.phase import Progress, with_resolved_precision
from lingraft.train.processes import Processes, train_on
from lingraft.train.run import PhaseTask
from lingraft.weights.difference import parameter_difference

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lingraft.data.chat import EncodedData
    from lingraft.representation.prompts import Prompt
    from lingraft.representation.states import EncodedPrompts, LayerStates
    from lingraft.similarity.encoders import Encoder
    from lingraft.strategies.base import Mix, Strategy
    from lingraft.train.phase import PhaseOutcome
    from lingraft.train.run import PhasePlan, TrainedPhase

CHECKPOINT = "checkpoint"
PREDICTIONS = "predictions.parquet"
ANSWERS = "answers.jsonl"  # what the model has answered so far; only while it is evaluated
VERDICTS = "verdicts.jsonl"  # in the cache: they are paid for, and serve every cell
HELD_OUT = "held_out.parquet"
EVALUATION_SPLIT = "report"
MANIFEST = "manifest.json"  # what was asked and how

# A result may change with these; a change of any of them makes a stage again.
_TRAINING_LIBRARIES = ("lingraft", "torch", "transformers", "tokenizers", "accelerate", "peft")
_MEASURE_LIBRARIES = ("lingraft",)
_STATES_LIBRARIES = ("lingraft", "torch", "transformers", "tokenizers")
_RESUMABLE = {"train", "evaluate"}
_UNCOMPARED_TRAINING_FIELDS = {"report_to", "save_every"}
_SHOWN_DROPPED = 3  # places named in the record; all are counted


def libraries(names: Sequence[str]) -> dict[str, str]:
    """Return the installed version of each library."""
    return {name: version(name) for name in names}


@dataclass(frozen=True)
class ModelReference:
    """A model that stages depend on: what identifies it, and how to have it on disk when work needs it.

    Attributes:
        identity: For fingerprints: the hash of its weights, or the training stage that makes it.
        locate: Returns its folder; makes a discarded checkpoint again.
    """

    identity: dict[str, Any]
    locate: Callable[[], Path]


@dataclass(frozen=True)
class TrainingJob:
    """One phase of one cell.

    Attributes:
        label: For progress lines.
        parent: The model that training starts from.
        examples: The phase's training rows, before any strategy mixes others in.
        data: Identity of these rows, by set.
        counts: Of each set: rows read, broken, held out, asked for and had; for the record.
        choice: The strategies.
        training: Resolved training options; a precision of `auto` is resolved when the phase is trained.
        seed: Seed of everything drawn.
        base: The base model, if a strategy may want it.
        previous_data: Phase 1's training rows, empty if unknown.
        english: The English parallel rows, empty if there are none.
        replay_data: Identity of what is replayed, by the need that it fills.
    """

    label: str
    parent: ModelReference
    examples: Sequence[Example]
    data: list[dict[str, Any]]
    counts: list[dict[str, Any]]
    choice: StrategyChoice
    training: Training
    seed: int
    base: ModelReference | None = None
    previous_data: Sequence[Example] = ()
    english: Sequence[Example] = ()
    replay_data: dict[str, Any] = field(default_factory=dict)


class Stages:
    """Makes each stage, or finds it finished, in one store."""

    def __init__(
        self,
        store: Store,
        watcher: Watcher,
        base_folder: Path,
        *,
        trust_remote_code: bool,
        processes: Processes,
    ) -> None:
        self._store = store
        self._watcher = watcher
        self._base_folder = base_folder
        self._trust = trust_remote_code
        self._processes = processes
        self._told: set[str] = set()
        self._manifests: dict[str, dict[str, Any]] = {}
        self._last_states: tuple[str, list[LayerStates], EncodedPrompts] | None = None

    def train(self, job: TrainingJob) -> tuple[Stage, ModelReference]:
        """Train one phase; return its stage and the model that it made."""
        job = replace(job, training=with_resolved_precision(job.training))
        composition = build(job.choice)
        states = {
            part.kind: self._state(job, part) for part in composition.parts if part.preparation is not None
        }
        inputs = {
            "parent": job.parent.identity,
            "base": job.base.identity if job.base is not None and "base" in composition.needs else None,
            "data": job.data,
            "replay_data": {
                need: job.replay_data[need] for need in sorted(composition.uses & set(job.replay_data))
            },
            "strategy": training_identity(job.choice),
            "states": {kind: state.identity for kind, state in states.items()},
            "training": job.training.model_dump(mode="json", exclude=_UNCOMPARED_TRAINING_FIELDS),
            "chat": CHAT_IDENTITY,
            "seed": job.seed,
            "libraries": libraries(_TRAINING_LIBRARIES),
        }

        def make(*, with_artefacts: bool) -> Stage:
            return self._run(
                "train",
                job.label,
                inputs,
                lambda folder: self._train(job, states, folder),
                [
                    job.parent,
                    *([job.base] if job.base is not None and "base" in composition.needs else []),
                    *states.values(),
                ],
                with_artefacts,
            )

        stage = make(with_artefacts=False)
        return stage, ModelReference(
            {"stage": stage.fingerprint}, lambda: make(with_artefacts=True).folder / CHECKPOINT
        )

    def discard(self, stage: Stage) -> None:
        """Delete a stage's artefacts; a stage that needs them has them made again."""
        self._store.discard(stage)

    def _state(self, job: TrainingJob, part: Strategy) -> ModelReference:
        """Return what a strategy prepares from the model that a phase starts from, made when it is asked for."""
        inputs = _preparation_inputs(job, part)

        def work(folder: Path) -> Work:
            parent = job.parent.locate()
            compute = compute_for(job.training.precision)

            def load() -> PreTrainedModel:
                model = load_model(parent, trust_remote_code=self._trust)
                model.to(compute.device)  # type: ignore[arg-type]
                return model

            found = part.prepare(
                load,
                load_tokenizer(parent, trust_remote_code=self._trust),
                Context(
                    base=None,
                    previous=parent,
                    previous_data=job.previous_data,
                    english=job.english,
                    seed=job.seed,
                    folder=folder,
                    cache=self._store.cache,
                    trust_remote_code=self._trust,
                    on_progress=self._tell_count,
                    compute=compute,
                ),
            )
            return Work(dict(found), _machine(compute) | {"peak_bytes": peak_bytes()})

        def locate() -> Path:
            label = f"{part.kind} for {job.label}"
            return self._run("prepare", label, inputs, work, [job.parent], with_artefacts=True).folder

        return ModelReference({"stage": fingerprint_of({"kind": "prepare", **inputs})}, locate)

    def preparations(self, job: TrainingJob) -> dict[str, Stage]:
        """Return the finished stages in which the job's strategies prepared themselves, by kind of strategy."""
        found = {
            part.kind: self._store.find("prepare", _preparation_inputs(job, part))
            for part in build(job.choice).parts
            if part.preparation is not None
        }
        return {kind: stage for kind, stage in found.items() if stage is not None}

    def combine(self, job: TrainingJob, trained: ModelReference) -> tuple[Stage, ModelReference]:
        """Make the phase's final model of the one that it started from and the one that it trained."""
        inputs: dict[str, Any] = {
            "before": job.parent.identity,
            "after": trained.identity,
            "strategy": combination_identity(job.choice),
            "libraries": libraries(_MEASURE_LIBRARIES),
        }

        def work(folder: Path) -> Work:
            composition = build(job.choice)
            before, after = job.parent.locate(), trained.locate()
            composition.check(ModelWeights(after, trust_remote_code=self._trust).names)
            combine_checkpoints(
                before, after, composition.combine, folder / CHECKPOINT, trust_remote_code=self._trust
            )
            return Work({}, _machine())

        def make(*, with_artefacts: bool) -> Stage:
            return self._run("combine", job.label, inputs, work, [job.parent, trained], with_artefacts)

        stage = make(with_artefacts=False)
        return stage, ModelReference(
            {"stage": stage.fingerprint}, lambda: make(with_artefacts=True).folder / CHECKPOINT
        )

    def evaluate(
        self,
        label: str,
        model: ModelReference,
        evaluation: Evaluation,
        languages: Sequence[str],
        held_out: Sequence[Example],
    ) -> Stage:
        """Score a model on the study's tasks and on the held-out answers."""
        compute = compute_for(evaluation.precision)
        items = [item_of(example) for example in held_out]
        inputs = {
            "model": model.identity,
            "manifest": self._manifest(evaluation, compute.precision, languages, items),
            "chat": CHAT_IDENTITY,
        }

        def work(folder: Path) -> Work:
            loaded = load_model(model.locate(), dtype=compute.held, trust_remote_code=self._trust)
            loaded.to(compute.device)  # type: ignore[arg-type]
            tokenizer = load_tokenizer(model.locate(), trust_remote_code=self._trust)

            def vllm() -> VllmGenerator:
                return VllmGenerator(
                    model.locate(), tokenizer, dtype=compute.held, trust_remote_code=self._trust
                )

            evaluated = evaluate_model(
                loaded,
                tokenizer,
                evaluation,
                languages=languages,
                split=EVALUATION_SPLIT,
                base_folder=self._base_folder,
                precision=compute.precision,
                log=folder / ANSWERS,
                verdicts=self._store.cache / VERDICTS,
                make_generator=vllm if evaluation.backend == "vllm" else None,
                on_progress=partial(self._tell_count, unit="items"),
                on_judged=partial(self._tell_count, unit="verdicts"),
            )
            losses = held_out_losses(
                loaded, tokenizer, held_out, on_progress=partial(self._tell_count, unit="held-out answers")
            )
            if len(losses) < len(held_out):
                self._watcher.noted(
                    f"{label}: {len(held_out) - len(losses)} of {len(held_out)} held-out rows are left out of the "
                    "loss, as longer than the model reads at once or refused by its chat template."
                )
            write_predictions(folder / PREDICTIONS, evaluated.predictions)
            write_losses(folder / HELD_OUT, losses)
            write_json_atomically(folder / MANIFEST, evaluated.manifest.to_json())
            (folder / ANSWERS).unlink(missing_ok=True)
            if evaluated.left_out:
                self._watcher.noted(
                    f"{label}: {len(evaluated.left_out)} items are left out, such as {evaluated.left_out[0]}."
                )
            for task, count in evaluated.truncated_prompts.items():
                self._watcher.noted(f"{label}: {truncated_prompts_sentence(task, count)}")
            lost = {
                "left_out": list(evaluated.left_out),
                "truncated": evaluated.truncated,
                "truncated_prompts": evaluated.truncated_prompts,
                "noise": evaluated.noise,
            }
            result = {
                "scores": {
                    **score_summary(evaluated.predictions, bits_by_language(losses, held_out)),
                    **lost,
                },
                "tasks": evaluated.tasks,
                "precision": compute.precision,
            }
            return Work(result, _machine(compute))

        return self._run("evaluate", label, inputs, work, [model])

    def _manifest(
        self, evaluation: Evaluation, precision: str, languages: Sequence[str], held_out: Sequence[str]
    ) -> dict[str, Any]:
        """Return what an evaluation asks and how, resolved once a run; the chat template is the model's own.

        It is kept in the run's cache, so that a finished study does not need the hub again.
        """
        written = fingerprint_of(
            {
                "evaluation": evaluation.model_dump(
                    mode="json", exclude={"judge": UNCOMPARED_JUDGE_FIELDS, "precision": True}
                ),
                "precision": precision,
                "files": task_identities(evaluation, self._base_folder),
                "languages": list(languages),
                "held_out": list(held_out),
                "outside": outside_of_the_file(),
            }
        )
        if written not in self._manifests:
            path = self._store.cache / f"manifest-{written}.json"
            try:
                runs = runs_of(evaluation, languages, EVALUATION_SPLIT, self._base_folder)
            except NotRunnableError:
                if not path.is_file():
                    raise
                self._manifests[written] = read_json(path)
                return self._manifests[written]
            chat = HAS_TEMPLATE if evaluation.apply_chat_template else NO_TEMPLATE
            self._manifests[written] = manifest_of(
                runs,
                evaluation,
                precision=precision,
                chat=chat,
                split=EVALUATION_SPLIT,
                held_out=held_out,
            ).identity
            path.parent.mkdir(exist_ok=True)
            write_json_atomically(path, self._manifests[written])
        return self._manifests[written]

    def similarity(
        self,
        label: str,
        first: tuple[Sequence[Example], dict[str, Any]],
        second: tuple[Sequence[Example], dict[str, Any]],
        encoder: Encoder,
    ) -> Stage:
        """Measure DES between the instructions of two data sets."""
        inputs: dict[str, Any] = {"first": first[1], "second": second[1], "encoder": encoder.name}
        inputs["libraries"] = libraries(_MEASURE_LIBRARIES)

        def work(_: Path) -> Work:
            found = dataset_embedding_similarity(
                first[0], second[0], encoder, on_progress=partial(self._tell_count, unit="instructions")
            )
            return Work(found.to_json(), _machine())

        return self._run("similarity", label, inputs, work)

    def difference(self, label: str, first: ModelReference, second: ModelReference) -> Stage:
        """Measure the distance between two models' weights."""
        inputs: dict[str, Any] = {"first": first.identity, "second": second.identity}
        inputs["libraries"] = libraries(_MEASURE_LIBRARIES)

        def work(_: Path) -> Work:
            found = parameter_difference(
                *(ModelWeights(one.locate(), trust_remote_code=self._trust) for one in (first, second)),
                on_progress=partial(self._tell_count, unit="tensors"),
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
            return Work(result, _machine())

        return self._run("difference", label, inputs, work, [first, second])

    def drift(
        self, label: str, first: ModelReference, second: ModelReference, prompts: Sequence[Prompt]
    ) -> Stage:
        """Measure how far the second model's hidden states moved from the first's, over every token of the prompts."""
        said = fingerprint_of(  # a prompt's group changes no state
            [
                {
                    "messages": [asdict(one) for one in prompt.messages],
                    "language": prompt.language,
                    "fold_system": prompt.fold_system,
                }
                for prompt in prompts
            ]
        )
        inputs: dict[str, Any] = {"first": first.identity, "second": second.identity, "prompts": said}
        compute = compute_for("float32")  # the shift of one phase is small beside what bf16 rounds
        inputs["precision"] = compute.precision
        inputs |= {"chat": CHAT_IDENTITY, "libraries": libraries(_STATES_LIBRARIES)}

        def work(_: Path) -> Work:
            before, encoded = self._states_before(first, prompts, said, compute)
            after = model_states(
                second.locate(),
                encoded,
                compute=compute,
                trust_remote_code=self._trust,
                on_progress=self._tell_count,
            )
            found = drift_between(label, before, after).to_json()
            del found["model"]  # a label, which is not what a record is compared by
            counts = {"prompts": len(encoded.ids), "tokens": sum(map(len, encoded.ids))}
            return Work(found | counts | {"truncated": encoded.truncated}, _machine(compute))

        return self._run("drift", label, inputs, work, [first, second])

    def _states_before(
        self, model: ModelReference, prompts: Sequence[Prompt], said: str, compute: Compute
    ) -> tuple[list[LayerStates], EncodedPrompts]:
        """Return a model's states of the prompts: those of the last one asked for are kept, as cells share Phase 1."""
        key = fingerprint_of([model.identity, said])
        if self._last_states is None or self._last_states[0] != key:
            self._last_states = None  # let go before others are made
            folder = model.locate()
            encoded = encode_alike([str(folder)], prompts, trust_remote_code=self._trust)
            states = model_states(
                folder,
                encoded,
                compute=compute,
                trust_remote_code=self._trust,
                on_progress=self._tell_count,
            )
            self._last_states = (key, states, encoded)
        return self._last_states[1:]

    def _tell_count(self, done: int, total: int, unit: str | None = None) -> None:
        self._watcher.stage_progressed(StageProgress(done, total, unit=unit))

    def _run(
        self,
        kind: str,
        label: str,
        inputs: dict[str, Any],
        work: Callable[[Path], Work],
        models: Sequence[ModelReference] = (),
        with_artefacts: bool = False,
    ) -> Stage:
        """Make the stage, or find it finished; `models` are what its work will read."""
        name = f"{kind} {label}"
        worked = False

        def watched(folder: Path) -> Work:
            nonlocal worked
            worked = True
            self._watcher.stage_started(name)
            done = work(folder)
            gc.collect()  # a model per stage: what cycles keep alive would add up
            torch.cuda.empty_cache()  # the next stage may be other processes' work on the same accelerator
            return done

        if self._store.find(kind, inputs, with_artefacts=with_artefacts) is None:
            for model in models:
                model.locate()  # a discarded checkpoint is made again before this stage begins, not inside of it
        stage = self._store.run(
            kind, inputs, watched, resumable=kind in _RESUMABLE, with_artefacts=with_artefacts
        )
        if worked or stage.fingerprint not in self._told:
            self._told.add(stage.fingerprint)
            self._watcher.stage_finished(name, stage.seconds, stage.reused)
        if worked and "remade_otherwise" in stage.timing:
            self._watcher.noted(
                f"{name}: made again because `keep` had discarded it, and not equal bit for bit to what was measured "
                f"then ({', '.join(stage.timing['remade_otherwise'])}): other threads, device or processes. For exact "
                "figures run the study anew in another folder, or with `keep: all`."
            )
        return stage

    def _train(self, job: TrainingJob, states: Mapping[str, ModelReference], folder: Path) -> Work:
        shutil.rmtree(folder / CHECKPOINT, ignore_errors=True)
        parent = job.parent.locate()
        compute = compute_for(job.training.precision)
        composition = build(job.choice)
        context = Context(
            base=job.base.locate() if job.base is not None and "base" in composition.needs else None,
            previous=parent,
            previous_data=job.previous_data,
            english=job.english,
            seed=job.seed,
            folder=folder,
            cache=self._store.cache,
            states={kind: state.locate() for kind, state in states.items()},
            trust_remote_code=self._trust,
            on_progress=self._tell_count,
            compute=compute,
        )
        mix = composition.mix(job.examples, context)
        tokenizer = load_tokenizer(parent, trust_remote_code=self._trust)
        context_tokens = context_length(parent, trust_remote_code=self._trust)
        max_length = at_most(job.training.max_length, context_tokens)
        if max_length < job.training.max_length:
            self._watcher.noted(
                f"{job.label}: the model reads {max_length} tokens at once, so examples are truncated there and not at "
                f"`max_length` {job.training.max_length}."
            )
        encoded = encode_once(
            mix.examples,
            tokenizer,
            max_length,
            self._store.cache,
            max_refused_share=max((counts["max_broken_share"] for counts in job.counts), default=1.0),
            on_progress=partial(self._tell_count, unit="rows are encoded"),
        )
        for note in _notes_on_data(job, mix, encoded, max_length):
            self._watcher.noted(note)
        assert encoded.examples.folder is not None
        task = PhaseTask(
            parent=parent.absolute(),
            base=None if context.base is None else context.base.absolute(),
            choice=job.choice,
            states={kind: state.absolute() for kind, state in context.states.items()},
            training=job.training,
            encoded=encoded.examples.folder.absolute(),
            folder=folder.absolute(),
            checkpoint=(folder / CHECKPOINT).absolute(),
            seed=job.seed,
            trust_remote_code=self._trust,
        )
        trained = train_on(
            self._processes,
            task,
            on_plan=partial(self._tell_plan, job.label),
            on_progress=self._tell_progress,
        )
        times = {**_machine(compute), **_training_times(trained.outcome), "processes": self._processes.count}
        return Work(_training_record(job, mix, encoded, trained), times)

    def _tell_plan(self, label: str, plan: PhasePlan) -> None:
        if any(row.frozen_parameters for row in plan.parts):
            self._watcher.freeze_plan(label, plan.parts)
        if plan.masked_parameters:
            self._watcher.noted(
                f"{label}: {plan.masked_parameters:,} parameters inside of tensors that train are frozen by a mask."
            )

    def _tell_progress(self, progress: Progress) -> None:
        self._watcher.stage_progressed(
            StageProgress(
                progress.step,
                progress.steps,
                progress.loss,
                progress.tokens_per_second,
                progress.seconds_left,
            )
        )


def _preparation_inputs(job: TrainingJob, part: Strategy) -> dict[str, Any]:
    return {
        "parent": job.parent.identity,
        "strategy": part.kind,
        "options": part.preparation,
        "data": {need: job.replay_data[need] for need in sorted(part.uses & set(job.replay_data))},
        "seed": job.seed if part.prepares_by_seed else None,
        "precision": compute_for(job.training.precision).inference_precision,
        "libraries": libraries(_TRAINING_LIBRARIES),
    }


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
    trained: TrainedPhase,
) -> dict[str, Any]:
    """Return what a training stage records: the compared part, equal for equal runs."""
    outcome = trained.outcome
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
            for row in trained.plan.parts
        ],
        "masked_parameters": trained.plan.masked_parameters,
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


def _machine(compute: Compute | None = None) -> dict[str, Any]:
    """Return what a stage ran on; `compute` is None where it computes on the processor in types of its own."""
    return {
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "device": "cpu" if compute is None else device_name(compute.device),
        "precision": None if compute is None else compute.precision,
        "python": platform.python_version(),
    }
