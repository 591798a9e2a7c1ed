"""What each cell kept of task ability, and what it gained in language ability."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from lingraft.intervals.macro_mean import Interval
from lingraft.measures.base import Plot
from lingraft.report.cells import Reference, ShownCell, non_dominated, references_of, shown_cells
from lingraft.report.contents import Section
from lingraft.report.runs import Report

if TYPE_CHECKING:
    import altair as alt

_TITLE: Final = "What it cost and what it gained"
_MOST_NAMED: Final = 8  # models in the text alternative


def section(report: Report) -> Section | None:
    """Return the trade-off picture; None: no cell is done."""
    result = report.result
    cells = [one for one in shown_cells(result) if one.task_ability and one.language_ability]
    if not cells:
        return None
    caption = (
        "Each mark is a cell, with the 95 % intervals of both abilities. Up is more English, right is more of the new "
        "languages. In ink: Phase 1 (cross; dotted lines), the base model (x), and the bounds, plain (filled) and "
        "mixed (hollow). The line joins the cells that no other one of the picture is as good as in both abilities; "
        "where intervals overlap, no order is known. Changes from Phase 1, which are paired and more certain, are "
        "shown on hover, and names that have no room."
    )
    if any(len(one.seeds) > 1 for one in cells):
        caption += (
            " Several seeds make one mark, their mean, with the mean of their intervals, which cover the choice of "
            "items and not that of seeds; small marks are single seeds."
        )
    plot = Plot("trade-off", _TITLE, caption, partial(_chart, report), _description(report, cells))
    return Section("trade-off", _TITLE, (plot,))


def _description(report: Report, cells: list[ShownCell]) -> str:
    """Return the values of the models that all else is read against, and of the non-dominated cells."""

    def values(name: str, one: Reference | ShownCell) -> str:
        def of(score: Interval | None) -> str:
            return "-" if score is None else f"{score.value:.3f} [{score.low:.2f}, {score.high:.2f}]"

        return f"{name}: {of(one.task_ability)}, {of(one.language_ability)}"

    best = non_dominated(cells)
    known: list[tuple[str, Reference | ShownCell]] = [(one.name, one) for one in references_of(report.result)]
    named = [*known, *((one.label, one) for one in cells if one.is_bound and one not in best)][:_MOST_NAMED]
    first = [(one.label, one) for one in best[::-1]][:_MOST_NAMED]
    return (
        f"Scatter plot of {len(cells)} cells, task ability in English against language ability. "
        f"Task ability and language ability, with 95 % intervals, of {'; of '.join(values(*one) for one in named)}. "
        f"Not dominated are {len(best)} cells: {'; '.join(values(*one) for one in first)}."
    )


def _chart(report: Report) -> alt.TopLevelMixin:
    from lingraft.report.charts.trade_off import trade_off

    return trade_off(report.result)
