"""Which cells are not distinguishable from the best one, by paired differences over the items of both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from lingraft.adapt.choice import Candidate, candidates_of
from lingraft.errors import EvaluationError
from lingraft.evaluate.common_items import common_items
from lingraft.evaluate.predictions import ItemScore, read_item_scores
from lingraft.evaluate.scores import difference_over_seeds, measured_by
from lingraft.intervals.macro_mean import Difference, Interval
from lingraft.report.cells import mean_of
from lingraft.study.result import CellResult, StudyResult

Compared = Literal["task_ability", "language_ability"]
ABILITIES: Final[tuple[Compared, ...]] = ("task_ability", "language_ability")


@dataclass(frozen=True)
class Rivals:
    """The others beside the best of several cells.

    Attributes:
        alike: Those that are not distinguishable from it: the 95 % interval of the paired difference holds 0, or those
            of single seeds say opposite things.
        by_overlap: Those of them whose answers are gone, or were asked otherwise: the intervals of the two scores
            overlap, which finds fewer differences.
    """

    alike: tuple[Candidate, ...]
    by_overlap: tuple[Candidate, ...]


class Comparer:
    """Compares cells, and reads each one's scores once."""

    def __init__(self, path_of: Callable[[str], Path | None]) -> None:
        """Take where a file of a run folder lies; None: it is gone."""
        self._path_of = path_of
        self._read: dict[tuple[str, Compared], _Items | None] = {}
        self._compared: dict[tuple[Compared, str, str], Difference | None] = {}

    def rivals(self, ability: Compared, best: Candidate, others: Sequence[Candidate]) -> Rivals:
        """Return which of the others are not distinguishable from the best in an ability."""
        alike, by_overlap = [], []
        for other in others:
            if other is best or not _overlap(ability, best, other):
                continue
            difference = self.difference(ability, other, best)
            if difference is None:
                by_overlap.append(other)
            if difference is None or difference.answer != "rose":
                alike.append(other)
        return Rivals(tuple(alike), tuple(by_overlap))

    def difference(self, ability: Compared, before: Candidate, after: Candidate) -> Difference | None:
        """Return the mean over seeds of after - before on the same items; None: nothing was asked of both alike."""
        key = (ability, before.cells[0].predictions, after.cells[0].predictions)
        if key not in self._compared:
            self._compared[key] = self._difference(ability, before, after)
        return self._compared[key]

    def _difference(self, ability: Compared, before: Candidate, after: Candidate) -> Difference | None:
        seeds = {cell.seed: cell for cell in before.cells}
        pairs = []
        for cell in after.cells:
            if cell.seed not in seeds:
                continue
            own, others = self._items(cell, ability), self._items(seeds[cell.seed], ability)
            if own is None or others is None:
                return None
            pair = (others.items, own.items)
            if own.asked != others.asked:
                pair = common_items(pair, [{}, {}]).models  # type: ignore[assignment]
            if not pair[0]:
                return None
            pairs.append(pair)
        try:
            return difference_over_seeds(pairs, ability) if pairs else None
        except EvaluationError:  # predictions of earlier versions do not say what was asked
            return None

    def _items(self, cell: CellResult, ability: Compared) -> _Items | None:
        if (cell.predictions, ability) not in self._read:
            path = self._path_of(cell.predictions)
            try:
                whole = None if path is None else read_item_scores(path)
            except EvaluationError:  # damaged: as if it were gone
                whole = None
            for name in ABILITIES:
                own = None if whole is None else tuple(measured_by(whole, name))
                self._read[cell.predictions, name] = None if own is None else _Items(own, _asked(own))
        return self._read[cell.predictions, ability]


@dataclass(frozen=True)
class _Items:
    """The items of an ability, and what they ask."""

    items: tuple[ItemScore, ...]
    asked: frozenset[tuple[str, str, str]]


def _asked(items: Sequence[ItemScore]) -> frozenset[tuple[str, str, str]]:
    return frozenset((one.label, one.item, one.asked) for one in items)


def _overlap(ability: Compared, one: Candidate, other: Candidate) -> bool:
    """Return whether the intervals of two scores have a value in common; of several seeds their mean ends."""
    first, second = _mean_score(one, ability), _mean_score(other, ability)
    return first is not None and second is not None and first.low <= second.high and second.low <= first.high


def best_cells(result: StudyResult, comparer: Comparer) -> dict[str, frozenset[tuple[str, str]]]:
    """Return, by title of a column of the study's table, the data and strategies whose figure is marked as the best.

    They are the one with the highest figure, and all that are not distinguishable from it. A single cell is not marked.
    """
    found = {}
    candidates = candidates_of(result)
    for ability in ABILITIES:
        scores = [
            (score.value, one) for one in candidates if (score := _mean_score(one, ability)) is not None
        ]
        if len(scores) > 1:
            _, best = max(scores, key=lambda pair: pair[0])
            rivals = comparer.rivals(ability, best, [one for _, one in scores])
            marked = (best, *rivals.alike)
            found[ability.replace("_", " ")] = frozenset((one.data, one.strategy) for one in marked)
    return found


def _mean_score(one: Candidate, ability: Compared) -> Interval | None:
    """Return a score, of several seeds their mean; None: no task measures it."""
    return mean_of([getattr(cell.scores, ability) for cell in one.cells])
