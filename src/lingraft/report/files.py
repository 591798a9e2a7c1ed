"""Figures and tables as files: those of a report, one each, and the figure of a single measure.

Names are those of the report's blocks: a paper that takes `trade-off.pdf` and `results.tex` finds them again after the
next run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from lingraft.errors import FigureError
from lingraft.measures.base import Plot
from lingraft.records import write_bytes_atomically
from lingraft.report.contents import PlacedTable, Section
from lingraft.report.drawing import draw
from lingraft.report.fonts import font_warnings
from lingraft.report.formats import DEFAULT_FORMATS, FIGURE_FORMATS, FORM_OF_SUFFIX, TABLE_SUFFIXES
from lingraft.report.jobs import jobs_of
from lingraft.report.table_files import table_texts

_NAME: Final = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


@dataclass(frozen=True)
class WrittenFile:
    """A file that was written.

    Attributes:
        path: Where.
        title: Heading of the figure or table in the report.
    """

    path: Path
    title: str


@dataclass(frozen=True)
class WrittenFiles:
    """What became of the figures and tables of a report.

    Attributes:
        files: What was written, in reading order.
        replaced: How many of these names were there before.
        warnings: What in them cannot be read well, such as letters that no font has.
        problems: Which figures could not be drawn, and why; files of these names are as they were.
    """

    files: tuple[WrittenFile, ...]
    replaced: int = 0
    warnings: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def write_figure(chart: Any, path: Path, fonts: Path | None = None) -> list[str]:
    """Write a figure in the form that the name's suffix says, and return what in it cannot be read well.

    SVG; PNG at twice its size; PDF with vectors and embedded fonts; HTML that needs no network.

    Raises:
        FigureError: It cannot be drawn; a file that stands there stays as it is.
    """
    from lingraft.report.figures import job_of

    (drawing,) = draw([job_of(chart, FORM_OF_SUFFIX[path.suffix.lower()])], fonts=fonts)
    if drawing.content is None:
        raise FigureError(f"{path}: the figure is not drawn: {drawing.problem}; all else is done.")
    write_bytes_atomically(path, drawing.content)
    return font_warnings(drawing.boxes, drawing.crowded)


def write_files(
    sections: Sequence[Section],
    folder: Path,
    formats: Sequence[str] = DEFAULT_FORMATS,
    *,
    fonts: Path | None = None,
    wide: bool = False,
) -> WrittenFiles:
    """Write every figure and table of a report into a folder, each file whole or not at all.

    Args:
        sections: Of the report.
        folder: Where to; it is made where it is not there.
        formats: Of `FORMATS`: figures as each of pdf, svg, png that is named, tables as each of csv, latex, markdown.
        fonts: Folder of fonts that PDF and PNG may use besides the system's.
        wide: All columns of a table in LaTeX and Markdown, as CSV has them always; else the essential ones.
    """
    blocks = [
        (block, block.title or section.title)
        for section in sections
        for block in section.blocks
        if isinstance(block, Plot | PlacedTable)
    ]
    forms = [form for form in FIGURE_FORMATS if form in formats]
    plots = [one for one, _ in blocks if isinstance(one, Plot)]
    names = [(plot.name, form) for plot in plots for form in forms]
    drawings = dict(zip(names, draw(jobs_of(plots, forms), fonts=fonts), strict=True))
    folder.mkdir(parents=True, exist_ok=True)
    written, replaced = [], 0
    for block, title in blocks:
        if not _NAME.fullmatch(block.name):
            raise ValueError(f"{block.name!r} is no name of a file")
        contents: dict[str, bytes | None]
        if isinstance(block, Plot):
            contents = {form: drawings[block.name, form].content for form in forms}
        else:
            texts = asdict(table_texts(block.table, title, block.caption, wide=wide))
            contents = {
                ending: texts[one].encode() for one, ending in TABLE_SUFFIXES.items() if one in formats
            }
        for ending, content in contents.items():
            if content is not None:
                path = folder / f"{block.name}.{ending}"
                replaced += path.exists()
                write_bytes_atomically(path, content)
                written.append(WrittenFile(path, title))
    return WrittenFiles(
        tuple(written),
        replaced,
        tuple(
            font_warnings(
                (script for one in drawings.values() for script in one.boxes),
                (script for one in drawings.values() for script in one.crowded),
            )
        ),
        tuple(
            f"{name}.{form}: the figure is not drawn: {one.problem}"
            for (name, form), one in drawings.items()
            if one.content is None
        ),
    )
