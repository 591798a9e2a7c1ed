"""Scores by language and benchmark, and the loss of held-out answers."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from lingraft.measures.base import Plot
from lingraft.report.contents import Block, PlacedTable, Section
from lingraft.report.runs import Report
from lingraft.report.tables import contamination_table, models_of, task_table

if TYPE_CHECKING:
    import altair as alt


def section(report: Report) -> Section | None:
    """Return the scores of each task, and the held-out loss; None: nothing is measured."""
    result = report.result
    blocks: list[Block] = []
    tasks, contamination = task_table(result), contamination_table(result)
    if tasks is not None:
        correction = result.done[0].difference.correction.replace("_", " ").title()
        caption = (
            "p: how often a change from Phase 1 at least as large would come up if nothing had changed (signs of "
            f"clusters flipped at random), corrected for the number of tasks of a cell by {correction}. Below 0.05 in "
            "any task: one false alarm in 20 such tables. The sign is that of the task's own interval, not corrected: "
            "of 60 tasks that did not change 3 have ▲ or ▼."
        )
        blocks.append(PlacedTable("tasks", "Tasks", caption, tasks, is_folded=True))
    if any(
        one.held_out is not None for model in models_of(result) for one in model.scores.per_language.values()
    ):
        caption = (
            "Bits per character of answers that no phase trained on, with 95 % intervals (of several seeds the mean, "
            "from the lowest to the highest); lower is better, and comparable between tokenizers."
        )
        blocks.append(Plot("held-out-loss", "Loss of held-out answers", caption, partial(_chart, report)))
    if contamination is not None:
        title = "What of the tasks stands in the training rows"
        blocks.append(PlacedTable("contamination", title, "", contamination, is_folded=True))
    return Section("abilities", "Languages and tasks", tuple(blocks)) if blocks else None


def _chart(report: Report) -> alt.TopLevelMixin:
    from lingraft.report.figures import bits_per_character

    return bits_per_character(report.result)
