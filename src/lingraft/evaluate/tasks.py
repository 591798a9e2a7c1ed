"""Find and load the tasks that an evaluation names: the harness's, lingraft's own, a user's YAML; on hub or local data.

What is loaded here is run by `harness`.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from lingraft.config.schema import Evaluation, EvaluationTask
from lingraft.data.files import SourceFile
from lingraft.data.readers import data_suffix
from lingraft.data.rows import commit_of, open_rows
from lingraft.data.worldbook import FAMILIES, LANGUAGES
from lingraft.errors import ConfigError, EvaluationError, LingraftError, did_you_mean, in_one_line
from lingraft.evaluate.expressions import Expression, with_expressions
from lingraft.evaluate.own_tasks import OWN_TASKS
from lingraft.evaluate.predictions import Ability
from lingraft.judge.chat_endpoint import key_from_environment
from lingraft.judge.win_rate import ALPACA_EVAL, Judge
from lingraft.records import hash_file
from lingraft.text.language_tags import ENGLISH, nearest_language

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

WORLDBOOK = "worldbook"
_JSON = (".json", ".jsonl")  # what the datasets library reads as it is
_LOGGERS = ("lm_eval", "huggingface_hub", "transformers.tokenization_utils_base")


class NotRunnableError(EvaluationError):
    """A task lacks here what it needs (its data, a service); other tasks can run without it.

    Args:
        message: The error as a whole.
        reason: Why, without what is to be done: what a library or a task of our own said.
        is_hub_out_of_reach: Whether the hub could not be reached, as it will not be for the next task.
    """

    def __init__(self, message: str, reason: str, *, is_hub_out_of_reach: bool) -> None:
        super().__init__(message)
        self.reason = reason
        self.is_hub_out_of_reach = is_hub_out_of_reach


def check_tasks(evaluation: Evaluation, base_folder: Path, *, languages: Sequence[str]) -> None:
    """Check that every named task can be found, before anything is trained.

    Args:
        evaluation: Its tasks; suites are already resolved (`suites.resolve_suites`).
        base_folder: What the paths of YAML tasks and data files are relative to.
        languages: BCP-47 tags of the study's languages besides English.

    Raises:
        ConfigError: With every problem: an unknown family, task or language, a language that no task covers, a missing
            file, no judge where one is needed; or the judge's address or key is none.
    """
    problems = []
    if evaluation.judge is not None:
        Judge.of(evaluation.judge)
        key_from_environment()
    for ability, entry in entries(evaluation):
        problem = _problem(entry, base_folder) or judge_problem(entry, evaluation)
        if problem is not None:
            problems.append(f"evaluate.{ability}: {entry.task}: {problem}")
    problems += [f"evaluate.{problem}" for problem in repeated_tasks(evaluation, languages)]
    if not any(problem.startswith("evaluate.language_ability") for problem in problems):
        problems += _uncovered(evaluation, languages)  # else it may be missing because its task is wrong
    if not languages:
        problems.append(
            "evaluate: the study trains no language other than English, so there is no language ability."
        )
    if problems:
        raise ConfigError("\n".join(problems))


def _uncovered(evaluation: Evaluation, languages: Sequence[str]) -> list[str]:
    """Return a line for each language of the study that no task covers: another one's score must not stand for it."""
    wanted = wanted_languages("language_ability", evaluation, languages)
    own = evaluation.language_ability
    covered = covered_languages(evaluation, languages)
    has = "; ".join(
        dict.fromkeys(
            f"{WORLDBOOK} has {', '.join(LANGUAGES)}"
            if is_worldbook(entry) and entry.language is None
            else f"{label_of(entry)} is in {entry.language or ENGLISH}"
            for entry in own
        )
    )
    return [
        f"evaluate.language_ability: no task covers {tag!r} ({has}); name one with `language: {tag}`."
        for tag in wanted
        if tag not in covered
    ]


def covered_languages(evaluation: Evaluation, languages: Sequence[str]) -> set[str]:
    """Return the languages in which an evaluation has a task under language ability; its suites are resolved."""
    wanted = wanted_languages("language_ability", evaluation, languages)
    return {tag for entry in evaluation.language_ability for _, tag in asked_in(entry, wanted)}


