"""What the models answered: what was wrong with their answers, and the answers themselves, side by side."""

from __future__ import annotations

from functools import partial

from lingraft.report.contents import Block, PlacedTable, Section, SideBySide
from lingraft.report.runs import Report
from lingraft.report.side_by_side import LARGE_CHANGE, answering
from lingraft.report.tables import answer_table, models_of


def section(report: Report) -> Section | None:
    """Return the counts of bad answers and the answers side by side; None: no model answered anything."""
    table = answer_table(report.result)
    blocks: list[Block] = []
    if any(model.predictions for model in models_of(report.result)):
        caption = (
            "Each item as all models were asked it, with the right answer (the reference) and what each model said. "
            f"Lost: the score is at least {LARGE_CHANGE:g} below that of the cell's Phase 1, as from right to wrong; "
            "gained: as much above it. Wrong language: another one than the item's."
        )
        blocks.append(
            SideBySide("answers-side-by-side", "Answers side by side", caption, partial(answering, report))
        )
    if table is not None:
        title = "What the answers were like"
        caption = "Generated answers only. One may count in several columns; likelihood tasks generate none."
        blocks.append(PlacedTable("answers", title, caption, table, is_folded=True))
    return Section("said", "What the models answered", tuple(blocks)) if blocks else None
