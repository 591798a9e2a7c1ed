"""The figures show the result's values, stay small and readable, and what others named is data in them and no code."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import vl_convert
from example_result import difference, done_cell, phase_one, result, scores

from lingraft.data.tokenizer_cost import LanguageCost
from lingraft.evaluate.results import BitsPerCharacter, LanguageScore
from lingraft.intervals.macro_mean import Interval
from lingraft.measures.base import FROM_PHASE_ONE, Figure, Found, Measured, Plot, PlottedCell
from lingraft.measures.drift import Drift, LayerPoint, upper_to_lower
from lingraft.measures.look import BLUE, COLOURS, INK, VERMILLION, looks_of, shapes_of
from lingraft.report.cells import chosen_cells, mean_of, non_dominated, shown_cells
from lingraft.report.charts.abilities import bits_per_character, changes_by_task
from lingraft.report.charts.trade_off import TOGETHER, trade_off
from lingraft.report.charts.training import smoothed, training_loss
from lingraft.report.curves import MOST_LINES, curves_of
from lingraft.report.figures import DEEP, job_of
from lingraft.report.labels import PLACES, Label, Spot, label_box, placed
from lingraft.report.pairs import measures_of_cells
from lingraft.report.runs import report_of
from lingraft.report.sections import contents_of, trained
from lingraft.report.stage_records import differences_of, moved_tensors, trained_shares
from lingraft.stage_record import StageRecord
from lingraft.study.result import CellResult, StudyResult


def interval(value: float) -> Interval:
    return Interval(value, value - 0.05, value + 0.05, 40)


def cell_at(task: float, language: float, data: str, strategy: str, seed: int = 0) -> CellResult:
    cell = done_cell(strategy, seed)
    found = replace(cell.scores, task_ability=interval(task), language_ability=interval(language))
    phase = replace(cell.phases[0], data=data)
    return replace(cell, data=data, scores=found, phases=(phase,))


def cells_at(tmp_path: Path, values: Sequence[tuple[float, float]]) -> StudyResult:
    """Return a result whose cells have these task and language abilities, in one data set."""
    return result(tmp_path, [cell_at(*value, "d", f"s{number}") for number, value in enumerate(values)])


def values_of(chart: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = chart.to_dict()["data"]["values"]
    return rows


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [one / 12.92 if one <= 0.03928 else ((one + 0.055) / 1.055) ** 2.4 for one in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("paper", ["#ffffff", "#14181d"])
def test_every_colour_can_be_seen_on_light_and_on_dark_paper(colour: str, paper: str) -> None:
    low, high = sorted((luminance(colour), luminance(paper)))
    assert (high + 0.05) / (low + 0.05) >= 3  # WCAG 1.4.11


@pytest.mark.parametrize("deepest", [BLUE, VERMILLION])
def test_texts_on_tiles_can_be_read_on_every_depth(deepest: str) -> None:
    ends = [116 * luminance(colour) ** (1 / 3) - 16 for colour in ("#f3f3f3", deepest)]
    for number in range(1001):
        depth = number / 1000
        light = ((ends[0] + (ends[1] - ends[0]) * depth + 16) / 116) ** 3  # as the scale mixes: in CIELAB
        contrast = 1.05 / (light + 0.05) if depth > DEEP else (light + 0.05) / 0.05
        assert contrast >= 4.5  # WCAG 1.4.3


def test_strategies_differ_in_colour_or_fill_and_the_bounds_are_drawn_in_ink() -> None:
    names = ["lora", "plain", "mixed", *(f"s{number}" for number in range(10))]
    looks = looks_of(names)
    assert list(looks) == names
    assert len({(one.colour, one.is_filled) for one in looks.values()}) == len(names)
    assert (looks["plain"].colour, looks["plain"].fill) == (INK, INK)
    assert (looks["mixed"].colour, looks["mixed"].fill) == (INK, "transparent")
    assert looks["lora"].colour == COLOURS[0]
    assert len(set(shapes_of("abcdef").values())) == 6


def test_the_non_dominated_cells_are_known_by_hand(tmp_path: Path) -> None:
    found = cells_at(tmp_path, [(0.5, 0.1), (0.4, 0.4), (0.3, 0.3), (0.4, 0.2), (0.1, 0.6), (0.5, 0.1)])
    names = [one.strategy for one in non_dominated(shown_cells(found))]
    assert names == ["s0", "s5", "s1", "s4"]  # s0 and s5 are equal: neither dominates the other


def test_cells_of_other_tasks_dominate_each_other_in_nothing(tmp_path: Path) -> None:
    first, second = cell_at(0.2, 0.2, "a", "plain"), cell_at(0.5, 0.5, "b", "plain")
    assert len(non_dominated(shown_cells(result(tmp_path, [first, second])))) == 1
    second = replace(
        second, scores=replace(second.scores, tasks={"other/en": second.scores.tasks["worldbook:lookup/en"]})
    )
    found = result(tmp_path, [first, second])
    assert len(non_dominated(shown_cells(found))) == 2
    spec = trade_off(found).to_dict()
    assert {row["panel"] for row in spec["data"]["values"] if row["kind"] == "cell"} == {"a", "b"}


@pytest.mark.parametrize("seed", range(5))
def test_a_cell_is_left_out_exactly_if_another_one_dominates_it(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    values = [(round(draw.random(), 1), round(draw.random(), 1)) for _ in range(30)]
    kept = {one.strategy for one in non_dominated(shown_cells(cells_at(tmp_path, values)))}
    for number, (task, language) in enumerate(values):
        is_dominated = any(a >= task and b >= language and (a > task or b > language) for a, b in values)
        assert (f"s{number}" in kept) is not is_dominated


def test_where_there_is_no_room_the_non_dominated_and_the_bounds_are_chosen_first(tmp_path: Path) -> None:
    cells = [cell_at(0.3, 0.3, "d", f"s{number}") for number in range(4)]
    cells += [cell_at(0.2, 0.2, "d", "plain"), cell_at(0.5, 0.5, "d", "best")]
    shown = shown_cells(result(tmp_path, cells))
    assert [one.strategy for one in chosen_cells(shown, 3)] == ["s0", "plain", "best"]
    assert chosen_cells(shown, 6) == shown


def test_the_mean_over_seeds_has_the_mean_of_their_intervals() -> None:
    mean = mean_of([Interval(0.2, 0.1, 0.4, 9), None, Interval(0.4, 0.3, 0.6, 9)])
    assert mean is not None
    assert (mean.value, mean.low, mean.high, mean.n) == pytest.approx((0.3, 0.2, 0.5, 9))
    assert mean_of([None]) is None


@pytest.mark.parametrize("seed", range(10))
def test_labels_of_twenty_points_lie_over_no_other_label_and_no_mark(seed: int) -> None:
    draw = random.Random(seed)
    names = ["dissimilar / english_replay"[: draw.randint(3, 27)] for _ in range(20)]
    spots = [Spot(draw.random(), draw.random(), (name, name[:2])) for name in names]
    sizes = [(620.0, 380.0), (280.0, 380.0)]
    labels = placed(spots, sizes)
    assert labels == placed(spots, sizes)
    assert sum(one is not None for one in labels) >= 15
    assert sum(one is not None and len(one.text) > 2 for one in labels) >= 8
    for width, height in sizes:
        boxes = [
            label_box(spot, label.text, PLACES[label.place], width, height)
            for spot, label in zip(spots, labels, strict=True)
            if label is not None
        ]
        assert not any(a.meets(b) for a, b in combinations(boxes, 2))
        for box in boxes:
            assert not any(
                box.left < spot.x * width < box.right and box.top < (1 - spot.y) * height < box.bottom
                for spot in spots
            )


def test_a_label_that_has_no_room_gives_way_to_a_shorter_one_or_is_left_out() -> None:
    sizes = [(620.0, 380.0)]
    assert placed([Spot(0.5, 0.5, ("x" * 200,))], sizes) == [None]
    assert placed([Spot(0.5, 0.5, ("x" * 200, "x"))], sizes) == [Label("x", 0)]
    assert placed([Spot(0.5, 0.5, ("a",)), Spot(0.5, 0.5)], sizes) == [Label("a", 0), None]


def test_the_trade_off_has_phase_one_the_base_and_the_line_of_the_non_dominated(tmp_path: Path) -> None:
    found = cells_at(tmp_path, [(0.5, 0.1), (0.4, 0.4), (0.3, 0.3)])
    rows = {row["cell"]: row for row in values_of(trade_off(found))}
    assert rows["Phase 1"]["kind"] == "phase one"
    assert (rows["base model"]["task"], rows["base model"]["language"]) == (0.2, 0.1)
    assert (rows["d / s1"]["language_low"], rows["d / s1"]["language_high"]) == (0.35, 0.45)
    assert {name: row["step"] for name, row in rows.items() if "step" in row} == {"d / s0": 0, "d / s1": 1}
    assert rows["d / s2"]["said_task"] == "0.300 [0.250, 0.350]"
    assert rows["d / s0"]["text"] == "s0"  # one data set need not be named


def test_more_than_four_data_sets_have_a_picture_each_with_phase_one_in_it(tmp_path: Path) -> None:
    cells = [cell_at(0.4, 0.1 * n, f"d{n}", "plain") for n in range(TOGETHER + 1)]
    spec = trade_off(result(tmp_path, cells)).to_dict()
    assert spec["columns"] == 2
    panels = {row["panel"] for row in spec["data"]["values"] if row["cell"] == "Phase 1"}
    assert panels == {f"d{n}" for n in range(TOGETHER + 1)}
    together = trade_off(result(tmp_path, cells[:TOGETHER])).to_dict()
    assert "facet" not in together
    assert {row["text"] for row in together["data"]["values"] if row["kind"] == "cell"} == {
        f"d{n} / plain" for n in range(TOGETHER)
    }


def test_five_hundred_cells_keep_the_labels_of_the_best_alone_and_the_figure_small(tmp_path: Path) -> None:
    draw = random.Random(0)
    cells = [
        cell_at(draw.random(), draw.random(), f"data {n % 50}", f"strategy {n // 50}") for n in range(500)
    ]
    found = result(tmp_path, cells)
    spec = trade_off(found).to_dict()
    rows = [row for row in spec["data"]["values"] if row["kind"] == "cell"]
    best = {one.label for one in non_dominated(shown_cells(found))}
    assert len(rows) == 500
    assert {row["cell"] for row in rows if row.get("text")} <= best
    assert {row["cell"] for row in rows if row["has_bars"]} == best
    assert len(json.dumps(spec)) < 300_000


def test_the_heat_map_has_changes_and_marks_what_was_not_compared(tmp_path: Path) -> None:
    compared, not_compared = done_cell("plain"), done_cell("lora")
    not_compared = replace(not_compared, difference=replace(not_compared.difference, tasks={}))
    rows = {
        row["cell"]: row for row in values_of(changes_by_task(result(tmp_path, [compared, not_compared])))
    }
    plain, lora = rows["similar / plain"], rows["similar / lora"]
    assert (plain["task"], plain["language"], plain["change"], plain["number"]) == (
        "worldbook:lookup",
        "en",
        -0.1,
        "-0.10",
    )
    assert plain["said_change"] == "-0.100 [-0.150, -0.050] ▼, p 0.012"
    assert "change" not in lora
    assert lora["said_score"] == "0.400 [0.300, 0.500]"


def test_losses_that_differ_a_little_can_be_told_apart(tmp_path: Path) -> None:
    def with_loss(cell: CellResult, bits: float) -> CellResult:
        held_out = BitsPerCharacter(bits, bits - 0.01, bits + 0.01, 6, 600)
        german = LanguageScore(0.6, 0.5, 0.7, 40, held_out, None, 0, None)
        return replace(cell, scores=replace(cell.scores, per_language={"de": german}))

    cells = [with_loss(done_cell("plain"), 5.88), with_loss(done_cell("lora"), 5.82)]
    bare = replace(scores(0.2, 0.1), per_language={})
    found = replace(result(tmp_path, cells), base=None, phase_ones=(phase_one("e", 0, bare),))
    chart = bits_per_character(found)
    assert {row["model"]: (row["bits"], row["low"]) for row in values_of(chart)} == {
        "similar / plain": (5.88, 5.87),
        "similar / lora": (5.82, 5.81),
    }
    drawn = vl_convert.vegalite_to_svg(dict(job_of(chart).spec))
    ticks = [float(text) for text in re.findall(r">(\d+\.\d+)<", drawn)]
    assert min(ticks) > 5.7


def test_a_caption_says_of_how_many_trainings_those_are_that_are_drawn(tmp_path: Path) -> None:
    def words(strategies: int) -> str:
        cells = [done_cell(name) for name in ("plain", *(f"s{number}" for number in range(1, strategies)))]
        found = trained.section(report_of(result(tmp_path, cells), None))
        assert found is not None
        plot = found.blocks[0]
        assert isinstance(plot, Plot)
        return plot.caption + plot.description

    assert "Drawn are" not in words(MOST_LINES)
    assert "Line charts of 10 trainings." in words(MOST_LINES)
    assert "Drawn are 10 of 12 trainings" in words(MOST_LINES + 2)


def test_a_training_that_cells_share_is_drawn_once_and_smoothed(tmp_path: Path) -> None:
    assert smoothed([1.0, 2.0, 3.0, 4.0], 2) == [1.0, 1.5, 2.5, 3.5]
    first = replace(
        done_cell("plain").phases[0], phase="one", data="e", strategy="plain", losses=((1, 3.0), (2, 2.0))
    )
    cells = [replace(cell, phases=(first, *cell.phases)) for cell in map(done_cell, ("plain", "lora"))]
    found = result(tmp_path, cells)
    assert [(one.phase, one.strategy) for one in curves_of(found)] == [
        ("one: e", "plain"),
        ("two: similar", "plain"),
        ("two: similar", "lora"),
    ]
    several = replace(found, cells=tuple(replace(cell, data=f"run 1: {cell.data}") for cell in found.done))
    assert [one.phase for one in curves_of(several)][:2] == ["one: run 1: e", "two: run 1: similar"]
    rows = values_of(training_loss(found))
    assert [(row["step"], row["loss"], row["mean"]) for row in rows if row["phase"] == "one: e"] == [
        (1, 3.0, 3.0),
        (2, 2.0, 2.0),
    ]


def test_a_measure_is_set_against_the_loss_where_cells_differ_in_it(tmp_path: Path) -> None:
    def with_mpd(strategy: str, value: float) -> CellResult:
        cell = done_cell(strategy)
        found = Measured({FROM_PHASE_ONE: Found({"mpd": Figure(value)})})
        return replace(cell, phases=(replace(cell.phases[0], measures=cell.measures | {"mpd": found}),))

    (panel,) = measures_of_cells(result(tmp_path, [with_mpd("plain", 0.3), with_mpd("lora", 0.1)]))
    assert panel.title == "MPD"  # DES is the same of both
    assert [(cell.label, value) for cell, value in panel.cells] == [
        ("similar / plain", 0.3),
        ("similar / lora", 0.1),
    ]


def test_the_drift_of_high_layers_is_set_against_that_of_low_ones() -> None:
    points = [
        LayerPoint("d", "plain", n, 1.0, change) for n, change in enumerate((0.1, 0.3, 0.5, 0.5, 0.6, 0.2))
    ]
    assert upper_to_lower(points) == pytest.approx(0.4 / 0.2)
    assert upper_to_lower([replace(one, covariance=0.0) for one in points]) is None
    layers: list[Any] = [
        {"layer": n, "mean_cosine": 0.9, "covariance_change": change}
        for n, change in enumerate((0.1, 0.2, 0.3))
    ]
    found = Measured({FROM_PHASE_ONE: Found({"covariance": Figure(0.2)}, {"layers": layers})})
    cells = [PlottedCell("near", "plain", (found,)), PlottedCell("near", "lora", (found, found))]
    plain, mitigated = Drift().plots(cells)
    assert (plain.name, mitigated.name) == ("drift-by-layer", "drift-with-mitigations")
    assert "near / plain 3.0" in plain.description
    assert "lora" not in plain.description
    assert "near / lora 3.0" in mitigated.description
    rows = mitigated.chart().to_dict()["data"]["values"]
    assert [row["covariance"] for row in rows if row["strategy"] == "lora"] == [0.1, 0.2, 0.3]


def record(folder: Path, stage: str, inputs: dict[str, Any], found: dict[str, Any]) -> str:
    one = StageRecord(stage, inputs, found, {})
    place = folder / "stages" / f"{stage}-{one.fingerprint}"
    place.mkdir(parents=True)
    one.write(place)
    return one.fingerprint


@pytest.mark.parametrize("is_combined", [False, True])
def test_what_was_trained_and_what_moved_is_read_from_the_records(is_combined: bool, tmp_path: Path) -> None:
    plan = [
        {"part": "embeddings", "trainable": 0, "frozen": 8},
        {
            "part": "layer 3",
            "trainable": 6,
            "frozen": 2,
            "modules": [
                {"kind": "q_proj", "trainable": 6, "frozen": 0},
                {"kind": "k_proj", "trainable": 0, "frozen": 2},
            ],
        },
    ]
    before = record(tmp_path, "train", {"of": "phase 1"}, {})
    last = record(tmp_path, "train", {"of": "phase 2"}, {"plan": plan})
    if is_combined:
        last = record(tmp_path, "combine", {"after": {"stage": last}}, {})
    tensors = [
        {"layer": 3, "module": "q_proj", "l2": 1.0, "relative": 0.1},
        {"layer": 3, "module": "q_proj", "l2": 3.0, "relative": 0.3},
        {"layer": None, "module": "norm", "l2": 5.0, "relative": None},
    ]
    record(
        tmp_path, "difference", {"first": {"stage": before}, "second": {"stage": last}}, {"tensors": tensors}
    )
    paths = [
        f"stages/evaluate-{record(tmp_path, 'evaluate', {'model': {'stage': stage}}, {})}/predictions.parquet"
        for stage in (before, last)
    ]
    cell = replace(done_cell("lora"), phase_one_predictions=paths[0], predictions=paths[1])
    report = report_of(result(tmp_path, [cell]), None)
    assert [(one.layer, one.module, one.trained, one.of) for one in trained_shares(report, cell)] == [
        ("outside", "embeddings", 0, 8),
        ("3", "q_proj", 6, 6),
        ("3", "k_proj", 0, 2),
    ]
    moved = moved_tensors(report, cell, differences_of(report))
    assert [(one.layer, one.module, one.mpd, one.relative) for one in moved] == [
        ("3", "q_proj", 2.0, pytest.approx(0.2)),
        ("outside", "norm", 5.0, None),
    ]
    names = {one.name for section in contents_of(report) for one in section.blocks if isinstance(one, Plot)}
    assert {"trained-parameters", "moved-weights"} <= names
    odd = record(
        tmp_path, "train", {"of": "odd"}, {"plan": [{"part": "layer x", "trainable": 1, "frozen": 1}]}
    )
    other = (
        f"stages/evaluate-{record(tmp_path, 'evaluate', {'model': {'stage': odd}}, {})}/predictions.parquet"
    )
    assert trained_shares(report, replace(cell, predictions=other)) == ()
    for damaged in (tmp_path / "stages").glob("*/record.json"):
        damaged.write_text("{", encoding="utf-8")
    assert trained_shares(report, cell) == ()
    assert moved_tensors(report, cell, differences_of(report)) == ()


def full(tmp_path: Path, name: str) -> StudyResult:
    """Return a result that has all figures which need no records, with `name` for all that others name."""

    def named(strategy: str, seed: int) -> CellResult:
        cell = done_cell(strategy, seed, 0.3 + 0.1 * seed)
        layers: list[Any] = [{"layer": n, "mean_cosine": 0.9, "covariance_change": 0.1 + n} for n in range(3)]
        drift = Measured(
            {FROM_PHASE_ONE: Found({"covariance": Figure(0.2 + len(strategy))}, {"layers": layers})}
        )
        tasks = {f"{name}/en": cell.difference.tasks["worldbook:lookup/en"]}
        found = replace(cell.scores, tasks={f"{name}/en": cell.scores.tasks["worldbook:lookup/en"]})
        phase = replace(
            cell.phases[0],
            phase=name,
            data=name,
            strategy=strategy,
            measures=cell.measures | {"drift": drift},
        )
        changes = replace(cell.difference, tasks=tasks, task_ability=difference(0.1, 0.05))
        return replace(cell, data=name, scores=found, difference=changes, phases=(phase,))

    cost = LanguageCost(100, 100, 1000, 1.5, 0.4, 0.0, 1.2, 1.1, 1.6, "groups", 50)
    cells = [named(strategy, seed) for strategy in ("plain", name) for seed in (0, 1)]
    found = result(tmp_path, cells)
    before = tuple(
        replace(one, scores=replace(one.scores, tasks=cells[0].scores.tasks)) for one in found.phase_ones
    )
    return replace(found, phase_ones=before, tokenizer_cost={f"two/{name}": {"de": cost}})


def test_every_figure_has_a_text_alternative_with_values_and_a_unique_name(tmp_path: Path) -> None:
    report = report_of(full(tmp_path, "other"), None)
    plots = [one for section in contents_of(report) for one in section.blocks if isinstance(one, Plot)]
    assert len({one.name for one in plots}) == len(plots) >= 9
    for plot in plots:
        assert re.search(r"\d", plot.description), plot.name
        assert plot.caption


EVIL = "\"]; alert(1)//'{{datum}}\\u0027<script>"


def strings_in(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(value, dict):
        for key, one in value.items():
            assert EVIL not in key
            yield from strings_in(one, (*path, key))
    elif isinstance(value, list):
        for one in value:
            yield from strings_in(one, path)
    elif isinstance(value, str):
        yield path, value


def test_what_others_named_stands_in_no_expression_field_or_format_of_a_figure(tmp_path: Path) -> None:
    report = report_of(full(tmp_path, EVIL), None)
    found = 0
    for section in contents_of(report):
        for plot in section.blocks:
            if not isinstance(plot, Plot):
                continue
            compiled = vl_convert.vegalite_to_vega(plot.chart().to_dict())
            for path, text in strings_in(compiled):
                if "alert(1)" in text:
                    found += 1
                    assert "values" in path or path[-1] == "domain", (plot.name, path, text)
                    assert path[-1] not in ("signal", "expr", "update", "test", "url", "field", "format"), (
                        plot.name
                    )
    assert found > 10
