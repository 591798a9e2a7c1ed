"""The verdict: the first thing that a reader sees."""

from __future__ import annotations

from lingraft.report.contents import Block, Lines, Section
from lingraft.report.runs import Report
from lingraft.report.verdict import verdict_of


def section(report: Report) -> Section:
    """Return the verdict in a sentence, and what must be known to believe it."""
    found = verdict_of(report)
    blocks: list[Block] = [Lines("", (found.sentence,), "verdict")]
    if found.notes:
        blocks.append(Lines("", found.notes))
    return Section("verdict", "Verdict", tuple(blocks))
