"""Which tasks an evaluation asks, in which languages: its entries, with suites resolved into the tasks that they list.

What comes out are the entries that a study file could list one by one. A task is pointed at a local copy where the
data folder has one, else it takes the hub's data set.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lingraft.config.schema import Evaluation, EvaluationTask
from lingraft.data.rows import open_rows
from lingraft.data.worldbook import FAMILIES, LANGUAGES
from lingraft.errors import ConfigError, did_you_mean
from lingraft.evaluate.catalogue import catalogue, code_of, copies_of, filled, suite
from lingraft.evaluate.predictions import Ability
from lingraft.evaluate.task_names import SUITE, WORLDBOOK, is_worldbook
from lingraft.text.language_tags import ENGLISH, canonical_tag, is_english, nearest_language

_TAG = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*")


def entries(evaluation: Evaluation) -> Iterator[tuple[Ability, EvaluationTask]]:
    """Yield the entries of an evaluation, each with the ability that it counts for."""
    for entry in evaluation.task_ability:
        yield "task_ability", entry
    for entry in evaluation.language_ability:
        yield "language_ability", entry


def label_of(entry: EvaluationTask) -> str:
    """Return what an entry that is not worldbook's is called in predictions and tables."""
    return entry.name or entry.task


def worldbook_language(language: str) -> str | None:
    """Return worldbook's own tag of a language (pt of pt-BR); None: it has none."""
    return nearest_language(language, LANGUAGES)


def wanted_languages(ability: Ability, evaluation: Evaluation, languages: Sequence[str]) -> tuple[str, ...]:
    """Return the languages in which a list of tasks is asked for, where an entry names none.

    Args:
        ability: Which list; task ability is English.
        evaluation: Its `languages` are evaluated besides those trained.
        languages: BCP-47 tags of the languages besides English that are trained.
    """
    if ability == "task_ability":
        return (ENGLISH,)
    return tuple(dict.fromkeys((*languages, *evaluation.languages)))


def ability_of(ability: Ability, language: str, languages: Sequence[str]) -> Ability:
    """Return what a task of one of the lists counts towards: a language that is not trained is a further one."""
    return "further_languages" if ability != "task_ability" and language not in languages else ability


