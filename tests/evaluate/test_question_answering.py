"""Answers by hand in every script and against MLQA's scorer, and XQuAD's and MLQA's documents."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from dataclasses import astuple
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.tasks.mlqa import utils as harness_mlqa
from lm_eval.tasks.qasper.metrics import normalize_answer as squad_normalise

from lingraft.data.rows import OpenedRows
from lingraft.errors import EvaluationError
from lingraft.evaluate import task_data
from lingraft.evaluate.own_task import own_task
from lingraft.evaluate.tasks.mlqa.task import LANGUAGES as MLQA_LANGUAGES
from lingraft.evaluate.tasks.passage_questions import (
    AnswerScores,
    answer_scores,
    normalised_units,
)
from lingraft.evaluate.tasks.xquad.task import LANGUAGES as XQUAD_LANGUAGES
from lingraft.text.folding import fold_for_scores


def squad_f1(answer: str, expected: str) -> float:
    """F1 as SQuAD's official scorer has it, which the harness's XQuAD calls in every language.

    Its own module needs one that transformers 5 no longer has; the same normaliser stands in the harness's qasper.
    """
    given, wanted = squad_normalise(answer).split(), squad_normalise(expected).split()
    shared = sum(min(given.count(word), wanted.count(word)) for word in set(given))
    return 2 * shared / (len(given) + len(wanted)) if shared else 0.0


# language, expected answer, answer, and by hand F1 = 2 * shared / (units of the one + units of the other), exact match
Case = tuple[str, str, str, str, int]
ARABIC: list[Case] = [
    ("ar", "المدرسة", "مدرسة", "1", 1),
    ("ar", "في القاهرة", "القاهرة", "2/3", 0),
    ("ar", "مُحَمَّد", "محمد", "1", 1),
    ("ar", "نعم؟", "نعم", "1", 1),
    ("ar", "٣٠٨ نقطة", "308 نقاط", "2/4", 0),
    (
        "ar",
        "سؤال",
        "سؤ",
        "0",
        0,
    ),  # MLQA's official scorer cuts the article out of words as well: a false match
    ("ar", "الــقاهرة", "القاهرة", "1", 1),
]
THAI: list[Case] = [
    ("th", "กรุงเทพมหานคร", "กรุงเทพ", "10/15", 0),  # ก รุ ง เท พ and ม หา น ค ร
    ("th", "ใน ประเทศไทย", "ในประเทศไทย", "1", 1),
    ("th", "๓๐๘", "308", "1", 1),
    ("th", "นํ้า", "น้ำ", "1", 1),
    ("th", "“ใช่”", "ใช่", "1", 1),
    ("th", "สีแดง", "สีดำ", "2/5", 0),  # สี แด ง, สี ดำ
    ("th", "฿100", "100", "1", 1),
]
JAPANESE: list[Case] = [
    ("ja", "東京都", "東京", "4/5", 0),
    ("ja", "「雪国」", "雪国", "1", 1),
    ("ja", "東京 タワー", "東京タワー", "1", 1),
    ("ja", "１０％", "10%", "1", 1),
    ("ja", "1990年", "1990", "2/3", 0),
    ("ja", "ﾄﾖﾀ", "トヨタ", "1", 1),
    ("ja", "川端康成", "康成川端", "1", 0),
    ("zh", "纽约市", "纽约", "4/5", 0),
    ("zh", "《纽约时报》", "纽约时报", "1", 1),
]
KOREAN: list[Case] = [
    ("ko", "『서울』", "서울", "1", 1),
    ("ko", unicodedata.normalize("NFD", "한국어"), "한국어", "1", 1),
    ("ko", "１２월", "12월", "1", 1),
    ("ko", "이순신 장군", "이순신", "2/3", 0),
    ("ko", "한국 서울", "서울 한국", "1", 0),
    ("ko", "서울특별시", "서울", "0", 0),
    ("ko", "₩500", "500", "1", 1),
]
DEVANAGARI: list[Case] = [
    ("hi", "नई दिल्ली।", "नई दिल्ली", "1", 1),
    ("hi", "१९४७", "1947", "1", 1),
    ("hi", "\u0958िला", "क\u093cिला", "1", 1),
    ("hi", "लाल किला", "किला", "2/3", 0),
    ("hi", "किताब", "कताब", "0", 0),
    ("hi", "श्री\u200dमान", "श्रीमान", "1", 1),
    ("hi", "₹500", "500", "1", 1),
]
CYRILLIC: list[Case] = [
    ("ru", "«Динамо»", "Динамо", "1", 1),
    ("ru", "МОСКВА", "Москва", "1", 1),
    ("ru", "ёж", "еж", "1", 1),
    ("ru", "в 1990 году", "1990", "2/4", 0),
    ("ru", "№ 5", "5", "1", 1),
    ("ru", "А и Б", "Б", "2/4", 0),  # the Russian а is a word, no English article
    ("ru", "Санкт-Петербург", "Санкт Петербург", "0", 0),  # punctuation is deleted, as by SQuAD and MLQA
    ("uk", "п\u02bcять", "п’ять", "1", 1),
]
VIETNAMESE: list[Case] = [
    ("vi", "những con mèo", "con mèo", "1", 1),
    ("vi", "của Việt Nam", "Việt Nam", "1", 1),
    ("vi", unicodedata.normalize("NFD", "Đà Nẵng"), "Đà Nẵng", "1", 1),
    ("vi", "A Lưới", "Lưới", "2/3", 0),  # a place: no article to drop
    ("vi", "Hà Nội", "Hà Nam", "2/4", 0),
    ("vi", "“phở”", "phở", "1", 1),
    ("vi", "má", "mà", "0", 0),
]
LATIN: list[Case] = [
    ("de", "der Hund", "ein Hund", "1", 1),
    ("de", "Straße", "STRASSE", "1", 1),
    ("es", "la casa", "una casa", "1", 1),
    ("es", "a Madrid", "Madrid", "2/3", 0),  # a preposition: no article to drop
    ("fr", "l’eau", "eau", "1", 1),
    ("pt", "o rio", "rio", "1", 1),
    ("tr", "İstanbul", "istanbul", "1", 1),
    ("el", "ο Πλάτων", "Πλάτων", "1", 1),
    ("id", "di Jakarta", "Jakarta", "2/3", 0),
    ("en", "the Panthers", "Panthers", "1", 1),
    ("en", "$5", "€5", "1", 1),
    ("en", "ice-cream", "icecream", "1", 1),
]
SCRIPTS = (ARABIC, THAI, JAPANESE, KOREAN, DEVANAGARI, CYRILLIC, VIETNAMESE, LATIN)
CASES = [case for script in SCRIPTS for case in script]


@pytest.mark.parametrize(("language", "expected", "answer", "f1", "exact"), CASES)
def test_an_answer_scores_what_it_does_by_hand(
    language: str, expected: str, answer: str, f1: str, exact: int
) -> None:
    by_hand = pytest.approx([float(Fraction(f1)), float(exact)])
    assert [*astuple(answer_scores(answer, [expected], language))] == by_hand
    assert [*astuple(answer_scores(expected, [answer], language))] == by_hand


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_has_a_table_of_at_least_six_cases(script: list[Case]) -> None:
    assert len({case[1:3] for case in script}) >= 6


@pytest.mark.parametrize(
    ("language", "expected", "answer", "ours", "squads"),
    [
        ("ar", "المدرسة", "مدرسة", "1", "0"),
        ("ar", "نعم؟", "نعم", "1", "0"),
        ("th", "กรุงเทพมหานคร", "กรุงเทพ", "10/15", "0"),
        ("th", "ใน ประเทศไทย", "ในประเทศไทย", "1", "0"),
        ("ja", "東京都", "東京", "4/5", "0"),
        ("ja", "「雪国」", "雪国", "1", "0"),
        ("ko", "『서울』", "서울", "1", "0"),
        ("ko", unicodedata.normalize("NFD", "한국어"), "한국어", "1", "0"),
        ("hi", "नई दिल्ली।", "नई दिल्ली", "1", "2/4"),
        ("hi", "१९४७", "1947", "1", "0"),
        ("ru", "«Динамо»", "Динамо", "1", "0"),
        ("ru", "№ 5", "5", "1", "2/3"),
        ("vi", "của Việt Nam", "Việt Nam", "1", "4/5"),
        ("vi", "A Lưới", "Lưới", "2/3", "1"),
        ("de", "der Hund", "ein Hund", "1", "2/4"),
        ("es", "a Madrid", "Madrid", "2/3", "1"),
        ("fr", "l’eau", "eau", "1", "0"),
        ("tr", "İstanbul", "istanbul", "1", "0"),
    ],
)
def test_the_english_normaliser_that_the_harness_takes_for_xquad_is_wrong_in_every_script(
    language: str, expected: str, answer: str, ours: str, squads: str
) -> None:
    assert answer_scores(answer, [expected], language).f1 == pytest.approx(float(Fraction(ours)))
    assert squad_f1(answer, expected) == pytest.approx(float(Fraction(squads)))


@pytest.mark.parametrize(
    ("language", "expected", "answer", "theirs"),
    [
        ("ar", "مُحَمَّد", "محمد", "0"),
        ("ar", "٣٠٨ نقطة", "308 نقطة", "2/4"),
        ("hi", "\u0958िला", "क\u093cिला", "0"),
        ("vi", unicodedata.normalize("NFD", "Đà Nẵng"), "Đà Nẵng", "0"),
        ("de", "Straße", "STRASSE", "0"),
        ("en", "£5", "5", "0"),
        ("zh", "１０", "10", "0"),
    ],
)
def test_what_is_one_answer_to_a_reader_is_another_to_mlqas_scorer(
    language: str, expected: str, answer: str, theirs: str
) -> None:
    assert answer_scores(answer, [expected], language) == AnswerScores(1.0, 1.0)
    assert harness_mlqa.f1_score(answer, expected, language) == pytest.approx(float(Fraction(theirs)))


def is_plain(text: str, language: str) -> bool:
    """Say whether our scorer does nothing with a text besides what MLQA's does."""
    has_symbols = any(unicodedata.category(one)[0] == "S" and not one.isascii() for one in text)
    has_characters = language != "zh" and any(unicodedata.name(one, "").startswith("CJK") for one in text)
    return fold_for_scores(text, language) == text.lower() and not has_symbols and not has_characters


