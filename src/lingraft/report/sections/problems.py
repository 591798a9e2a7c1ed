"""What went wrong: what failed, and what of the evaluation was left out or truncated."""

from __future__ import annotations

from lingraft.report.contents import Block, Lines, PlacedTable, Section
from lingraft.report.notes import comparison_notes, failures, holds_for, model_notes, unused_notes
from lingraft.report.runs import Report
from lingraft.report.tables import models_of, unused_table


def section(report: Report) -> Section | None:
    """Return all that failed or is missing, each sentence once; None: nothing is."""
    result = report.result
    models = len({model.title(with_seed=True) for model in models_of(result)})
    noted = model_notes(result) | comparison_notes(result)
    found = [Lines("What failed", tuple(failures(result)), "problems")]
    found.append(
        Lines(
            "What was left out", tuple(f"{holds_for(names, models)}: {note}" for note, names in noted.items())
        )
    )
    blocks: list[Block] = [one for one in found if one.lines]
    unused = unused_table(result)
    if unused is not None:
        title = "What else lies in the run folder"
        caption = " ".join(unused_notes(result))
        blocks.append(PlacedTable("unused", title, caption, unused, is_folded=True))
    return Section("problems", "What went wrong", tuple(blocks)) if blocks else None
