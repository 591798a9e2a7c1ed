"""The English parallel of a set: read once and only where a cell takes rows of it, and as its own fields say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lingraft.config.schema import DataSource, Study
from lingraft.data import example_table, spool
from lingraft.data.example import Example
from lingraft.data.mixing import replay_order
from lingraft.data.sources import LoadedData, load_data
from lingraft.strategies.base import Context
from lingraft.study import materials as module
from lingraft.study.contamination import training_rows
from lingraft.study.materials import Drawn, Materials, gather
from lingraft.study.result import CellResult
from lingraft.study.run import run_study

ROWS = 60


def english_rows() -> list[dict[str, Any]]:
    return [
        {
            "id": str(i),
            "instruction": f"English question number {i}",
            "output": f"English answer number {i}",
            "second": {"text": f"Another answer to {i}"},
        }
        for i in range(ROWS)
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


def study_of(
    folder: Path, model: Path, english: Any, strategies: list[Any], *, phase_one: Any = None, **changes: Any
) -> Study:
    rows = [{"id": str(i), "instruction": f"Frage {i}", "output": f"Antwort {i}"} for i in range(10)]
    german = {
        "source": write(folder / "de.jsonl", rows),
        "language": "de",
        "parallel": "id",
        "english": english,
        "strategies": strategies,
    }
    content: dict[str, Any] = {
        "name": "english",
        "phases": [
            phase_one or {"name": "one", "checkpoint": str(model)},
            {"name": "two", "data": {"german": german}},
        ],
        "measures": [],
        "held_out": 2,
        **({} if phase_one is None else {"model": str(model)}),
        **changes,
    }
    return Study.model_validate(content)


def drawn(study: Study, materials: Materials, seed: int = 0) -> Drawn:
    found = materials.drawn_english(study.phases[1].data["german"], materials.data["two", "german"], seed)
    assert found is not None
    return found


@pytest.fixture
def sources_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the sources that a study reads, in order."""
    read: list[str] = []

    def counting(spec: DataSource, **options: Any) -> LoadedData:
        read.append(Path(spec.source).name)
        return load_data(spec, **options)

    monkeypatch.setattr(module, "load_data", counting)
    return read


OWN_ROWS = {"name": "one", "data": {"english": {"source": "worldbook:lookup/en"}}}


@pytest.mark.parametrize(
    ("strategies", "phase_one", "times"),
    [
        (["plain"], None, 0),
        (["plain", {"freeze_random": {"share": 0.5}}], None, 0),
        ([{"english_replay": {"share": 0}}], None, 0),
        ([{"generative_replay": {"prompts": "self"}}], None, 0),
        ([{"english_replay": {"from": "phase_one"}}, "mixed"], OWN_ROWS, 0),
        (["ssu"], OWN_ROWS, 0),  # it looks at Phase 1's rows, which are known
        (["ssu"], None, 1),
        (["generative_replay"], None, 1),
        (["plain", "english_replay", {"english_replay": {"share": 0.3, "name": "more"}}, "distill"], None, 1),
    ],
)
def test_english_is_read_once_and_only_where_a_cell_takes_rows_of_it(
    tmp_path: Path,
    tiny_model: Path,
    sources_read: list[str],
    strategies: list[Any],
    phase_one: Any,
    times: int,
) -> None:
    source = write(tmp_path / "en.jsonl", english_rows())
    study = study_of(tmp_path, tiny_model, source, strategies, phase_one=phase_one, seeds=[0, 1])
    materials = gather(study, tmp_path)
    for cell in materials.cells:
        materials.drawn_english(study.phases[1].data["german"], materials.data["two", "german"], cell.seed)
    assert sources_read.count("en.jsonl") == times
    assert sources_read.count("de.jsonl") == 1


def test_a_limit_draws_so_many_rows_by_the_seed_of_those_that_are_not_held_out(
    tmp_path: Path, tiny_model: Path
) -> None:
    source = write(tmp_path / "en.jsonl", english_rows())
    found = {}
    for limit in (None, 5, 12):
        study = study_of(
            tmp_path, tiny_model, {"source": source, "limit": limit}, ["english_replay"], seeds=[0, 1]
        )
        materials = gather(study, tmp_path)
        held_out = {one.group for one in materials.data["two", "german"].held_out}
        assert len(held_out) == 2
        for seed in (0, 1):
            own = drawn(study, materials, seed)
            assert len(own.rows) == (ROWS - 2 if limit is None else limit)
            assert not held_out & {one.group for one in own.rows}
            assert own.counts.train == len(own.rows)
            assert own.counts.shortfall == 0
            found[limit, seed] = own
        assert len(list(training_rows(study, materials))) == 8 + (ROWS - 2 if limit is None else 2 * limit)
    ids = {key: {one.id for one in own.rows} for key, own in found.items()}
    assert ids[5, 0] < ids[12, 0] < ids[None, 0] == ids[None, 1]
    assert ids[12, 0] != ids[12, 1]
    assert found[None, 0].identity == found[None, 1].identity  # as before limits were heeded
    assert len({json.dumps(own.identity, sort_keys=True) for own in found.values()}) == 5


