"""The nodes of a torchrun that started this command once a process: the first process is the command, the others wait.

They talk by the store of that torchrun. The first local process of every other node starts its part of each training.
A node is lost when its counter stands still: no clock is compared with another.

    alive/NODE, address/NODE, host/NODE     a node's counter; where it is
    alike/NODE                              its command and versions, which are to be the first node's
    start, end                              the task of a training; the attempt that is over
    problem/NODE                            ATTEMPT and why its part could not run
    stop                                    the number of a signal that a node got
    exit, left                              the command's exit code; how many have read it
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta

from torch._C._distributed_c10d import (
    PrefixStore,
    Store,
    TCPStore,
)  # `torch.distributed` does not export them

from lingraft import stopping
from lingraft.claims import node_name
from lingraft.errors import EXIT_ANSWER_IS_NO, ConfigError, LingraftError, NodeLostError
from lingraft.launched import Launched
from lingraft.records import from_json, to_json
from lingraft.train.nodes import NodeAgent, NodeTask, address_towards

_SECONDS_BETWEEN_LOOKS = 1.0
_LOOKS_UNTIL_LOST = 30
_LOOKS_UNTIL_THERE = 180  # libraries are loaded first
_LOOKS_FOR_THE_FILE = 60  # a disk of a network may hide a new file that long
_SECONDS_TO_LEAVE = 3.0
_SECONDS_OF_STORE = 60


def _store_of(started: Launched) -> Store:
    """Return the store that all processes of a launcher share.

    Raises:
        NodeLostError: It cannot be reached.
    """
    said = started.variables
    has_store = said.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    host, port = said["MASTER_ADDR"], int(said["MASTER_PORT"])
    try:
        store = TCPStore(
            host,
            port,
            started.processes,
            started.rank == 0 and not has_store,
            timedelta(seconds=_SECONDS_OF_STORE),
            wait_for_workers=False,
            multi_tenant=not has_store,
        )
    except RuntimeError as error:
        raise NodeLostError(f"the launcher's store at {host}:{port} cannot be reached ({error}).") from None
    return PrefixStore(f"lingraft-{said.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _said(store: Store, key: str) -> str | None:
    """Return what a key holds, without waiting for it."""
    return store.get(key).decode() if store.check([key]) else None


class _Counter:
    """Another process's counter, and for how many looks it has stood still."""

    def __init__(self, store: Store, node: int) -> None:
        self._store, self._key = store, f"alive/{node}"
        self._last: str | None = None
        self._still = 0

    def is_lost(self) -> bool:
        """Look once, and return whether it stands still for too long."""
        now = _said(self._store, self._key)
        self._still = 0 if now != self._last else self._still + 1
        self._last = now
        return self._still >= (_LOOKS_UNTIL_THERE if now is None else _LOOKS_UNTIL_LOST)


class OuterNodes:
    """What the first process of all uses: the other nodes (`OtherNodes`), and the end of all processes.

    Args:
        started: What the launcher said to this process.
        alike: What all nodes must have alike, by name: the command, versions of libraries.

    Raises:
        NodeLostError: The launcher's store cannot be reached.
    """

    patience = _SECONDS_BETWEEN_LOOKS * (_LOOKS_UNTIL_LOST + 10)

    def __init__(self, started: Launched, alike: Mapping[str, str]) -> None:
        self._started, self._alike = started, alike
        self._store = _store_of(started)
        self._lost: str | None = None
        self._attempt = ""
        self._done = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)
        self._beating.start()

    @property
    def count(self) -> int:
        """Nodes besides this one."""
        return self._started.nodes - 1

    def _beat(self) -> None:
        counters = {node: _Counter(self._store, node) for node in range(1, self._started.nodes)}
        number, has_stopped = 0, False
        while not self._done.wait(_SECONDS_BETWEEN_LOOKS):
            try:
                number += 1
                self._store.set("alive/0", str(number))
                for node, counter in counters.items():
                    if counter.is_lost() and self._lost is None:
                        self._lost = f"{self._name(node)} has died or cannot be reached"
                asked = _said(self._store, "stop")
            except RuntimeError:  # the agent of this node has gone, and takes this process with it
                self._lost = "the launcher of this node has gone"
                return
            if asked is not None and not has_stopped:
                has_stopped = True
                os.kill(os.getpid(), int(asked))

    def _name(self, node: int) -> str:
        host = _said(self._store, f"host/{node}")
        return f"node {node + 1} of {self._started.nodes}" + ("" if host is None else f" ({host})")

    def address(self) -> str:
        """See `OtherNodes`.

        Raises:
            NodeLostError: A node is not there.
            ConfigError: A node was started with another command, or has other versions.
        """
        while True:
            found = [_said(self._store, f"address/{node}") for node in range(1, self._started.nodes)]
            if self._lost is not None:
                raise NodeLostError(self._sentence(self._lost))
            there = [one for one in found if one is not None]
            if len(there) == len(found):
                break
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        self._check_alike()
        # A host's own name often leads to its loopback; an address of another node does not.
        for host in (self._started.variables["MASTER_ADDR"], *there):
            own = address_towards(host)
            if not _is_loopback(own):
                return own
        return own

    def _check_alike(self) -> None:
        for node in range(1, self._started.nodes):
            theirs = json.loads(_said(self._store, f"alike/{node}") or "{}")
            for name, own in self._alike.items():
                if theirs.get(name) != own:
                    raise ConfigError(
                        f"{self._name(node)}: its {name} is {theirs.get(name, 'not known')}, and on the first node "
                        f"{own}; start all nodes with the same command and the same versions."
                    )

    def start(self, task: NodeTask) -> None:
        """See `OtherNodes`."""
        self._attempt = task.attempt
        self._store.set("start", json.dumps(to_json(task)))  # of ASCII alone, as paths may be no text

    def lost(self) -> str | None:
        """See `OtherNodes`."""
        if self._lost is not None:
            return self._sentence(self._lost)
        for node in range(1, self._started.nodes):
            attempt, _, problem = (_said(self._store, f"problem/{node}") or "").partition(" ")
            if problem and attempt == self._attempt:
                return f"{self._name(node)}: {problem}."
        return None

    def _sentence(self, what: str) -> str:
        return (
            f"{what}, so the training cannot go on; what was saved last is kept: start all nodes again with the same "
            "command, which goes on from there."
        )

    def end(self) -> None:
        """See `OtherNodes`."""
        if self._lost is None or self.count > 1:
            with suppress(RuntimeError):  # the store has gone, and all that it joined
                self._store.set("end", self._attempt)

    def leave(self, exit_code: int) -> None:
        """Let all other processes end with this one's exit code, and give them a moment to read it."""
        try:
            self._store.set("exit", str(exit_code))
            until = time.monotonic() + _SECONDS_TO_LEAVE
            while time.monotonic() < until and self._store.add("left", 0) < self._started.processes - 1:
                time.sleep(0.1)
        except RuntimeError:  # nobody is there to read it
            return
        finally:
            self._done.set()


