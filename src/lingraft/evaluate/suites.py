"""Suites: named lists of tasks, and the catalogue that says of each task which languages and data it has.

`suites/*.yaml` and `catalogue.yaml` are data of the package. What comes out are the entries that a study file could
list one by one; a task is pointed at a local copy where the data folder has one, else it takes the hub's data set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from lingraft.config.schema import Evaluation, EvaluationTask, Section, Text
from lingraft.data.rows import open_rows
from lingraft.errors import ConfigError, did_you_mean
from lingraft.evaluate.predictions import Ability
from lingraft.evaluate.tasks import (
    WORLDBOOK,
    asked_in,
    covered_languages,
    entries,
    in_study_languages,
    is_worldbook,
    label_of,
    repeated_tasks,
    wanted_languages,
    worldbook_language,
)
from lingraft.text.language_tags import ENGLISH, canonical_tag, is_english, nearest_language

PREFIX = "suite:"
_HERE = Path(__file__).resolve().parent


class CatalogueTask(Section):
    """A task of the catalogue. `{language}` and `{code}` in its texts are filled in for each language."""

    meaning: Text
    """One line for people."""
    task: Text
    """A task of lingraft's own, or the harness's."""
    hub: Text | None = None
    """Data set on the hub; null: the task brings its data along."""
    languages: dict[str, Text] = Field(min_length=1)
    """BCP-47 tag -> what the task's name has for it."""
    copies: tuple[Text, ...] = ()
    """Local copies inside the data folder, the first one that exists is used."""
    recognised: Text | None = None
    """Jinja expression over a row: whether it has one of the forms that a copy may have; null: they do not say."""
    metric: Text | None = None
    """See EvaluationTask."""
    filter: Text | None = None
    """See EvaluationTask."""
    cluster: Text | None = None
    """See EvaluationTask."""
    rows: Text | None = None
    """See EvaluationTask; for local copies."""
    lacks: Text | None = None
    """A field of the hub's data set; `fields` is for local copies whose rows lack it."""
    fields: dict[str, Text] = Field(default_factory=dict)
    """See EvaluationTask; for local copies."""


class Suite(Section):
    """A list of tasks of the catalogue, and worldbook."""

    meaning: Text
    """One line for people."""
    task_ability: tuple[EvaluationTask, ...]
    """What English is tested by."""
    language_ability: tuple[EvaluationTask, ...]
    """What the other languages are tested by."""


@cache
def catalogue() -> dict[str, CatalogueTask]:
    """Return every task that suites can name."""
    content = _read(_HERE / "catalogue.yaml")
    return {name: CatalogueTask.model_validate(entry) for name, entry in content.items()}


@cache
def suites() -> dict[str, Suite]:
    """Return every suite by its name, sorted."""
    return {
        path.stem: Suite.model_validate(_read(path)) for path in sorted((_HERE / "suites").glob("*.yaml"))
    }


def _read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def suite(name: str) -> Suite:
    """Return a suite.

    Raises:
        ConfigError: There is none of that name.
    """
    if name not in suites():
        raise ConfigError(f"{name!r} is not a suite. {did_you_mean(name, suites())}")
    return suites()[name]


def resolve_suites(evaluation: Evaluation, base_folder: Path, *, languages: Sequence[str]) -> Evaluation:
    """Return an evaluation with the tasks of its suites in their place, and their local copies in that of a folder.

    What a suite lacks in a language is left out, where another task covers it.

    Args:
        evaluation: As the study file has it.
        base_folder: What its data folder is relative to.
        languages: BCP-47 tags of the languages besides English that are trained.

    Raises:
        ConfigError: There is no such suite or data folder, or a suite has nothing in a language that no other task
            covers.
    """
    evaluation = in_study_languages(evaluation, languages)
    lacking: dict[str, str] = {}
    found: dict[Ability, list[EvaluationTask]] = {"task_ability": [], "language_ability": []}
    for ability, entry in entries(evaluation):
        if not entry.task.startswith(PREFIX):
            found[ability].append(entry)
            continue
        every = wanted_languages(ability, evaluation, languages)
        wanted = every if entry.language is None else (entry.language,)
        own = suite_tasks(entry, ability, wanted, evaluation.data_dir, base_folder)
        found[ability] += own
        names = ", ".join(one.task for one in listed_tasks(entry, ability))
        for tag in set(wanted) - {task.language for task in own}:
            lacking[tag] = f"{entry.task} has no task in {tag}: {names} lack it; name others."
    resolved: dict[str, Any] = {ability: tuple(tasks) for ability, tasks in found.items()}
    result = evaluation.model_copy(update=resolved | {"data_dir": None})
    covered = covered_languages(result, languages)
    problems = [problem for tag, problem in sorted(lacking.items()) if tag not in covered]
    if problems:
        raise ConfigError("\n".join(problems))
    return result


