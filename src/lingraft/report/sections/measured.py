"""The figures of the study's measures."""

from __future__ import annotations

from lingraft.report.contents import Section
from lingraft.report.runs import Report
from lingraft.report.tables import measures_of


def section(report: Report) -> Section | None:
    """Return what each measure draws of the cells; None: none draws anything."""
    result = report.result
    plots = tuple(
        plot
        for name, measure in measures_of(result).items()
        for plot in measure.plots(
            [(f"{cell.data} / {cell.strategy}", cell.measures[name]) for cell in result.done]
        )
    )
    return Section("measured", "What changed inside", plots) if plots else None
