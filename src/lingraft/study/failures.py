"""Attempts at stages that failed, in a run folder: which, when, where and why.

    runs/<name>/failures.jsonl

Several processes append to it, each under a claim: on NFS what two append at once would overwrite each other.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lingraft.append_log import AppendLog, rows_so_far
from lingraft.claims import Owner, claim
from lingraft.errors import in_one_line
from lingraft.records import from_json, to_json

FAILURES = "failures.jsonl"
_MOST_CHARACTERS = 1000  # of a reason


@dataclass(frozen=True)
class Failure:
    """An attempt that failed.

    Attributes:
        stage: The name of the stage's folder.
        number: The fencing number of the attempt; 0: it is not known.
        host: The name of the machine that made it; empty: it is not known.
        process: The number of its process there; 0: it is not known.
        when: In seconds since 1970, by the clock of who wrote this.
        why: In one line, cut.
        format: Version of the line.
    """

    stage: str
    number: int
    host: str
    process: int
    when: float
    why: str
    format: int = 1


def failure_of(stage: str, number: int, why: BaseException | str, owner: Owner | None = None) -> Failure:
    """Return a failure of now.

    Args:
        stage: The name of the stage's folder.
        number: The fencing number of the attempt; 0: it is not known.
        why: The error, or a sentence.
        owner: Who made the attempt; None: this process did.
    """
    if isinstance(why, BaseException):
        why = in_one_line(why) or type(why).__name__
    text = why.encode("utf-8", errors="replace").decode()
    cut = text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS] + "…"
    owner = owner or Owner.this()
    return Failure(stage, number, owner.host, owner.process, time.time(), cut)


def add_failure(run: Path, failure: Failure) -> None:
    """Write a failure down in a run folder.

    Raises:
        OSError: It cannot be written.
    """
    with claim(run / "claims" / "failures", patience=None):
        AppendLog(run / FAILURES, _parse).append([to_json(failure)])


def failures_of(run: Path) -> list[Failure]:
    """Return the failures of a run folder, oldest first; what is damaged is left out, and nothing is changed."""
    return rows_so_far(run / FAILURES, _parse)


def _parse(row: Any) -> Failure:
    found: Failure = from_json(Failure, row)
    return found
