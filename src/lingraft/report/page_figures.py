"""A page's figures: drawn once for all readers, and with what a browser draws them of, so that they tell their values.

The library that does so (Vega-Embed, of vl-convert) is carried packed in the page, and only runs where a figure comes
into sight.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from markupsafe import Markup

from lingraft.measures.base import Plot
from lingraft.records import cache_folder, fingerprint_of, read_kept, write_kept
from lingraft.report.drawing import ENGINE, Drawing, Job, draw
from lingraft.report.jobs import jobs_of

JsonSpec = Mapping[str, Any]


@dataclass(frozen=True)
class Figures:
    """The figures of a page.

    Attributes:
        pictures: SVG, by name.
        specs: Vega-Lite specifications in the page's ink, by name; of those that are drawn.
        pdfs: Each as a file of vectors.
        engine: The script that draws them in a browser; empty: figures stay as they are drawn.
        problem: Why some are missing; empty: none is.
    """

    pictures: dict[str, Markup] = field(default_factory=dict)
    specs: dict[str, JsonSpec] = field(default_factory=dict)
    pdfs: dict[str, bytes] = field(default_factory=dict)
    engine: str = ""
    problem: str = ""


def figures_of(plots: Sequence[Plot]) -> Figures:
    """Return the figures of a page, drawn; what cannot be drawn is missing, and its reason is given."""
    jobs = jobs_of(plots, ("page", "pdf"))
    if all(job.problem for job in jobs):
        return Figures(problem=_problem(len(plots), draw(jobs)))
    from lingraft.report.figures import INK, svg_of

    engine = _kept_engine()
    drawings = draw(jobs if engine else [*jobs, Job("engine", {})])
    if not engine and (made := drawings.pop().content):
        engine = made.decode()
        _keep_engine(engine)
    drawn = [
        (plot, job, picture, pdf)
        for plot, job, picture, pdf in zip(plots, jobs[::2], drawings[::2], drawings[1::2], strict=True)
        if picture.content is not None
    ]
    return Figures(
        pictures={
            plot.name: Markup(_with_own_names(svg_of(picture.content or b""), plot.name))
            for plot, _, picture, _ in drawn
        },
        specs={
            plot.name: json.loads(json.dumps(job.spec).replace(f'"{INK}"', '"currentColor"'))
            for plot, job, _, _ in drawn
        },
        pdfs={plot.name: pdf.content for plot, _, _, pdf in drawn if pdf.content is not None},
        engine=engine,
        problem=_problem(len(plots), drawings[::2]),
    )


def packed(text: str) -> str:
    """Return a text as the page carries it: gzip in base64, in which no markup can stand."""
    return b64encode(gzip.compress(text.encode(errors="replace"), mtime=0)).decode()


def _problem(plots: int, drawings: Sequence[Drawing]) -> str:
    """Return why pictures are missing, each reason once; empty: none is."""
    problems = list(dict.fromkeys(one.problem for one in drawings if one.content is None))
    found = sum(one.content is not None for one in drawings)
    how_many = f"{found} of {plots} pictures" if found else "no pictures"
    return f"The report has {how_many}: {'; '.join(problems)}." if problems else ""


def _with_own_names(svg: str, name: str) -> str:
    """Return an SVG whose clip paths and gradients are named after it: all figures of a page share one name space."""
    svg = re.sub(r'(<(?:clipPath|linearGradient|radialGradient)\b[^>]*? id=")', rf"\g<1>{name}-", svg)
    return re.sub(r'(="url\(#)', rf"\g<1>{name}-", svg)


def _engine_file() -> Path:
    """Return where the library is kept once it was made, which takes over a second."""
    return cache_folder() / f"page-engine-{fingerprint_of([version('vl-convert-python'), ENGINE])}.json"


def _kept_engine() -> str:
    """Return the library as it is kept; empty: it is not."""
    with contextlib.suppress(OSError, ValueError, PackageNotFoundError):
        kept = read_kept(_engine_file())
        return kept if isinstance(kept, str) else ""
    return ""


def _keep_engine(engine: str) -> None:
    with contextlib.suppress(OSError, PackageNotFoundError):  # then it is made again
        write_kept(_engine_file(), engine)
