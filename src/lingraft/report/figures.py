"""The figures of a study, as Vega-Lite through altair; `drawing` draws them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import altair as alt

from lingraft.evaluate.results import BitsPerCharacter
from lingraft.intervals.macro_mean import Difference
from lingraft.report.drawing import Job
from lingraft.report.signs import SIGNS
from lingraft.report.tables import Matrix, matrix_of, models_of
from lingraft.study.result import StudyResult

WIDTH = 620
POINT_COLOUR = "#2a6fdb"
INK = "#010203"  # stands for the page's own text colour, light or dark
_MOST_MATRICES = 12  # drawn; the table below the figure has all
_LOOK = {
    "background": "transparent",
    "view": {"stroke": "transparent"},
    "axis": dict.fromkeys(("labelColor", "titleColor", "tickColor", "domainColor"), INK)
    | {"gridColor": "#88888855"},
    "legend": {"labelColor": INK, "titleColor": INK},
    "header": {"labelColor": INK, "titleColor": INK},
}


def trade_off(result: StudyResult) -> alt.FacetChart:
    """Change of task ability against gain in language ability: a point with both 95 % intervals for each strategy.

    One picture per data set. Several seeds make one point, their mean, with its interval and sign as in the table; each
    seed is a ring beside it.
    """

    def interval_of(name: str, one: Difference) -> dict[str, float]:
        return {name: one.value, f"{name}_low": one.low, f"{name}_high": one.high}

    single = {(cell.data, cell.strategy): cell.difference for cell in result.done}
    pooled = {(one.data, one.strategy): one for one in result.over_seeds}
    rows: list[dict[str, str | float]] = [
        {
            "data": data,
            "strategy": f"{strategy} {SIGNS[one.task_ability.answer]}",
            **interval_of("gain", one.language_ability),
            **interval_of("change", one.task_ability),
        }
        for (data, strategy), one in (single | pooled).items()
    ]
    rows += [
        {
            "data": cell.data,
            "seed_gain": cell.difference.language_ability.value,
            "seed_change": cell.difference.task_ability.value,
        }
        for cell in result.done
        if (cell.data, cell.strategy) in pooled
    ]
    base = alt.Chart()
    gain, change = "gain in language ability", "change of task ability"
    x, y = alt.X("gain:Q", title=gain).scale(zero=False), alt.Y("change:Q", title=change)
    zero = base.transform_calculate(zero="0").mark_rule(strokeDash=[4, 4], color="#888")
    interval = {"opacity": 0.35, "color": POINT_COLOUR}
    label = {"align": "left", "dx": 7, "dy": -5, "fontSize": 10, "color": INK}
    means = base.transform_filter("isValid(datum.gain)")
    seeds = base.transform_filter("isValid(datum.seed_gain)")
    return (
        alt.layer(
            zero.encode(y="zero:Q"),
            means.mark_rule(**interval).encode(x=alt.X("gain_low:Q", title=gain), x2="gain_high", y=y),
            means.mark_rule(**interval).encode(x=x, y=alt.Y("change_low:Q", title=change), y2="change_high"),
            seeds.mark_point(size=30, opacity=0.6, color=POINT_COLOUR).encode(
                x=alt.X("seed_gain:Q", title=gain), y=alt.Y("seed_change:Q", title=change)
            ),
            means.mark_point(filled=True, size=60, opacity=1, color=POINT_COLOUR).encode(x=x, y=y),
            means.mark_text(**label).encode(x=x, y=y, text="strategy:N"),
            data=alt.Data(values=rows),
        )
        .properties(width=WIDTH, height=380)
        .facet(row=alt.Row("data:N", title=None))
        .resolve_scale(x="independent")
    )


def bits_per_character(result: StudyResult) -> alt.LayerChart:
    """Loss of the held-out answers in bits per character, per language and model; lower is better.

    Lines are 95 % intervals; of several seeds, drawn as their mean, from the lowest to the highest.
    """
    groups: dict[tuple[str, str], list[BitsPerCharacter]] = {}
    for model in models_of(result):
        for language, score in model.scores.per_language.items():
            if score.held_out is not None:
                groups.setdefault((model.title(with_seed=False), language), []).append(score.held_out)
    rows: list[dict[str, str | float]] = [
        {
            "model": model,
            "language": language,
            "bits": sum(one.value for one in own) / len(own),
            "low": own[0].low if len(own) == 1 else min(one.value for one in own),
            "high": own[0].high if len(own) == 1 else max(one.value for one in own),
        }
        for (model, language), own in groups.items()
    ]
    order = list(dict.fromkeys(model for model, _ in groups))
    title = "bits per character of held-out answers"
    base = alt.Chart(alt.Data(values=rows)).encode(
        y=alt.Y("model:N", sort=order, title=None), color=alt.Color("language:N")
    )
    return alt.layer(
        base.mark_rule(opacity=0.5).encode(x=alt.X("low:Q", title=title), x2="high"),
        base.mark_point(filled=True, size=80).encode(x=alt.X("bits:Q", title=title)),
    ).properties(width=WIDTH)


def training_loss(result: StudyResult) -> alt.Chart:
    """Training loss of the last phase of each cell, in nats per supervised token, over its steps."""
    rows = [
        {"cell": f"{cell.data} / {cell.strategy} / {cell.seed}", "step": step, "loss": loss}
        for cell in result.done
        for step, loss in cell.phases[-1].losses
    ]
    return (
        alt.Chart(alt.Data(values=rows))
        .mark_line()
        .encode(
            x=alt.X("step:Q", title="optimiser step"),
            y=alt.Y("loss:Q", title="loss in nats per token", scale=alt.Scale(zero=False)),
            color=alt.Color("cell:N", title="cell"),
        )
        .properties(width=WIDTH, height=260)
    )


@dataclass(frozen=True)
class _Tile:
    """An entry of a forgetting matrix in a picture; `shade`, in [0, 1], colours it, and its value stands in it."""

    cell: str
    row: int
    after: str
    taught: str
    data: str
    value: float
    shade: float


def matrices(result: StudyResult, kind: Matrix) -> alt.FacetChart:
    """Draw the forgetting matrix of each cell. Several seeds are drawn as their mean.

    Darker is higher for abilities. For bits per character darker is lower, among all cells' entries for the same data
    set: losses of two languages are on no one scale.
    """
    found: dict[tuple[str, int, str, str, str], list[float]] = {}
    for cell in result.done:
        matrix = matrix_of(cell, kind)
        if matrix is None:
            continue
        for number, row in enumerate(matrix.rows):
            values = [entry.value for entry in row.scores]
            for column, value in zip(matrix.columns, values, strict=True):
                key = (f"{cell.data} / {cell.strategy}", number, row.after, column.phase, column.data)
                found.setdefault(key, []).append(value)
    means = {key: sum(values) / len(values) for key, values in found.items()}
    tiles = []
    for key, value in means.items():
        shade = value
        if kind != "ability":
            same = [other for place, other in means.items() if place[3:] == key[3:]]
            shade = (max(same) - value) / ((max(same) - min(same)) or 1.0)
        tiles.append(_Tile(*key, value=value, shade=shade))

    cells = list(dict.fromkeys(tile.cell for tile in tiles))[:_MOST_MATRICES]
    phases = list(dict.fromkeys(tile.taught for tile in tiles))
    base = alt.Chart().encode(
        x=alt.X("taught:N", sort=phases, title="taught by phase", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("after:N", sort=alt.EncodingSortField("row"), title="after phase"),
    )
    number = base.mark_text(fontSize=13).encode(
        text=alt.Text("value:Q", format=".3f"),
        color=alt.condition("datum.shade > 0.5", alt.value("white"), alt.value("#10202f")),
    )
    scale = alt.Scale(scheme="blues", domain=[0, 1])
    shades = base.mark_rect(stroke="#88888855").encode(color=alt.Color("shade:Q", scale=scale, legend=None))
    return (
        alt.layer(shades, number)
        .properties(width=72 * len(phases), height=alt.Step(30))
        .facet(
            facet=alt.Facet("cell:N", title=None, sort=cells),
            columns=max(1, 10 // (len(phases) + 1)),
            data=alt.Data(values=[asdict(tile) for tile in tiles if tile.cell in cells]),
        )
        .resolve_scale(y="independent")
    )


def job_of(chart: Any) -> Job:
    """Return what draws a figure for the page, in the page's own ink."""
    spec = chart.to_dict()
    return Job("page", spec | {"config": (spec.get("config") or {}) | _LOOK})


def svg_of(drawing: bytes) -> str:
    """Return the SVG of a drawing of `job_of`; texts in it are escaped by the renderer."""
    return drawing.decode().replace(INK, "currentColor")
