"""Rows that may be millions: a few are kept in memory, many lie in a nameless temporary file.

Used for examples and for the rows that were left out. The file is where TMPDIR says, takes about the size of the
data, and is gone with the process that made it, however that ends: it has no name that could stay behind. It holds
JSON lines, not Arrow: a single row is read in a quarter of the time, and what was read is not resident memory.
"""

from __future__ import annotations

import json
import os
import tempfile
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Generic, TypeVar

from lingraft.data.row_sequence import RowSequence

BYTES_IN_MEMORY = 16 << 20  # as JSON; as Python objects it is about six times as much
_ROWS_PER_READ = 1024
_BLOCK_BYTES = 1 << 20

_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))

T = TypeVar("T")


class NamelessFile:
    """A temporary file that only this process can reach; closed, and so gone, with the last who holds it."""

    def __init__(self) -> None:
        with tempfile.TemporaryFile() as file:
            self.descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self.descriptor)
        self._waiting = bytearray()

    def write(self, content: bytes) -> None:
        """Append bytes."""
        self._waiting += content
        if len(self._waiting) >= _BLOCK_BYTES:
            self.flush()

    def flush(self) -> None:
        """Make what was written readable."""
        while self._waiting:
            del self._waiting[: os.write(self.descriptor, self._waiting)]

    def read(self, start: int, stop: int) -> bytes:
        """Return bytes, flushed before."""
        return os.pread(self.descriptor, stop - start, start)


class SpooledRows(RowSequence[T], Generic[T]):
    """Rows in a file, read when they are asked for; memory holds 8 bytes for each."""

    def __init__(self, file: NamelessFile, offsets: array[int], from_json: Callable[[Any], T]) -> None:
        """Use `Spool`."""
        self._file = file
        self._offsets = offsets
        self._from_json = from_json

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def row(self, number: int) -> T:
        """Read a row."""
        content = self._file.read(self._offsets[number], self._offsets[number + 1])
        return self._from_json(json.loads(content))

    def __iter__(self) -> Iterator[T]:
        """Read from the front, many rows at a time."""
        for first in range(0, len(self), _ROWS_PER_READ):
            offsets = self._offsets[first : first + _ROWS_PER_READ + 1]
            content = self._file.read(offsets[0], offsets[-1])
            for start, stop in pairwise(offsets):
                yield self._from_json(json.loads(content[start - offsets[0] : stop - offsets[0]]))


class Spool(Generic[T]):
    """Takes rows one by one.

    Args:
        to_json: What of a row is written, as JSON values.
        from_json: Makes the row of it again.
        bytes_in_memory: From how many bytes of JSON on the rows stay in the file alone.
    """

    def __init__(
        self, to_json: Callable[[T], Any], from_json: Callable[[Any], T], bytes_in_memory: int | None = None
    ) -> None:
        self._file = NamelessFile()
        self._offsets = array("q", [0])
        self._to_json = to_json
        self._from_json = from_json
        self._bound = BYTES_IN_MEMORY if bytes_in_memory is None else bytes_in_memory
        self._kept: list[T] | None = []

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def append(self, row: T) -> None:
        """Take a row."""
        content = _ENCODER.encode(self._to_json(row)).encode("utf-8")
        self._file.write(content)
        self._offsets.append(self._offsets[-1] + len(content))
        if self._kept is not None:
            self._kept.append(row)
            if self._offsets[-1] > self._bound:
                self._kept = None

    def extend(self, rows: Iterable[T]) -> None:
        """Take rows."""
        for row in rows:
            self.append(row)

    @property
    def in_memory(self) -> tuple[T, ...] | None:
        """All rows, or None where they are too many."""
        return None if self._kept is None else tuple(self._kept)

    def spooled(self) -> SpooledRows[T]:
        """Return all rows as they lie in the file."""
        return SpooledRows(*self.written(), self._from_json)

    def written(self) -> tuple[NamelessFile, array[int]]:
        """Return the file, and where each row in it begins and ends."""
        self._file.flush()
        return self._file, self._offsets

    def finish(self) -> Sequence[T]:
        """Return all rows: a tuple where they are few, else SpooledRows."""
        rows = self.in_memory
        return self.spooled() if rows is None else rows
