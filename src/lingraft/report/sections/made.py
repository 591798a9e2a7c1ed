"""How the results were made, so that they can be made again."""

from __future__ import annotations

from lingraft.config.load import dump_study
from lingraft.report.contents import Block, Lines, PlacedTable, Section
from lingraft.report.runs import Report
from lingraft.report.tables import checkpoint_table


def section(report: Report) -> Section:
    """Return the resolved study, and where the models lie."""
    blocks: list[Block] = []
    checkpoints = checkpoint_table(report.result)
    if checkpoints is not None:
        caption = "Folders in the run folder, which may be moved: this page lies in its folder report."
        blocks.append(PlacedTable("checkpoints", "Checkpoints", caption, checkpoints, is_folded=True))
    for run in report.runs:
        if run.study is not None:
            title = "Study file, as it was run, with every default"
            if len(report.runs) > 1:
                title += f": {run.name}"
            blocks.append(Lines(title, tuple(dump_study(run.study).splitlines()), "text", is_folded=True))
    return Section("made", "How it was made", tuple(blocks))
