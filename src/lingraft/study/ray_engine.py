"""Stages as tasks of Ray, on the cluster that `ray_cluster` connects to.

Ray places the tasks, says which of them lost their process or node, and waits for nodes that an autoscaler starts. All
that tasks share lies in the run folder, so nothing but a small outcome comes back, and a lost one loses nothing.
`ray` is imported inside of functions: beside this module only `ray_cluster` knows it.
"""

from __future__ import annotations

import io
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from lingraft import stopping
from lingraft.claims import node_name
from lingraft.config.ray_address import RAY_LOCAL, check_ray
from lingraft.errors import ConfigError, LingraftError
from lingraft.models.compute import compute_for
from lingraft.stage import StageSpec, versions
from lingraft.study.engines import LostError, Settled, say_saved
from lingraft.study.ray_cluster import connected, session_logs, starts_nodes
from lingraft.study.schedule import Node, Share
from lingraft.study.stage_worker import Assignment, Outcome, make_stage, may_pass
from lingraft.study.stages.train import Train
from lingraft.train.nodes import NodeAgent, NodeTask, joined

_SECONDS_FOR_NODES = 300.0  # that all nodes have to be looked at; each loads torch
_SECONDS_BETWEEN_LOOKS = 0.2
_MOST_CHARACTERS = 300  # of what Ray says of an error
_SECONDS_UNTIL_NOTED = 30.0  # that a stage waits for a node
# What a task's libraries read of the driver's environment: caches, threads, what may be downloaded.
_ENVIRONMENT = re.compile(
    "(HF|HUGGINGFACE|TRANSFORMERS|TOKENIZERS|LINGRAFT|OMP|MKL|GOMP|PYTORCH|NCCL|CUBLAS|XDG|OPENAI)_.*"
)


@dataclass(frozen=True)
class _Place:
    """What a task finds its way by on whatever node it is.

    Attributes:
        driver: The driver's host.
        run: The run folder.
        sign: A file in it that this driver wrote: who does not see it sees another folder.
        folder: The driver's working directory, which relative paths are relative to.
        python_path: The driver's, as far as Ray added to it.
        environment: Variables that are to be as the driver's; None: to be unset.
        threads: With which the driver computes.
    """

    driver: str
    run: Path
    sign: Path
    folder: Path
    python_path: tuple[str, ...]
    environment: Mapping[str, str | None]
    threads: int

    def enter(self) -> None:
        """Make this process, a worker of Ray, work as the driver would.

        Raises:
            ConfigError: This node does not see what it has to.
        """
        if not self.sign.exists():
            raise ConfigError(
                f"node {node_name()}: does not see the run folder {self.run} of {self.driver}; name one that all "
                "nodes share: --runs FOLDER, on a shared file system."
            )
        try:
            os.chdir(self.folder)
        except OSError:
            raise ConfigError(
                f"node {node_name()}: has no folder {self.folder}, where the command was started; start it in one "
                "that all nodes share."
            ) from None
        # Ray puts the driver's working directory first: a file there must not stand in for a library.
        if str(self.folder) not in self.python_path:
            sys.path[:] = [one for one in sys.path if one != str(self.folder)]
        for name, value in self.environment.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        import torch

        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)


class _Bundles:
    """The other nodes of a training (`train.nodes.OtherNodes`): bundles of the placement group that its task is in.

    Args:
        place: What the nodes find their way by.
        group: The placement group; the task is in its first bundle.
        share: What each bundle has.
        count: How many other nodes there are.
    """

    patience = 30.0  # in which Ray notices that a node is gone

    def __init__(self, place: _Place, group: Any, share: Share, count: int) -> None:
        self.count = count
        self._place, self._group, self._share = place, group, share
        self._agents: list[Any] = []

    def address(self) -> str:
        """See OtherNodes."""
        import ray

        found: str = ray.util.get_node_ip_address()
        return found

    def start(self, task: NodeTask) -> None:
        """See OtherNodes."""
        import ray

        agent = ray.remote(_be_node)
        self._agents = [
            agent.options(max_retries=0, **_resources(self._share), **_bundle(self._group, number)).remote(
                self._place, task, number
            )
            for number in range(1, self.count + 1)
        ]

    def lost(self) -> str | None:
        """See OtherNodes."""
        import ray

        over, _ = ray.wait(self._agents, num_returns=len(self._agents), timeout=0)
        for one in over:
            try:
                problem: str | None = ray.get(one)
            except ray.exceptions.RayError as error:
                return f"a node of the training is gone ({_reason(error)})"
            if problem is not None:
                return problem
        return None

    def end(self) -> None:
        """See OtherNodes."""
        import ray

        for one in self._agents:
            ray.cancel(one)


