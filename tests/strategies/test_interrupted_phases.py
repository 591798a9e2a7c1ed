"""However the training of a phase is interrupted, its record is that of a straight run, and no step is repeated."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lingraft import stopping
from lingraft.stage import RECORD, FinishedStage
from lingraft.study import store as store_module
from lingraft.study.execute import Executor
from lingraft.study.store import Store
from lingraft.train import run as run_module
from lingraft.train.checkpoints import Checkpoints

STEPS = 6


class Steps:
    """Counts the steps that are trained, and interrupts at one of them."""

    def __init__(self, phases: Any, patch: pytest.MonkeyPatch) -> None:
        self.seen: list[int] = []
        self.notes: list[str] = []
        self.at: dict[int, Callable[[], None]] = {}
        patch.setattr(phases.watcher, "stage_progressed", self._progressed)
        patch.setattr(phases.watcher, "noted", self.notes.append)

    def _progressed(self, progress: Any) -> None:
        if progress.loss is not None:
            self.seen.append(progress.done)
            self.at.pop(progress.done, lambda: None)()


def kill() -> None:
    raise KeyboardInterrupt


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@contextmanager
def at_a_step(step: int, act: Callable[[], None], steps: Steps) -> Iterator[None]:
    steps.at[step] = act
    yield


@contextmanager
def where(module: Any, name: str, act: Callable[..., None]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, act)
        yield


def interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


INTERRUPTIONS: dict[str, Callable[[Steps], Any]] = {
    "killed before the first checkpoint": lambda steps: at_a_step(1, kill, steps),
    "killed in the middle": lambda steps: at_a_step(4, kill, steps),
    "SIGTERM": lambda steps: at_a_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM), steps),
    "SIGINT in the last step": lambda steps: at_a_step(
        STEPS - 1, lambda: os.kill(os.getpid(), signal.SIGINT), steps
    ),
    "killed while a checkpoint is sealed": lambda _: where(Checkpoints, "seal", interrupted),
    "a full disk while the model is saved": lambda _: where(run_module, "save_checkpoint", full),
    "killed while the model is saved": lambda _: where(run_module, "save_checkpoint", interrupted),
    "killed while the model goes to the disk": lambda _: where(run_module, "flush_folder", interrupted),
    "killed before the record": lambda _: where(store_module, "write_json_atomically", interrupted),
    "killed after the record": lambda _: where(store_module, "_remove_from", interrupted_after_the_work()),
}
AFTER_THE_LAST_STEP = [*INTERRUPTIONS][5:]


def interrupted_after_the_work() -> Callable[..., None]:
    calls: list[Any] = []

    def act(folder: Path, names: Any) -> None:
        calls.append(names)
        if len(calls) > 1:  # the first clears the folder before the work
            raise KeyboardInterrupt

    return act


def make(phases: Any, job: Any) -> FinishedStage:
    """Make the stage as a command does that was started anew."""
    with Store(phases.store.folder.parent / "interrupted") as store:
        stage: FinishedStage = Executor(store, phases.watcher).make(phases.described(job))
        return stage


@pytest.mark.parametrize("interruption", INTERRUPTIONS)
def test_a_record_does_not_know_of_interruptions(
    phases: Any, monkeypatch: pytest.MonkeyPatch, interruption: str
) -> None:
    job = phases.job("plain", save_every=2, max_length=256)
    straight = phases.make(job)
    steps = Steps(phases, monkeypatch)
    with (
        pytest.raises((KeyboardInterrupt, OSError)),
        stopping.stoppable(),
        INTERRUPTIONS[interruption](steps),
    ):
        make(phases, job)
    before = len(steps.seen)
    done = make(phases, job)
    assert (done.folder / RECORD).read_bytes() == (straight.folder / RECORD).read_bytes()
    assert sorted(path.name for path in done.folder.iterdir()) == ["checkpoint", RECORD, "timing.json"]
    if interruption in AFTER_THE_LAST_STEP:
        assert len(steps.seen) == before == STEPS
    half = (
        "that of step 2 was not finished" if interruption == "killed while a checkpoint is sealed" else None
    )
    assert len(steps.notes) == (half is not None)
    assert all(str(half) in note for note in steps.notes)


def test_checkpoints_of_other_options_are_reported_and_leave_nothing_in_the_record(
    phases: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = phases.job("plain", save_every=2, max_length=256)
    straight = phases.make(job)
    steps = Steps(phases, monkeypatch)
    with pytest.raises(KeyboardInterrupt), at_a_step(5, kill, steps):
        make(phases, job)
    (folder,) = (phases.store.folder.parent / "interrupted" / "work").iterdir()
    for name in ("task.json", "workers.log", "outcome.json"):
        (folder / "trainer" / name).write_text("{}")
    of_others = Checkpoints(folder / "trainer", {"seed": 2}, lambda _: None)
    (folder / "trainer" / "phase.json").write_text('{"seed": 2}')
    for step in (2, 4):
        of_others.seal(step)
    done = make(phases, job)
    assert len(steps.notes) == 1
    assert "a stopped training lies here at step 4, which this one cannot continue" in steps.notes[0]
    assert "seed was 2, not 0" in steps.notes[0]
    assert done.timing["resumed_from"] is None
    assert (done.folder / RECORD).read_bytes() == (straight.folder / RECORD).read_bytes()
    assert sorted(path.name for path in done.folder.iterdir()) == ["checkpoint", RECORD, "timing.json"]


def test_refused_checkpoints_are_counted_beside_the_times(
    phases: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = phases.job("plain", save_every=2, max_length=256)
    straight = phases.make(job)
    steps = Steps(phases, monkeypatch)
    with pytest.raises(KeyboardInterrupt), at_a_step(5, kill, steps):
        make(phases, job)
    (folder,) = (phases.store.folder.parent / "interrupted" / "work").iterdir()
    (folder / "trainer" / "checkpoint-4" / "optimizer.json").unlink()
    done = make(phases, job)
    assert (done.timing["resumed_from"], done.timing["refused_checkpoints"]) == (2, 1)
    assert len(steps.notes) == 1
    assert steps.notes[0].startswith(
        f"{job.label}: resumable checkpoints are refused and removed (that of step 4 "
    )
    assert (done.folder / RECORD).read_bytes() == (straight.folder / RECORD).read_bytes()


@pytest.mark.parametrize(
    ("training", "bytes_per_parameter"),
    [
        ({}, 28),  # the model, and two checkpoints of weights and moments
        ({"precision": "bf16_pure"}, 24),
        ({"save_minutes": 0}, 4),
        ({"save_minutes": 0, "save_every": 5}, 28),
    ],
)
def test_the_plan_says_what_checkpoints_need_on_disk(
    phases: Any, training: dict[str, Any], bytes_per_parameter: int
) -> None:
    job = phases.job("plain", **training)
    known = phases.described(replace(job, parent=replace(job.parent, parameters=1000)))
    assert known.needs.disk_bytes == 1000 * bytes_per_parameter
