"""What `lingraft show data` says of a data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lingraft.config.schema import DataSource
from lingraft.data.summary import DataSummary, summarise_data
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


def test_without_english_rows_worldbooks_english_is_compared_with_and_progress_is_reported(
    tmp_path: Path, tiny_model: Path
) -> None:
    lines = ['{"prompt": "uno", "completion": "dos", "language": "es"}'] * 30
    (tmp_path / "x.jsonl").write_text("\n".join(lines), encoding="utf-8")
    steps: list[tuple[str, int, int]] = []
    summary = summarise_data(
        DataSource(source="x.jsonl"),
        load_tokenizer(tiny_model),
        base_folder=tmp_path,
        on_progress=lambda *step: steps.append(step),
    )
    cost = summary.languages["es"]
    assert cost.tokens_per_word == cost.tokens / 60
    assert cost.words_against_english is not None
    assert (cost.basis, cost.content_against_english is not None) == ("worldbook", True)
    assert [step for step in steps if step[1] == step[2]] == [("read", 30, 30), ("tokenise", 30, 30)]


SPANISH = "¿Cuál es la capital de Francia y cuántos habitantes tiene hoy en día la ciudad?"
GERMAN = "Wie heißt die Hauptstadt von Frankreich, und wie viele Menschen leben heute dort?"


def summary_of(folder: Path, tiny_model: Path, rows: list[dict[str, str]], **options: Any) -> DataSummary:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    spec = DataSource.model_validate({"source": "rows.jsonl", "max_broken_share": 0.9, **options})
    return summarise_data(spec, load_tokenizer(tiny_model), base_folder=folder)


def test_what_a_filter_would_mend_is_counted_and_warned_of_with_the_filter(
    tmp_path: Path, tiny_model: Path
) -> None:
    answers = ["one<|endoftext|>", "two</s>", "two</s>", "three", "", "four"]
    rows = [{"prompt": f"{answer} please", "completion": answer, "language": "en"} for answer in answers]
    found = summary_of(tmp_path, tiny_model, rows)
    assert (found.rows, found.without_answer, found.duplicates) == (6, 1, 1)
    assert found.special_tokens == {"</s>": 2, "<|endoftext|>": 1}
    text = "\n".join(found.warnings)
    assert "3 rows spell special tokens in their answers ('</s>', '<|endoftext|>')" in text
    assert "`filters: {special_tokens: strip}` (--special-tokens strip)" in text
    assert "A study refuses this set: 17% of its rows are broken, and at most 1% may be" in text
    assert "`max_broken_share: 0.17`" in text
    assert "1 rows have no answer and count as broken: `filters: {no_answer: true}`" in text
    assert "1 rows say what an earlier one says: `filters: {near_duplicates: 1}`" in text
    filters = {"special_tokens": "strip", "no_answer": True, "near_duplicates": 1}
    mended = summary_of(tmp_path, tiny_model, rows, filters=filters)
    assert mended.filtered == {"exact_duplicate": 1, "no_answer": 1, "special_tokens_stripped": 3}
    assert (mended.broken, mended.duplicates, mended.special_tokens, mended.warnings) == (0, 0, {}, ())


def test_a_language_that_rows_do_not_say_is_guessed_with_what_to_write(
    tmp_path: Path, tiny_model: Path
) -> None:
    rows = [{"prompt": SPANISH, "completion": f"{SPANISH} {n}"} for n in range(9)]
    found = summary_of(tmp_path, tiny_model, rows)
    assert found.guessed_languages == {"es": 1.0}
    assert any(
        "100% es. If that is right, write `language: es` (--language es)" in one for one in found.warnings
    )
    mixed = [*rows, *({"prompt": GERMAN, "completion": f"{GERMAN} {n}"} for n in range(7))]
    found = summary_of(tmp_path, tiny_model, mixed)
    assert list(found.guessed_languages) == ["es", "de"]
    assert any("`language: es` with `filters: {language: true}` keeps one" in one for one in found.warnings)
    assert summary_of(tmp_path, tiny_model, rows, language="es").guessed_languages == {}
    short = summary_of(tmp_path, tiny_model, [{"prompt": "a", "completion": "b"}])
    assert (short.guessed_languages, [*short.languages]) == ({}, ["und"])


def test_a_language_that_the_text_is_clearly_not_in_is_warned_of(tmp_path: Path, tiny_model: Path) -> None:
    """Such as of a file my.jsonl, whose name is the tag of Burmese."""
    rows = [{"prompt": SPANISH, "completion": f"{SPANISH} {n}"} for n in range(9)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    for name in ("my", "es"):
        (tmp_path / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    tokenizer = load_tokenizer(tiny_model)
    mine, spanish, both = (
        summarise_data(DataSource(source=source), tokenizer, base_folder=tmp_path)
        for source in ("my.jsonl", "es.jsonl", "{my,es}.jsonl")
    )
    advised = "write `language: es` (--language es), or leave them out by `filters: {language: true}`"
    assert [one for one in mine.warnings if "look like es" in one and advised in one]
    assert not [one for one in spanish.warnings if "look like" in one]
    assert [one for one in both.warnings if "Rows of my" in one and "right, leave them out" in one]


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
