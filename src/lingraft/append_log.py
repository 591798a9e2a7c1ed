"""Logs in JSON lines that only grow: what was paid for in time or money survives an interruption.

Answers of an evaluation, generated text and a judge's verdicts lie in such logs. A log has one writer at a time, since
on a share two that append overwrite each other. Where a writer may lose its claim and not know it yet, each has a file
of its own, `NAME.<number of the claim>.jsonl`, which begins with all that the one before it left.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from threading import Lock
from typing import Any, Generic, TypeVar

from lingraft.claims import Claim
from lingraft.records import remove, write_bytes_atomically

Row = TypeVar("Row")
_REFUSALS = (ValueError, AttributeError, KeyError, TypeError, RecursionError)  # of a line that is not ours
_SUM = re.compile(rb', "sum": "([0-9a-f]{16})"\}\n')


class ForeignLineError(Exception):
    """A line of a file that is no log of this kind; holds its number, from 1, and the problem."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(problem)
        self.line = line


class AppendLog(Generic[Row]):
    """A file of rows, one a line. A last line without its end was torn when a process was killed: opening cuts it off.

    Every line ends with a checksum, so that a damaged answer is no other answer.

    Attributes:
        path: Where the rows lie.
        rows: What was found when it was opened.
        damage: What of it was damaged and cut off, in one sentence; None: nothing was, a torn last line apart.

    Args:
        path: The file; it may be missing.
        parse: Makes a row of a line's JSON value.
        claim: Held by the one process that appends. Its number stands in the name of the file, which takes over what
            earlier owners left; what one of them writes later, having lost its claim, is not read.
        begins: What every line begins with. A file with another line, or with one that `parse` or the checksum refuses,
            is not cut but refused; a line without a checksum is taken. None: the log ends before such a line or one
            without a checksum, and the rest is cut off; what is no file is removed.

    Raises:
        ForeignLineError: See `begins`.
    """

    def __init__(
        self,
        path: Path,
        parse: Callable[[Any], Row],
        claim: Claim | None = None,
        *,
        begins: bytes | None = None,
    ) -> None:
        if claim is not None:
            path = _taken_over(path, claim.number)
        self.path, self._claim, self._lock = path, claim, Lock()
        self.rows: list[Row] = []
        self.damage: str | None = None
        if begins is None and os.path.lexists(path) and not _is_file(path):
            remove(path)
            self.damage = f"{path}: is no file; it begins anew."
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
                    self.rows.append(parse(_content(line, is_sum_needed=begins is None)))
                except _REFUSALS as error:
                    if begins:
                        raise ForeignLineError(number, f"{type(error).__name__}: {error}") from None
                    self.damage = f"{path}: line {number} is damaged; it and what follows are made again."
                    break
                whole += len(line)
        if path.stat().st_size != whole:
            os.truncate(path, whole)

    def append(self, values: Iterable[Mapping[str, Any]]) -> None:
        """Append JSON objects, also from several threads; they are on disk when this returns.

        Raises:
            ClaimLostError: Another process has taken the log over.
            OSError: They cannot be written, as where the disk is full; none of them is in the file then.
        """
        if self._claim is not None:
            self._claim.check()
        content = b"".join(map(_line, values))
        with self._lock:
            whole = self.path.stat().st_size if self.path.exists() else 0
            try:
                with self.path.open("ab") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                if self.path.exists():
                    os.truncate(self.path, whole)  # half a line would spoil the one that is appended next
                raise OSError(error.errno, error.strerror, str(self.path)) from None


def _taken_over(path: Path, number: int) -> Path:
    """Return the file of a log's owner with this number, with what the one before it left; theirs are removed.

    It is a copy: who has lost the claim and writes into the file that it still has open cannot spoil it.
    """
    own = path.with_name(f"{path.stem}.{number}{path.suffix}")
    before = [(found, one) for found, one in owned_files(path) if one != own]
    if before and not own.exists():
        _, last = before[-1]
        if _is_file(last):
            write_bytes_atomically(own, last.read_bytes())
    for _, one in before:
        remove(one)
    return own


def owned_files(path: Path) -> list[tuple[int, Path]]:
    """Return the files of a log whose owners have claims, by their numbers; 0: a file that no claim was needed for."""
    name = re.compile(rf"{re.escape(path.stem)}(?:\.(\d+))?{re.escape(path.suffix)}")
    places = path.parent.iterdir() if path.parent.is_dir() else ()
    return sorted((int(found[1] or 0), one) for one in places if (found := name.fullmatch(one.name)))


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()  # a link may lead anywhere


def rows_so_far(path: Path, parse: Callable[[Any], Row]) -> list[Row]:
    """Return the sound rows at the beginning of a log that another process may be writing; nothing is changed.

    Args:
        path: The log; where there is none, it has no rows.
        parse: As of `AppendLog`.
    """
    return rows_from(path, 0, parse)[0]


def rows_from(path: Path, place: int, parse: Callable[[Any], Row]) -> tuple[list[Row], int]:
    """Return the sound rows from a place of such a log on, and the place behind them, from which to go on later.

    Args:
        path: The log; where there is none, it has no rows.
        place: In bytes: 0, or what was returned before.
        parse: As of `AppendLog`.
    """
    rows: list[Row] = []
    if not _is_file(path):
        return rows, place
    with path.open("rb") as file:
        file.seek(place)
        for line in file:
            try:
                if not line.endswith(b"\n"):
                    raise ValueError("its end is not written yet")
                rows.append(parse(_content(line, is_sum_needed=True)))
            except _REFUSALS:
                break
            place += len(line)
    return rows, place


def row_of(line: bytes, parse: Callable[[Any], Row]) -> Row:
    """Return the row of one whole line, with its end.

    Raises:
        ValueError: It is damaged, or `parse` refuses it.
    """
    try:
        return parse(_content(line, is_sum_needed=True))
    except _REFUSALS as error:
        raise ValueError(str(error)) from None


def salvage(path: Path, parse: Callable[[Any], object], begins: bytes) -> int:
    """Leave the sound lines of a log that `AppendLog` refuses, and return how many were removed."""
    sound, removed = [], 0
    with path.open("rb") as file:
        for line in file:
            try:
                if not line.startswith(begins):
                    raise ValueError("no line that lingraft wrote")
                parse(_content(line, is_sum_needed=False))
                sound.append(line)
            except _REFUSALS:
                removed += 1
    write_bytes_atomically(path, b"".join(sound))
    return removed


def _line(value: Mapping[str, Any]) -> bytes:
    text = json.dumps(value, ensure_ascii=False)
    try:
        body = text.encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair, as JSON of others may hold: escaped, it is kept
        body = json.dumps(value).encode("ascii")
    return body[:-1] + b', "sum": "' + _sum_of(body) + b'"}\n'


def _content(line: bytes, *, is_sum_needed: bool) -> Any:
    """Return a line's JSON value without its checksum.

    Raises:
        ValueError: It is no JSON, or the checksum is wrong, or missing where it is needed.
    """
    end = line.rfind(b', "sum": "')
    found = _SUM.fullmatch(line, end) if end >= 0 else None
    if found is None:
        if is_sum_needed:
            raise ValueError("no checksum")
        return json.loads(line)
    body = line[:end] + b"}"
    if _sum_of(body) != found[1]:
        raise ValueError("the checksum is wrong")
    return json.loads(body)


def _sum_of(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest()[:16].encode()
