"""Names that are given to models and sets stand in tables, objects and records, with the paths beside them."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from lingraft.study.cell_names import named_models
from lingraft.study.unused import ListedStage, write_plan

Lingraft = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def cells(tmp_path: Path, tiny_model: Path) -> list[str]:
    """Two models in the run folder of a study, as a run leaves them."""
    run = tmp_path / "runs" / "tiny"
    run.mkdir(parents=True)
    (run / "study.yaml").write_text("name: tiny\n")
    stages = {
        "train-0123456789abcdef": "de / plain / seed 0",
        "combine-0123456789abcdef": "de / lora / seed 0",
    }
    for stage in stages:
        shutil.copytree(tiny_model, run / "stages" / stage / "checkpoint")
    write_plan(run, {stage: ListedStage(name, is_continued=False) for stage, name in stages.items()})
    return [f"runs/tiny/stages/{stage}/checkpoint" for stage in stages]


def test_a_stage_of_a_run_is_called_by_its_cell(cells: list[str], lingraft: Lingraft) -> None:
    done = lingraft("drift", *cells, "--prompts", "worldbook:lookup/de", "--limit", "3", "--record", "d.json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].strip() == "de / lora"
    record = json.loads(Path("d.json").read_text())
    assert record["result"]["models"][0]["model"] == "de / lora"
    assert record["result"]["models"][0]["path"] == cells[1]
    assert record["result"]["first"] == {"model": "de / plain", "path": cells[0]}
    assert record["inputs"]["models"] == cells
    done = lingraft("difference", f"before={cells[0]}", cells[1], "--json")
    assert json.loads(done.stdout)["models"] == [
        {"name": "before", "path": cells[0]},
        {"name": "de / lora", "path": cells[1]},
    ]


def test_cells_of_two_runs_with_one_name_are_told_apart_by_their_runs(
    cells: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree("runs/tiny", "runs/other")
    found = named_models([cells[0], cells[0].replace("tiny", "other"), cells[1]])
    assert [one.name for one in found] == [
        "tiny: de / plain / seed 0",
        "other: de / plain / seed 0",
        "de / lora",
    ]


def test_models_of_an_evaluation_have_the_names_that_are_given(tiny_model: Path, lingraft: Lingraft) -> None:
    other = Path("other")
    shutil.copytree(tiny_model, other)
    rows = [{"q": f"what is {number}", "a": str(number)} for number in range(3)]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    Path("tasks").mkdir()
    Path("tasks/mine.yaml").write_text(
        "task: toy\ndataset_path: json\ndataset_kwargs: {data_files: {test: rows.jsonl}}\ntest_split: test\n"
        "output_type: generate_until\ndoc_to_text: '{{q}}'\ndoc_to_target: '{{a}}'\n"
        "metric_list: [{metric: exact_match}]\n"
    )
    models = (f"old={tiny_model}", "new=other")
    tasks = ("--task", "worldbook:lookup", "--task", "en=tasks/mine.yaml")
    arguments = ("evaluate", *models, *tasks, "--limit", "2", "--max-new-tokens", "2", "--output", "out")
    done = lingraft(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "tasks/mine.yaml/en" in found["differences"]
    # A task that is given as a file is shown by the name in it.
    printed = lingraft(*arguments).stdout
    assert printed.count("toy ") == 3
    assert "mine.yaml" not in printed
    shown = lingraft("show", "predictions", "out", "--task", "toy")
    assert "toy/en  toy/0" in shown.stdout
    assert found["compared"] == list(found["models"]) == ["old", "new"]
    assert found["paths"] == {"old": str(tiny_model), "new": "other"}
    record = json.loads(Path("out/new/record.json").read_text())
    assert (record["inputs"]["model"], record["inputs"]["name"]) == ("other", "new")
    shown = lingraft("show", "predictions", "out", "--cell", "old", "--json")
    assert json.loads(shown.stdout)["before"] == "new"
    # It has a page as well, and so has each model of it.
    made = lingraft("report", "out", "--json")
    assert made.returncode == 0, made.stderr
    page = (Path("out") / "report" / "index.html").read_text()
    assert json.loads(made.stdout)["page"] == "out/report/index.html"
    assert "new - old" in page
    assert "mine.yaml" not in page
    assert "two models on the same items" in page
    assert lingraft("report", "out/new", "--output", "new.html").returncode == 0
    assert "what a model scored" in Path("new.html").read_text()
    files = lingraft("report", "out", "--figures", "tables", "--format", "csv")
    assert files.returncode == 0, files.stderr
    assert len(list(Path("tables").glob("*.csv"))) == 3
    Path("out/record.json").write_text('{"measure": "evaluate", "inputs": {}, "result": {}}')
    assert "is damaged, or of another version" in lingraft("report", "out").stderr


def test_sets_are_called_by_given_names_and_by_their_files(lingraft: Lingraft) -> None:
    for name in ("a", "b"):
        rows = [{"instruction": f"Say {name} {number}.", "output": "x"} for number in range(9)]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = lingraft(
        "similarity", "mine=a.jsonl", "b.jsonl", "--language", "mine=en", "--language", "b=en", "--json"
    )
    assert done.returncode == 0, done.stderr
    sets = json.loads(done.stdout)["sets"]
    assert [(one["name"], one["source"]) for one in sets] == [("mine", "a.jsonl"), ("b", "b.jsonl")]
    refused = lingraft("similarity", "x=a.jsonl", "x=b.jsonl")
    assert refused.returncode == 2
    assert "x: is the name of a.jsonl and b.jsonl; give each another name (NAME=PATH)." in refused.stderr