def wanted_languages(ability: Ability, evaluation: Evaluation, languages: Sequence[str]) -> tuple[str, ...]:
    """Return the languages in which a list of tasks is asked for, where an entry names none.

    Args:
        ability: Which list; task ability is English.
        evaluation: Its `languages` are evaluated besides those trained.
        languages: BCP-47 tags of the languages besides English that are trained.
    """
    return (
        (ENGLISH,) if ability == "task_ability" else tuple(dict.fromkeys((*languages, *evaluation.languages)))
    )


def ability_of(ability: Ability, language: str, languages: Sequence[str]) -> Ability:
    """Return what a task of one of the lists counts towards: a language that is not trained is a further one."""
    return "further_languages" if ability != "task_ability" and language not in languages else ability


def worldbook_language(language: str) -> str | None:
    """Return worldbook's own tag of a language (pt of pt-BR); None: it has none."""
    return nearest_language(language, LANGUAGES)


def in_study_languages(evaluation: Evaluation, languages: Sequence[str]) -> Evaluation:
    """Return an evaluation whose entries name their languages as the study does: a task in pt covers pt-BR.

    Args:
        evaluation: As the study file has it.
        languages: BCP-47 tags of the languages besides English that are trained.
    """
    wanted = wanted_languages("language_ability", evaluation, languages)

    def named(entry: EvaluationTask) -> EvaluationTask:
        if entry.language is None or entry.language in wanted:
            return entry
        own = next((tag for tag in wanted if nearest_language(tag, (entry.language,))), entry.language)
        return entry.model_copy(update={"language": own})

    return evaluation.model_copy(
        update={"language_ability": tuple(named(entry) for entry in evaluation.language_ability)}
    )


def repeated_tasks(evaluation: Evaluation, languages: Sequence[str]) -> list[str]:
    """Return a line for each task that is asked twice in a language: its items would be scored twice.

    Args:
        evaluation: Its tasks; suites are already resolved.
        languages: In which worldbook is asked for under language ability where the entry names none.
    """
    seen: dict[tuple[str, str], str] = {}
    problems = []
    for ability, entry in entries(evaluation):
        place = f"{ability}: {entry.task}"
        for one in asked_in(entry, wanted_languages(ability, evaluation, languages)):
            if one in seen:
                problems.append(f"{place}: {one[0]} in {one[1]} is in {seen[one]} already; keep one.")
            seen.setdefault(one, place)
    return problems


def entries(evaluation: Evaluation) -> Iterator[tuple[Ability, EvaluationTask]]:
    """Yield the entries of an evaluation, each with the ability that it counts for."""
    for entry in evaluation.task_ability:
        yield "task_ability", entry
    for entry in evaluation.language_ability:
        yield "language_ability", entry


def is_worldbook(entry: EvaluationTask) -> bool:
    """Return whether an entry names worldbook or a family of it."""
    return entry.task.partition(":")[0] == WORLDBOOK


def label_of(entry: EvaluationTask) -> str:
    """Return what an entry that is not worldbook's is called in predictions and tables."""
    return entry.name or entry.task


