"""What happens in a stage, from the process that makes it to the one that runs the study, by way of the run folder.

    runs/<name>/logs/<kind>-<fingerprint>/<n>.log             what the stage's process and libraries printed, attempt n
                                         /<n>.events.jsonl    what happened in it

Whoever makes a stage writes an `EventLog`; the driver's `EventFollower` passes each event on to its watcher, once, and
the status of a run whose driver died is read from the same files. A file has one writer and only grows, so neither a
lock nor a network is needed, and a shared folder that shows a line late or by halves does no harm.
"""

from __future__ import annotations

import math
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from lingraft.append_log import AppendLog, row_of, rows_from
from lingraft.claims import node_name
from lingraft.records import from_json, to_json
from lingraft.stage import StageProgress, StageSpec
from lingraft.strategies.base import FreezePlanRow
from lingraft.study.events import Watcher
from lingraft.study.under_way import (
    LOSSES,
    MOST_ANSWERS,
    FirstAnswer,
    Heard,
    LossLog,
    StageAtWork,
    UnderWayFile,
    finite,
)

LOGS = "logs"  # in a run folder
_EVENTS = ".events.jsonl"
_NUMBER = re.compile(r"(\d{1,12})\.events\.jsonl")
_SECONDS_BETWEEN_WRITES = 1.0
_SHARE_BETWEEN_WRITES = (
    1e-3  # of the time so far, at least: a stage of two weeks has 8,000 lines, not 1.2 million
)
_HEAD_BYTES, _TAIL_BYTES = 1 << 14, 1 << 18  # of a file, where only its beginning or end is looked at
_MOST_AT_EVERY_LOOK, _LOOKS_PER_SECOND = 20, 100.0  # of stages that are followed, at one folder each
_SECONDS_UNTIL_DAMAGED = 30.0  # a line that a shared folder shows by halves is whole long before


@dataclass(frozen=True)
class Started:
    """A stage begins to work: the first line of a file.

    Attributes:
        label: Its name in progress lines.
        host: The name of the machine that makes it.
        process: The number of the process there.
        at: When, in seconds since 1970, by the clock of that machine.
        format: Version of the file.
    """

    label: str
    host: str
    process: int
    at: float
    format: Literal[1] = 1
    event: Literal["started"] = "started"


@dataclass(frozen=True)
class Progressed:
    """How far it is, and when it said so."""

    progress: StageProgress
    at: float
    event: Literal["progressed"] = "progressed"


@dataclass(frozen=True)
class Answered:
    """One of the first answers of a task."""

    answer: FirstAnswer
    event: Literal["answered"] = "answered"


@dataclass(frozen=True)
class Planned:
    """What trains and what is frozen."""

    label: str
    plan: tuple[FreezePlanRow, ...]
    event: Literal["planned"] = "planned"


@dataclass(frozen=True)
class Noted:
    """Something was dropped, truncated or fell short; of one model or phase where `label` is given."""

    message: str
    label: str | None = None
    event: Literal["noted"] = "noted"


Event = Started | Progressed | Answered | Planned | Noted


def event_file(run: Path, stage: str, attempt: int) -> Path:
    """Return where an attempt to make a stage writes its events; `stage` is the name of its folder."""
    return run / LOGS / stage / f"{attempt}{_EVENTS}"


def output_file(run: Path, stage: str, attempt: int) -> Path:
    """Return where an attempt to make a stage writes what is printed."""
    return run / LOGS / stage / f"{attempt}.log"


def attempts_of(run: Path, stage: str) -> list[int]:
    """Return the numbers of the attempts that left events, in order; one look at a folder."""
    try:
        names = [path.name for path in (run / LOGS / stage).iterdir()]
    except OSError:
        return []
    return sorted(int(found[1]) for name in names if (found := _NUMBER.fullmatch(name)))


def log_of(run: Path, stage: str) -> Path | None:
    """Return where the newest attempt to make a stage wrote what was printed; None: nowhere."""
    for attempt in reversed(attempts_of(run, stage)):
        if (path := output_file(run, stage, attempt)).is_file():
            return path
    return None


def attempt_so_far(run: Path, stage: str, attempt: int) -> StageAtWork | None:
    """Return what an attempt says of itself; None: it has said nothing. Of a long file its end is read alone."""
    path = event_file(run, stage, attempt)
    try:
        if not path.is_file():  # a pipe would be waited for
            return None
        begun = next((one for one in _rows_at(path, 0, _HEAD_BYTES) if isinstance(one, Started)), None)
        if begun is None:
            return None
        size = path.stat().st_size
        events = _rows_at(path, max(0, size - _TAIL_BYTES), _TAIL_BYTES)
    except OSError:
        return None
    last = next((one for one in reversed(events) if isinstance(one, Progressed)), None)
    return StageAtWork(
        stage,
        begun.at,
        progress=None if last is None else last.progress,
        updated=begun.at if last is None else last.at,
        answers=tuple(one.answer for one in events if isinstance(one, Answered))[:MOST_ANSWERS],
        host=begun.host,
        process=begun.process,
        attempt=attempt,
        label=begun.label,
    )


