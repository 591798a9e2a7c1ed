"""Encoded examples, and the table on disk that holds many of them: the same code for five rows and for millions.

`data.chat` writes the table in a stream, training reads it, also from several processes that open it by its folder.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, overload

import numpy as np

from lingraft.errors import DataError
from lingraft.records import read_json, write_json_atomically

INDEX_FILE = "index.json"
FORMAT = 2

Int32s = np.ndarray[tuple[int], np.dtype[np.int32]]
Int64s = np.ndarray[tuple[int], np.dtype[np.int64]]
Bools = np.ndarray[tuple[int], np.dtype[np.bool_]]

_COLUMNS = {  # file name without ending -> element type on disk, always little-endian
    "tokens": "<i4",
    "supervised": "u1",
    "offsets": "<i8",
    "truncated": "<i4",
    "languages": "<i4",
    "replayed": "u1",
    "ids": "u1",
    "id_offsets": "<i8",
}
_BLOCK = 2**20  # token ids read at a time
_BITS = 8


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """One conversation as token ids.

    Attributes:
        example_id: Id of the example.
        language: Its BCP-47 tag.
        input_ids: [tokens], special tokens of the template included.
        supervised: [tokens], True where a token holds text of an assistant turn or ends it.
        truncated_tokens: Tokens cut off at the end.
        replayed: Whether a strategy mixed it in.
    """

    example_id: str
    language: str
    input_ids: tuple[int, ...]
    supervised: tuple[bool, ...]
    truncated_tokens: int
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """Some encoded rows as flat arrays: what is appended to a table.

    Attributes:
        ids: [rows] ids of the examples.
        languages: [rows] their BCP-47 tags.
        lengths: [rows] tokens of each, after truncation.
        truncated: [rows] tokens cut off from each.
        tokens: [sum of lengths] token ids, row after row.
        supervised: [sum of lengths] True where the loss sees the token.
        replayed: [rows] True where a strategy mixed the example in.
    """

    ids: Sequence[str]
    languages: Sequence[str]
    lengths: Int64s
    truncated: Int64s
    tokens: Int32s
    supervised: Bools
    replayed: Bools


@dataclass(frozen=True)
class _Index:
    format: int
    rows: int
    tokens: int
    supervised_tokens: int
    predicted_tokens: int
    truncated_rows: int
    languages: list[str]
    content_hash: str


class EncodedTable(Sequence[EncodedExample]):
    """Encoded examples in flat files, read row by row; memory does not grow with what was read.

    A table is a folder (or, where nobody names one, nameless temporary files that vanish with the process):

        tokens.bin      int32 [tokens]       token ids, row after row
        supervised.bin  bits  [tokens]       1 where the loss sees the token; first token in the highest bit
        offsets.bin     int64 [rows + 1]     row i is tokens[offsets[i] : offsets[i + 1]]
        truncated.bin   int32 [rows]         tokens that were cut off
        languages.bin   int32 [rows]         number of the row's language in the index's list
        replayed.bin    bytes [rows]         1 where a strategy mixed the row in
        ids.bin         UTF-8                example ids, one after the other
        id_offsets.bin  int64 [rows + 1]     row i's id is ids[id_offsets[i] : id_offsets[i + 1]], in bytes
        index.json      counts, languages, content hash; written last: without it the folder is no table

    All numbers are little-endian. Read-only: any number of processes and threads may read at the same time. Pickling
    a table hands over its folder, so a worker process opens the files by itself.

    Attributes:
        folder: Where it lies; None: nameless.
        tokens: Tokens of all rows.
        supervised_tokens: Tokens that the loss sees.
        predicted_tokens: The same without the first token of each row, which nothing predicts.
        truncated_rows: Rows that were cut off.
        content_hash: SHA-256 over token ids, supervised bits and lengths: equal for equal rows in equal order,
            whatever they are called.
    """

    def __init__(self, folder: Path | None, files: Mapping[str, BinaryIO], index: _Index) -> None:
        """Use `EncodedTable.open` or an EncodedTableWriter."""
        self.folder = folder
        self._files = {name: os.dup(file.fileno()) for name, file in files.items()}
        weakref.finalize(self, _close, tuple(self._files.values()))
        self._index = index
        self.tokens = index.tokens
        self.supervised_tokens = index.supervised_tokens
        self.predicted_tokens = index.predicted_tokens
        self.truncated_rows = index.truncated_rows
        self.content_hash = index.content_hash
        self._offsets = self._mapped("offsets")
        self._id_offsets = self._mapped("id_offsets")
        self._truncated = self._mapped("truncated")
        self._languages = self._mapped("languages")
        self._replayed = self._mapped("replayed")

    @classmethod
    def open(cls, folder: Path) -> EncodedTable:
        """Open a finished table, read-only.

        Raises:
            DataError: The folder holds no finished table, one of another version, or one that lost bytes.
        """
        if not (folder / INDEX_FILE).is_file():
            raise DataError(
                f"{folder} holds no encoded table: {INDEX_FILE} is missing. Encode the data again."
            )
        found = read_json(folder / INDEX_FILE)
        if found.get("format") != FORMAT:
            raise DataError(
                f"{folder}: the encoded table has format {found.get('format')}, this version reads {FORMAT}. "
                "Encode the data again."
            )
        index = _Index(**found)
        with ExitStack() as opened:
            files = {name: opened.enter_context(_path(folder, name).open("rb")) for name in _COLUMNS}
            table = cls(folder, files, index)
        table._check_sizes()
        return table

    @cached_property
    def lengths(self) -> Int32s:
        """Tokens of each row, [rows]; no row is read for it."""
        lengths: Int32s = np.diff(self._offsets).astype(np.int32)
        return lengths

    @cached_property
    def replayed_rows(self) -> int:
        """Rows that a strategy mixed in."""
        return int(np.count_nonzero(self._replayed))

    @cached_property
    def highest_token(self) -> int:
        """The highest token id of all rows; 0 where there are none."""
        blocks = (
            np.frombuffer(self._read("tokens", 4 * start, 4 * min(start + _BLOCK, self.tokens)), "<i4")
            for start in range(0, self.tokens, _BLOCK)
        )
        return max((int(block.max()) for block in blocks), default=0)

    @property
    def whole_lengths(self) -> Int64s:
        """Tokens that each row had before truncation, [rows]."""
        whole: Int64s = np.diff(self._offsets) + self._truncated
        return whole

    def __len__(self) -> int:
        return self._index.rows

    @overload
    def __getitem__(self, row: int) -> EncodedExample: ...
    @overload
    def __getitem__(self, row: slice) -> tuple[EncodedExample, ...]: ...
    def __getitem__(self, row: int | slice) -> EncodedExample | tuple[EncodedExample, ...]:
        if isinstance(row, slice):
            return tuple(self[i] for i in range(*row.indices(len(self))))
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        row %= len(self)
        start, stop = int(self._offsets[row]), int(self._offsets[row + 1])
        tokens = np.frombuffer(self._read("tokens", 4 * start, 4 * stop), "<i4")
        bits = np.frombuffer(self._read("supervised", start // _BITS, -(-stop // _BITS)), np.uint8)
        supervised = np.unpackbits(bits)[start % _BITS :][: stop - start]
        name = self._read("ids", int(self._id_offsets[row]), int(self._id_offsets[row + 1]))
        return EncodedExample(
            name.decode("utf-8"),
            self._index.languages[self._languages[row]],
            tuple(tokens.tolist()),
            tuple(supervised.astype(bool).tolist()),
            int(self._truncated[row]),
            bool(self._replayed[row]),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        if self.folder is None:
            raise TypeError("a nameless encoded table cannot go to another process; encode into a folder.")
        return EncodedTable.open, (self.folder,)

    def _read(self, name: str, start: int, stop: int) -> bytes:
        """Return bytes of a file. Not mapped: pages that were read would count as memory of the process."""
        return os.pread(self._files[name], stop - start, start)

    def _mapped(self, name: str) -> Any:
        if not os.fstat(self._files[name]).st_size:
            return np.zeros(0, _COLUMNS[name])
        return np.frombuffer(mmap.mmap(self._files[name], 0, access=mmap.ACCESS_READ), _COLUMNS[name])

    def _check_sizes(self) -> None:
        rows, tokens = self._index.rows, self._index.tokens
        sizes = {"tokens": 4 * tokens, "supervised": -(-tokens // _BITS), "offsets": 8 * (rows + 1)}
        sizes |= {
            "truncated": 4 * rows,
            "languages": 4 * rows,
            "replayed": rows,
            "id_offsets": 8 * (rows + 1),
        }
        for name, expected in sizes.items():
            found = os.fstat(self._files[name]).st_size
            if found != expected:
                raise DataError(
                    f"{self.folder}: {name}.bin has {found} bytes, not {expected}: the encoded table is damaged. "
                    "Delete the folder and encode the data again."
                )


class EncodedTableWriter:
    """Writes a table in a stream; memory holds one batch. A context manager: an error leaves no table.

    Args:
        folder: Made where it is missing; a table in it is replaced. None: nameless temporary files (TMPDIR says
            where), which no other process can open and which are gone when the table is.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / INDEX_FILE).unlink(missing_ok=True)
        self._files: dict[str, BinaryIO] = {name: _writable(folder, name) for name in _COLUMNS}
        self._hashes = {name: hashlib.sha256() for name in ("tokens", "supervised", "lengths")}
        self._languages: dict[str, int] = {}
        self._pending: Bools = np.zeros(0, bool)  # supervised bits that do not fill a byte yet
        self._rows = self._tokens = self._supervised = self._predicted = self._truncated = self._id_bytes = 0
        for name in ("offsets", "id_offsets"):
            self._write(name, np.zeros(1))

    def append(self, batch: EncodedBatch) -> None:
        """Append rows."""
        ends = np.cumsum(batch.lengths)
        names = [one.encode("utf-8") for one in batch.ids]
        self._write("tokens", batch.tokens, "tokens")
        self._write_bits(batch.supervised)
        self._write("offsets", self._tokens + ends)
        self._write("truncated", batch.truncated)
        numbers = [self._languages.setdefault(one, len(self._languages)) for one in batch.languages]
        self._write("languages", np.array(numbers))
        self._write("replayed", batch.replayed)
        self._files["ids"].write(b"".join(names))
        self._write("id_offsets", self._id_bytes + np.cumsum([len(one) for one in names], dtype=np.int64))
        self._hashes["lengths"].update(batch.lengths.astype("<i8").tobytes())
        starts = (ends - batch.lengths)[batch.lengths > 0]
        supervised = int(batch.supervised.sum())
        self._rows += len(batch.ids)
        self._tokens += len(batch.tokens)
        self._id_bytes += sum(len(one) for one in names)
        self._supervised += supervised
        self._predicted += supervised - int(batch.supervised[starts].sum())
        self._truncated += int((batch.truncated > 0).sum())

    @property
    def rows(self) -> int:
        """Rows written so far."""
        return self._rows

    def finish(self) -> EncodedTable:
        """Write the index and return the table."""
        last = np.packbits(self._pending).tobytes()
        self._files["supervised"].write(last)
        self._hashes["supervised"].update(last)
        for file in self._files.values():
            file.flush()
        parts = "".join(one.hexdigest() for one in self._hashes.values())
        index = _Index(
            format=FORMAT,
            rows=self._rows,
            tokens=self._tokens,
            supervised_tokens=self._supervised,
            predicted_tokens=self._predicted,
            truncated_rows=self._truncated,
            languages=list(self._languages),
            content_hash=hashlib.sha256(parts.encode()).hexdigest(),
        )
        if self._folder is None:
            table = EncodedTable(None, self._files, index)
            self._close()
            return table
        for file in self._files.values():
            os.fsync(file.fileno())
        self._close()
        write_json_atomically(self._folder / INDEX_FILE, asdict(index))
        return EncodedTable.open(self._folder)

    def __enter__(self) -> EncodedTableWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        if kind is None:
            return
        self._close()
        if self._folder is not None:
            for name in _COLUMNS:
                _path(self._folder, name).unlink(missing_ok=True)

    def _close(self) -> None:
        for file in self._files.values():
            file.close()

    def _write(self, name: str, values: np.ndarray[Any, Any], hashed: str | None = None) -> None:
        content = values.astype(_COLUMNS[name]).tobytes()
        self._files[name].write(content)
        if hashed is not None:
            self._hashes[hashed].update(content)

    def _write_bits(self, supervised: Bools) -> None:
        waiting = np.concatenate([self._pending, supervised])
        whole = len(waiting) - len(waiting) % _BITS
        content = np.packbits(waiting[:whole]).tobytes()
        self._files["supervised"].write(content)
        self._hashes["supervised"].update(content)
        self._pending = waiting[whole:]


def write_table(examples: Sequence[EncodedExample], folder: Path | None = None) -> EncodedTable:
    """Write examples that are in memory as a table."""
    with EncodedTableWriter(folder) as writer:
        for one in examples:
            writer.append(
                EncodedBatch(
                    ids=[one.example_id],
                    languages=[one.language],
                    lengths=np.array([len(one.input_ids)]),
                    truncated=np.array([one.truncated_tokens]),
                    tokens=np.array(one.input_ids, np.int32),
                    supervised=np.array(one.supervised, bool),
                    replayed=np.array([one.replayed]),
                )
            )
        return writer.finish()


def _writable(folder: Path | None, name: str) -> BinaryIO:
    # A temporary file without a name cannot be left behind, not even by a process that is killed.
    return tempfile.TemporaryFile() if folder is None else _path(folder, name).open("wb")


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.bin"


def _close(descriptors: Sequence[int]) -> None:
    for one in descriptors:
        os.close(one)