def asked_in(entry: EvaluationTask, languages: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the tasks and languages that an entry stands for; each may count once only."""
    if not is_worldbook(entry):
        yield label_of(entry), entry.language or ENGLISH
        return
    family = entry.task.partition(":")[2]
    for name in (family,) if family else FAMILIES:
        for language in (entry.language,) if entry.language else languages:
            if worldbook_language(language) is not None:
                yield f"{WORLDBOOK}:{name}", language


def task_identities(evaluation: Evaluation, base_folder: Path) -> dict[str, str]:
    """Return the hash of every local file that a task is made of, for fingerprints.

    These are its data, a YAML file of the user's with all that it includes, and the Python files beside them.
    Keyed by task and place, not by path: a study that moves to another folder stays the same study.
    """
    return {
        place: digest
        for _, entry in entries(evaluation)
        for place, digest in _file_hashes(entry, base_folder).items()
    }


def _file_hashes(entry: EvaluationTask, base_folder: Path) -> dict[str, str]:
    paths = [base_folder / entry.data] if entry.data else []
    if _is_file(entry.task):
        paths += _task_files(base_folder / entry.task, base_folder)
    present = [path for path in paths if path.is_file()]
    return {f"{entry.task}[{i}] {path.name}": hash_file(path) for i, path in enumerate(present)}


def data_revision(entry: EvaluationTask, task: ConfigurableTask, base_folder: Path) -> dict[str, Any]:
    """Return which data a task was run on: the hashes of its local files, or the hub data set with its commit.

    `fingerprint` is the datasets library's own, which changes with the rows; `commit` is null where its cache does not
    tell it. A task of our own says `source` and `revision` in its metadata.
    """
    files = _file_hashes(entry, base_folder)
    if files:
        return {"files": {place.partition(" ")[2]: digest for place, digest in files.items()}}
    rows = task.dataset[task.config.test_split or task.config.validation_split]
    if entry.task in OWN_TASKS:
        said = task.config.metadata or {}
        return {"hub": said.get("source"), "commit": said.get("revision"), "fingerprint": rows._fingerprint}
    return {
        "hub": task.config.dataset_path,
        "config": task.config.dataset_name,
        "commit": commit_of(rows.cache_files),
        "fingerprint": rows._fingerprint,
    }


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _problem(entry: EvaluationTask, base_folder: Path) -> str | None:
    problem = name_problem(entry, base_folder)
    if problem is not None or is_worldbook(entry):
        return problem
    # What the hub must give is loaded when it is evaluated: a finished study is not to need the hub again.
    return _load_problem(entry, base_folder) if _is_local(entry, base_folder) else None


def name_problem(entry: EvaluationTask, base_folder: Path) -> str | None:
    """Return why there is no such task or file, None where there is; nothing is loaded.

    Args:
        entry: The task.
        base_folder: What its paths are relative to.
    """
    if is_worldbook(entry):
        return _worldbook_problem(entry)
    if entry.data is not None and not (base_folder / entry.data).is_file():
        return f"there is no file {entry.data}."
    if _is_file(entry.task):
        return None if (base_folder / entry.task).is_file() else "there is no such file."
    if entry.task not in OWN_TASKS and entry.task not in _task_manager().task_index:
        return f"is no task of lingraft's own and no harness task. {_close(entry.task)}"
    return None


def judge_problem(entry: EvaluationTask, evaluation: Evaluation) -> str | None:
    """Return why a task whose answers a judge scores cannot be had, None where it can."""
    if entry.task != ALPACA_EVAL or evaluation.judge is not None:
        return None
    return (
        "a judge scores its answers: give its `url` and `model` as `judge` (--judge-url and --judge-model), or leave "
        f"it out (`without: [{ALPACA_EVAL}]` beside the name of a suite)."
    )


def _is_local(entry: EvaluationTask, base_folder: Path) -> bool:
    """Return whether a task can be built without the hub; of a YAML file that cannot be read it says so, too."""
    from lm_eval.tasks._yaml_loader import load_yaml

    if entry.data is not None or not _is_file(entry.task):
        return entry.data is not None
    try:
        config = load_yaml(base_folder / entry.task, resolve_func=False, recursive=False)
        return "task" not in config or bool(_local_data_files(config, base_folder))
    except Exception:  # YAML's errors, and whatever a file that is no mapping leads to; loading it says which
        return True


def _worldbook_problem(entry: EvaluationTask) -> str | None:
    family = entry.task.partition(":")[2]
    if family and family not in FAMILIES:
        return f"worldbook has no family {family!r}. {did_you_mean(family, FAMILIES)}"
    if entry.language is None or worldbook_language(entry.language) is not None:
        return None
    return (
        f"worldbook has no {entry.language!r} (it has {', '.join(LANGUAGES)}); name other tasks for it, with "
        "`language:`."
    )


def _load_problem(entry: EvaluationTask, base_folder: Path) -> str | None:
    """Build a task as its evaluation will, and say why that fails."""
    try:
        for task in load_tasks(entry, base_folder):
            metric_of(entry, task)
            filter_of(entry, task)
    except LingraftError as error:
        return str(error).removeprefix(f"the task {entry.task} ")
    return None


def _close(name: str) -> str:
    import difflib

    known = [*OWN_TASKS, *_task_manager().task_index]
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"Did you mean {', '.join(close)}? " if close else ""
    return f"{hint}There are {len(known)} names."


@cache
def _task_manager() -> Any:
    """Return the harness's index of its tasks; built once, because that takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


@cache
def file_manager() -> Any:
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


def load_tasks(
    entry: EvaluationTask, base_folder: Path, *, hub_out_of_reach: bool = False
) -> list[ConfigurableTask]:
    """Return the harness tasks that an entry stands for: one, or the tasks of a group.

    Args:
        entry: The task.
        base_folder: What its paths are relative to.
        hub_out_of_reach: Take from the hub only what is in its cache: without a network, its attempts take half a
            minute.

    Raises:
        NotRunnableError: What must come from the hub or another service cannot be had here.
        EvaluationError: The task or its local data cannot be used.
    """
    try:
        with quiet(), _cache_alone() if hub_out_of_reach else nullcontext():
            return _own(entry, base_folder) if entry.task in OWN_TASKS else _of_harness(entry, base_folder)
    except Exception as error:  # the hub's, YAML's and the tasks' own errors share no base class
        raise _refusal(entry, error) from error


@contextmanager
def _cache_alone() -> Iterator[None]:
    """Do as HF_HUB_OFFLINE=1 does, which is read only once, when the libraries are imported."""
    with (
        patch("datasets.config.HF_HUB_OFFLINE", True),
        patch("huggingface_hub.constants.HF_HUB_OFFLINE", True),
    ):
        yield


def _refusal(entry: EvaluationTask, error: Exception) -> EvaluationError:
    told = in_one_line(error) if isinstance(error, LingraftError) else _library_error(error)
    is_out_of_reach = isinstance(error, ConnectionError) or isinstance(error.__cause__, ConnectionError)
    lacks_its_data = is_out_of_reach or isinstance(error, FileNotFoundError)
    is_of_hub = entry.data is None and (not _is_file(entry.task) or lacks_its_data)
    if isinstance(error, ConfigError) or is_of_hub:
        return NotRunnableError(
            f"the task {entry.task} cannot be loaded: {told} (where its data set cannot be downloaded, give it "
            "`data:`, a local file).",
            told,
            is_hub_out_of_reach=is_out_of_reach,
        )
    advice = f"its data are {entry.data}: do the rows have the fields of the task's own data set?"
    return EvaluationError(
        f"the task {entry.task} cannot be loaded: {told}" + (f" ({advice})." if entry.data else ".")
    )


def _library_error(error: Exception) -> str:
    return f"{type(error).__name__}: {in_one_line(error)[:300]}"


def _own(entry: EvaluationTask, base_folder: Path) -> list[ConfigurableTask]:
    make = OWN_TASKS.get(entry.task)
    drawn = entry.sample is not None  # then the limit is taken of all items, once they are known
    task: ConfigurableTask = make(
        entry.language or ENGLISH,
        data=None if entry.data is None else base_folder / entry.data,
        limit=None if drawn else entry.limit,
        max_new_tokens=entry.max_new_tokens,
    )
    return [task]


def _of_harness(entry: EvaluationTask, base_folder: Path) -> list[ConfigurableTask]:
    if not _is_file(entry.task) and entry.data is None:
        return list(_task_manager().load([entry.task])["tasks"].values())
    configs = _configs(entry, base_folder)
    if entry.data is not None:
        configs = _over_local_file(configs, entry, base_folder / entry.data)
    return [task for config in configs for task in file_manager().load([config])["tasks"].values()]


def _configs(entry: EvaluationTask, base_folder: Path) -> list[dict[str, Any]]:
    """Return the configuration of a YAML task, or those of a harness task or of all tasks of a group."""
    from lm_eval.tasks._yaml_loader import load_yaml

    if not _is_file(entry.task):
        return [load_yaml(_task_manager().task_index[name].yaml_path) for name in _leaves(entry.task)]
    config = load_yaml(base_folder / entry.task)
    if not isinstance(config.get("task"), str):
        raise ValueError("it names no single task (`task: NAME`); name a group's tasks one by one")
    config["dataset_kwargs"] = dict(config.get("dataset_kwargs") or {})
    if "data_files" in config["dataset_kwargs"]:
        files = config["dataset_kwargs"]["data_files"]
        config["dataset_kwargs"]["data_files"] = _resolved(files, base_folder)
    return [config]


def _leaves(name: str) -> Iterator[str]:
    """Yield the tasks of a group or tag, at any depth; of a task, itself."""
    found = _task_manager().task_index[name]
    members = sorted(found.tags) if found.cfg is None else found.cfg["task"]
    if isinstance(members, str):
        yield name
        return
    for member in members:
        if not isinstance(member, str):
            raise ValueError("it is a group with tasks written out inside; name its tasks one by one")
        yield from _leaves(member)


def _over_local_file(
    configs: Sequence[dict[str, Any]], entry: EvaluationTask, path: Path
) -> list[dict[str, Any]]:
    """Return tasks' configurations with a local file in the place of their data set; those without rows left out.

    Worked examples in the prompt, where a task has them, come from the same file: the harness then leaves out the
    item that is asked.
    """
    if not entry.fields and entry.rows is None and len(configs) == 1 and data_suffix(path) in _JSON:
        return [configs[0] | _placed(configs[0], dataset_kwargs={"data_files": _split_of(configs[0], path)})]
    if entry.rows is None and len(configs) > 1:
        raise ValueError(
            f"it is a group of {len(configs)} tasks: `rows` must say which rows belong to which `task`"
        )
    read = (row.value for row in open_rows(SourceFile(path, path.name)).sound(EvaluationError))
    rows = list(with_expressions(read, entry.fields, entry.task))
    chosen = [(config, _rows_of(config, entry, rows)) for config in configs]
    if not any(own for _, own in chosen):
        raise ValueError(f"no row of the {len(rows)} is used")
    return [config | _placed(config, rows=own) for config, own in chosen if own]


def _split_of(config: dict[str, Any], value: Any) -> dict[str, Any]:
    split = config.get("test_split") or config.get("validation_split") or "test"
    return {split: str(value.resolve()) if isinstance(value, Path) else value}


def _placed(
    config: dict[str, Any],
    *,
    dataset_kwargs: dict[str, Any] | None = None,
    rows: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Return the fields of a configuration that name its data: a file that is read as it is, or rows in memory."""
    split = next(iter(_split_of(config, "")))
    placed = {
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": dataset_kwargs,
        "test_split": split,
        "validation_split": None,
        "training_split": None,
        "fewshot_split": split,
    }
    if rows is None:
        return placed
    import datasets

    return placed | {"custom_dataset": lambda **_: {split: datasets.Dataset.from_list(rows)}}


def _rows_of(
    config: dict[str, Any], entry: EvaluationTask, rows: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    if entry.rows is None:
        return list(rows)
    is_used = Expression(entry.rows, f"{entry.task}: rows")
    return [row for number, row in enumerate(rows) if is_used({**row, "task": config["task"]}, number)]


def metric_of(entry: EvaluationTask, task: ConfigurableTask) -> str:
    """Return the metric that is the score: the entry's, or the task's first.

    Raises:
        EvaluationError: The task has no such metric.
    """
    metrics = [str(one["metric"]) for one in task.config.metric_list or [] if isinstance(one["metric"], str)]
    metrics = metrics or list(task.aggregation())
    if entry.metric is None:
        return metrics[0]
    if entry.metric not in metrics:
        raise EvaluationError(
            f"the task {entry.task} has no metric {entry.metric!r}. {did_you_mean(entry.metric, metrics)}"
        )
    return entry.metric


def filter_of(entry: EvaluationTask, task: ConfigurableTask) -> str:
    """Return the filter whose answers are scored: the entry's, or the task's first.

    Raises:
        EvaluationError: The task has no such filter.
    """
    filters = [one.name for one in task._filters]
    if entry.filter is None:
        return str(filters[0])
    if entry.filter not in filters:
        raise EvaluationError(
            f"the task {entry.task} has no filter {entry.filter!r}. {did_you_mean(entry.filter, filters)}"
        )
    return entry.filter


@contextmanager
def quiet() -> Iterator[None]:
    """Keep down the harness's log lines, bars and prints, and keep its IFEval module from the network.

    That module downloads NLTK's sentence data when it is imported, and prints that it did where it could not; the
    items that need them are left out by `harness`. What the hub's client says of its attempts, and tokenizers of long
    prompts, is told by us in the end. Errors still come through.
    """
    import datasets
    import nltk

    with redirect_stdout(io.StringIO()):
        import lm_eval.api.task as task_module

        levels = {name: logging.getLogger(name).level for name in _LOGGERS}
        bar, download = task_module.tqdm, nltk.download
        bars_off = datasets.utils.are_progress_bars_disabled()
        for name in _LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)
        task_module.tqdm = lambda iterable, **_: iterable
        nltk.download = lambda *_, **__: False
        datasets.disable_progress_bars()
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
            task_module.tqdm, nltk.download = bar, download
            if not bars_off:
                datasets.enable_progress_bars()
