"""How results print."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from html import escape

from lingraft.errors import escape_control_characters
from lingraft.report.tables import Entry, Table


class Printed(ABC):
    """A result that prints as its tables: at the prompt, by `print`, and in a notebook."""

    @abstractmethod
    def tables(self) -> Sequence[tuple[str, Table]]:
        """Return the tables, each with its title."""

    def lines(self) -> Sequence[str]:
        """Return what is said below them."""
        return ()

    def __str__(self) -> str:
        parts = [f"{title}\n{_text(table)}" for title, table in self.tables() if table.rows]
        return "\n\n".join([*parts, *(["\n".join(self.lines())] if self.lines() else [])])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_of_tables(self.tables(), self.lines())


def _shown(text: str) -> str:
    return escape_control_characters(text, keep="")


def _text(table: Table) -> str:
    """Return a table as text: names to the left, figures to the right."""
    from rich.cells import cell_len

    rows = [[_shown(cell) for cell in row] for row in ([one.title for one in table.columns], *table.rows)]
    widths = [max(cell_len(row[column]) for row in rows) for column in range(len(table.columns))]

    def line(row: Sequence[str]) -> str:
        cells = []
        for column, cell in enumerate(row):
            space = " " * (widths[column] - cell_len(cell))
            cells.append(cell + space if column < table.n_keys else space + cell)
        return "  ".join(cells).rstrip()

    return "\n".join([line(rows[0]), "  ".join("-" * width for width in widths), *map(line, rows[1:])])


def html_of_tables(tables: Sequence[tuple[str, Table]], lines: Sequence[str] = ()) -> str:
    """Return tables, each with its title, and what is said below them, as HTML without style and script.

    A table with details has them folded below it.
    """
    parts = []
    for title, table in tables:
        parts.append(f"<p>{escape(_shown(title))}</p>{_html(table.essential)}")
        if any(column.is_detail for column in table.columns):
            parts.append(f"<details><summary>All columns</summary>{_html(table)}</details>")
    return "".join((*parts, *(f"<p>{escape(_shown(line))}</p>" for line in lines)))


def _html(table: Table) -> str:
    head = "".join(
        f'<th scope="col" title="{escape(one.meaning, quote=True)}">{escape(_shown(one.title))}</th>'
        for one in table.columns
    )
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(cell: str) -> str:
    text = escape(_shown(cell))
    is_best = isinstance(cell, Entry) and cell.is_best
    return f"<td><strong>{text}</strong></td>" if is_best else f"<td>{text}</td>"
