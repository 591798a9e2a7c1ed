"""Checks of a study that need more than one field, all made before anything is downloaded or trained."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from lingraft.config.problems import Location, Problem
from lingraft.config.schema import TAG_PATTERN, EvaluationTask, Phase, StrategyChoice, Study, Training
from lingraft.errors import did_you_mean
from lingraft.text.language_tags import ENGLISH, is_english


def check_study(study: Study) -> list[Problem]:
    """Return every cross-field problem of `study`; empty: none.

    Names of strategies, measures, tasks and trackers are checked by `study.checks`.
    """
    return [
        *_in_name(study),
        *_in_phases(study),
        *_in_training(study),
        *_in_paths(study),
        *_in_evaluation(study),
        *_in_limits(study),
    ]


_ABILITIES = ("task_ability", "language_ability", "further_languages")


# What Windows keeps for devices, whatever ending follows.
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?|.*\.", re.IGNORECASE)


def _in_name(study: Study) -> Iterator[Problem]:
    if _DEVICES.fullmatch(study.name):
        yield Problem(
            ("name",),
            f"name is {study.name!r}: the run folder is called so, and Windows knows no folder of this name.",
        )


def _in_limits(study: Study) -> Iterator[Problem]:
    """Languages and tasks are looked up by `study.limits`, which knows what is asked."""
    for name in study.limits:
        if is_english(name):
            text = f"limits: {name!r}: English is measured by the task ability; write task_ability."
            yield Problem(("limits", name), text)
        elif name not in _ABILITIES and "/" not in name and not re.match(TAG_PATTERN, name):
            yield Problem(
                ("limits", name),
                f"limits: {name!r} is no ability, language (a tag, such as de) or task with its language "
                f"(worldbook:lookup/de). {did_you_mean(name, _ABILITIES)}",
            )


def _in_phases(study: Study) -> Iterator[Problem]:
    names = [phase.name for phase in study.phases]
    for name, count in Counter(names).items():
        if count > 1:
            last = len(names) - 1 - names[::-1].index(name)
            yield Problem(
                ("phases", last, "name"),
                f"phases: {count} phases are named {name!r}; give each its own name.",
            )
    for seed, count in Counter(study.seeds).items():
        if count > 1:
            yield Problem(("seeds",), f"seeds: {seed} stands {count} times; each seed trains once.")
    for index, phase in enumerate(study.phases):
        place, where = f"phases[{index}] ({phase.name})", ("phases", index)
        if phase.checkpoint is None:
            if not phase.data:
                yield Problem((*where, "data"), f"{place}: has neither data nor a checkpoint; give it data.")
            if phase.instructions is not None:
                yield Problem(
                    (*where, "instructions"),
                    f"{place}.instructions: {phase.instructions.source!r}: only for a phase that is a checkpoint; "
                    "a trained phase's data are known.",
                )
        else:
            if index > 0:
                yield Problem(
                    (*where, "checkpoint"),
                    f"{place}.checkpoint: {phase.checkpoint!r}: only the first phase can be a checkpoint; later ones "
                    "are trained.",
                )
            if phase.data:
                yield Problem(
                    (*where, "checkpoint"),
                    f"{place}: has a checkpoint and data; a checkpoint is not trained, so keep one of them.",
                )
            if phase.strategies:
                yield Problem(
                    (*where, "strategies"),
                    f"{place}.strategies: a checkpoint is not trained, so no strategy applies; remove them.",
                )
            if phase.training.model_dump(exclude_none=True):
                yield Problem(
                    (*where, "training"), f"{place}.training: a checkpoint is not trained; remove it."
                )
        for choice in choices_of(phase):
            at = f"{place}.{choice.place}"
            if sum(part.name is not None for part in choice.strategy.parts) > 1:
                yield Problem(
                    (*where, *choice.location),
                    f"{at}: {choice.strategy.label!r} is named more than once; name one part.",
                )
            if choice.strategy.is_mixed:
                yield from _of_mixed(study, at, (*where, *choice.location), index)
    if study.model is None and study.phases[0].checkpoint is None:
        yield Problem(
            ("model",), "model: is missing; it may only be left out where the first phase is a checkpoint."
        )


def _in_training(study: Study) -> Iterator[Problem]:
    """Options of training are judged as each strategy has them; what all of a phase's have wrong is said once."""
    for index, phase in enumerate(study.phases):
        if phase.checkpoint is not None:
            continue
        of_phase = phase.training.apply_to(study.training)
        wrong = {
            (*choice.location, choice.place, choice.strategy.label): problem
            for choice in choices_of(phase)
            if (problem := trained_with(choice.strategy, of_phase).conflict())
        }
        own = of_phase.conflict()
        if own is not None and len(wrong) == len(list(choices_of(phase))):
            is_own = phase.training.optimizer is not None or phase.training.precision is not None
            place = f"phases[{index}] ({phase.name}).training" if is_own else "training"
            yield Problem(("phases", index, "training") if is_own else ("training",), f"{place}: {own}")
            continue
        for (*location, words, label), problem in wrong.items():
            at = f"phases[{index}] ({phase.name}).{words}: {label!r}"
            yield Problem(("phases", index, *location), f"{at}, training: {problem}")
    for number, path in enumerate(study.paths):
        trained = {phase.name: phase for phase in study.phases if phase.checkpoint is None}
        for at_step, step in enumerate(path):
            if step.phase in trained and any(
                part.training.model_dump(exclude_none=True) for part in step.strategy.parts
            ):
                of_phase = trained[step.phase].training.apply_to(study.training)
                found = trained_with(step.strategy, of_phase).conflict()
                if found is not None:
                    place = (
                        f"paths[{number}], phase {step.phase!r}, strategy {step.strategy.label!r}, training"
                    )
                    yield Problem(("paths", number, at_step, "strategy"), f"{place}: {found}")


