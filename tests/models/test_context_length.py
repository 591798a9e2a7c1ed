"""Rows that are longer than a model with learned positions can read: every place that reads them stops in time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, BloomConfig, GPT2Config, GPT2LMHeadModel, LlamaConfig, MistralConfig

from lingraft.config.load import load_study
from lingraft.data.chat import encode_example
from lingraft.data.example import Example, Message
from lingraft.evaluate.held_out import bits_by_language, bits_per_character, held_out_losses
from lingraft.models.compute import compute_for
from lingraft.models.context_length import context_length_of
from lingraft.models.generation import Sampling
from lingraft.models.loading import load_model, load_tokenizer
from lingraft.representation.drift import drift_of_models
from lingraft.representation.prompts import Prompt
from lingraft.strategies.base import Context
from lingraft.strategies.calibration import calibration_of
from lingraft.strategies.replay_rows import ReplaySettings, make_replay
from lingraft.study.events import Watcher
from lingraft.study.result import CellResult
from lingraft.study.run import run_study

POSITIONS = 64


@pytest.fixture(scope="module")
def learned(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random GPT-2 of 64 learned positions, with the tiny model's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    torch.manual_seed(0)
    ends: dict[str, Any] = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=POSITIONS,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_inner=64,
            **ends,
        )
    )
    folder = tmp_path_factory.mktemp("learned") / "gpt2"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def row(answer: str, number: int) -> Example:
    return Example(
        f"row-{number}", (Message("user", "Say it."), Message("assistant", answer)), "en", f"g{number}", "x"
    )


def rows() -> list[Example]:
    """Three that fit and two that do not."""
    return [row(text, i) for i, text in enumerate(["yes", "no", "maybe", "a b c " * 100, "kings " * 60])]


def test_the_length_is_the_text_models_whatever_its_field_is_called() -> None:
    assert context_length_of(GPT2Config(n_positions=64)) == 64
    assert context_length_of(LlamaConfig(max_position_embeddings=128)) == 128
    assert context_length_of(MistralConfig(max_position_embeddings=256, sliding_window=16)) == 256
    assert context_length_of(BloomConfig()) is None


def test_held_out_rows_beyond_the_positions_are_left_out_and_counted(learned: Path) -> None:
    model, tokenizer = load_model(learned), load_tokenizer(learned)
    lengths = [len(encode_example(one, tokenizer, 4096).input_ids) for one in rows()]
    fitting = sum(length <= POSITIONS for length in lengths)
    assert fitting == 3
    losses = held_out_losses(model, tokenizer, rows())
    assert len(losses) == fitting
    assert bits_by_language(losses, rows())["en"].left_out == 2
    assert losses == held_out_losses(model, tokenizer, rows()[:3])
    with_limit = bits_per_character(model, tokenizer, rows(), max_length=lengths[0])
    assert with_limit["en"].n == sum(length <= lengths[0] for length in lengths)


def test_a_row_of_exactly_all_positions_is_measured(learned: Path) -> None:
    model, tokenizer = load_model(learned), load_tokenizer(learned)
    fitting = [row("a" * length, length) for length in range(1, 80)]
    lengths = {len(encode_example(one, tokenizer, 4096).input_ids): one for one in fitting}
    assert {POSITIONS, POSITIONS + 1} <= set(lengths)
    assert len(held_out_losses(model, tokenizer, [lengths[POSITIONS], lengths[POSITIONS + 1]])) == 1


def test_a_rotary_models_own_limit_holds_too(tiny_model: Path) -> None:
    model, tokenizer = load_model(tiny_model), load_tokenizer(tiny_model)
    model.config.max_position_embeddings = POSITIONS
    assert len(held_out_losses(model, tokenizer, rows())) == 3


def test_drift_reads_no_more_of_a_prompt_than_the_model_can(learned: Path) -> None:
    prompts = [Prompt(one.messages[1:] and (Message("user", one.answer),), "en") for one in rows()]
    found = drift_of_models([str(learned), str(learned)], prompts)
    assert found.truncated == 2


def test_calibration_rows_are_cut_where_the_model_ends(learned: Path, tmp_path: Path) -> None:
    context = Context(
        base=None, previous=learned, previous_data=rows(), english=(), seed=0, folder=tmp_path, cache=tmp_path
    )
    found = calibration_of("ewc", load_tokenizer(learned), context, tokens=10_000)
    assert max(len(one.input_ids) for one in found.rows) == POSITIONS


def test_replay_stops_where_the_model_ends(learned: Path, tmp_path: Path) -> None:
    settings = ReplaySettings(Sampling(max_new_tokens=8), 0, compute_for("float32"))
    made = make_replay(learned, 1, settings, tmp_path)  # a random model writes no answer that ends
    assert made.dropped


class Noting(Watcher):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def noted(self, message: str) -> None:
        self.notes.append(message)


def test_a_study_trains_and_evaluates_a_model_with_few_positions(learned: Path, tmp_path: Path) -> None:
    for tag in ("en", "de"):
        said = [
            f"{word} {tag}" for word in ("yes", "no", "maybe", "kings", "one", "two", "ten", "a b c " * 90)
        ] * 2
        lines = [json.dumps({"instruction": f"Say it {i}.", "output": text}) for i, text in enumerate(said)]
        (tmp_path / f"{tag}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    file = tmp_path / "study.yaml"
    file.write_text(
        f"""
name: short
model: {learned}
phases:
  - name: one
    data: {{english: {{source: en.jsonl, language: en}}}}
  - name: two
    data: {{german: {{source: de.jsonl, language: de}}}}
held_out: 8
measures: [drift]
contamination: null
training: {{precision: float32, tokens_per_batch: 512}}
evaluate:
  task_ability: [{{task: "worldbook:lookup", limit: 4, max_new_tokens: 8}}]
  language_ability: [{{task: "worldbook:lookup", limit: 4, max_new_tokens: 8}}]
""",
        encoding="utf-8",
    )
    watcher = Noting()
    result = run_study(load_study(file), runs=tmp_path / "runs", base_folder=tmp_path, watcher=watcher)
    assert [type(cell) for cell in result.cells] == [CellResult]
    assert any("reads 64 tokens at once" in note for note in watcher.notes)
    assert any("left out of the" in note for note in watcher.notes)
