"""Training on two gloo processes: one process's losses, also after a stop, and their errors told as one's own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from lingraft.config.schema import StrategyChoice, Training
from lingraft.data.encoded import EncodedExample, write_table
from lingraft.errors import ConfigError
from lingraft.models.loading import load_model, load_tokenizer
from lingraft.strategies.base import Context
from lingraft.strategies.composition import build
from lingraft.train.phase import PhaseOutcome, Progress, train_phase
from lingraft.train.processes import PhaseTask, Processes, train_on_processes
from lingraft.train.trainer import ProcessShares

TRAINING = Training(
    learning_rate=1e-2, epochs=2, tokens_per_batch=96, accumulation=2, warmup_share=0.1, precision="float32"
)
TOLERANCE = 1e-4
Make = Callable[..., PhaseTask]


@pytest.fixture
def make_task(tiny_model: Path, examples: Callable[..., list[EncodedExample]], tmp_path: Path) -> Make:
    def make(choice: Any = "plain", training: Training = TRAINING, *, sharded: bool = False) -> PhaseTask:
        chosen = StrategyChoice.model_validate(choice)
        model, context = wrapped(tiny_model, chosen, tmp_path)
        trainable = build(chosen).trainable(model, context)
        write_table(examples(count=22), tmp_path / "encoded")
        return PhaseTask(
            parent=tiny_model,
            base=None,
            choice=chosen,
            trainable=tuple(sorted(trainable)),
            states={},
            training=training,
            encoded=tmp_path / "encoded",
            folder=tmp_path / "stage",
            checkpoint=tmp_path / "stage" / "checkpoint",
            seed=0,
            sharded=sharded,
            trust_remote_code=False,
            launcher=os.getpid(),
        )

    return make


def wrapped(parent: Path, choice: StrategyChoice, folder: Path) -> tuple[Any, Context]:
    context = Context(
        base=None, previous=parent, previous_data=(), english=(), seed=0, folder=folder, cache=folder
    )
    return build(choice).wrap(load_model(parent), context), context


def on_one_process(task: PhaseTask, folder: Path, examples: Any) -> tuple[PhaseOutcome, Any]:
    model, _ = wrapped(task.parent, task.choice, folder)
    outcome = train_phase(
        model,
        load_tokenizer(task.parent),
        examples(count=22),
        task.training,
        trainable=task.trainable,
        folder=folder / "one",
        seed=task.seed,
    )
    return outcome, build(task.choice).finish(model, folder)


def assert_same_curve(found: PhaseOutcome, expected: PhaseOutcome) -> None:
    assert [step for step, _ in found.losses] == [step for step, _ in expected.losses]
    for (_, loss), (_, other) in zip(found.losses, expected.losses, strict=True):
        assert loss == pytest.approx(other, rel=TOLERANCE)


@pytest.mark.parametrize("sharded", [False, True], ids=["replicated", "sharded"])
@pytest.mark.parametrize(
    "choice",
    ["plain", pytest.param({"lora": {"rank": 2}}, marks=pytest.mark.slow)],
    ids=["plain", "lora"],
)
def test_two_processes_follow_the_loss_curve_of_one(
    make_task: Make, examples: Any, tmp_path: Path, choice: Any, sharded: bool
) -> None:
    task = make_task(choice, sharded=sharded)
    expected, model = on_one_process(task, tmp_path, examples)
    steps: list[Progress] = []
    found = train_on_processes(task, 2, steps.append)
    assert_same_curve(found, expected)
    assert [step.step for step in steps] == [step for step, _ in expected.losses]
    assert (found.tokens, found.supervised_tokens) == (expected.tokens, expected.supervised_tokens)
    assert found.trainable_parameters == expected.trainable_parameters
    trained = dict(load_model(task.checkpoint).named_parameters())
    for name, weight in model.named_parameters():
        torch.testing.assert_close(trained[name], weight, rtol=1e-3, atol=1e-4)
    assert sorted(path.name for path in task.folder.iterdir()) == ["checkpoint"]


@pytest.mark.parametrize(
    "sharded", [pytest.param(False, marks=pytest.mark.slow), True], ids=["replicated", "sharded"]
)
def test_two_processes_in_bf16_follow_the_loss_curve_of_one_but_for_rounding(
    make_task: Make, examples: Any, tmp_path: Path, sharded: bool
) -> None:
    task = make_task(training=TRAINING.model_copy(update={"precision": "bf16"}), sharded=sharded)
    expected, _ = on_one_process(task, tmp_path, examples)
    found = train_on_processes(task, 2)
    assert [loss for _, loss in found.losses] == pytest.approx(
        [loss for _, loss in expected.losses], rel=0.03
    )
    assert {one.dtype for one in load_model(task.checkpoint).state_dict().values()} == {torch.float32}


@pytest.mark.parametrize(
    "sharded", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["replicated", "sharded"]
)
def test_two_processes_go_on_where_they_were_stopped(
    make_task: Make, examples: Any, tmp_path: Path, sharded: bool
) -> None:
    task = make_task(training=TRAINING.model_copy(update={"save_every": 2}), sharded=sharded)
    expected, _ = on_one_process(task, tmp_path, examples)

    def stop(progress: Progress) -> None:
        if progress.step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_on_processes(task, 2, stop)
    assert not task.checkpoint.exists()
    found = train_on_processes(task, 2)
    assert found.resumed_from is not None
    assert found.resumed_from >= 4
    assert_same_curve(found, expected)


def test_what_a_worker_refuses_is_raised_here_as_it_is(make_task: Make) -> None:
    pure = TRAINING.model_copy(update={"precision": "bf16_pure"})
    with pytest.raises(ConfigError, match="bf16_pure does not go with sharded"):
        train_on_processes(make_task(training=pure, sharded=True), 2)


def test_workers_end_when_their_launcher_is_killed(make_task: Make, tmp_path: Path) -> None:
    task = make_task(training=TRAINING.model_copy(update={"epochs": 100}))
    script = (
        "import os, sys; from lingraft.train.processes import PhaseTask, train_on_processes; "
        "task = PhaseTask.model_validate_json(sys.argv[1]).model_copy(update={'launcher': os.getpid()}); "
        "train_on_processes(task, 2, lambda progress: print(progress.step, flush=True))"
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
    ("processes", "message"),
    [(Processes(0), "--processes 0"), (Processes(1, sharded=True), "--sharded divides a model")],
)
def test_impossible_numbers_of_processes_are_refused(processes: Processes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        processes.check()


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_the_parts_of_the_processes_hold_every_row_once_and_are_alike(processes: int) -> None:
    batches = [[4, 2, 9], [1], [0, 3, 5, 6, 7, 8]]
    shares = ProcessShares(batches, processes, silent_row=-1)
    parts = list(shares)
    assert len(parts) == len(shares) == len(batches) * processes
    for number, batch in enumerate(batches):
        own = parts[number * processes : (number + 1) * processes]
        assert sorted(row for part in own for row in part if row != -1) == sorted(batch)
        sizes = [len([row for row in part if row != -1]) for part in own]
        assert max(sizes) - min(sizes) <= 1
        assert all(part for part in own)
