"""Frozen weights held in bf16 while a phase computes in it: the same results, half the memory, the same bits after."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from lingraft.config.schema import Training
from lingraft.models.compute import Compute
from lingraft.models.loading import load_for_training, load_model
from lingraft.models.text_parts import reached_by_text
from lingraft.train import phase
from lingraft.train.held import held_weights
from lingraft.train.phase import train_phase

Build = Callable[..., Any]
TRAINING = Training(learning_rate=1e-2, epochs=1, tokens_per_batch=128, precision="bf16")


def a_model(configuration: Any, *, in_bf16: bool) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(configuration)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for parameter in model.parameters():  # also norms, which begin at 1
            parameter.add_(0.01 * torch.randn_like(parameter))
    return (model.bfloat16().float() if in_bf16 else model).eval()


def kept(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("in_bf16", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", "mixtral"])
def test_training_beside_bf16_weights_is_bit_for_bit_that_beside_float32_ones(
    tiny_configuration: Build,
    examples: Build,
    tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
    in_bf16: bool,
) -> None:
    configuration = tiny_configuration(architecture, 48)
    found: dict[str, Any] = {}
    types: set[torch.dtype] = set()

    def train(kind: str) -> dict[str, Tensor]:
        model = a_model(configuration, in_bf16=in_bf16)
        trainable = {name for name in reached_by_text(model) if ".1." in name}

        def look(_: Any) -> None:
            types.update(
                own.dtype
                for name, own in model.named_parameters()
                if name not in trainable and own.dim() == 2
            )

        before = kept(model)
        outcome = train_phase(
            model,
            tokenizer,
            examples(),
            TRAINING,
            trainable=trainable,
            folder=tmp_path / kind,
            on_progress=look if kind == "held" else None,
        )
        found[kind] = outcome.losses
        for name, parameter in model.named_parameters():
            assert parameter.dtype == torch.float32
            assert torch.equal(parameter, before[name]) == (name not in trainable), name
        return kept(model)

    held = train("held")
    assert torch.bfloat16 in types
    if in_bf16 and architecture == "llama":
        assert types == {torch.bfloat16}  # the embeddings too, which are the head
    as_it_is: Callable[..., AbstractContextManager[None]] = partial(held_weights)
    monkeypatch.setattr(
        phase, "held_weights", lambda *given, **_: as_it_is(*given, divided=True)
    )  # float32, as of a divided model
    whole = train("float32")
    assert found["held"] == found["float32"]
    assert all(torch.equal(held[name], whole[name]) for name in whole)


@pytest.mark.parametrize("precision", ["bf16", "bf16_pure"])
def test_what_bf16_cannot_hold_comes_back_and_what_it_holds_is_not_kept_twice(
    tiny_configuration: Build, precision: Any
) -> None:
    compute = Compute(precision, torch.device("cpu"), torch.bfloat16, torch.bfloat16)
    model = a_model(tiny_configuration("llama", 48), in_bf16=False)
    model.requires_grad_(requires_grad=False)
    frozen, masked, trained = (f"model.layers.{layer}.mlp.up_proj.weight" for layer in ("0", "1", "1"))
    trained = trained.replace("up_proj", "down_proj")
    parameters = dict(model.named_parameters())
    for name in (masked, trained):
        parameters[name].requires_grad_()
    storage, before = parameters[frozen].data_ptr(), kept(model)
    mask = torch.zeros(48, 1, dtype=torch.bool)
    mask[:24] = True
    with held_weights(model, compute, {masked: mask}):
        assert parameters[frozen].dtype == torch.bfloat16
        assert parameters[trained].dtype == (torch.bfloat16 if precision == "bf16_pure" else torch.float32)
        with torch.no_grad():
            for name in (masked, trained):
                rows = slice(24, None) if name == masked else slice(None)
                parameters[name][rows] += 1
    assert parameters[frozen].data_ptr() == storage  # the very tensor: of a loaded model its file, mapped
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        if name not in (masked, trained):
            assert torch.equal(parameter, before[name]), name
    assert torch.equal(parameters[masked][:24], before[masked][:24])
    assert torch.allclose(parameters[masked][24:], before[masked][24:] + 1, atol=0.01)


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_a_model_stored_in_bf16_is_loaded_so_and_computes_what_the_float32_one_does(
    tiny_configuration: Build, tmp_path: Path, architecture: str
) -> None:
    a_model(tiny_configuration(architecture, 48), in_bf16=True).bfloat16().save_pretrained(tmp_path)
    low, whole = load_for_training(tmp_path), load_model(tmp_path)
    assert {parameter.dtype for parameter in low.parameters()} == {torch.bfloat16}
    buffers = dict(whole.named_buffers())
    for name, buffer in low.named_buffers():
        assert torch.equal(buffer, buffers[name]), name  # Gemma scales its embeddings by one
    for parameter in low.parameters():
        parameter.data = parameter.data.float()
    ids = torch.arange(12)[None]
    with torch.inference_mode():
        assert torch.equal(low(ids).logits, whole(ids).logits)


def test_what_is_not_stored_in_bf16_alone_is_loaded_in_float32(
    tiny_configuration: Build, tmp_path: Path
) -> None:
    model = a_model(tiny_configuration("llama", 48), in_bf16=False).bfloat16()
    model.model.norm.float()
    model.save_pretrained(tmp_path)
    assert {parameter.dtype for parameter in load_for_training(tmp_path).parameters()} == {torch.float32}