def _be_node(place: _Place, task: NodeTask, number: int) -> str | None:
    """Start a node's part of a training, and return a sentence about what went wrong with it, in a task of Ray.

    Who cancels the task wants its end; any other signal is handed on, so that all nodes save together.
    """
    place.enter()
    with (
        _woken_by_cancelling(),
        stopping.stoppable(),
        stopping.finish_first(),
        NodeAgent(task, number) as agent,
    ):
        while agent.poll() is None and stopping.requested() is None:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        asked = stopping.requested()
        if asked == signal.SIGINT:
            agent.end()
        elif asked is not None:
            agent.stop(asked)
        agent.process.wait()
        code = agent.poll()
        host = node_name()
    return None if code == 0 else f"node {host}: its part of the training ended with exit code {code}"


def _make(place: _Place, assignment: Assignment, others: _Bundles | None) -> Outcome:
    """Make a stage, in a task of Ray.

    The driver cancels a task to stop it, which is a SIGINT that nobody sent. Whoever sends SIGTERM (a spot machine that
    goes, SLURM) wants the process to end: what is under way is saved, and the stage is made again where it can be.
    """
    place.enter()
    with _woken_by_cancelling(), nullcontext() if others is None else joined(others):
        outcome = make_stage(assignment)
    if outcome.stopped not in (None, signal.SIGINT):
        os._exit(stopping.EXIT_OF_SIGNAL + outcome.stopped)
    return outcome


@contextmanager
def _woken_by_cancelling() -> Iterator[None]:
    """Let a cancelled task notice it at once: Ray only marks SIGINT as received, which no waiting call looks at."""
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    main_thread = threading.main_thread().ident
    assert main_thread is not None
    before = signal.signal(signal.SIGURG, lambda *_: None)
    others = signal.set_wakeup_fd(writes, warn_on_full_buffer=False)

    def wake() -> None:
        while received := os.read(reads, 1):
            if received[0] == signal.SIGINT:
                signal.pthread_kill(
                    main_thread, signal.SIGURG
                )  # ends the call, and the handler of SIGINT runs

    waking = threading.Thread(target=wake, daemon=True)
    waking.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(others)
        os.close(writes)
        waking.join()
        os.close(reads)
        signal.signal(signal.SIGURG, before)


@dataclass(frozen=True)
class _NodeReport:
    """What a node is like, as far as stages depend on it.

    Attributes:
        host: Its name.
        versions: Of Python and libraries.
        unseen: Of the paths that were asked for, those that it does not see.
        precision: What `auto` is there; empty: it was not asked for.
    """

    host: str
    versions: Mapping[str, str]
    unseen: tuple[Path, ...]
    precision: str


def _look(place: _Place, paths: tuple[Path, ...], asks_precision: bool) -> _NodeReport:
    """Describe the node, in a task that has no card of its own."""
    precision = ""
    if (own := node_name()) and place.sign.exists() and place.folder.is_dir():
        place.enter()
        if asks_precision:  # in a process that sees the cards
            seen = {name: value for name, value in os.environ.items() if not name.endswith("VISIBLE_DEVICES")}
            code = "from lingraft.models.compute import compute_for; print(compute_for('auto').precision)"
            asked = subprocess.run(
                [sys.executable, "-P", "-c", code], env=seen, capture_output=True, text=True, check=False
            )
            precision = asked.stdout.strip().rpartition("\n")[2]
    unseen = tuple(one for one in (place.sign, place.folder, *paths) if not one.exists())
    return _NodeReport(own, versions(), unseen, precision)


@dataclass
class _AtWork:
    """A task that was submitted."""

    stage: StageSpec
    share: Share
    group: Any = None  # the placement group of a training on several nodes


