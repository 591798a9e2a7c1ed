"""What the corpus holds: counts, parallel groups, splits, order, determinism."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
import unicodedata
from collections import Counter
from typing import Any

import pytest

from lingraft.data.worldbook import (
    FAMILIES,
    LANGUAGES,
    SPLITS,
    Constraint,
    Item,
    item_from_row,
    item_to_row,
    lexicon,
    load_items,
)
from lingraft.data.worldbook.constraints import count_sentences, follows
from lingraft.data.worldbook.forms import FIRST_KINDS
from lingraft.data.worldbook.groups import SHARED_SLOTS
from lingraft.data.worldbook.scoring import normalise
from lingraft.data.worldbook.tasks import TASKS, task_named
from lingraft.data.worldbook.templates import load_templates, nouns
from lingraft.data.worldbook.writing import count_words, phrase_pattern, writing_of
from lingraft.text.folding import fold_for_worldbook

SCRIPTS = {
    "ar": ("ARABIC",),
    "ja": ("HIRAGANA", "KATAKANA", "CJK"),
    "ko": ("HANGUL",),
    "ru": ("CYRILLIC",),
    "th": ("THAI",),
}
LATIN_TERMS = re.compile(rf"\b(?:JSON|{'|'.join([*lexicon.UNITS, *lexicon.CURRENCIES])})(?![A-Za-z])|JSON")
THAI_SIGNS = re.compile("[\u0e31\u0e34-\u0e3a\u0e47-\u0e4e]")
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
    """A kind that has no meaning in a script is realised as another one, always the same."""
    english = [[constraint.kind for constraint in item.constraints] for item in all_items(family, "en")]
    for language in LANGUAGES:
        realised = writing_of(language).realised
        kinds = [[constraint.kind for constraint in item.constraints] for item in all_items(family, language)]
        assert kinds == [[realised.get(kind, kind) for kind in group] for group in english]


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
                assert not re.search(
                    phrase_pattern(fold_for_worldbook(english.slot)), fold_for_worldbook(item.slot)
                ), item.slot


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_noun_is_one_word_and_unlike_every_other_and_the_english_one(language: str) -> None:
    words = nouns(language)
    assert len({fold_for_worldbook(word) for word in words.values()}) == len(words) > SHARED_SLOTS
    # Vietnamese writes the syllables of a word apart; Thai vowel signs are no letters to Unicode.
    plain = {
        word.replace(" ", "") if language == "vi" else THAI_SIGNS.sub("", word) for word in words.values()
    }
    assert all(word.isalpha() for word in plain)
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
    lookups = [word for task in TASKS if task.family == "lookup" for word in task.vocabulary(language)]
    for sentence in added:
        assert count_sentences(sentence) == 1
        assert follows(Constraint("no_commas"), sentence)
        assert sentence.endswith(writing_of(language).full_stop)
        assert not re.search(r"\d", sentence)
        assert not any(
            re.search(phrase_pattern(fold_for_worldbook(word)), fold_for_worldbook(sentence))
            for word in lookups
        )


@pytest.mark.parametrize("language", LANGUAGES)
def test_an_answer_sentence_holds_no_value_by_chance(language: str) -> None:
    for task in TASKS:
        template = re.sub(r"\{\w+\}", "\N{BULLET}", load_templates(language)["tasks"][task.name]["answer"])
        found = [
            word
            for word in task.vocabulary(language)
            if re.search(phrase_pattern(fold_for_worldbook(word)), fold_for_worldbook(template))
        ]
        assert not found, (task.name, template)


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_answers_are_whole_sentences_without_unfilled_fields(family: str) -> None:
    for language in LANGUAGES:
        for item in all_items(family, language):
            assert count_words(item.sentence) >= 5
            assert item.sentence.endswith(writing_of(language).full_stop)
            assert count_sentences(item.sentence) == 1
            assert item.slot in item.sentence
            assert not set("{}") & set(item.example.instruction.replace("{argument}", "{"))
            assert "  " not in item.example.instruction


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_lookup_question_does_not_hold_its_answer(language: str) -> None:
    for item in all_items("lookup", language):
        question = normalise(item.example.instruction)
        assert not re.search(phrase_pattern(normalise(item.slot)), question), item.example.instruction


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("language", sorted(SCRIPTS))
def test_an_item_is_in_the_script_of_its_language(family: str, language: str) -> None:
    """No Latin letters but units, currencies and the word JSON, and none of another language's script."""
    for item in all_items(family, language):
        text = item.example.instruction + item.example.answer
        letters = [c for c in LATIN_TERMS.sub("", text) if unicodedata.category(c)[0] == "L"]
        foreign = {c for c in letters if not unicodedata.name(c).startswith(SCRIPTS[language])}
        assert not foreign, (foreign, text)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("language", sorted(set(LANGUAGES) - set(SCRIPTS)))
