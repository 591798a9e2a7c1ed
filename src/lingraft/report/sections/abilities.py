"""Scores by language and benchmark, and the loss of held-out answers."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from lingraft.measures.base import Plot
from lingraft.report.cells import MOST_MODELS, choice_note, drawn_in_heat_map, shown_cells
from lingraft.report.contents import Block, PlacedTable, Section
from lingraft.report.runs import Report
from lingraft.report.tables import contamination_table, models_of, task_table

if TYPE_CHECKING:
    import altair as alt

    from lingraft.study.result import StudyResult

_MOST_NAMED: Final = 3  # changes in a text alternative


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
    heat_map = _changes(report)
    if heat_map is not None:
        blocks.insert(0, heat_map)
    held_out = _held_out(report)
    if held_out is not None:
        blocks.append(held_out)
    if contamination is not None:
        title = "What of the tasks stands in the training rows"
        blocks.append(PlacedTable("contamination", title, "", contamination, is_folded=True))
    return Section("abilities", "Languages and tasks", tuple(blocks)) if blocks else None


def _changes(report: Report) -> Plot | None:
    """Return the heat map of changes by language and task; None: no cell has any."""
    result = report.result
    cells = shown_cells(result)
    changes = {
        f"{cell.label}, {name}": change.value
        for cell in cells
        for one in cell.seeds[:1]
        for name, change in one.difference.tasks.items()
    }
    if not changes:
        return None
    caption = (
        "Change of the score from Phase 1, paired over the same items; several seeds are drawn as their mean. Blue "
        "rose, orange fell; the interval, the score and p are shown on hover. A dashed tile with a stroke: the two "
        "models have no items in common; no tile: there is no such task." + drawn_note(result)
    )
    order = sorted(changes, key=lambda name: changes[name])
    lowest, highest = order[:_MOST_NAMED], order[::-1][:_MOST_NAMED]
    description = (
        f"Heat map of {len(changes)} changes from Phase 1. "
        f"Furthest down: {'; '.join(f'{name} {changes[name]:+.3f}' for name in lowest)}. "
        f"Furthest up: {'; '.join(f'{name} {changes[name]:+.3f}' for name in highest)}."
    )
    return Plot(
        "changes-by-task",
        "Changes by language and task",
        caption,
        partial(_changes_chart, report),
        description,
    )


def drawn_note(result: StudyResult) -> str:
    """Return what of the cells the heat map leaves out; empty: nothing."""
    cells = shown_cells(result)
    return choice_note(len(drawn_in_heat_map(result)), len(cells), "the table of tasks has all")


def _held_out(report: Report) -> Plot | None:
    """Return the held-out losses; None: nothing is held out."""
    result = report.result
    losses = {
        f"{model.title(with_seed=False)}, {language}": score.held_out.value
        for model in models_of(result)
        for language, score in model.scores.per_language.items()
        if score.held_out is not None
    }
    if not losses:
        return None
    cells = shown_cells(result)
    caption = (
        "Bits per character of answers that no phase trained on, with 95 % intervals (of several seeds the mean, "
        "from the lowest to the highest); lower is better, and comparable between tokenizers. Each language has an "
        "axis of its own, which does not begin at 0."
        + choice_note(min(len(cells), MOST_MODELS), len(cells), "all losses stand in result.json")
    )
    order = sorted(losses, key=lambda name: losses[name])
    description = (
        f"Dot plot, a picture for each language. Lowest: {order[0]} {losses[order[0]]:.3f}; "
        f"highest: {order[-1]} {losses[order[-1]]:.3f}."
    )
    return Plot("held-out-loss", "Loss of held-out answers", caption, partial(_chart, report), description)


def _changes_chart(report: Report) -> alt.TopLevelMixin:
    from lingraft.report.charts.abilities import changes_by_task

    return changes_by_task(report.result)


def _chart(report: Report) -> alt.TopLevelMixin:
    from lingraft.report.charts.abilities import bits_per_character

    return bits_per_character(report.result)