def language_notes(written: Evaluation, resolved: Evaluation, languages: Sequence[str]) -> list[str]:
    """Return what to say of languages for which a task's nearest one stands, each once.

    Args:
        written: As the study file has it.
        resolved: The same, from `resolve_suites`.
        languages: BCP-47 tags of the languages besides English that are trained.
    """
    named = in_study_languages(written, languages).language_ability
    notes = {
        f"{label_of(before)} in {before.language} stands for {after.language}.": None
        for before, after in zip(written.language_ability, named, strict=True)
        if before.language != after.language
    }
    wanted = wanted_languages("language_ability", resolved, languages)
    for entry in resolved.language_ability:
        for name, language in asked_in(entry, wanted):
            own = _own_language(entry, language)
            if own is not None and own != language:
                notes[f"{name.partition(':')[0]}'s {own} stands for {language}."] = None
    return list(notes)


def _own_language(entry: EvaluationTask, language: str) -> str | None:
    """Return what a task itself has a language under, where it is known which ones it has."""
    if is_worldbook(entry):
        return worldbook_language(language)
    known = catalogue().get(label_of(entry))
    if known is None or (entry.data is not None and Path(entry.data).stem == language):
        return None
    return nearest_language(language, tuple(known.languages))


def suite_tasks(
    entry: EvaluationTask, ability: Ability, languages: Sequence[str], data_dir: str | None, base_folder: Path
) -> list[EvaluationTask]:
    """Return what a suite has for an ability, in each of the languages that its tasks have.

    Args:
        entry: `suite:NAME`; its limit, sample and longest answer go before the suite's, and what it is to be without
            is left out.
        ability: Which list of the suite.
        languages: BCP-47 tags.
        data_dir: Folder of local copies, as it was written; None: none.
        base_folder: What `data_dir` is relative to.

    Raises:
        ConfigError: There is no such suite or data folder, or not the task that it is to be without.
    """
    if data_dir is not None and not (base_folder / data_dir).is_dir():
        raise ConfigError(f"data_dir: there is no folder {data_dir}; it holds local copies of data sets.")
    own = {
        key: value
        for key in ("limit", "sample", "max_new_tokens")
        if (value := getattr(entry, key)) is not None
    }
    return [
        task
        for one in listed_tasks(entry, ability)
        for task in expanded(one.model_copy(update=own), languages, data_dir, base_folder)
    ]


def listed_tasks(entry: EvaluationTask, ability: Ability) -> list[EvaluationTask]:
    """Return what the suite of an entry lists for an ability, but for what it is to be without.

    Raises:
        ConfigError: There is no such suite, or it has not what it is to be without.
    """
    chosen = suite(entry.task.removeprefix(PREFIX))
    listed = chosen.task_ability if ability == "task_ability" else chosen.language_ability
    names = [one.task for one in listed]
    for name in entry.without:
        if name not in names:
            raise ConfigError(
                f"{entry.task}: without {name!r}, which it has not. {did_you_mean(name, names)}"
            )
    return [one for one in listed if one.task not in entry.without]


def expanded(
    entry: EvaluationTask, languages: Sequence[str], data_dir: str | None, base_folder: Path
) -> Iterator[EvaluationTask]:
    """Yield an entry of a suite once for every language that it has, pointed at its local copy where there is one."""
    for language in languages:
        if is_worldbook(entry):
            if worldbook_language(language) is not None:
                yield entry.model_copy(update={"language": language})
        elif code_of(entry.task, language) is not None:
            yield _placed(entry, language, data_dir, base_folder)


def code_of(name: str, language: str) -> str | None:
    """Return what a task of the catalogue calls a language, or its nearest one; None: it has neither."""
    languages = catalogue()[name].languages
    own = nearest_language(language, tuple(languages))
    return None if own is None else languages[own]


def _placed(entry: EvaluationTask, language: str, data_dir: str | None, base_folder: Path) -> EvaluationTask:
    known = catalogue()[entry.task]
    copies = copies_of(entry.task, language, data_dir)
    data = next((path for path in copies if (base_folder / path).is_file()), None)
    code = str(code_of(entry.task, language))
    return entry.model_copy(
        update={
            "task": _filled(known.task, language, code),
            "name": entry.task,
            "language": language,
            "data": data,
            "fields": known.fields if data and _lacks(base_folder / data, known.lacks) else {},
            "rows": _filled(known.rows, language, code) if data and known.rows else None,
            "cluster": known.cluster,
            "metric": known.metric,
            "filter": known.filter,
        }
    )


def copies_of(name: str, language: str, data_dir: str | None) -> list[str]:
    """Return where local copies of a task's data are looked for, in this order."""
    if data_dir is None:
        return []
    own = nearest_language(language, tuple(catalogue()[name].languages))
    tags = dict.fromkeys((language, language.partition("-")[0], *([] if own is None else [own])))
    patterns = catalogue()[name].copies
    return [str(Path(data_dir) / _filled(pattern, tag, tag)) for pattern in patterns for tag in tags]


