"""What draws the figures of a report: for its page, and as files."""

from __future__ import annotations

from collections.abc import Sequence

from lingraft.measures.base import Plot
from lingraft.report.drawing import Job, reason_of
from lingraft.report.formats import Form


def jobs_of(plots: Sequence[Plot], forms: Sequence[Form]) -> list[Job]:
    """Return a job for each figure in each form, figure by figure.

    A figure that cannot be made costs itself alone: its jobs say why, and what they are drawn as says it again.
    """
    jobs: list[Job] = []
    for plot in plots if forms else ():
        try:
            from lingraft.report.figures import job_of

            chart = plot.chart()
            jobs += [job_of(chart, form) for form in forms]
        except Exception as error:  # whatever it is: tables and the other figures need none of this one
            jobs += [Job(form, {}, reason_of(error)) for form in forms]
    return jobs
