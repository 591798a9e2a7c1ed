"""Bits per character against a slow computation per example."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lingraft.data.chat import encode_example
from lingraft.data.example import Example, Message
from lingraft.data.worldbook import load_items
from lingraft.evaluate.held_out import bits_per_character
from lingraft.models.loading import load_model, load_tokenizer


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> tuple[Any, Any]:
    return load_model(tiny_model, dtype=torch.float32), load_tokenizer(tiny_model)


def examples() -> list[Example]:
    return [item.example for tag in ("en", "de") for item in load_items("lookup", tag, "report")[:6]]


def naive(model: Any, tokenizer: Any, rows: list[Example]) -> float:
    nats = 0.0
    for row in rows:
        encoded = encode_example(row, tokenizer, 4096)
        with torch.no_grad():
            logits = model(torch.tensor([encoded.input_ids])).logits[0].double()
        log_probabilities = torch.log_softmax(logits, dim=-1)
        for place in range(1, len(encoded.input_ids)):
            if encoded.supervised[place]:
                nats -= float(log_probabilities[place - 1, encoded.input_ids[place]])
    return nats / math.log(2) / sum(len(row.answer) for row in rows)


def test_bits_equal_a_naive_computation_per_language(tiny: tuple[Any, Any]) -> None:
    found = bits_per_character(*tiny, examples(), tokens_per_batch=256)
    for tag in ("en", "de"):
        own = [row for row in examples() if row.language == tag]
        assert found[tag].value == pytest.approx(naive(*tiny, own), rel=1e-5)
        assert found[tag].low <= found[tag].value <= found[tag].high
        assert (found[tag].n, found[tag].left_out) == (6, 0)
        assert found[tag].characters == sum(len(row.answer) for row in own)


def test_the_batch_size_does_not_matter(tiny: tuple[Any, Any]) -> None:
    one = bits_per_character(*tiny, examples(), tokens_per_batch=1)
    many = bits_per_character(*tiny, examples(), tokens_per_batch=4096)
    assert one["de"].value == pytest.approx(many["de"].value, rel=1e-5)


def test_too_long_examples_are_left_out_and_counted(tiny: tuple[Any, Any]) -> None:
    rows = examples()
    long_answer = Example(
        "long", (Message("user", "Why?"), Message("assistant", "so " * 600)), "de", "long", "test"
    )
    long_prompt = Example(
        "prompt", (Message("user", "why " * 900), Message("assistant", "So.")), "de", "prompt", "test"
    )
    found = bits_per_character(*tiny, [*rows, long_answer, long_prompt], max_length=400)
    assert (found["de"].n, found["de"].left_out, found["en"].left_out) == (6, 2, 0)
    assert found["de"].value == bits_per_character(*tiny, rows, max_length=400)["de"].value
    assert bits_per_character(*tiny, [long_prompt], max_length=400) == {}


def test_the_model_keeps_its_mode(tiny: tuple[Any, Any]) -> None:
    model, tokenizer = tiny
    model.train(True)
    bits_per_character(model, tokenizer, examples()[:2])
    assert model.training
    model.train(False)
    assert bits_per_character(model, tokenizer, []) == {}
