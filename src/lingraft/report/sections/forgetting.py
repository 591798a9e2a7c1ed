"""The forgetting matrices: what each phase taught, and how much of it later phases left."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from lingraft.measures.base import Plot
from lingraft.report.contents import Block, PlacedTable, Section
from lingraft.report.runs import Report
from lingraft.report.tables import Matrix, Table, forgetting_table

if TYPE_CHECKING:
    import altair as alt

_MATRICES: Final[tuple[tuple[Matrix, str, str, str], ...]] = (
    (
        "ability",
        "forgetting-ability",
        "Abilities",
        "Rows: the model after each phase. Columns: what each phase taught, measured by the abilities of its data "
        "set's languages (English: task ability), 0 to 1; paler is lower. Whether a fall is more than chance, backward "
        "transfer says, in the table.",
    ),
    (
        "bits_per_character",
        "forgetting-loss",
        "Loss of held-out answers",
        "The same, measured by the bits per character of each phase's own held-out answers, which no phase trained "
        "on. Lower is better; shades compare the entries for one data set, darker is lower. In the summary signs are "
        "turned: backward transfer below 0 is forgotten.",
    ),
)
_MOST_MATRICES: Final = 12  # drawn
_MOST_NAMED: Final = 8  # cells in a text alternative
_SUMMARY: Final = (
    "Average: mean of the columns after the last phase. Backward transfer: after the last phase - just after learning, "
    "mean over the earlier phases' columns, paired over the same items. Forward transfer: just before learning - base "
    "model. Forgetting: the best of the phases before the last - the last; being the best of several, it leans upwards."
)


def section(report: Report) -> Section | None:
    """Return the matrices as pictures and tables; None: nothing measures them."""
    blocks: list[Block] = []
    for kind, name, title, caption in _MATRICES:
        table = forgetting_table(report.result, kind, with_intervals=True)
        if table is not None:
            cells = list(dict.fromkeys(row[:2] for row in table.rows))
            drawn = (
                f" Drawn are the first {_MOST_MATRICES} of {len(cells)} cells; the table has all."
                if len(cells) > _MOST_MATRICES
                else ""
            )
            description = _description(table)
            blocks.append(Plot(name, title, caption + drawn, partial(_chart, report, kind), description))
            heading = f"{title}: with intervals and the summary"
            blocks.append(PlacedTable(f"{name}-table", heading, _SUMMARY, table, is_folded=True))
    return Section("forgetting", "Forgetting", tuple(blocks)) if blocks else None


def _description(table: Table) -> str:
    """Return the backward transfer of the first cells."""
    place = [column.title for column in table.columns].index("backward")
    named = [f"{row[0]} / {row[1]} {row[place]}" for row in table.rows if row[place]][:_MOST_NAMED]
    n = len({row[:2] for row in table.rows})
    return f"Forgetting matrices of {n} cells. Backward transfer: {'; '.join(named)}."


def _chart(report: Report, kind: Matrix) -> alt.TopLevelMixin:
    from lingraft.report.charts.forgetting import matrices

    return matrices(report.result, kind, _MOST_MATRICES)