def _rows_at(path: Path, place: int, length: int) -> list[Event]:
    """Return the events whose lines lie whole in a part of a file; those that cannot be read are left out."""
    with path.open("rb") as file:
        file.seek(max(0, place - 1))
        content = file.read(length + 1)
    lines = content.split(b"\n")[1 if place else 0 : -1]
    found = []
    for line in lines:
        with suppress(ValueError):
            found.append(row_of(line + b"\n", event_of))
    return found


def event_of(row: Any) -> Event:
    """Return a line of a file of events.

    Raises:
        ValueError: It is none, or of a later version.
    """
    found: Event = from_json(Event, row)  # type: ignore[arg-type]  # of a union, which pydantic reads as well
    return found


class EventLog(Watcher):
    """Writes what happens in a stage, by a thread of its own: notes and plans at once, progress at most once a second.

    Of a long stage progress is written more rarely, so that the file stays small (`_SHARE_BETWEEN_WRITES`).

    Use it as a context around the work; the record and the reporting of the end are the driver's.

    Args:
        path: The file, of an attempt that nobody made before (`event_file`).
        folder: Where the stage works; the losses of a training are written there. None: they are not written.
    """

    def __init__(self, path: Path, folder: Path | None = None) -> None:
        self._path = path
        self._log: AppendLog[Event] | None = None
        self._waiting: list[Event] = []
        self._label = ""
        self._answers = 0
        self._losses = None if folder is None else LossLog(folder / LOSSES)
        self._lock = threading.Lock()  # of what waits; never held while a disk is waited for
        self._writing = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._write_again_and_again, daemon=True)

    def __enter__(self) -> EventLog:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._write()

    def worked(self) -> None:
        """Write nothing into the stage's folder any more: its record follows."""
        if self._losses is not None:
            self._losses.close()

    def stage_started(self, label: str) -> None:
        """See Watcher."""
        self._label = label
        self._add(Started(label, node_name(), os.getpid(), time.time()), at_once=True)

    def stage_progressed(self, progress: StageProgress) -> None:
        """See Watcher."""
        self._add(Progressed(finite(replace(progress, stage=progress.stage or self._label)), time.time()))
        if self._losses is not None:
            self._losses.add(progress)

    def answered(self, task: str, prompt: str, answer: str) -> None:
        """See Watcher."""
        self._answers += 1
        if self._answers <= MOST_ANSWERS:
            self._add(Answered(FirstAnswer.of(task, prompt, answer)))

    def freeze_plan(self, label: str, plan: Sequence[FreezePlanRow]) -> None:
        """See Watcher."""
        self._add(Planned(label, tuple(plan)), at_once=True)

    def noted(self, message: str) -> None:
        """See Watcher."""
        self._add(Noted(message), at_once=True)

    def noted_of(self, label: str, message: str) -> None:
        """See Watcher."""
        self._add(Noted(message, label), at_once=True)

    def _add(self, event: Event, *, at_once: bool = False) -> None:
        with self._lock:
            if isinstance(event, Progressed) and self._waiting and isinstance(self._waiting[-1], Progressed):
                self._waiting.pop()  # nobody has seen it, and this one says more
            self._waiting.append(event)
        if at_once:
            self._write()

    def _write_again_and_again(self) -> None:
        began, pause = time.monotonic(), _SECONDS_BETWEEN_WRITES
        while not self._ended.wait(pause):
            self._write()
            pause = max(_SECONDS_BETWEEN_WRITES, _SHARE_BETWEEN_WRITES * (time.monotonic() - began))

    def _write(self) -> None:
        """Write what waits; where the disk refuses, it waits on: a full disk is for the stage to report."""
        with self._writing:
            if self._losses is not None:
                self._losses.write()
            with self._lock:
                events = tuple(self._waiting)
            if not events:
                return
            try:
                if self._log is None:
                    self._path.parent.mkdir(parents=True, exist_ok=True)
                    self._log = AppendLog(self._path, event_of)
                self._log.append([to_json(one) for one in events])
            except OSError:
                return
            with self._lock:
                # What was added meanwhile may have taken the place of the last progress, which is written now.
                self._waiting = [one for one in self._waiting if not any(one is old for old in events)]


