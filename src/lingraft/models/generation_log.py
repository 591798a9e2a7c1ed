"""What a model has generated so far, row by row in a log: an interrupted run goes on from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from lingraft.append_log import AppendLog
from lingraft.claims import Claim
from lingraft.models.generation import Generated


class GenerationLog:
    """Continuations by number, in a log (see `AppendLog`).

    Args:
        path: The file.
        claim: Of the log, where other processes may want it; see there.

    Attributes:
        damage: What of the log was damaged, in one sentence; None: nothing.
    """

    def __init__(self, path: Path, claim: Claim | None = None) -> None:
        self._log = AppendLog(path, lambda row: (int(row.pop("number")), Generated(**row)), claim)
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
