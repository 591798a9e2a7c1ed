"""A study that gets SIGTERM as a scheduler sends it, to every process of the job at once, and is started again."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
tiny = importlib.import_module("tiny_study")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    study: Path = tiny.make_study(tmp_path_factory.mktemp("study"))
    return study


def wait_for_a_checkpoint(runs: Path, running: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 120
    while not list((runs / tiny.NAME).rglob("checkpoint-*")):
        assert time.monotonic() < until
        assert running.poll() is None, running.communicate()
        time.sleep(0.02)


def signal_everything(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Send SIGTERM to a process and all below it, twice, as SLURM and a launcher among them do; return them."""
    driver = psutil.Process(process.pid)
    everything = [driver, *driver.children(recursive=True)]
    for _ in range(2):
        for one in everything:
            try:
                os.kill(one.pid, signal.SIGTERM)
            except ProcessLookupError:
                continue
        time.sleep(0.05)
    return everything


# What one process does with the signal is in tests/train/test_processes.py: quicker, and without a command around it.
@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--processes", "2"]], ids=["one process", "torchrun"])
def test_a_study_whose_every_process_is_signalled_saves_and_goes_on_with_equal_records(
    options: list[str], study: Path, tmp_path: Path
) -> None:
    straight = tiny.start(study, tmp_path / "straight", *options)
    _, said = straight.communicate(timeout=300)
    assert straight.returncode == 0, said

    runs = tmp_path / "runs"
    first = tiny.start(study, runs, *options)
    wait_for_a_checkpoint(runs, first)
    everything = signal_everything(first)
    _, said = first.communicate(timeout=120)
    assert first.returncode == 143, said
    assert "which is saved" in said.splitlines()[-1]
    assert psutil.wait_procs(everything, timeout=20)[1] == []
    finished = tiny.records(runs)

    second = tiny.start(study, runs, *options)
    _, said = second.communicate(timeout=300)
    assert second.returncode == 0, said
    assert tiny.records(runs) == tiny.records(tmp_path / "straight")
    assert finished.items() <= tiny.records(runs).items()
    trained = [path.read_text(encoding="utf-8") for path in (runs / tiny.NAME).rglob("timing.json")]
    assert any('"resumed_from":' in text.replace('"resumed_from": null', "") for text in trained)
