"""Raw rows with their places, from local files and from the Hugging Face hub.

Json and jsonl are read here line by line, because a broken row must be named by file and line, and delimited text by
`data.tables` for the same reason; parquet goes through pyarrow and the hub through the `datasets` library, which are
imported only then.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import reprlib
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast

from lingraft.config.schema import DataSource
from lingraft.data.files import COMPRESSED, SUFFIXES, data_suffix
from lingraft.data.tables import HOW_TO_CONVERT, SEPARATORS, read_table
from lingraft.errors import DataError, in_one_line

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_PARQUET_ROWS = 1024  # decoded at a time
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PINNED = re.compile(r"[0-9a-f]{7,40}")  # a commit in full or shortened, rather than a branch or tag
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_WHITESPACE = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as it was found.

    Attributes:
        place: File and line, or data set and row number, both from 1: `data/es.jsonl:17`.
        number: The line or row number alone.
        value: Field names and values; empty where there is a problem.
        problem: Why the row cannot be read, or None.
        name: Id of the row where its number alone does not tell it from others; "": the number does.
        language: BCP-47 tag that the file's name gives its rows; None: it gives none.
        likely_language: BCP-47 tag of a row that does not say its language, by its file's name; None: unknown.
    """

    place: str
    number: int
    value: Mapping[str, Any]
    problem: str | None = None
    name: str = ""
    language: str | None = None
    likely_language: str | None = None


@dataclass(frozen=True, slots=True)
class HubRows:
    """Rows of a hub data set, and the commit they are from where the cache tells it."""

    rows: Iterable[RawRow]
    commit: str | None


def read_file(path: Path, name: str) -> Iterator[RawRow]:
    """Yield the rows of a file of `files.SUFFIXES`, gzip-compressed or not, named `name` in places.

    Raises:
        DataError: The file is not readable as a whole.
    """
    try:
        yield from _FILE_READERS[data_suffix(path)](path, name)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{name}: the gzip file is broken or cut off: {error}.") from None


def open_bytes(path: Path, name: str) -> BinaryIO:
    """Open a text file for reading as bytes, decompressing it where its name ends in .gz.

    Raises:
        DataError: The file is UTF-16.
    """
    with _opened(path) as file:
        start = file.read(2)
    if start in _UTF16_MARKS or b"\0" in start:  # no text in UTF-8 has a zero byte there
        raise DataError(f"{name}:1: the file is UTF-16, not UTF-8: convert it (iconv -f UTF-16 -t UTF-8).")
    return _opened(path)


