"""One local file to raw rows with their places; FILE_FORMATS is the one table of the formats that are read.

Json and jsonl are read line by line, because a broken row must be named by file and line, and delimited text by
`data.tables` for the same reason; parquet goes through pyarrow, which is imported only then.
"""

from __future__ import annotations

import codecs
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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lingraft.data.tables import HOW_TO_CONVERT, LONGEST_ROW, SEPARATORS, TOO_LONG, read_table
from lingraft.errors import DataError, in_one_line

if TYPE_CHECKING:
    from pyarrow import RecordBatch

COMPRESSED = ".gz"
PROMPT_FIELD = "prompt"  # what a line of a .txt file is
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_GZIP_MARK = b"\x1f\x8b"
_LARGEST_RATIO = 100  # of unpacked to packed bytes; texts reach 5 to 30, gzip's largest is 1,030
_ALWAYS_UNPACKED = 1 << 26  # bytes, whatever the ratio
_BLOCK_BYTES = 1 << 20
_PARQUET_ROWS = 1024  # decoded at a time
_WHITESPACE = re.compile(r"[ \t\r\n]*")
_OF_NUMBERS = "0123456789+-.eE"
_LONGEST_SIGN = 16  # characters of a number or an escape that may be cut off where a block ends
_DEEPEST = 1_000_000  # lists in lists; what is deeper is not looked at to its end
# What opens and closes values, strings apart; one without an end (where a block ends) reaches up to it.
_JSON_SIGN = re.compile(r'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)


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
    except DataError:
        raise
    except Exception as error:  # hub, http, pyarrow and datasets share no base class
        raise DataError(f"{what}: {type(error).__name__}: {in_one_line(error)}") from error


def row_of(value: Any, place: str, number: int) -> RawRow:
    """Return the row that a value is, which must be an object."""
    if isinstance(value, dict):
        return RawRow(place, number, value)
    found = f"{type(value).__name__} ({reprlib.repr(value)})"
    return RawRow(place, number, {}, f"the row must be an object, not {found}")


class _Unpacked(io.RawIOBase):
    """The content of a gzip file; one that unpacks to far more than any text does is refused before it fills a disk."""

    def __init__(self, path: Path, name: str) -> None:
        self._file = path.open("rb")
        self._gzip = gzip.GzipFile(fileobj=self._file)
        self._name, self._unpacked = name, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._gzip.readinto1(buffer)
        self._unpacked += count
        if self._unpacked > _ALWAYS_UNPACKED and self._unpacked > _LARGEST_RATIO * self._file.tell():
            raise DataError(
                f"{self._name}: the gzip file unpacks to more than {_ALWAYS_UNPACKED >> 20} MB and {_LARGEST_RATIO} "
                "times its size, as made to fill a memory; unpack it (gunzip) if it is what you mean."
            )
        return count

    def close(self) -> None:
        self._gzip.close()
        self._file.close()
        super().close()


def _open_bytes(path: Path, name: str) -> io.BufferedReader[Any]:
    """Open a text file for reading as bytes, decompressing it where its name ends in .gz.

    Raises:
        DataError: The file is UTF-16, or compressed although its name does not say so.
    """
    is_packed = path.suffix.lower() == COMPRESSED
    file = io.BufferedReader(_Unpacked(path, name), _BLOCK_BYTES) if is_packed else path.open("rb")
    try:
        start = file.peek(2)[:2]
        if start in _UTF16_MARKS or b"\0" in start:  # no text in UTF-8 has a zero byte there
            raise DataError(
                f"{name}:1: the file is UTF-16, not UTF-8: convert it (iconv -f UTF-16 -t UTF-8)."
            )
        if start == _GZIP_MARK:
            problem = "it is compressed twice" if is_packed else f"its name does not end in {COMPRESSED}"
            raise DataError(f"{name}: the file is compressed by gzip, but {problem}: unpack it (gunzip).")
    except BaseException:
        file.close()
        raise
    return file


def _lines(path: Path, name: str) -> Iterator[tuple[int, bytes]]:
    """Yield the numbers and contents of the lines that are not blank."""
    with _open_bytes(path, name) as file:
        # A binary file is split at \n only; text splitting would also cut at U+2028 inside a string.
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_ROW), b""), start=1):
            if len(line) == LONGEST_ROW:
                raise DataError(f"{name}:{number}: {TOO_LONG}.")
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
        except (RecursionError, ValueError) as error:
            problem = _not_usable(error)
        yield RawRow(place, number, {}, problem) if problem else row


