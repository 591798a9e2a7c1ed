"""Evaluate a model in memory with lm-evaluation-harness: worldbook's tasks, harness tasks, a user's YAML tasks.

The harness builds the requests, generates and scores; what comes back is one prediction per item. Intervals are
ours (`statistics`). Nothing is printed: the harness's own progress and log lines are kept down, and progress is
told through a callback.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from lingraft.config.schema import Evaluation, EvaluationTask
from lingraft.data.chat import chat_template
from lingraft.data.worldbook import FAMILIES, LANGUAGES
from lingraft.errors import ConfigError, EvaluationError, did_you_mean, in_one_line
from lingraft.evaluate.predictions import Ability, Prediction
from lingraft.records import fingerprint_of, hash_file

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ENGLISH = "en"
# IFEval's verifiers of these instructions tokenise with NLTK's Punkt model, which the harness would download.
NEEDS_PUNKT = frozenset({"length_constraints:number_sentences", "change_case:capital_word_frequency"})

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation found.

    Attributes:
        predictions: One per item.
        left_out: Items that could not be scored, each with its reason; they count nowhere.
        truncated: Answers that used all the tokens that they were allowed, by task.
        tasks: By task: version, metric, items, and the hash of its prompts.
    """

    predictions: tuple[Prediction, ...]
    left_out: tuple[str, ...]
    truncated: dict[str, int]
    tasks: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class _Run:
    """One harness task as it is run: for which ability and language, on which documents.

    `key` names it uniquely: one task may count for two abilities or languages.
    """

    key: str
    ability: Ability
    name: str
    language: str
    task: ConfigurableTask
    metric: str
    documents: tuple[int, ...]
    left_out: tuple[str, ...]


def check_tasks(evaluation: Evaluation, base_folder: Path, *, languages: Sequence[str]) -> None:
    """Check that every named task can be found, before anything is trained.

    Raises:
        ConfigError: With every problem: an unknown family, task or language, a missing file.
    """
    problems = []
    seen: dict[tuple[str, str], str] = {}
    for ability, entry in _entries(evaluation):
        wanted = languages if ability == "language_ability" else (ENGLISH,)
        problem = _problem(entry, base_folder, wanted)
        if problem is not None:
            problems.append(f"evaluate.{ability}: {entry.task}: {problem}")
        for name, language in _expanded(entry, wanted):
            place = f"evaluate.{ability}: {entry.task}"
            if (name, language) in seen:
                problems.append(
                    f"{place}: {name} in {language} is in {seen[name, language]} already; keep one."
                )
            seen.setdefault((name, language), place)
    if not languages:
        problems.append(
            "evaluate: the study trains no language other than English, so there is no language ability."
        )
    if problems:
        raise ConfigError("\n".join(problems))


