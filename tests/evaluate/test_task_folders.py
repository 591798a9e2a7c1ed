"""Task folders: what each holds, and that a new one is a YAML file and a function."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lingraft.data.worldbook import FAMILIES
from lingraft.errors import EvaluationError
from lingraft.evaluate import own_task as own_task_module
from lingraft.evaluate.lm_eval_compat import load_config
from lingraft.evaluate.own_task import own_task
from lingraft.evaluate.task_names import OWN_TASKS, TASKS_FOLDER

YAML = """
task: capitals
class: !function lingraft.evaluate.own_task.OwnTask
custom_dataset: !function task.documents
test_split: test
output_type: generate_until
doc_to_text: !function task.prompt
doc_to_target: capital
process_results: !function task.scores
generation_kwargs: {until: ["\\n"], do_sample: false}
metric_list:
  - {metric: right, aggregation: mean, higher_is_better: true}
metadata: {version: 3, items: "capitals:{language}"}
"""
PLAIN = """
task: sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1}}
"""
MODULE = """
from lingraft.evaluate.own_task import Documents

def documents(options):
    rows = [{"country": "France", "capital": "Paris"}, {"country": "Thailand", "capital": "Bangkok"}]
    return Documents(rows[: options.limit] if options.data is None else [], longest_answer=9, source="a book")

def prompt(doc, language):
    return f"[{language}] {doc['country']}?"

def scores(doc, results):
    return {"right": float(results[0] == doc["capital"])}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of tasks that holds the task `capitals`."""
    (tmp_path / "capitals").mkdir()
    (tmp_path / "capitals" / "capitals.yaml").write_text(YAML)
    (tmp_path / "capitals" / "task.py").write_text(MODULE)
    monkeypatch.setattr(own_task_module, "TASKS_FOLDER", tmp_path)
    return tmp_path


def test_a_new_task_is_a_yaml_file_and_a_function_of_its_documents(folder: Path) -> None:
    task = own_task("capitals", "th", limit=1)
    (document,) = task.eval_docs
    assert task.config.task == "capitals:th"
    assert task.doc_to_text(document) == "[th] France?"
    assert task.process_results(document, [task.doc_to_target(document)]) == {"right": 1.0}
    assert task.config.generation_kwargs == {"until": ["\n"], "do_sample": False, "max_gen_toks": 9}
    assert (str(task.VERSION), task.config.metadata["source"]) == ("3", "a book")
    assert own_task("capitals", "th", max_new_tokens=4).config.generation_kwargs["max_gen_toks"] == 4


def test_a_task_without_documents_is_refused_by_its_name_and_source(folder: Path) -> None:
    with pytest.raises(EvaluationError, match="capitals:th: there are no rows in a book"):
        own_task("capitals", "th", data=folder / "empty.jsonl")


def test_a_task_that_reads_no_local_data_refuses_them(folder: Path) -> None:
    rows = folder / "rows.jsonl"
    rows.write_text('{"question": "1 + 1?", "answer": "2"}')
    (folder / "sums").mkdir()
    (folder / "sums" / "sums.yaml").write_text(PLAIN.format(rows=rows))
    assert own_task("sums", "en").doc_to_text({"question": "1 + 1?"}) == "1 + 1?"
    with pytest.raises(EvaluationError, match="sums: reads no local file"):
        own_task("sums", "en", data=rows)


@pytest.mark.parametrize("name", OWN_TASKS)
def test_a_folder_holds_a_task_of_its_name_with_a_version(name: str) -> None:
    config: Any = load_config(TASKS_FOLDER / name / f"{name}.yaml")
    assert config["task"] == name
    assert config["metadata"]["version"]
    assert "{language}" in config["metadata"]["items"]


def test_worldbooks_group_holds_its_families() -> None:
    config: Any = load_config(TASKS_FOLDER / "worldbook" / "worldbook.yaml")
    assert sorted(config["task"]) == [f"worldbook_{family}" for family in sorted(FAMILIES)]
