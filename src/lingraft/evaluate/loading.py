"""Load the tasks that an evaluation names: the harness's, lingraft's own, a user's YAML; on hub or local data.

`task_runs` makes of them what `running` runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lingraft.config.schema import Evaluation, EvaluationTask
from lingraft.data.files import SourceFile
from lingraft.data.readers import data_suffix
from lingraft.data.rows import commit_of, open_rows
from lingraft.errors import ConfigError, EvaluationError, LingraftError, did_you_mean, in_one_line
from lingraft.evaluate.expressions import Expression, with_expressions
from lingraft.evaluate.lm_eval_compat import (
    DataFiles,
    TaskConfig,
    filter_names,
    hub_cache_only,
    load_config,
    quiet,
    task_manager,
)
from lingraft.evaluate.selection import entries, worldbook_language
from lingraft.evaluate.task_files import check_task_file, included_files, own_content
from lingraft.evaluate.task_names import OWN_TASKS, harness_names, is_task_file, is_worldbook
from lingraft.evaluate.task_records import DataRevision
from lingraft.records import hash_file
from lingraft.text.language_tags import ENGLISH

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

_JSON = (".json", ".jsonl")  # what the datasets library reads as it is


class NotRunnableError(EvaluationError):
    """What a task needs (its data, a service) is missing here; other tasks can run without it.

    Args:
        message: The error as a whole.
        reason: Why, without what is to be done: what a library or a task of our own said.
        is_hub_out_of_reach: Whether the hub could not be reached, as it will not be for the next task.
    """

    def __init__(self, message: str, reason: str, *, is_hub_out_of_reach: bool) -> None:
        super().__init__(message)
        self.reason = reason
        self.is_hub_out_of_reach = is_hub_out_of_reach


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
    if is_task_file(entry.task):
        paths += _task_files(base_folder / entry.task, base_folder)
    present = [path for path in paths if path.is_file()]
    return {f"{entry.task}[{i}] {path.name}": hash_file(path) for i, path in enumerate(present)}


def data_revision(entry: EvaluationTask, task: ConfigurableTask, base_folder: Path) -> DataRevision:
    """Return which data a task was run on: its local files, or the hub's data set."""
    files = _file_hashes(entry, base_folder)
    if files:
        return DataRevision(files={place.partition(" ")[2]: digest for place, digest in files.items()})
    rows = task.dataset[task.config.test_split or task.config.validation_split]
    if is_worldbook(entry.task):
        return DataRevision(worldbook=task.VERSION, split=task.config.metadata["split"])
    if entry.task in OWN_TASKS:
        metadata = task.config.metadata or {}
        return DataRevision(
            hub=metadata.get("source"), commit=metadata.get("revision"), fingerprint=rows._fingerprint
        )
    return DataRevision(
        hub=task.config.dataset_path,
        config=task.config.dataset_name,
        commit=commit_of(rows.cache_files),
        fingerprint=rows._fingerprint,
    )


def is_local(entry: EvaluationTask, base_folder: Path) -> bool:
    """Return whether a task can be built without the hub; also true of a YAML file that cannot be read."""
    if entry.data is not None or not is_task_file(entry.task):
        return entry.data is not None
    try:
        config = own_content(base_folder / entry.task)
    except ConfigError:  # loading it says which
        return True
    return "task" not in config or bool(_local_data_files(config, base_folder))


@cache
def harness_tasks() -> Any:
    """Return the harness's TaskManager for its own tasks."""
    return task_manager(harness_names())


@cache
def file_manager() -> Any:
    """Return a TaskManager for configurations and files alone, which needs no index."""
    return task_manager({})


def _task_files(path: Path, base_folder: Path) -> list[Path]:
    """Return a YAML task, what it includes, the code beside each, and the local data files that it names."""
    if not path.is_file():
        return []
    try:
        config = own_content(path)
    except ConfigError:  # it is refused where it is loaded
        return [path]
    files = [path, *sorted(path.parent.glob("*.py"))]
    for file in _local_data_files(config, base_folder):
        files += sorted(Path(file).parent.glob(Path(file).name))
    for one in included_files(config, path):
        files += _task_files(one, base_folder)
    return files


