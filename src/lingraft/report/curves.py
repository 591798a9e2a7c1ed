"""The trainings of a result as curves of their losses, and which of them are drawn; nothing is drawn here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from lingraft.report.cells import chosen_cells, shown_cells
from lingraft.study.result import StudyResult

MOST_PANELS: Final = 12
MOST_LINES: Final = 10  # strategies of one picture


@dataclass(frozen=True)
class Curve:
    """The training of one phase.

    Attributes:
        phase: Phase and data set.
        strategy: Its strategy.
        seed: Its seed.
        losses: Steps with their losses in nats per supervised token.
    """

    phase: str
    strategy: str
    seed: int
    losses: tuple[tuple[int, float], ...]


def curves_of(result: StudyResult) -> tuple[Curve, ...]:
    """Return the trainings of all phases, each once however many cells share it."""
    found: dict[Curve, None] = {}
    for cell in result.done:
        # Of several runs a cell's data set is named after its run; its phases' are not.
        run = cell.data.removesuffix(cell.phases[-1].data)
        run = "" if run == cell.data else run
        for phase in cell.phases:
            if phase.losses:
                name = f"{phase.phase}: {run}{phase.data}"
                found.setdefault(Curve(name, phase.strategy, cell.seed, phase.losses))
    return tuple(found)


def drawn_curves(result: StudyResult) -> tuple[Curve, ...]:
    """Return those that are drawn: of each phase and data set the first strategies, the bounds before others."""
    curves = curves_of(result)
    panels = list(dict.fromkeys(one.phase for one in curves))[:MOST_PANELS]
    strategies = list(dict.fromkeys(one.strategy for one in chosen_cells(shown_cells(result), MOST_LINES)))
    rest = [one.strategy for one in curves if one.strategy not in strategies]
    kept = list(dict.fromkeys([*strategies, *rest]))[:MOST_LINES]
    return tuple(one for one in curves if one.phase in panels and one.strategy in kept)
