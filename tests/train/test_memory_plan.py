"""What training holds is planned as torch holds it: saved tensors one by one, gradients and moments by their number."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch

from lingraft.models.compute import compute_for
from lingraft.models.loss import SupervisedHead
from lingraft.models.shape import shape_of
from lingraft.train.attention import grouped_attention
from lingraft.train.memory_plan import (
    LargestBatch,
    Setup,
    activation_bytes,
    checkpoint_bytes,
    evaluation_memory,
    host_memory,
    training_memory,
)

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
    shape = shape_of(model)
    planned = activation_bytes(shape, BATCH, precision, on_processor=True)
    copies = 2 * (shape.matrices + shape.head) if precision == "bf16" else 0
    assert planned + copies == pytest.approx(saved_bytes(model, precision), rel=0.16)
    assert activation_bytes(shape, BATCH, precision, on_processor=False) < planned, "flash attention"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT reads a renamed name
@pytest.mark.parametrize("precision", ["float32", "bf16", "bf16_pure"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_adapters_keep_inputs_of_their_own(
    tiny_configuration: Callable[..., Any], architecture: str, precision: Any
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    configuration = tiny_configuration(architecture, 64, hidden_size=128, intermediate_size=256)
    model = AutoModelForCausalLM.from_config(configuration)  # type: ignore[no-untyped-call]
    if precision != "float32":
        model.to(torch.bfloat16)
    wrapped: Any = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, one in wrapped.named_parameters():
        if "lora_" in name:
            one.data = one.data.to(torch.bfloat16 if precision == "bf16_pure" else torch.float32)
    trained = [name for name, one in wrapped.named_parameters() if one.requires_grad]
    shape = shape_of(wrapped, trained)
    assert shape.ranks == 7 * 4
    planned = activation_bytes(shape, BATCH, precision, on_processor=True)
    assert planned == pytest.approx(saved_bytes(wrapped, precision), rel=0.16)


def test_a_plan_counts_gradients_and_moments_of_what_trains(tiny_llama: Callable[..., Any]) -> None:
    model = tiny_llama(tied=False)
    size = sum(one.numel() for one in model.parameters())
    upper = [name for name, _ in model.named_parameters() if ".layers.1." in name]
    trained = sum(one.numel() for name, one in model.named_parameters() if name in upper)
    float32 = Setup("float32", on_processor=True)
    whole = training_memory(shape_of(model), BATCH, float32, base=7)
    half = training_memory(shape_of(model, upper), BATCH, float32)
    assert (whole.weights, whole.gradients, whole.optimiser) == (4 * size, 4 * size, 8 * size)
    assert (half.weights, half.gradients, half.optimiser) == (4 * size, 4 * trained, 8 * trained)
    assert half.activations < whole.activations
    assert whole.base - half.base == 7
    assert whole.total == sum(asdict(whole).values())
    divided = training_memory(
        shape_of(model), BATCH, replace(float32, processes=2, sharded=True), base=7, held=100
    )
    assert (divided.weights, divided.optimiser, divided.held) == (2 * size, 4 * size, 50)
    assert divided.gathered > 0


def test_bytes_of_a_trained_parameter_are_those_of_its_mode(tiny_configuration: Callable[..., Any]) -> None:
    from transformers import AutoModelForCausalLM

    configuration = tiny_configuration("llama", 64, hidden_size=256, num_hidden_layers=8)
    configuration.tie_word_embeddings = False
    with torch.device("meta"):
        shape = shape_of(AutoModelForCausalLM.from_config(configuration))  # type: ignore[no-untyped-call]
    one = LargestBatch(1, 1, 1)

    def each(setup: Setup) -> float:
        plan = training_memory(shape, one, replace(setup, micro_batches=2))
        return (plan.weights + plan.copies + plan.gradients + plan.optimiser) / shape.parameters

    assert each(Setup("float32")) == pytest.approx(16)
    assert each(Setup("bf16")) == pytest.approx(18, abs=0.05), "the embedding is looked up, and not copied"
    assert each(Setup("bf16_pure")) == pytest.approx(12)
    assert each(Setup("bf16_pure", "adamw_8bit")) == pytest.approx(6.03, abs=0.01)
    assert checkpoint_bytes(shape, Setup("bf16")) == 12 * shape.parameters
    assert checkpoint_bytes(shape, Setup("bf16_pure", "adamw_8bit")) == 10 * shape.parameters
    lora = replace(shape, trained=0, trained_matrices=0.0, trains_head=False)
    small = replace(lora, in_four_bits=int(lora.matrices))
    for own, expected in ((lora, 2.0), (small, 0.5159)):
        plan = training_memory(own, one, Setup("bf16"))
        assert plan.weights / lora.parameters == pytest.approx(expected, abs=0.1)
        assert (plan.copies, plan.gradients, plan.optimiser) == (0, 0, 0)


def test_processes_with_all_weights_hold_buckets_and_those_with_pieces_gather_layers(
    tiny_llama: Callable[..., Any],
) -> None:
    shape = shape_of(tiny_llama())
    alone, all_weights, pieces = (
        training_memory(shape, BATCH, Setup("bf16", processes=count, sharded=sharded))
        for count, sharded in ((1, False), (8, False), (8, True))
    )
    assert alone.gathered == 0
    assert all_weights.gathered == 4 * shape.trained
    assert all_weights.weights == 8 * pieces.weights
    assert pieces.optimiser == shape.trained
    assert pieces.copies == 0, "what travels is in bf16 already"
    size = shape.parameters
    each_loads = host_memory(shape, Setup("bf16", processes=8))
    assert (each_loads.loading, each_loads.copy, each_loads.saved) == (32 * size, 12 * size, 4 * size)
    one_loads = host_memory(shape, Setup("bf16", processes=8, sharded=True))
    assert (one_loads.certain, one_loads.total) == (4 * size, 12 * size), "the copy is of a checkpoint"
    assert host_memory(shape, Setup("bf16", processes=8, sharded=True), saves=False).total == 4 * size
    lora = replace(shape, trained=10)
    assert host_memory(lora, Setup("bf16")).total == 4 * size, "merged into weights in float32"


def test_logits_of_many_positions_are_made_in_portions_unless_a_strategy_reads_them(
    tiny_llama: Callable[..., Any],
) -> None:
    shape = replace(shape_of(tiny_llama()), vocabulary=128_256, head=128_256 * 4096)
    assert shape.has_plain_head
    batch = LargestBatch(rows=8, length=1024, supervised=8192)
    whole = training_memory(shape, batch, Setup("bf16", needs_logits=True))
    fused = training_memory(shape, batch, Setup("bf16"))
    assert whole.logits == 2 * 2 * 8192 * 128_256
    assert fused.logits == pytest.approx(2 * (1 << 26) + (4 + 2) * shape.head, rel=0.01)
    frozen = training_memory(replace(shape, trains_head=False), batch, Setup("bf16"))
    assert frozen.logits == pytest.approx(2 * (1 << 26), rel=0.01)
    few = LargestBatch(rows=1, length=1024, supervised=100)
    assert training_memory(shape, few, Setup("bf16")).logits == 2 * 2 * 100 * 128_256


def test_checkpointing_keeps_what_enters_each_layer_and_one_layer(
    tiny_configuration: Callable[..., Any],
) -> None:
    from transformers import AutoModelForCausalLM

    configuration = tiny_configuration("llama", 64, num_hidden_layers=12)
    model = AutoModelForCausalLM.from_config(configuration)  # type: ignore[no-untyped-call]
    shape = shape_of(model)
    plain, again = (
        training_memory(shape, BATCH, Setup("float32", checkpointing=one)).activations
        for one in (False, True)
    )
    assert again < plain / 3


def test_an_evaluation_holds_keys_and_values_of_its_largest_batch(tiny_llama: Callable[..., Any]) -> None:
    shape = shape_of(tiny_llama())
    plan = evaluation_memory(shape, compute_for("float32"), rows=5, length=60)
    assert plan.keys_values == 4 * 5 * 60 * 2 * shape.keys * 2
    assert plan.weights == 4 * shape.parameters
    assert (plan.gradients, plan.optimiser, plan.base) == (0, 0, 0)
