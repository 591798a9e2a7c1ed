"""AlpacaEval's instructions as a task: read from files, answered through the harness, matched with the reference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lingraft.errors import DataError, EvaluationError
from lingraft.evaluate.own_task import own_task
from lingraft.evaluate.tasks.alpaca_eval.task import (
    ANSWERED,
    LONGEST_ANSWER,
    read_outputs,
    reference_outputs,
)

ROWS = [
    {"instruction": "Count to three.", "output": "1, 2, 3"},
    {"instruction": "Say {this} in {{words}}.", "output": "[1, 2]"},
    {"instruction": "Say nothing.", "output": ""},
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "reference.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


def test_prompts_and_references_are_the_files_texts_unchanged(data: Path) -> None:
    task = own_task("alpaca_eval", "en", data=data)
    documents = list(task.eval_docs)
    assert [task.doc_to_text(one) for one in documents] == [row["instruction"] for row in ROWS]
    assert [task.doc_to_target(one) for one in documents] == [row["output"] for row in ROWS]
    assert task.config.generation_kwargs["max_gen_toks"] == LONGEST_ANSWER


def test_limit_and_length_are_the_callers(data: Path) -> None:
    task = own_task("alpaca_eval", "de", data=data, limit=2, max_new_tokens=7)
    assert len(task.eval_docs) == 2
    assert task.config.task == "alpaca_eval/de"
    assert task.config.generation_kwargs == {"until": [], "do_sample": False, "max_gen_toks": 7}


def test_the_task_tells_only_whether_there_is_an_answer(data: Path) -> None:
    task = own_task("alpaca_eval", "en", data=data)
    assert task.process_results(ROWS[0], ["4"]) == {ANSWERED: 1.0}
    assert task.process_results(ROWS[0], [" \n"]) == {ANSWERED: 0.0}


def test_a_json_list_is_read_like_json_lines(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "reference.json"
    path.write_text(json.dumps(ROWS), encoding="utf-8")
    texts = [[(one.instruction, one.output) for one in read_outputs(file)] for file in (data, path)]
    assert texts[0] == texts[1] == [(row["instruction"], row["output"]) for row in ROWS]


def test_another_language_needs_a_file() -> None:
    with pytest.raises(EvaluationError, match=r"its instructions are English; for 'th' give `data`"):
        reference_outputs("th")


def test_without_the_hub_it_says_what_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError("no\nconnection")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fails)
    with pytest.raises(
        DataError, match=r"alpaca_eval\.json cannot be read .*OSError: no connection\); give a local"
    ) as error:
        own_task("alpaca_eval", "en")
    assert len(str(error.value).splitlines()) == 1


def test_the_local_copy_holds_all_805_instructions(shared_data: Path) -> None:
    task = own_task("alpaca_eval", "en", data=shared_data / "alpaca_eval" / "en_text_davinci_003.jsonl")
    assert len(task.eval_docs) == 805
