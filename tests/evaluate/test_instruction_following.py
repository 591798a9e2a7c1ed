"""The English instruction-following set: every row can be scored, alike every time, and is nobody else's."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import nltk
import pytest
from langdetect import DetectorFactory

from lingraft.errors import DataError, EvaluationError
from lingraft.evaluate.lm_eval_compat import ifeval_verifiers
from lingraft.evaluate.own_task import own_task
from lingraft.evaluate.task_runs import NEEDS_PUNKT
from lingraft.evaluate.tasks.instructions.task import (
    NEW_TOKENS,
    Row,
    read_instructions,
    row_problem,
    score_response,
)

SCORE = "prompt_level_strict_acc"
ROWS = read_instructions()
# By type: arguments, an answer that follows, and one that does not.
BY_HAND: dict[str, tuple[dict[str, Any], str, str]] = {
    "change_case:english_capital": (
        {},
        "WASH YOUR HANDS WITH SOAP AND WATER BEFORE YOU EAT, AND TELL YOUR BROTHER TO DO THE SAME THING.",
        "Wash your HANDS with soap and water before you eat, and tell your brother to do the same thing.",
    ),
    "change_case:english_lowercase": (
        {},
        "the kitchen is closed on sundays and on mondays.",
        "The kitchen is closed on Sundays.",
    ),
    "combination:repeat_prompt": (
        {"prompt_to_repeat": "What do owls eat?"},
        "What do owls eat? Mostly mice.",
        "You ask: What do owls eat? Mostly mice.",
    ),
    "combination:two_responses": ({}, "First one.\n******\nSecond one.", "First one.\n***\nSecond one."),
    "detectable_content:number_placeholders": (
        {"num_placeholders": 2},
        "Dear [name], see you in [place].",
        "Dear [name], see you there.",
    ),
    "detectable_content:postscript": (
        {"postscript_marker": "P.S."},
        "We are well.\nP.S. It rains.",
        "We are well. It rains.",
    ),
    "detectable_format:constrained_response": ({}, "My answer is maybe.", "Maybe."),
    "detectable_format:json_format": (
        {},
        '```json\n{"author": "Shakespeare"}\n```',
        'Here it is: {"author": "Shakespeare"}',
    ),
    "detectable_format:multiple_sections": (
        {"section_spliter": "Part", "num_sections": 2},
        "Part 1\nIt begins.\nPart 2\nIt ends.",
        "Part 1\nIt begins and ends.",
    ),
    "detectable_format:number_bullet_lists": (
        {"num_bullets": 2},
        "* milk\n- bread",
        "* milk\n* bread\n* butter",
    ),
    "detectable_format:number_highlighted_sections": (
        {"num_highlights": 2},
        "Visit the *Forum* and the **Pantheon**.",
        "Visit the *Forum* and the Pantheon.",
    ),
    "detectable_format:title": ({}, "<<Frost>>\nThe lake is white.", "# Frost\nThe lake is white."),
    "keywords:existence": (
        {"keywords": ["lantern", "whisper"]},
        "A Lantern went out; a whisper followed.",
        "A lantern went out.",
    ),
    "keywords:forbidden_words": (
        {"forbidden_words": ["hot", "sun"]},
        "The sand glows, and nothing sunny hides.",
        "The Sun burns.",
    ),
    "keywords:frequency": (
        {"keyword": "rain", "frequency": 2, "relation": "at least"},
        "Rain, more rain.",
        "Rain and wind.",
    ),
    "keywords:letter_frequency": (
        {"letter": "k", "let_frequency": 3, "let_relation": "less than"},
        "A kite in the park.",
        "Kick the keg.",
    ),
    "length_constraints:nth_paragraph_first_word": (
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "however"},
        "It is good.\n\nHowever, it is dear.",
        "However, it is good.\n\nIt is dear.",
    ),
    "length_constraints:number_paragraphs": (
        {"num_paragraphs": 2},
        "Tea is old.\n***\nCoffee is young.",
        "Tea is old.\n\nCoffee is young.",
    ),
    "length_constraints:number_words": (
        {"num_words": 5, "relation": "less than"},
        "Four words are here.",
        "Here are five words, exactly.",
    ),
    "punctuation:no_comma": ({}, "It rains and it snows.", "It rains, it snows."),
    "startend:end_checker": (
        {"end_phrase": "The end."},
        "They sailed home. The end.",
        "The end. They sailed home.",
    ),
    "startend:quotation": ({}, '"Courage is a habit."', '"Courage" is a habit.'),
}


def row(name: str, arguments: dict[str, Any]) -> Row:
    return {"key": 1, "prompt": "Do it.", "instruction_id_list": [name], "kwargs": [arguments]}


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def runs_of_words(text: str, length: int) -> set[tuple[str, ...]]:
    found = words(text)
    return {tuple(found[i : i + length]) for i in range(len(found) - length + 1)}


def pieces(text: str) -> set[str]:
    plain = " ".join(words(text))
    return {plain[i : i + 4] for i in range(len(plain) - 3)}


@pytest.fixture
def no_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verifiers fail where they draw an argument at random."""

    def refuse(*_: Any) -> None:
        pytest.fail("an argument was drawn at random")

    instructions = ifeval_verifiers().instructions_registry.instructions
    monkeypatch.setattr(instructions.random, "choice", refuse)
    monkeypatch.setattr(instructions.random, "randint", refuse)
    monkeypatch.setattr(instructions.instructions_util, "generate_keywords", refuse)


