"""Where the weights moved, and which of them were trained: layers down, kinds of module across."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import altair as alt

from lingraft.measures.look import BLUE
from lingraft.report.figures import GRID, Row, facets_by_cell, rounded, row_of, tooltips
from lingraft.report.stage_records import OUTSIDE, Moved, TrainedShare


def moved_weights(cells: Mapping[str, Sequence[Moved]]) -> alt.FacetChart:
    """Draw how far each kind of module of each layer moved from Phase 1, relative to its norm."""
    rows = [
        row_of(cell=name, order=order, layer=one.layer, module=one.module, depth=one.relative)
        | {"said": f"{one.relative:.3g}", "said_mpd": f"{one.mpd:.4g}"}
        for order, (name, own) in enumerate(cells.items())
        for one in own
        if one.relative is not None
    ]
    hover = tooltips(cell="cell", layer="layer", module="module", said="relative change", said_mpd="MPD")
    return _tiles(rows, "relative change", hover, None)


def trained_weights(patterns: Mapping[str, Sequence[TrainedShare]]) -> alt.FacetChart:
    """Draw the share of the parameters of each kind of module of each layer that was trained."""
    rows = [
        row_of(cell=name, order=order, layer=one.layer, module=one.module, depth=one.trained / one.of)
        | {"said": f"{one.trained / one.of:.1%}", "said_of": f"{one.of:,}"}
        for order, (name, own) in enumerate(patterns.items())
        for one in own
        if one.of
    ]
    hover = tooltips(cell="cells", layer="layer", module="module", said="trained", said_of="parameters")
    return _tiles(rows, "share trained", hover, 1.0)


def _tiles(rows: list[Row], title: str, hover: list[alt.Tooltip], most: float | None) -> alt.FacetChart:
    def number(layer: str) -> int:
        return -1 if layer == OUTSIDE else int(layer)

    modules = list(dict.fromkeys(str(row["module"]) for row in rows))
    layers = sorted({str(row["layer"]) for row in rows}, key=number)
    top = most if most is not None else max([float(row["depth"]) for row in rows] or [1.0]) or 1.0
    height = max(6, min(14, 420 // len(layers)))
    step = 1 if height > 12 else 2 if height > 7 else 5  # of the layers that the axis names
    wide = max(120, 20 * len(modules))
    named = [OUTSIDE, *(str(n) for n in range(0, max(map(number, layers)) + 1, step))]
    chart = (
        alt.Chart()
        .mark_rect(stroke=GRID, strokeWidth=0.5)
        .encode(
            x=alt.X(
                "module:N",
                title=None,
                scale=alt.Scale(domain=modules),
                axis=alt.Axis(labelAngle=-60, labelLimit=120),
            ),
            y=alt.Y(
                "layer:N",
                title="layer",
                scale=alt.Scale(domain=layers),
                axis=alt.Axis(values=named, ticks=False, labelOverlap=False, labelFontSize=10),
            ),
            color=alt.Color(
                "depth:Q",
                scale=alt.Scale(domain=[0, rounded(top)], range=["#f3f3f3", BLUE], interpolate="lab"),
                legend=alt.Legend(title=title, gradientLength=160),
            ),
            tooltip=hover,
        )
        .properties(width=wide, height=alt.Step(height))
    )
    return facets_by_cell(chart, rows, wide, 20)
