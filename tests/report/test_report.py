"""The table and the page say what the result says, and nothing that a model or a data set says is executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lingraft.config.schema import Study
from lingraft.report.figures import to_svg, trade_off
from lingraft.report.page import render_page, write_page
from lingraft.report.tables import (
    answer_table,
    arrow,
    change_table,
    failures,
    forgetting_table,
    noise_note,
    precision_note,
    seed_table,
    strategy_cost_table,
    study_table,
)


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
        "truncated_prompts": {"worldbook:counting/de": 3},
        "tasks": {"worldbook:lookup/en": score(task)},
    }


def difference(value: float, half_width: float) -> dict[str, Any]:
    return {
        "value": value,
        "low": value - half_width,
        "high": value + half_width,
        "minimum_detectable_effect": 0.07,
        "n": 40,
    }


TRAINED = {
    "data": [
        {"broken": 3, "filtered": {"near-duplicate": 4}, "incomplete_groups": 5, "held_out": 6}
        | {"withheld": 2, "shortfall": 7},
        {"broken": 0, "filtered": {}, "incomplete_groups": None, "held_out": 6}
        | {"withheld": 1, "shortfall": 0},
    ],
    "examples": 190,
    "replayed": 0,
    "truncated": 1,
    "dropped": 0,
    "tokens": 10000,
    "steps": 20,
    "trainable_parameters": 10,
    "frozen_parameters": 3,
}


def matrix(phases: tuple[str, ...], rows: dict[str, list[float]], backward: float | None) -> dict[str, Any]:
    return {
        "columns": [
            {"phase": phase, "data": f"set {phase}", "measured_by": ["de"], "n": 40} for phase in phases
        ],
        "unmeasured": [],
        "rows": [{"after": name, "scores": [score(value) for value in row]} for name, row in rows.items()],
        "average": score(sum(list(rows.values())[-1]) / len(phases)),
        "backward_transfer": None if backward is None else difference(backward, 0.05),
        "forward_transfer": None,
        "forgetting": None if backward is None else -backward,
    }


def done_cell(strategy: str, seed: int = 0, task: float = 0.4) -> dict[str, Any]:
    change = round(task - 0.5, 3)
    rows = {"base": [0.2, 0.1], "one": [0.5, 0.3], "two": [task, 0.6]}
    return {
        "data": "similar",
        "strategy": strategy,
        "seed": seed,
        "options": {},
        "status": "done",
        "reason": None,
        "des": 0.912,
        "des_corrected": {"value": 0.934, "low": 0.921, "high": 0.947, "n": [190, 190]},
        "drift": None,
        "encoder": "some-encoder==1",
        "mpd": {"from_phase_one": 0.31, "pair": None},
        "retention": 0.8,
        "gain": 0.3,
        "difference": {
            "task_ability": difference(change, 0.05),
            "language_ability": difference(0.3, 0.1),
            "tasks": {"worldbook:lookup/en": difference(change, 0.05) | {"p": 0.004, "p_adjusted": 0.012}},
            "correction": "holm",
        },
        "scores": scores(task, 0.6),
        "forgetting": {"ability": matrix(("one", "two"), rows, change), "bits_per_character": None},
        "training": TRAINED,
        "cost": {
            "prepare_seconds": 3.0 if strategy == "ssu" else 0.0,
            "training_seconds": 20.0 if strategy == "plain" else 22.0,
            "resumed_from": None,
            "combine_seconds": 0.0,
            "peak_bytes": 4e9,
        },
        "phases": [
            {
                "phase": "two",
                "data": "similar",
                "strategy": strategy,
                "des": {"from_previous": 0.912, "from_phase_one": 0.912},
                "mpd": {"from_previous": None, "from_phase_one": 0.31},
                "training": TRAINED,
                "losses": [[1, 2.0], [2, 1.5]],
            }
        ],
        "checkpoint": None,
        "seconds": 30.0,
    }


def result(tmp_path: Path, cells: list[dict[str, Any]]) -> dict[str, Any]:
    seeds = list(dict.fromkeys(cell["seed"] for cell in cells))
    phase_ones = [
        {"data": "e", "strategy": "plain", "seed": seed, "scores": scores(0.5 + 0.1 * seed, 0.3)}
        for seed in seeds
    ]
    return {
        "run": str(tmp_path),
        "base": scores(0.2, 0.1),
        "base_reason": None,
        "phase_one": phase_ones[0]["scores"],
        "phase_ones": phase_ones,
        "cells": cells,
        "over_seeds": [],
        "precision": {"training": ["float32"], "evaluation": "float32", "device": "cpu"},
    }


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


def test_several_seeds_are_summed_up_in_one_row_with_their_range(tmp_path: Path) -> None:
    table = study_table(result(tmp_path, [done_cell("plain", 0, 0.4), done_cell("plain", 1, 0.3)]))
    assert table.columns[2].title == "seeds"
    titles = [column.title for column in table.columns]
    base, phase_one, plain = (dict(zip(titles, row, strict=True)) for row in table.rows)
    assert (base["seeds"], phase_one["seeds"], plain["seeds"]) == ("", "2", "2")
    assert base["task ability"] == "0.200 [0.10, 0.30]"
    assert phase_one["task ability"] == "0.550 (0.50 to 0.60)"
    assert plain["task ability"] == "0.350 (0.30 to 0.40) ▼"
    assert plain["change"] == "-0.150 (-0.20 to -0.10)"
    assert {len(row) for row in table.rows} == {len(table.columns)}


def test_seeds_that_disagree_get_no_arrow(tmp_path: Path) -> None:
    table = study_table(result(tmp_path, [done_cell("plain", 0, 0.4), done_cell("plain", 1, 0.7)]))
    row = dict(zip([column.title for column in table.columns], table.rows[2], strict=True))
    assert row["task ability"] == "0.550 (0.40 to 0.70) ="
    assert row["corrected"] == "0.934 (0.93 to 0.93)"


def test_costs_are_ratios_to_plain_of_the_same_data_and_seed(tmp_path: Path) -> None:
    table = strategy_cost_table(result(tmp_path, [done_cell("plain"), done_cell("ssu")]))
    assert table is not None
    assert table.rows == (("ssu", "1", "1.10", "0.15", "1.00"),)
    several = [done_cell(name, seed) for seed in (0, 1) for name in ("plain", "ssu")]
    several[3]["cost"]["training_seconds"] = 30.0
    both = strategy_cost_table(result(tmp_path, several))
    assert both is not None
    assert both.rows[0][:3] == ("ssu", "2", "1.30 (1.10 to 1.50)")
    several[3]["cost"]["resumed_from"] = 4  # its seconds are of the rest only
    rest = strategy_cost_table(result(tmp_path, several))
    assert rest is not None
    assert rest.rows[0][:3] == ("ssu", "1", "1.10")
    assert strategy_cost_table(result(tmp_path, [done_cell("ssu")])) is None


def test_drift_has_a_column_and_a_figure_where_it_was_measured(tmp_path: Path) -> None:
    layers = [
        {"layer": layer, "mean_cosine": 0.9, "covariance_change": change}
        for layer, change in enumerate((0.1, 0.3))
    ]
    unmeasured, measured = done_cell("plain"), done_cell("lora") | {"drift": {"layers": layers}}
    assert "drift" not in [column.title for column in study_table(result(tmp_path, [unmeasured])).columns]
    found = result(tmp_path, [unmeasured, measured])
    table = study_table(found)
    place = [column.title for column in table.columns].index("drift")
    assert [row[place] for row in table.rows[-2:]] == ["-", "0.200"]
    html = write_page(found, STUDY).read_text(encoding="utf-8")
    assert html.count("<svg") == 5
    assert "Drift of the hidden states" in html


def test_a_seed_that_failed_is_counted_beside_those_that_are_done(tmp_path: Path) -> None:
    failed = {"data": "similar", "strategy": "plain", "seed": 1, "status": "failed", "reason": "no memory"}
    found = result(tmp_path, [done_cell("plain"), failed])
    assert study_table(found).rows[-1][:3] == ("similar", "plain", "1 of 2")
    by_seed = seed_table(found)
    assert by_seed is not None
    assert [row[:4] for row in by_seed.rows[-2:]] == [
        ("similar", "plain", "0", "0.912"),
        ("similar", "plain", "1", "failed"),
    ]


def test_one_seed_has_no_table_by_seed(tmp_path: Path) -> None:
    assert seed_table(result(tmp_path, [done_cell("plain")])) is None


def test_several_phase_ones_each_have_a_row(tmp_path: Path) -> None:
    found = result(tmp_path, [done_cell("plain")])
    found["phase_ones"].append({"data": "orca", "strategy": "plain", "seed": 0, "scores": scores(0.6, 0.2)})
    assert [row[:2] for row in study_table(found).rows] == [
        ("base model", ""),
        ("phase 1: e", "plain"),
        ("phase 1: orca", "plain"),
        ("similar", "plain"),
    ]


def test_a_failed_base_is_told_with_its_reason(tmp_path: Path) -> None:
    found = {**result(tmp_path, [done_cell("plain")]), "base": None, "base_reason": "no memory <b>"}
    assert failures(found) == ["base model: no memory <b>"]
    assert "base model: no memory &lt;b&gt;" in render_page(found, STUDY)
    assert [row[0] for row in study_table(found).rows] == ["phase 1", "similar"]


def test_the_forgetting_table_has_a_row_per_phase_and_the_summary_in_the_last(tmp_path: Path) -> None:
    found = result(tmp_path, [done_cell("plain")])
    table = forgetting_table(found, "ability", with_intervals=False)
    assert table is not None
    assert [column.title for column in table.columns[3:]] == [
        *("one", "two", "average", "backward", "forward", "forgetting")
    ]
    assert table.rows == (
        ("similar", "plain", "base", "0.200", "0.100", "", "", "", ""),
        ("similar", "plain", "one", "0.500", "0.300", "", "", "", ""),
        (
            *("similar", "plain", "two", "0.400", "0.600"),
            *("0.500 [0.40, 0.60]", "-0.100 [-0.15, -0.05]", "-", "+0.100"),
        ),
    )
    assert forgetting_table(found, "bits_per_character", with_intervals=False) is None
    with_intervals = forgetting_table(found, "ability", with_intervals=True)
    assert with_intervals is not None
    assert with_intervals.rows[0][3] == "0.200 [0.10, 0.30]"


def test_the_forgetting_table_averages_seeds(tmp_path: Path) -> None:
    found = result(tmp_path, [done_cell("plain", 0, 0.4), done_cell("plain", 1, 0.3)])
    table = forgetting_table(found, "ability", with_intervals=True)
    assert table is not None
    assert table.rows[2][3:6] == ("0.350", "0.600", "0.475 (0.45 to 0.50)")
    assert table.rows[2][6] == "-0.150 (-0.20 to -0.10)"


def test_a_mixed_cell_stands_beside_chains_with_fewer_columns(tmp_path: Path) -> None:
    mixed = done_cell("mixed")
    mixed["forgetting"] = {
        "ability": matrix(("two",), {"base": [0.1], "mixed": [0.7]}, None),
        "bits_per_character": None,
    }
    table = forgetting_table(result(tmp_path, [done_cell("plain"), mixed]), "ability", with_intervals=False)
    assert table is not None
    assert table.rows[-1] == (
        *("similar", "mixed", "mixed", "-", "0.700"),
        *("0.700 [0.60, 0.80]", "-", "-", "-"),
    )


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
    assert html.count("<svg") == 4
    assert "currentColor" in html  # drawn in the page's ink, light or dark
    assert "task ability 0.070 (40 items)" in html
    assert "1 items are left out" in html
    assert (
        "prompts longer than the model can read, which lost their beginning: worldbook:counting/de 3." in html
    )
    assert "http://" not in html.replace("http://www.w3.org/", "")
    assert "https://" not in html


def test_a_page_without_a_finished_cell_still_says_why(tmp_path: Path) -> None:
    failed = {"data": "x", "strategy": "lora", "seed": 0, "status": "failed", "reason": "no memory"}
    nothing = {**result(tmp_path, [failed]), "phase_one": None, "phase_ones": []}
    html = write_page(nothing, STUDY).read_text(encoding="utf-8")
    assert "no memory" in html


def test_the_trade_off_has_a_point_for_each_strategy_and_seeds_make_one(tmp_path: Path) -> None:
    cells = [done_cell("plain", seed, task) for seed, task in ((0, 0.4), (1, 0.2))] + [done_cell("lora")]
    pooled = {
        "data": "similar",
        "strategy": "plain",
        "seeds": 2,
        "task_ability": difference(-0.2, 0.04),
        "language_ability": difference(0.3, 0.05),
    }
    chart = trade_off(result(tmp_path, cells) | {"over_seeds": [pooled]})
    assert chart is not None
    points = {row["strategy"]: row for row in chart.to_dict()["data"]["values"]}
    assert points.keys() == {"plain", "lora"}
    assert (points["plain"]["change"], points["plain"]["change_low"]) == (-0.2, pytest.approx(-0.24))
    assert points["lora"]["change"] == pytest.approx(-0.1)
    assert "lora" in to_svg(chart)
    table = change_table(result(tmp_path, cells) | {"over_seeds": [pooled]})
    assert table is not None
    assert table.rows == (
        (
            "similar",
            "plain",
            "2",
            "-0.200 [-0.24, -0.16] ▼",
            "-0.30 to -0.10",
            "+0.300 [+0.25, +0.35]",
            "0.070",
        ),
    )
    assert "Changes over seeds" in render_page(result(tmp_path, cells) | {"over_seeds": [pooled]}, STUDY)
    assert change_table(result(tmp_path, cells)) is None
    failed = done_cell("lora") | {"status": "failed", "reason": "it broke"}
    assert trade_off(result(tmp_path, [failed])) is None


def test_the_task_table_has_the_corrected_p_value_of_each_cell_and_names_the_correction(
    tmp_path: Path,
) -> None:
    page = render_page(result(tmp_path, [done_cell("plain")]), STUDY)
    assert "(p 0.012)" in page
    assert "corrected for the number of tasks of a cell by Holm" in page


def test_what_answers_were_like_and_the_noise_floor_are_told_where_they_were_measured(tmp_path: Path) -> None:
    cell = done_cell("plain")
    found = result(tmp_path, [cell])
    assert answer_table(found) is None
    assert noise_note(found) is None
    assert "What the answers were like" not in render_page(found, STUDY)
    counts = {"n": 80, "empty": 1, "looping": 2, "truncated": 3}
    quiet, loud = ({"low": 0.5, "high": 0.5 + width, "deviation": width / 2} for width in (0.01, 0.04))
    found["base"] |= {"answers": counts, "undetermined_language": 4, "wrong_language": None}
    found["base"]["noise"] = {"repeats": 3, "task_ability": quiet, "language_ability": None}
    cell["scores"] |= {"answers": counts, "undetermined_language": 5}
    cell["scores"]["noise"] = {"repeats": 3, "task_ability": loud, "language_ability": quiet}
    table = answer_table(found)
    assert table is not None
    assert table.rows == (
        ("base model", "80", "1", "2", "3", "-", "4"),
        ("similar / plain / seed 0", "80", "1", "2", "3", "25.0%", "5"),
    )
    assert noise_note(found) == (
        "Noise floor: generated 3 times, each in other batches, scores moved: task ability by up to 0.040 (standard "
        "deviation 0.020), language ability by up to 0.010 (standard deviation 0.005)."
    )
    page = render_page(found, STUDY)
    assert "What the answers were like" in page
    assert "Noise floor" in page


def test_table_and_page_say_in_which_precision_models_were_trained_and_evaluated(tmp_path: Path) -> None:
    used = {"training": ["bf16", "bf16_pure"], "evaluation": "bf16", "device": "NVIDIA H100"}
    found = result(tmp_path, [done_cell("plain")]) | {"precision": used}
    said = "Trained in bf16 and bf16_pure, evaluated in bf16 on NVIDIA H100."
    assert precision_note(found) == said
    assert said in render_page(found, STUDY)
    nothing = {"precision": used | {"training": []}}
    assert precision_note(nothing) == "Evaluated in bf16 on NVIDIA H100."
