"""What the measures of data pairs and weights say, against what was lost."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from lingraft.measures.base import Plot
from lingraft.measures.look import PLAIN
from lingraft.report.contents import Section
from lingraft.report.pairs import Against, measures_of_cells
from lingraft.report.runs import Report
from lingraft.report.signs import SIGNS

if TYPE_CHECKING:
    import altair as alt

_TITLE: Final = "Similarity of the data, distance of the models, and what was lost"
_MOST_NAMED: Final = 6  # cells of a measure in the text alternative


def section(report: Report) -> Section | None:
    """Return each measure against the change of task ability; None: none was measured of two cells."""
    panels = measures_of_cells(report.result)
    if not panels:
        return None
    meanings = "; ".join(f"{one.title}: {one.meaning}" for one in panels)
    caption = (
        "Each mark is a cell, with the 95 % interval of its change of task ability from Phase 1. The paper finds "
        f"that less is lost where the data are alike, and that models which moved further lost more. {meanings}."
    )
    plot = Plot("measures-and-loss", _TITLE, caption, partial(_chart, report, panels), _description(panels))
    return Section("pairs", _TITLE, (plot,))


def _description(panels: tuple[Against, ...]) -> str:
    named = []
    for panel in panels:
        cells = sorted(panel.cells, key=lambda one: (one[0].strategy != PLAIN, one[1]))[:_MOST_NAMED]
        values = "; ".join(
            f"{cell.label} {value:.3f}, change {cell.change.value:+.3f} [{cell.change.low:+.2f}, "
            f"{cell.change.high:+.2f}] {SIGNS[cell.change.answer]}"
            for cell, value in cells
        )
        named.append(f"{panel.title} of {len(panel.cells)} cells, plain first: {values}.")
    return f"Scatter plots. {' '.join(named)}"


def _chart(report: Report, panels: tuple[Against, ...]) -> alt.TopLevelMixin:
    from lingraft.report.charts.pairs import measures_against_loss

    return measures_against_loss(report.result, panels)
