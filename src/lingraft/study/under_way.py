"""What a run says of itself while it works, for those who only look at its folder.

    runs/<name>/under_way.json        the stages at work and how far they are, what failed, and a sign of life
               /.../losses.jsonl      in the folder in which a training works, its losses so far

A thread of its own writes both, at most once a second, so that work never waits for a disk. No result depends on them,
and where they cannot be written the run goes on.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Literal

import psutil

from lingraft.append_log import AppendLog, rows_from
from lingraft.claims import node_name
from lingraft.errors import in_one_line
from lingraft.records import from_json, read_json, to_json, write_json_atomically
from lingraft.stage import FOLDER_NAME, StageProgress, StageWatcher
from lingraft.strategies.base import FreezePlanRow

UNDER_WAY = "under_way.json"  # in a run folder
LOSSES = "losses.jsonl"  # in the folder of a training that is not finished
_SECONDS_BETWEEN_WRITES = 1.0
_SECONDS_BETWEEN_SIGNS = 10.0  # of life, while nothing else is to be said
_SECONDS_UNTIL_LOST = 90.0  # without a sign, a process of another machine is taken for dead
_SECONDS_ALIKE = 5.0  # by which two readings of one start differ where a clock is set
MOST_ANSWERS = 60
_MOST_ANSWERS_WRITTEN, _FEWEST_ANSWERS = (
    240,
    4,
)  # of all stages, which are written again and again; of one of them
_MOST_CHARACTERS = 2000  # of a prompt or an answer


@dataclass(frozen=True)
class Holder:
    """The process that holds a run.

    Attributes:
        process: Its number on its machine.
        machine: Where it runs: processes of one machine (or container) see each other.
        started: When, in seconds since 1970.
    """

    process: int
    machine: str
    started: float

    @classmethod
    def this(cls) -> Holder:
        """Return this process."""
        return cls(os.getpid(), this_machine(), psutil.Process().create_time())


@dataclass(frozen=True)
class FirstAnswer:
    """One of the first answers of a task.

    Attributes:
        task: The task, with its language.
        prompt: What was asked, the chat template included; a long one is cut.
        answer: What the model said; a long one is cut.
    """

    task: str
    prompt: str
    answer: str

    @classmethod
    def of(cls, task: str, prompt: str, answer: str) -> FirstAnswer:
        """Return an answer as it can be written: cut, and without what UTF-8 does not have."""
        return cls(_writable(task), _cut(prompt), _cut(answer))


@dataclass(frozen=True)
class StageAtWork:
    """A stage that is at work.

    Attributes:
        folder: The name of its folder.
        since: When it began, in seconds since 1970.
        progress: How far it is; None: it has not said.
        updated: When it said so.
        answers: First answers, where it asks a model; fewer of each where many stages are at work.
        host: The name of the machine that makes it; empty: the one of the run's own process.
        process: Its number there; 0: the run's own process makes it.
        attempt: The number of the claim under which it is made; 0: not known.
        label: Its name in progress lines.
    """

    folder: str
    since: float
    progress: StageProgress | None = None
    updated: float = 0.0
    answers: tuple[FirstAnswer, ...] = ()
    host: str = ""
    process: int = 0
    attempt: int = 0
    label: str = ""


@dataclass(frozen=True)
class UnderWay:
    """What `under_way.json` holds.

    Attributes:
        holder: Who wrote it.
        began: When this process took the run up, in seconds since 1970.
        sign: When it gave its last sign of life.
        at_work: The stages at work, in the order in which they began.
        failed: Why stages failed, by the names of their folders.
        not_needed: Of the plan, the folders of stages that nothing unfinished reads.
        ended: How it ended; `no`: it is at work, or was killed.
        at_once: How many stages may be at work at one time; where nobody knows, the most that were so far.
        format: Version of this file.
    """

    holder: Holder
    began: float
    sign: float
    at_work: tuple[StageAtWork, ...] = ()
    failed: dict[str, str] = field(default_factory=dict)
    not_needed: tuple[str, ...] = ()
    ended: Literal["no", "done", "stopped"] = "no"
    at_once: int = 1
    format: Literal[2] = 2

    def is_held(self, now: float) -> bool:
        """Return whether the process that wrote it still holds the run.

        On the machine of the process it is looked for; a file that comes from another machine tells by its last sign.
        """
        if self.ended != "no":
            return False
        is_fresh = now - self.sign < _SECONDS_UNTIL_LOST
        if self.holder.machine != this_machine():
            return is_fresh
        try:
            process = psutil.Process(self.holder.process)
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            return is_fresh or abs(process.create_time() - self.holder.started) < _SECONDS_ALIKE
        except psutil.NoSuchProcess:
            return False
        except psutil.Error:  # it is there, and another user's
            return True


class LossLog:
    """Keeps the losses of a training, until they are written: by whom, and when, says its owner.

    Args:
        path: The log; it is made with the first loss, and goes on behind those of an interrupted run.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._log: AppendLog[tuple[int, float]] | None = None
        self._waiting: list[tuple[int, float]] = []
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._is_closed = False

    def add(self, progress: StageProgress) -> None:
        """Keep the loss of a step, where it has one."""
        loss = _finite(progress.loss)
        with self._lock:
            if loss is not None and not self._is_closed:
                self._waiting.append((progress.done, loss))

    def write(self) -> None:
        """Write what was added; where the disk refuses, it is left out: the record has all losses."""
        with self._writing:
            with self._lock:
                waiting, self._waiting = self._waiting, []
            if waiting:
                with suppress(OSError):  # a full disk is for the stages to report
                    if self._log is None:
                        self._log = AppendLog(self._path, loss_of)
                    self._log.append({"step": step, "loss": loss} for step, loss in waiting)

    def close(self) -> None:
        """Write nothing any more, as the record follows; what is being written is in the folder when this returns."""
        with self._writing, self._lock:
            self._waiting, self._is_closed = [], True


