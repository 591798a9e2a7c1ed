"""What strategies cost over plain training."""

from __future__ import annotations

from lingraft.report.contents import PlacedTable, Section
from lingraft.report.runs import Report
from lingraft.report.tables import strategy_cost_table


def section(report: Report) -> Section | None:
    """Return the ratios of time and memory; None: there is no plain training to compare with."""
    table = strategy_cost_table(report.result)
    if table is None:
        return None
    caption = (
        "Over plain training of the same data and seed on this machine: the median over data sets and seeds, with the "
        "lowest and the highest in parentheses. On a machine that does other work besides, single ratios mislead."
    )
    return Section("costs", "What strategies cost", (PlacedTable("costs", "", caption, table),))
