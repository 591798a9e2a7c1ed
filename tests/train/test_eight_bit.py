"""8-bit moments on bf16 weights: where the steps lead, what they hold, and the same bits when resumed."""

from __future__ import annotations

import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.state_dict_loader import load
from torch.utils._python_dispatch import TorchDispatchMode
from torchao.optim.subclass_8bit import OptimState8bit  # type: ignore[import-untyped]
from transformers import LlamaConfig, LlamaForCausalLM

from lingraft.config.schema import Training
from lingraft.errors import ConfigError
from lingraft.strategies.base import Anchor, TrainingRules
from lingraft.train import saved_state
from lingraft.train.eight_bit import EightBitAdamW, nearest_codes
from lingraft.train.phase import Progress, train_phase, with_resolved_precision

Build = Callable[..., Any]
TRAINING = Training(
    learning_rate=1e-4,
    epochs=5,
    tokens_per_batch=64,
    optimizer="adamw_8bit",
    weight_decay=0.01,
    max_length=32,
)


def a_model(**options: Any) -> Any:
    """Two layers whose matrices have blocks of 256 elements and at least 4,096, as 8-bit moments ask for."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        pad_token_id=None,
        **options,
    )
    model: Any = LlamaForCausalLM(config)
    return model.bfloat16().float()  # the weights that all begin with


def movement(model: torch.nn.Module, start: torch.nn.Module) -> Tensor:
    pairs = zip(model.parameters(), start.parameters(), strict=True)
    return torch.cat([(after - before).detach().double().flatten() for after, before in pairs])


def test_sixty_steps_lead_within_a_percent_where_float32_adamw_leads(
    examples: Build, tokenizer: Any, tmp_path: Path
) -> None:
    moved, steps = {}, {}
    for optimizer, precision in (("adamw", "float32"), ("adamw_8bit", "auto"), ("adamw", "bf16_pure")):
        model = a_model()
        training = TRAINING.model_copy(update={"optimizer": optimizer, "precision": precision, "epochs": 10})
        folder = tmp_path / f"{optimizer}-{precision}"
        outcome = train_phase(model, tokenizer, examples(24), training, folder=folder)
        moved[precision] = movement(model, a_model())
        steps[precision] = outcome.steps
    assert min(steps.values()) >= 60
    exact = moved.pop("float32")
    for precision, own in moved.items():
        # Rounding scatters each weight; along the way that float32 goes it must not lead astray.
        assert float(own @ exact / (exact @ exact)) == pytest.approx(1, abs=0.01), precision


def test_a_weight_whose_gradients_end_goes_on_as_with_exact_moments() -> None:
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(64, 256, generator=generator).bfloat16()
    weights = [
        torch.nn.Parameter(torch.zeros(64, 256, dtype=kind)) for kind in (torch.bfloat16, torch.float32)
    ]
    optimizers: list[torch.optim.Optimizer] = [
        EightBitAdamW(weights[:1], lr=1e-3),
        torch.optim.AdamW(weights[1:], lr=1e-3, weight_decay=0),
    ]
    for step in range(4):  # the rows of a token that the first step alone meets
        for weight, optimizer in zip(weights, optimizers, strict=True):
            weight.grad = gradient.to(weight.dtype) * (step == 0)
            optimizer.step()
    assert optimizers[0].state[weights[0]]["exp_avg_sq"].codes.dtype == torch.uint8
    assert float((weights[0].float() - weights[1]).detach().abs().max()) < 2e-3


def test_a_matrix_holds_two_bytes_of_moments_for_each_weight_and_a_short_vector_float32() -> None:
    model = a_model().bfloat16()
    optimizer = EightBitAdamW(model.parameters(), lr=1e-3)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    matrix = optimizer.state[model.model.layers[0].mlp.up_proj.weight]
    count = 64 * 128
    held = sum(
        getattr(moment, part).nbytes
        for moment in (matrix["exp_avg"], matrix["exp_avg_sq"])
        for part in ("codes", "scale")
    )
    assert held == pytest.approx(2.03 * count, rel=0.01)
    short = optimizer.state[model.model.norm.weight]
    assert {short["exp_avg"].dtype, short["exp_avg_sq"].dtype} == {torch.float32}


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches how many bytes the largest tensor has that an operation makes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(kind not in (Tensor, torch.nn.Parameter) for kind in types):
            return NotImplemented  # a moment of 8 bits: what it does is seen
        made = func(*args, **(kwargs or {}))
        if type(made) is Tensor:
            self.found = max(self.found, made.nbytes)
        return made


def test_temporaries_of_a_large_tensor_stay_small_on_a_processor() -> None:
    parameter = torch.nn.Parameter(torch.zeros(4_000_000, dtype=torch.bfloat16))
    parameter.grad = torch.ones_like(parameter)
    optimizer = EightBitAdamW([parameter], lr=1e-3)
    optimizer.step()
    views = parameter.nbytes  # of the whole
    with Largest() as largest:
        optimizer.step()
    assert (
        8 * 2**18 <= largest.found <= views
    )  # whole numbers of 64 bits for a piece, which the codes are found by
    assert len(set(parameter[:1000].tolist())) > 1


@pytest.mark.parametrize("signed", [True, False])
def test_codes_are_those_that_torchaos_own_search_finds(signed: bool) -> None:
    from torchao.optim.quant_utils import quantize_8bit_with_qmap  # type: ignore[import-untyped]
    from torchao.optim.subclass_8bit import get_qmap_signed, get_qmap_unsigned

    generator = torch.Generator().manual_seed(0)
    values = torch.rand(1 << 18, generator=generator) * 10 ** (-8 * torch.rand(1 << 18, generator=generator))
    if signed:
        values *= torch.randint(0, 2, values.shape, generator=generator) * 2 - 1
    values[:4] = torch.tensor([0.0, 1.0, -1.0 if signed else 1e-12, -0.0])
    qmap = torch.tensor(get_qmap_signed() if signed else get_qmap_unsigned())
    expected, found = quantize_8bit_with_qmap(values, qmap).int(), nearest_codes(values, signed=signed)
    assert (found != expected).sum() <= 2  # halfway between two numbers but for rounding
    assert (qmap[found] - values).abs().max() <= (qmap[expected] - values).abs().max()


class KilledError(Exception):
    pass


@pytest.mark.parametrize("has_room", [True, False])
def test_killed_and_continued_under_every_rule_it_ends_with_the_same_bits(
    examples: Build, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_room: bool
) -> None:
    written, read = [], []

    def write(tensors: dict[str, Tensor], path: Path) -> None:
        numbers = [one() for one in floats]
        written.append(sum(one.numel() for one in numbers if one is not None))
        save_file(tensors, path)

    def read_into(tensors: dict[str, Tensor], **options: Any) -> None:
        read.append(sum(one.numel() for one in tensors.values()))
        load(tensors, **options)

    def dequantize(moment: Any) -> Tensor:
        numbers: Tensor = exact(moment)
        floats.append(weakref.ref(numbers))
        return numbers

    floats: list[weakref.ref[Tensor]] = []
    exact = OptimState8bit.dequantize
    if not has_room:
        monkeypatch.setattr(saved_state, "_SHARE_OF_FREE", 0.0)
    monkeypatch.setattr(saved_state, "_BYTES_AT_ONCE", 1)  # each tensor in a file of its own
    monkeypatch.setattr(saved_state, "save_file", write)
    monkeypatch.setattr(saved_state, "load", read_into)
    monkeypatch.setattr(OptimState8bit, "dequantize", dequantize)
    mask = torch.zeros(128, 64, dtype=torch.bool)
    mask[::2] = True
    masked, slow, pulled = (
        f"model.layers.{place}.weight" for place in ("0.mlp.up_proj", "1.mlp.up_proj", "1.mlp.gate_proj")
    )
    rules = TrainingRules(
        frozen_mask={masked: mask},
        learning_rates={slow: 0.1},
        anchors=(Anchor(strength=0.1, names=frozenset({pulled})),),
    )
    training = TRAINING.model_copy(update={"save_every": 2, "accumulation": 2, "learning_rate": 1e-3})

    def train(model: Any, folder: str, on_progress: Callable[[Progress], None] | None = None) -> Any:
        names = [name for name, _ in model.named_parameters() if "norm" not in name]
        return train_phase(
            model,
            tokenizer,
            examples(),
            training,
            trainable=names,
            folder=tmp_path / folder,
            rules=rules,
            on_progress=on_progress,
        )

    def kill(progress: Progress) -> None:
        if progress.step == 5:
            raise KilledError

    start, undisturbed, interrupted, continued = (a_model(attention_dropout=0.1) for _ in range(4))
    expected = train(undisturbed, "one")
    with pytest.raises(KilledError):
        train(interrupted, "two", kill)
    found = train(continued, "two")
    assert found.resumed_from == 4
    assert found.losses == expected.losses
    before, after = dict(start.named_parameters()), dict(undisturbed.named_parameters())
    for name, parameter in continued.named_parameters():
        assert torch.equal(parameter, after[name]), name
        assert torch.equal(parameter, before[name]) == ("norm" in name), name
    assert torch.equal(after[masked][::2], before[masked][::2])
    full, tenth = ((after[name] - before[name]).abs().mean().item() for name in (pulled, slow))
    assert tenth < 0.3 * full
    # On an accelerator there is no room for float32 moments of all weights.
    largest = max(parameter.numel() for parameter in after.values())
    assert 0 < max(written) <= 2 * largest
    assert 2 * largest < max(read) < 3.1 * largest  # a weight, its two moments and their scales


@pytest.mark.parametrize("precision", ["bf16", "float32"])
def test_a_precision_with_float32_weights_is_refused_with_what_to_write(precision: str) -> None:
    training = TRAINING.model_copy(update={"precision": precision})
    with pytest.raises(ConfigError, match=rf"precision is '{precision}'; write precision: bf16_pure"):
        with_resolved_precision(training)
    assert with_resolved_precision(TRAINING).precision == "bf16_pure"


def test_what_a_result_depends_on_names_the_optimizer_only_where_it_is_another() -> None:
    assert TRAINING.compared()["optimizer"] == "adamw_8bit"
    assert "optimizer" not in Training().compared()


def test_importing_it_prints_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "import lingraft.train.eight_bit"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
