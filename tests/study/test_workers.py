"""Stages are made in several processes as in one: each once, with equal records, whatever happens to a process."""

from __future__ import annotations

import errno
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from multiprocessing.connection import Pipe
from pathlib import Path
from typing import Any

import psutil
import pytest

from lingraft.errors import ConfigError, DataError, DiskError
from lingraft.models.child import Child
from lingraft.study.engines import LostError
from lingraft.study.event_log import output_file
from lingraft.study.events import Watcher
from lingraft.study.failures import failed_attempts
from lingraft.study.pool import check_workers
from lingraft.study.result import StudyResult
from lingraft.study.run import run_study
from lingraft.study.stage_worker import may_pass

LONGEST = 300  # seconds, on a machine that has other work
HERE = Path(__file__).parent
# As a user writes it: without a guard around what is run, which a worker must not run again.
SCRIPT = """
import sys
from pathlib import Path
from lingraft import stopping
import worker_steps as steps

run, *actions = sys.argv[1:]
stopping.begin(lambda number: print(stopping.sentence(number), flush=True))
code = 0
try:
    stages = [steps.Step(f"{action} {number}", Path(run).parent, action) for number, action in enumerate(actions)]
    steps.make(Path(run), steps.plan_of(*stages))
except stopping.Stopped:
    code = 1
sys.exit(stopping.end(code))
"""


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(HERE)
    return importlib.import_module("worker_steps")


def records(run: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in run.glob("stages/*/record.json")}


def attempts(folder: Path, label: str) -> list[str]:
    path = folder / f"attempts of {label}"
    return path.read_text().splitlines() if path.exists() else []


def test_what_happens_to_one_worker_does_not_reach_the_others(tmp_path: Path, steps: Any) -> None:
    root = steps.Step("root", tmp_path)
    meeting = [steps.Step(f"meet {number}", tmp_path, "meet", (root,)) for number in (1, 2)]
    dying = steps.Step("dying", tmp_path, "die_once", (root,))
    lost = steps.Step("lost", tmp_path, "die")
    passing = steps.Step("passing", tmp_path, "lose_connection_once")
    broken = steps.Step("broken", tmp_path, "refuse")
    after = steps.Step("after", tmp_path, "work", (root, broken))
    last = steps.Step("last", tmp_path, "work", (dying, *meeting))
    stages = (root, *meeting, dying, lost, passing, broken, after, last)
    run = tmp_path / "run"
    executor, seen = steps.make(run, steps.plan_of(*stages), retries=1)

    made = {one.label for one in (root, *meeting, dying, passing, last)}
    assert {one.result["label"] for one in executor.done.values()} == made
    assert not any(one.reused for one in executor.done.values())
    assert {label: len(attempts(tmp_path, label)) for label in made} == dict.fromkeys(made, 1) | {
        "dying": 2,
        "passing": 2,
    }
    assert str(executor.failed[broken.fingerprint]) == "broken is broken"
    log = output_file(run, broken.folder_name, 1).read_text()
    assert "Traceback" in log, "its log says where"
    assert log.rstrip().endswith("broken is broken")
    assert executor.failed[after.fingerprint] is executor.failed[broken.fingerprint]
    assert attempts(tmp_path, "after") == []
    assert len(attempts(tmp_path, "broken")) == 1, "wrong input is not tried again"
    assert isinstance(executor.failed[lost.fingerprint], LostError)
    assert "was killed by SIGKILL" in str(executor.failed[lost.fingerprint])
    assert "printed by lost" in str(executor.failed[lost.fingerprint]), "the last lines of its log"
    assert len(attempts(tmp_path, "lost")) == 2
    left = [path.read_text() for path in run.glob("stages/*/file")]
    assert left == ["root"], "which a failed stage reads; nothing reads the others any more"

    reported = [line for line in seen.lines if line.startswith("finished")]
    assert sorted(reported) == sorted(f"finished train {label}" for label in made)
    again = [line for line in seen.lines if "it is made again" in line]
    assert len(again) == 3
    assert sum(line.startswith("train dying: ") and "(retry 1 of 1)" in line for line in again) == 1
    failures = failed_attempts(run)
    assert sorted((one.reason[:12], one.is_made_again) for one in failures) == [
        ("broken is br", False),
        ("the process ", False),
        ("the process ", True),
        ("the process ", True),
        ("the server i", True),
    ]
    assert {one.where for one in failures} <= {"worker 1", "worker 2"}
    log = "".join(path.read_text() for path in run.glob("logs/*/*.log"))
    assert log.count("printed by root") == 1
    pids = {pid for label in made for pid in attempts(tmp_path, label)}
    assert str(os.getpid()) not in pids
    assert not any(psutil.pid_exists(int(pid)) for pid in pids), "workers end with the pool"


