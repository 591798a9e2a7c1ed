"""The sections of a report, one file each; `contents_of` has them in reading order.

Each file has one public function, `section`, which returns its part of a report; None: there is nothing to show.
"""

from __future__ import annotations

from lingraft.report.contents import Section
from lingraft.report.runs import Report
from lingraft.report.sections import (
    abilities,
    answers,
    costs,
    forgetting,
    languages,
    made,
    main_table,
    measured,
    pairs,
    problems,
    remarks,
    trade_off,
    trained,
    verdict,
)

SECTIONS = (
    verdict.section,
    remarks.section,
    trade_off.section,
    main_table.section,
    abilities.section,
    forgetting.section,
    pairs.section,
    measured.section,
    trained.section,
    languages.section,
    costs.section,
    answers.section,
    problems.section,
    made.section,
)


def contents_of(report: Report) -> tuple[Section, ...]:
    """Return what a report shows, in reading order."""
    return tuple(found for section in SECTIONS if (found := section(report)) is not None)
