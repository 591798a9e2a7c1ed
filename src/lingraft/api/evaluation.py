"""`lingraft.evaluate` and `lingraft.compare`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, cast, get_args

import torch

from lingraft.api.arguments import names_given, options_as_arguments
from lingraft.api.printed import Printed
from lingraft.config.load import backend_of, section_of
from lingraft.config.paths import path_of
from lingraft.config.schema import JudgeChoice, ServerChoice
from lingraft.errors import (
    ConfigError,
    EvaluationError,
    as_disk_error,
)
from lingraft.evaluate.common_items import unpaired_sentence
from lingraft.evaluate.results import ModelDifferences
from lingraft.evaluate.running import (
    shortfalls,
)
from lingraft.evaluate.shown_names import renamed
from lingraft.intervals.changes import DEFAULT_MARGIN
from lingraft.judge.client import key_from_environment
from lingraft.judge.win_rate import Judge
from lingraft.models.compute import AskedPrecision, compute_for
from lingraft.models.loaded import (
    check_is_causal,
    display_name,
    in_evaluation_mode,
    model_in_memory,
    name_of,
    tokenizer_for,
)
from lingraft.models.loading import load_model
from lingraft.report.evaluation import difference_table, score_table
from lingraft.report.signs import legend
from lingraft.report.tables import Table
from lingraft.study.evaluation import (
    Asked,
    EvaluationOptions,
    ModelEvaluation,
    Part,
    ask,
    evaluate_in,
    evaluate_loaded,
    evaluations,
)
from lingraft.study.evaluation import compare as compare_evaluations
from lingraft.study.events import Watcher
from lingraft.study.execute import Executor
from lingraft.study.store import Store

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lingraft.stage import StageProgress

_NAMES = {torch.float32: "float32", torch.bfloat16: "bf16"}  # of types, as records have them


@dataclass(frozen=True, repr=False)
class EvaluationResult(Printed, ModelEvaluation):
    """What `evaluate` found; printed, its scores by ability, language and task, and never its predictions.

    Attributes:
        model: As it was named; one in memory by where it was loaded from.
        record: What was found and how it was asked, as `lingraft evaluate` records it.
        predictions: One per item, with prompt, answer and score.
        scores: By ability, language and task.
        notes: What was left out or fell short, each with its reason.
    """

    notes: tuple[str, ...] = ()

    def tables(self) -> Sequence[tuple[str, Table]]:
        """Return the table of scores."""
        names = self.shown_names
        return [
            (self.model, score_table(renamed(self.scores, names), renamed(list(self.task_scores), names)))
        ]

    def lines(self) -> Sequence[str]:
        """Return the notes."""
        return [*renamed(self.notes, self.shown_names), f"Computed in {self.record.precision}."]


@dataclass(frozen=True, repr=False, kw_only=True)
class ComparisonResult(Printed, ModelDifferences):
    """What `compare` found; printed, the paired differences by ability, language and task.

    Attributes:
        task_ability: Of the English tasks; None, as the next: no such task was asked of both alike.
        language_ability: Of the other languages.
        per_language: Of each language besides English, by BCP-47 tag.
        differences: By task and language.
        retention: Task ability of the second model over that of the first.
        unpaired: By task and language, items that only one of the two has a score of.
        not_paired: By task and language, why the two are not compared.
        before: The first model.
        after: The second.
        margin: A change up to it counts as none.
    """

    before: EvaluationResult
    after: EvaluationResult
    margin: float

    def tables(self) -> Sequence[tuple[str, Table]]:
        """Return the table of differences."""
        named = renamed(self, self.before.shown_names)
        return [(f"{self.after.model} - {self.before.model}, paired", difference_table(named))]

    def lines(self) -> Sequence[str]:
        """Return what the signs mean, and what is not compared."""
        named = renamed(self, self.before.shown_names)
        tasks = named.before.record.tasks
        return [
            legend("Difference", self.margin),
            *(
                unpaired_sentence(name, count, judged=tasks[name].judged is not None)
                for name, count in named.unpaired.items()
            ),
            *named.not_paired.values(),
        ]


class EvaluateOptions(TypedDict, total=False):
    """The options of `evaluate`, for `compare`."""

    suite: str
    tasks: str | Path | Sequence[str | Path] | None
    languages: str | Sequence[str] | None
    limit: int | None
    part: Part
    max_new_tokens: int | None
    batch_size: int | None
    repeat: int
    precision: AskedPrecision
    backend: str | ServerChoice | Mapping[str, Any]
    processes: int | None
    chat: bool
    judge: JudgeChoice | Mapping[str, Any] | None
    data_dir: str | Path | None
    cache: str | Path | None
    trust_remote_code: bool
    on_progress: Callable[[int, int], None] | None


def evaluate(
    model: str | Path | PreTrainedModel,
    tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
    *,
    suite: str = "quick",
    tasks: str | Path | Sequence[str | Path] | None = None,
    languages: str | Sequence[str] | None = None,
    limit: int | None = None,
    part: Part = "all",
    max_new_tokens: int | None = None,
    batch_size: int | None = None,
    repeat: int = 1,
    precision: AskedPrecision = "auto",
    backend: str | ServerChoice | Mapping[str, Any] = "transformers",
    processes: int | None = None,
    chat: bool = True,
    judge: JudgeChoice | Mapping[str, Any] | None = None,
    data_dir: str | Path | None = None,
    cache: str | Path | None = None,
    trust_remote_code: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> EvaluationResult:
    """Score a model on a suite or on single tasks, as `lingraft evaluate` does.

    Args:
        model: A folder (also of a LoRA adapter), hub id or `embedded:NAME`; or a loaded model, which is evaluated where
            it is, in the type of its weights, and left as it was.
        tokenizer: Of a loaded model; None: the one that lies where it was loaded from. Beside a name, in place of the
            model's own.
        suite: What is asked: `quick`, `paper`, `paper-lite` or `reading`.
        tasks: `[TAG=]NAME`: only these: tasks of the suite, harness tasks, or YAML files; None: all of the suite.
        languages: BCP-47 tags besides English, such as `["de", "th"]`.
        limit: Most items of each task; None: the suite's.
        part: All items, or one half of each task's, as `adapt` divides them.
        max_new_tokens: Most tokens of an answer; None: each task's own.
        batch_size: Most answers generated together; None: as many as fit.
        repeat: Generate so many times in other batches, to measure the noise floor.
        precision: Of a model that is loaded by its name; `auto`: bf16 where that is clearly faster, else float32.
        backend: What generates, for a model by its name: `transformers`, or a server: `{"server": URL}` or
            `{"command": "vllm serve {model} --port {port}"}`, with other fields of `evaluate.backend`.
        processes: For a model by its name: how many share the items, each with the whole model; None: one a GPU, or
            this process alone. Answers do not depend on it.
        chat: Apply the chat template to prompts.
        judge: Who scores AlpacaEval: `url`, `model` and other fields of `evaluate.judge`.
        data_dir: Folder with local copies of data sets; missing ones come from the hub.
        cache: Folder in which evaluations of models by name are kept, so that the same call is answered from it and an
            interrupted one goes on; the folder of `lingraft evaluate --output` serves as well. None: nothing is kept.
        trust_remote_code: Run Python code that models and YAML tasks bring along; read it first.
        on_progress: Called with the items done and all of them.

    Returns:
        Scores in [0, 1] with 95 % intervals: `result.scores.task_ability`, `.language_ability`, `.per_language["de"]`
        and `.tasks["worldbook:lookup/de"]`; `result.predictions` are the answers.

    Raises:
        ModelError: The model or its tokenizer cannot be had.
        ConfigError: An option is wrong, or there is no such task or language.
        EvaluationError: None of the tasks can be run.
    """
    with options_as_arguments():
        name = name_of(model)
        loaded = None if name is not None else model_in_memory(model)
        if loaded is not None:
            check_is_causal(loaded)
        if loaded is not None and precision != "auto":
            raise ConfigError(
                f"precision {precision!r}: a loaded model is evaluated in the type of its weights, "
                f"{str(loaded.dtype).removeprefix('torch.')}; leave it out, or load the model in another type (dtype=)."
            )
        asked = _ask(
            suite=suite,
            tasks=tasks,
            languages=languages,
            limit=limit,
            part=part,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            repeat=repeat,
            precision=precision,
            backend=backend,
            processes=processes,
            chat=chat,
            judge=judge,
            data_dir=data_dir,
            trust_remote_code=trust_remote_code,
            loaded=loaded is not None or tokenizer is not None,
            cache=cache,
        )
        if name is not None and tokenizer is not None:
            compute = compute_for(asked.questions.evaluation.precision)
            loaded = load_model(name, dtype=compute.held, trust_remote_code=trust_remote_code)
            loaded.to(compute.device)  # type: ignore[arg-type]
        if loaded is not None:
            own = tokenizer_for(loaded, tokenizer, trust_remote_code=trust_remote_code)
            with in_evaluation_mode(loaded):
                found = evaluate_loaded(
                    name or display_name(model),
                    loaded,
                    own,
                    asked.questions,
                    precision=_precision_of(loaded),
                    trust_remote_code=trust_remote_code,
                    on_progress=on_progress,
                )
        else:
            (stage,) = evaluations([str(name)], asked.questions, trust_remote_code=trust_remote_code)
            with _store(cache) as store:
                found = evaluate_in(stage, Executor(store, _Progress(on_progress)))
    notes = [
        *asked.notes,
        *(f"{task}: not run: {reason}" for task, reason in found.record.no_room.items()),
        *shortfalls(found.scores),
    ]
    return EvaluationResult(found.model, found.record, found.predictions, tuple(notes))


def compare(
    before: str | Path | PreTrainedModel | EvaluationResult,
    after: str | Path | PreTrainedModel | EvaluationResult,
    *,
    margin: float = DEFAULT_MARGIN,
    **options: Unpack[EvaluateOptions],
) -> ComparisonResult:
    """Compare two models on the items that both are asked alike, as `lingraft evaluate M1 M2` does.

    Args:
        before: What `evaluate` returned, or a model as it takes it.
        after: The other, likewise.
        margin: A change up to it, from 0 to 1, counts as none.
        **options: Of `evaluate`, for two models. With `precision="auto"`, a model by its name is held in the type of
            the other one that is loaded.

    Returns:
        after - before, paired, with 95 % intervals and what they say: `result.task_ability`, `.language_ability`,
        `.per_language["de"]`, `.differences["worldbook:lookup/de"]`, and `.retention` of task ability.

    Raises:
        ConfigError: An option is wrong, or one is a result and the other a model.
        EvaluationError: The two have no task in common. Else as `evaluate`.
    """
    if not isinstance(margin, (int, float)) or not 0 <= margin <= 1:
        raise ConfigError(f"margin {margin!r}: it must lie between 0 and 1.")
    given = [isinstance(one, EvaluationResult) for one in (before, after)]
    if any(given) and (options or not all(given)):
        unused = "" if not options else f"; {', '.join(options)} are options of evaluate"
        raise ConfigError(
            f"compare takes two results of evaluate, or two models{unused}: evaluate both with the same options, then "
            "compare the results."
        )
    # Models are looked at before the first is evaluated.
    loaded = [
        model_in_memory(one)
        for one in (before, after)
        if not isinstance(one, EvaluationResult) and name_of(one) is None
    ]
    by_name: EvaluateOptions = {}
    if len(loaded) == 1 and options.get("precision", "auto") == "auto":  # in the other's types they compare
        own_type = _precision_of(loaded[0])
        if own_type not in get_args(AskedPrecision):
            raise ConfigError(
                f"the loaded model is in {own_type}, in which no model by its name is evaluated: load both in it."
            )
        by_name["precision"] = cast(AskedPrecision, own_type)

    def evaluated(one: str | Path | PreTrainedModel | EvaluationResult) -> EvaluationResult:
        if isinstance(one, EvaluationResult):
            return one
        return evaluate(one, **(options if name_of(one) is None else {**options, **by_name}))

    first, second = evaluated(before), evaluated(after)
    found = compare_evaluations(first, second, margin=margin)
    if not (found.differences or found.not_paired or found.unpaired):
        raise EvaluationError(
            f"{first.model} and {second.model}: were asked no task in common ({', '.join(first.task_scores)}; "
            f"{', '.join(second.task_scores)}); evaluate both on the same tasks."
        )
    own = {field.name: getattr(found, field.name) for field in fields(ModelDifferences)}
    return ComparisonResult(**own, before=first, after=second, margin=margin)


def _ask(
    *,
    suite: str,
    tasks: str | Path | Sequence[str | Path] | None,
    languages: str | Sequence[str] | None,
    limit: int | None,
    part: Part,
    max_new_tokens: int | None,
    batch_size: int | None,
    repeat: int,
    precision: AskedPrecision,
    backend: str | ServerChoice | Mapping[str, Any],
    processes: int | None,
    chat: bool,
    judge: JudgeChoice | Mapping[str, Any] | None,
    data_dir: str | Path | None,
    trust_remote_code: bool,
    loaded: bool,
    cache: str | Path | None,
) -> Asked:
    """Check what evaluate is given, and return what is asked."""
    if tasks is not None and not isinstance(tasks, (str, Path)) and not tasks:
        raise ConfigError("tasks: the list is empty; leave it out for all of the suite.")
    options = EvaluationOptions(
        suite=suite,
        tasks=names_given("tasks", tasks),
        languages=names_given("languages", languages),
        data_dir=None if data_dir is None else str(data_dir),
        limit=limit,
        part=part,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        repeat=repeat,
        precision=precision,
        backend=backend_of(backend, "backend"),
        chat=chat,
        judge=None if judge is None else section_of(JudgeChoice, judge, "judge"),
    )
    for unused, is_given in {
        "backend": backend != "transformers",
        "processes": processes not in (None, 1),
        "cache": cache is not None,
    }.items():
        if loaded and is_given:
            raise ConfigError(
                f"{unused}: is for models by their name alone; save this one (save_pretrained) with its tokenizer, and "
                "name the folder."
            )
    if options.judge is not None:
        Judge.of(options.judge)
        key_from_environment()
    return ask(options, trust_remote_code=trust_remote_code, processes=processes)


def _precision_of(model: PreTrainedModel) -> str:
    """Return the type of a model's weights, as records name it."""
    return _NAMES.get(model.dtype, str(model.dtype).removeprefix("torch."))


@contextmanager
def _store(folder: str | Path | None) -> Iterator[Store]:
    """Open the store in a folder; None: in one that is removed afterwards."""
    if folder is None:
        with TemporaryDirectory(prefix="lingraft-") as temporary, Store(Path(temporary)) as store:
            yield store
        return
    place = path_of(folder, "cache")
    try:
        with as_disk_error(place):
            place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cache {folder}: cannot be made ({error.strerror}: {error.filename}).") from None
    with Store(place) as store:
        yield store


class _Progress(Watcher):
    """Reports the items of an evaluation."""

    def __init__(self, on_progress: Callable[[int, int], None] | None) -> None:
        self._on_progress = on_progress

    def stage_progressed(self, progress: StageProgress) -> None:
        """Report it."""
        if self._on_progress is not None:
            self._on_progress(progress.done, progress.total)
