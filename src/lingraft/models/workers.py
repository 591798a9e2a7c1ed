"""Several processes that each hold a model and answer batches from one queue; this process alone keeps the answers.

Each worker (`models.worker`) is sent a batch when it is free, so none waits while there are any. A worker that dies
costs its batch, which is asked again: first by others that are free, else by the worker, which is started again. One
that dies twice without an answer stays away, and a batch that costs two workers their lives is an error.

A worker hears no signal: it ends when this process does, or when this process kills it.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any

import torch

from lingraft import errors
from lingraft.errors import ConfigError, LingraftError
from lingraft.models.answering import Answer, Answering, Batch, InThisProcess, OnDemand
from lingraft.models.child import Child
from lingraft.models.engine import ModelFiles

_MOST_DEATHS = 2  # of a worker without an answer between them, and of workers over one batch


@dataclass(frozen=True, slots=True)
class Ready:
    """Sent by a worker whose model is loaded."""


@dataclass(frozen=True, slots=True)
class Answered:
    """Sent by a worker: the answer to the batch that it has."""

    answer: Any


@dataclass(frozen=True, slots=True)
class Noted:
    """Sent by a worker: a sentence that the user should read; others may send the same."""

    message: str


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """Sent by a worker that ends, because the memory was too short for its batch."""


@dataclass(frozen=True, slots=True)
class Failed:
    """Sent by a worker whose model cannot be loaded, or whose batch cannot be answered: the error, by name."""

    kind: str
    message: str

    @property
    def error(self) -> LingraftError:
        """The error, to be raised by who asked."""
        error: LingraftError = getattr(errors, self.kind, LingraftError)(self.message)
        return error


def worker_count(asked: int | None = None) -> int:
    """Return how many processes answer: as many as are asked for; None: one an accelerator, one without any.

    Raises:
        ConfigError: None, or more than there are accelerators.
    """
    devices = torch.accelerator.device_count() if torch.accelerator.is_available() else None
    if asked is None:
        return devices or 1
    if asked < 1:
        raise ConfigError(f"--processes {asked}: give at least 1.")
    if devices is not None and asked > devices:
        raise ConfigError(
            f"--processes {asked}: there are {devices} accelerators, and each process needs one; give at most so many."
        )
    return asked


def worker_environment(processes: int) -> dict[str, str]:
    """Return the environment of one of several processes: each gets its share of the threads.

    Safe paths: a file of the user's folder must not stand in for a library, nor be run.
    """
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, torch.get_num_threads() // processes))
    return {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONSAFEPATH": "1"}


@contextmanager
def answered_by(
    workers: int,
    files: ModelFiles,
    device: torch.device,
    noted: Callable[[str], None] = lambda _: None,
    *,
    beside_server: bool = False,
) -> Iterator[Answering]:
    """Load a model in this process (1) or in several, to answer batches inside; nothing of it is left at the end.

    Args:
        workers: How many processes answer; each holds the whole model, on an accelerator of its own if there are any.
        files: The model.
        device: What one process computes on.
        noted: Called with a sentence where a worker died and its batch is asked again, or an engine falls back.
        beside_server: A server generates, so it is loaded only when a batch is asked; several always are so.

    Raises:
        ModelError: It cannot be loaded.
    """
    if workers == 1 and beside_server:
        on_demand = OnDemand(files, device, noted)
        yield on_demand
        on_demand.give_up()
        return
    if workers == 1:
        model, tokenizer = files.load()
        model.to(device)  # type: ignore[arg-type]
        yield InThisProcess(model, tokenizer, noted)
        return
    with Workers(workers, files, device, noted) as several:
        yield several


class Workers:
    """Processes that answer batches; see `Answering`. They are started by the first
    batches, no more of them than there are batches, and end with the context.

    Args:
        count: How many, at least 2.
        files: The model that each loads.
        device: What one process would compute on; of accelerators, each worker has its own.
        noted: Called with a sentence where a worker died and its batch is asked again, or an engine falls back.

    Raises:
        ModelError: The model cannot be loaded.
    """

    def __init__(
        self, count: int, files: ModelFiles, device: torch.device, noted: Callable[[str], None]
    ) -> None:
        self.model, self.tokenizer = files.load(with_weights=False)
        self._noted, self._said = noted, set[str]()
        self._count, self._files, self._device = count, files, device
        self._workers: list[_Worker] = []

    def __enter__(self) -> Workers:
        """Return the workers."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End them."""
        self.end()

    def end(self) -> None:
        """Kill the workers, whatever they do, and wait for their ends."""
        for worker in self._workers:
            worker.kill()
            worker.log.close()

    def answers(self, batches: Sequence[Batch[Answer]]) -> Iterator[tuple[int, Answer]]:
        """See `Answering`.

        Raises:
            LingraftError: A worker raised it, the workers died over one batch, or all of them died.
        """
        needed = min(self._count, len(batches))
        for worker in self._workers[:needed]:
            worker.come_back()
        for number in range(len(self._workers), needed):
            self._workers.append(_Worker(self._count, self._files, _device_of(number, self._device)))
        left = deque(range(len(batches)))
        deaths: Counter[int] = Counter()
        missing = len(batches)
        try:
            while missing:
                for worker in self._workers:
                    if left and worker.is_free:
                        worker.ask(left.popleft(), batches)
                there = {worker.connection: worker for worker in self._workers if worker.process is not None}
                if not there:
                    raise LingraftError(
                        f"the processes that answer died before they could.{self._workers[-1].last_lines()}"
                    )
                for ready in wait(list(there)):
                    worker = there[ready]  # type: ignore[index]
                    said = worker.hear()
                    if isinstance(said, Failed):
                        raise said.error
                    if isinstance(said, Noted) and said.message not in self._said:
                        self._said.add(said.message)
                        self._noted(said.message)
                    if isinstance(said, Answered):
                        place, worker.asked = worker.asked, None
                        assert place is not None
                        if left:  # before the answer is kept, which takes time
                            worker.ask(left.popleft(), batches)
                        missing -= 1
                        yield place, said.answer
                    if said is None:
                        place = worker.asked
                        how = worker.bury()
                        if place is not None:
                            deaths[place] += 1
                            left.appendleft(place)
                            if deaths[place] == _MOST_DEATHS:
                                raise LingraftError(_fatal_sentence(how, worker.last_lines()))
                        self._noted(
                            f"a process that answers {how}; "
                            + ("its batch is asked again." if place is not None else "it had no batch yet.")
                        )
        finally:
            for worker in self._workers:
                if worker.asked is not None:  # its answer would be taken for that of another batch
                    worker.interrupt()


