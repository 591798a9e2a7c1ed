"""Models evaluated outside of a study: each evaluation is a stage of a store, of the same fingerprint as in a study.

FOLDER/stages/evaluate-<fingerprint>/    as in a run folder
      /cache/                            answers of an interrupted evaluation, verdicts of a judge
      /predictions.parquet               what a reader looks for, copied; of two models in a folder each,
      /manifest.json                     FOLDER/<model>/
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast, get_args

from lingraft.config.load import backend_of
from lingraft.config.paths import user_path
from lingraft.config.schema import UNCOMPARED_JUDGE_FIELDS, Backend, Evaluation, JudgeChoice, ServerChoice
from lingraft.errors import ConfigError, EvaluationError, did_you_mean
from lingraft.evaluate.catalogue import data_places
from lingraft.evaluate.checks import check_names
from lingraft.evaluate.common_items import CommonItems, common_items
from lingraft.evaluate.predictions import Prediction, read_predictions
from lingraft.evaluate.results import EvaluationRecord, ModelDifferences, Scores, TaskScore
from lingraft.evaluate.running import evaluate_model
from lingraft.evaluate.scores import difference_of, retention, task_differences
from lingraft.evaluate.selection import choose_tasks, entries, language_notes
from lingraft.evaluate.shown_names import names_of_records
from lingraft.evaluate.task_names import is_task_file
from lingraft.evaluate.task_records import TaskRecord
from lingraft.evaluate.task_runs import SEEDS
from lingraft.intervals.changes import DEFAULT_MARGIN, Margins, limit_answer
from lingraft.judge.win_rate import ALPACA_EVAL
from lingraft.models.compute import AskedPrecision
from lingraft.models.server_engine import check_server, engine_of
from lingraft.models.tensor_files import is_adapter
from lingraft.models.workers import worker_count
from lingraft.records import write_bytes_atomically
from lingraft.stage import RECORD, Json, given_model
from lingraft.study.execute import Executor
from lingraft.study.limits import LimitResult
from lingraft.study.reach import judge_failure, server_failure
from lingraft.study.stages.evaluate import (
    MANIFEST,
    PREDICTIONS,
    Evaluate,
    Questions,
    check_any,
    has_missing_verdicts,
    questions,
    record_of,
    recorded,
)
from lingraft.text.language_tags import ENGLISH

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lingraft.evaluate.running import OnProgress

FORMAT = 2
"""Of what `lingraft evaluate` prints, and records of a model; without one it is 1, of earlier versions."""

Part = Literal["all", "selection", "report"]


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """What is asked of models, as the command line and Python take it; `Evaluation` explains the fields that it has.

    Raises:
        ConfigError: One is of a wrong type, or nothing that there is.

    Attributes:
        suite: Name of a suite.
        tasks: `[TAG=]NAME`: only these tasks of it, harness tasks or YAML files; empty: all of the suite.
        languages: BCP-47 tags besides English.
        data_dir: Folder of local copies of data sets; None: none.
        limit: Most items of each task; None: the suite's.
        part: See there.
        batch_size: See there.
        max_new_tokens: Most tokens of an answer; None: each task's own.
        repeat: See there (`repeats`).
        precision: See there.
        backend: See there.
        chat: See there (`apply_chat_template`).
        judge: See there.
    """

    suite: str = "quick"
    tasks: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    data_dir: str | None = None
    limit: int | None = None
    part: Part = "all"
    batch_size: int | None = None
    max_new_tokens: int | None = None
    repeat: int = 1
    precision: AskedPrecision = "auto"
    backend: Backend = "transformers"
    chat: bool = True
    judge: JudgeChoice | None = None

    def __post_init__(self) -> None:
        """Refuse what Python may pass; the command line refuses it before anything heavy is imported."""
        if not isinstance(self.suite, str):
            raise ConfigError(f"--suite {self.suite!r}: give the name of a suite, such as 'quick'.")
        for name in ("limit", "max_new_tokens", "batch_size", "repeat"):
            count = getattr(self, name)
            is_count = isinstance(count, int) and not isinstance(count, bool) and count >= 1
            if not is_count and (count is not None or name == "repeat"):
                raise ConfigError(f"--{name.replace('_', '-')} {count!r}: must be a whole number from 1 on.")
        known: dict[str, tuple[str, ...]] = {
            "part": get_args(Part),
            "precision": get_args(AskedPrecision),
        }
        for name, choices in known.items():
            given = getattr(self, name)
            if given not in choices:
                raise ConfigError(f"--{name} {given!r}: {did_you_mean(str(given), choices)}")
        if not isinstance(backend_of(self.backend, "--backend"), str):
            check_server(cast("ServerChoice", self.backend))


@dataclass(frozen=True)
class Asked:
    """What `ask` makes of options.

    Attributes:
        options: These, with languages as tags and the precision resolved.
        questions: What is asked; every language that is asked counts as one that is trained.
        language_notes: Which language of a task stands for which that was asked for.
        notes: These, and what is left out, each with its reason.
    """

    options: EvaluationOptions
    questions: Questions
    language_notes: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Json]:
        """Return the options as `lingraft evaluate` records them; a judge without what no result depends on."""
        judge = self.options.judge
        idle, backend = self.questions.evaluation.idle_fields, self.options.backend
        return {
            **{
                one.name: getattr(self.options, one.name)
                for one in fields(self.options)
                if one.name not in idle
            },
            "backend": backend if isinstance(backend, str) else engine_of(backend),
            "tasks": sorted(self.options.tasks),
            "languages": list(self.options.languages),
            "judge": None if judge is None else judge.model_dump(exclude=UNCOMPARED_JUDGE_FIELDS),
        }


@dataclass(frozen=True)
class ModelEvaluation:
    """The evaluation of one model.

    Attributes:
        model: As the user names it.
        record: What was found, and how it was asked.
        predictions: One per item, with prompt, answer and score.
    """

    model: str
    record: EvaluationRecord
    predictions: tuple[Prediction, ...] = field(repr=False)

    @property
    def scores(self) -> Scores:
        """By ability, language and task."""
        return self.record.scores

    @property
    def shown_names(self) -> dict[str, str]:
        """By path, what a task that is given as a file is called in tables."""
        return names_of_records([self.record.tasks])

    @property
    def task_scores(self) -> dict[str, TaskScore]:
        """By task and language, in the order in which they were run."""
        names = dict.fromkeys(one.label for one in self.predictions)
        return {name: self.record.scores.tasks[name] for name in names}

    @property
    def not_run(self) -> dict[str, str]:
        """By task and language, why it was not run."""
        return self.record.not_run | self.record.no_room

    @property
    def unscored_tasks(self) -> set[str]:
        """Tasks that were run in no language."""
        scored, missing = (
            {name.rpartition("/")[0] for name in names} for names in (self.record.scores.tasks, self.not_run)
        )
        return missing - scored

    def printed(self) -> PrintedModel:
        """Return what `lingraft evaluate` prints and records of the model."""
        own = self.record
        return PrintedModel(
            format=FORMAT,
            scores=own.scores,
            tasks=own.tasks,
            precision=own.precision,
            not_run=own.not_run,
            no_room=own.no_room,
            seeds=SEEDS | {"bootstrap": 0},
        )


@dataclass(frozen=True, kw_only=True)
class PrintedModel:
    """What `lingraft evaluate --json` prints of a model, and its record.json holds (docs/evaluation.md).

    Attributes:
        format: Version of this format.
        scores: By ability, language and task.
        tasks: As of `EvaluationRecord`, as the next three.
        precision: See there.
        not_run: See there.
        no_room: See there.
        seeds: Of whatever is drawn.
    """

    format: int
    scores: Scores
    tasks: dict[str, TaskRecord]
    precision: str
    not_run: dict[str, str]
    no_room: dict[str, str]
    seeds: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class PrintedEvaluation:
    """What `lingraft evaluate --json` prints (docs/evaluation.md).

    Attributes:
        format: Version of this format.
        folder: Of the results.
        precision: Of the arithmetic, as it was resolved.
        models: By the name that was given, else as the user named the model.
        paths: By the same, the model as the user named it.
    """

    format: int
    folder: str
    precision: str
    models: dict[str, PrintedModel]
    paths: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class PrintedComparison(ModelDifferences, PrintedEvaluation):
    """What it prints of two models.

    Attributes:
        limits: By ability, whether more was lost than `--fail-below` allows; empty without it.
    """

    limits: dict[str, LimitResult]


def ask(
    options: EvaluationOptions, *, trust_remote_code: bool = False, processes: int | None = None
) -> Asked:
    """Choose the tasks, and find out which of them can be run here.

    Args:
        options: What to ask.
        trust_remote_code: Run Python code that YAML tasks bring along.
        processes: How many answer; see `worker_count`.

    Raises:
        ConfigError: There is no such suite, task, language or folder.
        EvaluationError: None of the tasks can be run, or the templates of one fail.
    """
    workers = worker_count(processes)
    chosen = choose_tasks(
        options.suite,
        options.tasks,
        languages=options.languages,
        data_dir=options.data_dir,
        limit=options.limit,
        max_new_tokens=options.max_new_tokens,
    )
    missing = [one.rpartition("/") for one in chosen.missing]
    check_names(chosen.evaluation, trust_remote_code=trust_remote_code)
    evaluation = chosen.evaluation.model_copy(
        update={
            "part": options.part,
            "batch_size": options.batch_size,
            "repeats": options.repeat,
            "backend": options.backend,
            "precision": options.precision,
            "apply_chat_template": options.chat,
            "judge": options.judge,
        }
    )
    # Nothing is trained: each language counts as one that is.
    trained = sorted({entry.language or ENGLISH for entry in evaluation.language_ability})
    stand_ins = language_notes(evaluation, evaluation, trained)
    asked = questions(
        evaluation, trained, skip_missing=True, trust_remote_code=trust_remote_code, workers=workers
    )
    not_run = not_run_lines(asked, options.data_dir)
    if not asked.has_tasks:
        raise EvaluationError("\n".join(["none of the tasks can be run here.", *not_run]))
    absent = [f"{name}/{tag}: {name} has no {tag}; it is left out." for name, _, tag in missing]
    resolved = replace(options, languages=chosen.languages, precision=asked.evaluation.precision)
    return Asked(resolved, asked, tuple(stand_ins), (*absent, *stand_ins, *not_run))


def not_run_lines(asked: Questions, data_dir: str | None) -> list[str]:
    """Return of each task that cannot be run why, and where its data were looked for.

    Args:
        asked: What is asked.
        data_dir: Folder of local copies; None: none.
    """
    lines = []
    for one, reason in asked.not_run.items():
        task, _, language = one.rpartition("/")
        line = f"{one}: not run: {reason.rstrip('.')}."
        is_judge_missing = task == ALPACA_EVAL and asked.evaluation.judge is None
        if not is_judge_missing and not is_task_file(task):  # such a file says itself where its data lie
            line += f" Its data: {data_places(task, language, data_dir)}."
        lines.append(line)
    return lines


def evaluations(
    models: Sequence[str],
    asked: Questions,
    labels: Sequence[str] | None = None,
    *,
    trust_remote_code: bool = False,
) -> list[Evaluate]:
    """Return the evaluation of each model: a folder, hub id, `embedded:NAME`, or the folder of a LoRA adapter.

    Args:
        models: These.
        asked: What they are asked.
        labels: What results call them; None: as they are named.
        trust_remote_code: Run Python code that models bring along.

    Raises:
        ConfigError: A server is to be started with an adapter.
        ModelError: A model cannot be had.
    """
    backend = asked.evaluation.backend
    if not isinstance(backend, str):
        check_server(backend, of_many=len(models) > 1)
    stages = []
    for name, label in zip(models, labels or models, strict=True):
        if not isinstance(backend, str) and backend.command and is_adapter(user_path(name)):
            raise ConfigError(
                f"--backend command: {name} is an adapter, and a server reads whole models; merge it into its base and "
                "save that, or take --backend transformers."
            )
        model = given_model(name, trust_remote_code=trust_remote_code)
        stages.append(Evaluate(label, model, asked, trust_remote_code))
    return stages


def _check_judge(asked: Evaluation) -> None:
    failure = None
    if any(entry.task == ALPACA_EVAL for _, entry in entries(asked)):
        failure = judge_failure(asked, may_ask=False)
    if failure is not None:
        raise ConfigError(failure.removeprefix("evaluate."))


def _check_server(asked: Evaluation) -> None:
    failure = None if isinstance(asked.backend, str) else server_failure(asked.backend)
    if failure is not None:
        raise ConfigError(failure.removeprefix("evaluate."))


def evaluate_in(stage: Evaluate, executor: Executor) -> ModelEvaluation:
    """Return an evaluation, found in the store or made now.

    One in which verdicts of a judge are missing is gone on with: the judge is asked for these alone.

    Raises:
        ConfigError: Its judge cannot be reached, does not take the key, or has no such model.
    """
    found = executor.store.find(stage)
    if found is None:
        _check_judge(stage.questions.evaluation)  # before the model answers in vain
        _check_server(stage.questions.evaluation)
    elif has_missing_verdicts(recorded(found).tasks):
        executor.store.reopen(stage)
    done = executor.make(stage)
    return ModelEvaluation(stage.label, recorded(done), read_predictions(done.artefact(PREDICTIONS)))


def evaluate_into(folder: Path, stage: Evaluate, executor: Executor) -> ModelEvaluation:
    """Return an evaluation as `evaluate_in` does, and copy its predictions and manifest into a folder."""
    found = evaluate_in(stage, executor)
    done = executor.make(stage)
    (folder / RECORD).unlink(missing_ok=True)  # of what was there before
    for name in (PREDICTIONS, MANIFEST):
        write_bytes_atomically(folder / name, done.artefact(name).read_bytes())
    return found


def evaluate_loaded(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Questions,
    *,
    precision: str,
    trust_remote_code: bool = False,
    on_progress: OnProgress | None = None,
) -> ModelEvaluation:
    """Evaluate a model that is in memory, where it is and in the type of its weights; nothing is kept on disk.

    Args:
        name: What it is called in the result.
        model: In evaluation mode.
        tokenizer: Its own.
        asked: From `ask`.
        precision: Of its weights, as records name it.
        trust_remote_code: Run the Python code that YAML tasks name.
        on_progress: Called with the items done and all of them.

    Raises:
        ConfigError: As `evaluate_in`.
        EvaluationError: None of the tasks can be run, or one fails.
    """
    _check_judge(asked.evaluation)
    evaluated = evaluate_model(
        model,
        tokenizer,
        asked.evaluation,
        languages=asked.languages,
        base_folder=asked.base_folder,
        precision=precision,
        skip_missing=True,
        trust_remote_code=trust_remote_code,
        on_progress=on_progress,
    )
    check_any(name, evaluated)
    return ModelEvaluation(name, record_of(evaluated, {}, precision), evaluated.predictions)


def paired(before: ModelEvaluation, after: ModelEvaluation) -> CommonItems[Prediction]:
    """Return the predictions of two models on the items that both were asked alike."""
    tasks = [one.record.tasks for one in (before, after)]
    return common_items(
        [
            [one for one in own.predictions if all(one.label in asked for asked in tasks)]
            for own in (before, after)
        ],
        tasks,
    )


def compare(
    before: ModelEvaluation,
    after: ModelEvaluation,
    folders: tuple[str, str] | None = None,
    margin: float = DEFAULT_MARGIN,
) -> ModelDifferences:
    """Compare two models on the items that both were asked alike.

    Args:
        before: The first model.
        after: The second.
        folders: Where their predictions are, in the folder of results; None: nowhere.
        margin: A change up to it counts as none.
    """
    common = paired(before, after)
    earlier, later = common.models
    others = sorted({one.language for one in earlier if one.ability != "task_ability"})
    has_english = any(one.ability == "task_ability" for one in earlier)
    return ModelDifferences(
        compared=(before.model, after.model),
        predictions=folders and (f"{folders[0]}/{PREDICTIONS}", f"{folders[1]}/{PREDICTIONS}"),
        task_ability=difference_of(earlier, later, "task_ability", margin),
        language_ability=difference_of(earlier, later, "language_ability", margin),
        further_languages=difference_of(earlier, later, "further_languages", margin),
        per_language={tag: one for tag in others if (one := difference_of(earlier, later, tag, margin))},
        retention=retention([(earlier, later)]) if has_english else None,
        differences=task_differences(earlier, later, margins=Margins(default=margin)),
        unpaired=common.unpaired,
        not_paired=common.refused,
    )


def limits_of(compared: ModelDifferences, asked: Questions, limit: float) -> dict[str, LimitResult]:
    """Return by ability that is asked whether the second model lost more of it than a limit.

    An ability in which the two could not be compared is undecided.

    Args:
        compared: The two models.
        asked: What both were asked.
        limit: What may be lost of a score in [0, 1].
    """
    differences = {
        "task_ability": (compared.task_ability, asked.evaluation.task_ability),
        "language_ability": (compared.language_ability, asked.evaluation.language_ability),
    }
    return {
        name: LimitResult(limit=limit, low=None, high=None, answer="undecided")
        if own is None
        else LimitResult(
            limit=limit,
            low=own.low,
            high=own.high,
            answer=limit_answer(own.low, own.high, limit, own.all_scores),
        )
        for name, (own, tasks) in differences.items()
        if tasks
    }


def folder_names(models: Sequence[str]) -> list[str]:
    """Return what the models' folders are called: the last part of each name, numbered where two are alike."""
    names = []
    for model in models:
        folder = user_path(model)
        last = (
            folder.resolve().name if folder.is_dir() else model.removeprefix("embedded:").rpartition("/")[2]
        )
        names.append(re.sub(r"[^\w.+-]+", "-", last))
    return names if len(set(names)) == len(names) else [f"{name}-{i}" for i, name in enumerate(names, 1)]
