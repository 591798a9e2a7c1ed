"""The cells of a result as figures show them: several seeds as one, and which to show where there is no room for "
"all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from lingraft.evaluate.results import Scores
from lingraft.intervals.macro_mean import Difference, Interval
from lingraft.measures.look import MIXED, PLAIN
from lingraft.study.result import CellResult, StudyResult

MOST_CELLS: Final = 12  # with a heat map each
MOST_TILES: Final = 3000  # of all of them
MOST_MODELS: Final = 14  # rows of a picture of held-out losses


@dataclass(frozen=True)
class ShownCell:
    """A data set and strategy, all its seeds together.

    Attributes:
        data: Data set of the last phase.
        strategy: Its strategy.
        seeds: The cells that are done.
        change: Of task ability from Phase 1; of several seeds that of their mean.
        gain: Of language ability, likewise.
    """

    data: str
    strategy: str
    seeds: tuple[CellResult, ...]
    change: Difference
    gain: Difference

    @property
    def label(self) -> str:
        """Its name in figures."""
        return f"{self.data} / {self.strategy}"

    @property
    def is_bound(self) -> bool:
        """Whether it is the lower or the upper bound."""
        return self.strategy in (PLAIN, MIXED)

    @property
    def asked(self) -> frozenset[str]:
        """The tasks, with their languages, that it has scores of: cells of other tasks compare with it in nothing."""
        return frozenset(self.seeds[0].scores.tasks)

    @cached_property
    def task_ability(self) -> Interval | None:
        """Mean over the seeds; None: not measured."""
        return mean_of([cell.scores.task_ability for cell in self.seeds])

    @cached_property
    def language_ability(self) -> Interval | None:
        """Mean over the seeds; None: not measured."""
        return mean_of([cell.scores.language_ability for cell in self.seeds])


def mean_of(scores: Sequence[Interval | None]) -> Interval | None:
    """Return the mean of scores of several seeds over the same items; None: there are none.

    Its interval is from the mean of the lower to the mean of the upper ends: what it would be if the items' chance were
    the same at all seeds, and so rather too wide than too narrow. It does not cover the choice of seeds.
    """
    known = [one for one in scores if one is not None]
    if not known:
        return None
    value, low, high = (
        sum(ends) / len(known)
        for ends in zip(*((one.value, one.low, one.high) for one in known), strict=True)
    )
    return Interval(value, low, high, known[0].n)


def shown_cells(result: StudyResult) -> tuple[ShownCell, ...]:
    """Return the cells that are done, each data set and strategy once, in the order of the tables."""
    pooled = {(one.data, one.strategy): one for one in result.over_seeds}
    groups: dict[tuple[str, str], list[CellResult]] = {}
    for cell in result.done:
        groups.setdefault((cell.data, cell.strategy), []).append(cell)
    found = []
    for key, own in groups.items():
        changes = pooled.get(key) or own[0].difference
        found.append(ShownCell(*key, tuple(own), changes.task_ability, changes.language_ability))
    return tuple(found)


def non_dominated(cells: Sequence[ShownCell]) -> tuple[ShownCell, ...]:
    """Return the cells that no other one of the same tasks is as good as in both abilities and better in one.

    They are in the order of their language ability, the lowest first.
    """
    known = [
        (one.language_ability.value, one.task_ability.value, one.asked, number, one)
        for number, one in enumerate(cells)
        if one.language_ability is not None and one.task_ability is not None
    ]
    kept = [
        (language, -task, number, cell)
        for language, task, asked, number, cell in known
        if not any(
            other_language >= language
            and other_task >= task
            and (other_language, other_task) != (language, task)
            and other_asked == asked
            for other_language, other_task, other_asked, *_ in known
        )
    ]
    return tuple(cell for *_, cell in sorted(kept, key=lambda one: one[:3]))


def chosen_cells(cells: Sequence[ShownCell], most: int) -> tuple[ShownCell, ...]:
    """Return at most so many cells, in their order: all; or the non-dominated, then the bounds, then the first."""
    best = non_dominated(cells)
    order = [*best, *(one for one in cells if one.is_bound), *cells]
    taken = list(dict.fromkeys(one.label for one in order))[:most]
    return tuple(one for one in cells if one.label in taken)


def drawn_in_heat_map(result: StudyResult) -> tuple[ShownCell, ...]:
    """Return the cells of which there is a heat map: as many as can be read."""
    names = {name for cell in result.done for name in cell.scores.tasks}
    return chosen_cells(shown_cells(result), max(1, min(MOST_CELLS, MOST_TILES // max(1, len(names)))))


def choice_note(shown: int, of: int, where: str) -> str:
    """Return the sentence for a caption that says what of the cells a figure leaves out; empty: nothing."""
    if shown >= of:
        return ""
    return f" Shown are {shown} of {of} cells, those that no other dominates and the bounds first; {where}."


@dataclass(frozen=True)
class Reference:
    """A model that cells are read against: the base, or Phase 1 over all its seeds.

    Attributes:
        name: In figures.
        is_base: Whether it is the base model.
        task_ability: None: not measured.
        language_ability: None: not measured.
    """

    name: str
    is_base: bool
    task_ability: Interval | None
    language_ability: Interval | None


def references_of(result: StudyResult) -> tuple[Reference, ...]:
    """Return the Phase 1 models, several seeds as one, then the base model."""
    several = len({(one.data, one.strategy) for one in result.phase_ones}) > 1
    groups: dict[str, list[Scores]] = {}
    for one in result.phase_ones:
        groups.setdefault(f"Phase 1: {one.data}" if several else "Phase 1", []).append(one.scores)
    base = [] if result.base is None else [("base model", True, [result.base])]
    return tuple(
        Reference(
            name,
            is_base,
            mean_of([one.task_ability for one in scores]),
            mean_of([one.language_ability for one in scores]),
        )
        for name, is_base, scores in [*((name, False, own) for name, own in groups.items()), *base]
    )
