"""Which cell of a study is meant, or recommended: the most language ability of those that kept English."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lingraft.errors import ConfigError
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
    evidence = {cell_key(cell): _evidence(result, cell) for cell in result.done}
    fit = [cell for cell in result.done if evidence[cell_key(cell)][0] and cell.scores.language_ability]
    if not fit:
        why = "; ".join(f"{label_of(result, cell)!r}: {evidence[cell_key(cell)][1]}" for cell in result.done)
        raise ConfigError(
            f"{result.run}: no cell can be recommended, since none is shown to have kept English "
            f"({why or 'none is done'}). Name one with --cell. {_listed(result)}"
        )

    def ability_of(cell: CellResult) -> tuple[float, float]:
        """Return language ability as the mean over the seeds, then the seed's own."""
        own = {
            one.seed: one.scores.language_ability.value
            for one in fit
            if (one.data, one.strategy) == (cell.data, cell.strategy) and one.scores.language_ability
        }
        return sum(own.values()) / len(own), own[cell.seed]

    best = max(fit, key=ability_of)
    ability, gained = best.scores.language_ability, best.difference.language_ability
    assert ability is not None
    reason = (
        f"of the {len(fit)} of {len(result.done)} cells that kept English it has the most language ability, "
        f"{ability.value:.3f} [{ability.low:.3f}, {ability.high:.3f}] ({evidence[cell_key(best)][1]}; gain "
        f"{gained.value:+.3f} [{gained.low:+.3f}, {gained.high:+.3f}]"
        f"{'' if gained.low > 0 else ', which is not shown to be above 0'})"
    )
    return Chosen(cell=best, label=label_of(result, best), reason=reason)


def cell_key(cell: AnyCell) -> tuple[str, str, int]:
    """Return what tells a cell from all others of its study."""
    return cell.data, cell.strategy, cell.seed


def _evidence(result: StudyResult, cell: CellResult) -> tuple[bool, str]:
    """Return whether a cell, or the mean over its seeds, is shown to have kept English, and by what."""
    mean = next((one for one in result.over_seeds if (one.data, one.strategy) == cell_key(cell)[:2]), None)
    limits = cell.limits if mean is None else mean.limits
    stated = [f"limit {name} {one.limit:g}: {one.answer}" for name, one in limits.items()]
    held = all(one.answer == "held" for one in limits.values())
    if "task_ability" in limits or ENGLISH in limits:
        return held, ", ".join(stated)
    # Limits on other languages or single tasks say nothing of English as a whole.
    change = cell.difference.task_ability if mean is None else mean.task_ability
    said = f"task ability {change.value:+.3f} [{change.low:+.3f}, {change.high:+.3f}]: {change.answer}"
    return held and change.answer in ("unchanged", "rose"), ", ".join([*stated, said])
