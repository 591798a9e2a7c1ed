"""What each phase was trained on, and how its loss fell."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from lingraft.measures.base import Plot
from lingraft.report.contents import Block, PlacedTable, Section
from lingraft.report.runs import Report
from lingraft.report.tables import training_table

if TYPE_CHECKING:
    import altair as alt


def section(report: Report) -> Section | None:
    """Return the counts of each training, and its curve; None: nothing is trained."""
    blocks: list[Block] = []
    counts = training_table(report.result)
    if any(cell.phases[-1].losses for cell in report.result.done):
        blocks.append(
            Plot("training-loss", "Training loss", "Of each cell's last phase.", partial(_chart, report))
        )
    if counts is not None:
        blocks.append(PlacedTable("training", "What was trained", "", counts, is_folded=True))
    return Section("training", "Training", tuple(blocks)) if blocks else None


def _chart(report: Report) -> alt.TopLevelMixin:
    from lingraft.report.figures import training_loss

    return training_loss(report.result)
