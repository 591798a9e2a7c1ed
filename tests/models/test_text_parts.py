"""Text reaches what a loss on it depends on; the model is left as it was."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from lingraft.models.text_parts import reached_by_text


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bloom", "mixtral", "qwen3_moe"])
def test_text_reaches_every_parameter_of_a_model_of_text(
    tiny_configuration: Callable[..., Any], architecture: str
) -> None:
    model: Any = AutoModelForCausalLM.from_config(tiny_configuration(architecture, 60))  # type: ignore[no-untyped-call]
    names = [name for name, _ in model.named_parameters()]
    frozen = model.get_parameter(names[0])
    frozen.requires_grad_(False)
    model.train()
    assert reached_by_text(model) == set(names)
    assert model.training
    assert not frozen.requires_grad
    assert all(own.grad is None for own in model.parameters())


def test_text_reaches_no_tower_nor_what_leads_from_it(tiny_configuration: Callable[..., Any]) -> None:
    model: Any = AutoModelForCausalLM.from_config(tiny_configuration("gemma3", 60))  # type: ignore[no-untyped-call]
    silent = {name for name, _ in model.named_parameters()} - reached_by_text(model)
    assert silent == {
        name for name, _ in model.named_parameters() if "vision_tower" in name or "projector" in name
    }
    assert silent


class _Sparse(nn.Module):
    """A model of one layer with two experts as modules, of which text takes the first, and an adapter for sound."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(3, 4)
        layer: Any = nn.Module()
        layer.experts = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])
        self.layers = nn.ModuleList([layer])
        self.hearing = nn.ModuleList([nn.Linear(4, 4)])

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:  # noqa: ARG002
        layer: Any = self.layers[0]
        return SimpleNamespace(logits=layer.experts[0](self.embed(input_ids)))


def test_an_expert_that_a_few_tokens_are_not_sent_to_is_reached_where_another_is() -> None:
    model = _Sparse()
    silent = {name for name, _ in model.named_parameters()} - reached_by_text(model)
    assert silent == {"hearing.0.weight", "hearing.0.bias"}