def trained_with(strategy: StrategyChoice, training: Training) -> Training:
    """Return a phase's options of training with what the strategies set otherwise."""
    for part in strategy.parts:
        training = part.training.apply_to(training)
    return training


@dataclass(frozen=True)
class Choice:
    """What a phase lists under `strategies`, its own or a data set's.

    Attributes:
        strategy: The choice.
        place: The list, in words that follow the phase's.
        location: The choice, inside of the phase.
        data: The set that lists it; None: the phase does.
    """

    strategy: StrategyChoice
    place: str
    location: Location
    data: str | None = None


def choices_of(phase: Phase) -> Iterator[Choice]:
    """Yield a phase's strategies, each with its place in the phase."""
    for number, choice in enumerate(phase.strategies):
        yield Choice(choice, "strategies", ("strategies", number))
    for name, data in phase.data.items():
        for number, choice in enumerate(data.strategies):
            yield Choice(choice, f"data.{name}.strategies", ("data", name, "strategies", number), name)


def _of_mixed(study: Study, place: str, location: Location, index: int) -> Iterator[Problem]:
    if index != len(study.phases) - 1:
        yield Problem(
            location,
            f"{place}: mixed belongs to the last phase: it trains on the union of all phases' data at once.",
        )
    if study.model is None or study.phases[0].checkpoint is not None:
        yield Problem(
            location,
            f"{place}: mixed needs `model` and Phase 1 data; where Phase 1 is a checkpoint its data are unknown.",
        )


def _in_paths(study: Study) -> Iterator[Problem]:
    trained = [phase for phase in study.phases if phase.checkpoint is None]
    called: list[tuple[object, ...]] = []  # what the paths' cells are called by
    for number, path in enumerate(study.paths):
        place, where = f"paths[{number}]", ("paths", number)
        names = [step.phase for step in path]
        wanted = [phase.name for phase in trained]
        if names != wanted:
            yield Problem(
                where,
                f"{place}: goes through {names}; a path has one step per trained phase, in order: {wanted}.",
            )
        for at, (step, phase) in enumerate(zip(path, trained, strict=False) if names == wanted else ()):
            if step.data not in phase.data:
                hint = did_you_mean(step.data, phase.data)
                yield Problem(
                    (*where, at, "data"),
                    f"{place}: {step.data!r} is not a data set of phase {phase.name!r}. {hint}",
                )
            if step.strategy.is_mixed:
                yield from _of_mixed(study, place, (*where, at, "strategy"), study.phases.index(phase))
        is_mixed = bool(path) and path[-1].strategy.is_mixed  # of such, earlier strategies make no difference
        steps = path[-1:] if is_mixed else path
        own = (tuple(step.data for step in path), *(step.strategy.label for step in steps))
        if own in called and (is_mixed or path in study.paths[:number]):
            yield Problem(where, f"{place}: stands twice (first as paths[{called.index(own)}]); keep one.")
        elif own in called:
            yield Problem(
                where,
                f"{place}: goes by the same names as paths[{called.index(own)}], with other options; "
                "give a strategy of one of them a `name:`.",
            )
        called.append(own)
    for index, phase in enumerate(study.phases if study.paths else ()):
        lists = {choice.place: choice.location[:-1] for choice in choices_of(phase)}
        for words, location in lists.items():
            yield Problem(
                ("phases", index, *location),
                f"phases[{index}] ({phase.name}).{words}: with `paths` each step names its strategy; remove these.",
            )


