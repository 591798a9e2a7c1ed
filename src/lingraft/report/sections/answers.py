"""What the models answered."""

from __future__ import annotations

from lingraft.report.contents import PlacedTable, Section
from lingraft.report.runs import Report
from lingraft.report.tables import answer_table


def section(report: Report) -> Section | None:
    """Return what was wrong with the generated answers; None: nothing was generated."""
    table = answer_table(report.result)
    if table is None:
        return None
    caption = "Generated answers only. One may count in several columns; likelihood tasks generate none."
    return Section("answers", "What the answers were like", (PlacedTable("answers", "", caption, table),))
