"""What makes the host wait for the device in an optimiser step: counted by torch's dispatcher, on any device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lingraft.adapt.repair import ReverseDivergence
from lingraft.config.schema import StrategyChoice, Training
from lingraft.models.compute import compute_for
from lingraft.models.text_parts import reached_by_text
from lingraft.strategies.base import Anchor, Context, TrainingRules
from lingraft.strategies.composition import build
from lingraft.train.on_policy import OnPolicy
from lingraft.train.phase import train_phase
from lingraft.train.watching import Progress

Build = Callable[..., Any]

ACCUMULATION, STEPS = 4, 3
TRAINING = Training(
    learning_rate=1e-3, tokens_per_batch=160, accumulation=ACCUMULATION, precision="float32", save_minutes=0
)
SCALAR_READS = 3  # of a step: its loss, the gradient's norm, and with several processes whether to stop
READS = ("_local_scalar_dense", "is_nonzero", "equal")
OF_UNKNOWN_SIZE = ("nonzero", "masked_select", "nonzero_numpy", "argwhere", "_unique2", "unique_dim")


class Waiting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations whose result, or its size, the host must read from the device, by optimiser step."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now: Counter[str] = Counter()
        self.steps: list[Counter[str]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name in READS:
            self.now["scalar reads"] += 1
        masks = args[1] if name in ("index", "index_put", "index_put_", "_index_put_impl_") else ()
        is_mask = any(one is not None and one.dtype in (torch.bool, torch.uint8) for one in masks)
        if name in OF_UNKNOWN_SIZE or is_mask:
            self.now[name] += 1
        if name == "embedding":
            self.now["embedding"] += 1
        return function(*args, **(kwargs or {}))

    def end_step(self, _: Progress) -> None:
        self.steps.append(self.now)
        self.now = Counter()


@pytest.fixture
def step_of(
    tokenizer: Any, examples: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Counter[str]]:
    """A function that trains, and returns the counts of the second step, which neither makes nor ends anything."""

    def count(
        model: Any, *, precision: str = "float32", replayed_every: int = 0, **options: Any
    ) -> Counter[str]:
        rows = [
            replace(row, replayed=replayed_every > 0 and number % replayed_every == 0)
            for number, row in enumerate(examples(40))
        ]
        training = TRAINING.model_copy(update={"precision": precision})
        waiting = Waiting()

        def tolist(_: torch.Tensor) -> list[Any]:
            waiting.now["scalar reads"] += 1
            return torch_tolist(_)

        torch_tolist = torch.Tensor.tolist
        monkeypatch.setattr(torch.Tensor, "tolist", tolist)
        with waiting:
            train_phase(
                model, tokenizer, rows, training, folder=tmp_path, on_progress=waiting.end_step, **options
            )
        assert len(waiting.steps) >= STEPS
        return waiting.steps[1]

    return count


def context_in(folder: Path, previous: Path | None = None) -> Context:
    return Context(
        base=None,
        previous=previous or folder,
        previous_data=(),
        english=(),
        seed=0,
        folder=folder,
        cache=folder,
        compute=compute_for("float32"),
    )


def assert_it_hardly_waits(found: Counter[str], forward_passes: int = ACCUMULATION) -> None:
    assert found.pop("embedding") == forward_passes
    assert found.pop("scalar reads") <= SCALAR_READS
    assert not found


def test_what_makes_the_host_wait_is_counted() -> None:
    waiting, values = Waiting(), torch.arange(4.0)
    with waiting:
        values[values > 1] = 0
        assert float(values[values > 9].sum()) == 0
        assert len(values.nonzero()) == 1
        values[torch.tensor([1, 2])] = 0  # by numbers: nothing is read
    assert waiting.now == {"index_put_": 1, "index": 1, "scalar reads": 1, "nonzero": 1}


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_plain_step_reads_its_loss_and_norm(tiny_llama: Build, step_of: Build, precision: str) -> None:
    assert_it_hardly_waits(step_of(tiny_llama(), precision=precision))


@pytest.mark.parametrize("precision", ["float32", "bf16", "bf16_pure"])
def test_so_does_a_step_whose_logits_are_never_whole(
    tiny_llama: Build, step_of: Build, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lingraft.models.fused_loss.MOST_WHOLE", 0)
    monkeypatch.setattr("lingraft.models.fused_loss._AT_ONCE", 48 * 7)
    monkeypatch.delattr("lingraft.models.loss.SupervisedHead")  # what makes all logits
    assert_it_hardly_waits(step_of(tiny_llama(), precision=precision))


@pytest.mark.parametrize(
    "architecture", ["mistral", "qwen3", "gemma2", "gemma3", "phi3", "olmo2", "gpt_neox"]
)
def test_so_does_a_step_of_other_architectures(
    tiny_configuration: Build, step_of: Build, architecture: str
) -> None:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        tiny_configuration(architecture, 48)
    )
    model.config.image_token_id = 40  # in the vocabulary, as in every real model
    trainable = reached_by_text(model)
    assert_it_hardly_waits(step_of(model, trainable=trainable))


def test_so_does_a_step_with_pulls_masks_and_rates(tiny_llama: Build, step_of: Build) -> None:
    model = tiny_llama()
    own = dict(model.named_parameters())
    rules = TrainingRules(
        frozen_mask={name: torch.rand_like(one) > 0.5 for name, one in own.items()},
        learning_rates={"model.norm.weight": 0.5},
        anchors=(Anchor(0.5), Anchor(0.1, {name: torch.rand_like(one) for name, one in own.items()})),
    )
    assert_it_hardly_waits(step_of(model, rules=rules))


@pytest.mark.parametrize("share", [3, 1, 0])  # every third row, all and none are replayed
def test_so_does_a_step_that_keeps_the_distribution_on_replayed_rows(
    tiny_llama: Build, step_of: Build, tmp_path: Path, share: int
) -> None:
    start = tmp_path / "start"
    tiny_llama().save_pretrained(start)
    composition = build(StrategyChoice.model_validate({"distill": {"share": 0}}))
    model = tiny_llama()
    rules = composition.rules(model, context_in(tmp_path, start))
    found = step_of(model, rules=rules, replayed_every=share)
    teachers = found["embedding"] - ACCUMULATION
    assert (teachers > 0) == (share > 0)  # every micro-batch where all are replayed
    assert teachers == ACCUMULATION or share != 1
    assert_it_hardly_waits(found, ACCUMULATION + teachers)


def test_so_does_a_step_with_adapters(tiny_llama: Build, step_of: Build, tmp_path: Path) -> None:
    composition = build(StrategyChoice.model_validate({"lora": {"rank": 2}}))
    model = composition.wrap(tiny_llama(), context_in(tmp_path))
    trainable = composition.trainable(model, context_in(tmp_path))
    assert_it_hardly_waits(step_of(model, trainable=trainable))


def test_so_does_a_step_on_the_models_own_answers(tiny_llama: Build, step_of: Build, examples: Build) -> None:
    on_policy = OnPolicy(lambda _: examples(40), ReverseDivergence(tiny_llama()))
    assert_it_hardly_waits(step_of(tiny_llama(seed=1), on_policy=on_policy), 2 * ACCUMULATION)
