"""How a table's entries stand on the page: what is read out of a text, and what is escaped of it (all)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup, escape

from lingraft.report.signs import LIMIT_WORDS, SIGNS
from lingraft.report.tables import ABSENT, FAILED, PENDING, Entry, Table

_FIGURE: Final = re.compile(
    r"(?P<value>[+-]?\d[\d.,]*(?: ?%)?)(?P<ranges>(?: [\[(][^\])]*[\])])*)(?: (?P<sign>▲|▼|=|\?|seeds disagree))?"
)
_LOOK_OF_SIGN: Final = {SIGNS["rose"]: ("up", "rose"), SIGNS["fell"]: ("down", "fell")} | {
    SIGNS[answer]: ("", answer) for answer in ("unchanged", "undecided")
}
_LOOK_OF_WORD: Final = {LIMIT_WORDS["held"]: "up", LIMIT_WORDS["broken"]: "down", FAILED: "down"}
_LONG = 24  # characters; a column with longer texts is one of prose, which is broken into lines
_LONG_NAME = 12  # characters; a longer name of a row may be broken
_PAPER_MM, _MM_PER_CHARACTER, _MM_PER_COLUMN = 186, 1.35, 2.4  # of A4 upright, at the size of tables on paper
_SMALLEST = 0.82  # of that size, before a table is put on its side


@dataclass(frozen=True)
class Drawn:
    """A table as HTML.

    Attributes:
        heads: The class of each heading, by column.
        meanings: Each explanation with the titles and numbers of the columns that it explains.
        rows: All rows.
        detail: How many columns are folded at first.
        on_paper: How the others fit on a page: empty as they are, `small`, or on its side (`wide`).
        has_best: Whether entries are marked as the best of their column.
    """

    heads: tuple[str, ...]
    meanings: tuple[tuple[str, tuple[tuple[int, str], ...]], ...]
    rows: Markup
    detail: int
    on_paper: str
    has_best: bool


def drawn(table: Table) -> Drawn:
    """Return the HTML of a table's rows, and how its columns look."""
    classes, widths = [], []
    for place, column in enumerate(table.columns):
        texts = [row[place] for row in table.rows]
        longest = max(map(len, texts), default=0)
        is_text = any(text not in (ABSENT, "") for text in texts) and not any(map(_is_figure, texts))
        kinds = (
            "key" if place < table.n_keys else "text" if is_text else "",
            "prose" if is_text and longest > _LONG else "",
            "detail" if column.is_detail else "",
        )
        classes.append(" ".join(kind for kind in kinds if kind))
        if not column.is_detail:
            widths.append(max(min(longest, _LONG), max(map(len, column.title.split()), default=0)))
    needed = sum(widths) * _MM_PER_CHARACTER + len(widths) * _MM_PER_COLUMN
    groups = {row[: table.n_keys - 1] for row in table.rows}
    is_grouped = table.n_keys > 1 and 2 * len(groups) <= len(table.rows)
    rows, before = [], None
    for row in table.rows:
        group = row[: max(1, table.n_keys - 1)]
        is_first = is_grouped and before is not None and group != before
        entries = "".join(map(_entry, row, classes))
        rows.append(f'<tr class="first">{entries}</tr>' if is_first else f"<tr>{entries}</tr>")
        before = group
    meanings: dict[str, list[tuple[int, str]]] = {}
    for place, column in enumerate(table.columns):
        if column.meaning:
            meanings.setdefault(column.meaning, []).append((place, column.title))
    return Drawn(
        heads=tuple(classes),
        meanings=tuple((meaning, tuple(named)) for meaning, named in meanings.items()),
        rows=Markup("\n".join(rows)),
        detail=sum(column.is_detail for column in table.columns),
        on_paper="" if needed <= _PAPER_MM else "small" if _SMALLEST * needed <= _PAPER_MM else "wide",
        has_best=any(isinstance(text, Entry) and text.is_best for row in table.rows for text in row),
    )


def _is_figure(text: str) -> bool:
    return isinstance(text, Entry) or _FIGURE.fullmatch(text) is not None


def _entry(text: str, kinds: str) -> str:
    """Return one entry's HTML: its figure for sorting, its interval in small type, its sign in colour with its name."""
    value = text.value if isinstance(text, Entry) else None
    data = "" if value is None else f' data-value="{value:.7g}"'
    if kinds.startswith("key"):
        name = str(escape(text))
        if len(text) > _LONG_NAME:
            name = re.sub(r"([_/])(?=\w)", r"\1<wbr>", name)  # where it may be broken
        return f'<th scope="row" class="{kinds}"{data}>{name}</th>'
    look = _LOOK_OF_WORD.get(text, "absent" if text in (ABSENT, PENDING) else "")
    inner = escape(text)
    if found := _FIGURE.fullmatch(text):
        ranges, sign = found["ranges"].strip(), found["sign"]
        inner = escape(found["value"])
        if ranges:
            inner += Markup(" <small>{}</small>").format(ranges)
        if sign in _LOOK_OF_SIGN:
            inner += Markup(' <b class="{}" role="img" aria-label="{}">{}</b>').format(
                *_LOOK_OF_SIGN[sign], sign
            )
        elif sign:
            inner += Markup(" {}").format(sign)
    best = "best" if isinstance(text, Entry) and text.is_best else ""
    kinds = " ".join(kind for kind in (kinds, look, best) if kind)
    return f"<td{f' class={chr(34)}{kinds}{chr(34)}' if kinds else ''}{data}>{inner}</td>"
