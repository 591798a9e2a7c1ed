"""What training holds is planned as torch holds it: saved tensors one by one, gradients and moments by their number."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import pytest
import torch

from lingraft.models.compute import compute_for
from lingraft.models.loss import SupervisedHead
from lingraft.models.shape import shape_of
from lingraft.train.attention import grouped_attention
from lingraft.train.memory_plan import LargestBatch, activation_bytes, evaluation_memory, training_memory

BATCH = LargestBatch(rows=4, length=48, supervised=40)


def saved_bytes(model: Any, precision: str) -> int:
    """Return the bytes of what autograd keeps of a forward pass, without the model's own weights."""
    own = {one.untyped_storage().data_ptr() for one in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in own:
            kept[place] = tensor
        return tensor

    arithmetic = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext()
    model.train()
    with (
        grouped_attention(model),
        SupervisedHead(model, torch.arange(BATCH.supervised)),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        arithmetic,
    ):
        logits = model(
            input_ids=torch.ones((BATCH.rows, BATCH.length), dtype=torch.long), use_cache=False
        ).logits
        found = sum(one.untyped_storage().nbytes() for one in kept.values())
    assert logits.shape == (BATCH.supervised, logits.shape[1])
    return found


@pytest.mark.parametrize("precision", ["float32", "bf16", "bf16_pure"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "mistral", "qwen3", "olmo2"])
def test_activations_are_those_that_autograd_keeps(
    tiny_configuration: Callable[..., Any], architecture: str, precision: Any
) -> None:
    from transformers import AutoModelForCausalLM

    configuration = tiny_configuration(architecture, 64, hidden_size=128, intermediate_size=256)
    model = AutoModelForCausalLM.from_config(configuration)  # type: ignore[no-untyped-call]
    if precision == "bf16_pure":
        model.to(torch.bfloat16)
    planned = activation_bytes(shape_of(model), BATCH, precision, on_processor=True)
    assert planned == pytest.approx(saved_bytes(model, precision), rel=0.16)
    assert activation_bytes(shape_of(model), BATCH, precision, on_processor=False) < planned, (
        "flash attention"
    )


def test_a_plan_counts_gradients_and_moments_of_what_trains(tiny_llama: Callable[..., Any]) -> None:
    model = tiny_llama(tied=False)
    size = sum(one.numel() for one in model.parameters())
    upper = [name for name, _ in model.named_parameters() if ".layers.1." in name]
    trained = sum(one.numel() for name, one in model.named_parameters() if name in upper)
    whole = training_memory(shape_of(model), BATCH, "float32", on_processor=True, base=7)
    half = training_memory(shape_of(model, upper), BATCH, "float32", on_processor=True)
    assert (whole.base, whole.weights, whole.gradients, whole.optimiser) == (7, 4 * size, 4 * size, 8 * size)
    assert (half.weights, half.gradients, half.optimiser) == (4 * size, 4 * trained, 8 * trained)
    assert half.activations < whole.activations
    assert whole.total == sum(asdict(whole).values())
    divided = training_memory(shape_of(model), BATCH, "float32", on_processor=True, shared_by=2, held=100)
    assert (divided.weights, divided.optimiser) == (2 * size + 100, 4 * size)


def test_checkpointing_keeps_what_enters_each_layer_and_one_layer(
    tiny_configuration: Callable[..., Any],
) -> None:
    from transformers import AutoModelForCausalLM

    configuration = tiny_configuration("llama", 64, num_hidden_layers=12)
    model = AutoModelForCausalLM.from_config(configuration)  # type: ignore[no-untyped-call]
    shape = shape_of(model)
    plain, again = (
        training_memory(shape, BATCH, "float32", on_processor=False, checkpointing=one).activations
        for one in (False, True)
    )
    assert again < plain / 3


def test_an_evaluation_holds_keys_and_values_of_its_largest_batch(tiny_llama: Callable[..., Any]) -> None:
    shape = shape_of(tiny_llama())
    plan = evaluation_memory(shape, compute_for("float32"), rows=5, length=60)
    assert plan.keys_values == 4 * 5 * 60 * 2 * shape.keys * 2
    assert plan.weights == 4 * shape.parameters
    assert (plan.gradients, plan.optimiser, plan.base) == (0, 0, 0)
