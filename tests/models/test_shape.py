"""FLOPs by formula are those that torch counts of the same passes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lingraft.models.loss import SupervisedHead
from lingraft.models.shape import shape_of
from lingraft.models.weights import empty_model

MODELS = Path(__file__).resolve().parents[2] / "benchmarks" / "models"  # their config.json as published
ROWS, LENGTH, LEARNED = 3, 20, 7


def counted(model: Any, trainable: frozenset[str]) -> tuple[int, int]:
    """Return the FLOPs of a forward pass, and of forward and backward pass, as torch counts matrix products."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)
    counter = FlopCounterMode(display=False)
    with counter, SupervisedHead(model, torch.arange(LEARNED)):
        logits = model(input_ids=torch.ones((ROWS, LENGTH), dtype=torch.long), use_cache=False).logits
        forward = counter.get_total_flops()
        logits.sum().backward()
    return forward, counter.get_total_flops()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("what", ["all", "upper layer", "head", "matrices of one kind"])
def test_flops_are_those_of_the_matrix_products_that_run(
    tiny_llama: Callable[..., Any], tied: bool, what: str
) -> None:
    model = tiny_llama(tied=tied, attn_implementation="eager")
    names = [name for name, _ in model.named_parameters()]
    trainable = frozenset(
        {
            "all": names,
            "upper layer": [name for name in names if ".layers.1." in name],
            "head": [name for name in names if name.startswith("lm_head") or "model.norm" in name],
            "matrices of one kind": [name for name in names if "up_proj" in name],
        }[what]
    )
    forward, both = counted(model, trainable)
    shape = shape_of(model, trainable)
    sizes = (ROWS * LENGTH, ROWS * LENGTH**2, LEARNED)
    assert shape.forward_flops(*sizes) == forward
    # Of the lowest part that trains torch leaves out what nothing below it asks for: less than a layer's share.
    layer = 2 * shape.matrices / shape.layers * sizes[0] + 8 * shape.attention * sizes[1]
    planned = shape.training_flops(*sizes)
    assert both <= planned < both + layer + 2 * shape.head * LEARNED
    if what == "all":
        assert planned == both


def test_a_mixture_computes_with_the_experts_that_a_token_is_sent_to(
    tiny_mixtral: Callable[..., Any],
) -> None:
    shape = shape_of(tiny_mixtral())
    experts = sum(
        one.numel()
        for name, one in tiny_mixtral().named_parameters()
        if ".experts." in name and one.dim() > 1
    )
    others = sum(
        one.numel()
        for name, one in tiny_mixtral().named_parameters()
        if ".layers." in name and ".experts." not in name and one.dim() > 1
    )
    assert shape.matrices == others + experts / 2, "two of four experts"


def test_flops_of_a_mixture_are_those_of_the_matrix_products_that_run(
    tiny_mixtral: Callable[..., Any],
) -> None:
    model = tiny_mixtral()
    model.config._attn_implementation = model.config._experts_implementation = "eager"
    names = frozenset(name for name, _ in model.named_parameters())
    shape = shape_of(model)
    sizes = (ROWS * LENGTH, ROWS * LENGTH**2, LEARNED)
    assert counted(model, names) == (shape.forward_flops(*sizes), shape.training_flops(*sizes))


@pytest.mark.parametrize(
    ("name", "billions", "active"),
    [
        ("llama-3-8b", 8.03, 8.03),
        ("llama-3-70b", 70.6, 70.6),
        ("mixtral-8x7b", 46.7, 12.9),  # 47B and 13B in arXiv 2401.04088
        ("qwen3-30b-a3b", 30.5, 3.3),  # as its card has it
    ],
)
def test_published_models_have_the_parameters_that_their_makers_state(
    name: str, billions: float, active: float
) -> None:
    model = empty_model(MODELS / name)
    assert model is not None
    shape = shape_of(model)
    assert shape.parameters / 1e9 == pytest.approx(billions, abs=0.05)
    assert (shape.matrices + 2 * shape.head) / 1e9 == pytest.approx(active, abs=0.06)


def test_experts_are_known_by_their_tensors_where_no_name_says_so() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    configuration = AutoConfig.for_model(
        "jetmoe", vocab_size=48, hidden_size=32, intermediate_size=16, num_hidden_layers=2, kv_channels=8,
        num_key_value_heads=4, num_local_experts=8, num_experts_per_tok=2,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(configuration)  # type: ignore[no-untyped-call]
    of_experts = [one.numel() for name, one in model.named_parameters() if one.dim() == 3]
    others = [one.numel() for name, one in model.named_parameters() if ".layers." in name and one.dim() == 2]
    assert len(of_experts) == 2 * 4
    assert shape_of(model).matrices == sum(others) + sum(of_experts) / 4


@pytest.mark.parametrize("architecture", ["qwen3", "gemma2", "gpt2", "gpt_neox", "phi3", "bloom", "gemma3"])
def test_a_shape_is_read_of_many_architectures(
    tiny_configuration: Callable[..., Any], architecture: str
) -> None:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_configuration(architecture, 48))  # type: ignore[no-untyped-call]
    shape = shape_of(model)
    assert (shape.layers, shape.reached_layers, shape.hidden, shape.heads) == (2, 2, 32, 4)
    assert shape.head == 32 * 48
    assert shape.intermediate == 48
    assert 0 < shape.matrices <= shape.parameters


def test_a_model_without_attention_has_no_heads() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    configuration = AutoConfig.for_model("mamba", vocab_size=48, hidden_size=32, num_hidden_layers=2)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(configuration)  # type: ignore[no-untyped-call]
    shape = shape_of(model)
    assert (shape.layers, shape.heads, shape.attention, shape.keys) == (2, 0, 0, 0)
    assert shape.forward_flops(10.0, 100.0, 0.0) == 2 * shape.matrices * 10


def test_checkpointing_runs_the_layers_once_more(tiny_llama: Callable[..., Any]) -> None:
    shape = shape_of(tiny_llama())
    sizes = (100.0, 2000.0, 10.0)
    more = shape.training_flops(*sizes, checkpointing=True) - shape.training_flops(*sizes)
    assert more == shape.forward_flops(*sizes) - 2 * shape.head * sizes[2]
