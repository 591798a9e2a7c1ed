"""A small study of two workers, disturbed: processes are killed at random, and clocks jump by an hour."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
# Read by every Python process that is started with it on its path.
JUMPING = """
import time
_time, _time_ns = time.time, time.time_ns
def _jump():
    return 3600 if int(time.monotonic() / 2) % 2 else 0  # forth and back, every other second
time.time = lambda: _time() + _jump()
time.time_ns = lambda: _time_ns() + _jump() * 10**9
"""


@pytest.mark.slow
def test_killed_workers_lose_nothing_that_was_finished() -> None:
    script = [sys.executable, str(BENCHMARKS / "kills.py"), "--workers", "2", "--kill", "10"]
    done = subprocess.run(script, capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 problems" in done.stdout


@pytest.mark.slow
def test_a_clock_that_jumps_by_an_hour_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from tiny_study import LINGRAFT, NAME, make_study, records, start

    study = make_study(tmp_path)
    straight = start(study, tmp_path / "straight")
    straight.communicate(timeout=300)
    assert straight.returncode == 0
    (tmp_path / "sitecustomize.py").write_text(JUMPING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    jumped = subprocess.run(
        [sys.executable, "-c", "import time; print(time.time.__name__)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert jumped.stdout == "<lambda>\n"
    running = start(study, tmp_path / "jumping", "--workers", "2")
    _, said = running.communicate(timeout=300)
    assert (running.returncode, "Traceback" in said) == (0, False), said
    assert records(tmp_path / "jumping") == records(tmp_path / "straight")
    run = tmp_path / "jumping" / NAME
    taken = [json.loads(path.read_text())["seconds"] for path in run.glob("stages/*/timing.json")]
    assert len(taken) == len(records(tmp_path / "jumping"))
    assert all(0 <= seconds < 300 for seconds in taken)
    shown = subprocess.run([*LINGRAFT, "show", "run", str(run)], capture_output=True, text=True, check=False)
    assert (shown.returncode, "Traceback" in shown.stderr) == (0, False), shown.stderr