def test_there_are_three_hundred_prompts_with_one_or_two_instructions() -> None:
    assert [one["key"] for one in ROWS] == list(range(1, 301))
    assert {len(one["instruction_id_list"]) for one in ROWS} == {1, 2}
    assert all(set(one) == {"key", "prompt", "instruction_id_list", "kwargs"} for one in ROWS)


def test_every_type_has_eight_prompts_or_more_and_none_needs_sentence_data_or_tells_a_language() -> None:
    counts = Counter(name for one in ROWS for name in one["instruction_id_list"])
    assert set(counts) == set(BY_HAND)
    assert min(counts.values()) >= 8
    left = set(ifeval_verifiers().instructions_registry.INSTRUCTION_DICT) - set(counts)
    assert left == {*NEEDS_PUNKT, "language:response_language"}


def test_any_tenth_of_the_set_mixes_the_types() -> None:
    for start in range(0, 300, 30):
        part = Counter(name for one in ROWS[start : start + 30] for name in one["instruction_id_list"])
        assert len(part) >= 15
        assert max(part.values()) <= 6


@pytest.mark.usefixtures("no_chance")
def test_every_row_gives_its_verifiers_all_that_they_need() -> None:
    for one in ROWS:
        assert row_problem(one) is None
        score_response(one, "An answer.")


def test_no_row_asks_for_two_things_that_ifeval_calls_a_conflict() -> None:
    registry = ifeval_verifiers().instructions_registry
    conflicts = registry.conflict_make(
        {name: set(others) for name, others in registry.INSTRUCTION_CONFLICTS.items()}
    )
    for one in ROWS:
        for first, second in combinations(one["instruction_id_list"], 2):
            assert second not in conflicts[first], one["prompt"]


def test_every_prompt_names_the_words_that_its_verifiers_look_for() -> None:
    for one in ROWS:
        for value in (value for arguments in one["kwargs"] for value in arguments.values()):
            for word in value if isinstance(value, list) else [value]:
                is_relation = word in ("at least", "less than")
                if isinstance(word, str) and not is_relation:
                    assert word.lower() in one["prompt"].lower(), one["prompt"]


def test_no_two_prompts_are_alike() -> None:
    assert len({one["prompt"] for one in ROWS}) == 300
    found = [(one["prompt"], pieces(one["prompt"])) for one in ROWS]
    for (first, own), (second, other) in combinations(found, 2):
        assert len(own & other) / len(own | other) < 0.45, (first, second)


def test_no_prompt_shares_eight_words_in_a_row_with_ifeval(shared_data: Path) -> None:
    lines = (shared_data / "ifeval" / "en.jsonl").read_text(encoding="utf-8").split("\n")
    theirs = set().union(*(runs_of_words(json.loads(line)["prompt"], 8) for line in lines if line.strip()))
    shared = {one["key"]: runs_of_words(one["prompt"], 8) & theirs for one in ROWS}
    assert {key: found for key, found in shared.items() if found} == {}


@pytest.mark.parametrize("name", sorted(BY_HAND))
def test_an_answer_that_follows_scores_one_and_one_that_does_not_scores_zero(name: str) -> None:
    arguments, follows, violates = BY_HAND[name]
    assert row_problem(row(name, arguments)) is None
    assert score_response(row(name, arguments), follows)[SCORE] is True
    assert score_response(row(name, arguments), violates)[SCORE] is False


def test_a_prompt_scores_only_where_both_instructions_are_followed() -> None:
    both: Row = {
        "key": 1,
        "prompt": "Write without commas, in fewer than four words.",
        "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
        "kwargs": [{}, {"num_words": 4, "relation": "less than"}],
    }
    assert score_response(both, "It rains.")[SCORE] is True
    half = score_response(both, "It rains on the hills.")
    assert half[SCORE] is False
    assert half["inst_level_strict_acc"] == [True, False]
    assert score_response(both, "It rains.\nThat, at least, is sure.")["prompt_level_loose_acc"] is True


