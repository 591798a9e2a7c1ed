"""What is said of an adaptation before it trains, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lingraft.adapt.outlook import Outlook, look, outlook_lines
from lingraft.config.schema import Study
from lingraft.data.worldbook import load_items
from lingraft.records import from_json, to_json
from lingraft.study.events import Watcher
from lingraft.study.execute import Executor
from lingraft.study.run import prepare_study
from lingraft.study.store import Store

Look = Callable[..., Outlook]


def rows_in(language: str, count: int = 40) -> list[dict[str, str]]:
    return [
        {"instruction": one.example.instruction, "output": one.example.answer}
        for one in load_items("lookup", language, "train")[:count]
    ]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")
    return path


def study_of(model: Path | str, data: dict[str, Any], **changes: Any) -> Study:
    tasks = [{"task": "worldbook:lookup", "limit": 4}]
    return Study.model_validate(
        {
            "name": "adaptation",
            "held_out": 5,
            "measures": [],
            "phases": [
                {"name": "start", "checkpoint": str(model), **changes},
                {"name": "learn", "data": data, "strategies": ["plain"]},
            ],
            "evaluate": {"task_ability": tasks, "language_ability": tasks, "precision": "float32"},
        }
    )


@pytest.fixture
def looked(tmp_path: Path) -> Look:
    """A function that looks at the adaptation of a model to data sets, in a store of its own."""

    def run(model: Path | str, data: dict[str, Any], languages: Sequence[str], **changes: Any) -> Outlook:
        prepared = prepare_study(study_of(model, data, **changes), tmp_path, Watcher())
        with Store(tmp_path / "run") as store:
            stages = prepared.plan(store, tmp_path).stages
            return look(prepared, Executor(store), languages=languages, stages=stages, base_folder=tmp_path)

    return run


def test_the_outlook_counts_rows_costs_and_room_and_can_be_written(
    looked: Look, tmp_path: Path, tiny_model: Path
) -> None:
    write(tmp_path / "rows.jsonl", [*rows_in("de"), {"instruction": "Was?", "output": ""}])
    source = {"source": "rows.jsonl", "language": "de", "max_broken_share": 0.1}
    found = looked(tiny_model, {"rows": source}, ["de"], instructions="worldbook:counting/en")
    data = found.data["rows"]
    assert (data.counts.rows, data.counts.broken, data.counts.held_out, data.counts.train) == (41, 1, 5, 35)
    assert data.languages.rows == {"de": 40}
    assert found.has_chat_template
    assert found.alike[0].against == "worldbook:counting/en"
    assert not found.alike[0].sampled
    similarity = found.alike[0].similarity
    assert similarity is not None
    assert 0 < similarity.des < 0.8  # other tasks
    assert found.room.memory_bytes is not None
    assert found.room.memory_bytes > 16 * found.parameters - 1
    assert from_json(Outlook, to_json(found)) == found
    text = "\n".join(outlook_lines(found))
    assert "41 rows (40 de" in text
    assert "35 are trained on (1 broken, 5 held out to measure on)" in text
    assert f"DES {similarity.corrected:.2f}" in text
