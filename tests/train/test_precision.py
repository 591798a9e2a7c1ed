"""What a phase computes in: the logits that the loss gets, and what an interrupted phase must agree on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from lingraft.config.schema import Training
from lingraft.strategies.base import TrainingRules
from lingraft.train.phase import PhaseOutcome, train_phase
from lingraft.train.watching import Progress

Build = Callable[..., Any]
TRAINING = Training(learning_rate=1e-2, epochs=1, tokens_per_batch=64)


@pytest.fixture
def train(tokenizer: Any, tmp_path: Path, tiny_llama: Build, examples: Build) -> Callable[..., PhaseOutcome]:
    def run(training: Training, folder: str = "stage", **options: Any) -> PhaseOutcome:
        model = tiny_llama()
        names = [name for name, _ in model.named_parameters()]
        return train_phase(
            model,
            tokenizer,
            examples(),
            training,
            trainable=names,
            folder=tmp_path / folder,
            seed=0,
            **options,
        )

    return run


def as_precision(training: Training, precision: str, **others: Any) -> Training:
    return training.model_copy(update={"precision": precision, **others})


@pytest.mark.parametrize(
    ("precision", "expected"),
    [("bf16", torch.bfloat16), ("bf16_pure", torch.bfloat16), ("float32", torch.float32)],
)
def test_the_loss_gets_the_logits_as_the_head_computed_them(
    train: Build, precision: str, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    original = torch.nn.Linear.forward

    def forward(self: torch.nn.Linear, given: torch.Tensor) -> torch.Tensor:
        found = original(self, given)
        computed.append(found.data_ptr())
        return found

    monkeypatch.setattr(torch.nn.Linear, "forward", forward)

    def penalty(
        logits: torch.Tensor, _rows: torch.Tensor, _batch: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        assert logits.dtype == expected
        assert logits.data_ptr() == computed[-1]  # the head's own output, and no copy of it
        return logits.new_zeros((), dtype=torch.float32)

    outcome = train(as_precision(TRAINING, precision), rules=TrainingRules(output_penalties=(penalty,)))
    assert outcome.steps > 1


def test_bf16_losses_are_float32s_but_for_rounding(train: Build) -> None:
    one, other = (
        train(as_precision(TRAINING, precision), folder=precision) for precision in ("bf16", "float32")
    )
    assert [loss for _, loss in one.losses] == pytest.approx([loss for _, loss in other.losses], rel=0.02)
    assert one.losses != other.losses


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, "bf16"), (False, "float32")])
def test_auto_trains_bit_for_bit_as_what_it_stands_for(
    train: Build, processor: Callable[[bool], None], has_bf16: bool, expected: str
) -> None:
    processor(has_bf16)
    assert train(TRAINING).losses == train(as_precision(TRAINING, expected), folder="named").losses


@pytest.mark.parametrize(("then", "resumed_from"), [(False, 2), (True, None)])
def test_an_interrupted_phase_goes_on_only_in_the_precision_that_it_began_in(
    train: Build, processor: Callable[[bool], None], then: bool, resumed_from: int | None
) -> None:
    def stop(progress: Progress) -> None:
        if progress.step == 3:
            raise KeyboardInterrupt

    processor(False)
    training = as_precision(TRAINING, "auto", save_every=2, epochs=2)
    with pytest.raises(KeyboardInterrupt):
        train(training, on_progress=stop)
    processor(then)  # the folder was moved to another machine, or not
    assert train(training).resumed_from == resumed_from
