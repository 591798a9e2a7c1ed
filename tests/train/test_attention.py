from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lingraft.train import attention
from lingraft.train.attention import GROUPED, grouped, grouped_attention

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}


class Layer(nn.Module):
    is_causal = True
    num_key_value_groups = 3


Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def tensors(length: int) -> Inputs:
    generator = torch.Generator().manual_seed(length)

    def drawn(heads: int) -> torch.Tensor:
        return torch.randn(2, heads, length, 4, generator=generator).requires_grad_()

    return drawn(6), drawn(2), drawn(2)


def gradients(attend: Callable[..., Any], inputs: Inputs, **options: Any) -> list[torch.Tensor]:
    out = attend(Layer(), *inputs, None, **options)[0]
    weights = torch.linspace(-1, 1, out.numel()).view(out.shape)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), inputs)]


@pytest.mark.parametrize("length", [1, 2, 17])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_it_attends_as_scaled_dot_product_attention_does_forward_and_backward(
    length: int, scaling: float | None
) -> None:
    inputs = tensors(length)
    ours = gradients(grouped, inputs, scaling=scaling)
    theirs = gradients(sdpa_attention_forward, inputs, scaling=scaling)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_what_it_does_not_cover_goes_to_torchs_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def instead(*_: Any, **__: Any) -> tuple[str, None]:
        seen.append("torch")
        return "attended", None

    monkeypatch.setattr(attention, "sdpa_attention_forward", instead)
    monkeypatch.setattr(attention, "LONGEST", 8)
    short, long = tensors(4), tensors(9)
    mask = torch.ones(2, 1, 4, 4, dtype=torch.bool)
    assert grouped(Layer(), *short, mask)[0] == "attended"
    assert grouped(Layer(), *short, None, dropout=0.1)[0] == "attended"
    assert grouped(Layer(), *short, None, is_causal=False)[0] == "attended"
    assert grouped(Layer(), *long, None)[0] == "attended"
    assert len(seen) == 4
    assert grouped(Layer(), *short, None)[0] != "attended"


@pytest.mark.parametrize("config", [LlamaConfig(**SIZES), Qwen2Config(**SIZES)], ids=["llama", "qwen2"])
def test_a_models_loss_is_the_same_inside(config: Any) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    ids = torch.randint(0, 40, (3, 12))
    outside = model(input_ids=ids, labels=ids).loss
    with grouped_attention(model):
        assert model.config._attn_implementation == GROUPED
        inside = model(input_ids=ids, labels=ids).loss
    assert model.config._attn_implementation == "sdpa"
    torch.testing.assert_close(inside, outside, rtol=1e-6, atol=1e-6)


def test_a_models_own_choice_of_attention_stays() -> None:
    model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        LlamaConfig(**SIZES), attn_implementation="eager"
    )
    with grouped_attention(model):
        assert model.config._attn_implementation == "eager"


def test_the_attention_is_put_back_after_an_error() -> None:
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES))  # type: ignore[no-untyped-call]
    with pytest.raises(ZeroDivisionError), grouped_attention(model):
        raise ZeroDivisionError
    assert model.config._attn_implementation == "sdpa"
