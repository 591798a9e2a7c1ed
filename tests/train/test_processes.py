"""Training on two gloo processes: one process's losses, also after a stop, and their errors told as one's own."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest
import torch

from lingraft.config.schema import StrategyChoice, Training
from lingraft.data.encoded import EncodedExample, write_table
from lingraft.errors import ConfigError, StrategyError
from lingraft.models.loading import load_model
from lingraft.train.nodes import READY, TORCHRUN
from lingraft.train.phase import PhaseOutcome
from lingraft.train.processes import Processes, print_note, print_ready, train_on
from lingraft.train.run import PhasePlan, PhaseTask
from lingraft.train.trainer import BatchPlan, ProcessShares
from lingraft.train.watching import Progress

TRAINING = Training(
    learning_rate=1e-2, epochs=2, tokens_per_batch=96, accumulation=2, warmup_share=0.1, precision="float32"
)
TOLERANCE = 1e-4
Make = Callable[..., PhaseTask]
STOPPABLE = """
import sys
from lingraft import stopping
from lingraft.train.processes import Processes, train_on
from lingraft.train.run import PhaseTask

def show(progress):
    print(progress.step, flush=True)

with stopping.stoppable():
    try:
        task = PhaseTask.model_validate_json(sys.argv[1])
        train_on(Processes(2, sharded="sharded" in sys.argv), task, on_progress=show)
    except stopping.Stopped as stopped:
        stopping.settle()
        print(stopping.was_saved())
        code = stopped.exit_code