class _Worker(Child):
    """A process that answers; it is started again where it died.

    Attributes:
        asked: The place of the batch that it has.
        process: None: it has died, and stays away.
    """

    def __init__(self, count: int, files: ModelFiles, device: torch.device) -> None:
        super().__init__()
        self._count, self._files, self._device = count, files, device
        self._deaths = 0  # since it last answered
        self._is_interrupted = False
        self._begin()

    def _begin(self) -> None:
        self.asked: int | None = None
        self._is_loaded = self._is_out_of_memory = False
        self.start("lingraft.models.worker", worker_environment(self._count))
        self.send((self._files, self._device))

    @property
    def is_free(self) -> bool:
        """Whether it waits for a batch."""
        return self.process is not None and self._is_loaded and self.asked is None

    def ask(self, place: int, batches: Sequence[Batch[Any]]) -> None:
        """Send it a batch."""
        self.asked = place
        self.send(batches[place])

    def hear(self) -> Ready | Answered | Failed | Noted | None:
        """Return what it sent; None: it has died."""
        said: Ready | Answered | Failed | Noted | OutOfMemory | None = self.receive()
        if isinstance(said, OutOfMemory):
            self._is_out_of_memory = True
            return None
        if isinstance(said, Ready):
            self._is_loaded = True
        elif isinstance(said, Answered):
            self._deaths = 0
        return said

    def bury(self) -> str:
        """Start it again where it has not died too often, and return how it died."""
        how = super().bury()
        how = "ran out of memory" if self._is_out_of_memory else how
        self._deaths += 1
        if self._deaths < _MOST_DEATHS:
            self._begin()
        return how

    def kill(self) -> None:
        """End it; it stays away."""
        super().kill()
        self.asked = None

    def interrupt(self) -> None:
        """End it, until it is asked to come back."""
        self.kill()
        self._is_interrupted = True

    def come_back(self) -> None:
        """Start it again where it was interrupted."""
        if self._is_interrupted:
            self._is_interrupted = False
            self._begin()


def _device_of(number: int, device: torch.device) -> torch.device:
    return device if device.type == "cpu" else torch.device(device.type, number)


def _fatal_sentence(how: str, lines: str) -> str:
    return (
        f"two processes died over the same batch; the last one {how}. Where memory was short, take fewer --processes "
        f"or a smaller --batch-size; the answers so far are kept.{lines}"
    )
