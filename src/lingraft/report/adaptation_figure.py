"""The figure of an adaptation, as Vega-Lite through altair: what models lost against what they gained."""

from __future__ import annotations

import altair as alt

from lingraft.adapt.promise import ability_name
from lingraft.adapt.result import Adapted
from lingraft.measures.look import BLUE, INK, VERMILLION, WIDTH
from lingraft.report.adaptation_entries import gain_entry, loss_entry
from lingraft.report.figures import tooltips


def adaptation_trade_off(adapted: Adapted) -> alt.FacetChart | None:
    """Loss of each promised ability, in %, against the gain: a point with both intervals for each model looked at.

    One picture per ability, with the limit as a line. A diamond is the kept model on the report part. None: no model
    has both a loss and a gain.
    """
    kept = adapted.walked.kept
    looked = [(one, "kept" if one == kept else "looked at") for one in adapted.walked.points]
    rows: list[dict[str, str | float]] = []
    for point, kind in [*looked, (adapted.report, "kept, on the report items")]:
        for loss in point.losses:
            if loss.loss is None or loss.low is None or loss.high is None or point.gain is None:
                continue
            gain = point.gain
            rows.append(
                {
                    "ability": f"loss of {ability_name(loss.name)}",
                    "name": "" if point is adapted.report else point.name.removeprefix("alpha "),
                    "kind": kind,
                    "model": point.name,
                    "said_loss": str(loss_entry(loss)),
                    "said_gain": str(gain_entry(gain)),
                    "chain": "report" if point is adapted.report else point.kept_back or "",
                    "alpha": point.alpha,
                    "loss": 100 * loss.loss,
                    "loss_low": 100 * loss.low,
                    "loss_high": 100 * loss.high,
                    "gain": gain.value,
                    "gain_low": gain.value if gain.low is None else gain.low,
                    "gain_high": gain.value if gain.high is None else gain.high,
                }
            )
    if not rows:
        return None
    title = "gain" if kept.gain is None else f"gain in {kept.gain.kind}"
    base = alt.Chart()
    x, y = (
        alt.X("gain:Q", title=title).scale(zero=False),
        alt.Y("loss:Q", title="loss in % of the start's score"),
    )
    kinds = ["looked at", "kept", "kept, on the report items"]
    scale = {"domain": kinds, "range": ["#8a94a3", BLUE, VERMILLION]}
    color = alt.Color("kind:N", scale=alt.Scale(**scale), legend=alt.Legend(title=None, symbolOpacity=1))
    shape = alt.Shape(
        "kind:N", scale=alt.Scale(domain=kinds, range=["circle", "circle", "diamond"]), title=None
    )
    limit = base.transform_calculate(limit=repr(100 * adapted.max_loss))
    hover = tooltips(model="model", kind="which", said_loss="loss", said_gain="gain")
    label = {"align": "left", "dx": 7, "dy": -6, "fontSize": 10, "color": INK}
    return (
        alt.layer(
            base.transform_calculate(zero="0").mark_rule(color="#88888888").encode(y="zero:Q"),
            limit.mark_rule(strokeDash=[5, 4], color="#c22", size=1.5).encode(y="limit:Q"),
            base.mark_line(color="#888", opacity=0.5).encode(x=x, y=y, detail="chain:N", order="alpha:Q"),
            base.mark_rule(opacity=0.4).encode(
                x=alt.X("gain_low:Q", title=title), x2="gain_high", y=y, color=color
            ),
            base.mark_rule(opacity=0.4).encode(
                x=x,
                y=alt.Y("loss_low:Q", title="loss in % of the start's score"),
                y2="loss_high",
                color=color,
            ),
            base.mark_point(filled=True, size=80, opacity=1).encode(
                x=x, y=y, color=color, shape=shape, tooltip=hover
            ),
            base.mark_text(**label).encode(x=x, y=y, text="name:N"),
            data=alt.Data(values=rows),
        )
        .properties(width=WIDTH, height=340)
        .facet(row=alt.Row("ability:N", title=None, sort=None))
    )
