"""The engine of `--workers N`: processes of this machine that each make one stage after the other.

Each worker (`study.pool_worker`) has its own accelerators. It is started as those that answer are (`models.workers`),
not by `multiprocessing`: that would run a user's script again in each worker, and a terminal's Ctrl-C would reach it.
One that dies is started again; whether its stage is made again is for the executor to say.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from multiprocessing.connection import Pipe, wait
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import psutil
import torch

from lingraft import stopping
from lingraft.errors import ConfigError
from lingraft.stage import StageSpec
from lingraft.stopping import Stopped
from lingraft.study.engines import LostError, Settled, say_saved
from lingraft.study.event_log import attempts_of, output_file
from lingraft.study.schedule import Node, Share
from lingraft.study.stage_worker import Assignment, Outcome

_SHOWN_LINES = 20
_SHOWN_BYTES = 1 << 14
_SECONDS_TO_END = 10.0
_SECONDS_BETWEEN_SIGNALS = 0.5  # one may come before a worker has begun to listen


def check_workers(workers: int, processes: int = 1) -> None:
    """Refuse more workers than this machine's accelerators are enough for; without any, any number works.

    Args:
        workers: Stages at a time.
        processes: That train a phase together.

    Raises:
        ConfigError: There are too few.
    """
    cards = _cards()
    if cards and workers * processes > len(cards):
        each = "" if processes == 1 else f" of {processes} processes each"
        most = len(cards) // processes
        advice = f"give --workers {most}" if most > 1 else "leave --workers out"
        raise ConfigError(
            f"--workers {workers}: {workers} trainings at a time{each} take {workers * processes} accelerators, and "
            f"there are {len(cards)}; {advice}."
        )


def cards_of_a_worker(workers: int) -> int:
    """Return how many of this machine's accelerators each worker has; 0: there are none."""
    return len(_cards()) // workers


