"""A table in as few characters as a terminal has: its essential columns, without what a reader can do without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.cells import cell_len

from lingraft.report.tables import Entry, Table

ELLIPSIS = "…"
_SHARES = (0.5, 0.7, 0.3, 0.85, 0.15)
_JOINER = "\u200d"  # of two emoji into one
_SHORTEST_NAME = 12  # characters of a name that columns give way for


@dataclass(frozen=True)
class Narrow:
    """A table that fits.

    Attributes:
        table: The columns that are left; titles hold line breaks, and names may be without their middle.
        left_out: Titles of the columns that are not in it.
        cut: Names without their middle.
    """

    table: Table
    left_out: tuple[str, ...]
    cut: tuple[str, ...]


def narrow(table: Table, width: int, gap: int, *, names_whole: bool = False) -> Narrow:
    """Return the essential columns of a table in `width` characters.

    In this order: entries lose the range of seeds and their intervals, but for the first figure's interval; columns go,
    from the last one on; names lose their middle.

    Args:
        table: The table.
        width: Characters of a line.
        gap: Characters between two columns.
        names_whole: Leave names as they are, and let the table be wider.
    """
    keys = list(range(table.n_keys))
    kept = [i for i in range(table.n_keys, len(table.columns)) if not table.columns[i].is_detail]
    wide = {i: _cells_of(table, i, 0) for i in (*keys, *kept)}
    forms = {i: [wide[i], *(_cells_of(table, i, level) for level in (1, 2))] for i in kept}
    chosen = {i: forms[i][1 if i == kept[0] else 2] for i in kept}

    def total(names: Sequence[int]) -> int:
        columns = [*names, *(_width(table.columns[i].title, chosen[i]) for i in kept)]
        return sum(columns) + gap * (len(columns) - 1)

    whole = [_width(table.columns[i].title, wide[i]) for i in keys]
    least = whole if names_whole else [_least(table.columns[i].title, wide[i]) for i in keys]
    while len(kept) > 1 and total(least) > width:
        kept.pop()
    if total(least) > width:
        chosen[kept[0]] = forms[kept[0]][2]
    names = list(whole)
    while not names_whole and total(names) > width and names != least:
        spare = [own - shortest for own, shortest in zip(names, least, strict=True)]
        names[spare.index(max(spare))] -= 1
    for level in (1, 0):  # what there is room for after all, from the first column on
        for i in kept:
            before, chosen[i] = chosen[i], forms[i][level]
            if total(names) > width:
                chosen[i] = before
    columns = [_cut(wide[i], names[i]) for i in keys] + [chosen[i] for i in kept]
    places = [*keys, *kept]
    titles = [_wrapped(table.columns[i].title, own) for i, own in zip(places, columns, strict=True)]
    cut = (wide[i][row] for i in keys for row in range(len(table.rows)) if columns[i][row] != wide[i][row])
    return Narrow(
        Table(
            tuple(replace(table.columns[i], title=title) for i, title in zip(places, titles, strict=True)),
            tuple(zip(*columns, strict=True)),
            table.n_keys,
        ),
        tuple(one.title for i, one in enumerate(table.columns) if i not in places),
        tuple(dict.fromkeys(cut)),
    )


def without_middle(text: str, width: int, share: float = 0.5) -> str:
    """Return a text without its middle, where it is wider; letters stay with their marks.

    Args:
        text: The text.
        width: Of what is returned, at most.
        share: Of what is left, how much stands before the gap.
    """
    if cell_len(text) <= width:
        return text
    letters: list[str] = []
    for character in text:
        if letters and (cell_len(character) == 0 or letters[-1].endswith(_JOINER)):
            letters[-1] += character
        else:
            letters.append(character)
    head, tail = "", ""
    while letters:
        from_start = cell_len(head) * (1 - share) <= cell_len(tail) * share
        longer = head + letters.pop(0) if from_start else letters.pop() + tail
        if cell_len(longer) + cell_len(tail if from_start else head) + len(ELLIPSIS) > width:
            break
        head, tail = (longer, tail) if from_start else (head, longer)
    return f"{head}{ELLIPSIS}{tail}"


def _cut(names: Sequence[str], width: int) -> list[str]:
    """Return names in `width` characters, cut where they stay different; where they would not, a little wider."""
    for own in range(width, max(map(cell_len, names), default=width) + 1):
        for share in _SHARES:
            cut = [without_middle(name, own, share) for name in names]
            if len(set(cut)) == len(set(names)):
                return cut
    return list(names)


def _least(title: str, names: Sequence[str]) -> int:
    """Return in how few characters a column of names can stand."""
    return _width(title, _cut(names, min(_width(title, names), _SHORTEST_NAME)))


def _cells_of(table: Table, column: int, level: int) -> list[str]:
    """Return the entries of a column: whole (0), or in one of their shorter forms."""
    cells: list[str] = []
    for row in table.rows:
        cell = row[column]
        forms = (cell, *cell.shorter) if isinstance(cell, Entry) else (cell,)
        text = forms[min(level, len(forms) - 1)]
        cells.append(cell.with_text(text) if isinstance(cell, Entry) else text)
    return cells


def _wrapped(title: str, cells: Sequence[str]) -> str:
    """Return a title on lines no wider than the entries below it, or than its own longest word."""
    words = title.split(" ")
    room = max(map(cell_len, (*words, *cells)))
    lines = [words[0]]
    for word in words[1:]:
        if cell_len(f"{lines[-1]} {word}") <= room:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return "\n".join(lines)


def _width(title: str, cells: Sequence[str]) -> int:
    """Return the width of a column whose title stands on several lines."""
    return max(map(cell_len, (*title.split(" "), *cells)))