sys.exit(code)
"""


@pytest.fixture
def make_task(tiny_model: Path, examples: Callable[..., list[EncodedExample]], tmp_path: Path) -> Make:
    def make(choice: Any = "plain", training: Training = TRAINING) -> PhaseTask:
        write_table(examples(count=22), tmp_path / "encoded")
        return PhaseTask(
            parent=tiny_model,
            base=None,
            choice=StrategyChoice.model_validate(choice),
            states={},
            training=training,
            encoded=tmp_path / "encoded",
            folder=tmp_path / "stage",
            checkpoint=tmp_path / "stage" / "checkpoint",
            seed=0,
            trust_remote_code=False,
        )

    return make


def on_one_process(task: PhaseTask) -> tuple[PhaseOutcome, Any]:
    folder = task.folder.with_name("one")
    own = task.model_copy(update={"folder": folder, "checkpoint": folder / "checkpoint"})
    return train_on(Processes(), own).outcome, load_model(own.checkpoint)


def assert_same_curve(found: PhaseOutcome, expected: PhaseOutcome) -> None:
    assert [step for step, _ in found.losses] == [step for step, _ in expected.losses]
    for (_, loss), (_, other) in zip(found.losses, expected.losses, strict=True):
        assert loss == pytest.approx(other, rel=TOLERANCE)


def assert_left_alike(task: PhaseTask, model: Any) -> None:
    trained = dict(load_model(task.checkpoint).named_parameters())
    for name, weight in model.named_parameters():
        torch.testing.assert_close(trained[name], weight, rtol=1e-3, atol=1e-4)
    assert sorted(path.name for path in task.folder.iterdir()) == ["checkpoint", "trainer"]


@pytest.mark.parametrize(
    ("choice", "sharded"),
    [
        ("plain", True),  # replicated, without and with a stop: below
        pytest.param({"lora": {"rank": 2}}, False, marks=pytest.mark.slow),
        pytest.param({"lora": {"rank": 2}}, True, marks=pytest.mark.slow),
    ],
    ids=["plain-sharded", "lora-replicated", "lora-sharded"],
)
def test_two_processes_follow_the_loss_curve_of_one(make_task: Make, choice: Any, sharded: bool) -> None:
    task = make_task(choice)
    expected, model = on_one_process(task)
    steps: list[Progress] = []
    plans: list[PhasePlan] = []
    done = train_on(Processes(2, sharded), task, on_plan=plans.append, on_progress=steps.append)
    found = done.outcome
    assert_same_curve(found, expected)
    assert plans == [done.plan]
    assert sum(part.trainable_parameters for part in plans[0].parts) == expected.trainable_parameters
    assert [step.step for step in steps] == [step for step, _ in expected.losses]
    assert (found.tokens, found.supervised_tokens) == (expected.tokens, expected.supervised_tokens)
    assert found.trainable_parameters == expected.trainable_parameters
    assert_left_alike(task, model)


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True], ids=["replicated", "sharded"])
def test_two_processes_in_bf16_follow_the_loss_curve_of_one_but_for_rounding(
    make_task: Make, sharded: bool
) -> None:
    task = make_task(training=TRAINING.model_copy(update={"precision": "bf16"}))
    expected, _ = on_one_process(task)
    found = train_on(Processes(2, sharded), task).outcome
    assert [loss for _, loss in found.losses] == pytest.approx(
        [loss for _, loss in expected.losses], rel=0.03
    )
    assert {one.dtype for one in load_model(task.checkpoint).state_dict().values()} == {torch.float32}


@pytest.mark.slow  # one process goes on where two were stopped: below
@pytest.mark.parametrize("sharded", [False, True], ids=["replicated", "sharded"])
def test_two_processes_go_on_where_they_were_stopped(make_task: Make, sharded: bool) -> None:
    task = make_task(training=TRAINING.model_copy(update={"save_every": 2}))
    expected, model = on_one_process(task)

    def stop(progress: Progress) -> None:
        if progress.step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_on(Processes(2, sharded), task, on_progress=stop)
    assert not task.checkpoint.exists()
    found = train_on(Processes(2, sharded), task).outcome
    assert found.resumed_from is not None
    assert found.resumed_from >= 2  # the one of step 4 is written while steps 5 and 6 are made
    assert_same_curve(found, expected)
    assert_left_alike(task, model)


def test_what_a_worker_refuses_is_raised_here_as_it_is(make_task: Make) -> None:
    unknown = make_task({"freeze_modules": {"modules": ["q_porj"]}})
    with pytest.raises(StrategyError, match="q_porj"):
        train_on(Processes(2, sharded=True), unknown)


@pytest.mark.slow
def test_workers_end_when_their_launcher_is_killed(make_task: Make, tmp_path: Path) -> None:
    task = make_task(training=TRAINING.model_copy(update={"epochs": 100}))
    script = (
        "import sys; from lingraft.train.processes import Processes, train_on; "
        "from lingraft.train.run import PhaseTask; "
        "task = PhaseTask.model_validate_json(sys.argv[1]); "
        "train_on(Processes(2), task, on_progress=lambda progress: print(progress.step, flush=True))"
    )
    command = [sys.executable, "-c", script, task.model_dump_json()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        assert launcher.stdout.readline().strip() == "1"
        workers = psutil.Process(launcher.pid).children(recursive=True)
        assert len(workers) >= 3  # torchrun and its two processes
        launcher.send_signal(signal.SIGKILL)
    until = time.monotonic() + 20
    while any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers):
        assert time.monotonic() < until, workers
        time.sleep(0.2)


@pytest.mark.parametrize(
    ("number", "sharded"),
    [
        pytest.param(signal.SIGINT, False, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, False, marks=pytest.mark.slow),
        (signal.SIGTERM, True),  # to one worker alone
    ],
)
def test_a_signal_is_handed_on_and_all_processes_save_together(
    make_task: Make, number: int, sharded: bool
) -> None:
    task = make_task(training=TRAINING.model_copy(update={"epochs": 3}))
    expected, model = on_one_process(task)
    command = [sys.executable, "-c", STOPPABLE, task.model_dump_json(), *(["sharded"] * sharded)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        for line in launcher.stdout:
            if line.strip() == "3":  # and the next step is under way
                workers = psutil.Process(launcher.pid).children(recursive=True)
                training = [one for one in workers if "lingraft.train.worker" in one.cmdline()]
                (training[-1] if sharded else launcher).send_signal(number)
                break
        asked = time.monotonic()
        said, problems = launcher.communicate(timeout=60)
    _, left = psutil.wait_procs(workers, timeout=20)
    assert time.monotonic() - asked < 30
    # Who adopts them may leave them unburied.
    assert not [worker for worker in left if worker.status() != psutil.STATUS_ZOMBIE]
    assert "Traceback" not in problems
    assert launcher.returncode == 128 + number
    *_, step, note = said.strip().splitlines()
    assert note == f"training stopped after step {step} of {expected.steps}, which is saved"
    steps: list[Progress] = []
    processes = Processes() if sharded else Processes(2)  # as many, or another number
    found = train_on(processes, task, on_progress=steps.append).outcome
    assert found.resumed_from == int(step) == steps[0].step - 1
    assert_same_curve(found, expected)
    assert_left_alike(task, model)


@pytest.mark.slow
def test_a_worker_that_begins_after_torchrun_was_killed_ends(make_task: Make, tmp_path: Path) -> None:
    """A signal before any worker has reported kills torchrun; others would wait for it, and the command for them."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / "task.json").write_text(make_task().model_dump_json(), encoding="utf-8")
    alone = {
        "RANK": "1",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "9",
    }
    done = subprocess.run(
        [sys.executable, "-m", "lingraft.train.worker", str(tmp_path / "task.json"), str(os.getpid())],
        env={**os.environ, **alone, TORCHRUN: str(gone.pid)},
        timeout=120,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr


@pytest.mark.slow
def test_torchrun_itself_hears_no_signal(make_task: Make) -> None:
    """Else it would kill, after 30 seconds, workers that a scheduler signals with it while they save."""

    def signal_torchrun(progress: Progress) -> None:
        if progress.step == 1:
            # Other children are tests' before this one, and libraries' helpers.
            torchrun = next(one for one in psutil.Process().children() if one.children())
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                torchrun.send_signal(number)

    outcome = train_on(Processes(2), make_task(), on_progress=signal_torchrun).outcome
    assert len(outcome.losses) == outcome.steps


def test_a_worker_reports_a_line_by_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    class Raw(io.RawIOBase):
        writes: ClassVar[list[bytes]] = []

        def writable(self) -> bool:
            return True

        def write(self, content: Any) -> int:
            self.writes.append(bytes(content))
            return len(content)

    unbuffered = io.TextIOWrapper(Raw(), encoding="utf-8", write_through=True)  # type: ignore[type-var]
    monkeypatch.setattr(sys, "stdout", unbuffered)  # as of PYTHONUNBUFFERED, which `--workers` sets
    print_ready()
    print_note("über")
    assert Raw.writes == [f"{READY}{os.getpid()}\n".encode(), b'lingraft-note "\\u00fcber"\n']


@pytest.mark.parametrize(
    ("processes", "message"),
    [(Processes(0), "--processes 0"), (Processes(1, sharded=True), "--sharded divides a model")],
)
def test_impossible_numbers_of_processes_are_refused(processes: Processes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        processes.check()


@pytest.mark.parametrize("count", [1, 2, 3, 5, 10])
def test_the_parts_of_a_batch_hold_every_row_once_and_are_alike(count: int) -> None:
    batches = BatchPlan([7, 9, 4, 30, 12, 5, 8, 21, 6, 11], TRAINING, seed=0)
    shares = ProcessShares(batches, count, silent_row=-1)
    parts = list(shares)
    assert len(parts) == len(shares) == len(batches) * count
    for number, batch in enumerate(batches):
        own = parts[number * count : (number + 1) * count]
        assert sorted(row for part in own for row in part if row != -1) == sorted(batch)
        sizes = [len([row for row in part if row != -1]) for part in own]
        assert max(sizes) - min(sizes) <= 1
        assert all(part for part in own)
