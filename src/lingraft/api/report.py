"""`lingraft.write_report`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from lingraft.errors import FigureError
from lingraft.report.files import write_files
from lingraft.report.formats import DEFAULT_FORMATS, check_files_folder, check_fonts, checked_formats
from lingraft.report.page import write_page
from lingraft.report.runs import read_report
from lingraft.report.sections import contents_of


def write_report(
    runs: str | Path | Sequence[str | Path],
    page: str | Path | None = None,
    *,
    figures: str | Path | None = None,
    formats: Sequence[str] = DEFAULT_FORMATS,
    fonts: str | Path | None = None,
    wide: bool = False,
) -> tuple[Path, ...]:
    """Write the page of runs, or their figures and tables as files, and return what was written, the page first.

    No model is needed. What `lingraft report` prints as a warning is a Python warning.

    Args:
        runs: A run folder, or several that are compared; a string may be `NAME=PATH`.
        page: Where the page goes; None: `report/index.html` in the first run's folder, or with `figures` no page.
        figures: Folder for every figure and table as a file of its own; None: there are none.
        formats: Figures as each of pdf, svg and png that is named, tables as each of csv, latex and markdown.
        fonts: Folder of fonts that PDF and PNG may use besides the system's.
        wide: All columns in LaTeX and Markdown, not the essential ones alone.

    Raises:
        LingraftError: A folder holds no run, a format is unknown, nothing can be written there; or a figure could not
            be drawn, and all else is written.
    """
    chosen = checked_formats(formats)
    check_fonts(None if fonts is None else Path(fonts))
    if figures is not None:
        check_files_folder(Path(figures))
    named = [runs] if isinstance(runs, str | Path) else list(runs)
    found = read_report([str(one) for one in named])
    written: list[Path] = []
    if page is not None or figures is None:
        written.append(write_page(found, None if page is None else Path(page), _warn))
    if figures is not None:
        folder = None if fonts is None else Path(fonts)
        files = write_files(contents_of(found), Path(figures), chosen, fonts=folder, wide=wide)
        written += [one.path for one in files.files]
        for warning in files.warnings:
            _warn(warning)
        if files.problems:
            raise FigureError(f"{'; '.join(files.problems)}; all else is done.")
    return tuple(written)


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=3)