def test_a_full_disk_in_a_worker_stops_the_run(tmp_path: Path, steps: Any) -> None:
    plan = steps.plan_of(steps.Step("full", tmp_path, "fill_the_disk"), steps.Step("other", tmp_path, "hang"))
    began = time.monotonic()
    with pytest.raises(DiskError, match="the disk is full"):
        steps.make(tmp_path / "run", plan)
    assert time.monotonic() - began < LONGEST, "what hangs is not waited for"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the script with an independent stage an action; whatever happens, it ends with the test."""
    started: list[subprocess.Popen[str]] = []

    def begin(*actions: str) -> subprocess.Popen[str]:
        script = tmp_path / "script.py"
        script.write_text(SCRIPT)
        running = subprocess.Popen(
            [sys.executable, str(script), str(tmp_path / "run"), *actions],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(HERE)])},
            start_new_session=True,
        )
        started.append(running)
        return running

    yield begin
    for one in started:
        one.kill()
        one.communicate()


def wait_for(condition: Callable[[], object], seconds: float = LONGEST) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.slow
def test_a_signal_lets_all_workers_save_and_the_same_command_goes_on(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    actions = ("save_when_stopped", "save_when_stopped")
    running = start(*actions)
    labels = [f"{action} {number}" for number, action in enumerate(actions)]
    listening = [tmp_path / f"{label} listens" for label in labels]
    wait_for(lambda: running.poll() is not None or all(path.exists() for path in listening))
    assert running.poll() is None, running.communicate()
    workers = [int(attempts(tmp_path, label)[0]) for label in labels]
    for process in (running.pid, *workers):  # as a scheduler does, which signals all of them
        os.kill(process, signal.SIGTERM)
    printed, errors = running.communicate(timeout=LONGEST)
    assert running.returncode == 143, errors
    assert printed.count("\n") == 1, printed
    assert printed.startswith("Stopped by SIGTERM: ")
    for label in labels:
        assert f"{label}: {label} is saved" in printed
    assert not any(psutil.pid_exists(process) for process in workers)
    assert records(tmp_path / "run") == {}

    goes_on = start(*actions)
    _, errors = goes_on.communicate(timeout=LONGEST)
    assert goes_on.returncode == 0, errors
    assert len(records(tmp_path / "run")) == 2


@pytest.mark.slow
def test_workers_end_with_a_driver_that_is_killed_and_publish_nothing(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    running = start("hang", "hang")
    begun = ("hang 0", "hang 1")
    wait_for(lambda: running.poll() is not None or all(attempts(tmp_path, label) for label in begun))
    assert running.poll() is None, running.communicate()
    workers = [int(attempts(tmp_path, f"hang {number}")[0]) for number in (0, 1)]
    running.kill()
    running.communicate()
    wait_for(lambda: not any(psutil.pid_exists(one) for one in workers), seconds=60)
    assert records(tmp_path / "run") == {}


def test_a_signal_that_python_has_no_name_for_is_said_by_its_number() -> None:
    child = Child()
    child.connection, theirs = Pipe()
    with theirs, child.log:
        child.process = subprocess.Popen([sys.executable, "-c", "import os; os.kill(os.getpid(), 40)"])
        assert child.bury() == "was killed by signal 40"


class Labels(Watcher):
    """Keeps which stages began."""

    def __init__(self) -> None:
        self.began: list[str] = []

    def stage_started(self, label: str) -> None:
        self.began.append(label)


def test_two_workers_make_each_stage_of_a_study_once_with_the_records_of_one_process(
    tmp_path: Path, tiny_model: Path
) -> None:
    evaluated = [{"task": "worldbook:counting", "limit": 2, "max_new_tokens": 2}]
    study = {
        "name": "tiny",
        "model": str(tiny_model),
        "phases": [
            {"name": "one", "data": {"english": {"source": "worldbook:lookup/en", "limit": 8}}},
            {
                "name": "two",
                "data": {"german": {"source": "worldbook:lookup/de", "limit": 8}},
                "strategies": ["plain", {"interpolate": {"alpha": 0.5}}],
            },
        ],
        "training": {"tokens_per_batch": 256, "precision": "float32"},
        "held_out": 2,
        "measures": ["mpd"],
        "evaluate": {"task_ability": evaluated, "language_ability": evaluated, "precision": "float32"},
    }

    def run(name: str, **options: Any) -> tuple[StudyResult, list[str]]:
        seen = Labels()
        return run_study(study, runs=tmp_path / name, watcher=seen, **options), seen.began

    serial, in_order = run("serial")
    several, began = run("workers", workers=2)
    assert sorted(began) == sorted(in_order)
    assert records(tmp_path / "workers/tiny") == records(tmp_path / "serial/tiny")
    assert len(several.done) == len(serial.done) == 2
    last = json.loads((tmp_path / "workers/tiny/made.jsonl").read_text().splitlines()[-1])
    assert (last["engine"], last["outcome"]) == ("2 workers", "done")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"workers": 0}, "--workers 0: give at least 1"),
        ({"retries": -1}, "--retries -1: give 0 or more"),
        ({"workers": 2, "ray": "local"}, "leave one of them out"),
    ],
)
def test_what_makes_no_stages_is_refused_before_anything_is_read(
    tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        run_study({"name": "no study"}, runs=tmp_path / "runs", **options)
    assert not (tmp_path / "runs").exists()


def test_more_workers_than_accelerators_are_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    check_workers(2, 2)
    with pytest.raises(ConfigError, match="take 6 accelerators, and there are 4; give --workers 2"):
        check_workers(3, 2)


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (ConnectionResetError("peer"), True),
        (TimeoutError(), True),
        (OSError(errno.ESTALE, "stale file handle"), True),
        (RuntimeError("no answer"), False),
        (caused(RuntimeError("no answer"), OSError(errno.ECONNREFUSED, "refused")), True),
        (caused(DataError("the server is away"), ConnectionResetError("peer")), True),
        (DataError("a row is broken"), False),
        (FileNotFoundError(errno.ENOENT, "none", "data.jsonl"), False),
        (PermissionError(errno.EACCES, "denied", "data.jsonl"), False),
        (OSError("models/mine is not a local folder and is not a valid model identifier"), False),
    ],
)
def test_only_what_may_pass_is_tried_again(error: Exception, passes: bool) -> None:
    assert may_pass(error) is passes


@pytest.mark.slow  # the small study above covers the same
def test_the_quickstart_in_workers_and_on_ray_has_the_records_of_one_process(tmp_path: Path) -> None:
    def run(name: str, *options: str) -> dict[str, bytes]:
        command = [
            sys.executable,
            "-m",
            "lingraft",
            "run",
            "recipes/quickstart.yaml",
            "--runs",
            str(tmp_path / name),
        ]
        done = subprocess.run(
            [*command, *options], check=False, cwd=HERE.parents[1], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return records(next((tmp_path / name).iterdir()))

    serial = run("serial")
    assert serial
    assert run("workers", "--workers", "2") == serial
    if find_spec("ray") is not None:
        assert run("ray", "--ray", "local") == serial
