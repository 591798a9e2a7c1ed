"""Task ability against language ability: what each cell is against the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import altair as alt

from lingraft.intervals.macro_mean import Interval
from lingraft.measures.look import BASE_MARK, INK, SHAPES, looks_of, shapes_of
from lingraft.report.cells import ShownCell, non_dominated, references_of, shown_cells
from lingraft.report.figures import (
    NARROW,
    WIDTH,
    Row,
    colour_scale,
    fill_scale,
    legend_for,
    limited,
    row_of,
    said_change,
    tooltips,
)
from lingraft.report.labels import FONT_SIZE, PLACES, Spot, placed
from lingraft.study.result import StudyResult

MOST_PANELS: Final = 12
TOGETHER: Final = 4  # data sets in one picture; of more each has its own
CROWDED: Final = 30  # cells of a picture from which on only the non-dominated have labels and error bars


def trade_off(result: StudyResult) -> alt.LayerChart | alt.FacetChart:
    """Draw task ability against language ability: a mark with both 95 % intervals for each cell.

    The base model, Phase 1, plain and mixed are drawn in ink; the non-dominated cells are joined. More than `TOGETHER`
    data sets have a picture each, as do those of runs that asked other tasks; of more than `MOST_PANELS` all are in one
    again.
    """
    marks = _marks(result)
    names = list(dict.fromkeys(one.cell.data for one in marks if one.cell is not None))
    apart = (len(names) > TOGETHER or not _compare(marks)) and 1 < len(names) <= MOST_PANELS
    width, height = (WIDTH // 2 - 40, 230) if apart else (WIDTH, 380)
    panels = {
        name: [one for one in marks if one.cell is None or not name or one.cell.data == name]
        for name in (names if apart else [""])
    }
    x_ends = _domain([one.language for own in panels.values() for one in own])
    y_ends = _domain([one.task for own in panels.values() for one in own])
    rows: list[Row] = []
    for order, (panel, own) in enumerate(panels.items()):
        with_data = len(names) > 1 and not apart
        rows += [
            row | {"panel": panel, "panel_order": order}
            for row in _rows(own, x_ends, y_ends, (width, height), with_data=with_data)
        ]

    looks, shapes = (
        looks_of(cell.strategy for cell in result.cells),
        shapes_of(cell.data for cell in result.cells),
    )
    most = max(len(own) for own in panels.values())
    size, opacity = (110, 1.0) if most <= CROWDED else (55, 0.75) if most <= 5 * CROWDED else (30, 0.6)
    x = alt.X("language:Q", title="language ability").scale(domain=x_ends, nice=False)
    y = alt.Y("task:Q", title="task ability (English)").scale(domain=y_ends, nice=False)
    legend = legend_for(looks, "strategy")
    stroke = alt.Stroke("strategy:N", scale=colour_scale(looks), legend=legend)
    fill = alt.Fill("strategy:N", scale=fill_scale(looks), legend=legend)
    shape = alt.Shape(
        "data:N",
        scale=alt.Scale(domain=list(shapes), range=list(shapes.values())),
        legend=None if apart or len(names) > len(SHAPES) else legend_for(names, "data"),
    )
    hover = tooltips(
        cell="model",
        said_task="task ability",
        said_language="language ability",
        said_change="change of task ability",
        said_gain="gain in language ability",
        seeds="seeds",
    )
    base = alt.Chart()
    of_cells = base.transform_filter("datum.kind === 'cell'")
    of_phase_one = base.transform_filter("datum.kind === 'phase one'")
    of_references = base.transform_filter("datum.kind === 'phase one' || datum.kind === 'base'")
    bar = {"opacity": 0.5, "strokeWidth": 1.2}
    hair = {"strokeDash": [3, 4], "opacity": 0.45, "color": INK}
    layers = [
        of_phase_one.mark_rule(**hair).encode(y=y),
        of_phase_one.mark_rule(**hair).encode(x=x),
        base.transform_filter("isValid(datum.step)")
        .mark_line(interpolate="step-before", color=INK, opacity=0.3, strokeWidth=3)
        .encode(x=x, y=y, order="step:Q"),
    ]
    for own, colour in ((of_cells, stroke), (of_references, alt.value(INK))):
        barred = own.transform_filter("datum.has_bars").mark_rule(**bar)
        layers += [
            barred.encode(x=alt.X("language_low:Q"), x2="language_high", y=y, stroke=colour),
            barred.encode(x=x, y=alt.Y("task_low:Q"), y2="task_high", stroke=colour),
        ]
    layers += [
        base.transform_filter("datum.kind === 'seed'")
        .mark_point(size=22, opacity=0.7, strokeWidth=1)
        .encode(x=x, y=y, stroke=stroke, shape=shape, tooltip=hover[:3]),
        of_cells.mark_point(size=size, opacity=opacity, strokeWidth=2).encode(
            x=x, y=y, stroke=stroke, fill=fill, shape=shape, tooltip=hover
        ),
        *(
            base.transform_filter(f"datum.kind === '{kind}'")
            .mark_point(size=130, opacity=1, strokeWidth=2.5, color=INK, shape=mark)
            .encode(x=x, y=y, tooltip=hover[:3])
            for kind, mark in (("phase one", "cross"), ("base", BASE_MARK))
        ),
        *(
            base.transform_filter(f"datum.place === {number}")
            .mark_text(align=place.align, dx=place.dx, dy=place.dy, fontSize=FONT_SIZE, color=INK)
            .encode(x=x, y=y, text="text:N")
            for number, place in enumerate(PLACES)
            if any(row.get("place") == number for row in rows)
        ),
    ]
    chart = alt.layer(*layers).properties(width=width, height=height)
    data = alt.Data(values=rows)
    if not apart:
        return chart.properties(data=data)
    facet = alt.Facet("panel:N", title=None, sort=alt.EncodingSortField("panel_order", op="min"))
    return chart.facet(facet=facet, columns=2, data=data)


@dataclass(frozen=True)
class _Mark:
    """A model in the picture; `cell` is None of the base and of Phase 1."""

    name: str
    kind: str
    language: Interval
    task: Interval
    cell: ShownCell | None = None


def _marks(result: StudyResult) -> list[_Mark]:
    """Return all models of which both abilities are known: what all else is read against, then the cells."""
    return [
        _Mark(name, kind, language, task, cell)
        for name, kind, language, task, cell in [
            *(
                (
                    one.name,
                    "base" if one.is_base else "phase one",
                    one.language_ability,
                    one.task_ability,
                    None,
                )
                for one in references_of(result)
            ),
            *(
                (one.label, "cell", one.language_ability, one.task_ability, one)
                for one in shown_cells(result)
            ),
        ]
        if language is not None and task is not None
    ]


def _compare(marks: Sequence[_Mark]) -> bool:
    """Return whether all cells were asked the same tasks."""
    return len({one.cell.asked for one in marks if one.cell is not None}) <= 1


def _rows(
    marks: Sequence[_Mark],
    x_ends: tuple[float, float],
    y_ends: tuple[float, float],
    size: tuple[int, int],
    *,
    with_data: bool,
) -> list[Row]:
    """Return the rows of one picture, each mark's label in its place, and those of single seeds."""
    cells = [one.cell for one in marks if one.cell is not None]
    best = non_dominated(cells)
    is_crowded = len(cells) > CROWDED

    def order(mark: _Mark) -> int:  # in which labels choose their places
        return 0 if mark.cell is None else 1 if mark.cell.is_bound else 2 if mark.cell in best else 3

    def texts(mark: _Mark) -> tuple[str, ...]:
        if mark.cell is None:
            return (limited(mark.name),)
        if is_crowded and mark.cell not in best:
            return ()
        short = limited(mark.cell.strategy)
        return (limited(mark.name, 40), short) if with_data else (short,)

    ordered = sorted(marks, key=order)
    spots = [
        Spot(_part(one.language.value, x_ends), _part(one.task.value, y_ends), texts(one)) for one in ordered
    ]
    labels = placed(spots, [size, (min(NARROW, size[0]), size[1])])
    rows: list[Row] = []
    for mark, label in zip(ordered, labels, strict=True):
        row = row_of(kind=mark.kind, cell=mark.name, language=mark.language, task=mark.task)
        row |= {"has_bars": mark.cell is None or not is_crowded or mark.cell in best}
        if label is not None:
            row |= {"text": label.text, "place": label.place}
        if (cell := mark.cell) is not None:
            row |= {"data": cell.data, "strategy": cell.strategy, "seeds": str(len(cell.seeds))}
            row |= {"said_change": said_change(cell.change), "said_gain": said_change(cell.gain)}
            if cell in best and _compare(marks):
                row["step"] = best.index(cell)
        rows.append(row)
    for cell in cells:
        for one in cell.seeds if len(cell.seeds) > 1 and not is_crowded else ():
            language, task = one.scores.language_ability, one.scores.task_ability
            if language is not None and task is not None:
                name = f"{cell.label}, seed {one.seed}"
                row = row_of(kind="seed", cell=name, language=language, task=task)
                rows.append(row | {"data": cell.data, "strategy": cell.strategy})
    return rows


def _domain(ends: Sequence[Interval]) -> tuple[float, float]:
    """Return the ends of an axis that holds all intervals, with room for marks."""
    low, high = min(one.low for one in ends), max(one.high for one in ends)
    room = 0.05 * ((high - low) or 0.1)
    return low - room, high + room


def _part(value: float, ends: tuple[float, float]) -> float:
    return (value - ends[0]) / (ends[1] - ends[0])