def asked_in(entry: EvaluationTask, languages: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the tasks and languages that an entry stands for; each may count once only."""
    if not is_worldbook(entry.task):
        yield label_of(entry), entry.language or ENGLISH
        return
    family = entry.task.partition(":")[2]
    for name in (family,) if family else FAMILIES:
        for language in (entry.language,) if entry.language else languages:
            if worldbook_language(language) is not None:
                yield f"{WORLDBOOK}:{name}", language


def covered_languages(evaluation: Evaluation, languages: Sequence[str]) -> set[str]:
    """Return the languages in which an evaluation has a task under language ability; its suites are resolved."""
    wanted = wanted_languages("language_ability", evaluation, languages)
    return {tag for entry in evaluation.language_ability for _, tag in asked_in(entry, wanted)}


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


def in_study_languages(evaluation: Evaluation, languages: Sequence[str]) -> Evaluation:
    """Return an evaluation whose entries name their languages as the study does: a task in pt covers pt-BR.

    Args:
        evaluation: As the study file has it.
        languages: BCP-47 tags of the languages besides English that are trained.
    """
    wanted = wanted_languages("language_ability", evaluation, languages)
    named = []
    for entry in evaluation.language_ability:
        own = entry.language
        if own is not None and own not in wanted:
            own = next((tag for tag in wanted if nearest_language(tag, (own,))), own)
        named.append(entry.model_copy(update={"language": own}))
    return evaluation.model_copy(update={"language_ability": tuple(named)})


def resolve_suites(
    evaluation: Evaluation, base_folder: Path, *, languages: Sequence[str], without_tasks: bool = False
) -> Evaluation:
    """Return an evaluation with the tasks of its suites in their place, and their local copies in that of a folder.

    What a suite does not have in a language is left out, where another task covers it.

    Args:
        evaluation: As the study file has it.
        base_folder: What its data folder is relative to.
        languages: BCP-47 tags of the languages besides English that are trained.
        without_tasks: Leave it out also where none does, in these languages.

    Raises:
        ConfigError: There is no such suite or data folder, or a suite has nothing in a language that no other task
            covers.
    """
    evaluation = in_study_languages(evaluation, languages)
    folder = evaluation.data_dir
    missing: dict[str, str] = {}
    found: dict[Ability, list[EvaluationTask]] = {"task_ability": [], "language_ability": []}
    for ability, entry in entries(evaluation):
        if not entry.task.startswith(SUITE):
            found[ability].append(entry)
            continue
        if folder is not None and not (base_folder / folder).is_dir():
            raise ConfigError(f"data_dir: there is no folder {folder}; it holds local copies of data sets.")
        every = wanted_languages(ability, evaluation, languages)
        wanted = every if entry.language is None else (entry.language,)
        options = {key: getattr(entry, key) for key in ("limit", "sample", "max_new_tokens")}
        given = {key: value for key, value in options.items() if value is not None}  # goes before the suite's
        listed = listed_tasks(entry, ability)
        own = [
            task
            for one in listed
            for task in expanded(one.model_copy(update=given), wanted, folder, base_folder)
        ]
        found[ability] += own
        names = ", ".join(one.task for one in listed)
        for tag in set(wanted) - {task.language for task in own}:
            missing[tag] = f"{entry.task} has no task in {tag} (only {names}); name others."
    result = evaluation.model_copy(
        update={
            "task_ability": tuple(found["task_ability"]),
            "language_ability": tuple(found["language_ability"]),
            "data_dir": None,
        }
    )
    covered = covered_languages(result, languages)
    optional = covered | (set(languages) if without_tasks else set())
    problems = [problem for tag, problem in sorted(missing.items()) if tag not in optional]
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
            known = catalogue().get(label_of(entry))
            if is_worldbook(entry.task):
                own = worldbook_language(language)
            elif known is None or (entry.data is not None and Path(entry.data).stem == language):
                own = None
            else:
                own = nearest_language(language, tuple(known.languages))
            if own is not None and own != language:
                notes[f"{name.partition(':')[0]}'s {own} stands for {language}."] = None
    return list(notes)


def listed_tasks(entry: EvaluationTask, ability: Ability) -> list[EvaluationTask]:
    """Return what the suite of an entry lists for an ability, but for what it is to be without.

    Raises:
        ConfigError: There is no such suite, or it has not what it is to be without.
    """
    chosen = suite(entry.task.removeprefix(SUITE))
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
        if is_worldbook(entry.task):
            if worldbook_language(language) is not None:
                yield entry.model_copy(update={"language": language})
            continue
        code = code_of(entry.task, language)
        if code is None:
            continue
        known = catalogue()[entry.task]
        copies = copies_of(entry.task, language, data_dir)
        data = next((path for path in copies if (base_folder / path).is_file()), None)
        has_own_fields = data is not None and (
            known.missing is None
            or not any(known.missing in row.value for row in open_rows(base_folder / data, first=1))
        )
        yield entry.model_copy(
            update={
                "task": filled(known.task, language, code),
                "name": entry.task,
                "language": language,
                "data": data,
                "fields": known.fields if has_own_fields else {},
                "rows": filled(known.rows, language, code) if data and known.rows else None,
                "cluster": known.cluster,
                "metric": known.metric,
                "filter": known.filter,
            }
        )


@dataclass(frozen=True)
class Chosen:
    """What a command evaluates.

    Attributes:
        evaluation: The tasks; English ones count as task ability.
        languages: BCP-47 tags that were asked for.
        missing: `TASK/LANGUAGE` that was asked for where the task has no such language.
    """

    evaluation: Evaluation
    languages: tuple[str, ...]
    missing: tuple[str, ...]


def choose_tasks(
    name: str,
    only: Sequence[str],
    *,
    languages: Sequence[str],
    data_dir: str | None,
    limit: int | None,
    max_new_tokens: int | None = None,
) -> Chosen:
    """Return the tasks of a suite, or those that are named, for English and other languages.

    Args:
        name: The suite.
        only: `[TAG=]TASK`: tasks of the suite or the catalogue, harness tasks or YAML files; empty: all of the suite.
        languages: As people write them; English of any region is `en`. What the suite has for other languages is also
            run in English where it is among them.
        data_dir: Folder of local copies; None: none.
        limit: Items of each task; None: the suite's.
        max_new_tokens: Longest answer of each task that generates; None: each task's own.

    Raises:
        ConfigError: There is no such suite or data folder, a language is no tag or has no task at all, or a task is
            named twice in one.
    """
    if data_dir is not None and not Path(data_dir).is_dir():
        raise ConfigError(f"--data-dir {data_dir}: there is no such folder.")
    languages = list(dict.fromkeys(_tag(written) for written in languages))
    wrong = [tag for tag in languages if not _TAG.fullmatch(tag)]
    if wrong:
        raise ConfigError(f"--languages {wrong[0]!r}: is not a BCP-47 tag such as de or zh-Hant.")
    others = [tag for tag in languages if tag != ENGLISH]
    given = {"limit": limit, "max_new_tokens": max_new_tokens}
    changes = {key: value for key, value in given.items() if value is not None}
    chosen = suite(name)
    english = {one.task: one for one in chosen.task_ability}
    other = {one.task: one for one in chosen.language_ability}
    found: dict[Ability, list[EvaluationTask]] = {"task_ability": [], "language_ability": []}
    missing = []
    unserved = dict.fromkeys(others)  # languages that no task has
    for written in only or chosen.names:
        before, separator, after = written.partition("=")
        task = after if separator else written
        is_elsewhere = task not in english and task not in other
        is_known = task in catalogue() or is_worldbook(task)
        if separator:
            wanted = [_tag(before)]
        else:
            in_english = task in english or is_elsewhere or ENGLISH in languages
            in_others = task in other or (is_elsewhere and is_known)
            wanted = [*([ENGLISH] if in_english else []), *(others if in_others else [])]
        for language in wanted:
            ability: Ability = "task_ability" if language == ENGLISH else "language_ability"
            listed = english | other if ability == "language_ability" else other | english
            entry = listed.get(task) or EvaluationTask(task=task)
            entry = entry.model_copy(update=changes)
            if is_known:
                tasks = list(expanded(entry, (language,), data_dir, Path()))
            else:
                tasks = [entry.model_copy(update={"language": language})]
            found[ability] += tasks
            if tasks:
                unserved.pop(language, None)
            else:
                missing.append(f"{task}/{language}")
    evaluation = Evaluation(
        task_ability=tuple(found["task_ability"]), language_ability=tuple(found["language_ability"])
    )
    repeated = repeated_tasks(evaluation, others)
    if repeated:
        raise ConfigError("\n".join(f"--task: {problem}" for problem in repeated))
    if unserved:
        names = ", ".join(only or chosen.names)
        raise ConfigError(
            "\n".join(
                f"--languages {tag}: no task is in {tag} (of {names}); take it out, or name one by --task {tag}=NAME."
                for tag in unserved
            )
        )
    return Chosen(evaluation, tuple(languages), tuple(missing))


def _tag(written: str) -> str:
    tag = canonical_tag(written) or written
    return ENGLISH if is_english(tag) else tag
