"""Tiny random models and random examples of unequal lengths."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from lingraft.data.chat import EncodedExample

VOCABULARY = 48
_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}

torch.set_num_threads(1)


@pytest.fixture
def tiny_llama() -> Callable[..., LlamaForCausalLM]:
    def build(*, tied: bool = True, seed: int = 0, **options: Any) -> LlamaForCausalLM:
        torch.manual_seed(seed)
        config = LlamaConfig(**_SHAPE, tie_word_embeddings=tied, initializer_range=0.2, **options)
        model: LlamaForCausalLM = LlamaForCausalLM(config).train(mode=False)
        return model

    return build


@pytest.fixture
def tiny_mixtral() -> Callable[..., MixtralForCausalLM]:
    def build(*, output_router_logits: bool = True) -> MixtralForCausalLM:
        torch.manual_seed(0)
        config = MixtralConfig(
            **_SHAPE,
            num_local_experts=4,
            num_experts_per_tok=2,
            router_aux_loss_coef=0.5,
            output_router_logits=output_router_logits,
            initializer_range=0.2,
        )
        model: MixtralForCausalLM = MixtralForCausalLM(config).train(mode=False)
        return model

    return build


@pytest.fixture
def examples() -> Callable[..., list[EncodedExample]]:
    """Random prompts with random answers, 4 to 24 tokens long."""

    def build(count: int = 12, seed: int = 0, longest: int = 24) -> list[EncodedExample]:
        generator = random.Random(seed)
        encoded = []
        for number in range(count):
            length = generator.randint(4, longest)
            prompt = generator.randint(1, length - 1)
            ids = tuple(generator.randrange(VOCABULARY) for _ in range(length))
            supervised = (False,) * prompt + (True,) * (length - prompt)
            encoded.append(EncodedExample(f"example-{number}", "en", ids, supervised, 0))
        return encoded

    return build


@pytest.fixture
def tokenizer() -> Any:
    """All that training asks of a tokenizer."""
    return SimpleNamespace(pad_token_id=0)
