"""The study's table, with what must be known to read it."""

from __future__ import annotations

from lingraft.report.contents import Block, Lines, PlacedTable, Section
from lingraft.report.notes import equal_score_lines, equal_score_notes, notes
from lingraft.report.rivals import best_cells
from lingraft.report.runs import Report
from lingraft.report.tables import change_table, measures_of, seed_table, study_table


def section(report: Report) -> Section:
    """Return the table of all models, and those of single seeds."""
    result = report.result
    seeds, changes = seed_table(result), change_table(result)
    intervals = (
        "Brackets are 95 % intervals, of the mean over seeds where there are several (they cover the choice of items, "
        "not that of seeds); parentheses hold the lowest and the highest seed."
        if seeds
        else "Brackets are 95 % intervals."
    )
    legends = [
        measure.legend([cell.measures[name] for cell in result.done])
        for name, measure in measures_of(result).items()
    ]
    meaning = "Retention is task ability after / before; gain is language ability after - before."
    best = best_cells(result, report.comparer)
    marks = (
        "Marked: the best of a column, and what paired differences over the items do not distinguish from it."
    )
    caption = " ".join((intervals, meaning, *([marks] if best else []), *legends))
    blocks: list[Block] = [
        PlacedTable("results", "", caption, study_table(result, best)),
        Lines("", (*notes(result), *result.language_notes)),
    ]
    equal = equal_score_lines(result)
    if len(equal) > len(equal_score_notes(result)):
        blocks.append(Lines("Which scores are equal", tuple(equal), is_folded=True))
    if changes is not None:
        caption = (
            "Mean over seeds of the paired difference to Phase 1, with its 95 % interval: it covers the choice of "
            "items at these seeds, not the choice of seeds. The signs are those of the table above."
        )
        blocks.append(PlacedTable("changes-over-seeds", "Changes over seeds", caption, changes))
    if seeds is not None:
        caption = (
            "Above, each row is the mean over its seeds; here brackets are 95 % intervals over the items at "
            "one seed."
        )
        blocks.append(PlacedTable("seed-by-seed", "Seed by seed", caption, seeds, is_folded=True))
    return Section("results", "Result", tuple(blocks))
