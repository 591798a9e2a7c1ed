"""Fonts of the texts in a figure that becomes a PDF or PNG, so that names in every script can be read.

The engine draws a text in Liberation Sans, which it brings along. Where that has not all characters, it takes the first
of the system's fonts that has them, be that bold or with serifs. So a text of such characters is given a family here:
the first plain one that has all of them. This runs in the engine's own process (`drawing`).
"""

from __future__ import annotations

import html
import os
import re
import struct
import sys
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from lingraft.report.formats import font_files
from lingraft.text.scripts import script_name

_TEXT: Final = re.compile(r"(<text\b[^>]*>)(.*?)(</text>)", re.DOTALL)
_FAMILY: Final = re.compile(r' font-family="[^"]*"')
_TAG: Final = re.compile(r"(<[^>]*>)")
_USUAL: Final = "\\x00-\\x7e\\xa0-\\u017f\\u2010-\\u2027▲▼●"  # which Liberation Sans has, however old it is
_FOREIGN: Final = re.compile(rf"[^{_USUAL}]+(?: +[^{_USUAL}]+)*")
_STYLED: Final = re.compile(
    r"bold|black|italic|oblique|light|thin|medium|condensed|narrow|mono|serif|semi|extra|display",
    re.IGNORECASE,
)
_FIRST: Final = ("LiberationSans-Regular", "DejaVuSans", "NotoSans-Regular")
_NAMED: Final = 8  # scripts and symbols in a warning
_UNDRAWABLE: Final = "\U0001fffe"  # no character, so no font has it: the engine draws a box


@dataclass(frozen=True)
class Face:
    """One font of a file: the name of its family, and the characters that it has."""

    family: str
    characters: frozenset[int]

    @property
    def attribute(self) -> str:
        """Return what names it in SVG: in quotation marks, without which a name may hold letters and hyphens alone."""
        name = self.family.replace("\\", r"\\").replace("'", r"\'")
        return f"font-family=\"'{html.escape(name)}', sans-serif\""

    def has(self, text: Iterable[str]) -> bool:
        """Return whether it can draw all of a text."""
        return all(ord(character) in self.characters for character in text)


@dataclass(frozen=True)
class Fitted:
    """An SVG whose texts name fonts that have their characters.

    Attributes:
        svg: The drawing.
        boxes: Scripts of which no font has a character, and symbols by their number: the engine draws boxes.
        crowded: Scripts with signs beside their letters, such as vowels, which the engine sets over them.
    """

    svg: str
    boxes: tuple[str, ...]
    crowded: tuple[str, ...]


def fit_fonts(svg: str, folder: Path | None) -> Fitted:
    """Return an SVG of the engine with a font for each text, and what cannot be drawn well.

    Args:
        svg: As Vega draws it.
        folder: Further fonts, which the engine knows; None: the system's.
    """
    foreign: dict[str, None] = {}

    def fitted(found: re.Match[str]) -> str:
        opening, content, closing = found.groups()
        drawn = html.unescape(_TAG.sub("", content))
        runs = _FOREIGN.findall(drawn)
        if not runs:
            return found[0]
        needed = frozenset("".join(runs)) - {" "}
        foreign.update(dict.fromkeys(sorted(needed)))
        face = _face(needed, folder)
        if face is not None and face.has(drawn):
            return f"{_FAMILY.sub('', opening)[:-1]} {face.attribute}>{content}{closing}"
        parts = (part if part.startswith("<") else _spans(part, folder) for part in _TAG.split(content))
        return opening + "".join(parts) + closing

    found = _TEXT.sub(fitted, svg)
    unknown = [one for one in foreign if _face(frozenset(one), folder) is None]
    examples = {_name_of(one): one for one in unknown}
    return Fitted(
        svg=found,
        boxes=tuple(script for script, one in examples.items() if _is_box(one)),
        crowded=tuple(
            dict.fromkeys(script_name(one) for one in foreign if unicodedata.category(one) == "Mc")
        ),
    )


