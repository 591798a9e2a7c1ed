"""What measures of a data pair, or of the weights, are set against: the task ability that was lost."""

from __future__ import annotations

from dataclasses import dataclass

from lingraft.report.cells import ShownCell, shown_cells
from lingraft.report.tables import measures_of
from lingraft.study.result import StudyResult


@dataclass(frozen=True)
class Against:
    """One measure of the cells that have it.

    Attributes:
        title: Its name, as in the tables.
        meaning: What it is.
        cells: Each with its value; of several seeds their mean.
    """

    title: str
    meaning: str
    cells: tuple[tuple[ShownCell, float], ...]


def measures_of_cells(result: StudyResult) -> tuple[Against, ...]:
    """Return each measure's columns with the cells that have a value; without those that are the same for
    all.

    Of DES the paper's value is taken, and not the corrected one besides.
    """
    found = []
    for name, measure in measures_of(result).items():
        for column in measure.columns:
            if column.figure == "corrected":
                continue
            cells = []
            for cell in shown_cells(result):
                values = [
                    value
                    for one in cell.seeds
                    if name in one.measures and (value := one.measures[name].figure(column).value) is not None
                ]
                if values:
                    cells.append((cell, sum(values) / len(values)))
            if len({value for _, value in cells}) > 1:
                found.append(Against(column.title, column.meaning, tuple(cells)))
    return tuple(found)