def test_an_item_in_a_latin_alphabet_has_no_other_letters(family: str, language: str) -> None:
    for item in all_items(family, language):
        text = item.example.instruction + item.example.answer
        assert all(unicodedata.name(c).startswith("LATIN") for c in text if c.isalpha()), text


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("language", LANGUAGES)
def test_digits_are_ascii_and_marks_are_the_languages_own(family: str, language: str) -> None:
    foreign = {"ar": ",?;\u3002", "ja": ",.?!:;", "th": "?"}.get(language, "\u060c\u061f\u3002\u3001")
    for item in all_items(family, language):
        text = item.example.instruction + item.example.answer
        assert not [c for c in text if c.isdigit() and not c.isascii()]
        outside_json = re.sub(r"\{.*\}", "", text)
        assert not set(foreign) & set(outside_json), text


def test_korean_particles_agree_with_the_last_sound() -> None:
    """을 and 과 follow a consonant, 를 and 와 a vowel, 로 a vowel or ㄹ, 으로 another consonant.

    은, 는, 이 and 가 are endings of verbs and words of their own, too; they follow no field.
    """
    assert not re.search(r"\}[\"*]*(?:은|는|이|가|을|를|과|와|로|으로|라|이라)", str(load_templates("ko")))
    words = set(nouns("ko").values())
    checked = 0
    for family in FAMILIES:
        for item in all_items(family, "ko"):
            text = f"{item.example.instruction} {item.example.answer}"
            for word, particle in re.findall('([가-힣]+)["*]?(을|를|과|와|으로|로)(?![가-힣])', text):
                if word + particle in words:
                    continue
                last = (ord(word[-1]) - 0xAC00) % 28
                fits = {"로": last in (0, 8), "으로": last not in (0, 8)}
                assert fits.get(particle, (last != 0) == (particle in "을과")), (word, particle)
                checked += 1
    assert checked > 100


def test_arabic_nouns_agree_with_their_count() -> None:
    """Dual without a digit for 2, plural from 3 to 10, accusative singular from 11 on."""
    for symbol in (*lexicon.UNITS, *lexicon.CURRENCIES):
        in_words = lexicon.amount_in_words if symbol in lexicon.UNITS else lexicon.money_in_words
        dual, plural = in_words(2, symbol, "ar"), in_words(3, symbol, "ar").removeprefix("3 ")
        assert all(word.endswith("ان") for word in dual.split()), dual
        for count in range(3, 60):
            name = in_words(count, symbol, "ar").removeprefix(f"{count} ")
            assert (name == plural) == (count <= 10), name
            if count > 10:
                assert all(word.endswith(("ًا", "ة", "و")) for word in name.split()), name


def test_russian_nouns_agree_with_their_count() -> None:
    assert [lexicon.amount_in_words(count, "kg", "ru") for count in (2, 5, 11, 21, 22)] == [
        "2 килограмма",
        "5 килограммов",
        "11 килограммов",
        "21 килограмм",
        "22 килограмма",
    ]
    for item in all_items("lookup", "ru"):
        if item.task in ("weekday_after", "weekday_before", "month_after", "month_before"):
            field: lexicon.CalendarField = "day" if "weekday" in item.task else "month"
            names = lexicon.calendar_names(field, "ru")
            assert item.slot in names
            preposition = "после" if "after" in item.task else "перед"
            case = "genitive" if "after" in item.task else "instrumental"
            cases = lexicon.calendar_cases(field, "ru")
            word = item.sentence.split(f"{preposition} ")[1].split()[0]
            assert cases[case].index(word) == names.index(item.given[0])


@pytest.mark.parametrize(
    ("language", "expected"),
    [
        ("ar", {11: "أحد عشر", 12: "اثنا عشر", 20: "عشرون", 21: "واحد وعشرون", 99: "تسعة وتسعون"}),
        ("de", {21: "einundzwanzig", 30: "dreißig"}),
        ("fr", {71: "soixante et onze", 80: "quatre-vingts", 99: "quatre-vingt-dix-neuf"}),
        ("id", {11: "sebelas", 12: "dua belas", 20: "dua puluh", 99: "sembilan puluh sembilan"}),
        ("ja", {11: "十一", 20: "二十", 99: "九十九"}),
        ("ko", {11: "십일", 20: "이십", 99: "구십구"}),
        ("pt", {14: "catorze", 16: "dezesseis", 17: "dezessete", 19: "dezenove", 21: "vinte e um"}),
        ("ru", {11: "одиннадцать", 40: "сорок", 90: "девяносто", 99: "девяносто девять"}),
        ("th", {11: "สิบเอ็ด", 20: "ยี่สิบ", 21: "ยี่สิบเอ็ด", 99: "เก้าสิบเก้า"}),
        (
            "vi",
            {11: "mười một", 15: "mười lăm", 21: "hai mươi mốt", 25: "hai mươi lăm", 99: "chín mươi chín"},
        ),
    ],
)
def test_number_words_are_those_of_the_language(language: str, expected: dict[int, str]) -> None:
    words = lexicon.number_words(language)
    assert {number: words[number] for number in expected} == expected
    assert len(set(words)) == lexicon.LARGEST_NUMBER + 1


