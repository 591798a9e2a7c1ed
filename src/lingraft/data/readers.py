"""One local file to raw rows with their places; FILE_FORMATS is the one table of the formats that are read.

Json and jsonl are read line by line, because a broken row must be named by file and line, and delimited text by
`data.tables` for the same reason; parquet goes through pyarrow, which is imported only then.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import reprlib
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast

from lingraft.data.tables import HOW_TO_CONVERT, SEPARATORS, read_table
from lingraft.errors import DataError, in_one_line

COMPRESSED = ".gz"
PROMPT_FIELD = "prompt"  # what a line of a .txt file is
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_PARQUET_ROWS = 1024  # decoded at a time
_WHITESPACE = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as it was found."""

    place: str  # file and line, or data set and row number, both from 1: `data/es.jsonl:17`
    number: int  # the line or row number alone
    value: Mapping[str, Any]  # field names and values; empty where there is a problem
    problem: str | None = None  # why the row cannot be read, or None
    name: str = ""  # id of the row where its number alone does not tell it from others; "": the number does
    language: str | None = None  # BCP-47 tag that the file's name gives its rows; None: it gives none
    # BCP-47 tag of a row that does not say its language, by its file's name; None: unknown.
    likely_language: str | None = None


@dataclass(frozen=True, slots=True)
class FileFormat:
    """How files of one ending are read."""

    read: Callable[[Path, str], Iterator[RawRow]]  # from a file and its name in places to its rows
    is_data: bool = True  # whether data sets come in it; else only what names the file itself reads it
    has_lines: bool = True  # whether it is text, whose lines can be counted


def data_suffix(path: Path) -> str:
    """Return a data file's ending in lower case, without `.gz`."""
    return Path(path.name.lower().removesuffix(COMPRESSED)).suffix


def read_file(path: Path, name: str) -> Iterator[RawRow]:
    """Yield the rows of a file of FILE_FORMATS, gzip-compressed or not, named `name` in places.

    Raises:
        DataError: The file is not readable as a whole.
    """
    try:
        yield from FILE_FORMATS[data_suffix(path)].read(path, name)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{name}: the gzip file is broken or cut off: {error}.") from None
    except OSError as error:
        raise DataError(f"{name}: the file cannot be read: {in_one_line(error)}.") from None


@contextmanager
def as_data_error(what: str) -> Iterator[None]:
    """Turn whatever a library raises inside into a DataError that begins with `what`."""
    try:
        yield
    except Exception as error:  # hub, http, pyarrow and datasets share no base class
        raise DataError(f"{what}: {type(error).__name__}: {in_one_line(error)}") from error


def row_of(value: Any, place: str, number: int) -> RawRow:
    """Return the row that a value is, which must be an object."""
    if isinstance(value, dict):
        return RawRow(place, number, value)
    found = f"{type(value).__name__} ({reprlib.repr(value)})"
    return RawRow(place, number, {}, f"the row must be an object, not {found}")


def _open_bytes(path: Path, name: str) -> BinaryIO:
    """Open a text file for reading as bytes, decompressing it where its name ends in .gz.

    Raises:
        DataError: The file is UTF-16.
    """
    opened = gzip.open if path.suffix.lower() == COMPRESSED else open
    with opened(path, "rb") as file:
        start = file.read(2)
    if start in _UTF16_MARKS or b"\0" in start:  # no text in UTF-8 has a zero byte there
        raise DataError(f"{name}:1: the file is UTF-16, not UTF-8: convert it (iconv -f UTF-16 -t UTF-8).")
    return cast(BinaryIO, opened(path, "rb"))


def _lines(path: Path, name: str) -> Iterator[tuple[int, bytes]]:
    """Yield the numbers and contents of the lines that are not blank."""
    with _open_bytes(path, name) as file:
        # A binary file is split at \n only; text splitting would also cut at U+2028 inside a string.
        for number, line in enumerate(file, start=1):
            content = line.removeprefix(_BYTE_ORDER_MARK).strip() if number == 1 else line.strip()
            if content:
                yield number, content


def _read_text_lines(path: Path, name: str) -> Iterator[RawRow]:
    for number, line in _lines(path, name):
        place = f"{name}:{number}"
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            yield RawRow(place, number, {}, f"not UTF-8 at byte {error.start + 1} of the line")
            continue
        if text:
            yield RawRow(place, number, {PROMPT_FIELD: text})


