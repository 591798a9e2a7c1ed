"""The other machines of a training: what each of them starts, and how the first one reaches them.

Every node runs torchrun (an *agent*), which starts its share of `train.worker`; the agents meet at the first node's
address. Who reaches the other nodes (an outer torchrun, Ray) is an `OtherNodes`, which `joined` makes known to
`train_on`. All nodes see the run folder at the same path.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol

import psutil

from lingraft import launched, stopping
from lingraft.models.workers import worker_environment

OUTCOME = "outcome.json"
FAILURE = "failure.json"
LOG = "workers.log"
SHARDED = "--sharded"
READY = "lingraft-ready "
TORCHRUN = "LINGRAFT_TORCHRUN"  # the variable in which workers find its id
LINES = "LINGRAFT_LINES"  # and the file in which the first one reports, where it may be another machine's
# A scheduler signals every process. torchrun would kill the workers 30 seconds later, while they save: it hears no
# signal. Its workers inherit that, until they listen themselves.
_TORCHRUN = (
    f"import os, signal; os.environ[{TORCHRUN!r}] = str(os.getpid()); "
    f"signal.pthread_sigmask(signal.SIG_BLOCK, {[int(one) for one in stopping.SIGNALS]}); "
    "from torch.distributed.run import main; main()"
)
_SECONDS_FOR_WORD = 10.0  # a disk of a network shows a file late
_SECONDS_TO_MEET = 300  # all nodes have asked for the same at once, but may load torch from a slow disk


@dataclass(frozen=True, slots=True)
class NodeTask:
    """What all nodes of a training start, each with its own Python. It is pickled, and written as JSON.

    Attributes:
        task: The file of the phase, absolute: all nodes see it.
        processes: Of each node.
        nodes: How many, the first one included; 1: nobody else is met.
        sharded: Whether they divide the model.
        endpoint: HOST:PORT of the first node, where the agents meet.
        attempt: Names this attempt, so that agents of an earlier one are not met.
    """

    task: Path
    processes: int
    nodes: int = 1
    sharded: bool = False
    endpoint: str = ""
    attempt: str = ""

    def command(self, *, is_first: bool) -> list[str]:
        """Return what this process starts as a node of the training; what it starts ends with this process."""
        meeting = ["--standalone"]
        if self.nodes > 1:
            conf = f"is_host={int(is_first)},join_timeout={_SECONDS_TO_MEET}"
            meeting = [
                f"--nnodes={self.nodes}",
                "--rdzv-backend=c10d",
                f"--rdzv-endpoint={self.endpoint}",
                f"--rdzv-id={self.attempt}",
                f"--rdzv-conf={conf}",
                f"--local-addr={address_towards(self.host)}",
            ]
        return [
            # Safe paths: a file of the user's folder must not stand in for a library, nor be run.
            *(sys.executable, "-P", "-c", _TORCHRUN, *meeting, f"--nproc-per-node={self.processes}"),
            *("-m", "lingraft.train.worker", str(self.task), str(os.getpid()), *([SHARDED] * self.sharded)),
        ]

    @property
    def host(self) -> str:
        """The first node's address."""
        return self.endpoint.rpartition(":")[0].strip("[]")

    @property
    def lines(self) -> Path:
        """Where the first of all processes reports, in a folder that all nodes see."""
        return self.task.with_name(f"lines-{self.attempt}")

    def environment(self) -> dict[str, str]:
        """Return the environment of a node's processes; nothing of a launcher that started this process is in it."""
        found = launched.without_launcher(worker_environment(self.processes))
        found["TORCH_CPP_LOG_LEVEL"] = "ERROR"
        if self.nodes > 1:
            found[LINES] = str(self.lines)
            interface = interface_towards(self.host)
            if (
                interface is not None
            ):  # gloo takes the host's name, which many machines give to their loopback
                found.setdefault("GLOO_SOCKET_IFNAME", interface)
        return found