@pytest.mark.parametrize(
    ("language", "units"),
    [
        ("ar", ["أحد", "اثنان", "ثلاثة", "أربعة", "خمسة", "ستة", "سبعة", "ثمانية", "تسعة"]),
        ("id", ["satu", "dua", "tiga", "empat", "lima", "enam", "tujuh", "delapan", "sembilan"]),
        ("ja", list("一二三四五六七八九")),
        ("ko", list("일이삼사오육칠팔구")),
        ("pt", ["um", "dois", "três", "quatro", "cinco", "seis", "sete", "oito", "nove"]),
        ("ru", ["один", "два", "три", "четыре", "пять", "шесть", "семь", "восемь", "девять"]),
        ("th", ["เอ็ด", "สอง", "สาม", "สี่", "ห้า", "หก", "เจ็ด", "แปด", "เก้า"]),
        ("vi", ["mốt", "hai", "ba", "bốn", "lăm", "sáu", "bảy", "tám", "chín"]),
    ],
)
def test_number_words_from_twenty_on_are_tens_and_ones(language: str, units: list[str]) -> None:
    words = lexicon.number_words(language)
    units = ["واحد", *units[1:]] if language == "ar" else units
    link = {"id": " ", "pt": " e ", "ru": " ", "vi": " "}.get(language, "")
    for tens, ones in itertools.product(range(20, 100, 10), range(1, 10)):
        unit = units[ones - 1]
        parts = f"{unit} و{words[tens]}" if language == "ar" else f"{words[tens]}{link}{unit}"
        assert words[tens + ones] == parts


def test_no_name_is_missing_in_cldr() -> None:
    """CLDR's code ("volume-liter", "duration-hour", "DE") stands where a language lacks a name."""
    for language in LANGUAGES:
        for symbol in lexicon.UNITS:
            assert lexicon.UNITS[symbol] not in lexicon.amount_in_words(5, symbol, language)
        for currency in lexicon.CURRENCIES:
            assert currency not in lexicon.money_in_words(5, currency, language)
        for territory in lexicon.COUNTRIES:
            assert lexicon.country_name(territory, language) != territory
        assert len({lexicon.official_language(territory, language) for territory in lexicon.COUNTRIES}) == 30


def test_spanish_questions_have_both_marks_and_french_ones_a_space() -> None:
    for family in FAMILIES:
        for item in all_items(family, "es"):
            assert item.example.instruction.count("?") == item.example.instruction.count("¿")
        for item in all_items(family, "fr"):
            assert item.example.instruction.count("?") == item.example.instruction.count(" ?")


def test_an_item_survives_json() -> None:
    for family in FAMILIES:
        for language in LANGUAGES:
            for item in load_items(family, language, "report"):
                row: dict[str, Any] = json.loads(json.dumps(item_to_row(item)))
                assert item_from_row(row) == item


def test_identity_of_an_example_is_as_documented() -> None:
    item = load_items("lookup", "es", "selection")[0]
    family, task, number, language = item.example.id.split("/")
    assert (family, task, language) == ("lookup", item.task, "es")
    assert item.example.group == f"lookup/{task}/{number}"
    assert item.example.source == "worldbook:lookup/es"
    assert item.example.language == "es"


@pytest.mark.parametrize(
    ("hash_seed", "order"), [pytest.param("1", ORDERS[0], marks=pytest.mark.slow), ("2", ORDERS[1])]
)
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


@pytest.mark.parametrize("language", ["ar", "ja", "ko"])  # the others: in two orders, above
def test_a_language_built_in_a_process_of_its_own_is_the_same(language: str) -> None:
    """What babel gives for one language may depend on which were loaded before it; worldbook's items do not."""
    script = (
        "import hashlib, json, sys\n"
        "from lingraft.data.worldbook import item_to_row, load_items\n"
        "rows = [item_to_row(item) for item in load_items('lookup', sys.argv[1], 'selection')]\n"
        "print(hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest())\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, language], capture_output=True, text=True, check=True
    )
    rows = [item_to_row(item) for item in load_items("lookup", language, "selection")]
    assert result.stdout.strip() == hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


@pytest.mark.slow
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