def has_units(text: str, language: str) -> bool:
    """Say whether an answer is more than articles and signs, which MLQA's scorer gives F1 0 even for themselves."""
    return bool(normalised_units(text, language))


def assert_equal_to_mlqa(answer: str, expected: str, language: str) -> None:
    ours = answer_scores(answer, [expected], language)
    assert ours.f1 == pytest.approx(harness_mlqa.f1_score(answer, expected, language), abs=1e-12)
    assert ours.exact_match == harness_mlqa.exact_match_score(answer, expected, language)


@pytest.mark.parametrize(
    ("language", "expected", "answer"),
    [
        case[:3]
        for case in CASES
        if case[0] in MLQA_LANGUAGES and is_plain(case[1], case[0]) and is_plain(case[2], case[0])
    ],
)
def test_scores_are_mlqas_where_nothing_is_folded(language: str, expected: str, answer: str) -> None:
    assert_equal_to_mlqa(answer, expected, language)


@pytest.mark.parametrize("language", ["de", "en", "es"])
def test_scores_are_mlqas_on_the_answers_of_xquad(language: str, shared_data: Path) -> None:
    """Each expected answer against itself in a piece of its passage, and against the next question's."""
    lines = (shared_data / "xquad" / f"{language}.jsonl").read_text(encoding="utf-8").split("\n")
    passages = [json.loads(line) for line in lines if line]
    answers = [
        (passage["context"], question["answers"][0]) for passage in passages for question in passage["qas"]
    ]
    compared = 0
    for (context, answer), (_, following) in pairwise(answers):
        start = max(0, answer["answer_start"] - 20)
        piece = context[start : answer["answer_start"] + len(answer["text"]) + 20]
        for given_answer in (piece, following["text"]):
            texts = (given_answer, answer["text"])
            if all(is_plain(text, language) and has_units(text, language) for text in texts):
                assert_equal_to_mlqa(given_answer, answer["text"], language)
                compared += 1
    assert compared >= 0.9 * 2 * (len(answers) - 1)


