"""What a model has generated so far, row by row in a log: an interrupted run goes on from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from lingraft.append_log import AppendLog, only_process
from lingraft.errors import LingraftError
from lingraft.models.generation import Generated


class GenerationLog:
    """Continuations by number, in a log (see `AppendLog`).

    Attributes:
        damage: What of the log was damaged, in one sentence; None: nothing.
    """

    def __init__(self, path: Path) -> None:
        self._log = AppendLog(path, lambda row: (int(row.pop("number")), Generated(**row)))
        self._found: dict[int, Generated] = dict(self._log.rows)
        self.damage = self._log.damage

    def __contains__(self, number: int) -> bool:
        return number in self._found

    def __getitem__(self, number: int) -> Generated:
        return self._found[number]

    def append(self, rows: Mapping[int, Generated]) -> None:
        """Write those of `rows` that are not there yet; they are on disk when this returns."""
        new = {number: rows[number] for number in sorted(rows) if number not in self._found}
        self._log.append({"number": number, **asdict(one)} for number, one in new.items())
        self._found.update(new)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make a folder of logs and keep other processes out of it meanwhile.

    Raises:
        LingraftError: Another process is at work in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    busy = LingraftError(f"{folder}: another lingraft is generating into it; wait for it.")
    with only_process(folder / ".lock", busy):
        yield