def _read_json(path: Path, name: str) -> Iterator[RawRow]:
    """Yield the objects of a list; a .json file that does not start with a list is read as json lines.

    One object over several lines is one row where it has SQuAD's layout; any other is refused, because each of its
    lines would be a broken row.
    """
    with _open_bytes(path, name) as file:
        values = _JsonValues(file, name)
        if _starts_with_list(path, name):
            yield from _rows_of_list(values, name)
            return
        _, first = next(_lines(path, name), (1, b"0"))
        row = None if _is_json(first) else _one_object(values, name)
    yield from _read_json_lines(path, name) if row is None else (row,)


def _starts_with_list(path: Path, name: str) -> bool:
    with _open_bytes(path, name) as file:
        for block in iter(lambda: file.read(_BLOCK_BYTES), b""):
            if start := block.removeprefix(_BYTE_ORDER_MARK).lstrip():
                return start.startswith(b"[")
    return False


def _is_json(content: bytes) -> bool:
    try:
        json.loads(content)
    except (RecursionError, ValueError):
        return False
    return True


def _one_object(values: _JsonValues, name: str) -> RawRow | None:
    """Return the only value of a file, which must be SQuAD's object; None: what stands first is no JSON."""
    values.next_character()
    line = values.line
    try:
        whole = values.value()
    except json.JSONDecodeError:
        return None
    except (RecursionError, ValueError) as error:
        raise DataError(f"{name}:{line}: the file is one object, and {_not_usable(error)}.") from None
    shown = reprlib.repr(whole)
    if values.next_character():
        raise DataError(
            f"{name}:{values.line}: more text stands after {shown}: write [...] around all rows and commas between "
            "them, or one row a line."
        )
    articles = whole.get("data") if isinstance(whole, dict) else None
    first_article = articles[0] if isinstance(articles, list) and articles else None
    if not isinstance(first_article, dict) or "paragraphs" not in first_article:
        held = (
            [key for key, value in whole.items() if isinstance(value, list)]
            if isinstance(whole, dict)
            else []
        )
        advice = f"make the list in {held[0]!r} the whole file" if len(held) == 1 else "write [...] around it"
        raise DataError(
            f"{name}:1: the file is one object ({shown}), not a list of rows: {advice}, or write one row a line."
        )
    return row_of(whole, f"{name}:1", 1)


def _rows_of_list(values: _JsonValues, name: str) -> Iterator[RawRow]:
    """Decode one element after the other.

    Each is known by the line on which it starts; where lines hold several, the number is at least one more than that
    of the row before, so that the rows of a list on a single line are simply counted.
    """
    values.takes("[")
    number = count = 0
    while not values.takes("]"):
        line, count = values.line, count + 1
        number = max(line, number + 1)
        place = f"{name}:{number}" if number in (line, count) else f"{name}:{line} (row {count})"
        try:
            row = row_of(values.value(), place, number)
        except json.JSONDecodeError as error:
            where = f"{error.msg} (line {values.line_at(error.pos)})"
            raise DataError(f"{place}: the file is not valid JSON from this row on: {where}.") from None
        except (RecursionError, ValueError) as error:
            values.skip_value(place)
            row = RawRow(place, number, {}, _not_usable(error))
        yield row
        if not values.takes(",") and values.next_character() != "]":
            raise DataError(f"{place}: after this row, ',' or ']' is missing: the file is cut off or broken.")
    if values.next_character():
        raise DataError(
            f"{name}:{values.line}: more text stands after the end of the list; a .json file holds one list, or a row "
            "on each line."
        )


def _not_usable(error: Exception) -> str:
    """Return what is wrong with a row that is JSON: nested too deeply, a key twice, a number of thousands of digits."""
    return f"not usable JSON: {str(error).partition(';')[0]}"