def _is_loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"


class _Node:
    """What the first local process of another node does: it starts and ends its part of each training."""

    def __init__(self, started: Launched, store: Store, alike: Mapping[str, str]) -> None:
        self._number, self._store = started.node, store
        self._agent: NodeAgent | None = None
        self._attempt, self._count, self._looks = "", 0, 0
        store.set(f"host/{self._number}", node_name())
        store.set(f"alike/{self._number}", json.dumps(dict(alike)))
        store.set(f"address/{self._number}", address_towards(started.variables["MASTER_ADDR"]))

    def look(self) -> None:
        """Show that this node is there, and do what is asked."""
        self._count += 1
        self._store.set(f"alive/{self._number}", str(self._count))
        wanted = _said(self._store, "start")
        over = _said(self._store, "end")
        if self._attempt and over == self._attempt:
            self.end()
        if wanted is None:
            return
        task = from_json(NodeTask, json.loads(wanted))
        if task.attempt not in (self._attempt, over):
            self._begin(task)
        elif self._agent is not None and (problem := self._agent.problem()) is not None:
            self._complain(problem)

    def _begin(self, task: NodeTask) -> None:
        if not task.task.exists() and self._looks < _LOOKS_FOR_THE_FILE:
            self._looks += 1
            return
        self.end()
        self._attempt, self._looks = task.attempt, 0
        if not task.task.exists():
            self._complain(
                f"it does not see {task.task}; put the run folder on a disk that all nodes see at the same path "
                "(`--runs FOLDER`)"
            )
            return
        try:
            self._agent = NodeAgent(task, self._number)
        except OSError as error:
            self._complain(f"its torchrun cannot be started ({error})")

    def _complain(self, problem: str) -> None:
        self._store.set(f"problem/{self._number}", f"{self._attempt} {problem}")

    def end(self) -> None:
        """Kill what runs here."""
        agent, self._agent = self._agent, None
        if agent is not None:
            agent.end()
            with agent:
                pass


def wait_for_first(started: Launched, alike: Mapping[str, str]) -> int:
    """Wait until the command of the first process is over, and return its exit code; 1 where it died.

    The first local process of another node starts its part of each training meanwhile. A signal is handed to the
    command, which saves and ends all. Nothing is printed.

    Args:
        started: What the launcher said to this process.
        alike: See `OuterNodes`.
    """
    asked: list[int] = []
    for number in stopping.SIGNALS:
        signal.signal(number, lambda number, _: asked.append(number))
    parent = os.getppid()
    looks = [0]  # since the store last answered
    node: _Node | None = None

    def end_if_stuck() -> None:  # in the store, whose machine is gone without a word
        while looks[0] < 2 * _LOOKS_UNTIL_LOST:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            looks[0] += 1
        if node is not None:
            node.end()
        os._exit(EXIT_ANSWER_IS_NO)

    try:
        store = _store_of(started)
        threading.Thread(target=end_if_stuck, daemon=True).start()
        first, is_sent = _Counter(store, 0), False
        is_keeper = started.local_rank == 0 and started.node > 0
        node = _Node(started, store, alike) if is_keeper else None
        while os.getppid() == parent and not first.is_lost():
            code = _said(store, "exit")
            if code is not None:
                store.add("left", 1)
                return int(code)
            if asked and not is_sent:
                is_sent = True
                store.set("stop", str(asked[0]))
            if node is not None:
                node.look()
            looks[0] = 0
            time.sleep(_SECONDS_BETWEEN_LOOKS)
    except (RuntimeError, LingraftError):  # the store has gone, and the first process with it
        return EXIT_ANSWER_IS_NO
    finally:
        if node is not None:
            node.end()
    return EXIT_ANSWER_IS_NO
