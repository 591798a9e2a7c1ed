"""What of a study's tasks stands in its training rows: measured, kept and warned of before training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lingraft.config.schema import Study
from lingraft.study import contamination
from lingraft.study.contamination import report_contamination, training_rows
from lingraft.study.events import Watcher
from lingraft.study.materials import gather
from lingraft.study.store import Store

QUESTION = "Which of these four towns lies by the large river that flows past the old castle on the hill?"


class Notes(Watcher):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def noted(self, message: str) -> None:
        self.notes.append(message)


@pytest.fixture
def tasks(tmp_path: Path) -> list[dict[str, Any]]:
    rows = [
        {"q": QUESTION, "a": 1},
        {"q": "What is heavier than a stone and lighter than a house of two floors?", "a": 0},
    ]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = {
        "task": "towns",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "items.jsonl"}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{a}}",
        "doc_to_choice": ["this", "that"],
        "metric_list": [{"metric": "acc"}],
    }
    (tmp_path / "towns.yaml").write_text(yaml.safe_dump(content))
    return [{"task": "towns.yaml"}]


def study(tiny_model: Path, tasks: list[dict[str, Any]], **changes: Any) -> Study:
    two = {"source": "rows.jsonl", "language": "de", "limit": 4}
    return Study.model_validate(
        {
            "name": "x",
            "model": str(tiny_model),
            "held_out": 1,
            "seeds": [0, 1],
            "phases": [
                {"name": "one", "data": {"english": {"source": "worldbook:lookup/en", "limit": 20}}},
                {"name": "two", "data": {"german": two}},
            ],
            "evaluate": {
                "task_ability": tasks,
                "language_ability": [{"task": "worldbook:counting", "language": "de", "limit": 5}],
            },
            **changes,
        }
    )


def test_a_task_in_the_training_rows_is_warned_of_and_the_measure_is_kept(
    tmp_path: Path, tiny_model: Path, tasks: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": f"{QUESTION} ({n})", "completion": "ja"} for n in range(6)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    loaded, watcher = study(tiny_model, tasks), Notes()
    materials = gather(loaded, tmp_path)
    assert len(list(training_rows(loaded, materials))) == 2 * (20 + 4)  # seeds draw other rows under a limit
    with Store(tmp_path / "run") as store:
        found = report_contamination(loaded, materials, store, tmp_path, watcher)
        assert found is not None
        assert found.tasks["towns.yaml/en"].contaminated == 0.5
        assert found.tasks["worldbook:counting/de"].contaminated == 0.0
        assert found.tasks["towns.yaml/en"].worst[0].text == QUESTION
        assert [note.split(":")[0] for note in watcher.notes] == ["towns.yaml/en"]
        assert "50.0% of its 2 items" in watcher.notes[0]
        (kept,) = store.cache.glob("contamination-*.json")
        kept.write_text("{}")  # damaged: measured again
        assert report_contamination(loaded, materials, store, tmp_path, Notes()) == found
        monkeypatch.delattr(contamination, "overlap")
        again = Notes()
        assert report_contamination(loaded, materials, store, tmp_path, again) == found
        assert again.notes == watcher.notes
        lenient = study(tiny_model, tasks, contamination=0.5)
        assert report_contamination(lenient, materials, store, tmp_path, quiet := Notes()) == found
        assert quiet.notes == []
        assert (
            report_contamination(
                study(tiny_model, tasks, contamination=None), materials, store, tmp_path, quiet
            )
            is None
        )


def test_a_task_whose_items_cannot_be_read_is_told_and_the_others_are_measured(
    tmp_path: Path, tiny_model: Path, tasks: list[dict[str, Any]]
) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "Wo?", "completion": "Da."}) + "\n" * 2)
    broken = tmp_path / "towns.yaml"
    broken.write_text(broken.read_text().replace("{{q}}", "{{q.x.y}}"))
    loaded, watcher = study(tiny_model, tasks, held_out=0), Notes()
    with Store(tmp_path / "run") as store:
        found = report_contamination(loaded, gather(loaded, tmp_path), store, tmp_path, watcher)
        assert found is not None
        assert list(found.tasks) == ["worldbook:counting/de"]
        assert len(found.unread) == 1
        assert "towns.yaml" in watcher.notes[0]
        assert not list(store.cache.glob("contamination-*"))