def _opened(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix.lower() == COMPRESSED else path.open("rb")


def _read_json_lines(path: Path, source: str) -> Iterator[RawRow]:
    with open_bytes(path, source) as file:
        # A binary file is split at \n only; text splitting would also cut at U+2028 inside a string.
        for number, line in enumerate(file, start=1):
            content = line.removeprefix(_BYTE_ORDER_MARK).strip() if number == 1 else line.strip()
            if content:
                yield _row_of_line(content, f"{source}:{number}", number)


def _row_of_line(line: bytes, place: str, number: int) -> RawRow:
    if line.startswith(_BYTE_ORDER_MARK):
        problem = "a byte order mark (U+FEFF) amid the file, as where files were joined; remove it"
        return RawRow(place, number, {}, problem)
    try:
        return _row(_DECODER.decode(line.decode("utf-8")), place, number)
    except UnicodeDecodeError as error:
        return RawRow(place, number, {}, f"not UTF-8 at byte {error.start + 1} of the line")
    except json.JSONDecodeError as error:
        return RawRow(place, number, {}, f"not JSON: {error.msg} at character {error.colno}")
    except (RecursionError, ValueError) as error:  # nested too deeply; a number of thousands of digits
        return RawRow(place, number, {}, f"not usable JSON: {error}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object's fields; Python's own reader would take the last of two values and say nothing."""
    found = dict(pairs)
    if len(found) < len(pairs):
        repeated = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {repeated!r} stands twice in one object")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _row(value: Any, place: str, number: int) -> RawRow:
    if isinstance(value, dict):
        return RawRow(place, number, value)
    found = f"{type(value).__name__} ({reprlib.repr(value)})"
    return RawRow(place, number, {}, f"the row must be an object, not {found}")


def _read_json(path: Path, source: str) -> Iterator[RawRow]:
    """Yield the objects of a list; a .json file that does not start with a list is read as json lines."""
    with open_bytes(path, source) as file:
        content = file.read().removeprefix(_BYTE_ORDER_MARK)
    if not content.lstrip().startswith(b"["):
        whole = _one_object(content.strip(), source)
        return _read_json_lines(path, source) if whole is None else iter([_row(whole, f"{source}:1", 1)])
    try:
        return _rows_of_list(content.decode("utf-8"), source)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{source}:{line}: the file is not UTF-8 (byte {error.start + 1}): {HOW_TO_CONVERT}."
        ) from None


def _one_object(content: bytes, source: str) -> Any:
    """Return one object over several lines where it has SQuAD's layout, which is one row; None: the file is lines.

    Raises:
        DataError: It is another object, each line of which would else be a broken row.
    """
    first = content.partition(b"\n")[0]
    if len(first) == len(content) or _is_json(first) or not _is_json(content):
        return None
    whole = json.loads(content)
    articles = whole.get("data") if isinstance(whole, dict) else None
    if (
        isinstance(articles, list)
        and articles
        and isinstance(articles[0], dict)
        and "paragraphs" in articles[0]
    ):
        return whole
    raise DataError(
        f"{source}:1: the file is one object ({reprlib.repr(whole)}), not a list of rows: write [...] around it, or "
        "one row a line."
    )


def _is_json(content: bytes) -> bool:
    try:
        json.loads(content)
    except (RecursionError, ValueError):
        return False
    return True


def _rows_of_list(text: str, source: str) -> Iterator[RawRow]:
    """Decode one element after the other, so that each is known by the line on which it starts."""
    position, line, counted = _skip_whitespace(text, text.index("[") + 1), 1, 0
    while not text.startswith("]", position):
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, position = _DECODER.raw_decode(text, position)
        except (RecursionError, ValueError) as error:
            detail = (
                f"{error.msg} (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else error
            )
            raise DataError(
                f"{source}:{line}: the file is not valid JSON from this row on: {detail}."
            ) from None
        yield _row(value, f"{source}:{line}", line)
        position = _skip_whitespace(text, position)
        if text.startswith(",", position):
            position = _skip_whitespace(text, position + 1)
        elif not text.startswith("]", position):
            raise DataError(
                f"{source}:{line}: after this row, ',' or ']' is missing: the file is cut off or broken."
            )


def _skip_whitespace(text: str, position: int) -> int:
    found = _WHITESPACE.match(text, position)
    return position if found is None else found.end()


def _read_table(path: Path, source: str) -> Iterator[RawRow]:
    """Yield the rows of delimited text; a row is known by the line on which it starts."""

    def opened() -> io.TextIOWrapper:
        return io.TextIOWrapper(open_bytes(path, source), "utf-8-sig", newline="")

    for row in read_table(opened, source, SEPARATORS[data_suffix(path)]):
        yield RawRow(f"{source}:{row.line}", row.line, row.cells, row.problem)


def _read_parquet(path: Path, source: str) -> Iterator[RawRow]:
    from pyarrow.parquet import ParquetFile

    with _reported(f"{source}: the parquet file cannot be read"), ParquetFile(path) as file:
        rows = chain.from_iterable(batch.to_pylist() for batch in file.iter_batches(_PARQUET_ROWS))
        for number, row in enumerate(rows, start=1):
            yield _row(row, f"{source}:{number}", number)


_FILE_READERS: dict[str, Callable[[Path, str], Iterator[RawRow]]] = {
    ".json": _read_json,
    ".jsonl": _read_json_lines,
    ".csv": _read_table,
    ".tsv": _read_table,
    ".parquet": _read_parquet,
}


def read_hub(spec: DataSource) -> HubRows:
    """Read a data set of the Hugging Face hub, or its copy in the local cache when the hub is out of reach.

    Code that a data set brings along is never run.

    Raises:
        DataError: The id is none, the hub cannot be reached, or what is cached is of another commit.
    """
    if not _HUB_ID.fullmatch(spec.source):
        raise DataError(
            f"{spec.source!r} is neither a worldbook set, a local file ({', '.join(SUFFIXES)}) or folder, nor a hub id "
            "(NAME or OWNER/NAME)."
        )
    if Path(spec.source).is_dir():  # the datasets library would take the folder in place of the hub
        raise DataError(
            f"{spec.source!r} is no folder beside the study file, but one here, where the hub id cannot be told from "
            "it: run elsewhere for the hub, or write the folder's whole path."
        )
    from datasets import load_dataset

    advice = (
        f"{spec.source}: cannot be read from the Hugging Face hub (configuration {spec.config}, split {spec.split}, "
        f"revision {spec.revision}). Check the id and the connection (HF_HUB_OFFLINE must not be set), or give a "
        "local file"
    )
    with _reported(advice):
        data = load_dataset(spec.source, spec.config, split=spec.split, revision=spec.revision)
    commit = commit_of(data.cache_files)
    wanted = spec.revision or ""
    # Offline, the datasets library takes whatever it has cached, whatever revision was asked for.
    if _PINNED.fullmatch(wanted) and commit is not None and not commit.startswith(wanted):
        raise DataError(f"{spec.source}: revision {wanted} was asked for, but only {commit} is in the cache.")
    rows = (_row(row, f"{spec.source}:{number}", number) for number, row in enumerate(data, start=1))
    return HubRows(rows, commit)


def commit_of(cache_files: list[dict[str, Any]]) -> str | None:
    """Return the commit in the path of the prepared files: .../CONFIGURATION/VERSION/COMMIT/FILE.arrow."""
    folders = {Path(file["filename"]).parent.name for file in cache_files}
    commits = [folder for folder in folders if _COMMIT.fullmatch(folder)]
    return commits[0] if len(commits) == 1 else None


@contextmanager
def _reported(what: str) -> Iterator[None]:
    """Turn whatever a library raises inside into a DataError that begins with `what`."""
    try:
        yield
    except Exception as error:  # hub, http, pyarrow and datasets share no base class
        raise DataError(f"{what}: {type(error).__name__}: {in_one_line(error)}") from error