class Pool:
    """Makes stages in processes of this machine; see `engines.Engine`.

    Args:
        run: The run folder.
        workers: How many stages are made at a time.
    """

    def __init__(self, run: Path, workers: int) -> None:
        self._run = run
        self._count = workers
        self._workers: list[_Worker] = []
        self._finishing = stopping.finish_first()

    def __enter__(self) -> Pool:
        """Return the pool; a worker is started when it is needed."""
        cards = _cards()
        each = len(cards) // self._count
        for number in range(self._count):
            own = cards[number * each : (number + 1) * each] if cards else None
            self._workers.append(_Worker(number + 1, own))
        self._finishing.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        """End the workers; what is at work saves first where Ctrl-C stops a program that takes no signals itself."""
        try:
            if isinstance(error, KeyboardInterrupt) and not isinstance(error, Stopped):
                self._stop(signal.SIGINT)
        finally:
            for worker in self._workers:
                worker.kill()
                worker.log.close()
            self._finishing.__exit__(kind, error, stack)

    @property
    def node(self) -> Node:
        """What a worker has of this machine."""
        return Node(
            cards=len(_cards()) // self._count,
            cpus=max(1, (os.cpu_count() or 1) // self._count),
            memory_bytes=psutil.virtual_memory().total // self._count,
            threads=torch.get_num_threads(),
        )

    @property
    def cards(self) -> int:
        """See Engine."""
        return len(_cards())

    @property
    def room(self) -> int:
        """How many workers are free."""
        return sum(worker.assignment is None for worker in self._workers)

    def submit(self, stage: StageSpec, share: Share, *, with_artefacts: bool) -> None:
        """See Engine."""
        worker = next(one for one in self._workers if one.assignment is None)
        worker.give(stage, Assignment.of(self._run, stage, share, with_artefacts=with_artefacts))

    def wait(self, seconds: float) -> list[Settled]:
        """See Engine."""
        number = stopping.requested()
        if number is not None:
            self._stop(number)
            raise Stopped(number)
        settled = []
        at_work = {worker.connection: worker for worker in self._workers if worker.assignment is not None}
        for ready in wait(list(at_work), seconds):
            worker = at_work[ready]  # type: ignore[index]
            assert worker.stage is not None
            stage, outcome = worker.stage, worker.hear()
            where = f"worker {worker.number}"
            if outcome is None:
                how = worker.bury()
                lines = worker.last_lines() or _last_lines(self._run, stage)
                error: Exception = LostError(f"the process that made it {how}.{lines}")
                settled.append(Settled(stage, error, where, may_pass=True))
            elif outcome.stopped is not None:  # a signal may come to a worker alone
                stopping.request(outcome.stopped)
                self._stop(outcome.stopped, [(stage, outcome.saved)])
                raise Stopped(outcome.stopped)
            elif outcome.failure is not None:
                settled.append(Settled(stage, outcome.failure.error, where, outcome.failure.may_pass))
            else:
                settled.append(Settled(stage, None, where))
        return settled

    def _stop(self, number: int, saved: list[tuple[StageSpec, str]] | None = None) -> None:
        """Let what is at work save and end, however long it takes; a second signal ends this by an exception."""
        said = saved or []
        while at_work := [worker for worker in self._workers if worker.assignment is not None]:
            for worker in at_work:
                worker.signal(number)
            for ready in wait([worker.connection for worker in at_work], _SECONDS_BETWEEN_SIGNALS):
                worker = next(one for one in at_work if one.connection is ready)
                stage, outcome = worker.stage, worker.hear()
                if outcome is None:
                    worker.kill()
                elif stage is not None:
                    said.append((stage, outcome.saved))
        say_saved(said)


class _Worker:
    """A process that makes stages, seen from here; it is started for a stage where it is not there.

    Args:
        number: From 1.
        cards: Its accelerators, as CUDA_VISIBLE_DEVICES names them; None: there are none.
    """

    def __init__(self, number: int, cards: list[str] | None) -> None:
        self.number = number
        self.log: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 - closed by who ends it
        self.stage: StageSpec | None = None
        self.assignment: Assignment | None = None
        """What it has to do; None: it is free."""
        self._cards = cards
        self._process: subprocess.Popen[bytes] | None = None

    def _start(self) -> None:
        self.connection, theirs = Pipe()
        # Unbuffered: the last lines of one that is killed would be lost.
        environment = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
        # As the command line has it: threads that spin stall those of another worker.
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        environment.setdefault("GOMP_SPINCOUNT", "3000")
        if self._cards is not None:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(self._cards)
        with theirs:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "lingraft.study.pool_worker"),
                    *(str(theirs.fileno()), str(os.getpid())),
                ],
                stdin=subprocess.DEVNULL,
                stdout=self.log,
                stderr=self.log,
                env=environment,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # a terminal's Ctrl-C reaches this process alone, which hands it on
            )
        self._send((sys.path, torch.get_num_threads()))

    def give(self, stage: StageSpec, assignment: Assignment) -> None:
        """Let it make a stage."""
        if self._process is not None and self._process.poll() is not None:  # it died while it was free
            self.kill()
        if self._process is None:
            self._start()
        self.stage, self.assignment = stage, assignment
        self._send(assignment)

    def _send(self, value: object) -> None:
        try:
            self.connection.send(value)
        except (BrokenPipeError, ConnectionResetError):
            return  # it has died, which `hear` finds out

    def hear(self) -> Outcome | None:
        """Return how its stage ended, after which it is free; None: it has died."""
        self.stage = self.assignment = None
        try:
            outcome: Outcome = self.connection.recv()
        except (EOFError, OSError):
            return None
        return outcome

    def bury(self) -> str:
        """Return how it died."""
        assert self._process is not None
        try:
            code = self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:  # it has closed its connection alone
            self._process.kill()
            code = self._process.wait()
        self.kill()
        if code == -signal.SIGKILL:
            return "was killed by SIGKILL, as the system does where memory is short"
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def signal(self, number: int) -> None:
        """Send it a signal."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """End it; a stage that it is given starts it again."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            self.connection.close()
        self.stage = self.assignment = None

    def last_lines(self) -> str:
        """Return the last lines that it printed outside of any stage, after a line break; empty: none."""
        self.log.seek(max(0, self.log.seek(0, os.SEEK_END) - _SHOWN_BYTES))
        return _shown(self.log.read())


def _last_lines(run: Path, stage: StageSpec) -> str:
    """Return the last lines that were printed while a stage was made, after a line break; empty: none."""
    log = output_file(run, stage.folder_name, max(attempts_of(run, stage.folder_name), default=0))
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _SHOWN_BYTES))
            return _shown(file.read())
    except OSError:  # it printed nothing
        return ""


def _shown(printed: bytes) -> str:
    # Of a line that was written over again and again, such as a bar of a library, what stood there last.
    text = printed.decode("utf-8", errors="replace")
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    lines = [line for line in lines if line.strip()][-_SHOWN_LINES:]
    return "".join(f"\n{line}" for line in lines)


def _cards() -> list[str]:
    """Return the names of this machine's accelerators, as CUDA_VISIBLE_DEVICES has them; empty: there are none."""
    if not torch.accelerator.is_available():
        return []
    count = torch.accelerator.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(number) for number in range(count)]
