"""A table as what other programs read: CSV, Markdown and LaTeX.

What names of models and data hold is untrusted: it stays text, whatever reads the file.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass
from io import StringIO
from typing import Final, Literal

from lingraft.errors import escape_control_characters
from lingraft.report.latex import latex_table
from lingraft.report.tables import ABSENT, Entry, Table
from lingraft.text.folding import composed

TableFormat = Literal["csv", "latex", "markdown"]
# A spreadsheet runs a cell that begins so, with its full-width forms; an apostrophe in front makes it text.
_FORMULA: Final = re.compile("^[=+\\-@\t\r＝＋－＠]")  # noqa: RUF001
_NUMBER: Final = r"[+-]?[\d,]*\.?\d+( %)?"
_HARMLESS: Final = re.compile(rf"{_NUMBER}( to {_NUMBER})?")
_IN_PARENTHESES: Final = re.compile(r"\(([^()]*)\)")
# What Markdown takes for markup; underscores only where a word begins or ends, so that names stay as they are.
_MARKUP: Final = re.compile(r"[\\`*{}\[\]<>&|~$!#]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=\bwww)\.")


@dataclass(frozen=True)
class TableTexts:
    """A table as the text of each file."""

    csv: str
    latex: str
    markdown: str


def table_texts(table: Table, title: str = "", caption: str = "", *, wide: bool = False) -> TableTexts:
    """Return a table as each of its files.

    Args:
        table: What is written.
        title: Its heading, for a reader of the LaTeX and Markdown files.
        caption: How to read it, likewise.
        wide: All columns in LaTeX and Markdown, as CSV has them always; else the essential ones.
    """
    latex = latex_table(table, title, caption, wide=wide)
    return TableTexts(csv_table(table), latex, markdown_table(table, title, caption, wide=wide))


def csv_table(table: Table) -> str:
    """Return a table as CSV: a row of names, then values with all of their digits.

    A column of figures named X becomes `X`, where it has intervals `X low` and `X high`, where it has signs `X sign`
    (rose, fell, unchanged, undecided, seeds_disagree), and `X note` where a word stands in place of figures, such as
    failed, or something in parentheses beside them, such as the range of seeds. A share is a share, also where the
    table shows per cent. What is not there is empty. Text that a spreadsheet would run as a formula has an apostrophe
    in front.
    """
    columns: list[tuple[str, list[str]]] = []
    for index, column in enumerate(table.columns):
        cells = [row[index] for row in table.rows]
        title = _harmless(composed(column.title))
        if not table.is_of_figures(index):
            columns.append((title, ["" if cell == ABSENT else _harmless(cell) for cell in cells]))
            continue
        entries = [cell if isinstance(cell, Entry) else Entry(cell) for cell in cells]
        figures: dict[str, list[str]] = {
            "": [_number(one.value) for one in entries],
            " low": [_number(one.low) for one in entries],
            " high": [_number(one.high) for one in entries],
            " sign": [one.answer or "" for one in entries],
            " note": [_note(one) for one in entries],
        }
        columns += [(title + part, texts) for part, texts in figures.items() if not part or any(texts)]
    file = StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(name for name, _ in columns)
    writer.writerows(zip(*(texts for _, texts in columns), strict=True))
    return file.getvalue()


def markdown_table(table: Table, title: str = "", caption: str = "", *, wide: bool = False) -> str:
    """Return a table as a pipe table; arguments as of `table_texts`.

    The best figures are bold, with all that are as good as them.
    """
    shown = table if wide else table.essential
    sides = ("---:" if shown.is_of_figures(i) else "---" for i in range(len(shown.columns)))
    rows = [
        [
            f"**{markdown_text(cell)}**" if isinstance(cell, Entry) and cell.is_best else markdown_text(cell)
            for cell in row
        ]
        for row in shown.rows
    ]
    lines = [_row([markdown_text(column.title) for column in shown.columns]), _row(sides), *map(_row, rows)]
    parts = [
        f"### {markdown_text(title)}" if title else "",
        "\n".join(lines),
        markdown_text(" ".join((caption, *shown.marks))),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown_text(text: str) -> str:
    """Return a text in which Markdown finds no markup, no HTML, no address and no end of a cell."""
    one_line = escape_control_characters(composed(text), keep="")
    return _MARKUP.sub(lambda found: f"\\{found[0]}", one_line)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _note(entry: Entry) -> str:
    """Return what an entry says besides its figure, interval and sign."""
    if entry.value is None:
        return "" if entry == ABSENT else _harmless(entry)
    return "; ".join(_IN_PARENTHESES.findall(entry))


def _number(value: float | None) -> str:
    return "" if value is None else repr(value)


def _harmless(text: str) -> str:
    """Return a text that is no formula, with control characters visible."""
    shown = escape_control_characters(text)
    return f"'{shown}" if _FORMULA.match(shown) and not _HARMLESS.fullmatch(shown) else shown
