"""Encoded examples, and the table on disk that holds many of them: the same code for five rows and for millions.

`data.chat` writes the table in a stream, training reads it, also from several processes that open it by its folder.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import tempfile
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from lingraft.data.row_sequence import RowSequence
from lingraft.errors import DataError
from lingraft.records import read_json, write_json_atomically

if TYPE_CHECKING:
    from pyarrow import RecordBatch

INDEX_FILE, ROWS_FILE = "index.json", "rows.arrow"
FORMAT = 3

Int32s = np.ndarray[tuple[int], np.dtype[np.int32]]
Int64s = np.ndarray[tuple[int], np.dtype[np.int64]]
Bools = np.ndarray[tuple[int], np.dtype[np.bool_]]

_TOKENS_PER_BATCH = 2**18  # as many are in memory while a table is written


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
class TokenArrays:
    """What training needs of a row, as arrays.

    Attributes:
        input_ids: [tokens] token ids; a view of the file, where they come from one.
        supervised: [tokens] True where the loss sees the token.
        replayed: Whether a strategy mixed the row in.
    """

    input_ids: np.ndarray[tuple[int], np.dtype[np.integer]]
    supervised: Bools
    replayed: bool


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


@dataclass
class _Index:
    """What is known of a table without reading its rows."""

    format: int = FORMAT
    file_bytes: int = 0
    rows: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    predicted_tokens: int = 0
    truncated_rows: int = 0
    replayed_rows: int = 0
    highest_token: int = 0
    content_hash: str = ""


class _Chunk:
    """The arrays of one record batch, as they lie in the file."""

    def __init__(self, batch: RecordBatch) -> None:
        self.ids, self.languages, truncated, replayed, tokens, supervised = batch.columns
        self.truncated: Int32s = truncated.to_numpy()
        self.replayed: Bools = replayed.to_numpy(zero_copy_only=False)
        self.offsets: Int32s = tokens.offsets.to_numpy()
        self.tokens: Int32s = tokens.values.to_numpy()
        self.bits = np.frombuffer(supervised.values.buffers()[1] or b"", np.uint8)

    def arrays(self, number: int) -> TokenArrays:
        start, stop = int(self.offsets[number]), int(self.offsets[number + 1])
        bits = np.unpackbits(self.bits[start // 8 : -(-stop // 8)], bitorder="little")
        supervised = bits[start % 8 :][: stop - start].view(bool)
        return TokenArrays(self.tokens[start:stop], supervised, bool(self.replayed[number]))

    def row(self, number: int) -> EncodedExample:
        arrays = self.arrays(number)
        return EncodedExample(
            self.ids[number].as_py(),
            self.languages[number].as_py(),
            tuple(arrays.input_ids.tolist()),
            tuple(arrays.supervised.tolist()),
            int(self.truncated[number]),
            arrays.replayed,
        )

    def predicted(self) -> Int64s:
        starts, stops = self.offsets[:-1].astype(np.int64), self.offsets[1:].astype(np.int64)
        bits = np.unpackbits(self.bits, count=int(self.offsets[-1]), bitorder="little")
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(bits, dtype=np.int64)])
        firsts = np.minimum(starts + 1, stops)  # nothing predicts a row's first token
        counts: Int64s = before[stops] - before[firsts]
        return counts


class EncodedTable(RowSequence[EncodedExample]):
    """Encoded examples in an Arrow file that is mapped into memory, read row by row.

    A table is a folder (or, where nobody names one, a nameless temporary file that vanishes with the process):

        rows.arrow   Arrow's streaming format, which `datasets.Dataset.from_file` opens as well: id and language (text),
                     truncated (tokens that were cut off), replayed (whether a strategy mixed the row in), tokens
                     (int32) and supervised (where the loss sees them)
        index.json   counts and content hash; written last: without it the folder is no table

    Read-only: any number of processes and threads may read at the same time; all share the pages that they read.
    Pickling a table hands over its folder, so a worker process opens the file by itself.

    Attributes:
        folder: Where it lies; None: nameless.
        tokens: Tokens of all rows.
        supervised_tokens: Tokens that the loss sees.
        predicted_tokens: The same without the first token of each row, which nothing predicts.
        truncated_rows: Rows that were cut off.
        replayed_rows: Rows that a strategy mixed in.
        highest_token: The highest token id of all rows; 0 where there are none.
        content_hash: SHA-256 over token ids, supervised bits and lengths: equal for equal rows in equal order,
            whatever they are called.
    """

    def __init__(self, folder: Path | None, file: BinaryIO, index: _Index) -> None:
        """Use `EncodedTable.open` or an EncodedTableWriter."""
        import pyarrow as pa

        self.folder = folder
        self.tokens = index.tokens
        self.supervised_tokens = index.supervised_tokens
        self.predicted_tokens = index.predicted_tokens
        self.truncated_rows = index.truncated_rows
        self.replayed_rows = index.replayed_rows
        self.highest_token = index.highest_token
        self.content_hash = index.content_hash
        self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        batches = list(pa.ipc.open_stream(pa.BufferReader(pa.py_buffer(self._mapped))))
        self._chunks = [_Chunk(batch) for batch in batches]
        self._starts: list[int] = [0, *accumulate(batch.num_rows for batch in batches)]

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
        size = (folder / ROWS_FILE).stat().st_size
        if size != index.file_bytes:
            raise DataError(
                f"{folder}: {ROWS_FILE} has {size} bytes, not {index.file_bytes}: the encoded table is damaged. "
                "Delete the folder and encode the data again."
            )
        with (folder / ROWS_FILE).open("rb") as file:
            return cls(folder, file, index)

    @cached_property
    def lengths(self) -> Int32s:
        """Tokens of each row, [rows]; no row is read for it."""
        lengths = [np.zeros(0, np.int32)]
        for chunk in self._chunks:
            lengths.append(np.diff(chunk.offsets))
            self._forget_pages(len(lengths))
        return np.concatenate(lengths)

    @cached_property
    def predicted_per_row(self) -> Int64s:
        """Tokens of each row that are predicted and that the loss sees, [rows]."""
        counts = [np.zeros(0, np.int64)]
        for chunk in self._chunks:
            counts.append(chunk.predicted())
            self._forget_pages(len(counts))
        return np.concatenate(counts)

    def _forget_pages(self, read: int) -> None:
        """Give mapped pages back after every 64th batch: they count as memory of the process."""
        if read % 64 == 0 and hasattr(mmap, "MADV_DONTNEED"):
            self._mapped.madvise(mmap.MADV_DONTNEED)

    def __len__(self) -> int:
        return self._starts[-1]

    def arrays(self, number: int) -> TokenArrays:
        """Read what training needs of a row; its token ids stay in the file until they are used."""
        chunk = bisect_right(self._starts, number) - 1
        return self._chunks[chunk].arrays(number - self._starts[chunk])

    def row(self, number: int) -> EncodedExample:
        """Read a row."""
        chunk = bisect_right(self._starts, number) - 1
        return self._chunks[chunk].row(number - self._starts[chunk])

    def __reduce__(self) -> tuple[Any, ...]:
        if self.folder is None:
            raise TypeError("a nameless table cannot go to another process; encode into a folder.")
        return EncodedTable.open, (self.folder,)


class EncodedTableWriter:
    """Writes a table in a stream; memory holds one batch. A context manager: an error leaves no table.

    Args:
        folder: Made where it is missing; a table in it is replaced. None: a nameless temporary file (TMPDIR says
            where), which no other process can open and which is gone when the table is.
    """

    def __init__(self, folder: Path | None = None) -> None:
        import pyarrow as pa

        self._folder = folder
        # A temporary file without a name cannot be left behind, not even by a process that is killed.
        if folder is None:
            self._file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 (closed by finish and __exit__)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / INDEX_FILE).unlink(missing_ok=True)
            self._file = (folder / ROWS_FILE).open("w+b")
        self._schema = pa.schema(
            {
                "id": pa.string(),
                "language": pa.string(),
                "truncated": pa.int32(),
                "replayed": pa.bool_(),
                "tokens": pa.list_(pa.int32()),
                "supervised": pa.list_(pa.bool_()),
            }
        )
        self._stream = pa.ipc.new_stream(pa.PythonFile(self._file, mode="w"), self._schema)
        self._hashes = {name: hashlib.sha256() for name in ("tokens", "supervised", "lengths")}
        self._odd_bits: Bools = np.zeros(0, bool)  # supervised bits that are not hashed yet: less than a byte
        self._waiting: list[EncodedBatch] = []
        self._waiting_tokens = 0
        self._index = _Index()

    def append(self, batch: EncodedBatch) -> None:
        """Append rows."""
        if not len(batch.ids):
            return
        self._hashes["tokens"].update(batch.tokens.astype("<i4").tobytes())
        self._hashes["lengths"].update(batch.lengths.astype("<i8").tobytes())
        bits = np.concatenate([self._odd_bits, batch.supervised])
        whole = len(bits) - len(bits) % 8
        self._hashes["supervised"].update(np.packbits(bits[:whole]).tobytes())
        self._odd_bits = bits[whole:]
        starts = (np.cumsum(batch.lengths) - batch.lengths)[batch.lengths > 0]
        supervised, index = int(batch.supervised.sum()), self._index
        index.rows += len(batch.ids)
        index.tokens += len(batch.tokens)
        index.supervised_tokens += supervised
        index.predicted_tokens += supervised - int(batch.supervised[starts].sum())
        index.truncated_rows += int((batch.truncated > 0).sum())
        index.replayed_rows += int(batch.replayed.sum())
        index.highest_token = max(index.highest_token, int(batch.tokens.max(initial=0)))
        self._waiting.append(batch)
        self._waiting_tokens += len(batch.tokens)
        if self._waiting_tokens >= _TOKENS_PER_BATCH:
            self._write_waiting()

    @property
    def rows(self) -> int:
        """Rows appended so far."""
        return self._index.rows

    def finish(self) -> EncodedTable:
        """Write the index and return the table."""
        self._write_waiting()
        self._stream.close()
        self._file.flush()
        self._hashes["supervised"].update(np.packbits(self._odd_bits).tobytes())
        parts = "".join(one.hexdigest() for one in self._hashes.values())
        self._index.content_hash = hashlib.sha256(parts.encode()).hexdigest()
        self._index.file_bytes = self._file.tell()
        if self._folder is not None:
            os.fsync(self._file.fileno())
            write_json_atomically(self._folder / INDEX_FILE, asdict(self._index))
        with self._file as file:
            return EncodedTable(self._folder, file, self._index)

    def __enter__(self) -> EncodedTableWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        if kind is not None:
            self._file.close()
            if self._folder is not None:
                (self._folder / ROWS_FILE).unlink(missing_ok=True)

    def _write_waiting(self) -> None:
        """Write what waits as one record batch."""
        import pyarrow as pa

        parts, self._waiting, self._waiting_tokens = self._waiting, [], 0
        if not parts:
            return
        ends = np.cumsum(np.concatenate([part.lengths for part in parts]), dtype=np.int32)
        offsets = pa.array(np.concatenate([np.zeros(1, np.int32), ends]))
        columns = [
            pa.array([name for part in parts for name in part.ids], pa.string()),
            pa.array([tag for part in parts for tag in part.languages], pa.string()),
            pa.array(np.concatenate([part.truncated for part in parts]).astype(np.int32)),
            pa.array(np.concatenate([part.replayed for part in parts])),
            pa.ListArray.from_arrays(offsets, pa.array(np.concatenate([part.tokens for part in parts]))),
            pa.ListArray.from_arrays(offsets, pa.array(np.concatenate([part.supervised for part in parts]))),
        ]
        self._stream.write_batch(pa.record_batch(columns, self._schema))


def write_table(examples: Sequence[EncodedExample], folder: Path | None = None) -> EncodedTable:
    """Write examples that are in memory as a table."""
    with EncodedTableWriter(folder) as writer:
        writer.append(
            EncodedBatch(
                ids=[one.example_id for one in examples],
                languages=[one.language for one in examples],
                lengths=np.array([len(one.input_ids) for one in examples], np.int64),
                truncated=np.array([one.truncated_tokens for one in examples], np.int64),
                tokens=np.array([token for one in examples for token in one.input_ids], np.int32),
                supervised=np.array([seen for one in examples for seen in one.supervised], bool),
                replayed=np.array([one.replayed for one in examples], bool),
            )
        )
        return writer.finish()