@dataclass
class _Followed:
    """A stage whose events are followed.

    Attributes:
        attempt: The newest one that was seen; events of older ones are not passed on.
        place: Up to which byte its file is read.
        hears: What passes its events on; None: it has not said that it began.
        stuck: The place of a line that cannot be read, and since when it is looked at, in seconds.
    """

    attempt: int = 0
    place: int = 0
    hears: Heard | None = None
    stuck: tuple[int, float] | None = None


class EventFollower:
    """Passes on what other processes do, from their files of events: each event once, in order within a stage.

    An attempt that was made before the stage was followed is passed on only if it goes on; with a newer attempt, what
    an older one still writes is left out.

    Args:
        run: The run folder.
        watcher: Receives the events. That a stage is finished or failed is for the caller to report.
        said: What the run says of itself, with the stages at work; None: nothing is said.
    """

    def __init__(self, run: Path, watcher: Watcher, said: UnderWayFile | None = None) -> None:
        self._run, self._watcher, self._said = run, watcher, said
        self._followed: dict[str, _Followed] = {}
        self._read_last = -math.inf

    def begin(self, stage: StageSpec) -> None:
        """Follow a stage; called before it is given to a process."""
        last = max(attempts_of(self._run, stage.folder_name), default=0)
        place = 0
        with suppress(OSError):
            place = event_file(self._run, stage.folder_name, last).stat().st_size
        self._followed[stage.folder_name] = _Followed(last, place)

    def read(self) -> None:
        """Pass on what is new of all stages that are followed; of many more rarely than it is called."""
        now, count = time.monotonic(), len(self._followed)
        if count > _MOST_AT_EVERY_LOOK and now - self._read_last < count / _LOOKS_PER_SECOND:
            return  # a server of files is asked for each of them
        self._read_last = now
        for folder in tuple(self._followed):
            self._read(folder)

    def end(self, stage: StageSpec) -> None:
        """Pass on what is left of a stage that has ended, and follow it no more."""
        if stage.folder_name in self._followed:
            self._read(stage.folder_name)
            if self._followed.pop(stage.folder_name).hears is not None:
                self._watcher.stage_ended(stage.name)
            if self._said is not None:
                self._said.finished(stage.folder_name)

    def _read(self, folder: str) -> None:
        own = self._followed[folder]
        newer = [number for number in attempts_of(self._run, folder) if number > own.attempt]
        for attempt in (own.attempt, *newer):
            if attempt == 0:
                continue
            if attempt > own.attempt:
                own.attempt, own.place, own.hears, own.stuck = attempt, 0, None, None
            for event in self._new_events(folder, own):
                if own.hears is None:
                    begun = event if isinstance(event, Started) else self._start_of(folder, own)
                    if begun is None:
                        continue
                    at_work = StageAtWork(
                        folder,
                        time.time(),
                        host=begun.host,
                        process=begun.process,
                        attempt=own.attempt,
                        label=begun.label,
                    )
                    self._watcher.stage_started(begun.label)
                    own.hears = Heard(self._watcher, at_work, self._said)
                _pass_on(event, own.hears)

    def _start_of(self, folder: str, own: _Followed) -> Started | None:
        """Return the beginning of an attempt that was at work before it was followed."""
        rows, _ = rows_from(event_file(self._run, folder, own.attempt), 0, event_of)
        return next((one for one in rows if isinstance(one, Started)), None)

    def _new_events(self, folder: str, own: _Followed) -> Iterator[Event]:
        path = event_file(self._run, folder, own.attempt)
        try:
            # The file is opened anew for each look: a shared folder shows only so what another machine wrote.
            if path.stat().st_size <= own.place:
                return
            events, own.place = rows_from(path, own.place, event_of)
            yield from events
            if path.stat().st_size > own.place:
                self._step_over(path, own)
        except OSError:  # out of reach for a moment: the next look finds it
            return

    def _step_over(self, path: Path, own: _Followed) -> None:
        """Leave out a whole line that cannot be read, once it has been there for long."""
        now = time.monotonic()
        if own.stuck is None or own.stuck[0] != own.place:
            own.stuck = own.place, now
        elif now - own.stuck[1] >= _SECONDS_UNTIL_DAMAGED:
            with path.open("rb") as file:
                file.seek(own.place)
                line = file.readline()
            if line.endswith(b"\n"):
                own.place += len(line)
                self._watcher.noted(f"{path}: a line is damaged; what it said is not shown.")


def _pass_on(event: Event, hears: Heard) -> None:
    match event:
        case Progressed():
            hears.stage_progressed(event.progress)
        case Answered():
            hears.answered(event.answer.task, event.answer.prompt, event.answer.answer)
        case Planned():
            hears.freeze_plan(event.label, event.plan)
        case Noted():
            if event.label is None:
                hears.noted(event.message)
            else:
                hears.noted_of(event.label, event.message)
        case Started():
            pass  # said already
