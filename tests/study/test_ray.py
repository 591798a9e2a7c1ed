"""Stages are made by Ray as they are in one process, whatever dies meanwhile."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from lingraft.config.ray_address import check_ray
from lingraft.errors import ConfigError
from lingraft.study.failures import failed_attempts
from lingraft.study.run import run_study
from lingraft.study.schedule import Node, Share

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed (extra `ray`)")

LINGRAFT = [sys.executable, "-c", "from lingraft.cli.main import main; main()"]


def study_file(folder: Path, model: Path, **changes: Any) -> Path:
    content = {
        "name": "tiny",
        "model": str(model),
        "phases": [
            {"name": "one", "data": {"english": {"source": "worldbook:lookup/en", "limit": 12}}},
            {"name": "two", "data": {"german": {"source": "worldbook:lookup/de", "limit": 12}}},
        ],
        "training": {"learning_rate": 1e-3, "tokens_per_batch": 512, "precision": "float32"},
        "held_out": 2,
        "measures": ["mpd"],
        "evaluate": {
            "task_ability": [{"task": "worldbook", "limit": 2, "max_new_tokens": 2}],
            "language_ability": [{"task": "worldbook", "limit": 2, "max_new_tokens": 2}],
            "precision": "float32",
        },
        **changes,
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def run(path: Path, runs: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LINGRAFT, "run", str(path), "--json", "--runs", str(runs), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
        timeout=600,
    )


def records(runs: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in sorted(runs.glob("tiny/stages/*/record.json"))}


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Path, dict[str, bytes]]:
    """A study file, and the records of its stages as one process makes them."""
    folder = tmp_path_factory.mktemp("serial")
    path = study_file(folder, tiny_model)
    done = run(path, folder / "runs")
    assert done.returncode == 0, done.stderr
    return path, records(folder / "runs")


def test_ray_makes_each_stage_once_with_the_records_of_one_process(
    serial: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    path, expected = serial
    done = run(path, tmp_path, "--ray", "local")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["cells"][0]["status"] == "done"
    assert records(tmp_path) == expected
    assert done.stderr.count("✓ train") == 2, done.stderr
    assert "ray" not in done.stderr.lower().replace("--ray", ""), done.stderr


@pytest.mark.parametrize(
    ("address", "advice"),
    [
        ("ray://head:10001", "ray job submit"),
        ("head", "HOST:PORT"),
        ("head:port", "HOST:PORT"),
        ("", "HOST:PORT"),
    ],
)
def test_what_is_no_address_is_refused_with_what_to_type(address: str, advice: str) -> None:
    with pytest.raises(ConfigError, match=advice):
        check_ray(address)


def test_an_address_where_no_cluster_answers_is_refused_at_once(tmp_path: Path) -> None:
    from lingraft.study.ray_engine import RayEngine

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    began = time.monotonic()
    refused = f"no cluster answers at .*:{free} .*--ray local"
    with pytest.raises(ConfigError, match=refused), RayEngine(tmp_path, f"127.0.0.1:{free}"):
        pass
    study = {
        "name": "s",
        "model": "nowhere",
        "phases": [{"name": "one", "data": {"en": {"source": "worldbook"}}}],
    }
    with pytest.raises(ConfigError, match=refused):  # before data and models are looked for
        run_study(study, runs=tmp_path / "runs", ray=f"127.0.0.1:{free}")
    assert time.monotonic() - began < 30
    assert not list(tmp_path.rglob("nodes-*"))


@pytest.mark.parametrize("named", ["", "head", "ray://head:10001", "http://head:8265", "local"])
def test_no_cluster_to_be_found_is_refused_with_what_to_type(
    named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray._private import services

    from lingraft.study.ray_cluster import check_answers

    monkeypatch.setenv("RAY_ADDRESS", named)
    monkeypatch.setattr(services, "find_gcs_addresses", set)
    monkeypatch.setattr(services, "find_bootstrap_address", lambda _: None)
    with pytest.raises(ConfigError, match=f"no node of a cluster, .*{named or 'not set'}.*HOST:PORT"):
        check_answers("auto")


def test_what_is_no_cluster_is_refused_at_once() -> None:
    """Ray would ask it for a quarter of an hour."""
    from lingraft.study.ray_cluster import check_answers

    with ThreadingHTTPServer(("", 0), SimpleHTTPRequestHandler) as dashboard:
        threading.Thread(target=dashboard.serve_forever, daemon=True).start()
        with pytest.raises(ConfigError, match=r"something else.*not that of its dashboard"):
            check_answers(f"127.0.0.1:{dashboard.server_port}")
        dashboard.shutdown()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of two nodes with one core each, on this machine."""
    from ray.cluster_utils import Cluster

    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    started.add_node(num_cpus=1)
    started.wait_for_nodes()
    yield started
    started.shutdown()


