"""How the results were made, so that they can be made again."""

from __future__ import annotations

from pathlib import Path

from lingraft.config.load import dump_study
from lingraft.report.contents import Block, Lines, PlacedTable, Section
from lingraft.report.runs import Report
from lingraft.report.tables import checkpoint_table, models_of


def section(report: Report) -> Section:
    """Return the resolved study, and where the models lie."""
    blocks: list[Block] = []
    checkpoints = checkpoint_table(report.result)
    if checkpoints is not None:
        places = {model.checkpoint for model in models_of(report.result)} - {None}
        gone = [place for place in places if place is not None and not _has_weights(report.path_of(place))]
        caption = "Folders in the run folder, which may be moved."
        if gone:
            caption += (
                f" The weights of {len(gone)} of {len(places)} are gone; the report needs none of them."
            )
        blocks.append(PlacedTable("checkpoints", "Checkpoints", caption, checkpoints, is_folded=True))
    for run in report.runs:
        if run.study is not None:
            title = "Study file, as it was run, with every default"
            if len(report.runs) > 1:
                title += f": {run.name}"
            blocks.append(Lines(title, tuple(dump_study(run.study).splitlines()), "text", is_folded=True))
    return Section("made", "How it was made", tuple(blocks))


def _has_weights(folder: Path | None) -> bool:
    return folder is not None and any(folder.glob("*.safetensors"))