def _local_data_files(config: Mapping[str, Any], base_folder: Path) -> list[str]:
    """Return the local files among a task's data files, as full paths; a pattern stays a pattern."""
    named = (config.get("dataset_kwargs") or {}).get("data_files") or []
    full = _resolved(named, base_folder)
    groups = full.values() if isinstance(full, dict) else [full]
    files = [file for group in groups for file in (group if isinstance(group, list) else [group])]
    return [file for file in files if "://" not in file]


def _resolved(named: DataFiles, base_folder: Path) -> Any:
    """Return `data_files` with every local name made a full path."""
    if isinstance(named, dict):
        return {split: _resolved(files, base_folder) for split, files in named.items()}
    if isinstance(named, list):
        return [_resolved(file, base_folder) for file in named]
    return named if "://" in named else str((base_folder / named).resolve())


def load_tasks(
    entry: EvaluationTask,
    base_folder: Path,
    *,
    name: str | None = None,
    language: str | None = None,
    split: str = "report",
    hub_out_of_reach: bool = False,
    trust_remote_code: bool = False,
) -> list[ConfigurableTask]:
    """Return the harness tasks that an entry stands for: one, or the tasks of a group.

    Args:
        entry: The task.
        base_folder: What its paths are relative to.
        name: Which of the families, where the entry is worldbook's.
        language: BCP-47 tag; None: the entry's, else English.
        split: worldbook's.
        hub_out_of_reach: Take from the hub only what is in its cache: without a network, its attempts take half a
            minute.
        trust_remote_code: Run the Python code that a YAML task names; else one that names some is refused.

    Raises:
        NotRunnableError: What must come from the hub or another service cannot be had here.
        EvaluationError: The task or its local data cannot be used.
    """
    from lingraft.evaluate.own_task import own_task

    data = None if entry.data is None else base_folder / entry.data
    try:
        with quiet(), hub_cache_only() if hub_out_of_reach else nullcontext():
            if is_worldbook(entry.task) or entry.task in OWN_TASKS:
                drawn = entry.sample is not None  # then the limit is taken of all items, once they are known
                wanted = language or entry.language or ENGLISH
                family = None
                if is_worldbook(entry.task):
                    family = (name or entry.task).partition(":")[2]
                    wanted = worldbook_language(wanted) or wanted
                own = own_task(
                    entry.task.partition(":")[0],
                    wanted,
                    data=data,
                    limit=None if drawn else entry.limit,
                    max_new_tokens=entry.max_new_tokens,
                    family=family,
                    split=split,
                )
                return [own]
            if is_task_file(entry.task):
                check_task_file(base_folder / entry.task, trust_remote_code=trust_remote_code)
                config = load_config(base_folder / entry.task)
                if not isinstance(config.get("task"), str):
                    raise ValueError(
                        "it names no single task (`task: NAME`); name a group's tasks one by one"
                    )
                files = (config.get("dataset_kwargs") or {}).get("data_files")
                if files is not None:
                    config["dataset_kwargs"] = {
                        **(config.get("dataset_kwargs") or {}),
                        "data_files": _resolved(files, base_folder),
                    }
                configs = [config]
            elif data is None:
                return list(harness_tasks().load([entry.task])["tasks"].values())
            else:
                configs = list(_leaves(entry.task))
            if data is not None:
                configs = _over_local_file(configs, entry, data)
            return [task for config in configs for task in file_manager().load([config])["tasks"].values()]
    except Exception as error:  # the hub's, YAML's and the tasks' own errors share no base class
        raise _refusal(entry, error) from error


