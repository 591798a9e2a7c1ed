"""The engine of `--workers N`: processes of this machine that each make one stage after the other.

Each worker (`study.pool_worker`) has its own accelerators. One that dies is started again; whether its stage is made
again is for the executor to say.
"""

from __future__ import annotations

import os
import signal
import sys
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType

import psutil
import torch

from lingraft import stopping
from lingraft.errors import ConfigError
from lingraft.models.child import Child, last_lines
from lingraft.stage import StageSpec
from lingraft.stopping import Stopped
from lingraft.study.engines import LostError, Settled, say_saved
from lingraft.study.event_log import attempts_of, output_file
from lingraft.study.schedule import Node, Share
from lingraft.study.stage_worker import Assignment, Outcome

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
        self._memory_bytes = 0
        self._finishing = stopping.finish_first()

    def __enter__(self) -> Pool:
        """Return the pool; a worker is started when it is needed."""
        cards = _cards()
        each = len(cards) // self._count
        for number in range(self._count):
            own = cards[number * each : (number + 1) * each] if cards else None
            self._workers.append(_Worker(number + 1, own))
        libraries = psutil.Process().memory_info().rss  # each worker loads them too
        self._memory_bytes = max(0, psutil.virtual_memory().available - self._count * libraries)
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
    def memory_bytes(self) -> int:
        """See Engine; what was free when the pool began."""
        return self._memory_bytes

    @property
    def room(self) -> int:
        """How many workers are free."""
        return sum(worker.stage is None for worker in self._workers)

    def submit(self, stage: StageSpec, share: Share, *, with_artefacts: bool) -> None:
        """See Engine."""
        worker = next(one for one in self._workers if one.stage is None)
        worker.give(stage, Assignment.of(self._run, stage, share, with_artefacts=with_artefacts))

    def wait(self, seconds: float) -> list[Settled]:
        """See Engine."""
        number = stopping.requested()
        if number is not None:
            self._stop(number)
            raise Stopped(number)
        settled = []
        at_work = {worker.connection: worker for worker in self._workers if worker.stage is not None}
        for ready in wait(list(at_work), seconds):
            worker = at_work[ready]  # type: ignore[index]
            assert worker.stage is not None
            stage, outcome = worker.stage, worker.hear()
            where = f"worker {worker.number}"
            if outcome is None:
                how = worker.bury()
                how += ", as the system does where memory is short" * how.endswith("SIGKILL")
                lines = worker.last_lines() + _last_lines(self._run, stage)  # libraries warn while they load
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
        while at_work := [worker for worker in self._workers if worker.stage is not None]:
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


class _Worker(Child):
    """A process that makes stages; it is started for a stage where it is not there.

    Args:
        number: From 1.
        cards: Its accelerators, as CUDA_VISIBLE_DEVICES names them; None: there are none.

    Attributes:
        stage: What it makes; None: it is free.
    """

    def __init__(self, number: int, cards: list[str] | None) -> None:
        super().__init__()
        self.number = number
        self.stage: StageSpec | None = None
        self._cards = cards

    def give(self, stage: StageSpec, assignment: Assignment) -> None:
        """Let it make a stage."""
        if self.process is not None and self.process.poll() is not None:  # it died while it was free
            self.kill()
        if self.process is None:
            self.log.seek(0)  # what the one before it printed is shown by now
            self.log.truncate()
            # Unbuffered: the last lines of one that is killed would be lost.
            environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
            # As the command line has it: threads that spin stall those of another worker.
            environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
            environment.setdefault("GOMP_SPINCOUNT", "3000")
            if self._cards is not None:
                environment["CUDA_VISIBLE_DEVICES"] = ",".join(self._cards)
            self.start("lingraft.study.pool_worker", environment)
            self.send((sys.path, torch.get_num_threads()))
        self.stage = stage
        self.send(assignment)

    def hear(self) -> Outcome | None:
        """Return how its stage ended, after which it is free; None: it has died."""
        self.stage = None
        outcome: Outcome | None = self.receive()
        return outcome

    def signal(self, number: int) -> None:
        """Send it a signal."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def kill(self) -> None:
        """End it; a stage that it is given starts it again."""
        super().kill()
        self.stage = None


def _last_lines(run: Path, stage: StageSpec) -> str:
    """Return the last lines that were printed while a stage was made, after a line break; empty: none."""
    log = output_file(run, stage.folder_name, max(attempts_of(run, stage.folder_name), default=0))
    try:
        with log.open("rb") as printed:
            return last_lines(printed)
    except OSError:  # it printed nothing
        return ""


def _cards() -> list[str]:
    """Return the names of this machine's accelerators, as CUDA_VISIBLE_DEVICES has them; empty: there are none."""
    if not torch.accelerator.is_available():
        return []
    count = torch.accelerator.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(number) for number in range(count)]
