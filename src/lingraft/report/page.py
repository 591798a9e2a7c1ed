"""Pages: one self-contained HTML file each, for the report of a study and for an adaptation.

What models and data sets say is untrusted: the templates escape all but the figures' SVG, in which the renderer has
escaped it, and the page's policy (CSP) lets nothing run or load but its own style and scripts, which it names by their
hashes.
"""

from __future__ import annotations

import hashlib
import json
import re
from base64 import b64encode
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lingraft.measures.base import Plot
from lingraft.records import write_text_atomically
from lingraft.report.contents import Lines, PlacedTable, Section, SideBySide
from lingraft.report.formats import PAGE
from lingraft.report.markup import drawn
from lingraft.report.page_figures import figures_of, packed
from lingraft.report.runs import Report
from lingraft.report.sections import contents_of
from lingraft.report.table_files import table_texts
from lingraft.report.terms import Term, term_of, terms_in, with_terms

_LANGUAGE_TAG: Final = re.compile(r"[a-zA-Z]{2,3}(-[a-zA-Z0-9]{1,8})*")  # as in answers.js
EMBEDDED_NOTICE: Final = (
    "The embedded model is SmolLM2-135M-Instruct, dequantised from 4 bits: "
    "its figures are not those of the published model."
)


@dataclass(frozen=True)
class Page:
    """What a page shows.

    Attributes:
        title: Its heading.
        kind: A line above the heading that says what it is.
        facts: Names and texts below the heading: when it was made, of which model.
        notices: What must be known of all of it.
        sections: Its content.
    """

    title: str
    kind: str
    facts: tuple[tuple[str, str], ...]
    notices: tuple[str, ...]
    sections: tuple[Section, ...]


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


def render_page(
    report: Report, reported: Callable[[str], None] | None = None, *, live: str | None = None
) -> str:
    """Return the HTML of a report's page; arguments as of `write_page` and `render`."""
    return render(page_of(report), reported, live=live)


def page_of(report: Report) -> Page:
    """Return what the page of a report shows."""
    is_embedded = any(
        (name or "").startswith("embedded:")
        for run in report.runs
        if run.study is not None
        for name in (run.study.model, run.study.phases[0].checkpoint)
    )
    return Page(
        title=report.title,
        kind="A lingraft study: what fine-tuning on new languages gained, and what it cost",
        facts=report.facts,
        notices=(EMBEDDED_NOTICE,) if is_embedded else (),
        sections=contents_of(report),
    )


def render(page: Page, reported: Callable[[str], None] | None = None, *, live: str | None = None) -> str:
    """Return the HTML of a page.

    Args:
        page: What it shows.
        reported: Receives a sentence where pictures are missing from it.
        live: Version of a page that `watch` serves: it has a part that follows the run, and may ask the server that
            it comes from. None: a file.
    """
    blocks = [block for section in page.sections for block in section.blocks]
    figures = figures_of([block for block in blocks if isinstance(block, Plot)])
    if figures.problem and reported is not None:
        reported(figures.problem)
    placed = [block for block in blocks if isinstance(block, PlacedTable)]
    tables = {block.name: drawn(block.table) for block in placed}
    texts = {
        block.name: asdict(table_texts(block.table, block.title, block.caption, wide=True))
        for block in placed
    }
    on_their_side = {
        section.name
        for section in page.sections
        if any(
            tables[block.name].on_paper == "wide"
            for block in section.blocks
            if isinstance(block, PlacedTable)
        )
    }
    has_answers = any(isinstance(block, SideBySide) for block in blocks)
    style, script = _own("style.css") + _own("answers.css"), _own("page.js")
    answers_script = _own("answers.js") if has_answers else ""
    if live is not None:
        style, script = style + _own("live.css"), script + _own("live.js")
    return (
        _environment()
        .get_template("page.html")
        .render(
            page=page,
            tables=tables,
            on_their_side=on_their_side,
            terms=_terms(page.sections),
            figures=figures,
            pdfs={name: b64encode(content).decode() for name, content in figures.pdfs.items()},
            packed_figures=packed(json.dumps(figures.specs)) if figures.specs else "",
            packed_engine=packed(figures.engine) if figures.specs and figures.engine else "",
            packed_tables=packed(json.dumps(texts)) if texts else "",
            style=Markup(style),
            script=Markup(script),
            answers_script=Markup(answers_script),
            policy=_policy([style], [one for one in (script, answers_script, figures.engine) if one])
            + ("" if live is None else "; connect-src 'self'"),
            live=live,
        )
    )


def _terms(sections: tuple[Section, ...]) -> tuple[Term, ...]:
    """Return the terms that a page explains: those of its columns and sentences."""
    texts: list[str] = []
    for section in sections:
        texts += [section.title, section.intro]
        for block in section.blocks:
            if isinstance(block, PlacedTable):
                texts += [block.title, block.caption]
                texts += [text for column in block.table.columns for text in (column.term, column.title)]
            elif isinstance(block, Plot):
                texts += [block.title, block.caption]
            elif isinstance(block, Lines) and block.kind != "text":
                texts += [block.title, *block.lines]
    return terms_in(texts)


@cache
def _environment() -> Environment:
    """Return what makes HTML of the templates; it escapes all that it is given."""
    environment = Environment(
        loader=PackageLoader("lingraft", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"with_terms": with_terms, "term": term_of}
    environment.tests |= {
        "language_tag": lambda text: _LANGUAGE_TAG.fullmatch(text) is not None,
        "plot": lambda block: isinstance(block, Plot),
        "table": lambda block: isinstance(block, PlacedTable),
        "side_by_side": lambda block: isinstance(block, SideBySide),
    }
    return environment


@cache
def _own(name: str) -> str:
    """Return the text of a style or script of ours."""
    return files("lingraft.report").joinpath(name).read_text(encoding="utf-8")


def _policy(styles: list[str], scripts: list[str]) -> str:
    """Return the Content-Security-Policy of a page: these styles and scripts, pictures made in it, and nothing else."""

    def hashes(texts: list[str]) -> str:
        return " ".join(
            f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in texts
        )

    return (
        f"default-src 'none'; script-src {hashes(scripts)}; style-src {hashes(styles)}; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
