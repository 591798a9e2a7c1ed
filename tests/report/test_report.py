"""The table and the page say what the result says, and nothing that a model or a data set says is executed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from example_result import difference, done_cell, failed_cell, matrix, phase_one, result, scores
from page_reader import assert_harmless, read_page
from pydantic import JsonValue

from lingraft.config.schema import Study
from lingraft.evaluate.results import (
    AnswerCounts,
    Forgetting,
    NoiseFloor,
    ScoreRange,
)
from lingraft.intervals.macro_mean import Ratio
from lingraft.measures.base import FROM_PHASE_ONE, Figure, Found, Measured
from lingraft.report.charts.trade_off import trade_off
from lingraft.report.drawing import draw
from lingraft.report.figures import job_of
from lingraft.report.notes import failures, notes
from lingraft.report.page import render_page, write_page
from lingraft.report.runs import report_of
from lingraft.report.tables import (
    answer_table,
    change_table,
    forgetting_table,
    seed_table,
    strategy_cost_table,
    study_table,
)
from lingraft.study.limits import LimitPlan, LimitResult
from lingraft.study.result import (
    CellResult,
    Precision,
    SeedDifferences,
)

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
    table = study_table(result(tmp_path, [done_cell("plain"), failed_cell("other")]))
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
    assert plain["retention"] == "80.0 % [70.0, 90.0]"
    assert "en" not in titles
    assert dict(zip(titles, table.rows[3], strict=True))["task ability"] == "failed"
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
    assert plain["change"] == "-0.150 [-0.19, -0.11] (-0.20 to -0.10)"
    assert plain["retention"] == "80.0 % [75.0, 85.0] (80.0 to 80.0)"
    assert plain["MPD"] == "0.310 (0.31 to 0.31)"
    assert plain["wrong lang."] == "25.0 % (25.0 to 25.0)"
    assert {len(row) for row in table.rows} == {len(table.columns)}


def test_seeds_that_disagree_are_said_to(tmp_path: Path) -> None:
    table = study_table(result(tmp_path, [done_cell("plain", 0, 0.4), done_cell("plain", 1, 0.7)]))
    row = dict(zip([column.title for column in table.columns], table.rows[2], strict=True))
    assert row["task ability"] == "0.550 (0.40 to 0.70) seeds disagree"
    assert row["corrected"] == "0.934 (0.93 to 0.93)"


def test_costs_are_ratios_to_plain_of_the_same_data_and_seed(tmp_path: Path) -> None:
    table = strategy_cost_table(result(tmp_path, [done_cell("plain"), done_cell("ssu")]))
    assert table is not None
    assert table.rows == (("ssu", "1", "1.10", "0.15", "1.00", "31%", "34%"),)
    several = [done_cell(name, seed) for seed in (0, 1) for name in ("plain", "ssu")]
    several[3] = replace(several[3], cost=replace(several[3].cost, training_seconds=30.0))
    both = strategy_cost_table(result(tmp_path, several))
    assert both is not None
    assert both.rows[0][:3] == ("ssu", "2", "1.30 (1.10 to 1.50)")
    resumed = replace(several[3].cost, resumed_from=4)  # its seconds are of the rest only
    several[3] = replace(several[3], cost=resumed)
    rest = strategy_cost_table(result(tmp_path, several))
    assert rest is not None
    assert rest.rows[0][:3] == ("ssu", "1", "1.10")
    assert strategy_cost_table(result(tmp_path, [done_cell("ssu")])) is None


def with_measure(cell: CellResult, name: str, measured: Measured) -> CellResult:
    (phase,) = cell.phases
    return replace(cell, phases=(replace(phase, measures=phase.measures | {name: measured}),))


def test_drift_has_a_column_and_a_figure_where_it_was_measured(tmp_path: Path) -> None:
    unmeasured, measured = (done_cell(name) for name in ("plain", "lora"))
    assert "drift" not in [column.title for column in study_table(result(tmp_path, [unmeasured])).columns]
    figures: dict[str, JsonValue] = {
        "mean_cosine": 0.9,
        "cka": None,
        "trace_change": None,
        "variance_change": None,
    }
    layers: list[JsonValue] = [
        figures | {"layer": n, "covariance_change": change} for n, change in enumerate((0.1, 0.3))
    ]
    drift = Found({"covariance": Figure(0.2)}, {"layers": layers})
    found = result(
        tmp_path,
        [
            with_measure(unmeasured, "drift", Measured({})),
            with_measure(measured, "drift", Measured({FROM_PHASE_ONE: drift})),
        ],
    )
    table = study_table(found)
    place = [column.title for column in table.columns].index("drift")
    assert [row[place] for row in table.rows[-2:]] == ["-", "0.200"]
    html = write_page(report_of(found, STUDY)).read_text(encoding="utf-8")
    assert html.count("<svg") == 7
    assert "Drift of the hidden states" in html


def test_a_seed_that_failed_is_counted_beside_those_that_are_done(tmp_path: Path) -> None:
    found = result(tmp_path, [done_cell("plain"), failed_cell(strategy="plain", seed=1)])
    assert study_table(found).rows[-1][:3] == ("similar", "plain", "1 of 2")
    by_seed = seed_table(found)
    assert by_seed is not None
    ability = [column.title for column in by_seed.columns].index("task ability")
    assert [(*row[:3], row[ability]) for row in by_seed.rows[-2:]] == [
        ("similar", "plain", "0", "0.400 [0.30, 0.50] ▼"),
        ("similar", "plain", "1", "failed"),
    ]


def test_one_seed_has_no_table_by_seed(tmp_path: Path) -> None:
    assert seed_table(result(tmp_path, [done_cell("plain")])) is None


def test_several_phase_ones_each_have_a_row(tmp_path: Path) -> None:
    found = result(tmp_path, [done_cell("plain")])
    found = replace(found, phase_ones=(*found.phase_ones, phase_one("orca", 0, scores(0.6, 0.2))))
    assert [row[:2] for row in study_table(found).rows] == [
        ("base model", ""),
        ("phase 1: e", "plain"),
        ("phase 1: orca", "plain"),
        ("similar", "plain"),
    ]


def test_a_failed_base_is_told_with_its_reason(tmp_path: Path) -> None:
    found = replace(result(tmp_path, [done_cell("plain")]), base=None, base_reason="no memory <b>")
    assert failures(found) == ["base model: no memory <b>"]
    assert "base model: no memory &lt;b&gt;" in render_page(report_of(found, STUDY))
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
            *("0.500 [0.40, 0.60]", "-0.100 [-0.15, -0.05] ▼", "-", "+0.100"),
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
    assert table.rows[2][6] == "-0.150 (-0.20 to -0.10) ▼"


def test_a_mixed_cell_stands_beside_chains_with_fewer_columns(tmp_path: Path) -> None:
    own = matrix(("two",), {"base": [0.1], "mixed": [0.7]}, None)
    mixed = replace(done_cell("mixed"), forgetting=Forgetting(own, None))
    table = forgetting_table(result(tmp_path, [done_cell("plain"), mixed]), "ability", with_intervals=False)
    assert table is not None
    assert table.rows[-1] == (
        *("similar", "mixed", "mixed", "-", "0.700"),
        *("0.700 [0.60, 0.80]", "-", "-", "-"),
    )


def test_the_page_stands_alone_and_escapes_what_it_is_told(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    failed = failed_cell(evil, reason=evil)
    path = write_page(report_of(result(tmp_path, [done_cell(evil), failed]), STUDY))
    html = path.read_text(encoding="utf-8")
    assert path == tmp_path / "report" / "index.html"
    assert evil not in html
    assert_harmless(html)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert html.count("<svg") == 5
    assert "currentColor" in html  # drawn in the page's ink, light or dark
    assert "task ability 0.070 (40 items)" in read_page(html).text
    assert html.count("1 item is left out") == 1  # of every model, and so said once
    assert html.count("<p>All models: worldbook:counting/de: 3 prompts are longer") == 1


def test_a_page_without_a_finished_cell_still_says_why(tmp_path: Path) -> None:
    nothing = replace(result(tmp_path, [failed_cell("x")]), phase_ones=())
    html = write_page(report_of(nothing, STUDY)).read_text(encoding="utf-8")
    assert "no memory" in html


def test_the_trade_off_has_a_point_for_each_strategy_and_seeds_make_one(tmp_path: Path) -> None:
    cells = [done_cell("plain", seed, task) for seed, task in ((0, 0.4), (1, 0.2))] + [done_cell("lora")]
    pooled = SeedDifferences(
        data="similar",
        strategy="plain",
        seeds=2,
        task_ability=difference(-0.2, 0.04),
        language_ability=difference(0.3, 0.05),
        retention=Ratio(0.6, 0.5, 0.7, 40, None),
        limits={},
    )
    several = replace(result(tmp_path, cells), over_seeds=(pooled,))
    chart = trade_off(several)
    rows = chart.to_dict()["data"]["values"]
    points = {row["strategy"]: row for row in rows if row["kind"] == "cell"}
    assert points.keys() == {"plain", "lora"}
    plain = points["plain"]
    assert (plain["task"], plain["task_low"], plain["task_high"]) == (0.3, 0.2, 0.4)  # means over the seeds
    assert (plain["language"], plain["seeds"]) == (0.6, "2")
    assert plain["said_change"] == "-0.200 [-0.240, -0.160] ▼"
    assert points["lora"]["task"] == 0.4
    assert sorted(row["task"] for row in rows if row["kind"] == "seed") == [0.2, 0.4]
    (drawing,) = draw([job_of(chart)])
    assert b"lora" in (drawing.content or b"")
    table = change_table(several)
    assert table is not None
    assert table.rows == (
        (
            "similar",
            "plain",
            "2",
            "-0.200 [-0.24, -0.16] ▼",
            "-0.30 to -0.10",
            "60.0 % [50.0, 70.0]",
            "+0.300 [+0.25, +0.35] ▲",
            "0.070",
        ),
    )
    assert "Changes over seeds" in render_page(report_of(several, STUDY))
    assert change_table(result(tmp_path, cells[1:])) is None
    assert 'id="trade-off"' not in render_page(report_of(result(tmp_path, [failed_cell()]), STUDY))


def test_the_task_table_has_the_corrected_p_value_of_each_cell_and_names_the_correction(
    tmp_path: Path,
) -> None:
    page = render_page(report_of(result(tmp_path, [done_cell("plain")]), STUDY))
    assert "(p 0.012) ▼" in read_page(page).text
    assert "corrected for the number of tasks of a cell by Holm" in page


def test_what_answers_were_like_and_the_noise_floor_are_told_where_they_were_measured(tmp_path: Path) -> None:
    cell = done_cell("plain")
    found = result(tmp_path, [cell])
    assert answer_table(found) is None
    assert len(notes(found)) == 3
    assert "What the answers were like" not in render_page(report_of(found, STUDY))
    faults = AnswerCounts(n=80, empty=1, looping=2, truncated=3)
    quiet, loud = (ScoreRange((0.5,), 0.5, 0.5 + width, width / 2, 3) for width in (0.01, 0.04))
    base = replace(scores(0.2, 0.1), answers=faults, undetermined_language=4, wrong_language=None)
    after = replace(cell.scores, answers=faults, undetermined_language=5)
    found = replace(
        found,
        base=replace(base, noise=NoiseFloor(3, quiet, None, None, {})),
        cells=(replace(cell, scores=replace(after, noise=NoiseFloor(3, loud, quiet, None, {}))),),
    )
    table = answer_table(found)
    assert table is not None
    assert table.rows == (
        ("base model", "80", "1", "2", "3", "-", "4"),
        ("similar / plain / seed 0", "80", "1", "2", "3", "25.0%", "5"),
    )
    assert notes(found)[-1] == (
        "Noise floor: generated 3 times, each in other batches, scores moved: task ability by up to 0.040 (standard "
        "deviation 0.020), language ability by up to 0.010 (standard deviation 0.005)."
    )
    page = render_page(report_of(found, STUDY))
    assert "Answers that used all" not in page  # the table has them, where there are any
    assert "What the answers were like" in page
    assert "Noise floor" in page


def test_table_and_page_say_in_which_precision_models_were_trained_and_evaluated(tmp_path: Path) -> None:
    used = Precision(training=("bf16", "bf16_pure"), evaluation="bf16", device="NVIDIA H100")
    found = replace(result(tmp_path, [done_cell("plain")]), precision=used)
    said = "Trained in bf16 and bf16_pure, evaluated in bf16 on NVIDIA H100."
    assert said in notes(found)
    assert said in render_page(report_of(found, STUDY))
    nothing = replace(found, precision=replace(used, training=()))
    assert "Evaluated in bf16 on NVIDIA H100." in notes(nothing)


def test_a_measure_that_could_not_be_taken_is_reported_with_its_reasons(tmp_path: Path) -> None:
    reasons = ("'x' is in th", None, "'y' is in vi", "'x' is in th")
    cells = [with_measure(done_cell(f"s{i}"), "des", Measured({}, one)) for i, one in enumerate(reasons)]
    found = result(tmp_path, cells)
    assert "DES is missing where 'x' is in th; and where 'y' is in vi." in notes(found)
    assert "and where &#39;y&#39; is in vi." in render_page(report_of(found, STUDY))


def test_scores_that_are_all_equal_are_said_to_tell_no_models_apart(tmp_path: Path) -> None:
    cells = [done_cell("plain"), done_cell("lora")]
    own = cells[0].difference
    nothing = replace(own.task_ability, value=0.0, low=-0.1, high=0.1, all_scores=0.0, answer="undecided")
    task = replace(own.tasks["worldbook:lookup/en"], all_scores=0.0, answer="undecided")
    equal = replace(own, task_ability=nothing, tasks={"worldbook:lookup/en": task})
    one = result(tmp_path, [replace(cells[0], difference=equal), cells[1]])
    said = (
        "All scores are 0 in task ability, worldbook:lookup/en: these tasks cannot tell similar / plain and Phase 1 "
        "apart."
    )
    assert said in notes(one)
    assert said in read_page(render_page(report_of(one, STUDY))).text
    row = dict(zip([c.title for c in study_table(one).columns], study_table(one).rows[2], strict=True))
    assert row["task ability"] == "0.400 [0.30, 0.50] ?"
    whole = replace(equal, language_ability=nothing)
    every = result(tmp_path, [replace(cell, difference=whole) for cell in cells])
    assert "All scores are 0: these tasks cannot tell these models apart." in notes(every)
    assert not any("All scores" in note for note in notes(result(tmp_path, cells)))


def test_a_retention_that_is_missing_has_its_reason_below_the_table(tmp_path: Path) -> None:
    missing = replace(done_cell("plain"), retention=Ratio(None, None, None, 40, "the score before is 0"))
    found = result(tmp_path, [missing, done_cell("lora")])
    row = dict(zip([c.title for c in study_table(found).columns], study_table(found).rows[2], strict=True))
    assert row["retention"] == "-"
    assert "Retention is missing where the score before is 0: similar / plain." in notes(found)
    several = result(tmp_path, [missing, replace(missing, seed=1)])
    assert "Retention is missing where the score before is 0: all cells." in notes(several)


def test_limits_have_a_column_and_say_how_many_items_could_decide_them(tmp_path: Path) -> None:
    plan = LimitPlan(limit=0.01, needed=7849, available=40, assumed_share=0.1)
    broken = LimitResult(limit=0.01, low=-0.15, high=-0.05, answer="broken")
    held = LimitResult(limit=0.01, low=-0.005, high=0.05, answer="held")
    seeds = [
        replace(done_cell("plain", seed, task), limits={"task_ability": own})
        for seed, task, own in ((0, 0.4, broken), (1, 0.7, held))
    ]
    found = result(tmp_path, seeds)
    (mean,) = found.over_seeds
    apart = replace(broken, answer="seeds_disagree")
    found = replace(
        found, limits={"task_ability": plan}, over_seeds=(replace(mean, limits={"task_ability": apart}),)
    )
    table, by_seed = study_table(found), seed_table(found)
    assert by_seed is not None
    place = [column.title for column in table.columns].index("limit task ability 0.01")
    assert [row[place] for row in table.rows] == ["-", "-", "seeds disagree"]
    assert [row[place] for row in by_seed.rows[-2:]] == ["broken", "held"]
    page = render_page(report_of(found, STUDY))
    assert '<td class="down">broken</td>' in page
    assert '<td class="up">held</td>' in page
    assert any("40 are asked, so it cannot be shown to hold" in note for note in notes(found))


def test_the_legend_names_every_sign_and_the_margin(tmp_path: Path) -> None:
    found = result(tmp_path, [done_cell("plain")])
    (legend,) = (note for note in notes(found) if "▲" in note)
    assert all(sign in legend for sign in ("▲", "▼", "=", "?", "±0.01"))
    assert "seeds disagree" not in legend
    several = result(tmp_path, [done_cell("plain", 0), done_cell("plain", 1)])
    assert any("seeds disagree" in note for note in notes(several))


def test_no_table_says_unchanged_where_everything_could_have_been_lost(tmp_path: Path) -> None:
    cell = done_cell("plain", task=0.5)
    unknown = replace(cell, difference=replace(cell.difference, task_ability=difference(0.0, 0.77)))
    found = result(tmp_path, [unknown])
    assert " =" not in "".join(study_table(found).rows[2])
    assert "0.500 [0.40, 0.60] ?" in study_table(found).rows[2]
    sure = replace(cell, difference=replace(cell.difference, task_ability=difference(0.0, 0.005)))
    assert "0.500 [0.40, 0.60] =" in study_table(result(tmp_path, [sure])).rows[2]
