"""The loss without whole logits: the value, gradients and refusals of the one with them, and less memory."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn import LinearCrossEntropyOptions, functional
from torch.utils._python_dispatch import TorchDispatchMode

from lingraft.models import fused_loss
from lingraft.models.fused_loss import LogitsChangedError, can_be_fused, liger_version, linear_cross_entropy
from lingraft.models.loss import collate, supervised_loss

Build = Callable[..., Any]
WIDTH, VOCABULARY = 32, 500


@pytest.fixture
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hold the logits of seven tokens of 500, or of 72 of a vocabulary of 48."""
    monkeypatch.setattr(fused_loss, "_AT_ONCE", 7 * VOCABULARY)


def head_and_tokens(tokens: int, kind: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, WIDTH, generator=generator).to(kind).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator).to(kind).requires_grad_()
    bias = torch.randn(VOCABULARY, generator=generator).to(kind).requires_grad_()
    return hidden, weight, torch.randint(0, VOCABULARY, (tokens,), generator=generator), bias


def gradients_of(total: Tensor, *inputs: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(total / 3, inputs))


@pytest.mark.parametrize("tokens", [1, 7, 90])
def test_it_is_torchs_own_in_float32(few_at_once: None, tokens: int) -> None:
    hidden, weight, targets, bias = head_and_tokens(tokens)
    expected = functional.linear_cross_entropy(
        hidden, weight, targets, linear_bias=bias, reduction="sum", options=LinearCrossEntropyOptions()
    )
    found = linear_cross_entropy(hidden, weight, targets, bias)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for own, others in zip(
        gradients_of(found, hidden, weight, bias), gradients_of(expected, hidden, weight, bias), strict=True
    ):
        torch.testing.assert_close(own, others, rtol=1e-5, atol=1e-5)


def test_in_bf16_its_sum_is_of_float32_where_torchs_own_is_not(few_at_once: None) -> None:
    hidden, weight, targets, _ = head_and_tokens(300, torch.bfloat16)
    exact = [one.detach().float().requires_grad_() for one in (hidden, weight)]
    logits = functional.linear(hidden, weight).float()  # what both begin with
    expected = functional.cross_entropy(logits, targets, reduction="sum")
    found = linear_cross_entropy(hidden, weight, targets, None)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    torchs = functional.linear_cross_entropy(
        hidden, weight, targets, reduction="sum", options=LinearCrossEntropyOptions()
    )
    assert torchs.dtype == torch.bfloat16
    assert torchs.item() != pytest.approx(expected.item(), rel=1e-4)
    in_float32 = functional.cross_entropy(functional.linear(*exact), targets, reduction="sum")
    for own, others in zip(
        gradients_of(found, hidden, weight), gradients_of(in_float32, *exact), strict=True
    ):
        assert torch.linalg.norm(own.float() - others) <= 0.02 * torch.linalg.norm(others)


def loss_and_gradients(
    model: Any, batch: Any, arithmetic: AbstractContextManager[object], *, fused: bool
) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    total, count = supervised_loss(model, batch, with_auxiliary=True, arithmetic=arithmetic, fused=fused)
    (total / count).backward()  # type: ignore[no-untyped-call]
    return total.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bf16", "bf16_pure"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "mixtral"])  # tied, untied, with a router's loss
def test_a_models_loss_and_gradients_are_those_with_logits(
    few_at_once: None,
    tiny_configuration: Build,
    examples: Build,
    architecture: str,
    precision: str,
    frozen: bool,
) -> None:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    more = {"output_router_logits": True} if architecture == "mixtral" else {}
    model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        tiny_configuration(architecture, VOCABULARY, **more)
    )
    if precision == "bf16_pure":
        model.to(torch.bfloat16)
    model.get_output_embeddings().weight.requires_grad_(not frozen)
    assert can_be_fused(model)
    batch = collate(examples(8))
    autocast = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext()
    expected, theirs = loss_and_gradients(model, batch, autocast, fused=False)
    found, own = loss_and_gradients(model, batch, autocast, fused=True)
    assert found == pytest.approx(expected, rel=1e-5)
    assert own.keys() == theirs.keys()
    tolerance = 1e-5 if precision == "float32" else 0.03
    for name, gradient in theirs.items():
        assert own[name].dtype == gradient.dtype
        difference = torch.linalg.norm((own[name] - gradient).float())
        assert difference <= tolerance * torch.linalg.norm(gradient.float()) + 1e-8, name
    assert "forward" not in vars(model.get_output_embeddings())


