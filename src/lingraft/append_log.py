"""Logs in JSON lines that only grow: what was paid for in time or money survives an interruption.

Answers of an evaluation, generated text and a judge's verdicts lie in such logs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, Generic, TypeVar

from filelock import FileLock, Timeout

Row = TypeVar("Row")


class ForeignLineError(Exception):
    """A line of a file that is no log of this kind; holds its number, from 1, and the problem."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(problem)
        self.line = line


class AppendLog(Generic[Row]):
    """A file of rows, one a line. A last line without its end was torn when a process was killed: opening cuts it off.

    Attributes:
        rows: What was found when it was opened.

    Args:
        path: The file; it may be missing.
        parse: Makes a row of a line's JSON value.
        begins: What every line begins with. A file with another line, or with one that `parse` refuses, is not cut but
            refused. None: the log ends before such a line, and the rest is cut off.

    Raises:
        ForeignLineError: See `begins`.
    """

    def __init__(self, path: Path, parse: Callable[[Any], Row], *, begins: bytes | None = None) -> None:
        self._path, self._lock = path, Lock()
        self.rows: list[Row] = []
        if not path.exists():
            return
        whole = 0  # bytes of complete lines
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                is_torn = not line.endswith(b"\n")
                if begins and not (line.startswith(begins) or (is_torn and begins.startswith(line))):
                    raise ForeignLineError(number, "no line that lingraft wrote")
                if is_torn:
                    break
                try:
                    self.rows.append(parse(json.loads(line)))
                except (ValueError, AttributeError, KeyError, TypeError) as error:
                    if begins:
                        raise ForeignLineError(number, f"{type(error).__name__}: {error}") from None
                    break
                whole += len(line)
        os.truncate(path, whole)

    def append(self, values: Iterable[Any]) -> None:
        """Append JSON values, also from several threads; they are on disk when this returns.

        Raises:
            OSError: They cannot be written, as where the disk is full; none of them is in the file then.
        """
        content = "".join(f"{json.dumps(value, ensure_ascii=False)}\n" for value in values).encode("utf-8")
        with self._lock:
            whole = self._path.stat().st_size if self._path.exists() else 0
            try:
                with self._path.open("ab") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError:
                if self._path.exists():
                    os.truncate(self._path, whole)  # half a line would spoil the one that is appended next
                raise


@contextmanager
def only_process(lock: Path, busy: Exception) -> Iterator[None]:
    """Keep other processes out while inside, by a lock file.

    Raises:
        Exception: `busy`, where another process is inside.
    """
    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise busy from None
    try:
        yield
    finally:
        held.release()
