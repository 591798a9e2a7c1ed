"""What figures and tables are written as, and where to: wrong input is refused here, before heavy imports."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Literal

from lingraft.errors import ConfigError, as_disk_error, did_you_mean

Form = Literal["page", "svg", "png", "pdf", "html", "engine"]
"""An SVG for the page, or a file: SVG, PNG at twice its size, PDF of vectors with embedded fonts, offline HTML.
All but the last two are made of the same drawing: asked for in one call, it is drawn once.
The engine is that of no figure: the script that draws figures in a browser."""

PAGE: Final = Path("report", "index.html")  # in a run folder
FIGURE_FORMATS: Final[tuple[Form, ...]] = ("pdf", "svg", "png")
TABLE_SUFFIXES: Final = {"csv": "csv", "latex": "tex", "markdown": "md"}  # by format
FORMATS: Final = (*FIGURE_FORMATS, *TABLE_SUFFIXES)
DEFAULT_FORMATS: Final = ("pdf", "latex", "csv")  # what a paper takes, and its numbers
FORM_OF_SUFFIX: Final[dict[str, Form]] = {".svg": "svg", ".png": "png", ".pdf": "pdf", ".html": "html"}
FONT_SUFFIXES: Final = (".ttf", ".otf", ".ttc")


def checked_formats(asked: Sequence[str] | None) -> tuple[str, ...]:
    """Return the formats of `--format`, each once; several may stand in one, with commas. None or none: the default.

    Raises:
        ConfigError: One is unknown.
    """
    named = [name.strip().lower() for one in asked or () for name in one.split(",")]
    for name in named:
        if name not in FORMATS:
            raise ConfigError(
                f"--format {name}: is no format of figures or tables. {did_you_mean(name, FORMATS)}"
            )
    return tuple(dict.fromkeys(named)) or DEFAULT_FORMATS


def check_files_folder(folder: Path) -> None:
    """Refuse a folder of `--figures` that could not be made or written.

    Raises:
        ConfigError: It is a file, or lies in one; or nothing can be made there.
        DiskError: Writing is forbidden.
    """
    place = next(one for one in (folder, *folder.absolute().parents) if one.exists() or one.is_symlink())
    if not place.exists():
        raise ConfigError(f"--figures {folder}: {place.name} is a link to nothing; name a folder.")
    if not place.is_dir():
        raise ConfigError(f"--figures {folder}: {place.name} is a file; name a folder.")
    try:
        with as_disk_error(place), tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:  # of a file system that holds no files of ours
        raise ConfigError(
            f"--figures {folder}: nothing can be written in {place} ({error.strerror}); name another folder."
        ) from None


def check_fonts(folder: Path | None) -> None:
    """Refuse a folder of `--fonts` that holds no font; None: none is named.

    Raises:
        ConfigError: Name another one.
    """
    if folder is None:
        return
    if not folder.is_dir():
        raise ConfigError(f"--fonts {folder}: there is no such folder.")
    if next(font_files(folder), None) is None:
        raise ConfigError(
            f"--fonts {folder}: holds no font; it needs files that end in {', '.join(FONT_SUFFIXES)}."
        )


def check_figure(path: Path | None, fonts: Path | None = None) -> None:
    """Refuse a figure that could not be written, before anything is computed; None: none is to be.

    Raises:
        ConfigError: Its suffix is unknown, or its folder or that of the fonts is not there.
    """
    check_fonts(fonts)
    if path is None:
        if fonts is not None:
            raise ConfigError(f"--fonts {fonts}: is for --figure; add --figure NAME.pdf, or leave it out.")
        return
    if path.suffix.lower() not in FORM_OF_SUFFIX:
        raise ConfigError(
            f"{path}: a figure's name must end in {', '.join(FORM_OF_SUFFIX)}, not {path.suffix!r}."
        )
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: there is no folder {path.parent}; make it first.")


def font_files(folder: Path) -> Iterator[Path]:
    """Yield the font files of a folder and of those in it, by name; what cannot be read is left out."""
    for place, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(place, name) for name in sorted(names) if Path(name).suffix.lower() in FONT_SUFFIXES)
