"""The report page of a study: one self-contained HTML file.

What models and data sets say is untrusted: the template escapes everything but the figures' SVG, in which the
renderer has escaped it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from lingraft.measures.base import Plot
from lingraft.records import write_text_atomically
from lingraft.report.contents import Section
from lingraft.report.drawing import draw
from lingraft.report.runs import Report
from lingraft.report.sections import contents_of

PAGE = Path("report", "index.html")  # in a run folder


def write_page(
    report: Report, path: Path | None = None, reported: Callable[[str], None] | None = None
) -> Path:
    """Write the page of a report, and return its path.

    Args:
        report: What it shows.
        path: Where to; None: `report/index.html` in the run folder.
        reported: Receives a sentence where pictures are missing from the page.
    """
    path = report.runs[0].folder / PAGE if path is None else path
    path.parent.mkdir(exist_ok=True)
    write_text_atomically(path, render_page(report, reported))
    return path


def render_page(report: Report, reported: Callable[[str], None] | None = None) -> str:
    """Return the page's HTML; arguments as of `write_page`."""
    sections = contents_of(report)
    pictures, problem = _drawn(sections)
    if problem and reported is not None:
        reported(problem)
    return template_of("page.html").render(
        title=report.title,
        sections=sections,
        pictures=pictures,
        picture_problem=problem,
        embedded=any(
            (name or "").startswith("embedded:")
            for run in report.runs
            if run.study is not None
            for name in (run.study.model, run.study.phases[0].checkpoint)
        ),
    )


def template_of(name: str) -> Template:
    """Return a page's template; it escapes all that it is given."""
    environment = Environment(
        loader=PackageLoader("lingraft", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests |= {"plot": lambda block: isinstance(block, Plot)}
    return environment.get_template(name)


def _drawn(sections: tuple[Section, ...]) -> tuple[dict[str, Markup], str]:
    """Return the pictures by name, and why some are missing; empty: none is."""
    plots = [block for section in sections for block in section.blocks if isinstance(block, Plot)]
    try:
        from lingraft.report.figures import job_of, svg_of

        jobs = [job_of(one.chart()) for one in plots]
    except (ImportError, MemoryError) as error:  # the tables need none
        return {}, f"The report has no pictures: they cannot be made ({error or 'no memory'})."
    drawings = draw(jobs)
    found = {
        plot.name: Markup(svg_of(one.content))
        for plot, one in zip(plots, drawings, strict=True)
        if one.content is not None
    }
    problems = list(dict.fromkeys(one.problem for one in drawings if one.content is None))
    how_many = f"{len(found)} of {len(plots)} pictures" if found else "no pictures"
    return found, f"The report has {how_many}: {'; '.join(problems)}." if problems else ""
