"""Every attempt at a stage that failed, of all runs of a folder: `runs/<name>/failures.jsonl`, which only grows.

It is written by the process that runs the study, and read by whoever looks at the folder. No result depends on it.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lingraft.append_log import AppendLog, rows_so_far
from lingraft.claims import HIGHEST
from lingraft.errors import in_one_line
from lingraft.records import from_json, to_json
from lingraft.study.event_log import attempts_of

FAILURES = "failures.jsonl"  # in a run folder
_lock = threading.Lock()


@dataclass(frozen=True)
class FailedAttempt:
    """An attempt at a stage that failed.

    Attributes:
        stage: The name of its folder.
        attempt: The number of the attempt, that of its claim and its log; 0: none was begun.
        where: Who made it, such as a host and a process; empty: the process that runs the study.
        at: When it was known, in seconds since 1970.
        reason: Why, in one line.
        is_made_again: Whether another attempt followed in the same run.
        format: Version of the line.
    """

    stage: str
    attempt: int
    where: str
    at: float
    reason: str
    is_made_again: bool = False
    format: Literal[1] = 1


def record_failure(
    run: Path, stage: str, error: Exception, *, where: str = "", is_made_again: bool = False
) -> None:
    """Write that an attempt at a stage failed; where the disk refuses, the run goes on without.

    Args:
        run: The run folder.
        stage: The name of the stage's folder.
        error: Why.
        where: See `FailedAttempt`.
        is_made_again: See `FailedAttempt`.
    """
    reason = in_one_line(error).encode("utf-8", errors="replace").decode() or type(error).__name__
    attempt = max(attempts_of(run, stage), default=0)
    failed = FailedAttempt(stage, attempt, where, time.time(), reason, is_made_again)
    with _lock, suppress(OSError):
        AppendLog(run / FAILURES, failed_attempt_of).append([to_json(failed)])


def failed_attempts(run: Path) -> tuple[FailedAttempt, ...]:
    """Return the attempts that failed, in the order in which they did; of a damaged file those before the damage."""
    try:
        return tuple(rows_so_far(run / FAILURES, failed_attempt_of))
    except OSError:
        return ()


def failed_attempt_of(row: Any) -> FailedAttempt:
    """Return a line of the file.

    Raises:
        ValueError: It is none.
    """
    found: FailedAttempt = from_json(FailedAttempt, row)
    if not 0 <= found.attempt <= HIGHEST:  # it becomes the name of a file
        raise ValueError(f"attempt {found.attempt}")
    return found