@pytest.mark.slow
def test_nodes_that_would_make_other_stages_are_refused(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lingraft.models.compute import compute_for
    from lingraft.study import ray_engine

    stage: Any = type("Named", (), {"name": "train x"})()
    with ray_engine.RayEngine(tmp_path, cluster.address) as engine:
        assert [one.cpus for one in engine.nodes] == [1, 1]
        engine.check_nodes([], asks_precision=True)  # nothing is wrong
        with pytest.raises(
            ConfigError, match=r"train x needs 8 cards, 8 processor cores, and no node has that"
        ):
            engine.check_shares([(stage, Share(8, 8, None))])
        with monkeypatch.context() as patched:
            patched.setattr(ray_engine, "versions", lambda: {"torch": "1.0"})
            with pytest.raises(ConfigError, match=r"node .*: has torch .*, and this machine 1\.0"):
                engine.check_nodes([], asks_precision=False)
        own = compute_for("auto").precision
        other: Any = {"float32": "bf16", "bf16": "float32"}[own]
        with monkeypatch.context() as patched:
            named = compute_for(other)
            patched.setattr("lingraft.study.ray_engine.compute_for", lambda _: named)
            with pytest.raises(ConfigError, match=r"training\.precision=bf16 evaluate\.precision=bf16"):
                engine.check_nodes([], asks_precision=True)
        engine._sign.unlink()
        with pytest.raises(ConfigError, match=r"does not see the run folder .*--runs"):
            engine.check_nodes([], asks_precision=False)


@pytest.mark.slow
def test_a_study_outlives_one_of_two_nodes(
    cluster: Any, serial: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    path, expected = serial
    node = cluster.add_node(num_cpus=1)
    with subprocess.Popen(
        [*LINGRAFT, "run", str(path), "--json", "--runs", str(tmp_path), "--ray", cluster.address],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as running:
        while len(records(tmp_path)) < 2 and running.poll() is None:
            time.sleep(0.1)
        cluster.remove_node(node, allow_graceful=False)
        out, err = running.communicate(timeout=900)
    assert running.returncode == 0, err
    assert json.loads(out)["cells"][0]["status"] == "done"
    assert records(tmp_path) == expected


@pytest.mark.slow
def test_trainings_on_two_nodes_at_once_follow_one_process(
    cluster: Any, serial: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    path, expected = serial
    done = run(path, tmp_path, "--ray", cluster.address, "--nodes", "2", "--processes", "2")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("2 processes on 2 nodes train") == 1, done.stderr
    found = records(tmp_path)
    assert found.keys() == expected.keys()
    for name in (one for one in expected if one.startswith("train-")):
        own, other = (json.loads(one[name])["result"]["losses"] for one in (found, expected))
        assert [step for step, _ in own] == [step for step, _ in other]
        assert [loss for _, loss in own] == pytest.approx([loss for _, loss in other], abs=1e-5)


@contextmanager
def begun(path: Path, runs: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a study on a local cluster, and yield when a training of it is at work; its processes are marked."""
    command = [*LINGRAFT, "run", str(path), "--runs", str(runs), "--ray", "local"]
    marked = {**os.environ, "OMP_NUM_THREADS": "1", "LINGRAFT_TEST_RUN": str(runs)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=marked) as running:
        while not list(runs.glob("tiny/logs/train-*/*")) and running.poll() is None:
            time.sleep(0.05)
        yield running


@pytest.mark.slow
def test_a_stopped_driver_saves_leaves_no_process_and_goes_on(
    serial: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    path, expected = serial
    with begun(path, tmp_path) as running:
        running.send_signal(signal.SIGTERM)
        _, err = running.communicate(timeout=300)
    assert running.returncode == 143, err
    assert err.count("Stopped by SIGTERM") == 1, err
    until = time.monotonic() + 20
    while (left := processes_with(f"LINGRAFT_TEST_RUN={tmp_path}")) and time.monotonic() < until:
        time.sleep(0.2)
    assert not left
    done = run(path, tmp_path, "--ray", "local")
    assert done.returncode == 0, done.stderr
    assert records(tmp_path) == expected


@pytest.mark.slow
def test_a_task_whose_process_is_killed_is_made_again_and_that_is_recorded(
    serial: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    path, expected = serial
    with begun(path, tmp_path) as running:
        at_work = [
            number
            for number, shown in processes_with(f"LINGRAFT_TEST_RUN={tmp_path}").items()
            if shown.startswith("ray::train")
        ]
        assert len(at_work) == 1
        os.kill(at_work[0], signal.SIGKILL)
        _, err = running.communicate(timeout=300)
    assert running.returncode == 0, err
    assert err.count("it is made again (retry 1 of 2)") == 1, err
    assert records(tmp_path) == expected
    failed = failed_attempts(tmp_path / "tiny")
    assert [(one.stage.partition("-")[0], one.is_made_again) for one in failed] == [("train", True)]


def test_what_waits_for_a_node_says_so_once_and_never_falls_back_on_processors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lingraft.study.ray_engine import RayEngine, _AtWork

    notes: list[str] = []
    stage: Any = type("Named", (), {"name": "train x"})()
    engine = RayEngine(tmp_path, "local", noted=notes.append)
    head, worker = Node(0, 4), Node(8, 64)
    monkeypatch.setattr(RayEngine, "nodes", (head, worker))
    assert engine.node == worker
    engine._tasks = {"task": _AtWork(stage, Share(8, 8, None))}
    engine._note_waiting()
    assert notes == []
    monkeypatch.setattr(RayEngine, "nodes", (head,))  # the other one is lost
    assert engine.node == worker
    engine._note_waiting()
    engine._note_waiting()
    assert len(notes) == 1
    assert "train x needs 8 cards, 8 processor cores, and no node has that" in notes[0]
    assert "it waits for such a node" in notes[0]


def test_what_ray_ends_for_want_of_memory_is_said_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    from lingraft.study import ray_engine

    def out_of_memory(_: object) -> None:
        raise ray.exceptions.OutOfMemoryError("Memory on the node ...\nRefer to https://docs.ray.io/...")

    monkeypatch.setattr(ray, "get", out_of_memory)
    monkeypatch.setattr(ray_engine, "session_logs", lambda: "/tmp/ray/logs")
    stage: Any = type("Named", (), {"name": "train x"})()
    settled = ray_engine.RayEngine(tmp_path, "local")._settled("task", stage)
    assert settled.may_pass
    assert re.search(r"memory was nearly full, .* --num-cpus.* /tmp/ray/logs$", str(settled.error))


def test_of_what_ray_says_whole_sentences_are_shown() -> None:
    from lingraft.study.ray_engine import _reason

    assert _reason(ValueError("Traceback\n  File x\nValueError: wrong")) == "ValueError: wrong"
    assert _reason(ValueError()) == "ValueError"
    assert _reason(ValueError(f"The node is dead. It {'x' * 200}. To see why, use {'y' * 200}.")).endswith(
        "xx"
    )


def processes_with(variable: str) -> dict[int, str]:
    """Return the commands of the processes that inherited a variable."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if variable.encode() in (process / "environ").read_bytes().split(b"\0"):
                found[int(process.name)] = (process / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    return {number: shown for number, shown in found.items() if shown}
