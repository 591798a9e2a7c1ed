"""What the corpus holds: counts, parallel groups, splits, order, determinism."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from lingraft.data.worldbook import (
    FAMILIES,
    LANGUAGES,
    SPLITS,
    Item,
    item_from_row,
    item_to_row,
    load_items,
)
from lingraft.data.worldbook.constraints import count_sentences
from lingraft.data.worldbook.forms import FIRST_KINDS
from lingraft.data.worldbook.groups import SHARED_SLOTS
from lingraft.data.worldbook.tasks import TASKS, task_named
from lingraft.data.worldbook.templates import load_templates, nouns

ORDERS = (LANGUAGES, tuple(reversed(LANGUAGES)))
PRINT_CONTENT = """
import hashlib, json, sys
from lingraft.data.worldbook import FAMILIES, SPLITS, item_to_row, load_items
rows = {}
for language in sys.argv[1].split(","):
    for family in FAMILIES:
        for split in SPLITS:
            rows[f"{family} {language} {split}"] = [item_to_row(item) for item in load_items(family, language, split)]
print(hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest())
"""


def all_items(family: str, language: str) -> list[Item]:
    return [item for split in SPLITS for item in load_items(family, language, split)]


def content_hash() -> str:
    rows = {
        f"{family} {language} {split}": [item_to_row(item) for item in load_items(family, language, split)]
        for family in FAMILIES
        for language in LANGUAGES
        for split in SPLITS
    }
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_has_enough_tasks_and_groups_and_equal_shares(family: str) -> None:
    per_task = Counter(item.task for item in all_items(family, "en"))
    assert len(per_task) >= 8
    assert per_task.total() >= 1500
    assert len(set(per_task.values())) == 1


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_task_has_three_phrasings_and_all_are_used(language: str) -> None:
    for task in TASKS:
        questions = load_templates(language)["tasks"][task.name]["questions"]
        assert len(set(questions)) == len(questions) >= 3
    for demands in load_templates(language)["constraints"].values():
        assert len(set(demands)) >= 2


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("split", SPLITS)
def test_position_i_is_the_same_group_in_every_language(family: str, split: str) -> None:
    groups = [[item.example.group for item in load_items(family, language, split)] for language in LANGUAGES]
    assert all(column == groups[0] for column in groups)
    assert len(set(groups[0])) == len(groups[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_parallel_items_ask_for_the_same_kinds_of_constraint(family: str) -> None:
    kinds = [
        [[constraint.kind for constraint in item.constraints] for item in all_items(family, language)]
        for language in LANGUAGES
    ]
    assert all(column == kinds[0] for column in kinds)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("language", LANGUAGES)
def test_no_question_comes_twice_over_all_splits(family: str, language: str) -> None:
    questions = Counter(item.example.instruction.casefold() for item in all_items(family, language))
    assert questions.most_common(1)[0][1] == 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("language", LANGUAGES)
def test_splits_share_no_slot_where_a_task_has_many(family: str, language: str) -> None:
    found_many = False
    for task in {item.task for item in all_items(family, language)}:
        slots = {
            split: {item.slot for item in load_items(family, language, split) if item.task == task}
            for split in SPLITS
        }
        values = {task_named(task).slot_key(content) for content in task_named(task).contents()}
        if len(values) > SHARED_SLOTS or len(set().union(*slots.values())) > SHARED_SLOTS:
            found_many = True
            assert all(not slots[a] & slots[b] for a, b in itertools.combinations(SPLITS, 2)), task
    assert found_many


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("split", SPLITS)
def test_any_prefix_holds_every_task_equally_often(family: str, split: str) -> None:
    items = load_items(family, "de", split)
    counts = dict.fromkeys((item.task for item in items), 0)
    for item in items:
        counts[item.task] += 1
        assert max(counts.values()) - min(counts.values()) <= 1


def test_a_short_prefix_already_asks_for_every_kind_of_constraint() -> None:
    kinds = {item.constraints[0].kind for item in load_items("lookup", "en", "train")[:24]}
    assert kinds == set(FIRST_KINDS)


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_and_word_slots_differ_from_the_english_ones(family: str) -> None:
    for language in LANGUAGES[1:]:
        for english, item in zip(all_items(family, "en"), all_items(family, language), strict=True):
            assert item.sentence.casefold() != english.sentence.casefold()
            if task_named(item.task).word_slot:
                assert item.slot.casefold() != english.slot.casefold()


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_noun_is_one_word_and_unlike_every_other_and_the_english_one(language: str) -> None:
    words = nouns(language)
    assert len({word.casefold() for word in words.values()}) == len(words) > SHARED_SLOTS
    assert all(word.isalpha() for word in words.values())
    if language != "en":
        assert all(words[key].casefold() != key for key in words)


@pytest.mark.parametrize("language", LANGUAGES)
def test_sentences_that_a_form_adds_hold_no_comma_digit_or_value_of_a_task(language: str) -> None:
    templates = load_templates(language)
    added = [
        *templates["openings"],
        *templates["closings"],
        *templates["extra_sentences"],
        *(entry["sentence"] for entry in templates["keywords"]),
    ]
    values = {word.casefold() for task in TASKS for word in task.vocabulary(language)}
    for sentence in added:
        assert count_sentences(sentence) == 1
        assert "," not in sentence
        assert not any(word.strip(".?!").casefold() in values or word.isdigit() for word in sentence.split())


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_answers_are_whole_sentences_without_unfilled_fields(family: str) -> None:
    for language in LANGUAGES:
        for item in all_items(family, language):
            assert len(item.sentence.split()) >= 5
            assert item.sentence.endswith(".")
            assert item.slot in item.sentence
            assert not set("{}") & set(item.example.instruction.replace("{argument}", "{"))
            assert "  " not in item.example.instruction


def test_spanish_questions_have_both_marks_and_french_ones_a_space() -> None:
    for family in FAMILIES:
        for item in all_items(family, "es"):
            assert item.example.instruction.count("?") == item.example.instruction.count("¿")
        for item in all_items(family, "fr"):
            assert item.example.instruction.count("?") == item.example.instruction.count(" ?")


def test_an_item_survives_json() -> None:
    for family in FAMILIES:
        for item in load_items(family, "fr", "report"):
            row: dict[str, Any] = json.loads(json.dumps(item_to_row(item)))
            assert item_from_row(row) == item


def test_identity_of_an_example_is_as_documented() -> None:
    item = load_items("lookup", "es", "selection")[0]
    family, task, number, language = item.example.id.split("/")
    assert (family, task, language) == ("lookup", item.task, "es")
    assert item.example.group == f"lookup/{task}/{number}"
    assert item.example.source == "worldbook:lookup/es"
    assert item.example.language == "es"


@pytest.mark.parametrize(("hash_seed", "order"), [("1", ORDERS[0]), ("2", ORDERS[1])])
def test_content_is_the_same_in_every_process_and_loading_order(
    hash_seed: str, order: tuple[str, ...]
) -> None:
    result = subprocess.run(
        [sys.executable, "-c", PRINT_CONTENT, ",".join(order)],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert result.stdout.strip() == content_hash()


def test_content_does_not_change_once_japanese_is_loaded() -> None:
    trap = (
        "from babel import Locale\n"
        "for tag in ('ja', 'ko'):\n"
        "    Locale(tag).months['stand-alone']['wide']; Locale(tag).days['stand-alone']['wide']\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", trap + PRINT_CONTENT, ",".join(LANGUAGES)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == content_hash()