class RayEngine:
    """Makes stages as tasks of Ray, which queues and places them; see `engines.Engine`.

    Args:
        run: The run folder.
        address: `local`, `auto` or HOST:PORT.
        noted: Receives a sentence about what the stages wait for.

    Attributes:
        room: None: any number of stages is taken.
        memory_bytes: None: each waits on its node for the memory of its share.
    """

    room: int | None = None
    memory_bytes: int | None = None

    def __init__(self, run: Path, address: str, *, noted: Callable[[str], None] = lambda _: None) -> None:
        check_ray(address)
        self.run = run.absolute()
        self.address = address
        self.noted = noted
        self._around = ExitStack()
        self._tasks: dict[Any, _AtWork] = {}
        self._largest: Node | None = None
        self._looked = time.monotonic()  # whether there are nodes for all tasks
        self._waiting: set[str] = set()  # names of the stages whose waiting was noted
        self._sign = self.run / "cache" / f"nodes-{uuid.uuid4().hex}"

    def __enter__(self) -> RayEngine:
        """Connect to the cluster, or start one.

        Raises:
            ConfigError: There is none, or it cannot be used from here.
        """
        import ray
        import torch

        with ExitStack() as around:
            around.enter_context(connected(self.address))
            self._sign.parent.mkdir(parents=True, exist_ok=True)
            self._sign.write_text(node_name(), encoding="utf-8")
            around.callback(self._sign.unlink, missing_ok=True)
            environment: dict[str, str | None] = {
                name: value for name, value in os.environ.items() if _ENVIRONMENT.fullmatch(name)
            }
            environment.setdefault("OMP_NUM_THREADS", None)  # Ray sets it to the number of a task's cores
            place = _Place(
                driver=node_name(),
                run=self.run,
                sign=self._sign,
                folder=Path.cwd(),
                python_path=tuple(sys.path),
                environment=environment,
                threads=torch.get_num_threads(),
            )
            self._where, self._place = place, ray.put(place)
            self._task = ray.remote(_make)
            self._around = around.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        """Stop what is at work, which saves, and end a cluster that was started here."""
        with self._around:
            if self._tasks:
                self._save_all()

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The cluster's nodes that are alive."""
        import ray
        import torch

        found = [one["Resources"] for one in ray.nodes() if one["Alive"]]
        return tuple(
            Node(
                cards=int(one.get("GPU", 0)),
                cpus=int(one.get("CPU", 0)),
                memory_bytes=int(one["memory"]) if "memory" in one else None,
                threads=torch.get_num_threads(),
            )
            for one in found
        )

    @property
    def node(self) -> Node:
        """The node with the most cards, of these the one with the most cores and memory, of all that were ever there.

        While no node has a card, stages wait for one: on processors they would take weeks and be others.
        """
        there = self.nodes if self._largest is None else (*self.nodes, self._largest)
        self._largest = max(there, key=lambda one: (one.cards, one.cpus, one.memory_bytes or 0))
        return self._largest

    @property
    def cards(self) -> int:
        """How many accelerators all nodes have together."""
        return sum(one.cards for one in self.nodes)

    def check_shares(self, shares: Sequence[tuple[StageSpec, Share]]) -> None:
        """Refuse stages that no node can take, which would wait for ever.

        On a cluster that starts nodes by itself, say what they wait for.

        Raises:
            ConfigError: A stage needs more than any node has, and there will be no other.
        """
        for stage, share in shares:
            text = self._missing(stage, share)
            if text is not None and starts_nodes():
                self.noted(f"{text}: it waits until the cluster starts such a node.")
                return
            if text is not None:
                raise ConfigError(
                    f"--ray {self.address}: {text}; add a node to the cluster, or give a smaller --processes or a "
                    "smaller model."
                )

    def _missing(self, stage: StageSpec, share: Share) -> str | None:
        """Return what a stage needs that no node has; None: there are nodes for it."""
        nodes, count, each = self.nodes, _nodes_of(stage), _per_node(stage, share)
        if sum(_fits(each, node) for node in nodes) >= count:
            return None
        largest = max(nodes, key=lambda one: (one.cards, one.cpus))
        return (
            f"{stage.name} needs {_share_text(each)}{f' on each of {count} nodes' * (count > 1)}, and "
            f"{'no node has' if count == 1 else 'fewer nodes have'} that (the largest of {len(nodes)} has "
            f"{_node_text(largest)})"
        )

    def _note_waiting(self) -> None:
        """Note, once for each, the tasks that wait for a node: those that had one have lost it."""
        self._looked = time.monotonic()
        for one in self._tasks.values():
            text = None if one.stage.name in self._waiting else self._missing(one.stage, one.share)
            if text is not None:
                self._waiting.add(one.stage.name)
                self.noted(
                    f"{text}: it waits for such a node; start one, or end this command, and go on later."
                )

    def check_nodes(self, stages: Sequence[StageSpec], *, asks_precision: bool) -> None:
        """Refuse a cluster whose nodes would make other stages, or cannot read what these read.

        Args:
            stages: Those that are to be made.
            asks_precision: `precision: auto` was asked for, which every node has to resolve alike.

        Raises:
            ConfigError: A node does not see a folder or file, has other versions, or computes in another precision.
        """
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        alive = [one for one in ray.nodes() if one["Alive"] and one["Resources"].get("CPU")]
        if self.address == RAY_LOCAL or len(alive) == 0:
            return
        paths = tuple(one for one in _paths_in(stages) if one.exists())
        look = ray.remote(_look)
        asked = {
            look.options(
                num_cpus=0,
                max_retries=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(one["NodeID"], soft=False),
            ).remote(self._place, paths, asks_precision): one
            for one in alive
        }
        own = compute_for("auto").precision if asks_precision else ""
        waiting = list(asked)
        began = time.monotonic()
        while waiting:
            ready, waiting = ray.wait(waiting, num_returns=1, timeout=_SECONDS_BETWEEN_LOOKS)
            for one in ready:
                host = asked[one]["NodeManagerHostname"]
                try:
                    report = ray.get(one)
                except ray.exceptions.RayError as error:
                    raise ConfigError(
                        f"node {host}: no task of lingraft can run there ({_reason(error)}); install the same versions "
                        "of lingraft and its libraries on all nodes."
                    ) from None
                self._check_report(report, own)
            if waiting and time.monotonic() - began > _SECONDS_FOR_NODES:
                hosts = ", ".join(asked[one]["NodeManagerHostname"] for one in waiting)
                raise ConfigError(
                    f"--ray {self.address}: no answer from {hosts} in {_SECONDS_FOR_NODES:.0f} seconds; look at "
                    "`ray status`, or take the node out of the cluster."
                )

    def _check_report(self, report: _NodeReport, precision: str) -> None:
        for name, own in versions().items():
            if (theirs := report.versions[name]) != own:
                raise ConfigError(
                    f"node {report.host}: has {name} {theirs}, and this machine {own}, so that stages would be others "
                    "there; install the same versions on all nodes."
                )
        for path in report.unseen:
            if path == self._sign:
                raise ConfigError(
                    f"node {report.host}: does not see the run folder {self.run}; name one that all nodes share: "
                    "--runs FOLDER, on a shared file system."
                )
            raise ConfigError(
                f"node {report.host}: does not see {path}; put it where all nodes see it under the same path."
            )
        if report.precision != precision:
            raise ConfigError(
                f"precision: auto is {precision} on this machine and {report.precision} on node {report.host}, and a "
                "study has one; name it: training.precision=bf16 evaluate.precision=bf16 (or float32)."
            )

    def submit(self, stage: StageSpec, share: Share, *, with_artefacts: bool) -> None:
        """Take a stage; it begins when a node, or as many as it trains on, have its share free."""
        import ray

        assignment = Assignment.of(self.run, stage, share, with_artefacts=with_artefacts)
        nodes, each = _nodes_of(stage), _per_node(stage, share)
        group, others, options = None, None, _resources(each)
        if nodes > 1:
            group = ray.util.placement_group(
                [{name: amount for name, amount in _bundle_of(each).items() if amount}] * nodes,
                strategy="STRICT_SPREAD",
            )
            options |= _bundle(group, 0)
            others = _Bundles(self._where, group, each, nodes - 1)
        # Whether it is made again is for the executor to say, which counts, notes and records each attempt.
        task = self._task.options(name=stage.name, max_retries=0, **options)
        self._tasks[task.remote(self._place, assignment, others)] = _AtWork(stage, share, group)

    def wait(self, seconds: float) -> list[Settled]:
        """Return what is settled, as soon as anything is, or nothing after `seconds`.

        Raises:
            Stopped: A signal asked for it; what was at work is saved.
        """
        import ray

        until = time.monotonic() + seconds
        with stopping.finish_first():
            while True:
                if stopping.requested() is not None:
                    self._save_all()
                    return []  # `finish_first` raises
                left = min(max(until - time.monotonic(), 0.0), _SECONDS_BETWEEN_LOOKS)
                if self._tasks:
                    ready, _ = ray.wait(list(self._tasks), num_returns=1, timeout=left)
                    if ready:
                        ready, _ = ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=0)
                        return [self._settled(one, self._taken(one).stage) for one in ready]
                else:
                    time.sleep(left)
                if time.monotonic() - self._looked > _SECONDS_UNTIL_NOTED:
                    self._note_waiting()
                if time.monotonic() >= until:
                    return []

    def _taken(self, task: Any) -> _AtWork:
        """Take a task that is over off the list, and give back the nodes that were its own."""
        import ray

        found = self._tasks.pop(task)
        if found.group is not None:
            ray.util.remove_placement_group(found.group)
        return found

    def _settled(self, task: Any, stage: StageSpec) -> Settled:
        """Return how a task ended, after all of its attempts."""
        import ray

        try:
            outcome: Outcome = ray.get(task)
        except ray.exceptions.RayTaskError as error:
            cause: Any = error.cause
            known = cause if isinstance(cause, LingraftError) else LingraftError(_reason(error))
            return Settled(stage, known, may_pass=may_pass(cause))
        except ray.exceptions.OutOfMemoryError:
            why = (
                "its node's memory was nearly full, so Ray ended the process that made it; add memory, or let a node "
                f"make fewer stages at a time (`ray start --num-cpus`); see {session_logs()}"
            )
            return Settled(stage, LostError(why), may_pass=True)
        except ray.exceptions.RayError as error:  # its process or node died, or somebody cancelled it
            why = f"the process or the node that made it is gone ({_reason(error)}); see {session_logs()}"
            return Settled(stage, LostError(why), may_pass=True)
        if outcome.stopped is not None:
            return Settled(stage, LostError("it was cancelled"), outcome.where, may_pass=True)
        failure = outcome.failure
        if failure is not None:
            return Settled(stage, failure.error, outcome.where, failure.may_pass)
        return Settled(stage, None, outcome.where)

    def _save_all(self) -> None:
        """Ask all tasks of this engine, and no others, to save and end, and wait until they have."""
        import ray

        for task in self._tasks:
            ray.cancel(task, recursive=False)  # the other nodes of a training save with it
        said = []
        for task, one in list(self._tasks.items()):
            with suppress(ray.exceptions.RayError):
                said.append((one.stage, ray.get(task).saved))
            self._taken(task)
        say_saved(said)