def test_an_answer_of_nothing_but_articles_and_signs_is_compared_as_it_stands() -> None:
    assert answer_scores("The", ["the"], "en") == AnswerScores(1.0, 1.0)
    assert answer_scores("a", ["the"], "en") == AnswerScores(0.0, 0.0)
    assert answer_scores("€", ["$"], "en") == AnswerScores(0.0, 0.0)
    assert answer_scores("", ["the"], "en") == AnswerScores(0.0, 0.0)
    assert answer_scores("the dog", ["the"], "en") == AnswerScores(0.0, 0.0)


def test_the_best_of_several_expected_answers_counts() -> None:
    expected = ["308", "308 points allowed"]
    assert answer_scores("308 points", expected, "en") == AnswerScores(4 / 5, 0.0)
    assert answer_scores("308", expected, "en") == AnswerScores(1.0, 1.0)


TEXTS = st.text(alphabet="ก้ำ猫バ ال한किя ёabtheßder12.,€!。？", max_size=20)
LANGUAGES = st.sampled_from(["ar", "de", "en", "fr", "hi", "ja", "ko", "ru", "th", "tr", "vi", "zh"])


@settings(max_examples=200, deadline=None)
@given(TEXTS, TEXTS, LANGUAGES)
def test_every_score_is_in_its_range_symmetric_and_one_for_the_answer_itself(
    answer: str, expected: str, language: str
) -> None:
    scores = answer_scores(answer, [expected], language)
    assert 0 <= scores.f1 <= 1
    assert scores.exact_match in (0, 1)
    assert scores.f1 == 1 or not scores.exact_match
    assert scores == answer_scores(expected, [answer], language)
    assert answer_scores(expected, [expected], language) == AnswerScores(1.0, 1.0)


