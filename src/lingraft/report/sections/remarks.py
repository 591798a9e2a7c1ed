"""What must be known before anything else is read: what is unfinished, damaged, or not to be compared."""

from __future__ import annotations

from lingraft.report.contents import Lines, Section
from lingraft.report.runs import Report


def section(report: Report) -> Section | None:
    """Return the remarks on each run and on comparing them; None: there are none."""
    several = len(report.runs) > 1
    lines = (
        *report.remarks,
        *(f"{run.name}: {one}" if several else one for run in report.runs for one in run.remarks),
    )
    return Section("remarks", "Read this first", (Lines("", lines, "problems"),)) if lines else None