class OtherNodes(Protocol):
    """The machines of a training besides this one, which is the first."""

    patience: float
    """Seconds after which `lost` knows of a node that has just died."""

    @property
    def count(self) -> int:
        """How many they are."""

    def address(self) -> str:
        """Return an address of this machine that all of them reach."""

    def start(self, task: NodeTask) -> None:
        """Let each start a `NodeAgent` of this task with a number of its own, from 1; return at once."""

    def lost(self) -> str | None:
        """Return a sentence about a node that has died, cannot be reached or could not start; None: all are there."""

    def end(self) -> None:
        """Let those that answer kill what they started; without anything started, nothing."""


_others: OtherNodes | None = None


@contextmanager
def joined(others: OtherNodes) -> Iterator[None]:
    """Let trainings of this process that ask for several nodes find them here."""
    global _others
    before, _others = _others, others
    try:
        yield
    finally:
        _others = before


def other_nodes() -> OtherNodes | None:
    """Return the nodes that this process has joined; None: it is alone."""
    return _others


class NodeAgent:
    """A node's torchrun, seen by the process that starts it; it leads a process group, and so does each worker.

    Args:
        task: What it starts.
        number: Of the node, from 0: the first one, which hosts the meeting.
        reads: Whether the workers' ids are gathered here from what they print; else the caller reads `process.stdout`
            and fills `workers`.

    Attributes:
        process: torchrun.
        workers: Ids of those that may be asked to stop.
    """

    def __init__(self, task: NodeTask, number: int, *, reads: bool = True) -> None:
        name = LOG if number == 0 else f"{number}-{LOG}"
        self._log: BinaryIO = task.task.with_name(name).open("wb")
        self._task, self._since = task, 0.0
        self.workers: list[int] = []
        self.process = subprocess.Popen(
            task.command(is_first=number == 0),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=task.environment(),
            start_new_session=True,  # a terminal's Ctrl-C reaches this process alone, which hands it on
        )
        self._reader = threading.Thread(target=self._read, daemon=True) if reads else None
        if self._reader is not None:
            self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.hear(line)

    def hear(self, line: str) -> None:
        """Note the id of a worker that reports itself."""
        if line.startswith(READY):
            self.workers.append(int(line.removeprefix(READY)))

    def poll(self) -> int | None:
        """Return its exit code; None: it runs."""
        return self.process.poll()

    def problem(self) -> str | None:
        """Return a sentence where torchrun has failed and no worker has left word of why, some seconds later."""
        code = self.process.poll()
        if not code:
            return None
        self._since = self._since or time.monotonic()
        has_word = any(self._task.task.with_name(name).exists() for name in (OUTCOME, FAILURE))
        if has_word or time.monotonic() - self._since < _SECONDS_FOR_WORD:
            return None
        return f"torchrun ended with exit code {code}; {self._log.name} has its last lines"

    def stop(self, number: int) -> None:
        """Hand a signal on: the workers of all nodes save together and end; where there are none yet, kill it."""
        if not self.workers:
            self.end()
        for worker in self.workers:
            with suppress(ProcessLookupError):
                os.kill(worker, number)

    def end(self) -> None:
        """Kill it and its workers."""
        with suppress(ProcessLookupError):
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)  # workers that have not reported yet end with it
        for worker in self.workers:
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)

    def __enter__(self) -> NodeAgent:
        """Return it."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait for its end; after an error, kill it first."""
        if error is not None:
            self.end()
        self.process.wait()
        if self._reader is not None:
            self._reader.join(_SECONDS_FOR_WORD)
        elif self.process.stdout is not None:
            self.process.stdout.close()
        self._log.close()


def address_towards(host: str) -> str:
    """Return the address of this machine that its packets to another one carry; nothing is sent."""
    family, kind, protocol, _, place = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(place)
        address: str = probe.getsockname()[0]
    return address


def interface_towards(host: str) -> str | None:
    """Return the network interface that packets to another machine leave by; None: no interface has their address."""
    own = address_towards(host)
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address.partition("%")[0] == own for one in addresses):
            return str(name)
    return None


def free_endpoint(address: str) -> str:
    """Return an address with a port of it that is free now, as HOST:PORT."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((address, 0))
        port = probe.getsockname()[1]
    return f"[{address}]:{port}" if family == socket.AF_INET6 else f"{address}:{port}"
