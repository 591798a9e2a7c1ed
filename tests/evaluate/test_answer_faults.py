"""What is wrong with answers, and how far scores move when nothing changes, by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lingraft.evaluate.answer_faults import AnswerFaults
from lingraft.evaluate.noise import noise_floor
from lingraft.evaluate.predictions import Prediction
from lingraft.evaluate.results import AnswerCounts
from lingraft.evaluate.scores import score_summary

GERMAN = "Der Hund läuft jeden Morgen durch den großen Garten hinter dem Haus."
ENGLISH = "The dog runs through the large garden behind the house every morning."
PLAIN = Prediction("language_ability", "xlsum", "de", "xlsum/0", "xlsum/0", 0.5, "Frage?", GERMAN, "Antwort.")


@pytest.fixture(scope="module")
def faults() -> AnswerFaults:
    return AnswerFaults(["en", "de", "pt-BR", "pt", "xx"])


def test_answers_are_told_that_are_empty_loop_or_are_cut_off(faults: AnswerFaults) -> None:
    def found_faults(text: str, *, ended: bool) -> tuple[bool | None, bool | None, bool | None]:
        found = faults.found_in(replace(PLAIN, response=text), {}, ended=ended)
        return found.empty, found.looping, found.truncated

    assert found_faults(GERMAN, ended=True) == (False, False, False)
    assert found_faults(" \n", ended=True) == (True, False, False)
    assert found_faults("noch einmal " * 20, ended=False) == (False, True, True)


def test_the_language_of_an_answer_is_told_where_it_is_asked_for(faults: AnswerFaults) -> None:
    def language(prediction: Prediction, **document: object) -> tuple[bool, bool | None]:
        found = faults.found_in(prediction, document, ended=True)
        return found.language_judged, found.wrong_language

    assert language(PLAIN) == (True, False)
    assert language(replace(PLAIN, response=ENGLISH)) == (True, True)
    assert language(replace(PLAIN, response="Hund")) == (True, None)  # too short to tell
    assert language(replace(PLAIN, response=ENGLISH, reference="42")) == (False, None)  # a number
    assert language(replace(PLAIN, response=ENGLISH, item="humaneval/3")) == (False, None)  # code
    assert language(replace(PLAIN, response=ENGLISH, language="xx")) == (False, None)  # unknown
    ifeval = replace(PLAIN, response=ENGLISH, reference="0")
    kinds = ["language:response_language"]  # another language was asked for
    assert language(ifeval, instruction_id_list=kinds) == (False, None)
    assert language(ifeval, instruction_id_list=["punctuation:no_comma"]) == (True, True)
    of_its_own = replace(PLAIN, response=ENGLISH, language_judged=True, wrong_language=False)  # worldbook
    assert language(of_its_own) == (True, False)
    portuguese = replace(
        PLAIN, language="pt", response="O cachorro corre pelo jardim atrás da casa todas as manhãs."
    )
    assert language(portuguese) == (True, False)  # regions of one language are one


def test_an_answer_in_another_language_is_told_where_english_is_the_only_one() -> None:
    faults = AnswerFaults(["en"])
    summary = replace(PLAIN, language="en", reference=ENGLISH)
    assert faults.found_in(summary, {}, ended=True).wrong_language is True  # its answer is German
    assert faults.found_in(replace(summary, response=ENGLISH), {}, ended=True).wrong_language is False


def test_an_item_that_asks_for_another_language_is_not_judged(faults: AnswerFaults) -> None:
    asked = replace(PLAIN, language="en", prompt="Translate into German: ...", reference=GERMAN)
    for text in (GERMAN, ENGLISH):
        found = faults.found_in(replace(asked, response=text), {}, ended=True)
        assert (found.language_judged, found.wrong_language) == (False, None)


@pytest.mark.parametrize("language", ["en", "de", "fr", "pt", "id"])
def test_texts_in_their_own_language_are_not_called_wrong(language: str, shared_data: Path) -> None:
    faults = AnswerFaults(["en", language])
    lines = (shared_data / "udhr" / f"{language}.jsonl").read_text(encoding="utf-8").split("\n")
    texts = [text for line in lines if line for text in json.loads(line)["text"]]
    plain = replace(PLAIN, language=language, reference="-")
    found = [faults.found_in(replace(plain, response=text), {}, ended=True).wrong_language for text in texts]
    assert found.count(False) >= 0.95 * len(texts)
    assert found.count(True) == 0


def test_faults_are_counted_and_likelihood_tasks_have_none(faults: AnswerFaults) -> None:
    texts = [GERMAN, ENGLISH, "", "ja " * 40]
    judged = [
        faults.found_in(replace(PLAIN, response=text, item=str(i), cluster=str(i)), {}, ended=i != 1)
        for i, text in enumerate(texts)
    ]
    choice = replace(PLAIN, ability="task_ability", task="mmlu", language="en", response="-1.5")
    scores = score_summary([*judged, choice], {})
    assert scores.answers == AnswerCounts(n=4, empty=1, looping=1, truncated=1)
    assert scores.per_language["de"].answers == scores.answers
    assert scores.tasks["mmlu/en"].answers is None
    told = [one.wrong_language for one in judged if one.wrong_language is not None]
    assert scores.wrong_language == sum(told) / len(told)
    assert scores.undetermined_language == 4 - len(told) >= 1


def test_the_noise_floor_is_the_spread_over_rounds() -> None:
    def items(scores: list[float]) -> list[Prediction]:
        return [replace(PLAIN, item=str(i), cluster=str(i), score=score) for i, score in enumerate(scores)]

    choice = replace(PLAIN, task="belebele", score=1.0)  # not generated: stands in the first round alone
    found = noise_floor([[*items([0.0, 1.0]), choice], items([1.0, 1.0]), items([0.0, 1.0])])
    assert found.repeats == 3
    assert set(found.tasks) == {"xlsum/de"}
    task = found.tasks["xlsum/de"]
    assert task.scores == (0.5, 1.0, 0.5)
    assert (task.low, task.high, task.changed) == (0.5, 1.0, 1)
    assert task.deviation == pytest.approx(0.2887, abs=1e-4)
    assert found.language_ability is not None
    assert found.language_ability.scores == (0.75, 1.0, 0.75)
    assert found.task_ability is None