def _refusing_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object's fields; Python's own reader would take the last of two values and say nothing."""
    found = dict(pairs)
    if len(found) < len(pairs):
        repeated = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {repeated!r} stands twice in one object")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_refusing_repeated_keys)


def _read_json_lines(path: Path, name: str) -> Iterator[RawRow]:
    for number, line in _lines(path, name):
        place = f"{name}:{number}"
        row = RawRow(place, number, {})
        try:
            if line.startswith(_BYTE_ORDER_MARK):
                problem = "a byte order mark (U+FEFF) amid the file, as where files were joined; remove it"
            else:
                row, problem = row_of(_DECODER.decode(line.decode("utf-8")), place, number), ""
        except UnicodeDecodeError as error:
            problem = f"not UTF-8 at byte {error.start + 1} of the line"
        except json.JSONDecodeError as error:
            problem = f"not JSON: {error.msg} at character {error.colno}"
        except (RecursionError, ValueError) as error:  # nested too deeply; a number of thousands of digits
            problem = f"not usable JSON: {error}"
        yield RawRow(place, number, {}, problem) if problem else row


def _read_json(path: Path, name: str) -> Iterator[RawRow]:
    """Yield the objects of a list; a .json file that does not start with a list is read as json lines.

    One object over several lines is one row where it has SQuAD's layout; any other is refused, because each of its
    lines would be a broken row.
    """
    with _open_bytes(path, name) as file:
        content = file.read().removeprefix(_BYTE_ORDER_MARK)
    if content.lstrip().startswith(b"["):
        yield from _rows_of_list(content, name)
        return
    content = content.strip()
    first = content.partition(b"\n")[0]
    if len(first) == len(content) or _is_json(first) or not _is_json(content):
        del content
        yield from _read_json_lines(path, name)
        return
    whole = json.loads(content)
    articles = whole.get("data") if isinstance(whole, dict) else None
    first_article = articles[0] if isinstance(articles, list) and articles else None
    if not isinstance(first_article, dict) or "paragraphs" not in first_article:
        raise DataError(
            f"{name}:1: the file is one object ({reprlib.repr(whole)}), not a list of rows: write [...] around it, or "
            "one row a line."
        )
    yield row_of(whole, f"{name}:1", 1)


def _is_json(content: bytes) -> bool:
    try:
        json.loads(content)
    except (RecursionError, ValueError):
        return False
    return True


def _rows_of_list(content: bytes, name: str) -> Iterator[RawRow]:
    """Decode one element after the other, so that each is known by the line on which it starts."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{name}:{line}: the file is not UTF-8 (byte {error.start + 1}): {HOW_TO_CONVERT}."
        ) from None
    position, line, counted = _skip_whitespace(text, text.index("[") + 1), 1, 0
    while not text.startswith("]", position):
        line, counted = line + text.count("\n", counted, position), position
        place = f"{name}:{line}"
        try:
            value, position = _DECODER.raw_decode(text, position)
        except (RecursionError, ValueError) as error:
            detail = (
                f"{error.msg} (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else error
            )
            raise DataError(f"{place}: the file is not valid JSON from this row on: {detail}.") from None
        yield row_of(value, place, line)
        position = _skip_whitespace(text, position)
        if text.startswith(",", position):
            position = _skip_whitespace(text, position + 1)
        elif not text.startswith("]", position):
            raise DataError(f"{place}: after this row, ',' or ']' is missing: the file is cut off or broken.")


def _skip_whitespace(text: str, position: int) -> int:
    found = _WHITESPACE.match(text, position)
    return position if found is None else found.end()


def _read_table(path: Path, name: str) -> Iterator[RawRow]:
    """Yield the rows of delimited text; a row is known by the line on which it starts."""
    rows = read_table(
        lambda: io.TextIOWrapper(_open_bytes(path, name), "utf-8-sig", newline=""),
        name,
        SEPARATORS[data_suffix(path)],
    )
    for row in rows:
        yield RawRow(f"{name}:{row.line}", row.line, row.cells, row.problem)


def _read_parquet(path: Path, name: str) -> Iterator[RawRow]:
    from pyarrow.parquet import ParquetFile

    with as_data_error(f"{name}: the parquet file cannot be read"), ParquetFile(path) as file:
        rows = chain.from_iterable(batch.to_pylist() for batch in file.iter_batches(_PARQUET_ROWS))
        for number, row in enumerate(rows, start=1):
            yield row_of(row, f"{name}:{number}", number)


FILE_FORMATS: Mapping[str, FileFormat] = {
    ".json": FileFormat(_read_json),
    ".jsonl": FileFormat(_read_json_lines),
    **{ending: FileFormat(_read_table) for ending in SEPARATORS},
    ".parquet": FileFormat(_read_parquet, has_lines=False),
    ".txt": FileFormat(_read_text_lines, is_data=False),
}
SUFFIXES = tuple(ending for ending, one in FILE_FORMATS.items() if one.is_data)