def _nodes_of(stage: StageSpec) -> int:
    """Return over how many nodes a stage is spread."""
    return stage.processes.nodes if isinstance(stage, Train) else 1


def _per_node(stage: StageSpec, share: Share) -> Share:
    """Return what each node of a stage gives it."""
    nodes = _nodes_of(stage)
    memory = None if share.memory_bytes is None else -(-share.memory_bytes // nodes)
    return Share(-(-share.cards // nodes), -(-share.cpus // nodes), memory)


def _bundle_of(share: Share) -> dict[str, int]:
    """Return a share by Ray's names of what nodes have."""
    return {"CPU": share.cpus, "GPU": share.cards, "memory": share.memory_bytes or 0}


def _resources(share: Share) -> dict[str, Any]:
    """Return the options by which a task asks for a share."""
    memory = {} if share.memory_bytes is None else {"memory": share.memory_bytes}
    return {"num_cpus": share.cpus, "num_gpus": share.cards, **memory}


def _bundle(group: Any, number: int) -> dict[str, Any]:
    """Return the options by which a task runs in a bundle of a placement group."""
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    return {
        "scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=number)
    }


def _fits(share: Share, node: Node) -> bool:
    return (
        share.cards <= node.cards
        and share.cpus <= node.cpus
        and (
            share.memory_bytes is None or node.memory_bytes is None or share.memory_bytes <= node.memory_bytes
        )
    )


def _share_text(share: Share) -> str:
    cores = f"{share.cpus} processor core{'s' * (share.cpus > 1)}"
    parts = [f"{share.cards} card{'s' * (share.cards > 1)}"] * bool(share.cards) + [cores]
    return ", ".join(parts) + (
        "" if share.memory_bytes is None else f", {share.memory_bytes / 1e9:.1f} GB of memory"
    )


def _node_text(node: Node) -> str:
    memory = "" if node.memory_bytes is None else f", {node.memory_bytes / 1e9:.1f} GB of memory"
    return f"{node.cards} cards, {node.cpus} processor cores{memory}"


def _reason(error: BaseException) -> str:
    """Return the last line of what Ray says of an error, after the lines of a stack: of a long one its sentences."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[-1] if lines else type(error).__name__
    short = said[:_MOST_CHARACTERS]
    return said if short == said else short.rpartition(". ")[0] or short


def _paths_in(stages: Sequence[StageSpec]) -> list[Path]:
    """Return the absolute form of every path that the stages name: of models, tables, tasks."""
    found: dict[Path, None] = {}

    class Finder(pickle.Pickler):
        def persistent_id(self, value: Any) -> None:
            if isinstance(value, Path):
                found[value.absolute()] = None

    for stage in stages:
        Finder(io.BytesIO()).dump(stage)
    return list(found)
