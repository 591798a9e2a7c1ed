"""What strategies ask of training besides names, on two processes: the losses and weights of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lingraft.config.schema import StrategyChoice, Training
from lingraft.data.encoded import EncodedExample, write_table
from lingraft.models.loading import load_model
from lingraft.train.processes import Processes, train_on
from lingraft.train.run import PhaseTask

TRAINING = Training(
    learning_rate=1e-2, epochs=2, tokens_per_batch=96, accumulation=2, warmup_share=0.1, precision="float32"
)
CHOICE = [
    {"distill": {"share": 0, "weight": 3}},
    {"layerwise_rates": {"decay": 0.5}},
    {"l2_anchor": {"strength": 0.5}},
]
Examples = Callable[..., list[EncodedExample]]


def task_of(choice: Any, parent: Path, rows: list[EncodedExample], folder: Path) -> PhaseTask:
    write_table(rows, folder / "encoded")
    return PhaseTask(
        parent=parent,
        base=None,
        choice=StrategyChoice.model_validate(choice),
        states={},
        training=TRAINING,
        encoded=folder / "encoded",
        folder=folder / "stage",
        checkpoint=folder / "stage" / "checkpoint",
        seed=0,
        trust_remote_code=False,
    )


def replayed_every_third(rows: list[EncodedExample]) -> list[EncodedExample]:
    return [replace(row, replayed=number % 3 == 0) for number, row in enumerate(rows)]


@pytest.mark.slow
def test_penalties_pulls_and_rates_are_those_of_one_process(
    tiny_model: Path, examples: Examples, tmp_path: Path
) -> None:
    rows = replayed_every_third(examples(count=22))
    task = task_of(CHOICE, tiny_model, rows, tmp_path)
    one = tmp_path / "one"
    alone = task.model_copy(update={"folder": one, "checkpoint": one / "checkpoint"})
    expected = train_on(Processes(), alone).outcome
    found = train_on(Processes(2), task).outcome
    assert [step for step, _ in found.losses] == [step for step, _ in expected.losses]
    for (_, loss), (_, other) in zip(found.losses, expected.losses, strict=True):
        assert loss == pytest.approx(other, rel=1e-3)
    trained = dict(load_model(task.checkpoint).named_parameters())
    for name, weight in load_model(alone.checkpoint).named_parameters():
        torch.testing.assert_close(trained[name], weight, rtol=2e-3, atol=5e-4)
