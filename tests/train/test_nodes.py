"""Training on several nodes: agents that meet over a network, and a command that torchrun starts on each of them."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from lingraft import launched
from lingraft.config.processes import check_processes
from lingraft.config.schema import StrategyChoice, Training
from lingraft.data.encoded import EncodedExample, write_table
from lingraft.errors import ConfigError, NodeLostError
from lingraft.models.loading import load_model
from lingraft.train import nodes, outer_nodes
from lingraft.train.nodes import NodeAgent, NodeTask, joined
from lingraft.train.processes import PROGRESS, Processes, train_on
from lingraft.train.run import PhaseTask
from lingraft.train.watching import Progress

TRAINING = Training(learning_rate=1e-3, epochs=2, tokens_per_batch=96, accumulation=2, precision="float32")
TOLERANCE = 1e-5
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")


class SecondNode:
    """Another agent of this machine."""

    patience = 5.0
    count = 1

    def __init__(self) -> None:
        self.agent: NodeAgent | None = None

    def address(self) -> str:
        return "127.0.0.1"

    def start(self, task: NodeTask) -> None:
        self.agent = NodeAgent(task, 1)

    def lost(self) -> str | None:
        assert self.agent is not None
        code = self.agent.poll()
        return "node 2 of 2 has died." if code is not None and code < 0 else None

    def end(self) -> None:
        if self.agent is not None:
            self.agent.end()
            with self.agent:
                pass


@pytest.fixture
def task(tiny_model: Path, examples: Callable[..., list[EncodedExample]], tmp_path: Path) -> PhaseTask:
    write_table(examples(count=22), tmp_path / "encoded")
    return PhaseTask(
        parent=tiny_model,
        base=None,
        choice=StrategyChoice.model_validate("plain"),
        states={},
        training=TRAINING,
        encoded=tmp_path / "encoded",
        folder=tmp_path / "stage",
        checkpoint=tmp_path / "stage" / "checkpoint",
        seed=0,
        trust_remote_code=False,
    )


def assert_weights_alike(one: Path, other: Path) -> None:
    found = load_model(other).state_dict()
    for name, weight in load_model(one).state_dict().items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=TOLERANCE)


def test_two_agents_train_as_one_process_and_the_death_of_one_ends_the_attempt(task: PhaseTask) -> None:
    alone = task.model_copy(
        update={"folder": task.folder.with_name("one"), "checkpoint": task.folder.with_name("one") / "model"}
    )
    expected = train_on(Processes(), alone).outcome
    second = SecondNode()

    def kill_second(progress: Progress) -> None:
        if progress.step == 2:
            assert second.agent is not None
            second.agent.end()

    with joined(second):
        with pytest.raises(NodeLostError, match="node 2 of 2 has died"):
            train_on(Processes(2, nodes=2), task, on_progress=kill_second)
        steps: list[Progress] = []
        found = train_on(Processes(2, nodes=2), task, on_progress=steps.append).outcome
    assert second.agent is not None
    assert second.agent.poll() == 0 or second.agent.poll() == -signal.SIGKILL
    assert [step for step, _ in found.losses] == [step.step for step in steps]
    assert [loss for _, loss in found.losses] == pytest.approx(
        [loss for _, loss in expected.losses], abs=1e-5
    )
    assert_weights_alike(alone.checkpoint, task.checkpoint)


def test_nodes_that_were_not_joined_are_refused(task: PhaseTask) -> None:
    with pytest.raises(ConfigError, match="--nodes 2: this command runs on 1"):
        train_on(Processes(2, nodes=2), task)


def test_processes_that_nodes_cannot_share_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"--processes 5 --nodes 2: .* multiple of 2"):
        check_processes(5, sharded=False, nodes=2)
    with pytest.raises(
        ConfigError, match=r"--nodes 2: --processes counts those of all nodes.* multiple of 2"
    ):
        check_processes(None, sharded=False, nodes=2)


# What torchrun says to the sixth of eight processes on two nodes.
SAID = {
    "TORCHELASTIC_RUN_ID": "7",
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "GROUP_RANK": "1",
    "GROUP_WORLD_SIZE": "2",
    "MASTER_ADDR": "here",
    "MASTER_PORT": "1",
}


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setattr(launched, "_current", None)
    return {**SAID, "HOME": "/home", "ACCELERATE_USE_FSDP": "true"}


def test_what_a_launcher_said_is_taken_out_of_the_environment(launcher: dict[str, str]) -> None:
    found = launched.take(launcher)
    assert found is not None
    assert (found.rank, found.processes, found.local_rank, found.node, found.nodes) == (5, 8, 1, 1, 2)
    assert launcher == {"HOME": "/home"}
    assert Processes.of(None) == Processes(8, answering=4, nodes=2)
    check_processes(None, sharded=True)
    with pytest.raises(ConfigError, match="--processes 4: the launcher started 8"):
        check_processes(4, sharded=False)


def test_a_single_process_of_torchrun_is_a_command_as_any(launcher: dict[str, str]) -> None:
    assert launched.take({**launcher, "WORLD_SIZE": "1", "RANK": "0"}) is None
    assert Processes.of(4) == Processes(4, answering=4)


@pytest.mark.parametrize(
    ("said", "command", "message"),
    [
        (SAID, "evaluate", "`lingraft evaluate` trains nothing, and a launcher started it 8 times"),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}, "run", "srun started lingraft 2 times"),
        (
            {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"},
            "adapt",
            "-m lingraft adapt ...`.",
        ),
        (
            {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"},
            "clean",
            "srun started lingraft 2 times. Start `lingraft clean` once",
        ),
    ],
    ids=["torchrun", "srun", "mpirun", "srun of what trains nothing"],
)
def test_copies_that_make_no_sense_are_refused_by_the_first_alone(
    said: dict[str, str], command: str, message: str
) -> None:
    """The others end well: a launcher ends all at the first failure, before the first process has said why."""
    for is_first in (True, False):
        first = {name: "0" for name in said if name.endswith(("RANK", "PROCID"))} if is_first else {}
        done = subprocess.run(
            [sys.executable, "-m", "lingraft", command, "study.yaml"],
            env={**os.environ, **said, **first},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == (2 if is_first else 0)
        assert done.stdout == ""
        assert (message in done.stderr) if is_first else (done.stderr == "")


def test_a_node_with_another_command_is_refused_whatever_bytes_the_names_are_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(platform, "node", lambda: "h\udcffst")
    port = nodes.free_endpoint("127.0.0.1").rpartition(":")[2]
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    first = outer_nodes.OuterNodes(
        launched.Launched(0, 2, 0, 0, 2, variables), {"command": "`lingraft run a\udcff.yaml`"}
    )
    second = launched.Launched(1, 2, 0, 1, 2, variables)
    alike = {"command": "`lingraft run b\udcff.yaml`"}
    other = outer_nodes._Node(second, outer_nodes._store_of(second), alike)
    with pytest.raises(
        ConfigError,
        match=r"node 2 of 2 .*: its command is `lingraft run b\udcff\.yaml`, .* first node `lingraft run a\udcff",
    ):
        first.address()
    first.start(nodes.NodeTask(Path("a\udcff"), 1, 2))
    other.end()
    first.leave(0)


def test_an_address_of_this_machine_has_its_interface() -> None:
    assert nodes.address_towards("127.0.0.1") == "127.0.0.1"
    interface = nodes.interface_towards("127.0.0.1")
    assert interface in psutil.net_if_addrs()
    host, _, port = nodes.free_endpoint("127.0.0.1").rpartition(":")
    assert host == "127.0.0.1"
    assert int(port) > 0


@dataclass(frozen=True)
class Net:
    """Two machines: what a command on each begins with, and their addresses."""

    prefixes: tuple[tuple[str, ...], ...]
    addresses: tuple[str, str]


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture(scope="module")
def net() -> Iterator[Net]:
    """Two network namespaces, joined by a cable; where they cannot be had, the loopback."""
    names = [f"lingraft{os.getpid()}{end}" for end in "ab"]
    cable = [f"lg{os.getpid() % 100000}{end}" for end in "ab"]
    addresses = ("10.213.7.1", "10.213.7.2")
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", cable[0], "type", "veth", "peer", "name", cable[1])
        for name, own, address in zip(names, cable, addresses, strict=True):
            _ip("link", "set", own, "netns", name)
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", own)
            _ip("-n", name, "link", "set", own, "up")
            _ip("-n", name, "link", "set", "lo", "up")
        yield Net(tuple(("ip", "netns", "exec", name) for name in names), addresses)
    except (OSError, subprocess.CalledProcessError):
        yield Net(((), ()), ("127.0.0.1", "127.0.0.1"))
    finally:
        for name in names if shutil.which("ip") else ():
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


@dataclass
class Agents:
    """Two agents of an outer torchrun, whose first process is `lingraft run`."""

    processes: list[subprocess.Popen[str]]
    logs: list[Path]

    def wait(self, seconds: float) -> None:
        for one in self.processes:
            one.wait(timeout=seconds)

    @property
    def said(self) -> str:
        return "\n".join(log.read_text(encoding="utf-8") for log in self.logs)


def study_of(tiny_model: Path, folder: Path) -> Path:
    """Write a study whose two trainings take a while."""
    worldbook = [{"task": "worldbook", "limit": 1, "max_new_tokens": 2}]
    content = {
        "name": "tiny",
        "model": str(tiny_model),
        "phases": [
            {"name": "one", "data": {"en": {"source": "worldbook:counting/en", "limit": 24}}},
            {"name": "two", "data": {"de": {"source": "worldbook:counting/de", "limit": 24}}},
        ],
        "training": {"precision": "float32", "tokens_per_batch": 128, "epochs": 2, "save_every": 2},
        "keep": "all",
        "held_out": 0,
        "measures": [],
        "contamination": None,
        "evaluate": {"task_ability": worldbook, "language_ability": worldbook},
    }
    path = folder / "study.yaml"
    path.write_text(json.dumps(content))
    return path


def trained_stages(runs: Path) -> dict[str, tuple[Any, Path]]:
    """Return of each training its record and its checkpoint, by its folder."""
    found = {}
    for folder in sorted((runs / "tiny" / "stages").glob("train-*")):
        record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
        found[folder.name] = record, folder / "checkpoint"
    return found


@pytest.mark.slow
def test_a_study_under_torchrun_on_two_nodes_is_stopped_killed_and_equal_to_one_process(
    tiny_model: Path, tmp_path: Path, net: Net
) -> None:
    study = study_of(tiny_model, tmp_path)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    alone = subprocess.run(
        [sys.executable, "-m", "lingraft", "run", str(study), "--runs", str(tmp_path / "alone")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert alone.returncode == 0, alone.stderr
    runs = tmp_path / "runs"
    attempt = 0
    seen: set[Path] = set()

    def start() -> Agents:
        nonlocal attempt
        attempt += 1
        processes, logs = [], []
        for number, prefix in enumerate(net.prefixes):
            own = tmp_path / f"node{number}"
            own.mkdir(exist_ok=True)
            logs.append(own / f"log{attempt}")
            with logs[-1].open("w") as log:
                processes.append(
                    subprocess.Popen(
                        [
                            *(*prefix, *TORCHRUN, "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d"),
                            f"--rdzv-endpoint={net.addresses[0]}:{29600 + attempt}",
                            *(f"--rdzv-id={attempt}", f"--local-addr={net.addresses[number]}"),
                            f"--rdzv-conf=is_host={int(number == 0)}",
                            *("-m", "lingraft", "run", str(study), "--runs", str(runs)),
                        ],
                        cwd=own,
                        stdout=log,
                        stderr=log,
                        env=environment,
                        text=True,
                    )
                )
        return Agents(processes, logs)

    def wait_for_steps(agents: Agents, steps: int) -> None:
        """Wait until so many steps of a new attempt are done."""
        until = time.monotonic() + 180
        while True:
            for lines in set(runs.glob("tiny/**/trainer/lines-*")) - seen:
                if lines.exists() and lines.read_text(encoding="utf-8").count(PROGRESS) >= steps:
                    seen.add(lines)
                    return
            assert time.monotonic() < until, agents.said
            assert all(one.poll() is None for one in agents.processes), agents.said
            time.sleep(0.05)

    # A signal to the agent of the second node stops the command of the first.
    agents = start()
    wait_for_steps(agents, 3)
    agents.processes[1].send_signal(signal.SIGTERM)
    agents.wait(30)
    assert "Stopped by SIGTERM: training stopped after step" in agents.said
    assert "which is saved" in agents.said

    agents = start()
    wait_for_steps(agents, 3)
    agents.processes[1].send_signal(signal.SIGKILL)
    agents.wait(120)
    assert "node 2 of 2" in agents.said
    assert "the same command, which goes on" in " ".join(agents.said.split())

    agents = start()
    agents.wait(300)
    assert [one.returncode for one in agents.processes] == [0, 0], agents.said
    expected, found = trained_stages(tmp_path / "alone"), trained_stages(runs)
    assert found.keys() == expected.keys()
    for name, (record, checkpoint) in expected.items():
        own, other = found[name]
        assert own.keys() == record.keys()
        losses, others = record["result"]["losses"], own["result"]["losses"]
        assert [step for step, _ in others] == [step for step, _ in losses]
        assert [loss for _, loss in others] == pytest.approx([loss for _, loss in losses], abs=1e-5)
        assert_weights_alike(checkpoint, other)
    for number in (0, 1):
        assert not list((tmp_path / f"node{number}").glob("runs"))
