"""What `run` and `report` print of a study: its table, and the verdict below it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lingraft.cli.output import print_result, print_table, shown_message

if TYPE_CHECKING:
    from lingraft.report.runs import Report


def print_study(report: Report, *, wide: bool) -> None:
    """Print the table with its best figures marked, and the verdict.

    Args:
        report: What is shown.
        wide: All columns, in parts where the terminal is too narrow; else the essential ones, made to fit.
    """
    from lingraft.report.rivals import best_cells
    from lingraft.report.tables import study_table
    from lingraft.report.verdict import verdict_of

    table = study_table(report.result, best_cells(report.result, report.comparer))
    print_table(table, report.title, essential=not wide)
    print_result(shown_message(verdict_of(report).sentence))
