"""The table and the page say what the result says, and nothing that a model or a data set says is executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lingraft.config.schema import Study
from lingraft.report.page import write_page
from lingraft.report.tables import arrow, study_table


def score(value: float) -> dict[str, Any]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 40}


def scores(task: float, german: float) -> dict[str, Any]:
    return {
        "task_ability": score(task),
        "language_ability": score(german),
        "per_language": {
            "de": {**score(german), "bits_per_character": 1.5},
            "en": {"value": None, "bits_per_character": 1.1},
        },
        "wrong_language": 0.25,
        "left_out": ["ifeval: item 7: needs punkt"],
        "truncated": {"worldbook:lookup/en": 2},
        "tasks": {"worldbook:lookup/en": score(task)},
    }


def difference(value: float, half_width: float) -> dict[str, Any]:
    return {
        "value": value,
        "low": value - half_width,
        "high": value + half_width,
        "smallest_visible": 0.07,
        "n": 40,
    }


def done_cell(strategy: str, seed: int = 0) -> dict[str, Any]:
    return {
        "data": "similar",
        "strategy": strategy,
        "seed": seed,
        "options": {},
        "status": "done",
        "reason": None,
        "des": 0.912,
        "encoder": "some-encoder==1",
        "mpd": {"from_phase_one": 0.31, "pair": None},
        "retention": 0.8,
        "gain": 0.3,
        "difference": {"task_ability": difference(-0.1, 0.05), "language_ability": difference(0.3, 0.1)},
        "scores": scores(0.4, 0.6),
        "training": {
            "examples": 190,
            "replayed": 0,
            "truncated": 1,
            "dropped": 0,
            "tokens": 10000,
            "steps": 20,
            "trainable_parameters": 10,
            "frozen_parameters": 3,
        },
        "phases": [{"phase": "two", "data": "similar", "strategy": strategy, "losses": [[1, 2.0], [2, 1.5]]}],
        "checkpoint": None,
        "seconds": 30.0,
    }


def result(tmp_path: Path, cells: list[dict[str, Any]]) -> dict[str, Any]:
    return {"run": str(tmp_path), "base": scores(0.2, 0.1), "phase_one": scores(0.5, 0.3), "cells": cells}


STUDY = Study.model_validate(
    {
        "name": "tiny",
        "model": "embedded:smollm2-135m",
        "phases": [
            {"name": "one", "data": {"e": {"source": "e"}}},
            {"name": "two", "data": {"d": {"source": "d"}}},
        ],
    }
)


def test_the_table_has_base_phase_one_and_every_cell(tmp_path: Path) -> None:
    failed = {
        "data": "other",
        "strategy": "lora",
        "seed": 0,
        "status": "failed",
        "reason": "no memory\nstack",
    }
    table = study_table(result(tmp_path, [done_cell("plain"), failed]))
    assert [row[:2] for row in table.rows] == [
        ("base model", ""),
        ("phase 1", ""),
        ("similar", "plain"),
        ("other", "lora"),
    ]
    titles = [column.title for column in table.columns]
    plain = dict(zip(titles, table.rows[2], strict=True))
    assert plain["task ability"] == "0.400 [0.30, 0.50] ▼"
    assert plain["change"] == "-0.100 [-0.15, -0.05]"
    assert plain["de"] == "0.600"
    assert plain["retention"] == "80.0 %"
    assert "en" not in titles
    assert table.rows[3][2] == "failed"
    assert {len(row) for row in table.rows} == {len(titles)}


def test_seeds_have_a_column_where_there_are_several(tmp_path: Path) -> None:
    table = study_table(result(tmp_path, [done_cell("plain", 0), done_cell("plain", 1)]))
    assert table.columns[2].title == "seed"
    assert [row[2] for row in table.rows] == ["", "", "0", "1"]
    assert {len(row) for row in table.rows} == {len(table.columns)}


@pytest.mark.parametrize(("value", "expected"), [(0.2, "▲"), (-0.2, "▼"), (0.01, "=")])
def test_the_arrow_needs_an_interval_that_excludes_zero(value: float, expected: str) -> None:
    assert arrow(difference(value, 0.05)) == expected


def test_the_page_stands_alone_and_escapes_what_it_is_told(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    failed = {"data": evil, "strategy": "lora", "seed": 0, "status": "failed", "reason": evil}
    path = write_page(result(tmp_path, [done_cell(evil), failed]), STUDY)
    html = path.read_text(encoding="utf-8")
    assert path == tmp_path / "report" / "index.html"
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert html.count("<svg") == 3
    assert "task ability 0.070 (40 items)" in html
    assert "1 items are left out" in html
    assert "http://" not in html.replace("http://www.w3.org/", "")
    assert "https://" not in html


def test_a_page_without_a_finished_cell_still_says_why(tmp_path: Path) -> None:
    failed = {"data": "x", "strategy": "lora", "seed": 0, "status": "failed", "reason": "no memory"}
    html = write_page({**result(tmp_path, [failed]), "phase_one": None}, STUDY).read_text(encoding="utf-8")
    assert "no memory" in html