def rows_file(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


ANSWERS = [{"text": "vier", "answer_start": 3}]
NESTED = {
    "context": "Es gab vier Bälle und zwei Tore.",
    "qas": [
        {"id": "q2", "question": "Wie viele Bälle?", "answers": ANSWERS},
        {
            "id": "q1",
            "question": "Wie viele Tore?",
            "answers": [{"text": "zwei"}, {"text": "zwei Tore"}, {"text": "zwei"}],
        },
    ],
}
FLAT = [
    {
        "id": question["id"],
        "context": NESTED["context"],
        "question": question["question"],
        "answers": {"text": [answer["text"] for answer in question["answers"]], "answer_start": [0]},
    }
    for question in NESTED["qas"]
    if isinstance(question, dict)
]
SQUAD_FILE = {"version": "1.1", "data": [{"title": "Spiel", "paragraphs": [NESTED]}]}


@pytest.mark.parametrize("rows", [[NESTED], FLAT, [SQUAD_FILE]], ids=["passages", "flat", "squad"])
def test_all_layouts_give_the_same_documents(rows: list[Any], tmp_path: Path) -> None:
    task = own_task("xquad", "de", data=rows_file(tmp_path / "rows.jsonl", *rows))
    shared = {"context": NESTED["context"], "cluster": "q1"}
    assert list(task.eval_docs) == [
        {"id": "q2", "question": "Wie viele Bälle?", "answers": ["vier"], **shared},
        {"id": "q1", "question": "Wie viele Tore?", "answers": ["zwei", "zwei Tore"], **shared},
    ]


def test_passage_and_question_stand_in_the_prompt_and_every_expected_answer_is_right(tmp_path: Path) -> None:
    data = rows_file(tmp_path / "rows.jsonl", NESTED)
    task = own_task("mlqa", "de", data=data)
    doc = task.eval_docs[1]
    prompt = task.doc_to_text(doc)
    assert prompt.startswith("Passage: Es gab vier Bälle und zwei Tore.\n\n")
    assert prompt.endswith("\n\nQuestion: Wie viele Tore?\n\nAnswer:")
    assert task.doc_to_target(doc) == "zwei"
    assert task.process_results(doc, ["Die zwei Tore."]) == {"f1": 1.0, "exact_match": 1.0}
    assert task.process_results(doc, [" drei"]) == {"f1": 0.0, "exact_match": 0.0}
    assert list(task.aggregation()) == ["f1", "exact_match"]
    assert task.config.generation_kwargs == {"until": ["\n"], "do_sample": False, "max_gen_toks": 32}
    assert task.config.metadata.items() >= {"version": 1, "source": "rows.jsonl", "revision": None}.items()


def test_xquads_documents_are_the_same_questions_of_the_same_passages_in_every_language(
    shared_data: Path,
) -> None:
    tasks = {
        language: own_task("xquad", language, data=shared_data / "xquad" / f"{language}.jsonl", limit=100)
        for language in ("de", "en", "es")
    }
    english = [(doc["id"], doc["cluster"]) for doc in tasks["en"].eval_docs]
    assert len(english) == 100
    assert len({cluster for _, cluster in english}) > 50  # spread over the passages
    for task in tasks.values():
        assert [(doc["id"], doc["cluster"]) for doc in task.eval_docs] == english
        for doc in task.eval_docs:
            assert doc["context"].strip() in task.doc_to_text(doc)
            assert task.process_results(doc, [doc["answers"][0]]) == {"f1": 1.0, "exact_match": 1.0}


def test_all_of_xquads_questions_are_documents_in_240_passages(shared_data: Path) -> None:
    task = own_task("xquad", "es", data=shared_data / "xquad" / "es.jsonl", max_new_tokens=16)
    assert len(task.eval_docs) == 1190
    assert len(set(task.eval_docs["cluster"])) == 240
    assert task.config.generation_kwargs["max_gen_toks"] == 16


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "?", "answers": ANSWERS}, "rows.jsonl:1: field 'context' is missing"),
        ({"context": "c", "answers": ANSWERS}, "rows.jsonl:1: field 'question' is missing"),
        ({"context": "c", "question": "?", "answers": []}, "rows.jsonl:1: field 'answers' is empty"),
        ({"context": "c", "question": "?", "answers": "vier"}, "field 'answers' must be a list of 'text'"),
        (
            {"context": "c", "question": "?", "answers": {"text": "vier"}},
            "field 'answers.text' must be a list",
        ),
        ({"context": "c", "question": "?", "answers": [{"text": " "}]}, "field 'answers[0].text' is empty"),
        ({"context": "c", "qas": "?"}, "field 'qas' must be a list"),
        ({"context": "c", "qas": []}, "there are no rows in rows.jsonl"),
    ],
)
def test_a_broken_row_is_named_by_its_place(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    data = rows_file(tmp_path / "rows.jsonl", row)
    with pytest.raises(EvaluationError, match=re.escape(message)):
        own_task("xquad", "de", data=data)


def test_an_id_that_stands_twice_is_refused_with_both_places(tmp_path: Path) -> None:
    data = rows_file(tmp_path / "rows.jsonl", *FLAT, FLAT[0])
    with pytest.raises(EvaluationError, match=r"rows\.jsonl:3: the id 'q2' stands in rows\.jsonl:1 already"):
        own_task("xquad", "de", data=data)


def test_questions_without_ids_have_their_own_by_content(tmp_path: Path) -> None:
    rows = [{key: value for key, value in row.items() if key != "id"} for row in FLAT]
    task = own_task("xquad", "de", data=rows_file(tmp_path / "rows.jsonl", *rows))
    assert len(set(task.eval_docs["id"])) == 2
    assert set(task.eval_docs["cluster"]) == {min(task.eval_docs["id"])}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """A hub that gives XQuAD's flat rows and tells what it was asked for."""
    asked: list[Any] = []

    def opened(spec: Any) -> OpenedRows:
        asked.append(spec)
        return OpenedRows("hub", hub=FLAT, revision="e" * 40)

    monkeypatch.setattr(task_data, "open_rows", opened)
    return asked.pop


def test_the_hubs_data_sets_are_asked_for_by_language(hub: Callable[[], Any]) -> None:
    task = own_task("xquad", "th", data=None)
    spec = hub()
    assert (spec.source, spec.config, spec.split, spec.revision) == (
        "google/xquad",
        "xquad.th",
        "validation",
        None,
    )
    assert (
        task.config.metadata.items()
        >= {"version": 1, "source": "google/xquad:xquad.th", "revision": "e" * 40}.items()
    )
    own_task("mlqa", "zh-Hans", data=None, limit=1)
    spec = hub()
    assert (spec.source, spec.config, spec.split) == ("facebook/mlqa", "mlqa.zh.zh", "test")
    assert spec.revision == "refs/convert/parquet"  # its main branch holds a script, which is no longer run


def test_a_language_that_a_data_set_lacks_needs_a_file() -> None:
    with pytest.raises(
        EvaluationError, match=r"xquad: there are no questions in 'ja', only in ar, .*give it `data:`"
    ):
        own_task("xquad", "ja", data=None)
    with pytest.raises(EvaluationError, match="mlqa: there are no questions in 'th'"):
        own_task("mlqa", "th", data=None)
    assert set(MLQA_LANGUAGES) < set(XQUAD_LANGUAGES)