def _expanded(entry: EvaluationTask, languages: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Return the tasks and languages that an entry stands for; each may count once only."""
    kind, _, family = entry.task.partition(":")
    if kind != "worldbook":
        yield entry.task, entry.language or ENGLISH
        return
    for name in (family,) if family else FAMILIES:
        for language in (entry.language,) if entry.language else languages:
            yield f"worldbook:{name}", language


def task_identities(evaluation: Evaluation, base_folder: Path) -> dict[str, str]:
    """Return the hash of every local file that a task is made of, for fingerprints.

    These are its data, a YAML file of the user's with all that it includes, and the Python files beside them.
    Keyed by task and place, not by path: a study that moves to another folder stays the same study.
    """
    found = {}
    for _, entry in _entries(evaluation):
        paths = [base_folder / entry.data] if entry.data else []
        if _is_file(entry.task):
            paths += _task_files(base_folder / entry.task, base_folder)
        present = [path for path in paths if path.is_file()]
        found.update({f"{entry.task}[{i}] {path.name}": hash_file(path) for i, path in enumerate(present)})
    return found


def evaluate_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    evaluation: Evaluation,
    *,
    languages: Sequence[str],
    split: str = "report",
    base_folder: Path = Path(),
    on_progress: OnProgress | None = None,
) -> Evaluated:
    """Score a model on the tasks of a study.

    Args:
        model: In the precision that it is to be evaluated in; left as it is.
        tokenizer: The model's own.
        evaluation: The tasks; `worldbook` is English in task ability, and each of `languages` in language ability.
        languages: BCP-47 tags of the study's languages besides English.
        split: worldbook's split.
        base_folder: What the paths of YAML tasks and data files are relative to.
        on_progress: Called with the answers so far and in all.

    Raises:
        EvaluationError: A task cannot be loaded, has no such metric, or scores outside [0, 1].
    """
    runs = _build(evaluation, languages, split, base_folder)
    if not runs:
        raise EvaluationError("no task is left to evaluate.")
    samples = _run_harness(model, tokenizer, evaluation, runs, on_progress)
    predictions = [prediction for run in runs for prediction in _predictions(run, samples[run.key])]
    return Evaluated(
        predictions=tuple(predictions),
        left_out=tuple(reason for run in runs for reason in run.left_out),
        truncated=_count_truncated(runs, predictions, tokenizer),
        tasks={f"{run.name}/{run.language}": _describe(run, predictions) for run in runs},
    )


def _entries(evaluation: Evaluation) -> Iterator[tuple[Ability, EvaluationTask]]:
    for entry in evaluation.task_ability:
        yield "task_ability", entry
    for entry in evaluation.language_ability:
        yield "language_ability", entry


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _problem(entry: EvaluationTask, base_folder: Path, languages: Sequence[str]) -> str | None:
    kind, _, family = entry.task.partition(":")
    if kind == "worldbook":
        if family and family not in FAMILIES:
            return f"worldbook has no family {family!r}. {did_you_mean(family, FAMILIES)}"
        wanted = languages if entry.language is None else (entry.language,)
        unknown = [repr(tag) for tag in wanted if tag not in LANGUAGES]
        known_tags = ", ".join(LANGUAGES)
        return (
            f"worldbook has no {', '.join(unknown)} (it has {known_tags}); name other tasks for it, with `language:`."
            if unknown
            else None
        )
    if entry.data is not None and not (base_folder / entry.data).is_file():
        return f"there is no file {entry.data}."
    if _is_file(entry.task):
        return _file_problem(entry, base_folder)
    known = _task_manager().task_index
    if entry.task not in known:
        return f"is no harness task. {_close(entry.task, known)}"
    return _load_problem(entry, base_folder) if entry.data is not None else None


def _file_problem(entry: EvaluationTask, base_folder: Path) -> str | None:
    from lm_eval.tasks._yaml_loader import load_yaml

    path = base_folder / entry.task
    if not path.is_file():
        return "there is no such file."
    try:
        config = load_yaml(path, resolve_func=False, recursive=False)
        is_local = entry.data is not None or bool(_local_data_files(config, base_folder))
    except Exception as error:  # YAML's errors, and whatever a file that is no mapping leads to
        return f"is not a harness task's YAML: {in_one_line(error)}"
    # What the hub must give is loaded when it is evaluated: a finished study is not to need the hub again.
    return _load_problem(entry, base_folder) if is_local or "task" not in config else None


def _load_problem(entry: EvaluationTask, base_folder: Path) -> str | None:
    """Build a task as its evaluation will, and say why that fails."""
    try:
        for task in _load(entry, base_folder):
            _metric(entry, task)
    except EvaluationError as error:
        return str(error).removeprefix(f"the task {entry.task} ")
    return None


def _close(name: str, known: Any) -> str:
    import difflib

    close = difflib.get_close_matches(name, list(known), n=3)
    hint = f"Did you mean {', '.join(close)}? " if close else ""
    return f"{hint}The harness knows {len(known)} names."


@cache
def _task_manager() -> Any:
    """Return the harness's index of its tasks; built once, because that takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


@cache
def _file_manager() -> Any:
    """Return a task manager for files alone, which needs no index."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=False)


def _task_files(path: Path, base_folder: Path) -> list[Path]:
    """Return a YAML task, what it includes, the code beside each, and the local data files that it names."""
    from lm_eval.tasks._yaml_loader import load_yaml

    if not path.is_file():
        return []
    raw = load_yaml(path, resolve_func=False, recursive=False)
    files = [path, *sorted(path.parent.glob("*.py"))]
    for file in _local_data_files(raw, base_folder):
        files += sorted(Path(file).parent.glob(Path(file).name))
    included = raw.get("include") or []
    for name in included if isinstance(included, list) else [included]:
        files += _task_files(path.parent / name, base_folder)
    return files


def _local_data_files(config: dict[str, Any], base_folder: Path) -> list[str]:
    """Return the local files among a task's data files, as full paths; a pattern stays a pattern."""
    named = _resolved((config.get("dataset_kwargs") or {}).get("data_files"), base_folder)
    groups = named.values() if isinstance(named, dict) else [named]
    files = [file for group in groups for file in (group if isinstance(group, list) else [group]) if file]
    return [file for file in files if "://" not in file]


def _resolved(named: Any, base_folder: Path) -> Any:
    """Return `data_files` (a name, a list, or either by split) with every local name made a full path."""
    if isinstance(named, dict):
        return {split: _resolved(files, base_folder) for split, files in named.items()}
    if isinstance(named, list):
        return [_resolved(file, base_folder) for file in named]
    if not isinstance(named, str) or "://" in named:
        return named
    return str((base_folder / named).resolve())


def runs_of(evaluation: Evaluation, languages: Sequence[str], split: str, base_folder: Path) -> list[_Run]:
    """Return the tasks of an evaluation as they will be run, with their documents; see `evaluate_model`.

    Raises:
        EvaluationError: A task cannot be loaded, or has no such metric.
    """
    return _build(evaluation, languages, split, base_folder)


def _build(evaluation: Evaluation, languages: Sequence[str], split: str, base_folder: Path) -> list[_Run]:
    runs: list[_Run] = []
    for ability, entry in _entries(evaluation):
        if entry.task.partition(":")[0] == "worldbook":
            wanted = languages if ability == "language_ability" else (ENGLISH,)
            runs.extend(_build_worldbook(ability, entry, wanted, split))
        else:
            runs.extend(_build_harness(ability, entry, base_folder))
    return runs


def _build_worldbook(
    ability: Ability, entry: EvaluationTask, languages: Sequence[str], split: str
) -> Iterator[_Run]:
    from lingraft.evaluate.worldbook_tasks import SCORE, worldbook_task

    family = entry.task.partition(":")[2]
    for name in (family,) if family else FAMILIES:
        for language in (entry.language,) if entry.language else languages:
            with _quiet():
                task = worldbook_task(name, language, split, entry.limit, entry.max_new_tokens)
            documents, label = tuple(range(len(task.eval_docs))), f"worldbook:{name}"
            yield _Run(
                _key(ability, label, language, task), ability, label, language, task, SCORE, documents, ()
            )


def _build_harness(ability: Ability, entry: EvaluationTask, base_folder: Path) -> Iterator[_Run]:
    for task in _load(entry, base_folder):
        if entry.max_new_tokens is not None and task.config.output_type == "generate_until":
            task.set_config("generation_kwargs", {"max_gen_toks": entry.max_new_tokens}, update=True)
        task.set_config("num_fewshot", task.config.num_fewshot or 0)
        documents = range(len(task.eval_docs))[: entry.limit]
        scorable, left_out = _without_punkt(entry.task, task, documents)
        if not scorable:
            reason = left_out[0] if left_out else "its data set is empty."
            raise EvaluationError(f"the task {entry.task}: no item can be scored: {reason}")
        language = entry.language or ENGLISH
        key = _key(ability, entry.task, language, task)
        yield _Run(key, ability, entry.task, language, task, _metric(entry, task), scorable, left_out)


def _load(entry: EvaluationTask, base_folder: Path) -> list[ConfigurableTask]:
    try:
        with _quiet():
            found = _load_spec(entry, base_folder)
    except Exception as error:
        reason = in_one_line(error)[:300]
        advice = (
            "where its data set cannot be downloaded, give it `data:`, a local file of the same fields"
            if entry.data is None
            else f"its data are {entry.data}: do the rows have the fields of the task's own data set?"
        )
        raise EvaluationError(
            f"the task {entry.task} cannot be loaded: {type(error).__name__}: {reason} ({advice})."
        ) from error
    tasks: list[ConfigurableTask] = list(found["tasks"].values())
    return tasks


def _load_spec(entry: EvaluationTask, base_folder: Path) -> Any:
    from lm_eval.tasks._yaml_loader import load_yaml

    if not _is_file(entry.task) and entry.data is None:
        return _task_manager().load([entry.task])
    own = _is_file(entry.task)
    path = base_folder / entry.task if own else _task_manager().task_index[entry.task].yaml_path
    config = load_yaml(path)
    if not isinstance(config.get("task"), str):
        raise ValueError("it names no single task (`task: NAME`); name a group's tasks one by one")
    config["dataset_kwargs"] = dict(config.get("dataset_kwargs") or {})
    if "data_files" in config["dataset_kwargs"]:
        files = config["dataset_kwargs"]["data_files"]
        config["dataset_kwargs"]["data_files"] = _resolved(files, base_folder)
    if entry.data is not None:
        config.update(_over_local_file(config, base_folder / entry.data))
    return _file_manager().load([config])


def _over_local_file(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the fields of a task's configuration that put a local file in the place of its data set.

    Worked examples in the prompt, where a task has them, come from the same file: the harness then leaves out the
    item that is asked.
    """
    split = config.get("test_split") or config.get("validation_split") or "test"
    return {
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: str(path.resolve())}},
        "test_split": split,
        "validation_split": None,
        "training_split": None,
        "fewshot_split": split,
    }


def _metric(entry: EvaluationTask, task: ConfigurableTask) -> str:
    metrics = [str(one["metric"]) for one in task.config.metric_list or [] if isinstance(one["metric"], str)]
    metrics = metrics or list(task.aggregation())
    if entry.metric is None:
        return metrics[0]
    if entry.metric not in metrics:
        raise EvaluationError(
            f"the task {entry.task} has no metric {entry.metric!r}. {did_you_mean(entry.metric, metrics)}"
        )
    return entry.metric


def _without_punkt(
    name: str, task: ConfigurableTask, documents: Sequence[int]
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Leave out IFEval's items that need NLTK's sentence data where these are absent; never score them 0."""
    rows = task.eval_docs
    if "instruction_id_list" not in rows.column_names or _has_punkt():
        return tuple(documents), ()
    needy = {i for i in documents if NEEDS_PUNKT & set(rows[i]["instruction_id_list"])}
    reason = "needs NLTK's punkt_tab, which is not installed (python -m nltk.downloader punkt_tab)"
    left_out = tuple(f"{name}: item {rows[i].get('key', i)}: {reason}" for i in sorted(needy))
    return tuple(i for i in documents if i not in needy), left_out


def _has_punkt() -> bool:
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab/english/")
    except LookupError:
        return False
    return True


def _key(ability: Ability, name: str, language: str, task: ConfigurableTask) -> str:
    return f"{ability}|{name}|{language}|{task.config.task}"


def _run_harness(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    evaluation: Evaluation,
    runs: Sequence[_Run],
    on_progress: OnProgress | None,
) -> dict[str, list[dict[str, Any]]]:
    """Run all tasks in one call, so that the harness batches answers across tasks; return samples by task."""
    from langdetect import DetectorFactory
    from lm_eval.evaluator import simple_evaluate  # it asks git for the commit of whatever folder we are in

    from lingraft.evaluate.in_memory import InMemoryModel

    # Seeded here, because the harness's IFEval identifies languages by sampling.
    DetectorFactory.seed = 0
    template, is_fallback = chat_template(tokenizer)
    given = tokenizer.chat_template
    if is_fallback:
        tokenizer.chat_template = template
    for run in runs:
        run.task.set_config("task", run.key)
    total = sum(len(run.documents) for run in runs)
    try:
        with _quiet(), patch("lm_eval.evaluator.get_git_commit_hash", return_value=None):
            results = simple_evaluate(
                model=InMemoryModel(
                    model,
                    tokenizer,
                    evaluation.batch_size,
                    total,
                    on_progress,
                    chat=evaluation.apply_chat_template,
                ),
                tasks=[run.task for run in runs],
                samples={run.key: list(run.documents) for run in runs},
                apply_chat_template=evaluation.apply_chat_template,
                bootstrap_iters=0,
                log_samples=True,
                task_manager=_file_manager(),
            )
    finally:
        tokenizer.chat_template = given
    samples: dict[str, list[dict[str, Any]]] = results["samples"]
    return samples


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep down the harness's log lines, bars and prints, and keep its IFEval module from the network.

    That module downloads NLTK's sentence data when it is imported, and prints that it did where it could not; the
    items that need them are found by `_without_punkt`. Errors still come through.
    """
    import datasets
    import nltk

    with redirect_stdout(io.StringIO()):
        import lm_eval.api.task as task_module

        logger = logging.getLogger("lm_eval")
        level, bar, download = logger.level, task_module.tqdm, nltk.download
        bars_off = datasets.utils.are_progress_bars_disabled()
        logger.setLevel(logging.ERROR)
        task_module.tqdm = lambda iterable, **_: iterable
        nltk.download = lambda *_, **__: False
        datasets.disable_progress_bars()
        try:
            yield
        finally:
            logger.setLevel(level)
            task_module.tqdm, nltk.download = bar, download
            if not bars_off:
                datasets.enable_progress_bars()


def _predictions(run: _Run, samples: Sequence[dict[str, Any]]) -> Iterator[Prediction]:
    first_filter = samples[0]["filter"] if samples else None
    for sample in samples:
        if sample["filter"] != first_filter:
            continue  # a task may score the same answers through several filters: the first is its own order
        yield _prediction(run, sample)


def _prediction(run: _Run, sample: dict[str, Any]) -> Prediction:
    from lingraft.evaluate.worldbook_tasks import cluster_of, verdict

    response = _text(sample["filtered_resps"])
    common: dict[str, Any] = {
        "ability": run.ability,
        "task": run.name,
        "language": run.language,
        "prompt": str(sample["arguments"]["gen_args_0"]["arg_0"])
        if isinstance(sample["arguments"], dict)
        else str(sample["arguments"][0][0]),
        "response": response,
        "reference": str(sample["target"]),
        "score": _score(run, sample),
    }
    row = sample["doc"].get("item") if run.name.startswith("worldbook:") else None
    if row is None:
        inner = run.key.rpartition("|")[2]
        item = f"{inner}/{sample['doc_id']}"
        return Prediction(cluster=item, item=item, **common)
    found, group = verdict(row, response), cluster_of(row)
    return Prediction(
        cluster=group,
        item=group,
        form=found.form,
        content=found.content,
        chrf=found.chrf,
        wrong_language=found.wrong_language,
        **common,
    )


def _text(responses: Any) -> str:
    first = responses[0] if isinstance(responses, list) and responses else responses
    return first if isinstance(first, str) else str(responses)


def _score(run: _Run, sample: dict[str, Any]) -> float:
    """Return the item's score; a list of yes and no (IFEval's instructions of one prompt) counts by its mean."""
    value = sample.get(run.metric)
    if isinstance(value, list) and value and all(isinstance(one, bool) for one in value):
        return sum(value) / len(value)
    is_number = isinstance(value, (bool, int, float)) or getattr(value, "ndim", None) == 0
    if not is_number or not 0.0 <= float(value) <= 1.0:  # type: ignore[arg-type]
        raise EvaluationError(
            f"the task {run.name}: its metric {run.metric!r} is {value!r} for item {sample['doc_id']}; a score must be "
            "one number per item in [0, 1] (one of a whole set, such as f1 or bleu, is none). Name another one "
            "with `metric:`."
        )
    return float(value)  # type: ignore[arg-type]


def _count_truncated(
    runs: Sequence[_Run], predictions: Sequence[Prediction], tokenizer: PreTrainedTokenizerBase
) -> dict[str, int]:
    """Count the answers as long as their task allows, which may have been cut off."""
    counts = {}
    for run in runs:
        if run.task.config.output_type != "generate_until":
            continue
        allowed = (run.task.config.generation_kwargs or {}).get("max_gen_toks")
        if allowed is None:
            continue
        own = [p for p in predictions if _belongs(p, run)]
        lengths = [len(tokenizer(p.response, add_special_tokens=False)["input_ids"]) for p in own]
        counts[f"{run.name}/{run.language}"] = sum(length >= allowed for length in lengths)
    return counts


def _belongs(prediction: Prediction, run: _Run) -> bool:
    return (prediction.ability, prediction.task, prediction.language) == (run.ability, run.name, run.language)


def _describe(run: _Run, predictions: Sequence[Prediction]) -> dict[str, Any]:
    prompts = [p.prompt for p in predictions if _belongs(p, run)]
    return {
        "version": str(run.task.VERSION),
        "metric": run.metric,
        "items": len(prompts),
        "prompts": fingerprint_of(sha256("\0".join(prompts).encode()).hexdigest()),
    }
