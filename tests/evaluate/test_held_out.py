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
from lingraft.evaluate.held_out import (
    bits_per_character,
    held_out_losses,
    item_of,
    mean_bits,
    read_losses,
    write_losses,
)
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


def test_losses_come_back_as_they_were_written_also_none_at_all(
    tiny: tuple[Any, Any], tmp_path: Path
) -> None:
    for rows in (examples(), []):
        losses = held_out_losses(*tiny, rows)
        write_losses(tmp_path / "held_out.parquet", losses)
        assert read_losses(tmp_path / "held_out.parquet") == losses
        assert len(losses) == len(rows)


def test_the_loss_of_each_example_equals_a_naive_computation(tiny: tuple[Any, Any]) -> None:
    rows = examples()
    for row, loss in zip(rows, held_out_losses(*tiny, rows, tokens_per_batch=512), strict=True):
        assert (loss.item, loss.language, loss.group) == (item_of(row), row.language, row.group)
        assert loss.bits / loss.characters == pytest.approx(naive(*tiny, [row]), rel=1e-5)


def test_one_language_has_the_same_figure_in_the_scores_and_in_the_matrix(tiny: tuple[Any, Any]) -> None:
    rows = [row for row in examples() if row.language == "de"]
    assert mean_bits([held_out_losses(*tiny, rows)]).value == pytest.approx(
        bits_per_character(*tiny, rows)["de"].value
    )
