"""All that can be known to be wrong with a study before its first data or model is read.

These are the names that it uses, local files and folders that are not there, and extras that are not installed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lingraft.config import load
from lingraft.config.checks import choices_of
from lingraft.config.paths import path_of
from lingraft.config.problems import Location, Problem
from lingraft.config.schema import DataSource, PathStep, PromptSource, Study
from lingraft.data.sources import check_source
from lingraft.errors import ConfigError, LingraftError, did_you_mean
from lingraft.evaluate.checks import expression_problems, judge_problem, name_problem
from lingraft.evaluate.predictions import Ability
from lingraft.evaluate.selection import listed_tasks
from lingraft.evaluate.task_names import SUITE
from lingraft.judge.client import key_from_environment
from lingraft.judge.win_rate import Judge
from lingraft.measures import REGISTRY
from lingraft.models.model_names import model_problem
from lingraft.models.server_engine import check_server
from lingraft.similarity.encoders import check_encoder
from lingraft.strategies.composition import Composition, build, swept
from lingraft.study.grid import Cell, cells_of

# Modules of trackers that are not called like them.
_TRACKER_MODULES = {
    "azure_ml": ("azureml",),
    "flyte": ("flytekit",),
    "tensorboard": ("tensorboard", "tensorboardX"),
}
_DES = "des"


def load_study(
    path: Path | str | Mapping[str, Any] | Study,
    overrides: Sequence[str] = (),
    base_folder: str | Path | None = None,
) -> Study:
    """Read, override and check a study file, the names that it uses included.

    Args:
        path: The YAML file, its content in a dict, or a Study to be checked again.
        overrides: `key=value` pairs, such as `training.epochs=2`; see docs/study_file.md.
        base_folder: See `name_problems`.

    Raises:
        ConfigError: The file cannot be read, or anything in it is wrong; one message with every error.
    """
    if isinstance(path, Study):
        path = path.model_dump(mode="json", exclude_unset=True)
    given: object = path
    if not isinstance(given, (str, Path, Mapping)):
        kind = "None" if path is None else f"a {type(path).__name__}"
        raise ConfigError(f"{kind} is no study: give a YAML file, or its content in a dict.")
    if isinstance(overrides, str) or [one for one in overrides if not isinstance(one, str)]:
        raise ConfigError(
            f"overrides {overrides!r:.80}: give a list of texts, such as ['training.epochs=2']."
        )
    folder = None if base_folder is None else path_of(base_folder, "base_folder")
    return load.load_study(path, overrides, lambda study: name_problems(study, folder))


def check_names(study: Study, base_folder: Path) -> None:
    """Refuse what `name_problems` finds.

    Raises:
        ConfigError: With every problem.
    """
    problems = name_problems(study, base_folder)
    if problems:
        raise ConfigError("\n".join(problem.text for problem in problems))


def name_problems(study: Study, base_folder: Path | None) -> list[Problem]:
    """Return every unknown strategy, option, measure, task, suite and tracker, and the needs that are not met.

    Nothing is read but YAML files that tasks are named by, and no library is imported that takes long.

    Args:
        study: The study; what `config.checks` refuses may be wrong with it.
        base_folder: What the paths of data, prompts and tasks are relative to; None: files and folders are left to
            `run_study`, which knows it.
    """
    problems = [*_strategy_problems(study)]
    measures = []
    for place, name in enumerate(study.measures):
        if name in REGISTRY:
            measure = REGISTRY.get(name)()
            measures.append(measure)
            problems += (Problem(("measures", place), text) for text in measure.check(study))
        else:
            text = f"measures[{place}]: {name!r} is not a measure. {did_you_mean(name, REGISTRY)}"
            problems.append(Problem(("measures", place), text))
    for name, count in Counter(study.measures).items():
        if count > 1:
            problems.append(Problem(("measures",), f"measures: {name!r} stands {count} times; keep one."))
    if study.prompts and not any(measure.reads_prompts for measure in measures):
        text = "prompts: no measure of the study reads them; add drift to `measures`, or remove them."
        problems.append(Problem(("prompts",), text))
    problems += _tracker_problems(study)
    problems += _missing_parts(study)
    if base_folder is not None:
        problems += _missing_files(study, base_folder)
        problems += _task_problems(study, base_folder)
    return problems


def _missing_parts(study: Study) -> Iterator[Problem]:
    """Yield what is not installed, and what cannot be a judge."""
    checks: list[tuple[Location, str, Callable[[], object]]] = []
    backend = study.evaluate.backend
    if not isinstance(backend, str):
        checks.append(
            (("evaluate", "backend"), "evaluate.backend: ", lambda: check_server(backend, of_many=True))
        )
    if _DES in study.measures:
        checks.append((("encoder",), "", lambda: check_encoder(study.encoder)))
    judge = study.evaluate.judge
    if judge is not None:
        checks.append((("evaluate", "judge", "url"), "evaluate.judge.url: ", lambda: Judge.of(judge)))
        checks.append((("evaluate", "judge"), "evaluate.judge: ", key_from_environment))
    for location, place, check in checks:
        try:
            check()
        except LingraftError as error:
            yield Problem(location, f"{place}{error}")


def _missing_files(study: Study, base_folder: Path) -> Iterator[Problem]:
    """Yield the models and data that are no names of any, and local ones that are not there."""
    models: list[tuple[Location, str, str | None]] = [(("model",), "model", study.model)]
    sources: list[tuple[Location, str, DataSource | PromptSource | None]] = []
    used = {(step.phase, step.data) for path in study.paths for step in path}
    for index, phase in enumerate(study.phases):
        where, place = ("phases", index), f"phases[{index}] ({phase.name})"
        models.append(((*where, "checkpoint"), f"{place}.checkpoint", phase.checkpoint))
        if phase.checkpoint is not None:  # else they are refused
            sources.append(((*where, "instructions"), f"{place}.instructions", phase.instructions))
        for name, data in phase.data.items():
            if study.paths and (phase.name, name) not in used:
                continue  # is not read
            own = (*where, "data", name)
            sources.append(((*own, "source"), f"{place}.data.{name}.source", data))
            sources.append(((*own, "english"), f"{place}.data.{name}.english", data.english))
    if any(name in REGISTRY and REGISTRY.get(name).reads_prompts for name in study.measures):
        sources += ((("prompts", index), f"prompts[{index}]", one) for index, one in enumerate(study.prompts))
    for location, place, model in models:
        problem = None if model is None else model_problem(model)
        if problem is not None:
            yield Problem(location, f"{place}: {problem}")
    for location, place, source in sources:
        try:
            if isinstance(source, PromptSource):
                check_source(DataSource(source=source.source), base_folder, with_text=True)
            elif source is not None:
                check_source(source, base_folder)
        except LingraftError as error:
            yield Problem(location, f"{place}: {error}")
        except OSError as error:  # a name that is too long, a folder that cannot be looked into
            yield Problem(location, f"{place}: {error.filename!r:.80}: {error.strerror}.")


def _task_problems(study: Study, base_folder: Path) -> Iterator[Problem]:
    asked = study.evaluate
    abilities: tuple[Ability, ...] = ("task_ability", "language_ability")
    for ability, place, entry in (
        (one, place, entry) for one in abilities for place, entry in enumerate(getattr(asked, one))
    ):
        problem = name_problem(entry, base_folder, trust_remote_code=study.trust_remote_code)
        listed = [entry]
        if problem is None and entry.task.startswith(SUITE):
            try:
                listed = listed_tasks(entry, ability)
            except ConfigError as error:
                problem = str(error).removeprefix(f"{entry.task}: ")
        problem = problem or next(filter(None, (judge_problem(one, asked) for one in listed)), None)
        where = ("evaluate", ability, place)
        if problem is not None:
            yield Problem(where, f"evaluate.{ability}[{place}]: {entry.task}: {problem}")
        for field, text in expression_problems(entry):
            yield Problem((*where, field), f"evaluate.{ability}[{place}]: {text}")
    folder = asked.data_dir
    if folder is not None and not (base_folder / folder).is_dir():
        yield Problem(
            ("evaluate", "data_dir"),
            f"evaluate.data_dir: there is no folder {folder}; it holds local copies of data sets.",
        )


def place_of(step: PathStep) -> str:
    """Return how messages name a step of a cell."""
    return f"phase {step.phase!r}, data {step.data!r}, strategy {step.strategy.label!r}"


def _strategy_problems(study: Study) -> Iterator[Problem]:
    for index, phase in enumerate(() if study.paths else study.phases):
        for name, data in phase.data.items():
            choices = (*phase.strategies, *data.strategies)
            labels = Counter(one.label for choice in choices for one in swept(choice))
            for label, count in labels.items():
                if count > 1:
                    place = f"phases[{index}] ({phase.name}).data.{name}"
                    yield Problem(
                        ("phases", index, *(("data", name) if data.strategies else ()), "strategies"),
                        f"{place}: {count} strategies are named {label!r}; give them a `name:`.",
                    )
    places = {
        (study.phases[index].name, data, one.label): ("phases", index, *choice.location)
        for index, phase in enumerate(study.phases)
        for choice in choices_of(phase)
        for data in (phase.data if choice.data is None else [choice.data])
        for one in swept(choice.strategy)
    }
    for number, path in enumerate(study.paths):
        for at, step in enumerate(path):
            places.setdefault((step.phase, step.data, step.strategy.label), ("paths", number, at, "strategy"))
    problems: dict[Problem, None] = {}
    for cell in cells_of(study) if all(study.paths) else ():
        for index, step in enumerate(cell.steps):
            location = places.get((step.phase, step.data, step.strategy.label), ("phases",))
            try:
                composition = build(step.strategy)
            except LingraftError as error:
                place = place_of(step)
                if location[2:3] == ("strategies",):  # the phase's: one line, however many data sets it has
                    place = f"phase {step.phase!r}, strategy {step.strategy.label!r}"
                problems[Problem(location, f"{place}: {error}")] = None
                continue
            for problem in missing_of(study, cell, index, composition):
                problems[Problem(location, f"{place_of(step)}: {problem}")] = None
    yield from problems


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
    instead = "english_replay: `from: phase_one`; " if known_phase_one else ""
    prompts = "phase_one` or `self" if known_phase_one else "self"
    advice = {
        "base": "needs the base model and a phase before this one: give the study a `model`",
        "previous": "needs a phase before this one",
        "previous_data": "needs the data of a trained first phase, which this cell does not have",
        "english": "needs English rows: give the data set `english: SOURCE` (its parallel, or any other English rows), "
        f"or replay what else there is ({instead}generative_replay: `prompts: {prompts}`)",
    }
    return [f"{advice[need]}." for need in sorted(composition.needs) if is_missing[need]]


def _tracker_problems(study: Study) -> Iterator[Problem]:
    named: list[tuple[Location, str, tuple[str, ...]]] = [
        (("training",), "training", study.training.report_to)
    ]
    for index, phase in enumerate(study.phases):
        where, place = ("phases", index), f"phases[{index}] ({phase.name})"
        named.append(((*where, "training"), f"{place}.training", phase.training.report_to or ()))
        named += (
            (
                (*where, *choice.location),
                f"{place}.{choice.place}, strategy {part.kind!r}, training",
                part.training.report_to or (),
            )
            for choice in choices_of(phase)
            for part in choice.strategy.parts
        )
    named += (
        (
            ("paths", number, at, "strategy"),
            f"paths[{number}], phase {step.phase!r}, strategy {part.kind!r}, training",
            part.training.report_to or (),
        )
        for number, path in enumerate(study.paths)
        for at, step in enumerate(path)
        for part in step.strategy.parts
    )
    for location, place, trackers in named:
        for tracker in trackers:
            known = _trackers()
            modules = _TRACKER_MODULES.get(tracker, (tracker,))
            if tracker not in known:
                hint = f"is not a tracker. {did_you_mean(tracker, known)}"
            elif not any(find_spec(module) for module in modules):
                hint = f"is not installed (pip install {modules[0]})."
            else:
                continue
            yield Problem((*location, "report_to"), f"{place}.report_to: {tracker!r} {hint}")


@cache
def _trackers() -> tuple[str, ...]:
    """Return the trackers that transformers knows, read from its source: to import their list takes seconds."""
    spec = find_spec("transformers")
    assert spec is not None  # a dependency
    assert spec.origin is not None
    file = Path(spec.origin).parent / "integrations" / "integration_utils.py"
    source = file.read_text(encoding="utf-8")
    listed = re.search(r"^INTEGRATION_TO_CALLBACK = \{(.*?)^\}", source, re.MULTILINE | re.DOTALL)
    names = re.findall(r'^ +"(\w+)":', listed[1], re.MULTILINE) if listed is not None else []
    if names:
        return tuple(names)
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    return tuple(INTEGRATION_TO_CALLBACK)
