"""Whether an evaluation can be made at all, checked before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from lingraft.config.schema import Evaluation, EvaluationTask
from lingraft.data.worldbook import LANGUAGES
from lingraft.errors import ConfigError, EvaluationError, LingraftError, did_you_mean
from lingraft.evaluate.expressions import Expression
from lingraft.evaluate.loading import filter_of, is_local, load_tasks, metric_of
from lingraft.evaluate.selection import (
    covered_languages,
    entries,
    label_of,
    repeated_tasks,
    wanted_languages,
    worldbook_language,
)
from lingraft.evaluate.task_files import check_task_file, read_task_file
from lingraft.evaluate.task_names import (
    OWN_TASKS,
    SUITE,
    WORLDBOOK,
    harness_names,
    is_task_file,
    is_worldbook,
    unknown_tasks,
)
from lingraft.judge.client import key_from_environment
from lingraft.judge.win_rate import ALPACA_EVAL, Judge
from lingraft.text.language_tags import ENGLISH


def check_tasks(
    evaluation: Evaluation,
    base_folder: Path,
    *,
    languages: Sequence[str],
    without_tasks: bool = False,
    trust_remote_code: bool = False,
) -> None:
    """Check that every named task can be found, before anything is trained.

    Args:
        evaluation: Its tasks; suites are already resolved (`selection.resolve_suites`).
        base_folder: What the paths of YAML tasks and data files are relative to.
        languages: BCP-47 tags of the study's languages besides English.
        without_tasks: These may be without a task.
        trust_remote_code: Run the Python code that YAML tasks name.

    Raises:
        ConfigError: With every problem: an unknown family, task or language, a language that no task covers, a missing
            file, no judge where one is needed; or the judge's address or key is none.
    """
    problems = []
    if evaluation.judge is not None:
        Judge.of(evaluation.judge)
        key_from_environment()
    for ability, entry in entries(evaluation):
        problem = name_problem(entry, base_folder, trust_remote_code=trust_remote_code)
        # What the hub must give is loaded when it is evaluated: a finished study is not to need the hub again.
        if problem is None and not is_worldbook(entry.task) and is_local(entry, base_folder):
            try:
                for task in load_tasks(entry, base_folder, trust_remote_code=trust_remote_code):
                    metric_of(entry, task)
                    filter_of(entry, task)
            except LingraftError as error:
                problem = str(error).removeprefix(f"the task {entry.task} ")
        problem = problem or judge_problem(entry, evaluation)
        if problem is not None:
            problems.append(f"evaluate.{ability}: {entry.task}: {problem}")
    problems += [f"evaluate.{problem}" for problem in repeated_tasks(evaluation, languages)]
    if not any(problem.startswith("evaluate.language_ability") for problem in problems):
        # Else it may be missing because its task is wrong. Another language's score must not stand for it.
        covered = covered_languages(evaluation, languages)
        has = dict.fromkeys(
            f"{WORLDBOOK} has {', '.join(LANGUAGES)}"
            if is_worldbook(entry.task) and entry.language is None
            else f"{label_of(entry)} is in {entry.language or ENGLISH}"
            for entry in evaluation.language_ability
        )
        problems += [
            f"evaluate.language_ability: no task covers {tag!r} ({'; '.join(has)}); name one with `language: {tag}`."
            for tag in wanted_languages("language_ability", evaluation, languages)
            if tag not in covered and not (without_tasks and tag in languages)
        ]
    if not languages:
        problems.append(
            "evaluate: the study trains no language other than English, so there is no language ability."
        )
    if problems:
        raise ConfigError("\n".join(problems))


def check_names(evaluation: Evaluation, *, trust_remote_code: bool = False) -> None:
    """Check that every task that is not the catalogue's can be found; paths are relative to the working folder.

    Raises:
        ConfigError: With every task that is unknown, or whose file cannot be read or would run code unasked.
    """
    own = [entry for _, entry in entries(evaluation) if entry.name is None]
    problems = [
        f"{entry.task}: {problem}"
        for entry in own
        if (problem := name_problem(entry, Path(), trust_remote_code=trust_remote_code))
    ]
    if problems:
        raise ConfigError("\n".join(problems))


def name_problem(entry: EvaluationTask, base_folder: Path, *, trust_remote_code: bool = False) -> str | None:
    """Return why there is no such task, language, file, metric or filter, None where there is; only YAML is read.

    Args:
        entry: The task.
        base_folder: What its paths are relative to.
        trust_remote_code: Whether a YAML task may name Python code.
    """
    unknown = unknown_tasks([entry.task], base_folder)
    if is_worldbook(entry.task):
        if unknown or entry.language is None or worldbook_language(entry.language) is not None:
            return unknown.get(entry.task)
        return (
            f"worldbook has no {entry.language!r} (it has {', '.join(LANGUAGES)}); name other tasks for it, with "
            "`language:`."
        )
    if entry.data is not None and not (base_folder / entry.data).is_file():
        return f"there is no file {entry.data}."
    if unknown:
        return unknown[entry.task]
    try:
        if is_task_file(entry.task):
            check_task_file(base_folder / entry.task, trust_remote_code=trust_remote_code)
        return _part_problem(entry, base_folder)
    except ConfigError as error:
        return str(error)


def _part_problem(entry: EvaluationTask, base_folder: Path) -> str | None:
    """Return why a task has no such metric or filter, as far as its YAML file says; None: it has, or may have."""
    if (entry.metric is None and entry.filter is None) or entry.task in OWN_TASKS:
        return None
    if is_task_file(entry.task):
        path = base_folder / entry.task
    elif not entry.task.startswith(SUITE) and harness_names()[entry.task].kind == "TASK":
        path = Path(str(harness_names()[entry.task].path))
    else:
        return None  # of a group, it is known when its tasks are loaded
    try:
        content = read_task_file(path)
    except ConfigError:
        if is_task_file(entry.task):
            raise
        return None
    for wanted, kind, listed, key in (
        (entry.metric, "metric", content.get("metric_list"), "metric"),
        (entry.filter, "filter", content.get("filter_list"), "name"),
    ):
        if wanted is None or not isinstance(listed, list):
            continue
        names = [str(one[key]) for one in listed if isinstance(one, dict) and key in one]
        has_code = any("." in name for name in names)  # a function is called by its own name
        if names and not has_code and wanted not in names:
            return f"there is no {kind} {wanted!r}. {did_you_mean(wanted, names)}"
    return None


def expression_problems(entry: EvaluationTask) -> Iterator[tuple[str, str]]:
    """Yield the fields of a task whose expressions are none, each with the reason."""
    written = [("rows", entry.rows), ("cluster", entry.cluster)]
    written += [("fields", one) for one in entry.fields.values()]
    for field, source in written:
        if source is not None:
            try:
                Expression(source, f"{entry.task}: {field}")
            except EvaluationError as error:
                yield field, str(error)


def judge_problem(entry: EvaluationTask, evaluation: Evaluation) -> str | None:
    """Return why a task whose answers a judge scores cannot be had, None where it can."""
    if entry.task != ALPACA_EVAL or evaluation.judge is not None:
        return None
    return (
        "a judge scores its answers: give its `url` and `model` as `judge` (--judge-url and --judge-model), or leave "
        f"it out (`without: [{ALPACA_EVAL}]` beside the name of a suite)."
    )
