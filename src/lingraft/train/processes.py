"""Train one phase in this process or on several: torchrun starts `train.worker` once a process."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import disk_usage

import torch
from pydantic import TypeAdapter

from lingraft import errors, stopping
from lingraft.config.processes import asked_processes, check_processes
from lingraft.errors import ConfigError, DiskError, LingraftError, NodeLostError, ProcessLostError, disk_error
from lingraft.models.workers import worker_count
from lingraft.records import read_json, remove, write_json_atomically
from lingraft.stopping import Stopped
from lingraft.train.checkpoints import FOLDER, make_folder
from lingraft.train.nodes import (
    FAILURE,
    LINES,
    LOG,
    OUTCOME,
    READY,
    NodeAgent,
    NodeTask,
    OtherNodes,
    free_endpoint,
    other_nodes,
)
from lingraft.train.run import PhasePlan, PhaseTask, TrainedPhase, train_task
from lingraft.train.watching import Progress

TASK = "task.json"
# What marks the workers' lines; libraries print others.
PLAN = "lingraft-plan "
PROGRESS = "lingraft-progress "
NOTE = "lingraft-note "
SAVED = "lingraft-saved "
_NO_ROOM = 1 << 14  # bytes
_SHOWN_LINES = 20
_FAILED_WITH = "a training process failed with"
# What gloo and NCCL say in the others where one of the processes died.
_LOST_PARTNER = re.compile(
    rf"^{_FAILED_WITH} \w+: .*(Connection (closed|reset) by peer|remote process exited|NCCL communicator was aborted)",
    re.DOTALL,
)
_SECONDS_BETWEEN_LOOKS = 0.1
_SECONDS_TO_END = 5.0

_PLANS, _PROGRESS, _TRAINED = TypeAdapter(PhasePlan), TypeAdapter(Progress), TypeAdapter(TrainedPhase)


@dataclass(frozen=True)
class Processes:
    """How many processes train a phase and whether they share its weights between them; how many answer.

    Attributes:
        count: 1: the phase is trained in this process.
        sharded: FSDP2 in place of DistributedDataParallel.
        answering: Processes that evaluate and generate replay, each with a whole model; None: `count`, where that is
            more than 1, else one an accelerator, one without any.
        nodes: Machines that the `count` processes are on, alike many on each; those that answer are all on this one.
    """

    count: int = 1
    sharded: bool = False
    answering: int | None = None
    nodes: int = 1

    @classmethod
    def of(cls, processes: int | None, *, sharded: bool = False, nodes: int = 1) -> Processes:
        """Return what the options `--processes`, `--sharded` and `--nodes` mean; None: the first was not given.

        Where torchrun started this command, it has said how many processes and nodes there are.
        """
        count, nodes = asked_processes(processes, nodes)
        own = None if count is None else max(1, count // nodes)
        return cls(1 if count is None else count, sharded, own, nodes)

    @property
    def workers(self) -> int:
        """How many processes answer.

        Raises:
            ConfigError: See `worker_count`.
        """
        return worker_count(self.answering or (self.count // self.nodes if self.count > 1 else None))

    def check(self) -> None:
        """Refuse what cannot run on this machine.

        Raises:
            ConfigError: More processes than accelerators, none, one that is to share with nobody, or a number that the
                nodes cannot share.
        """
        check_processes(self.count, sharded=self.sharded, nodes=self.nodes)
        devices = torch.accelerator.device_count() if torch.accelerator.is_available() else None
        if devices is not None and self.count // self.nodes > devices:
            on = "" if self.nodes == 1 else f" on {self.nodes} nodes"
            raise ConfigError(
                f"--processes {self.count}{on}: there are {devices} accelerators here, and each trains one."
            )
        worker_count(self.answering)


def train_on(
    processes: Processes,
    task: PhaseTask,
    *,
    on_plan: Callable[[PhasePlan], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> TrainedPhase:
    """Train a phase and write its checkpoint, in this process or on several of this machine or of several machines.

    A signal is handed on to several: they finish the step, save it together and end.

    Args:
        processes: How many; whatever happens, those that this function starts end with it.
        task: The phase.
        on_plan: Called once, before training.
        on_progress: Called after every optimiser step.
        on_note: Called with a sentence about resumable checkpoints.

    Raises:
        Stopped: A signal asked for it.
        NodeLostError: Another machine has died or cannot be reached.
        ConfigError: The processes are to be on several machines, and this process has joined no others, or fewer.
        LingraftError: What `train_task` raises here or in a worker, or the last lines that the workers printed where
            they died.
    """
    if processes.count == 1:
        return train_task(task, on_plan=on_plan, on_progress=on_progress, on_note=on_note)
    others = None if processes.nodes == 1 else _others_of(processes)
    folder = task.folder / FOLDER
    make_folder(folder)
    for left in (TASK, OUTCOME, FAILURE, *(one.name for one in folder.glob(f"*{LOG}")), *_old_lines(folder)):
        remove(folder / left)  # whatever they are: a pipe would be waited for
    write_json_atomically(folder / TASK, task.model_dump(mode="json"))
    node_task = NodeTask(
        folder / TASK,
        processes.count // processes.nodes,
        processes.nodes,
        processes.sharded,
        "" if others is None else free_endpoint(others.address()),
        "" if others is None else uuid.uuid4().hex,
    )
    with (
        stopping.finish_first(),
        NodeAgent(node_task, 0, reads=others is not None) as agent,
        _ended_with(others),
        _signals_handed_on(agent),
    ):
        assert agent.process.stdout is not None
        if others is not None:
            others.start(node_task)
        for line in agent.process.stdout if others is None else _reported(node_task, agent, others):
            agent.hear(line)
            if line.startswith(PLAN) and on_plan is not None:
                on_plan(_PLANS.validate_json(line.removeprefix(PLAN)))
            if line.startswith(PROGRESS) and on_progress is not None:
                on_progress(_PROGRESS.validate_json(line.removeprefix(PROGRESS)))
            if line.startswith(NOTE) and on_note is not None:
                on_note(json.loads(line.removeprefix(NOTE)))
            if line.startswith(SAVED):
                what, number = json.loads(line.removeprefix(SAVED))
                stopping.saved(what)
                stopping.request(number)  # it may have come to a worker alone
                raise Stopped(number)  # the workers have nothing more to do, and need not take their time
    if not (folder / OUTCOME).exists():
        if not (folder / FAILURE).exists():
            if disk_usage(folder).free < _NO_ROOM:  # for the file that would say so
                raise DiskError(
                    f"{folder}: the disk is full: free some space, and run the same command again."
                )
            raise ProcessLostError("the training processes ended without a result:\n" + _last_lines(folder))
        failure = read_json(folder / FAILURE)
        if _LOST_PARTNER.search(failure["message"]):  # of one that has died, and could not say so
            raise ProcessLostError(failure["message"])
        error: LingraftError = getattr(errors, failure["kind"], LingraftError)(failure["message"])
        raise error
    trained: TrainedPhase = _TRAINED.validate_python(read_json(folder / OUTCOME))
    return trained


def _others_of(processes: Processes) -> OtherNodes:
    """Return the other nodes that processes are on.

    Raises:
        ConfigError: See `train_on`.
    """
    others = other_nodes()
    if others is None or others.count != processes.nodes - 1:
        there = 1 if others is None else others.count + 1
        raise ConfigError(
            f"--nodes {processes.nodes}: this command runs on {there}; start it on each node with torchrun "
            f"(`torchrun --nnodes={processes.nodes} ... -m lingraft run ...`), or with --ray."
        )
    return others


def _old_lines(folder: Path) -> list[str]:
    return [one.name for one in folder.glob("lines-*")]


def _last_lines(folder: Path) -> str:
    """Return the last lines that torchrun and the workers printed, of each node."""
    lines: list[str] = []
    for log in sorted(folder.glob(f"*{LOG}")):
        lines += log.read_text(encoding="utf-8", errors="replace").splitlines()[-_SHOWN_LINES:]
    return "\n".join(lines)


@contextmanager
def _ended_with(others: OtherNodes | None) -> Iterator[None]:
    """Let the other nodes kill what they still run at the end, whatever happens."""
    try:
        yield
    finally:
        if others is not None:
            others.end()


def _reported(task: NodeTask, agent: NodeAgent, others: OtherNodes) -> Iterator[str]:
    """Return the lines of the first of all processes as they come, until the training is over on all nodes.

    Raises:
        NodeLostError: A node has died, or cannot be reached.
    """
    folder, torn, read = task.task.parent, b"", 0

    def new_lines() -> Iterator[str]:
        nonlocal torn, read
        if task.lines.exists():
            with task.lines.open("rb") as lines:  # opened anew: a network's disk looks again then
                lines.seek(read)
                torn += lines.read()
                read = lines.tell()
        *whole, torn = torn.split(b"\n")
        yield from (line.decode() for line in whole)  # whole ones: a character may be torn, too

    while agent.poll() is None and not (folder / OUTCOME).exists() and not (folder / FAILURE).exists():
        yield from new_lines()
        _refuse_lost(others)
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    yield from new_lines()
    if (folder / OUTCOME).exists():
        until = time.monotonic() + _SECONDS_TO_END
        while agent.poll() is None and time.monotonic() < until:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        agent.end()  # it would wait for the other nodes' agents, some of which may be gone
        return
    # Workers whose partner has died say that a connection is gone, before anybody knows of the node. One that refuses
    # the task itself says so first, and the rest of it is not waited for.
    until = time.monotonic() + others.patience
    own = (folder / FAILURE).exists() and not read_json(folder / FAILURE)["message"].startswith(_FAILED_WITH)
    while not own and time.monotonic() < until:
        _refuse_lost(others)
        time.sleep(_SECONDS_BETWEEN_LOOKS)
        yield from new_lines()
    agent.end()


def _refuse_lost(others: OtherNodes) -> None:
    problem = others.lost()
    if problem is not None:
        raise NodeLostError(problem)


@contextmanager
def _signals_handed_on(agent: NodeAgent) -> Iterator[None]:
    """Send a signal that this process gets to the workers that are there, once; leave no process behind on an error.

    Args:
        agent: Of this node. While it has no workers, nothing is to be saved. Those of other nodes need no word: they
            agree on a stop after every step.
    """

    def hand_on() -> None:
        while not done.wait(_SECONDS_BETWEEN_LOOKS):
            number = stopping.requested()
            if number is not None:
                agent.stop(number)
                return

    done = threading.Event()
    waiting = threading.Thread(target=hand_on, daemon=True)
    waiting.start()
    try:
        yield
    except BaseException:  # a second signal, or what a callback raised
        agent.end()
        raise
    finally:
        done.set()
        waiting.join()


def print_ready() -> None:
    """Send the launcher the id of a process that it may ask to stop."""
    _print(f"{READY}{os.getpid()}")


def _print(line: str) -> None:
    """Print a line by one write: between the two of `print` where PYTHONUNBUFFERED is set another worker may print."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _report(line: str) -> None:
    """Send the launcher a line: by a file, where it may be on another machine."""
    if LINES in os.environ:
        with Path(os.environ[LINES]).open("a", encoding="utf-8") as lines:
            lines.write(f"{line}\n")
    else:
        _print(line)


