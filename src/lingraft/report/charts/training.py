"""How the loss fell in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import altair as alt

from lingraft.measures.look import looks_of
from lingraft.report.curves import drawn_curves
from lingraft.report.figures import WIDTH, Row, colour_scale, dash_scale, legend_for, row_of, tooltips
from lingraft.study.result import StudyResult

POINTS: Final = 120  # of a line, at most
_ALL_POINTS: Final = 2000  # of all lines
_MOST_CLOUDS: Final = 12  # lines with points of single steps
_WINDOW: Final = 0.1  # of the steps: what a smoothed point is the mean of


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """Return the mean of each value with the `window - 1` before it; of the first, of those that there are."""
    sums = [0.0]
    for one in values:
        sums.append(sums[-1] + one)
    return [(sums[i] - sums[max(0, i - window)]) / min(i, window) for i in range(1, len(sums))]


def training_loss(result: StudyResult) -> alt.LayerChart | alt.FacetChart:
    """Draw the loss of each phase over its steps: a smoothed line over faint points of single steps."""
    curves = drawn_curves(result)
    panels = list(dict.fromkeys(one.phase for one in curves))
    rows: list[Row] = []
    for number, curve in enumerate(curves):
        steps, losses = zip(*curve.losses, strict=True)
        every = max(1, round(len(steps) / min(POINTS, max(20, _ALL_POINTS // len(curves)))))
        for step, loss, mean in list(
            zip(steps, losses, smoothed(losses, max(1, round(_WINDOW * len(steps)))), strict=True)
        )[::every]:
            rows.append(
                row_of(
                    phase=curve.phase,
                    order=panels.index(curve.phase),
                    strategy=curve.strategy,
                    line=number,
                    step=step,
                    loss=loss if len(curves) <= _MOST_CLOUDS else None,
                    mean=mean,
                    seed=str(curve.seed),
                )
            )
    values = [loss for curve in curves for _, loss in curve.losses if loss > 0]
    is_log = bool(values) and max(values) > 20 * min(values)
    scale = alt.Scale(type="log") if is_log else alt.Scale(zero=False)
    looks = looks_of(cell.strategy for cell in result.cells)
    drawn = {name: look for name, look in looks.items() if name in {one.strategy for one in curves}}
    x = alt.X("step:Q", title="optimiser step", axis=alt.Axis(tickMinStep=1, format="d"))
    title = "nats per token"
    colour = alt.Color("strategy:N", scale=colour_scale(drawn), legend=legend_for(drawn, "strategy"))
    dash = alt.StrokeDash("strategy:N", scale=dash_scale(drawn), legend=legend_for(drawn, "strategy"))
    base = alt.Chart()
    hover = [
        *tooltips(phase="phase", strategy="strategy", seed="seed"),
        alt.Tooltip("step:Q", title="step"),
        alt.Tooltip("mean:Q", title="loss, smoothed", format=".3f"),
    ]
    width = WIDTH if len(panels) == 1 else WIDTH // 2 - 40
    chart = alt.layer(
        base.mark_point(size=5, filled=True, opacity=0.3).encode(
            x=x, y=alt.Y("loss:Q", title=title, scale=scale), color=colour
        ),
        base.mark_line(strokeWidth=2).encode(
            x=x,
            y=alt.Y("mean:Q", title=title, scale=scale),
            color=colour,
            strokeDash=dash,
            detail="line:N",
            tooltip=hover,
        ),
    ).properties(width=width, height=220)
    data = alt.Data(values=rows)
    if len(panels) == 1:
        return chart.properties(data=data)
    return chart.facet(
        facet=alt.Facet("phase:N", title=None, sort=alt.EncodingSortField("order", op="min")),
        columns=2,
        data=data,
    ).resolve_scale(x="independent")