def test_the_language_of_an_answer_is_told_alike_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unseeded, langdetect takes these capitals for English or for German."""
    monkeypatch.setattr(DetectorFactory, "seed", None)
    capitals = row("change_case:english_capital", {})
    answer = "THE KITCHEN IS CLOSED ON SUNDAYS AND ON MONDAYS."
    assert len({score_response(capitals, answer)[SCORE] for _ in range(12)}) == 1
    assert DetectorFactory.seed is None


def test_the_task_asks_greedily_and_scores_by_the_harness(no_chance: None) -> None:
    task = own_task("instructions", "en")
    assert len(task.eval_docs) == 300
    assert next(iter(task.aggregation())) == SCORE
    settings = task.config.generation_kwargs
    assert (settings["do_sample"], settings["until"], settings["max_gen_toks"]) == (False, [], NEW_TOKENS)
    for doc, one in zip(task.eval_docs, ROWS, strict=True):
        assert task.doc_to_text(doc) == one["prompt"]
        answer = f"{one['prompt']}, indeed"
        assert task.process_results(doc, [answer]) == ifeval_verifiers().process_results(one, [answer])


def test_the_share_of_instructions_counts_each_once() -> None:
    aggregate = own_task("instructions", "en", limit=1).aggregation()["inst_level_strict_acc"]
    assert aggregate([[True, False], [True]]) == pytest.approx(2 / 3)


def test_a_limit_and_a_length_can_be_named() -> None:
    task = own_task("instructions", "en", limit=7, max_new_tokens=20)
    assert [doc["key"] for doc in task.eval_docs] == [1, 2, 3, 4, 5, 6, 7]
    assert task.config.generation_kwargs["max_gen_toks"] == 20


def test_another_language_is_refused() -> None:
    with pytest.raises(EvaluationError, match="no prompts in 'de', only in 'en'"):
        own_task("instructions", "de")


def test_a_file_of_the_same_format_takes_the_place_of_our_prompts(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(row("punctuation:no_comma", {}) | {"note": "kept out"}) + "\n\n")
    task = own_task("instructions", "en", data=path)
    assert [doc["prompt"] for doc in task.eval_docs] == ["Do it."]
    assert task.process_results(task.eval_docs[0], ["It rains."])[SCORE] is True


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", r"jsonl:2: not JSON"),
        ('{"key": 1}', r"jsonl:2: needs the fields key, prompt"),
        (json.dumps(row("punctuation:no_coma", {})), r"jsonl:2: .*Did you mean 'punctuation:no_comma'"),
        (json.dumps(row("startend:end_checker", {})), r"needs the arguments \['end_phrase'\], and has \[\]"),
        (
            json.dumps(
                row(
                    "length_constraints:number_words",
                    {"num_words": 3, "relation": "at most"},
                )
            ),
            r"relation for comparison must be in",
        ),
        (
            json.dumps(
                row(
                    "keywords:letter_frequency",
                    {"letter": "#", "let_frequency": 3, "let_relation": "at least"},
                )
            ),
            r"letter: not a value that it takes",
        ),
        (json.dumps(row("punctuation:no_comma", {}) | {"kwargs": []}), r"1 instructions and 0 kwargs"),
        (json.dumps(row("punctuation:no_comma", {}) | {"kwargs": [None]}), r"kwargs a list of objects"),
    ],
)
def test_a_row_that_cannot_be_scored_alike_every_time_is_refused(
    line: str, told: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(row("punctuation:no_comma", {})) + "\n" + line)
    with pytest.raises(EvaluationError, match=told):
        own_task("instructions", "en", data=path)


def test_a_file_that_cannot_be_read_or_is_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.jsonl: there is no such file"):
        own_task("instructions", "en", data=tmp_path / "absent.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(EvaluationError, match="there are no rows"):
        own_task("instructions", "en", data=tmp_path / "empty.jsonl")


def test_the_verifiers_are_imported_without_a_download_or_a_print(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    package = sys.modules["lm_eval.tasks.ifeval"]
    for name in ("utils", "instructions_registry", "instructions", "instructions_util"):
        monkeypatch.delitem(sys.modules, f"lm_eval.tasks.ifeval.{name}")
        monkeypatch.delattr(package, name)
    monkeypatch.setattr(nltk.data, "path", [])  # no sentence data: the module would fetch them
    monkeypatch.setattr(nltk, "download", lambda *_, **__: pytest.fail("a download was tried"))
    ifeval_verifiers.cache_clear()
    assert SCORE in ifeval_verifiers().process_results(ROWS[0], ["-"])
    ifeval_verifiers.cache_clear()
    assert capsys.readouterr().out == ""