# What an entry may not say whose tasks bring it along; `suite:` may limit what it has.
_OWN_TO_A_SUITE = ("name", "data", "fields", "rows", "cluster", "metric", "filter")
_OWN_TO_WORLDBOOK = (*_OWN_TO_A_SUITE, "sample")


def _in_evaluation(study: Study) -> Iterator[Problem]:
    abilities = {
        "task_ability": study.evaluate.task_ability,
        "language_ability": study.evaluate.language_ability,
    }
    for ability, tasks in abilities.items():
        where = ("evaluate", ability)
        if not tasks:
            yield Problem(where, f"evaluate.{ability}: is empty; name at least one task.")
        names = [(task.name or task.task, task.language) for task in tasks]
        for name, count in Counter(names).items():
            if count > 1:
                last = len(names) - 1 - names[::-1].index(name)
                yield Problem(
                    (*where, last),
                    f"evaluate.{ability}: the task {name[0]!r} stands {count} times; keep one.",
                )
        for number, task in enumerate(tasks):
            place = f"evaluate.{ability}[{number}] ({task.task})"
            for field, problem in _of_task(task, ability):
                yield Problem((*where, number, field), f"{place}: {problem}")
    for tag, count in Counter(study.evaluate.languages).items():
        if count > 1:
            yield Problem(
                ("evaluate", "languages"), f"evaluate.languages: {tag} stands {count} times; keep one."
            )
        if is_english(tag):
            yield Problem(
                ("evaluate", "languages", study.evaluate.languages.index(tag)),
                f"evaluate.languages: {tag} is English, which task ability measures; remove it.",
            )
    has_suite = any(task.task.startswith("suite:") for tasks in abilities.values() for task in tasks)
    if study.evaluate.data_dir is not None and not has_suite:
        yield Problem(
            ("evaluate", "data_dir"),
            f"evaluate.data_dir: {study.evaluate.data_dir!r}: only the data of suites are looked for there; name a "
            "suite, or give tasks their `data`.",
        )


def _of_task(task: EvaluationTask, ability: str) -> Iterator[tuple[str, str]]:
    """Yield fields of a task with what is wrong with them."""
    kind = task.task.partition(":")[0]
    own = {"worldbook": _OWN_TO_WORLDBOOK, "suite": _OWN_TO_A_SUITE}.get(kind, ())
    for field in own:
        if getattr(task, field) not in (None, {}):
            yield field, f"{field}: {kind} brings its own; remove {field}."
    if not own and ability == "language_ability" and task.language is None:
        yield "language", "which language? Give it `language:`."
    if ability == "language_ability" and task.language is not None and is_english(task.language):
        yield (
            "language",
            f"{task.language} is English, which task ability measures; move the task to task_ability.",
        )
    if own and ability == "task_ability" and task.language not in (None, ENGLISH):
        yield "language", f"task ability is English, not {task.language!r}; remove language."
    for field in ("fields", "rows"):
        if not own and getattr(task, field) and task.data is None:
            yield (
                field,
                f"{field}: says what a local file's rows are; give the file as `data`, or remove {field}.",
            )
    if task.without and kind != "suite":
        yield "without", "without: only a suite has tasks that can be left out; remove without."
    if task.sample is not None and task.limit is None:
        yield (
            "sample",
            f"sample: {task.sample} is the seed by which `limit` items are drawn; give limit, or remove sample.",
        )
