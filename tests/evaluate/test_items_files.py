"""Files of test items are known by the catalogue, and are read from where they are said to go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lingraft.config.schema import EvaluationTask
from lingraft.data.rows import open_rows
from lingraft.evaluate.catalogue import catalogue
from lingraft.evaluate.expressions import with_expressions
from lingraft.evaluate.items_files import hub_tasks, items_files
from lingraft.evaluate.own_task import own_task
from lingraft.evaluate.selection import expanded

QUESTION = {"id": "q1", "question": "Wer?", "answers": [{"text": "Ann", "answer_start": 0}]}
SQUAD = {
    "version": "1.1",
    "data": [{"title": "T", "paragraphs": [{"context": "Ann sang.", "qas": [QUESTION]}]}],
}
ITEMS: dict[str, list[dict[str, Any]]] = {
    "alpaca_eval": [{"dataset": "d", "instruction": "I", "output": "O", "generator": "g"}],
    "ifeval": [{"key": 1, "prompt": "P", "instruction_id_list": ["x"], "kwargs": [{}]}],
    "mmlu": [{"question": "Q", "subject": "s", "choices": ["a", "b", "c", "d"], "answer": 1}],
    "hellaswag": [{"ctx_a": "A", "ctx_b": "", "endings": ["a"], "label": "0", "source_id": "x"}],
    "xlsum": [{"id": "1", "url": "u", "title": "t", "summary": "s", "text": "x"}],
    "global_mmlu": [{"sample_id": "1", "subject": "s", "question": "Q", "option_d": "d", "answer": "A"}],
    "belebele": [{"flores_passage": "P", "question": "Q", "mc_answer1": "a", "correct_answer_num": "1"}],
    "xcopa": [{"premise": "P", "choice1": "a", "choice2": "b", "question": "effect", "label": 1}],
    "xstorycloze": [{"story_id": "1", "input_sentence_4": "s", "answer_right_ending": 1}],
    "mgsm": [{"question": "Q", "answer": "1,800"}, {"question": "Q", "answer": 7}],
}
REAL = {
    "alpaca_eval/en_text_davinci_003": "alpaca_eval",
    "belebele/th": "belebele",
    "global_mmlu_lite/en": "global_mmlu",
    "hellaswag_500/en": "hellaswag",
    "ifeval/en": "ifeval",
    "mgsm/de": "mgsm",
    "xcopa/id": "xcopa",
    "xlsum_100/th": "xlsum",
    "xquad/de": "xquad",
}


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_every_task_with_copies_is_recognised() -> None:
    with_copies = {name for name, task in catalogue().items() if task.copies}
    assert {name for name, task in catalogue().items() if task.recognised} == with_copies
    assert set(ITEMS) | {"xquad", "mlqa"} == with_copies


@pytest.mark.parametrize("task", ITEMS)
def test_items_are_known_by_their_fields(tmp_path: Path, task: str) -> None:
    (only,) = items_files(str(write_lines(tmp_path / "x.jsonl", ITEMS[task])))
    assert only.places == {task: f"{task}/{{language}}.jsonl"}
    assert (only.rows, only.language, only.data_dir) == (len(ITEMS[task]), None, None)


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Q", "answer": "because"},
        {"text": "T"},
        {"instruction": "Q", "output": "A"},
        {"prompts": [{"text": "T"}]},
        {"label": 1},
    ],
)
def test_other_rows_are_no_items(tmp_path: Path, row: dict[str, Any]) -> None:
    assert items_files(str(write_lines(tmp_path / "x.jsonl", [row]))) == ()


@pytest.mark.parametrize(("file", "task"), REAL.items())
def test_real_items_are_known_and_lie_where_suites_look(shared_data: Path, file: str, task: str) -> None:
    (only,) = items_files(f"{shared_data / file}.jsonl")
    assert list(only.places) == [task]
    assert (only.language, only.data_dir) == (file.partition("/")[2].partition("_")[0], str(shared_data))


def test_prompts_are_no_items_of_a_task(shared_data: Path) -> None:
    (only,) = items_files(str(shared_data / "mt_bench" / "de.jsonl"))
    assert (only.are_prompts, only.rows, only.language, only.places) == (True, 80, "de", {})


def test_the_published_table_of_sums_is_known_and_read_from_its_place(tmp_path: Path) -> None:
    published = tmp_path / "mgsm_de.tsv"
    published.write_text('"Wie viel?" fragt sie.\t18\nUnd?\t1,800\n', encoding="utf-8")
    (only,) = items_files(str(published))
    assert (only.places, only.language, only.rows) == ({"mgsm": "mgsm/de.tsv"}, "de", 2)
    (tmp_path / "mgsm").mkdir()
    published.rename(tmp_path / only.places["mgsm"])
    (entry,) = expanded(EvaluationTask(task="mgsm"), ("de",), str(tmp_path), Path())
    assert entry.data is not None
    read = (row.value for row in open_rows(Path(entry.data)).sound())
    rows = list(with_expressions(read, entry.fields, "mgsm"))
    assert [(row["question"], row["answer_number"]) for row in rows] == [
        ('"Wie viel?" fragt sie.', 18),
        ("Und?", 1800),
    ]


@pytest.mark.parametrize("indent", [None, 1])
def test_squads_own_layout_is_known_and_read_from_its_place(tmp_path: Path, indent: int | None) -> None:
    published = tmp_path / "xquad.de.json"
    published.write_text(json.dumps(SQUAD, indent=indent))
    (only,) = items_files(str(published))
    assert only.places == {"xquad": "xquad/de.json", "mlqa": "mlqa/de.json"}
    (tmp_path / "xquad").mkdir()
    published.rename(tmp_path / only.places["xquad"])
    (entry,) = expanded(EvaluationTask(task="xquad"), ("de",), str(tmp_path), Path())
    assert entry.data is not None
    task = own_task("xquad", "de", data=Path(entry.data))
    assert [doc["question"] for doc in task.test_docs()] == ["Wer?"]


def test_a_hub_set_that_a_task_takes_its_items_from_is_known() -> None:
    assert hub_tasks("juletxara/mgsm") == ("mgsm",)
    assert items_files("juletxara/mgsm") == ()


def test_where_no_name_says_the_language_the_identifier_guesses(tmp_path: Path) -> None:
    rows = [
        {"question": f"Wie viele Äpfel hat Anna, wenn sie {n} Birnen kauft?", "answer": n} for n in range(9)
    ]
    (only,) = items_files(str(write_lines(tmp_path / "sums.jsonl", rows)))
    assert (only.language, only.likely_language) == (None, "de")
    (named,) = items_files(str(write_lines(tmp_path / "fr.jsonl", rows)))
    assert (named.language, named.likely_language) == ("fr", None)
