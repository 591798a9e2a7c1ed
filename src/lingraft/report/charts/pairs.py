"""What measures say of a pair of data sets, or of the weights, against what was lost."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt

from lingraft.measures.look import INK, SHAPES, looks_of, shapes_of
from lingraft.report.figures import (
    Row,
    colour_scale,
    fill_scale,
    legend_for,
    row_of,
    said_change,
    tooltips,
)
from lingraft.report.pairs import Against
from lingraft.study.result import StudyResult


def measures_against_loss(result: StudyResult, panels: Sequence[Against]) -> alt.FacetChart:
    """Draw the change of task ability, with its interval, against each measure: a mark for each cell."""
    rows: list[Row] = [
        row_of(panel=panel.title, order=order, cell=cell.label, data=cell.data, strategy=cell.strategy)
        | row_of(measure=value, change=cell.change)
        | {"said_change": said_change(cell.change), "said_measure": f"{value:.3f}"}
        for order, panel in enumerate(panels)
        for cell, value in panel.cells
    ]
    looks = looks_of(cell.strategy for cell in result.cells)
    shapes = shapes_of(cell.data for cell in result.cells)
    legend = legend_for(looks, "strategy")
    crowded = max(len(panel.cells) for panel in panels) > 60
    stroke = alt.Stroke("strategy:N", scale=colour_scale(looks), legend=legend)
    x, title = alt.X("measure:Q", title=None).scale(zero=False), "change of task ability"
    base = alt.Chart().encode(
        x=x, tooltip=tooltips(cell="cell", panel="measure", said_measure="value", said_change=title)
    )
    return (
        alt.layer(
            base.transform_calculate(zero="0")
            .mark_rule(color=INK, strokeDash=[3, 4], opacity=0.45)
            .encode(x=alt.X(), y=alt.Y("zero:Q", title=title)),
            base.mark_rule(opacity=0.15 if crowded else 0.5, strokeWidth=1.2).encode(
                y=alt.Y("change_low:Q", title=title), y2="change_high", stroke=stroke
            ),
            base.mark_point(size=45 if crowded else 90, opacity=0.7 if crowded else 1, strokeWidth=2).encode(
                y=alt.Y("change:Q", title=title),
                stroke=stroke,
                fill=alt.Fill("strategy:N", scale=fill_scale(looks), legend=legend),
                shape=alt.Shape(
                    "data:N",
                    scale=alt.Scale(domain=list(shapes), range=list(shapes.values())),
                    legend=legend_for(shapes, "data") if len(shapes) <= len(SHAPES) else None,
                ),
            ),
        )
        .properties(width=270, height=230)
        .facet(
            facet=alt.Facet("panel:N", title=None, sort=alt.EncodingSortField("order", op="min")),
            columns=2,
            data=alt.Data(values=rows),
        )
        .resolve_scale(x="independent")
    )
