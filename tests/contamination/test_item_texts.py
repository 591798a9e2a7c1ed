"""An item's own texts: without templates and options, by hand, and found again in real tasks' own rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lingraft.config.schema import JudgeChoice
from lingraft.contamination.item_texts import item_texts
from lingraft.contamination.items import evaluation_texts
from lingraft.contamination.overlap import EvaluationText, TaskOverlap, overlap
from lingraft.data.example import Example, Message
from lingraft.evaluate.catalogue import catalogue, copies_of
from lingraft.evaluate.selection import choose_tasks
from lingraft.text.scripts import writes_spaces

Turns = tuple[str, str]

PASSAGE = "Four towns lie by the river that flows past the old castle, and the largest of them has a bridge of stone."
QUESTION = "Which town has a bridge of stone?"
FOUR = {"a": "Bree", "b": "Dale", "c": "Tharbad", "d": "Esgaroth"}
FOUR_PROMPT = f"P: {PASSAGE}\nQ: {QUESTION}\n" + "\n".join(f"{k.upper()}. {v}" for k, v in FOUR.items())


def test_options_behind_letters_are_no_text_of_an_item_but_the_right_one_is_its_answer() -> None:
    document = {"id": "7", "passage": PASSAGE, "asked": {"question": QUESTION, **FOUR}, "label": "C"}
    for choices in ("ABCD", ""):  # of a task of multiple choice, and of one that generates a letter
        found = item_texts(document, f"{FOUR_PROMPT}\nAnswer:", "C", list(choices))
        assert found.readings == ((PASSAGE, QUESTION),)
        assert found.reference == "Tharbad"


def test_options_in_a_list_are_told_by_their_letters_as_well() -> None:
    document = {"question": "How many?", "choices": ["1", "15", "16", "2"], "answer": 0}
    found = item_texts(document, "How many?\nA. 1\nB. 15\nC. 16\nD. 2\nAnswer:", "A", list("ABCD"))
    assert (found.readings, found.reference) == ((("How many?",),), "1")


def test_what_the_prompt_does_not_show_is_no_text_of_an_item() -> None:
    document = {
        "question": QUESTION,
        "source": "A book of towns and rivers",
        "answer": "Tharbad, says the book.",
    }
    found = item_texts(document, f"Frage: {QUESTION}\nAntwort:", "Tharbad, says the book.", [])
    assert found.readings == ((QUESTION,),)
    assert item_texts({"x": 1, "y": None}, QUESTION, "Tharbad", []).readings == ()


def test_a_text_may_lose_its_last_letter_in_the_prompt() -> None:
    premise = "สิ่งของถูกห่อไว้ในพลาสติก"
    found = item_texts({"premise": premise}, f"{premise[:-1]} ดังนั้น", "มันบอบบาง", ["มันบอบบาง", "มันเล็ก"])
    assert found.readings == ((premise,),)


def test_the_parts_that_a_prompt_was_made_of_are_readings_and_an_answer_in_its_passage_is_none() -> None:
    query = f"Geography: {PASSAGE}"
    document = {"query": query, "ctx": f"[title] {PASSAGE}", "activity": "Geography"}
    assert item_texts(document, query, "So is it.", ["So is it.", "No."]).readings == (
        (query,),
        (f"[title] {PASSAGE}",),
    )
    answers = ["the largest of them has a bridge", "the largest of them has a bridge of stone"]
    asked = {"context": PASSAGE, "question": QUESTION, "answers": answers}
    found = item_texts(asked, f"{PASSAGE}\n{QUESTION}", answers[0], [])
    assert found.readings == ((PASSAGE, QUESTION),)


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file; of a passage with several questions, one row each."""
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [{**row, **question} for row in rows for question in row.get("qas", [{}])]


def belebele(row: dict[str, Any]) -> Turns:
    (one,) = row["prompts"]
    return f"{one['text']}\n{one['question']}", one[f"choice{row['label'] + 1}"]


# How somebody would write a task's rows as training rows: what is asked as one turn, the right answer as the other.
AS_TRAINED: dict[str, Callable[[dict[str, Any]], Turns]] = {
    "ifeval": lambda row: (row["prompt"], "Yes."),
    "alpaca_eval": lambda row: (row["instruction"], row["output"]),
    "hellaswag": lambda row: (row["context"], row["endings"][row["label"]]),
    "xlsum": lambda row: (row["prompts"][0]["text"], row["label"]),
    "xquad": lambda row: (f"{row['context']}\n{row['question']}", row["answers"][0]["text"]),
    "global_mmlu": lambda row: (row["question"], row[f"option_{row['label'].lower()}"]),
    "belebele": belebele,
    "xcopa": lambda row: (row["premise"], row[f"choice{row['label'] + 1}"]),
    "mgsm": lambda row: (row["question"], str(row["answer"])),
}


def asked_in(name: str, language: str, folder: Path) -> tuple[EvaluationText, ...]:
    chosen = choose_tasks("paper", [f"{language}={name}"], languages=[], data_dir=str(folder), limit=100)
    judge = JudgeChoice(url="http://localhost:1/v1", model="none")
    asked = evaluation_texts(chosen.evaluation.model_copy(update={"judge": judge}), languages=[language])
    assert asked.unread == ()
    return asked.texts


def trained_on(asked: Sequence[EvaluationText], rows: Sequence[Turns]) -> TaskOverlap:
    examples = [
        Example(str(i), (Message("user", turn), Message("assistant", reply)), "en", str(i), "rows")
        for i, (turn, reply) in enumerate(rows)
    ]
    (found,) = overlap(asked, examples).values()
    return found


@pytest.mark.parametrize("name", catalogue())
def test_a_task_in_its_own_rows_is_found_and_in_others_it_is_not(
    name: str, shared_data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    copies: dict[
        bool, tuple[str, Path]
    ] = {}  # one language with spaces and one without, which are cut differently
    for language in catalogue()[name].languages:
        for copy in copies_of(name, language, str(shared_data)):
            if Path(copy).is_file():
                copies.setdefault(writes_spaces(language), (language, Path(copy)))
    if not copies:
        pytest.skip(f"shared/data holds no copy of {name}")
    others = [
        (row["instruction"], row["output"]) for row in rows_of(shared_data / "alpaca" / "en.jsonl")[:1000]
    ]
    for language, path in copies.values():
        asked = asked_in(name, language, shared_data)
        found = trained_on(asked, [AS_TRAINED[name](row) for row in rows_of(path)])
        assert found.contaminated >= 0.95, (language, found)
        assert found.duplicates >= 0.95, (language, found)
        assert trained_on(asked, others).contaminated <= 0.01
    assert capfd.readouterr().err == ""  # no bars of libraries