def test_a_limit_above_what_there_is_falls_short_in_the_record(tmp_path: Path, tiny_model: Path) -> None:
    source = write(tmp_path / "en.jsonl", english_rows())
    study = study_of(tmp_path, tiny_model, {"source": source, "limit": 100}, ["english_replay"])
    own = drawn(study, gather(study, tmp_path))
    assert own.counts.shortfall == 100 - (ROWS - 2)


def texts(rows: Any) -> set[str]:
    return {row.messages[-1].content for row in rows}


@pytest.mark.parametrize(
    ("fields", "answer", "rows"),
    [
        ({}, "English answer number 30", ROWS - 2),
        ({"fields": {"output": "second.text"}}, "Another answer to 30", ROWS - 2),
        (
            {"format": "prompt_completion", "fields": {"prompt": "instruction", "completion": "second.text"}},
            None,
            None,
        ),
        ({"filters": {"near_duplicates": 1.0}}, None, ROWS - 3),
        ({"parallel": "id"}, "English answer number 30", ROWS - 2),
        ({"limit": 7, "filters": {"near_duplicates": 1.0}}, None, 7),
    ],
)
def test_what_decides_rows_of_any_data_set_decides_those_of_english(
    tmp_path: Path, tiny_model: Path, fields: dict[str, Any], answer: str | None, rows: int | None
) -> None:
    rows_there = english_rows()
    rows_there[50] |= {key: rows_there[40][key] for key in ("instruction", "output")}
    source = write(tmp_path / "en.jsonl", rows_there)
    study = study_of(tmp_path, tiny_model, {"source": source, **fields}, ["english_replay"])
    own = drawn(study, gather(study, tmp_path))
    assert {row.language for row in own.rows} == {"en"}
    assert answer is None or answer in texts(own.rows)
    assert rows is None or len(own.rows) == rows
    if "format" in fields:
        assert "Another answer to 30" in texts(own.rows)


def test_broken_rows_of_english_are_counted_in_the_record(tmp_path: Path, tiny_model: Path) -> None:
    rows = english_rows()
    del rows[7]["output"]
    english = {"source": write(tmp_path / "en.jsonl", rows), "max_broken_share": 0.1}
    study = study_of(tmp_path, tiny_model, english, ["english_replay"])
    own = drawn(study, gather(study, tmp_path))
    assert own.counts.broken == 1
    assert len(own.rows) == ROWS - 3


def test_large_english_stays_on_disk_and_is_not_gone_through_for_every_cell(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "BYTES_IN_MEMORY", 0)
    parsed: list[str] = []
    parse = example_table._example_from_json

    def counting(row: list[Any]) -> Example:
        parsed.append(row[1])
        return parse(row)

    monkeypatch.setattr(example_table, "_example_from_json", counting)
    source = write(tmp_path / "en.jsonl", english_rows())
    study = study_of(tmp_path, tiny_model, source, ["english_replay"], seeds=[0, 1, 2])
    materials = gather(study, tmp_path)
    own = drawn(study, materials)
    assert not isinstance(own.rows, tuple)
    data = materials.data["two", "german"].split(0).train
    parsed.clear()
    assert all(drawn(study, materials, seed) is own for seed in (0, 1, 2))
    context = Context(None, tiny_model, (), own.rows, 0, tmp_path, tmp_path)
    order = replay_order(own.rows, context.generator("replay"), data)
    assert parsed == []  # neither the rows nor their order takes another reading
    groups = {one.group for one in data}
    assert {own.rows[int(row)].group for row in order[: len(data)]} == groups


def test_what_a_limit_leaves_out_is_not_looked_at_for_collisions(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    turns = module._turns

    def counting(example: Example) -> str:
        looked.append(example.language)
        return turns(example)

    monkeypatch.setattr(module, "_turns", counting)
    source = write(tmp_path / "en.jsonl", english_rows())
    study = study_of(tmp_path, tiny_model, {"source": source, "limit": 5}, ["english_replay"])
    drawn(study, gather(study, tmp_path))
    assert looked.count("en") == 5


def test_a_study_replays_no_more_rows_than_the_limit_of_english(tmp_path: Path, tiny_model: Path) -> None:
    english = {"source": write(tmp_path / "en.jsonl", english_rows()), "limit": 3}
    tasks = [{"task": "worldbook:lookup", "limit": 2, "max_new_tokens": 2}]
    study = study_of(
        tmp_path,
        tiny_model,
        english,
        [{"english_replay": {"share": 0.5}}],
        contamination=None,
        evaluate={"task_ability": tasks, "language_ability": tasks},
    )
    result = run_study(study, runs=tmp_path / "runs", base_folder=tmp_path)
    (cell,) = result.cells
    assert isinstance(cell, CellResult), cell
    training = cell.training
    assert (training.replayed, training.replay_shortfall) == (3, 8 - 3)
    own, parallel = training.data
    assert (own.train, own.held_out) == (8, 2)
    assert (parallel.source, parallel.train) == (english["source"], 3)
