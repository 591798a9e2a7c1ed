"""What a tokenizer makes of a language: counted by hand where that is possible, on real parallel text where it lies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lingraft.data.example import Example, Message
from lingraft.data.tokenizer_cost import MEASURED_ROWS, cost_warnings, language_costs, partial_tokens
from lingraft.errors import ModelError
from lingraft.models.loading import load_tokenizer

UDHR = ("en", "de", "es", "fr", "pt", "id", "vi", "ru", "ar", "hi", "th", "ja", "ko")


def bytes_and_words(words: list[str]) -> Any:
    """A byte-level tokenizer that knows the bytes and some words."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {one: number for number, one in enumerate(alphabet)}
    merges = []
    for word in words:
        known = word[0]
        for letter in word[1:]:
            merges.append((known, letter))
            known += letter
            vocabulary.setdefault(known, len(vocabulary))
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="z")  # type: ignore[no-untyped-call]


def example(number: int, language: str, question: str, answer: str, group: str | None = None) -> Example:
    turns = (Message("user", question), Message("assistant", answer))
    return Example(f"{language}{number}", turns, language, group or f"{language}{number}", "set")


def test_tokens_words_and_partial_tokens_are_those_counted_by_hand() -> None:
    tokenizer = bytes_and_words(["the"])
    costs = language_costs([example(0, "en", "the", "the a"), example(0, "th", "ก", "aก")], tokenizer)
    english, thai = costs["en"], costs["th"]
    assert (english.tokens, english.tokens_per_word, english.tokens_per_character) == (4, 4 / 3, 0.5)
    assert english.partial_share == 0.0
    # ก has three bytes, each a token that is no character; the letter a is one.
    assert (thai.tokens, thai.tokens_per_word, thai.tokens_per_character) == (7, None, 7 / 3)
    assert thai.partial_share == pytest.approx(6 / 7)
    assert thai.characters_against_english == pytest.approx(7 / 3 / 0.5)


def test_sentencepieces_byte_tokens_and_the_unknown_token_are_partial() -> None:
    pieces = ["<unk>", "</s>", "▁a", "<0xE0>", "<0x41>", "ก"]
    core = Tokenizer(
        models.WordLevel({piece: number for number, piece in enumerate(pieces)}, unk_token="<unk>")
    )
    core.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core, unk_token="<unk>", eos_token="</s>"
    )
    found = dict(zip(pieces, partial_tokens(tokenizer).tolist(), strict=True))
    assert {piece for piece, partial in found.items() if partial} == {"<unk>", "<0xE0>", "<0x41>"}


def test_the_replacement_character_as_a_token_is_whole() -> None:
    tokenizer = bytes_and_words(
        ["ï¿½"]
    )  # the three bytes of U+FFFD, in the alphabet of byte-level tokenizers
    (number,) = tokenizer("\ufffd")["input_ids"]
    assert not partial_tokens(tokenizer)[number]
    assert partial_tokens(tokenizer)[:number].any()


def test_parallel_groups_of_the_data_give_the_cost_of_the_same_content() -> None:
    tokenizer = bytes_and_words(["the"])
    parallel = [
        one
        for n in range(30)
        for one in (example(n, "en", "the", "the", f"g{n}"), example(n, "x-long", "abcd", "ab", f"g{n}"))
    ]
    alone = [example(n, "x-long", "a" * 50, "b") for n in range(100, 130)]
    cost = language_costs([*parallel, *alone], tokenizer)["x-long"]
    assert (cost.content_against_english, cost.basis, cost.parallel_groups) == (3.0, "groups", 30)
    few = language_costs(parallel[:20], tokenizer)["x-long"]
    assert (few.content_against_english, few.basis) == (None, None)


def test_worldbook_is_compared_with_where_the_data_are_not_parallel(tiny_model: Path) -> None:
    cost = language_costs([example(0, "de-AT", "Hallo", "Servus")], load_tokenizer(tiny_model))["de-AT"]
    assert (cost.basis, cost.parallel_groups) == ("worldbook", 200)
    assert cost.content_against_english is not None
    assert cost.content_against_english > 1.2  # the tokenizer was made of English


def test_many_rows_are_measured_on_some_spread_over_all() -> None:
    tokenizer = bytes_and_words([])
    rows = [example(n, "en", "a", "b" * (1 if n < 3000 else 3)) for n in range(6000)]
    cost = language_costs(rows, tokenizer)["en"]
    assert (cost.examples, cost.measured) == (6000, MEASURED_ROWS)
    assert cost.tokens == MEASURED_ROWS * 3


def test_a_language_of_more_than_four_times_english_is_warned_of_and_no_other() -> None:
    tokenizer = bytes_and_words(["the"])
    rows = [
        one
        for n in range(30)
        for one in (
            example(n, "en", "the", "the", f"g{n}"),
            example(n, "x-four", "abcd", "abcd", f"g{n}"),
            example(n, "x-five", "abcde", "abcde", f"g{n}"),
        )
    ]
    (warning,) = cost_warnings(language_costs(rows, tokenizer))
    assert warning.startswith(
        "x-five costs 5.0 times the tokens of English for the same content (30 groups of"
    )


def test_without_parallel_text_the_warning_says_that_characters_were_compared() -> None:
    tokenizer = bytes_and_words(["the"])
    rows = [example(0, "en", "the", "the"), example(0, "x-none", "ก", "ก")]
    (warning,) = cost_warnings(language_costs(rows, tokenizer))
    assert "per character (no parallel text" in warning


def udhr(folder: Path, language: str) -> list[dict[str, Any]]:
    """The preamble and 30 articles, in the same order in every language."""
    lines = (folder / "udhr" / f"{language}.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def test_the_declaration_of_human_rights_costs_what_smollm2_is_known_to_need(shared_data: Path) -> None:
    """Real parallel text in 13 languages; the figures stand in docs/data.md."""
    try:
        tokenizer = load_tokenizer("embedded:smollm2-135m")
    except ModelError as error:
        pytest.skip(f"the embedded model is absent: {error}")
    rows = [
        example(number, language, article["title"] or "-", "\n".join(article["text"]), f"article {number}")
        for language in UDHR
        for number, article in enumerate(udhr(shared_data, language))
    ]
    costs = language_costs(rows, tokenizer)
    ratios = {tag: cost.content_against_english or 0.0 for tag, cost in costs.items()}
    assert {cost.basis for cost in costs.values()} == {"groups"}
    assert ratios["en"] == 1.0
    assert all(1.7 < ratios[tag] < 2.6 for tag in ("de", "es", "fr", "pt", "id"))
    assert all(3.0 < ratios[tag] < 4.0 for tag in ("ar", "ja"))
    assert all(4.0 < ratios[tag] < 6.5 for tag in ("ru", "ko", "vi", "hi"))
    assert ratios["th"] == max(ratios.values())
    # Per character Japanese looks almost three times as dear as it is: its characters say more.
    assert costs["ja"].characters_against_english > 2 * ratios["ja"]
    assert {w.split()[0] for w in cost_warnings(costs)} == {"ru", "ko", "vi", "hi", "th"}
    assert costs["th"].partial_share > 0.8 > 0.01 > costs["en"].partial_share


def test_a_spelled_control_token_costs_its_characters(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    costs = language_costs([example(0, "en", "a", "<|im_end|>")], tokenizer)
    pieces = tokenizer("<|im_end", add_special_tokens=False)["input_ids"]
    assert costs["en"].tokens > 1 + len(pieces)
