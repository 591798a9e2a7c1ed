"""What a model has generated so far, row by row in a file that only grows: an interrupted run goes on from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lingraft.errors import LingraftError
from lingraft.models.generation import Generated
from lingraft.records import append_lines, read_lines


class GenerationLog:
    """Continuations by number, kept in a JSONL file.

    A line is one of them. A last line that was torn, and whatever follows a line that cannot be read, is cut off when
    the file is opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[int, Generated] = {}
        if path.exists():
            self._found = dict(read_lines(path, _parsed))

    def __contains__(self, number: int) -> bool:
        return number in self._found

    def __getitem__(self, number: int) -> Generated:
        return self._found[number]

    def append(self, rows: Mapping[int, Generated]) -> None:
        """Write those of `rows` that are not there yet; they are on disk when this returns."""
        new = {number: rows[number] for number in sorted(rows) if number not in self._found}
        append_lines(self._path, ({"number": number, **asdict(one)} for number, one in new.items()))
        self._found.update(new)


def _parsed(row: Any) -> tuple[int, Generated]:
    return int(row.pop("number")), Generated(**row)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make a folder of logs and keep other processes out of it meanwhile.

    Raises:
        LingraftError: Another process is at work in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise LingraftError(f"{folder}: another lingraft is generating into it; wait for it.") from None
    try:
        yield
    finally:
        lock.release()