def _refusal(entry: EvaluationTask, error: Exception) -> EvaluationError:
    is_ours = isinstance(error, LingraftError)
    reason = in_one_line(error) if is_ours else f"{type(error).__name__}: {in_one_line(error)[:300]}"
    is_out_of_reach = isinstance(error, ConnectionError) or isinstance(error.__cause__, ConnectionError)
    has_no_data = is_out_of_reach or isinstance(error, FileNotFoundError)
    is_of_hub = entry.data is None and (not is_task_file(entry.task) or has_no_data)
    if isinstance(error, ConfigError) and is_task_file(entry.task):  # of the file itself
        return EvaluationError(f"the task {entry.task} cannot be loaded: {reason}")
    if isinstance(error, ConfigError) or is_of_hub:
        return NotRunnableError(
            f"the task {entry.task} cannot be loaded: {reason} (where its data set cannot be downloaded, give it "
            "`data:`, a local file).",
            reason,
            is_hub_out_of_reach=is_out_of_reach,
        )
    advice = f" (its data are {entry.data}: do the rows have the fields of the task's own data set?)"
    return EvaluationError(f"the task {entry.task} cannot be loaded: {reason}{advice if entry.data else ''}.")


def _leaves(name: str) -> Iterator[TaskConfig]:
    """Yield the configurations of the tasks of a group or tag, at any depth; of a task, its own."""
    found = harness_names()[name]
    config: TaskConfig = {} if found.path is None else load_config(Path(found.path))
    members = config.get("task", found.tags)
    if isinstance(members, str):
        yield config
        return
    for member in members:
        if not isinstance(member, str):
            raise ValueError("it is a group with tasks written out inside; name its tasks one by one")
        yield from _leaves(member)


def _over_local_file(configs: Sequence[TaskConfig], entry: EvaluationTask, path: Path) -> list[TaskConfig]:
    """Return tasks' configurations with a local file in the place of their data set; those without rows left out.

    Few-shot examples, where a task has them, come from the same file: the harness then leaves out the item that is
    asked.
    """
    opened = open_rows(SourceFile(path, path.name))
    if not entry.fields and entry.rows is None and len(configs) == 1 and data_suffix(path) in _JSON:
        (config,) = configs
        for _ in opened.sound(
            EvaluationError
        ):  # that library names no place, and takes the last of two values
            pass
        return [_on_split(config) | {"dataset_kwargs": {"data_files": {_split(config): str(path.resolve())}}}]
    if entry.rows is None and len(configs) > 1:
        raise ValueError(
            f"it is a group of {len(configs)} tasks: `rows` must say which rows belong to which `task`"
        )
    import datasets

    read = (row.value for row in opened.sound(EvaluationError))
    rows = list(with_expressions(read, entry.fields, entry.task))
    found: list[TaskConfig] = []
    for config in configs:
        own = rows
        if entry.rows is not None:
            is_used = Expression(entry.rows, f"{entry.task}: rows")
            own = [row for number, row in enumerate(rows) if is_used(row | {"task": config["task"]}, number)]
        if own:
            items = {_split(config): datasets.Dataset.from_list(own)}
            found.append(_on_split(config) | {"custom_dataset": lambda items=items, **_: items})
    if not found:
        raise ValueError(f"no row of the {len(rows)} is used")
    return found


def _split(config: TaskConfig) -> str:
    return config.get("test_split") or config.get("validation_split") or "test"


def _on_split(config: TaskConfig) -> TaskConfig:
    """Return a configuration of which all items come from one split of json files."""
    return config | {
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": None,
        "test_split": _split(config),
        "validation_split": None,
        "training_split": None,
        "fewshot_split": _split(config),
    }


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
    filters = filter_names(task)
    if entry.filter is None:
        return filters[0]
    if entry.filter not in filters:
        raise EvaluationError(
            f"the task {entry.task} has no filter {entry.filter!r}. {did_you_mean(entry.filter, filters)}"
        )
    return entry.filter
