"""The stage `evaluate`: a model's answers to the tasks and its loss on the held-out answers, with their scores.

A study and `lingraft evaluate` describe an evaluation alike, so that one evaluation has one fingerprint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Self, cast

from lingraft.claims import CLAIMS, claim_when_free
from lingraft.config.schema import UNCOMPARED_JUDGE_FIELDS, Evaluation
from lingraft.data.chat_format import CHAT_IDENTITY
from lingraft.data.example import Example
from lingraft.errors import EvaluationError
from lingraft.evaluate.answers import AnswerLog
from lingraft.evaluate.held_out import bits_by_language, held_out_losses, item_of, write_losses
from lingraft.evaluate.loading import NotRunnableError, task_identities
from lingraft.evaluate.manifest import HAS_TEMPLATE, NO_TEMPLATE, manifest_of, outside_of_the_file
from lingraft.evaluate.predictions import write_predictions
from lingraft.evaluate.results import BitsPerCharacter, EvaluationRecord
from lingraft.evaluate.running import (
    Evaluated,
    evaluate_model,
    shortfalls,
)
from lingraft.evaluate.scores import score_summary
from lingraft.evaluate.shown_names import names_of_records, renamed
from lingraft.evaluate.task_records import TaskRecord
from lingraft.evaluate.task_runs import build_runs
from lingraft.judge.verdict_cache import mend_cache
from lingraft.models.compute import compute_for
from lingraft.models.engine import ModelFiles, engine_for
from lingraft.models.server import ServerGenerator
from lingraft.models.server_engine import engine_of
from lingraft.models.workers import answered_by
from lingraft.records import fingerprint_of, from_json, read_kept, to_json, write_json_atomically, write_kept
from lingraft.stage import FinishedStage, Json, Model, Needs, StageSpec, Work, Workplace, machine, stages_of
from lingraft.train.memory import forget_peak, peak_bytes

PREDICTIONS = "predictions.parquet"
VERDICTS = "verdicts.jsonl"  # in the cache: they are paid for, and serve every cell
HELD_OUT = "held_out.parquet"
MANIFEST = "manifest.json"  # what was asked and how
ITEMS_OF_A_PROCESS = 64  # fewer do not fill a batch, and each process loads the model
_RECORD_FORMAT = 1  # of `EvaluationRecord`; an evaluation that was recorded in another is made anew


@dataclass(frozen=True, slots=True)
class AskedItem:
    """One item that is asked.

    Attributes:
        ability: What it counts towards.
        task: Task without its language.
        language: BCP-47 tag.
        cluster: Items of one task in the same cluster are no independent evidence.
    """

    ability: str
    task: str
    language: str
    cluster: str


@dataclass(frozen=True)
class Questions:
    """What is asked of models and how, resolved once for all of them.

    Attributes:
        evaluation: The tasks, with their suites resolved; its precision is resolved here.
        languages: BCP-47 tags of the languages besides English that are trained.
        held_out: Examples whose answers' loss is measured.
        base_folder: What the paths of YAML tasks and data files are relative to.
        skip_missing: Leave out tasks whose data cannot be had here, and those whose answers do not fit into a model.
        manifest: What the scores depend on beside the model, resolved (`Manifest.identity`).
        not_run: By task and language, why its data (or its judge) cannot be had; empty unless such tasks are skipped.
        items: What is asked, item by item; empty where an earlier run resolved the manifest.
        workers: How many processes answer; answers do not depend on it.
    """

    evaluation: Evaluation
    languages: tuple[str, ...]
    held_out: Sequence[Example]
    base_folder: Path
    skip_missing: bool
    manifest: Mapping[str, Json]
    not_run: Mapping[str, str]
    items: tuple[AskedItem, ...] = ()
    workers: int = 1

    @property
    def number_of_items(self) -> int:
        """How many items the tasks ask, also where an earlier run resolved the manifest."""
        tasks = cast("Mapping[str, Mapping[str, int]]", self.manifest["tasks"])
        return sum(one["items"] for one in tasks.values())

    @property
    def has_tasks(self) -> bool:
        """Whether any task is left."""
        return bool(self.manifest["tasks"])


def questions(
    evaluation: Evaluation,
    languages: Sequence[str],
    held_out: Sequence[Example] = (),
    *,
    base_folder: Path = Path(),
    skip_missing: bool = False,
    cache: Path | None = None,
    trust_remote_code: bool = False,
    workers: int = 1,
) -> Questions:
    """Resolve what an evaluation asks and how; the chat template is each model's own.

    Args:
        evaluation: See `Questions`; a precision of `auto` becomes what it stands for here.
        languages: See there.
        held_out: See there.
        base_folder: See there.
        skip_missing: See there.
        cache: Folder in which what was resolved is kept, so that a finished study does not need the hub again.
        trust_remote_code: Run the Python code that YAML tasks name.
        workers: See `Questions`.

    Raises:
        EvaluationError: A task's data cannot be had, or its templates fail on an item.
    """
    precision = compute_for(evaluation.precision).precision
    items = [item_of(example) for example in held_out]
    written = fingerprint_of(
        {
            "evaluation": evaluation.model_dump(
                mode="json",
                exclude={
                    "judge": UNCOMPARED_JUDGE_FIELDS,
                    "precision": True,
                    **dict.fromkeys(evaluation.idle_fields, True),
                },
            ),
            "precision": precision,
            "files": task_identities(evaluation, base_folder),
            "languages": list(languages),
            "held_out": items,
            "outside": outside_of_the_file(),
            **({} if isinstance(evaluation.backend, str) else {"engine": engine_of(evaluation.backend)}),
        }
    )
    kept = None if cache is None else cache / f"manifest-{written}.json"
    not_run: Mapping[str, str] = {}
    asked: tuple[AskedItem, ...] = ()
    try:
        runs, not_run = build_runs(
            evaluation,
            languages,
            base_folder,
            skip_missing=skip_missing,
            trust_remote_code=trust_remote_code,
        )
    except NotRunnableError:
        try:
            manifest = None if kept is None else read_kept(kept)
        except (OSError, ValueError):  # there is none, or it is damaged
            manifest = None
        if manifest is None:
            raise
    else:
        chat = HAS_TEMPLATE if evaluation.apply_chat_template else NO_TEMPLATE
        resolved_manifest = manifest_of(runs, evaluation, precision=precision, chat=chat, held_out=items)
        manifest = resolved_manifest.identity
        for task in resolved_manifest.tasks:
            ability, name, language, _ = task.key.split("|", 3)
            asked += tuple(AskedItem(ability, name, language, item.cluster) for item in task.items)
        if kept is not None:
            write_kept(kept, manifest)
    resolved = evaluation.model_copy(update={"precision": precision})
    return Questions(
        resolved, tuple(languages), held_out, base_folder, skip_missing, manifest, not_run, asked, workers
    )


@dataclass(frozen=True, eq=False)
class Evaluate(StageSpec):
    """An evaluation of one model; interrupted, it goes on from the answers that it has.

    Needs: the weights in the type of the evaluation. Keys and values of what is generated are not in it.

    Attributes:
        model: The model; a given one may be the folder of a LoRA adapter.
        questions: What it is asked.
        trust_remote_code: Run Python code that the model brings along, and that YAML tasks name.
    """

    kind: ClassVar[str] = "evaluate"

    model: Model
    questions: Questions
    trust_remote_code: bool = False

    @property
    def inputs(self) -> Mapping[str, Json]:
        """The model, and the manifest of what is asked."""
        return {
            "model": self.model.identity,
            "manifest": self.questions.manifest,
            "chat": CHAT_IDENTITY,
            "record": _RECORD_FORMAT,
        }

    @property
    def parents(self) -> tuple[StageSpec, ...]:
        """The stage that made the model."""
        return stages_of(self.model)

    @property
    def needs(self) -> Needs:
        """The weights in the type of the evaluation, once on each accelerator, else once a process."""
        asked = self.questions
        compute = compute_for(asked.evaluation.precision)
        size = compute.held.itemsize * self.model.parameters
        models = asked.workers if compute.device.type == "cpu" else 1
        is_here = isinstance(asked.evaluation.backend, str)  # else a server generates
        return Needs(
            "accelerator",
            models * size or None,
            0,
            processes=asked.workers,
            most_processes=max(asked.workers, asked.number_of_items // ITEMS_OF_A_PROCESS if is_here else 1),
            host_bytes=asked.workers * size or None,
        )

    def answered_by(self, processes: int) -> Self:
        """Return the same evaluation, answered by so many processes."""
        return replace(self, questions=replace(self.questions, workers=processes))

    def work(self, place: Workplace) -> Work:
        """Ask the model, and write its predictions, losses and the manifest."""
        asked = self.questions
        compute = compute_for(asked.evaluation.precision)
        folder = place.model(self.model)
        # Answers are kept by prompt and settings. What else decides them is the model and its engine, but no judge: an
        # evaluation that a judge failed goes on with another one.
        decides = {key: asked.manifest[key] for key in ("evaluation", "libraries")}
        answers = fingerprint_of([self.model.identity, CHAT_IDENTITY, decides])
        verdicts = place.cache / VERDICTS
        if asked.evaluation.judge is not None and (damage := mend_cache(verdicts)) is not None:
            place.watcher.noted(damage)
        forget_peak()
        files = ModelFiles(folder, compute.held, self.trust_remote_code)
        backend = asked.evaluation.backend
        # A server that is started needs the memory of the accelerators.
        workers = asked.workers if isinstance(backend, str) or backend.server else 1
        name = f"answers-{answers}"
        with (
            # Another stage may ask the same model, such as for other tasks.
            claim_when_free(place.cache / CLAIMS / name, "the log of answers", place.watcher.noted) as held,
            answered_by(
                workers,
                files,
                compute.device,
                place.watcher.noted,
                beside_server=not isinstance(backend, str),
            ) as answering,
            ExitStack() as ends,
        ):
            log = AnswerLog(place.cache / f"{name}.jsonl", held)
            if log.damage is not None:
                place.watcher.noted(log.damage)
            server = None
            if not isinstance(backend, str):
                noted = partial(place.watcher.noted_of, self.label)
                own = ServerGenerator(backend, folder, answering.tokenizer, noted=noted, names=[self.label])
                server = ends.enter_context(own)
            evaluated = evaluate_model(
                answering.model,
                answering.tokenizer,
                asked.evaluation,
                languages=asked.languages,
                base_folder=asked.base_folder,
                precision=compute.precision,
                skip_missing=asked.skip_missing,
                trust_remote_code=self.trust_remote_code,
                answers=log,
                verdicts=verdicts,
                resolved=asked.manifest,
                answering=answering,
                server=server,
                on_progress=partial(place.progressed, unit="items"),
                on_judged=partial(place.progressed, unit="verdicts"),
                on_answer=place.watcher.answered,
            )
            check_any(self.label, evaluated)
            ends.close()  # before the losses need the memory
            losses = held_out_losses(
                answering.model,
                answering.tokenizer,
                asked.held_out,
                answering=answering,
                on_progress=partial(place.progressed, unit="held-out answers"),
            )
            write_predictions(place.folder / PREDICTIONS, evaluated.predictions)
            write_losses(place.folder / HELD_OUT, losses)
            write_json_atomically(place.folder / MANIFEST, evaluated.manifest.to_json())
            if not has_missing_verdicts(evaluated.tasks):  # else the next try generates nothing again
                log.remove()
        note = partial(place.watcher.noted_of, self.label)
        if len(losses) < len(asked.held_out):
            note(
                f"{len(asked.held_out) - len(losses)} of {len(asked.held_out)} held-out rows are left "
                "out of the loss, as longer than the model reads at once or refused by its chat template."
            )
        for sentence in renamed(shortfalls(evaluated), names_of_records([evaluated.tasks])):
            note(sentence)
        bits = bits_by_language(losses, asked.held_out)
        record = record_of(evaluated, bits, compute.precision)
        generated = engine_for(compute.device, backend) if isinstance(backend, str) else engine_of(backend)
        return Work(
            to_json(record), {**machine(compute), "peak_bytes": peak_bytes(), "generated_by": generated}
        )


def check_any(name: str, evaluated: Evaluated) -> None:
    """Refuse an evaluation in which no task fits the model, called `name`.

    Raises:
        EvaluationError: There is no answer at all.
    """
    if not evaluated.predictions:
        reasons = (f"{task}: {reason}" for task, reason in evaluated.no_room.items())
        raise EvaluationError(f"{name}: none of the tasks can be run ({'; '.join(reasons)}).")


def record_of(evaluated: Evaluated, bits: Mapping[str, BitsPerCharacter], precision: str) -> EvaluationRecord:
    """Return what is recorded of an evaluation.

    Args:
        evaluated: The model's answers.
        bits: Loss of its held-out answers, by language.
        precision: Of the arithmetic.
    """
    scores = score_summary(
        evaluated.predictions,
        bits,
        left_out=evaluated.left_out,
        truncated=evaluated.truncated,
        truncated_prompts=evaluated.truncated_prompts,
        spelled_prompts=evaluated.spelled_prompts,
        noise=evaluated.noise,
    )
    return EvaluationRecord(scores, evaluated.tasks, precision, evaluated.not_run, evaluated.no_room)


def recorded(evaluation: FinishedStage) -> EvaluationRecord:
    """Return what an evaluation recorded.

    Raises:
        EvaluationError: Another version of lingraft recorded it.
    """
    try:
        return from_json(EvaluationRecord, evaluation.result)
    except ValueError as error:
        raise EvaluationError(
            f"{evaluation.folder}: was recorded by another version of lingraft ({error}); evaluate the model anew."
        ) from None


def has_missing_verdicts(tasks: Mapping[str, TaskRecord]) -> bool:
    """Return whether a judge named no output on some item, of what an evaluation records of its tasks."""
    return any(task.judged.usage.unparseable for task in tasks.values() if task.judged is not None)
