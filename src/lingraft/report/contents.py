"""What a report consists of, in reading order. The page, the exported files and the terminal show the same blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from lingraft.measures.base import Plot
from lingraft.report.side_by_side import Answering
from lingraft.report.tables import Table


@dataclass(frozen=True)
class PlacedTable:
    """A table with its place in the report.

    Attributes:
        name: Of its files and its anchor on the page: lower-case letters, digits and hyphens, unique in the report.
        title: Its heading; empty where that of the section says all.
        caption: How to read it.
        table: The table.
        is_folded: Only its title is shown until the reader opens it.
    """

    name: str
    title: str
    caption: str
    table: Table
    is_folded: bool = False


@dataclass(frozen=True)
class Lines:
    """Sentences, or a text that is shown as it is.

    Attributes:
        title: Its heading; empty: none.
        lines: One paragraph each; they may hold what models and data sets say.
        kind: `notes`; `problems`, which must be seen; `text`, shown in a fixed width, line by line.
        is_folded: As of a table.
    """

    title: str
    lines: tuple[str, ...]
    kind: str = "notes"
    is_folded: bool = False


@dataclass(frozen=True)
class SideBySide:
    """What the models answered to the same items, beside each other; of the page alone.

    Attributes:
        name: As of a table.
        title: Its heading.
        caption: How to read it.
        answering: Reads the answers, which may be many.
    """

    name: str
    title: str
    caption: str
    answering: Callable[[], Answering]


Block = Plot | PlacedTable | Lines | SideBySide


@dataclass(frozen=True)
class Section:
    """A part of the report under one heading.

    Attributes:
        name: Its anchor, as of a table.
        title: Its heading.
        blocks: What it shows.
        intro: A sentence or two below the heading.
        is_folded: Closed at first.
    """

    name: str
    title: str
    blocks: tuple[Block, ...] = field(default=())
    intro: str = ""
    is_folded: bool = False
