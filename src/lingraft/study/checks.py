"""All that can be known to be wrong with a study before its first data or model is read: the names that it uses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from lingraft.config import load
from lingraft.config.checks import choices_of
from lingraft.config.schema import PathStep, StrategyChoice, Study
from lingraft.errors import ConfigError, LingraftError, did_you_mean
from lingraft.evaluate.checks import judge_problem, name_problem
from lingraft.evaluate.predictions import Ability
from lingraft.evaluate.selection import listed_tasks
from lingraft.evaluate.task_names import SUITE
from lingraft.measures import REGISTRY
from lingraft.strategies.composition import Composition, build, swept
from lingraft.study.grid import Cell, cells_of


def load_study(path: Path | str, overrides: Sequence[str] = (), base_folder: Path | None = None) -> Study:
    """Read, override and check a study file, the names that it uses included.

    Args:
        path: The YAML file.
        overrides: `key=value` pairs, such as `training.epochs=2`; see docs/study_file.md.
        base_folder: See `name_problems`.

    Raises:
        ConfigError: The file cannot be read, or anything in it is wrong; one message with every error.
    """
    return load.load_study(path, overrides, lambda study: name_problems(study, base_folder))


def check_names(study: Study, base_folder: Path) -> None:
    """Refuse what `name_problems` finds.

    Raises:
        ConfigError: With every problem.
    """
    problems = name_problems(study, base_folder)
    if problems:
        raise ConfigError("\n".join(problems))


def name_problems(study: Study, base_folder: Path | None) -> list[str]:
    """Return every unknown strategy, option, measure, task, suite and tracker, and the needs that are not met.

    Nothing is read but local files that tasks are named by. Each problem is one line, or a few, that begin with the
    place.

    Args:
        study: The study; what `config.checks` refuses may be wrong with it.
        base_folder: What the paths of YAML tasks and data files are relative to; None: tasks are left to `run_study`,
            which knows it.
    """
    problems = [*_strategy_problems(study)]
    measures = []
    for place, name in enumerate(study.measures):
        if name in REGISTRY:
            measures.append(REGISTRY.get(name)())
        else:
            problems.append(f"measures[{place}]: {name!r} is not a measure. {did_you_mean(name, REGISTRY)}")
    for measure in measures:
        problems += measure.check(study)
    if study.prompts and not any(measure.reads_prompts for measure in measures):
        problems.append(
            "prompts: no measure of the study reads them; add drift to `measures`, or remove them."
        )
    problems += _tracker_problems(study)
    if base_folder is None:
        return problems
    asked = study.evaluate
    abilities: tuple[Ability, ...] = ("task_ability", "language_ability")
    for ability, place, entry in (
        (one, place, entry) for one in abilities for place, entry in enumerate(getattr(asked, one))
    ):
        problem = name_problem(entry, base_folder)
        listed = [entry]
        if problem is None and entry.task.startswith(SUITE):
            try:
                listed = listed_tasks(entry, ability)
            except ConfigError as error:
                problem = str(error).removeprefix(f"{entry.task}: ")
        problem = problem or next(filter(None, (judge_problem(one, asked) for one in listed)), None)
        if problem is not None:
            problems.append(f"evaluate.{ability}[{place}]: {entry.task}: {problem}")
    folder = asked.data_dir
    if folder is not None and not (base_folder / folder).is_dir():
        problems.append(
            f"evaluate.data_dir: there is no folder {folder}; it holds local copies of data sets."
        )
    return problems


def place_of(step: PathStep) -> str:
    """Return how messages name a step of a cell."""
    return f"phase {step.phase!r}, data {step.data!r}, strategy {step.strategy.label!r}"


def _strategy_problems(study: Study) -> Iterator[str]:
    for index, phase in enumerate(() if study.paths else study.phases):
        for name, data in phase.data.items():
            choices = (*phase.strategies, *data.strategies)
            labels = Counter(one.label for choice in choices for one in swept(choice))
            for label, count in labels.items():
                if count > 1:
                    place = f"phases[{index}] ({phase.name}).data.{name}"
                    yield f"{place}: {count} strategies are named {label!r}; give them a `name:`."
    problems: dict[str, None] = {}
    for cell in cells_of(study) if all(study.paths) else ():
        for index, step in enumerate(cell.steps):
            try:
                composition = build(step.strategy)
            except LingraftError as error:
                problems[f"{place_of(step)}: {error}"] = None
                continue
            for problem in missing_of(study, cell, index, composition):
                problems[f"{place_of(step)}: {problem}"] = None
    yield from problems


def _choices(study: Study) -> Iterator[tuple[str, StrategyChoice]]:
    """Yield every choice of strategies, with its place in the study file."""
    for place, phase in enumerate(study.phases):
        for where, choice in choices_of(phase):
            yield f"phases[{place}] ({phase.name}).{where}", choice
    for place, path in enumerate(study.paths):
        for step in path:
            yield f"paths[{place}], phase {step.phase!r}", step.strategy


def missing_of(study: Study, cell: Cell, index: int, composition: Composition) -> list[str]:
    """Return what the strategies of a cell's `index`-th phase need and do not have."""
    step = cell.steps[index]
    phase = next((phase for phase in study.phases if phase.name == step.phase), None)
    if phase is None or step.data not in phase.data:
        return []
    has_phase_one = study.phases[0].checkpoint is not None or index > 0
    known_phase_one = study.phases[0].checkpoint is None and index > 0
    is_missing = {
        "base": study.model is None or not has_phase_one,
        "previous": not has_phase_one,
        "previous_data": not known_phase_one,
        "english": phase.data[step.data].english is None,
    }
    advice = {
        "base": "needs the base model and a phase before this one: give the study a `model`",
        "previous": "needs a phase before this one",
        "previous_data": "needs the data of a trained first phase, which this cell does not have",
        "english": "needs the set's English parallel: give the data set `english: SOURCE`, or replay what else there "
        "is (english_replay: `from: phase_one`; generative_replay: `prompts: phase_one` or `self`)",
    }
    return [f"{advice[need]}." for need in sorted(composition.needs) if is_missing[need]]


def _tracker_problems(study: Study) -> Iterator[str]:
    named = [("training", study.training.report_to)]
    for place, phase in enumerate(study.phases):
        named.append((f"phases[{place}] ({phase.name}).training", phase.training.report_to or ()))
    for where, choice in _choices(study):
        for part in choice.parts:
            named.append((f"{where}, strategy {part.kind!r}, training", part.training.report_to or ()))
    if not any(trackers for _, trackers in named):
        return  # the list of trackers takes seconds to import
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    for where, trackers in named:
        for tracker in trackers:
            if tracker not in INTEGRATION_TO_CALLBACK:
                hint = did_you_mean(tracker, INTEGRATION_TO_CALLBACK)
                yield f"{where}.report_to: {tracker!r} is not a tracker. {hint}"
