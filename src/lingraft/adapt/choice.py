"""Which cell of a study is meant, or recommended: the most language ability of those that kept English."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lingraft.errors import ConfigError
from lingraft.intervals.changes import LimitAnswer
from lingraft.intervals.macro_mean import Difference, Ratio
from lingraft.study.limits import LimitResult
from lingraft.study.result import STUDY, CellResult, FailedCell, PendingCell, StudyResult
from lingraft.text.language_tags import ENGLISH

AnyCell = CellResult | FailedCell | PendingCell


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A cell to export.

    Attributes:
        cell: The cell.
        label: As the table shows it.
        reason: Why it is recommended; None: the user named it.
    """

    cell: CellResult
    label: str
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What may be recommended: the cells of one data set and strategy that are done, one for each seed.

    Attributes:
        cells: One for each seed.
        task_ability: Change from Phase 1; of several seeds the mean over them, as the next two.
        language_ability: Change from Phase 1.
        retention: Task ability after / before.
        kept: Whether English and all limits of the study were kept. Held: shown to be; broken: shown not to be.
        evidence: What says so.
    """

    cells: tuple[CellResult, ...]
    task_ability: Difference
    language_ability: Difference
    retention: Ratio
    kept: LimitAnswer
    evidence: str

    @property
    def data(self) -> str:
        """Data set of the last phase."""
        return self.cells[0].data

    @property
    def strategy(self) -> str:
        """Its strategy."""
        return self.cells[0].strategy

    @property
    def score(self) -> float | None:
        """Language ability, as the mean over the seeds, in [0, 1]; None: no task measures it."""
        own = [one.scores.language_ability for one in self.cells]
        known = [one.value for one in own if one is not None]
        return sum(known) / len(known) if known else None


def candidates_of(result: StudyResult) -> list[Candidate]:
    """Return what may be recommended, in the order of the table.

    English was kept where no more was lost of it than the study's limit on it allows; where it states none, where task
    ability did not fall, and the 95 % interval of its change lies above -margin, which is a point of a hundred.
    """
    means = {(one.data, one.strategy): one for one in result.over_seeds}
    groups: dict[tuple[str, str], list[CellResult]] = {}
    for cell in result.done:
        groups.setdefault((cell.data, cell.strategy), []).append(cell)
    found = []
    for key, cells in groups.items():
        mean = means.get(key)
        own = cells[0].difference
        change = own.task_ability if mean is None else mean.task_ability
        kept, evidence = _evidence(cells, change, cells[0].limits if mean is None else mean.limits)
        found.append(
            Candidate(
                cells=tuple(cells),
                task_ability=change,
                language_ability=own.language_ability if mean is None else mean.language_ability,
                retention=cells[0].retention if mean is None else mean.retention,
                kept=kept,
                evidence=evidence,
            )
        )
    return found


def best_of(candidates: Sequence[Candidate]) -> Candidate | None:
    """Return the one with the most language ability of those that kept English; None: none is shown to have."""
    kept = [one for one in candidates if one.kept == "held" and one.score is not None]
    return max(kept, key=lambda one: one.score or 0.0, default=None)


def choose_cell(result: StudyResult, asked: str | None) -> Chosen:
    """Return the cell of a label, or the one that is recommended.

    Recommended is the cell with the most language ability among those that kept English and all limits of the study:
    where no limit is on English, those whose task ability is shown not to have fallen by more than the margin.

    Args:
        result: Of the study.
        asked: The label, such as `th / english_replay` or `th / english_replay / seed 2`; None: recommend one.

    Raises:
        ConfigError: There is no such cell, several seeds have it, it is not done, or none can be recommended.
    """
    if asked is None:
        return _recommended(result)
    wanted = _plain(asked)
    found = {label_of(result, cell): cell for cell in result.cells if wanted in _names(cell)}
    if not found:
        raise ConfigError(f"{result.run}: has no cell {asked!r}. {_listed(result)}")
    if len(found) > 1:
        raise ConfigError(f"{asked!r} has several seeds; name one: {', '.join(map(repr, found))}.")
    ((label, cell),) = found.items()
    if isinstance(cell, FailedCell):
        raise ConfigError(f"the cell {label!r} failed, so there is no model: {cell.reason}")
    if isinstance(cell, PendingCell):
        raise ConfigError(
            f"the cell {label!r} is not done; run the study on: lingraft run {result.run}/{STUDY}"
        )
    return Chosen(cell=cell, label=label, reason=None)


def label_of(result: StudyResult, cell: AnyCell) -> str:
    """Return how a cell is called; with its seed where cells have several."""
    return f"{cell.data} / {cell.strategy}" + (f" / seed {cell.seed}" if result.has_seeds else "")


def _names(cell: AnyCell) -> set[str]:
    """Return what a cell may be called by."""
    name = f"{cell.data} / {cell.strategy}"
    return {_plain(one) for one in (name, f"{name} / seed {cell.seed}", f"{name} / {cell.seed}")}


def _plain(label: str) -> str:
    return re.sub(r"\s*/\s*", "/", " ".join(label.split())).casefold()


def _listed(result: StudyResult) -> str:
    return "Its cells: " + ", ".join(repr(label_of(result, cell)) for cell in result.cells) + "."


def _recommended(result: StudyResult) -> Chosen:
    found = candidates_of(result)
    best = best_of(found)
    if best is None:
        why = "; ".join(f"{label_of(result, cell)!r}: {one.evidence}" for one in found for cell in one.cells)
        raise ConfigError(
            f"{result.run}: no cell can be recommended, since none is shown to have kept English "
            f"({why or 'none is done'}). Name one with --cell. {_listed(result)}"
        )

    def own_ability(cell: CellResult) -> float:
        ability = cell.scores.language_ability
        return 0.0 if ability is None else ability.value

    kept = sum(len(one.cells) for one in found if one.kept == "held" and one.score is not None)
    cell = max(best.cells, key=own_ability)
    ability, gained = cell.scores.language_ability, cell.difference.language_ability
    assert ability is not None
    reason = (
        f"of the {kept} of {len(result.done)} cells that kept English it has the most language ability, "
        f"{ability.value:.3f} [{ability.low:.3f}, {ability.high:.3f}] ({best.evidence}; gain "
        f"{gained.value:+.3f} [{gained.low:+.3f}, {gained.high:+.3f}]"
        f"{'' if gained.low > 0 else ', which is not shown to be above 0'})"
    )
    return Chosen(cell=cell, label=label_of(result, cell), reason=reason)


def cell_key(cell: AnyCell) -> tuple[str, str, int]:
    """Return what tells a cell from all others of its study."""
    return cell.data, cell.strategy, cell.seed


def _evidence(
    cells: Sequence[CellResult], change: Difference, limits: Mapping[str, LimitResult]
) -> tuple[LimitAnswer, str]:
    """Return whether cells that differ in their seed kept English and all limits, and by what."""
    stated = [f"limit {name} {one.limit:g}: {one.answer}" for name, one in limits.items()]
    answers = [one.answer for one in limits.values()]
    if "task_ability" not in limits and ENGLISH not in limits:
        # Limits on other languages or single tasks say nothing of English as a whole.
        answers.append(_kept(change, cells))
        stated.append(
            f"task ability {change.value:+.3f} [{change.low:+.3f}, {change.high:+.3f}]: {change.answer}"
        )
    worst: tuple[LimitAnswer, ...] = ("broken", "seeds_disagree", "undecided", "held")
    return next(one for one in worst if one in answers), ", ".join(stated)


def _kept(change: Difference, cells: Sequence[CellResult]) -> LimitAnswer:
    """Return whether no more of task ability was lost than the margin: where it rose nobody can say, that is enough."""
    if change.answer in ("unchanged", "rose"):
        return "held"
    if change.answer in ("fell", "seeds_disagree"):
        return "broken" if change.answer == "fell" else "seeds_disagree"
    has_fallen = any(cell.difference.task_ability.answer == "fell" for cell in cells)
    is_above = change.low > -change.margin and change.all_scores is None
    return "held" if is_above and not has_fallen else "undecided"
