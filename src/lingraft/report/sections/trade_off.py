"""What each cell kept of task ability, and what it gained in language ability."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from lingraft.measures.base import Plot
from lingraft.report.contents import Section
from lingraft.report.runs import Report

if TYPE_CHECKING:
    import altair as alt


def section(report: Report) -> Section | None:
    """Return the trade-off picture; None: no cell is done."""
    if not report.result.done:
        return None
    plot = Plot(
        "trade-off",
        "What it cost and what it gained",
        "Each point is a cell, with the 95 % intervals of its paired differences to Phase 1, and the sign of its "
        "task ability; several seeds make one point, their mean, with the interval of that, and a ring for each "
        "seed. Up is kept English, right is more of the new languages. Where intervals overlap, no order is known.",
        partial(_chart, report),
    )
    return Section("trade-off", "What it cost and what it gained", (plot,))


def _chart(report: Report) -> alt.TopLevelMixin:
    from lingraft.report.figures import trade_off

    return trade_off(report.result)
