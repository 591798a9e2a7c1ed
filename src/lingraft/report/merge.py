"""One result of several runs, so that tables, notes and figures need not know how many there are.

Every data set is named after its run; what is equal in all runs stands once. Each cell keeps what was found against its
own Phase 1: nothing is computed anew, and no score of one run is paired with one of another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from lingraft.contamination.overlap import TaskOverlap
from lingraft.evaluate.results import Scores
from lingraft.measures import REGISTRY
from lingraft.measures.base import Measured
from lingraft.study.limits import LimitPlan
from lingraft.study.result import (
    CellResult,
    Contamination,
    FailedCell,
    PendingCell,
    PhaseOneResult,
    Precision,
    StudyResult,
)

Value = TypeVar("Value")
Cell = CellResult | FailedCell | PendingCell


@dataclass(frozen=True)
class BaseModel:
    """A base model of one of several runs.

    Attributes:
        run: What the report calls the run; of a base that all runs share empty.
        scores: Its scores.
        predictions: Where its answers are in the run folder.
    """

    run: str
    scores: Scores
    predictions: str


@dataclass(frozen=True, kw_only=True, repr=False)
class MergedResult(StudyResult):
    """The results of several runs as one.

    Attributes:
        bases: The base models, where they are not one and the same in all runs.
    """

    bases: tuple[BaseModel, ...]


def merged(results: Mapping[str, StudyResult]) -> MergedResult:
    """Return the results of several runs, by the names that the report calls them, as one.

    Paths stay as they are: stages are named by their fingerprints, so what two runs name alike is the same. Stages
    that a run's study does not list are left out; each run's own result has them.
    """
    first = next(iter(results.values()))
    is_one_base = len({one.base_predictions for one in results.values()}) == 1 and all(
        one.base == first.base for one in results.values()
    )
    bases = tuple(
        BaseModel(name, one.base, one.base_predictions or "")
        for name, one in results.items()
        if one.base is not None and not is_one_base
    )
    reasons = {f"{name}: {one.base_reason}": None for name, one in results.items() if one.base_reason}
    limits, called = _limits(results)
    level = with_all_measures([cell for one in results.values() for cell in one.cells])
    cells = iter(level)
    renamed: list[Cell] = []
    for name, one in results.items():
        for _ in one.cells:
            cell = next(cells)
            own = replace(cell, data=f"{name}: {cell.data}")
            if isinstance(own, CellResult):
                own = replace(own, limits={called[name, limit]: said for limit, said in own.limits.items()})
            renamed.append(own)
    return MergedResult(
        run=", ".join(one.run for one in results.values()),
        base=first.base if is_one_base else None,
        base_reason="; ".join(reasons) or None,
        base_predictions=first.base_predictions if is_one_base else None,
        bases=bases,
        phase_ones=tuple(_phase_ones(results)),
        cells=tuple(renamed),
        over_seeds=tuple(
            replace(
                mean,
                data=f"{name}: {mean.data}",
                limits={called[name, limit]: said for limit, said in mean.limits.items()},
            )
            for name, one in results.items()
            for mean in one.over_seeds
        ),
        limits=limits,
        precision=Precision(
            training=tuple(sorted({kind for one in results.values() for kind in one.precision.training})),
            evaluation=_said({name: one.precision.evaluation for name, one in results.items()}),
            device=_said({name: one.precision.device for name, one in results.items()}),
        ),
        tokenizer_cost=_by_run({name: one.tokenizer_cost for name, one in results.items()}),
        contamination=_contamination(results),
        language_notes=tuple(_notes({name: one.language_notes for name, one in results.items()})),
        unused=(),
    )


def with_all_measures(cells: Sequence[Cell]) -> list[Cell]:
    """Return cells of which each has every measure that any of them has; what no measure reads any more is left out."""
    names = [
        name
        for name in dict.fromkeys(
            name
            for cell in cells
            if isinstance(cell, CellResult)
            for phase in cell.phases
            for name in phase.measures
        )
        if name in REGISTRY
    ]
    absent = Measured({}, "the run does not take it")
    found: list[Cell] = []
    for cell in cells:
        if isinstance(cell, CellResult) and any(list(phase.measures) != names for phase in cell.phases):
            phases = tuple(
                replace(phase, measures={name: phase.measures.get(name, absent) for name in names})
                for phase in cell.phases
            )
            found.append(replace(cell, phases=phases))
        else:
            found.append(cell)
    return found


def _phase_ones(results: Mapping[str, StudyResult]) -> Iterator[PhaseOneResult]:
    """Yield the Phase 1 models; one that all runs share stands once, under its own name."""
    places = [{one.predictions for one in result.phase_ones} for result in results.values()]
    shared = set.intersection(*places)
    seen = set()
    for name, result in results.items():
        for one in result.phase_ones:
            if one.predictions not in shared:
                yield replace(one, data=name if one.data is None else f"{name}: {one.data}")
            elif one.predictions not in seen:
                seen.add(one.predictions)
                yield one


def _limits(
    results: Mapping[str, StudyResult],
) -> tuple[dict[str, LimitPlan], dict[tuple[str, str], str]]:
    """Return the limits of all runs, and by run and name what each is called; those that differ are named by run."""
    plans = [one.limits for one in results.values()]
    names = dict.fromkeys(name for own in plans for name in own)
    found: dict[str, LimitPlan] = {}
    called: dict[tuple[str, str], str] = {}
    for limit in names:
        known = {own[limit].limit for own in plans if limit in own}
        for run, result in results.items():
            if limit not in result.limits:
                continue
            title = limit if len(known) == 1 else f"{run}: {limit}"
            called[run, limit] = title
            found.setdefault(title, result.limits[limit])
    # A cell read from an older file may have limits that its run does not list.
    for run, result in results.items():
        for cell in result.done:
            called |= {(run, limit): limit for limit in cell.limits if (run, limit) not in called}
    return found, called


def _contamination(results: Mapping[str, StudyResult]) -> Contamination | None:
    """Return what of the tasks stands in the rows of each run; None: no run asks."""
    known = {name: one.contamination for name, one in results.items() if one.contamination is not None}
    if not known:
        return None
    tasks: dict[str, TaskOverlap] = {}
    for name, own in known.items():
        tasks |= {f"{name}: {task}": overlap for task, overlap in own.tasks.items()}
    first = next(iter(known.values()))
    return Contamination(
        words=first.words,
        characters=first.characters,
        tasks=tasks,
        unread=tuple(_notes({name: own.unread for name, own in known.items()})),
    )


def _by_run(values: Mapping[str, Mapping[str, Value]]) -> dict[str, Value]:
    """Return all entries; one that is equal in all runs once, under its own name."""
    first = next(iter(values.values()))
    shared = {
        name for name, value in first.items() if all(other.get(name) == value for other in values.values())
    }
    found = {name: first[name] for name in first if name in shared}
    for run, own in values.items():
        found |= {f"{run}: {name}": value for name, value in own.items() if name not in shared}
    return found


def _notes(values: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield each sentence once; one that not all runs say after the names of those that do."""
    for sentence in dict.fromkeys(one for own in values.values() for one in own):
        runs = [run for run, own in values.items() if sentence in own]
        yield sentence if len(runs) == len(values) else f"{', '.join(runs)}: {sentence}"


def _said(values: Mapping[str, str]) -> str:
    """Return a word; where runs say different ones, each with its runs."""
    words = dict.fromkeys(values.values())
    if len(words) == 1:
        return next(iter(words))
    return ", ".join(
        f"{word} ({', '.join(run for run, own in values.items() if own == word)})" for word in words
    )