def print_saved(number: int) -> None:
    """Send the launcher what all processes have saved together, and the number of the signal that stopped them."""
    _report(SAVED + json.dumps([stopping.was_saved(), number]))


def print_note(sentence: str) -> None:
    """Send the launcher what happened to resumable checkpoints."""
    _report(NOTE + json.dumps(sentence))


def print_plan(plan: PhasePlan) -> None:
    """Send the launcher what trains."""
    _report(PLAN + _PLANS.dump_json(plan).decode())


def print_progress(progress: Progress) -> None:
    """Send the launcher where the phase stands."""
    _report(PROGRESS + _PROGRESS.dump_json(progress).decode())


def write_outcome(folder: Path, trained: TrainedPhase) -> None:
    """Leave the launcher what the phase did; written last."""
    write_json_atomically(folder / FOLDER / OUTCOME, _TRAINED.dump_python(trained, mode="json"))


def write_failure(folder: Path, error: Exception) -> None:
    """Leave the launcher why a worker gave up; the first one knows, the others lost their connection to it."""
    path = folder / FOLDER / FAILURE
    if path.exists():
        return
    error = disk_error(error, folder) or error  # which stops the study, not this cell alone
    is_ours = isinstance(error, LingraftError)
    message = str(error) if is_ours else f"{_FAILED_WITH} {type(error).__name__}: {error}"
    write_json_atomically(path, {"kind": type(error).__name__, "message": message})
