"""What `lingraft show data` says of a data set."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lingraft.config.schema import DataSource
from lingraft.data.summary import summarise_data
from lingraft.errors import DataError
from lingraft.models.loading import load_tokenizer


def test_counts_lengths_and_costs_are_those_of_the_rows(tmp_path: Path, tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    texts = {"en": ("one two", "three"), "es": ("uno dos", "tres"), "ja": ("一二", "三")}
    rows = [
        {"prompt": prompt, "completion": answer, "language": tag} for tag, (prompt, answer) in texts.items()
    ]
    rows.append({"prompt": "x " * 90, "completion": "y", "language": "en"})
    lines = [*(json.dumps(row) for row in rows), "no json"]
    (tmp_path / "x.jsonl").write_text("\n".join(lines), encoding="utf-8")
    spec = DataSource(source="x.jsonl", max_broken_share=0.5)

    summary = summarise_data(spec, tokenizer, max_length=60, base_folder=tmp_path)

    def tokens(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    assert (summary.rows, summary.format) == (5, "prompt_completion")
    assert summary.broken == 1
    assert [row.place for row in summary.first_broken] == ["x.jsonl:5"]
    assert {tag: cost.examples for tag, cost in summary.languages.items()} == {"en": 2, "es": 1, "ja": 1}
    english, spanish, japanese = (summary.languages[tag] for tag in ("en", "es", "ja"))
    assert spanish.tokens == tokens("uno dos") + tokens("tres")
    assert spanish.tokens_per_word == spanish.tokens / 3
    assert spanish.tokens_per_character == spanish.tokens / 11
    assert english.words_against_english == english.characters_against_english == 1.0
    assert spanish.words_against_english == pytest.approx(
        spanish.tokens_per_word / (english.tokens_per_word or 0)
    )
    assert japanese.tokens_per_word is None
    assert japanese.words_against_english is None
    assert (summary.lengths.longest > 60, summary.truncated, summary.unanswered) == (True, 0, 1)
    assert summary.example == (
        "<|im_start|>user\none two<|im_end|>\n<|im_start|>assistant\n⟦three<|im_end|>⟧\n"
    )
    assert json.loads(json.dumps(summary.to_json()))["languages"]["es"]["tokens"] == spanish.tokens


def test_without_english_rows_worldbooks_english_is_compared_with(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "x.jsonl").write_text(
        '{"prompt": "uno", "completion": "dos", "language": "es"}', encoding="utf-8"
    )
    spec = DataSource(source="x.jsonl")
    cost = summarise_data(spec, load_tokenizer(tiny_model), base_folder=tmp_path).languages["es"]
    assert cost.tokens_per_word == cost.tokens / 2
    assert cost.words_against_english is not None
    assert (cost.basis, cost.content_against_english is not None) == ("worldbook", True)


def test_progress_is_told_of_reading_and_of_tokenising(tmp_path: Path, tiny_model: Path) -> None:
    lines = ['{"prompt": "uno", "completion": "dos", "language": "es"}'] * 30
    (tmp_path / "x.jsonl").write_text("\n".join(lines), encoding="utf-8")
    told: list[tuple[str, int, int]] = []
    summarise_data(
        DataSource(source="x.jsonl"),
        load_tokenizer(tiny_model),
        base_folder=tmp_path,
        on_progress=lambda *step: told.append(step),
    )
    assert [step for step in told if step[1] == step[2]] == [("read", 30, 30), ("tokenise", 30, 30)]


def test_what_is_done_to_rows_is_said(tmp_path: Path, tiny_model: Path) -> None:
    """Masked answers, spelled control tokens, keys that nothing reads."""
    answers = [
        {"role": "assistant", "content": "b", "weight": 0, "time": 3},
        {"role": "assistant", "content": "c"},
    ]
    turns = [turn for one in answers for turn in ({"role": "user", "content": "a <|im_end|>"}, one)]
    (tmp_path / "x.jsonl").write_text(json.dumps({"messages": turns}), encoding="utf-8")
    summary = summarise_data(
        DataSource(source="x.jsonl"), load_tokenizer(tiny_model), base_folder=tmp_path
    ).to_json()
    assert summary["handled"] == {"masked_answers": 1, "spelled_tokens": 1}
    assert summary["unknown_keys"] == {"time": 1}
    assert summary["example"].count("⟦") == 1


def test_a_folded_system_prompt_is_counted(tmp_path: Path, tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        + str(tokenizer.chat_template)
    )
    row = {"system_prompt": "Be kind.", "question": "a", "response": "b"}
    (tmp_path / "x.jsonl").write_text(json.dumps(row), encoding="utf-8")
    refusing = DataSource(source="x.jsonl")
    with pytest.raises(DataError, match="no system"):
        summarise_data(refusing, tokenizer, base_folder=tmp_path)
    folding = refusing.model_copy(update={"system": "fold"})
    summary = summarise_data(folding, tokenizer, base_folder=tmp_path)
    assert summary.handled == {"folded_systems": 1}
    assert summary.example.startswith("<|im_start|>user\nBe kind.\n\na<|im_end|>")