def font_warnings(boxes: Iterable[str], crowded: Iterable[str]) -> list[str]:
    """Return what to say of scripts that figures hold as boxes, or crowded; each may be named several times."""
    warnings = []
    if lacking := sorted(set(boxes)):
        more = f" and {len(lacking) - _NAMED} more" if len(lacking) > _NAMED else ""
        warnings.append(
            f"No font here has {', '.join(lacking[:_NAMED])}{more}: PDF and PNG show boxes. Install fonts that do "
            "(`apt install fonts-noto-core fonts-noto-cjk`), or name a folder that holds some: --fonts FOLDER."
        )
    if overlapping := sorted(set(crowded) - set(lacking)):
        warnings.append(
            f"In PDF and PNG signs of {', '.join(overlapping)} overlap their letters: take SVG, which browsers draw "
            "right, or print the page as a PDF."
        )
    return warnings


def _name_of(character: str) -> str:
    """Return what a warning calls a character: its script, which is tested by one of them, or of a symbol itself."""
    name = script_name(character)
    return f"U+{ord(character):04X}" if name == "symbols" else name


def _spans(text: str, folder: Path | None) -> str:
    """Return a piece of text whose foreign runs name a font each."""

    def span(found: re.Match[str]) -> str:
        face = _face(frozenset(found[0]) - {" "}, folder)
        return found[0] if face is None else f"<tspan {face.attribute}>{found[0]}</tspan>"

    return _FOREIGN.sub(span, text)


@cache
def _face(characters: frozenset[str], folder: Path | None) -> Face | None:
    """Return the first plain font that has all of some characters; None: none has."""
    needed = [one for one in characters if unicodedata.category(one) not in ("Cf", "Cc")]
    faces = (_first_face(path) for path in _files(folder))
    return next((face for face in faces if face is not None and face.has(needed)), None)


@cache
def _files(folder: Path | None) -> tuple[Path, ...]:
    """Return the font files that are looked at, those of the folder first, then plain ones of the system."""

    def rank(path: Path) -> tuple[int, bool, str]:
        place = _FIRST.index(path.stem) if path.stem in _FIRST else len(_FIRST)
        return place, not path.stem.startswith("NotoSans"), path.stem

    own = [] if folder is None else list(font_files(folder))
    found = [
        path for place in _system_folders() for path in font_files(place) if not _STYLED.search(path.stem)
    ]
    return (*own, *sorted(found, key=rank))


def _system_folders() -> tuple[Path, ...]:
    """Return where the system keeps fonts that the engine finds."""
    home = Path.home()
    if sys.platform == "darwin":
        return Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library" / "Fonts"
    if sys.platform == "win32":
        return (Path(os.environ.get("WINDIR", r"C:\Windows"), "Fonts"),)
    if "FONTCONFIG_FILE" in os.environ:  # the engine reads it, and finds what it names
        return ()
    own = os.environ.get("XDG_DATA_HOME")
    own_fonts = Path(own) if own else home / ".local" / "share"
    return Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), own_fonts / "fonts", home / ".fonts"


@cache
def _first_face(path: Path) -> Face | None:
    """Return the font of a file, of a collection the first; None: it cannot be read."""
    from fontTools.ttLib import TTFont, TTLibError

    try:
        font = TTFont(path, lazy=True, fontNumber=0)
        return Face(font["name"].getBestFamilyName() or "", frozenset(font["cmap"].getBestCmap() or ()))
    except (TTLibError, OSError, KeyError, ValueError, AssertionError, struct.error):
        return None


def _is_box(character: str) -> bool:
    """Return whether the engine has no font for a character."""
    return _picture(character) == _picture(_UNDRAWABLE)


@cache
def _picture(character: str) -> bytes:
    import vl_convert

    text = f'<text x="9" y="28" font-family="sans-serif" font-size="16">{html.escape(character)}</text>'
    picture: bytes = vl_convert.svg_to_png(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="40" height="40">{text}</svg>'
    )
    return picture