class UnderWayFile:
    """Writes what a run says of itself, while it is open. Stages are named by their folders.

    Args:
        folder: The run folder.
        at_once: How many stages may be at work at one time; 1 also where nobody knows.
    """

    def __init__(self, folder: Path, at_once: int = 1) -> None:
        self._folder = folder
        self._lock = threading.Lock()  # of what is said; never held while a disk is waited for
        self._writing = threading.Lock()  # of the files; taken before the other
        self._said = UnderWay(Holder.this(), time.time(), time.time(), at_once=at_once)
        self._is_new = True
        self._losses: dict[str, LossLog] = {}  # by stage
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._write_again_and_again, daemon=True)

    def __enter__(self) -> UnderWayFile:
        self._write()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        with self._lock:
            at_work = () if kind is None else self._said.at_work
            self._said = replace(self._said, at_work=at_work, ended="done" if kind is None else "stopped")
            self._is_new = True
        self._write()

    def not_needed(self, folders: Sequence[str]) -> None:
        """Say which stages of the plan are not made, as nothing unfinished reads them."""
        with self._lock:
            self._said, self._is_new = replace(self._said, not_needed=tuple(sorted(folders))), True

    def started(self, stage: StageAtWork, losses: Path | None = None) -> None:
        """Say that a stage begins to work.

        Args:
            stage: The stage; one of the same folder is begun anew.
            losses: Where to write the losses of a training; None: who makes it writes them.
        """
        with self._writing, self._lock:
            others = tuple(one for one in self._said.at_work if one.folder != stage.folder)
            failed = {name: why for name, why in self._said.failed.items() if name != stage.folder}
            at_once = max(self._said.at_once, len(others) + 1)
            self._said = replace(self._said, at_work=(*others, stage), failed=failed, at_once=at_once)
            self._is_new = True
            if losses is not None:
                self._losses[stage.folder] = LossLog(losses)

    def progressed(self, folder: str, progress: StageProgress) -> None:
        """Say how far a stage at work is."""
        known = finite(progress)
        self._change(folder, lambda stage: replace(stage, progress=known, updated=time.time()))
        if (losses := self._losses.get(folder)) is not None:
            losses.add(progress)

    def answered(self, folder: str, answer: FirstAnswer) -> None:
        """Say what the model of a stage at work answered."""
        self._change(
            folder,
            lambda stage: (
                stage
                if len(stage.answers) >= MOST_ANSWERS
                else replace(stage, answers=(*stage.answers, answer))
            ),
        )

    def worked(self, folder: str) -> None:
        """Say that the work is done and its record follows: nothing is written into the stage's folder any more."""
        if (losses := self._losses.pop(folder, None)) is not None:
            losses.close()

    def finished(self, folder: str) -> None:
        """Say that a stage is at work no more."""
        self._losses.pop(folder, None)
        with self._lock:
            at_work = tuple(one for one in self._said.at_work if one.folder != folder)
            self._said, self._is_new = replace(self._said, at_work=at_work), True

    def failed(self, folder: str, error: Exception) -> None:
        """Say why a stage failed."""
        self._write()  # the losses that wait
        self.finished(folder)
        with self._lock:
            reason = _writable(in_one_line(error)) or type(error).__name__
            self._said = replace(self._said, failed=self._said.failed | {folder: reason})

    def _change(self, folder: str, change: Callable[[StageAtWork], StageAtWork]) -> None:
        with self._lock:
            at_work = tuple(change(one) if one.folder == folder else one for one in self._said.at_work)
            self._said, self._is_new = replace(self._said, at_work=at_work), True

    def _write_again_and_again(self) -> None:
        while not self._ended.wait(_SECONDS_BETWEEN_WRITES):
            self._write()

    def _write(self) -> None:
        """Write what is new, and a sign of life where nothing was written for long."""
        with self._writing:
            with self._lock:
                now = time.time()
                is_due = self._is_new or abs(now - self._said.sign) >= _SECONDS_BETWEEN_SIGNS
                if is_due:
                    self._said, self._is_new = replace(self._said, sign=now), False
                said, losses = self._said, tuple(self._losses.values())
            for log in losses:
                log.write()
            most = max(_FEWEST_ANSWERS, _MOST_ANSWERS_WRITTEN // max(1, len(said.at_work)))
            at_work = tuple(replace(one, answers=one.answers[:most]) for one in said.at_work)
            with suppress(OSError):  # a full disk is for the stages to report
                if is_due:
                    write_json_atomically(self._folder / UNDER_WAY, to_json(replace(said, at_work=at_work)))


class Heard(StageWatcher):
    """Passes on what happens inside of a stage under its name, and says it of the run.

    Args:
        watcher: Receives it.
        stage: What is at work.
        said: Of the run; None: nothing is said.
        losses: See `UnderWayFile.started`.
    """

    def __init__(
        self,
        watcher: StageWatcher,
        stage: StageAtWork,
        said: UnderWayFile | None,
        losses: Path | None = None,
    ) -> None:
        self._watcher, self._stage, self._said = watcher, stage, said
        if said is not None:
            said.started(stage, losses)

    def stage_progressed(self, progress: StageProgress) -> None:
        """See StageWatcher."""
        if self._said is not None:
            self._said.progressed(self._stage.folder, progress)
        self._watcher.stage_progressed(replace(progress, stage=self._stage.label))

    def answered(self, task: str, prompt: str, answer: str) -> None:
        """See StageWatcher."""
        if self._said is not None:
            self._said.answered(self._stage.folder, FirstAnswer.of(task, prompt, answer))
        self._watcher.answered(task, prompt, answer)

    def freeze_plan(self, label: str, plan: Sequence[FreezePlanRow]) -> None:
        """See StageWatcher."""
        self._watcher.freeze_plan(label, plan)

    def noted(self, message: str) -> None:
        """See StageWatcher."""
        self._watcher.noted(message)

    def noted_of(self, label: str, message: str) -> None:
        """See StageWatcher."""
        self._watcher.noted_of(label, message)


def read_under_way(folder: Path) -> UnderWay | None:
    """Return what a run says of itself; None: it has said nothing, or its file is damaged or of a later version."""
    try:
        content = read_json(folder / UNDER_WAY)
        if isinstance(content, dict) and content.get("format") == 1:  # which knew one stage at work
            own = content.get("at_work")
            content = content | {"format": 2, "at_work": [] if own is None else [own]}
        found: UnderWay = from_json(UnderWay, content)
    except (OSError, ValueError):
        return None
    # Of a folder from elsewhere they might be paths that lead anywhere.
    is_sound = all(FOLDER_NAME.fullmatch(one.folder) for one in found.at_work) and found.holder.process > 0
    return found if is_sound else None


@dataclass(frozen=True)
class _LossesRead:
    """The losses of a log up to a place of the file, in bytes."""

    place: int = 0
    losses: tuple[tuple[int, float], ...] = ()


_losses: dict[Path, _LossesRead] = {}  # by log, of trainings that are not finished


def losses_so_far(stage: Path) -> tuple[tuple[int, float], ...]:
    """Return the losses of a training that is not finished: (step, nats per supervised token), in order of steps.

    A training that went on from a checkpoint repeats steps; the later loss is that of the model. What was read before
    is not read again: who follows a run asks every other second.
    """
    path = stage / LOSSES
    found = _losses.get(path)
    if found is None or not path.is_file() or path.stat().st_size < found.place:
        for gone in [one for one in _losses if not one.exists()]:
            _losses.pop(gone, None)
        found = _LossesRead()
    rows, place = rows_from(path, found.place, loss_of)
    losses = list(found.losses)
    for step, loss in rows:
        while losses and losses[-1][0] >= step:
            losses.pop()
        losses.append((step, loss))
    if rows:
        found = _losses[path] = _LossesRead(place, tuple(losses))
    return found.losses


def loss_of(row: dict[str, object]) -> tuple[int, float]:
    """Return a row of a log of losses: step and loss.

    Raises:
        ValueError: It is none.
    """
    step, loss = row["step"], row["loss"]
    if not isinstance(step, int) or not isinstance(loss, float) or not math.isfinite(loss):
        raise ValueError("no loss")
    return step, loss


def this_machine() -> str:
    """Return the name of this machine, with what tells its containers apart."""
    namespace = Path("/proc/self/ns/pid")  # containers of one machine number their processes each for itself
    try:
        return f"{node_name()} {namespace.readlink()}"
    except OSError:
        return node_name()


def finite(progress: StageProgress) -> StageProgress:
    """Return a progress without figures that JSON does not have."""
    return replace(
        progress,
        loss=_finite(progress.loss),
        tokens_per_second=_finite(progress.tokens_per_second),
        seconds_left=_finite(progress.seconds_left),
        mfu=_finite(progress.mfu),
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _writable(text: str) -> str:
    """Return a text without what UTF-8 does not have: half of a surrogate pair, as in a name that cannot be read."""
    return text.encode("utf-8", errors="replace").decode()


def _cut(text: str) -> str:
    text = _writable(text)
    return text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS] + "…"
