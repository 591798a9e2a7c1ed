"""Tests for the two halves of an evaluation's items: the part that is chosen on and the part that is reported on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from lingraft.config.schema import Evaluation
from lingraft.errors import EvaluationError
from lingraft.evaluate.manifest import manifest_of
from lingraft.evaluate.task_runs import Run, asked_text, runs_of
from lingraft.records import fingerprint_of
from lingraft.study.stages.evaluate import questions

Rows = Sequence[Mapping[str, Any]]
PARTS = ("selection", "report")


def write_task(folder: Path, rows: Rows, name: str = "mine") -> str:
    """Write a YAML task of the user's over rows with a question q and an answer a; return its file's name."""
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": f"{name}.jsonl"}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{a}}",
        "metric_list": [{"metric": "exact_match"}],
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))
    return f"{name}.yaml"


def sums(count: int) -> list[dict[str, str]]:
    return [{"q": f"{number} + 1?", "a": str(number + 1)} for number in range(count)]


def runs(folder: Path, *tasks: Any, languages: Rows = (), **options: Any) -> list[Run]:
    written = {"task_ability": tasks, "language_ability": languages, **options}
    return runs_of(Evaluation.model_validate(written), ["de"], folder)


def documents(folder: Path, *tasks: Any, **options: Any) -> tuple[int, ...]:
    (run,) = runs(folder, *tasks, **options)
    return run.documents


def test_the_parts_share_nothing_and_hold_all_and_are_halves(tmp_path: Path) -> None:
    task = write_task(tmp_path, sums(1000))
    selection, report = (documents(tmp_path, task, part=part) for part in PARTS)
    assert sorted((*selection, *report)) == list(range(1000)) == list(documents(tmp_path, task))
    assert abs(len(selection) - 500) < 80  # five standard errors
    assert list(selection) == sorted(selection)


def test_another_seed_divides_them_otherwise_and_the_same_one_alike(tmp_path: Path) -> None:
    task = write_task(tmp_path, sums(200))
    found = [documents(tmp_path, task, part="report", part_seed=seed) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    moved = set(found[0]) ^ set(found[2])
    assert 60 < len(moved) < 140  # half of them, as two independent draws do


def test_parallel_items_are_in_the_same_part_in_every_language_task_and_order(tmp_path: Path) -> None:
    english = [{"q": f"question {i}", "a": "x", "number": i // 2} for i in range(80)]
    german = [{"q": f"Frage {i}", "a": "y", "number": i // 2} for i in range(79, -1, -1)]
    tasks = {"cluster": "number"}
    written = [tasks | {"task": write_task(tmp_path, english, "first")}]
    other = [tasks | {"task": write_task(tmp_path, german, "second"), "language": "de"}]
    clusters = {}
    for part in PARTS:
        first, second = runs(tmp_path, *written, languages=other, part=part)
        clusters[part] = {one["number"] for number, one in enumerate(english) if number in first.documents}
        assert clusters[part] == {one["number"] for i, one in enumerate(german) if i in second.documents}
        assert len(first.documents) == 2 * len(clusters[part])  # whole clusters
    assert not clusters["selection"] & clusters["report"]


def test_equal_texts_are_in_the_same_part(tmp_path: Path) -> None:
    rows = [{"q": f"question {i % 30}" + " " * (i // 30), "a": str(i)} for i in range(90)]
    task = write_task(tmp_path, rows)
    (run,) = runs(tmp_path, task, part="selection")
    asked = [i % 30 for i in run.documents]
    assert all(asked.count(one) == 3 for one in asked)


def test_passages_of_our_own_tasks_stay_together_and_the_limit_is_taken_of_the_part(tmp_path: Path) -> None:
    passages = [
        {
            "context": f"Passage {p} says {p}.",
            "qas": [
                {"id": f"{p}-{n}", "question": f"What does it say? {n}", "answers": [{"text": str(p)}]}
                for n in range(3)
            ],
        }
        for p in range(40)
    ]
    data = tmp_path / "passages.jsonl"
    data.write_text("\n".join(map(json.dumps, passages)))
    task = {"task": "xquad", "data": "passages.jsonl"}
    whole = {part: documents(tmp_path, task, part=part) for part in PARTS}
    assert sorted((*whole["selection"], *whole["report"])) == list(range(120))
    for own in whole.values():
        passage = [number // 3 for number in own]
        assert all(passage.count(one) == 3 for one in passage)
    for limit in (10, 20):
        limited = documents(tmp_path, task | {"limit": limit}, part="selection")
        assert len(limited) == limit
        assert set(limited) <= set(whole["selection"])
    drawn = documents(tmp_path, task | {"limit": 10, "sample": 3}, part="selection")
    assert len(drawn) == 10
    assert set(drawn) <= set(whole["selection"])


def test_the_limit_of_any_task_is_taken_of_the_part(tmp_path: Path) -> None:
    task = write_task(tmp_path, sums(60))
    whole = documents(tmp_path, task, part="report")
    assert documents(tmp_path, {"task": task, "limit": 10}, part="report") == whole[:10]
    assert documents(tmp_path, {"task": task, "limit": 59}, part="report") == whole


def test_worldbook_has_splits_of_its_own() -> None:
    asked = {}
    for part in ("all", *PARTS):
        (run,) = runs(Path(), {"task": "worldbook:lookup", "limit": 20}, part=part, part_seed=4)
        asked[part] = [asked_text(run.task, run.task.eval_docs[number]) for number in run.documents]
        assert run.data.split == ("selection" if part == "selection" else "report")
        written = Evaluation(part=part)
        found = manifest_of([run], written, precision="float32", chat="template")
        assert found.split == run.data.split
    assert asked["all"] == asked["report"]
    assert not set(asked["selection"]) & set(asked["report"])


def test_the_fingerprint_differs_by_part_and_is_that_of_before_without(tmp_path: Path) -> None:
    task = write_task(tmp_path, sums(20))
    found = {}
    options: dict[str, dict[str, Any]] = {
        "before": {},
        "all": {"part": "all", "part_seed": 5},
        "selection": {"part": "selection"},
        "report": {"part": "report"},
        "another seed": {"part": "report", "part_seed": 1},
    }
    for name, own in options.items():
        written = Evaluation.model_validate({"task_ability": [task], "language_ability": [], **own})
        asked = questions(written, [], base_folder=tmp_path, cache=tmp_path / "cache")
        found[name] = fingerprint_of(asked.manifest)
    assert found.pop("all") == found["before"]
    assert len(set(found.values())) == 4
    kept = {path.name for path in (tmp_path / "cache").iterdir()}
    assert len(kept) == 4  # what was resolved for `all` before is found again


@pytest.mark.parametrize(
    ("rows", "options", "reason"),
    [
        (sums(1), {}, "it has 1 item"),
        (sums(1) * 4, {}, "its 4 items share one cluster or text"),
        (sums(4), {"cluster": "'all'"}, "its 4 items share one cluster or text"),
        (sums(2), {}, "all of its 2 items fall into one part at part_seed"),
    ],
)
def test_what_cannot_be_divided_is_refused_by_name(
    rows: Rows, options: dict[str, str], reason: str, tmp_path: Path
) -> None:
    task = {"task": write_task(tmp_path, rows), **options}
    with pytest.raises(EvaluationError) as caught:
        runs(tmp_path, task, part="report", part_seed=1)
    message = str(caught.value)
    assert message.startswith("the task mine.yaml cannot be divided")
    assert reason in message
    assert len(runs(tmp_path, task)) == 1  # whole, it can be asked
