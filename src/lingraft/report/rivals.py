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
from lingraft.intervals.macro_mean import Difference
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
        self._read: dict[str, tuple[ItemScore, ...] | None] = {}
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
            own, others = self._scores(cell, ability), self._scores(seeds[cell.seed], ability)
            if own is None or others is None:
                return None
            if {(one.label, one.item, one.asked) for one in own} != {
                (one.label, one.item, one.asked) for one in others
            }:
                others, own = common_items([others, own], [{}, {}]).models
            if not own:
                return None
            pairs.append((others, own))
        try:
            return difference_over_seeds(pairs, ability) if pairs else None
        except EvaluationError:  # predictions of earlier versions do not say what was asked
            return None

    def _scores(self, cell: CellResult, ability: Compared) -> tuple[ItemScore, ...] | None:
        if cell.predictions not in self._read:
            path = self._path_of(cell.predictions)
            try:
                self._read[cell.predictions] = None if path is None else read_item_scores(path)
            except EvaluationError:  # damaged: as if it were gone
                self._read[cell.predictions] = None
        whole = self._read[cell.predictions]
        return None if whole is None else tuple(measured_by(whole, ability))


def _overlap(ability: Compared, one: Candidate, other: Candidate) -> bool:
    """Return whether the intervals of two scores have a value in common; of several seeds those of any two."""
    ends: list[tuple[float, float]] = []
    for own in (one, other):
        scores = [getattr(cell.scores, ability) for cell in own.cells]
        known = [score for score in scores if score is not None]
        if not known:
            return False
        ends.append((min(score.low for score in known), max(score.high for score in known)))
    return ends[0][0] <= ends[1][1] and ends[1][0] <= ends[0][1]


def best_cells(result: StudyResult, comparer: Comparer) -> dict[str, frozenset[tuple[str, str]]]:
    """Return, by title of a column of the study's table, the data and strategies whose figure is marked as the best.

    They are the one with the highest figure, and all that are not distinguishable from it. A single cell is not marked.
    """
    found = {}
    candidates = candidates_of(result)
    for ability in ABILITIES:
        scores = [(score, one) for one in candidates if (score := mean_score(one, ability)) is not None]
        if len(scores) > 1:
            _, best = max(scores, key=lambda pair: pair[0])
            rivals = comparer.rivals(ability, best, [one for _, one in scores])
            marked = (best, *rivals.alike)
            found[ability.replace("_", " ")] = frozenset((one.data, one.strategy) for one in marked)
    return found


def mean_score(one: Candidate, ability: Compared) -> float | None:
    """Return a score as the mean over the seeds, in [0, 1]; None: no task measures it."""
    known = [score.value for cell in one.cells if (score := getattr(cell.scores, ability)) is not None]
    return sum(known) / len(known) if known else None
