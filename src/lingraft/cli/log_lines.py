"""Progress as plain lines where stderr is no terminal: what is done, of how many, and the time left.

A thread of its own says the last known state again, so that a log is never silent for 30 seconds, whatever the
command does: import libraries, load a model, answer a long batch, wait for other processes.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from lingraft.cli.output import print_message, standard_error
from lingraft.stage import mfu_text

if TYPE_CHECKING:
    from rich.console import Console

    from lingraft.stage import StageProgress

SECONDS_BETWEEN_LINES = 20.0  # 10 less than promised: a library may hold the interpreter for some seconds
_LOOKS_PER_LINE = 20
_MOST_AT_ONCE = 4  # steps that a line tells
_LEAST_SECONDS = 0.05


@dataclass
class Step:
    """One of several steps that are under way at a time.

    Attributes:
        name: Its name.
        since: When it began, in seconds.
        progress: How far it is; None: it has not said.
        updated: When it said so.
    """

    name: str
    since: float
    progress: StageProgress | None = None
    updated: float = 0.0


class LogLines:
    """Prints a line of progress at least every 30 seconds, and not more often than every 20.

    Args:
        console: Where to; None: stderr.
        clock: Returns seconds.
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] | None = None) -> None:
        self._console = console
        self._clock = clock or time.monotonic
        self._lock = threading.Lock()
        self._title, self._place = "", ""
        self._progress: StageProgress | None = None
        self._several: tuple[Step, ...] = ()
        self._since = self._updated = self._last_line = self._clock()
        self.estimate: Callable[[], str] = str  # how long the whole takes, or nothing
        self.is_silent = False  # while the command itself says what happens
        self._users = 0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    @contextmanager
    def running(self, title: str | None = None) -> Iterator[None]:
        """Print lines that begin with `title` while the block runs; nothing, where a terminal shows bars."""
        before = self._title
        with self._lock:
            self._title = before if title is None else title
        self._users += 1
        if self._users == 1 and self._is_plain:
            self._since = self._last_line = self._clock()
            self._ended.clear()
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        try:
            yield
        finally:
            self._users -= 1
            if self._users == 0 and self._thread is not None:
                self._ended.set()
                self._thread.join()
                self._thread = None
                self.at("")
                self.estimate = str
            with self._lock:
                self._title = before

    def at(self, place: str) -> None:
        """Say what is being done now, of which no count is known yet."""
        with self._lock:
            if place != self._place:
                self._place, self._since = place, self._clock()
            self._progress, self._several = None, ()

    def at_several(self, place: str, steps: Sequence[Step]) -> None:
        """Say what is being done at a time, and how far each is."""
        with self._lock:
            self._place, self._several = place, tuple(steps)
        self.print_if_due()

    def progressed(self, place: str, progress: StageProgress) -> None:
        """Say how far a step is."""
        with self._lock:
            now = self._clock()
            if place != self._place:
                self._place, self._since = place, now
            self._progress, self._updated, self._several = progress, now, ()
        self.print_if_due()

    def print_if_due(self) -> None:
        """Print the state, if the last line was long enough ago."""
        with self._lock:
            now = self._clock()
            if self.is_silent or not self._is_plain or now - self._last_line < SECONDS_BETWEEN_LINES:
                return
            self._last_line = now
            if self._several:
                said = [
                    f"{one.name}, {_said(one.progress, one.since, one.updated, now)}"
                    for one in self._several[:_MOST_AT_ONCE]
                ]
                more = len(self._several) - len(said)
                what = "; ".join([*said, *([f"and {more} more"] if more else [])])
            else:
                what = _said(self._progress, self._since, self._updated, now)
            title = ", ".join(part for part in (self._title, self.estimate()) if part)
            text = ": ".join(part for part in (title, self._place, what) if part)
        print_message(text, console=self._console)

    @property
    def _is_plain(self) -> bool:
        if self._console is not None:
            return not self._console.is_terminal or self._console.is_dumb_terminal
        return not standard_error().is_terminal or os.environ.get("TERM", "").lower() in ("dumb", "unknown")

    def _watch(self) -> None:
        while not self._ended.wait(max(_LEAST_SECONDS, SECONDS_BETWEEN_LINES / _LOOKS_PER_LINE)):
            try:
                self.print_if_due()
            except (OSError, ValueError):  # stderr is gone or closed: nobody reads it
                return


def _said(progress: StageProgress | None, since: float, updated: float, now: float) -> str:
    """Return how far a step is, and the time left or that since it began."""
    parts, left = [], 0.0
    if progress is not None:
        step, unit = (
            ("" if progress.loss is None else "step "),
            (f" {progress.unit}" if progress.unit else ""),
        )
        of = f"{step}{progress.done:,} of {progress.total:,}{unit}"
        parts = [of if progress.total else f"{progress.done:,}{unit} done", *figures(progress)]
        left = (progress.seconds_left or 0.0) - (now - updated)
    parts.append(f"{duration(left)} left" if left > 0 else f"{duration(now - since)} so far")
    return ", ".join(parts)


@cache
def log_lines() -> LogLines:
    """Return the lines of this process, on stderr."""
    return LogLines()


def figures(progress: StageProgress) -> list[str]:
    """Return a training's loss, speed and MFU; of another step nothing."""
    parts = []
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.3f}")
    if progress.tokens_per_second is not None:
        parts.append(f"{progress.tokens_per_second:.0f} tokens/s")
    if progress.mfu is not None:
        parts.append(f"MFU {mfu_text(progress.mfu)}")
    return parts


def duration(seconds: float) -> str:
    """Return a time as a reader says it: 45 s, 1 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