def _filled(text: str, language: str, code: str) -> str:
    """Fill in the names; not by `format`, because Jinja's own braces may stand beside them."""
    return text.replace("{language}", language).replace("{code}", code)


def _lacks(path: Path, field: str | None) -> bool:
    if field is None:
        return True
    first = next(iter(open_rows(path)), None)
    return first is None or field not in first.value


@dataclass(frozen=True)
class Chosen:
    """What a command evaluates.

    Attributes:
        evaluation: The tasks; English ones count as task ability.
        lacking: `TASK/LANGUAGE` that was asked for where the task has no such language.
    """

    evaluation: Evaluation
    lacking: tuple[str, ...]


def choose_tasks(
    name: str, only: Sequence[str], *, languages: Sequence[str], data_dir: str | None, limit: int | None
) -> Chosen:
    """Return the tasks of a suite, or those that are named, for English and other languages.

    Args:
        name: The suite.
        only: `[TAG=]TASK`: tasks of the suite or the catalogue, harness tasks or YAML files; empty: all of the suite.
        languages: As people write them; English of any region is `en`. What the suite has for other languages is also
            run in English where it is among them.
        data_dir: Folder of local copies; None: none.
        limit: Items of each task; None: the suite's.

    Raises:
        ConfigError: There is no such suite or data folder, or a task is named twice in a language.
    """
    if data_dir is not None and not Path(data_dir).is_dir():
        raise ConfigError(f"--data-dir {data_dir}: there is no such folder.")
    languages = list(dict.fromkeys(_tag(written) for written in languages))
    chosen = suite(name)
    named = [_split(one) for one in only] or [("", one) for one in tasks_in(chosen)]
    found: dict[Ability, list[EvaluationTask]] = {"task_ability": [], "language_ability": []}
    lacking = []
    for tag, task in named:
        for language in (tag,) if tag else _languages(chosen, task, languages):
            ability: Ability = "task_ability" if language == ENGLISH else "language_ability"
            entry = _entry(chosen, task, ability)
            entry = entry if limit is None else entry.model_copy(update={"limit": limit})
            tasks = _in_language(entry, language, data_dir)
            found[ability] += tasks
            if not tasks:
                lacking.append(f"{task}/{language}")
    evaluation = Evaluation(
        task_ability=tuple(found["task_ability"]), language_ability=tuple(found["language_ability"])
    )
    repeated = repeated_tasks(evaluation, [tag for tag in languages if tag != ENGLISH])
    if repeated:
        raise ConfigError("\n".join(f"--task: {problem}" for problem in repeated))
    return Chosen(evaluation, tuple(lacking))


def _split(given: str) -> tuple[str, str]:
    tag, separator, task = given.partition("=")
    return (_tag(tag), task) if separator else ("", given)


def _tag(written: str) -> str:
    tag = canonical_tag(written) or written
    return ENGLISH if is_english(tag) else tag


def tasks_in(chosen: Suite) -> list[str]:
    """Return the names of a suite's tasks, English ones first, each once."""
    return list(dict.fromkeys(one.task for one in (*chosen.task_ability, *chosen.language_ability)))


def _languages(chosen: Suite, task: str, languages: Sequence[str]) -> list[str]:
    """Return the languages in which a task is asked for: those of the suite's lists that it stands in."""
    in_english = any(one.task == task for one in chosen.task_ability)
    in_others = any(one.task == task for one in chosen.language_ability)
    is_elsewhere = not in_english and not in_others
    others = [tag for tag in languages if tag != ENGLISH]
    has_languages = task in catalogue() or task.partition(":")[0] == WORLDBOOK
    return [
        *([ENGLISH] if in_english or is_elsewhere or ENGLISH in languages else []),
        *(others if in_others or (is_elsewhere and has_languages) else []),
    ]


def _entry(chosen: Suite, task: str, ability: Ability) -> EvaluationTask:
    """Return how the suite lists a task, first for this ability; one that it does not list, as it is."""
    listed = {one.task: one for one in (*chosen.task_ability, *chosen.language_ability)}
    own = {one.task: one for one in getattr(chosen, ability)}
    return own.get(task) or listed.get(task) or EvaluationTask(task=task)


def _in_language(entry: EvaluationTask, language: str, data_dir: str | None) -> list[EvaluationTask]:
    if entry.task in catalogue() or is_worldbook(entry):
        return list(expanded(entry, (language,), data_dir, Path()))
    return [entry.model_copy(update={"language": language})]


def where_data_is_sought(name: str, language: str, data_dir: str | None) -> str:
    """Return in words where the data of a task are looked for: local copies, then the hub."""
    known = catalogue().get(name)
    if known is None or known.hub is None:
        return "it brings its data along" if known is not None else "its data set on the hub"
    copies = copies_of(name, language, data_dir)
    if not copies:
        return f"{known.hub} on the hub; no --data-dir was given ({known.copies[0]} in it)"
    return f"{' or '.join(copies)}, or {known.hub} on the hub"