def test_a_batch_that_teaches_nothing_has_zero_gradients(tiny_llama: Build, examples: Build) -> None:
    model = tiny_llama()
    batch = dict(collate(examples(2)))
    for name in ("positions", "targets", "rows"):
        batch[name] = batch[name][:0]
    total, count = supervised_loss(model, batch, fused=True)
    total.backward()  # type: ignore[no-untyped-call]
    assert (total.item(), count) == (0.0, 0)
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the most elements of any result."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def test_the_logits_are_never_whole(few_at_once: None) -> None:
    hidden, weight, targets, _ = head_and_tokens(90)
    with Largest() as largest:  # type: ignore[no-untyped-call]
        linear_cross_entropy(hidden, weight, targets, None).backward()  # type: ignore[no-untyped-call]
    assert largest.elements == max(7 * VOCABULARY, weight.numel())
    with Largest() as largest:  # type: ignore[no-untyped-call]
        torch.autograd.backward(functional.cross_entropy(functional.linear(hidden, weight), targets))
    assert largest.elements == 90 * VOCABULARY


def test_heads_that_are_no_plain_matrix_are_left_alone(tiny_llama: Build, tiny_configuration: Build) -> None:
    from transformers import AutoModelForCausalLM

    assert can_be_fused(tiny_llama())
    assert not can_be_fused(
        AutoModelForCausalLM.from_config(tiny_configuration("gemma2", 48))  # type: ignore[no-untyped-call]
    )
    replaced = tiny_llama()
    head = replaced.get_output_embeddings()
    head.forward = head.forward  # as accelerate does, to move what a layer is given to its device
    assert not can_be_fused(replaced)
    adapted = tiny_llama(tied=False)
    adapted.get_output_embeddings().weight.requires_grad_(False)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("warnings.warn", lambda *_, **__: None)  # PEFT reads a renamed property
        assert not can_be_fused(get_peft_model(adapted, LoraConfig(r=2, target_modules=["lm_head"])))


@pytest.mark.parametrize("architecture", ["gemma2", "cohere", "granite"])
def test_a_model_that_changes_its_logits_is_found_out(architecture: str, examples: Build) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        architecture, vocab_size=48, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, head_dim=16, pad_token_id=0, logits_scaling=3.0,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    assert not can_be_fused(model)
    with pytest.raises(LogitsChangedError):
        supervised_loss(model, collate(examples(2)), fused=True)


def test_ligers_kernel_is_for_cards() -> None:
    assert liger_version(torch.device("cpu")) is None


_WITH_LIGER = """
import sys, torch
from lingraft.models import fused_loss

fused_loss.liger_version = lambda device: "interpreted"
fused_loss._AT_ONCE = 7 * 500
generator = torch.Generator().manual_seed(0)
hidden, weight = (torch.randn(n, 32, generator=generator, requires_grad=True) for n in (40, 500))
targets = torch.randint(0, 500, (40,), generator=generator)
found = fused_loss.linear_cross_entropy(hidden, weight, targets, None)
expected = torch.nn.functional.cross_entropy(hidden @ weight.T, targets, reduction="sum")
torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
for own, other in zip(*(torch.autograd.grad(one / 3, (hidden, weight)) for one in (found, expected))):
    torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-5)
"""


@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or importlib.util.find_spec("liger_kernel") is None,
    reason="Liger's kernel is Triton's: install liger-kernel and triton",
)
def test_ligers_kernel_gives_the_same() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _WITH_LIGER],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
