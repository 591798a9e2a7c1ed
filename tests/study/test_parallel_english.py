"""A set's English parallel is grouped as the set is, so that replay knows which rows say the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lingraft.config.schema import Study
from lingraft.data.mixing import replay_order
from lingraft.strategies.base import Context
from lingraft.study.materials import gather


def write(path: Path, language: str, rows: range) -> str:
    lines = [
        {"id": str(i), "instruction": f"{language} question {i}", "output": f"{language} answer {i}"}
        for i in rows
    ]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return str(path)


@pytest.mark.parametrize("parallel", ["id", "rows"])
def test_rows_parallel_by_id_or_place_find_their_english(
    tmp_path: Path, tiny_model: Path, parallel: str
) -> None:
    german = {
        "source": write(tmp_path / "de.jsonl", "de", range(6)),
        "language": "de",
        "parallel": parallel,
        "english": write(tmp_path / "en.jsonl", "en", range(30)),
        "strategies": ["english_replay"],
    }
    content: dict[str, Any] = {
        "name": "parallel",
        "phases": [
            {"name": "one", "checkpoint": str(tiny_model)},
            {"name": "two", "data": {"german": german}},
        ],
        "measures": [],
        "held_out": 2,
    }
    study = Study.model_validate(content)
    materials = gather(study, Path())
    data = materials.data["two", "german"]
    english = materials.drawn_english(study.phases[1].data["german"], data, 0)
    assert english is not None
    kept = english.rows
    held_out = {example.group for example in data.held_out}
    assert len(held_out) == 2
    assert not held_out & {example.group for example in kept}
    assert len(kept) == 28  # the English of what is held out is not replayed
    context = Context(None, tiny_model, (), kept, 0, tmp_path, tmp_path)
    train = data.split(0).train
    first = replay_order(kept, context.generator("replay"), train)[: len(train)]
    assert {kept[int(row)].group for row in first} == {example.group for example in train}


def test_english_may_stand_in_a_field_of_the_same_rows(tmp_path: Path, tiny_model: Path) -> None:
    rows = [
        {"instruction": f"Frage {i}", "output": f"Antwort {i}", "english": {"question": f"Question {i}"}}
        for i in range(8)
    ]
    path = tmp_path / "de.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    german = {
        "source": str(path),
        "language": "de",
        "parallel": "rows",
        "english": {"source": str(path), "fields": {"instruction": "english.question"}},
        "strategies": [{"generative_replay": {"prompts": "parallel"}}],
    }
    content: dict[str, Any] = {
        "name": "field",
        "phases": [
            {"name": "one", "checkpoint": str(tiny_model)},
            {"name": "two", "data": {"german": german}},
        ],
        "measures": [],
        "held_out": 2,
    }
    study = Study.model_validate(content)
    materials = gather(study, Path())
    english = materials.english_of(study.phases[1].data["german"])
    assert english is not None
    assert english.languages == ("en",)
    by_group = {one.group: one.instruction for one in english.loaded.examples}
    for one in materials.data["two", "german"].loaded.examples:
        assert by_group[one.group] == one.instruction.replace("Frage", "Question")
