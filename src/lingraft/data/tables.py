"""Rows of delimited text: which character separates the columns, and whether quotation marks are part of the text.

Neither the file's ending nor its first lines tell: a .csv of a European spreadsheet has semicolons, and many a .tsv is
written without any quoting, so that one line that begins with a quotation mark would swallow those that follow. (The
csv module's Sniffer judges by the first characters and does not know files without quoting.) What fits is read.
"""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, TextIO

from lingraft.errors import DataError

SEPARATORS = {".csv": ",", ".tsv": "\t"}  # what each ending stands for, where several fit alike
# What pandas reads as missing by default (pandas.read_csv, `na_values`): a table without types has no other way to say
# it, so an answer that is the word None needs a format with types, such as JSON lines.
NOTHING = frozenset(
    {"", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A"}
    | {"NA", "NULL", "NaN", "None", "n/a", "nan", "null"}
)

HOW_TO_CONVERT = "convert it, such as a file of Windows by iconv -f WINDOWS-1252 -t UTF-8"

if TYPE_CHECKING:
    from _csv import Reader

_TRIED = (",", "\t", ";", "|")
_SAMPLED_ROWS = 200
LONGEST_ROW = 1 << 28  # bytes or characters of a line, a field or a JSON value
TOO_LONG = f"the row is longer than {LONGEST_ROW >> 20} MB, as no text to train on is"
_BLOCK_CHARACTERS = 1 << 20
_QUOTED = re.compile(r'"(?:[^"]|"")*"', re.DOTALL)

Open = Callable[[], TextIO]
Cells = Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row below the header.

    Attributes:
        line: The line on which it starts, from 1.
        cells: By column; empty where there is a problem.
        problem: Why the row cannot be read, or None.
    """

    line: int
    cells: Cells
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class _Way:
    """A way to read a table: what separates its columns, and whether quotation marks enclose fields (RFC 4180)."""

    separator: str
    quoted: bool

    def reader(self, text: TextIO) -> Reader:
        lines = _lines(text)
        if self.quoted:
            return csv.reader(lines, delimiter=self.separator, strict=True)
        return csv.reader(lines, delimiter=self.separator, quoting=csv.QUOTE_NONE, strict=True)


@dataclass(frozen=True, slots=True)
class _Fit:
    """How well a way fits.

    Attributes:
        columns: Of the first row.
        rows: Rows read, the first one included.
        misfits: Rows with another number of columns, and 1 for the place at which the quotation marks make no sense.
        broken: Whether there was such a place; the rows end there.
        loose: Fields that begin with a quotation mark or hold one, but are not enclosed in them.
        unpaired: Fields with an odd number of quotation marks, or enclosed in marks without being well formed.
    """

    columns: int
    rows: int
    misfits: int
    broken: bool
    loose: int
    unpaired: int

    @property
    def share(self) -> float:
        return 1 - self.misfits / max(1, self.rows)


def read_table(opened: Open, name: str, usual: str) -> Iterator[TableRow]:
    """Yield the rows of a table below its header.

    The separator is the one of comma, tab, semicolon and bar in which the rows have the header's number of columns most
    consistently. Quotation marks enclose fields, as RFC 4180 has it, where every row then fits; else they are text. A
    table whose first line holds a number has no header: its columns are called column_1, column_2, ... A first column
    without a name, such as pandas writes for its index, is column_1 too.

    Args:
        opened: Opens the text anew, line ends untranslated.
        name: Of the file, for messages.
        usual: The separator that the file's ending stands for.

    Raises:
        DataError: There is no header, the text is not UTF-8, or a quotation mark is missing.
    """
    csv.field_size_limit(LONGEST_ROW)  # the csv module's own limit is 131,072
    with opened() as text:
        way, reader = _Way(usual, quoted=True), None
        try:
            way = _way(opened, usual)
            reader = way.reader(text)
            first = next((values for values in reader if values), None)
            names, is_row = _header(first, name)
            if first and is_row:
                yield _row(names, first, 1)
            line = reader.line_num + 1
            for values in reader:
                if values:
                    yield _row(names, values, line)
                line = reader.line_num + 1
        except UnicodeDecodeError as error:
            after = 0 if reader is None else reader.line_num
            raise DataError(
                f"{name}: the file is not UTF-8 after line {after} ({error.reason}): {HOW_TO_CONVERT}."
            ) from None
        except csv.Error as error:
            place = f"{name}:{1 if reader is None else max(1, reader.line_num)}"
            raise DataError(f"{place}: not valid CSV: {error}.") from None


def _lines(text: TextIO) -> Iterator[str]:
    for line in iter(lambda: text.readline(LONGEST_ROW), ""):
        if len(line) == LONGEST_ROW:
            raise csv.Error(TOO_LONG)
        yield line


def without_nothing(cells: Cells) -> dict[str, str | None]:
    """Return a row's cells with None in place of what a table writes for nothing (NOTHING)."""
    return {name: None if cell is None or cell.strip() in NOTHING else cell for name, cell in cells.items()}


def _way(opened: Open, usual: str) -> _Way:
    """Return the way in which the first rows fit best."""
    fits = {
        way: fit
        for separator in sorted(_TRIED, key=lambda one: one != usual)
        for quoted in (True, False)
        if (fit := _fit(opened, way := _Way(separator, quoted), _SAMPLED_ROWS)).columns > 1
    }
    if not fits:
        return _Way(usual, quoted=True)
    best = max(fits, key=lambda way: (fits[way].share, fits[way].columns if fits[way].rows > 1 else 0))
    return _Way(best.separator, _is_quoted(opened, best.separator))


def _is_quoted(opened: Open, separator: str) -> bool:
    """Return whether a table's quotation marks enclose fields, judged by the whole table."""
    with opened() as text:
        if not any('"' in block for block in iter(lambda: text.read(_BLOCK_CHARACTERS), "")):
            return True
    quoted, plain = (_fit(opened, _Way(separator, one)) for one in (True, False))
    if (
        separator != "\t"
    ):  # quoting is the rule: without it only where it makes no sense, and its absence does
        return not (quoted.broken and plain.misfits == 0 and plain.unpaired == 0)
    if quoted.broken:
        return plain.share <= 0.5
    if quoted.misfits != plain.misfits:
        return quoted.misfits < plain.misfits
    return quoted.rows == plain.rows and plain.loose == 0


def _fit(opened: Open, way: _Way, rows: int | None = None) -> _Fit:
    columns = count = misfits = loose = unpaired = 0
    broken = False
    with opened() as text:
        try:
            for values in islice(way.reader(text), rows):
                if not values:
                    continue
                columns = columns or len(values)
                count += 1
                misfits += len(values) != columns
                for value in values if not way.quoted else ():
                    if '"' in value and not _QUOTED.fullmatch(value):
                        loose += 1
                        unpaired += value.count('"') % 2 or (len(value) > 1 and value[0] == value[-1] == '"')
        except csv.Error:
            broken, misfits, count = True, misfits + 1, count + 1
    return _Fit(columns, count, misfits, broken, loose, unpaired)


def _header(first: list[str] | None, source: str) -> tuple[list[str], bool]:
    """Return the columns' names, and whether the first line is a row itself."""
    if not first:
        raise DataError(f"{source}:1: the file is empty; its first line must name the columns.")

    def is_number(cell: str) -> bool:
        try:
            return math.isfinite(float(cell))
        except ValueError:
            return False

    if any(map(is_number, first)):
        return [f"column_{number}" for number in range(1, len(first) + 1)], True
    names = [first[0] if first[0].strip() else "column_1", *first[1:]]  # pandas names no column of its index
    for name, count in Counter(names).items():
        if count > 1 or not name.strip():
            problem = f"{count} columns are named {name!r}" if name.strip() else "a column has no name"
            raise DataError(f"{source}:1: {problem}; give every column a name of its own.")
    return names, False


def _row(header: list[str], values: list[str], line: int) -> TableRow:
    if len(values) != len(header):
        problem = f"has {len(values)} columns, the header names {len(header)}"
        return TableRow(line, {}, f"the row {problem}: is a quotation mark missing?")
    return TableRow(line, dict(zip(header, values, strict=True)))
