"""The table of a study's stages."""

from __future__ import annotations

from collections.abc import Sequence

from lingraft.report.tables import ABSENT, Column, Table
from lingraft.study.plan import PlanRow
from lingraft.study.unused import size_text


def plan_table(rows: Sequence[PlanRow]) -> Table:
    """Return one row for each stage, in the order in which they run."""
    columns = (
        Column("stage", "what it does"),
        Column("of", "model, data or cell"),
        Column("read by", "stages that read its artefacts"),
        Column("state", "finished, or to be done"),
        Column("artefacts", "kept, or discarded when the last stage that reads them is done"),
        Column("on", "accelerator or processor"),
        Column("memory", "weights, gradients and optimiser states"),
        Column("disk", "artefacts, with what it keeps there while it works"),
    )
    return Table(
        columns,
        tuple(
            (
                row.kind,
                row.label,
                str(row.consumers),
                "finished" if row.is_finished else "to do",
                "kept" if row.is_kept else "discarded",
                row.device,
                ABSENT if row.memory_bytes is None else size_text(row.memory_bytes),
                ABSENT if row.disk_bytes is None else size_text(row.disk_bytes),
            )
            for row in rows
        ),
        2,
    )