class _JsonValues:
    """The JSON values of a file one after the other; memory holds little more than one of them."""

    def __init__(self, file: io.BufferedReader[Any], name: str) -> None:
        self._file, self._name = file, name
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        # What is held of the text, and where the next value or sign stands.
        self._text, self._position = "", 0
        # The line up to which line ends are counted, and the place there.
        self._line, self._counted = 1, 0
        self._bytes_read = 0

    @property
    def line(self) -> int:
        """The line of the next value or sign, from 1."""
        self._line, self._counted = self.line_at(self._position), self._position
        return self._line

    def line_at(self, place: int) -> int:
        """Return the line of a place that an error names."""
        return self._line + self._text.count("\n", self._counted, place)

    def next_character(self) -> str:
        """Return what comes next that is no white space; "" at the end of the file."""
        while True:
            found = _WHITESPACE.match(self._text, self._position)
            self._position = self._position if found is None else found.end()
            if self._position < len(self._text) or not self._read_on():
                return self._text[self._position : self._position + 1]

    def takes(self, sign: str) -> bool:
        """Return whether a sign comes next, and go past it."""
        is_next = self.next_character() == sign
        self._position += is_next
        return is_next

    def value(self) -> Any:
        """Return the next value.

        Raises:
            json.JSONDecodeError: It is not JSON.
            ValueError, RecursionError: It is JSON that is not usable; `skip_value` goes past it.
        """
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._position)
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated") or error.pos >= len(self._text) - _LONGEST_SIGN
                if not is_cut or not self._read_on():
                    raise
                continue
            is_whole = isinstance(value, (dict, list, str)) or end < len(self._text) - _LONGEST_SIGN
            if is_whole or not self._read_on():
                self._position = end
                return value

    def skip_value(self, place: str) -> None:
        """Go past a value that is not usable, without decoding it.

        Raises:
            DataError: The file ends before the value does.
        """
        if self._text[self._position] not in "[{":  # a number alone
            while not (rest := self._text[self._position :].lstrip(_OF_NUMBERS)) and self._read_on():
                continue
            self._position = len(self._text) - len(rest)
            return
        while True:
            depth = 0
            for found in _JSON_SIGN.finditer(self._text, self._position):
                depth += (found[0] in "[{") - (found[0] in "]}")
                if depth == 0:
                    self._position = found.end()
                    return
            if depth > _DEEPEST or not self._read_on():
                break
        raise DataError(f"{place}: the file is not usable JSON from this row on.")

    def _read_on(self) -> bool:
        """Read more of the file and forget what is done with; return whether there was more."""
        line, held = self.line, len(self._text) - self._position
        if held >= LONGEST_ROW:
            raise DataError(f"{self._name}:{line}: {TOO_LONG}.")
        # Twice as much each time: few values are decoded again.
        block = self._file.read(max(_BLOCK_BYTES, held))
        waiting = len(self._decoder.getstate()[0])
        try:
            more = self._decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            line += self._text.count("\n", self._position) + error.object.count(b"\n", 0, error.start)
            byte = self._bytes_read - waiting + error.start + 1
            raise DataError(
                f"{self._name}:{line}: the file is not UTF-8 (byte {byte}): {HOW_TO_CONVERT}."
            ) from None
        if not block:
            return False
        self._text = self._text[self._position :] + (
            more if self._bytes_read else more.removeprefix("\ufeff")
        )
        self._position = self._counted = 0
        self._bytes_read += len(block)
        return True


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
        columns = Counter(file.schema_arrow.names)
        if repeated := [column for column, count in columns.items() if count > 1]:
            raise DataError(f"{name}: {columns[repeated[0]]} columns are named {repeated[0]!r}; rename them.")
        number = 0
        for batch in file.iter_batches(_PARQUET_ROWS):
            for value in _objects_of(batch):
                number += 1
                place = f"{name}:{number}"
                unread = value if isinstance(value, str) else None
                yield RawRow(place, number, {} if isinstance(value, str) else value, unread)


def _objects_of(batch: RecordBatch) -> Iterator[dict[str, Any] | str]:
    """Yield the rows, or why one cannot be had: text that is not UTF-8, a time beyond Python's."""
    try:
        yield from batch.to_pylist()
        return
    except (ValueError, OverflowError):  # pyarrow's own errors are among them
        pass
    for row in range(batch.num_rows):
        try:
            yield from batch.slice(row, 1).to_pylist()
        except (ValueError, OverflowError) as error:
            yield f"cannot be read: {in_one_line(error)}"


FILE_FORMATS: Mapping[str, FileFormat] = {
    ".json": FileFormat(_read_json),
    ".jsonl": FileFormat(_read_json_lines),
    **{ending: FileFormat(_read_table) for ending in SEPARATORS},
    ".parquet": FileFormat(_read_parquet, has_lines=False),
    ".txt": FileFormat(_read_text_lines, is_data=False),
}
SUFFIXES = tuple(ending for ending, one in FILE_FORMATS.items() if one.is_data)
