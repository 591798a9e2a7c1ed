"""What languages cost in tokens, and strategies in time and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Final

import altair as alt

from lingraft.measures.look import BLUE, INK
from lingraft.report.figures import WIDTH, Row, row_of, tooltips

_SAME: Final = 0.005  # ratios that differ by less have one tick


def tokenizer_cost(costs: Mapping[str, Mapping[str, float]]) -> alt.LayerChart:
    """Draw the tokens that each language takes for what takes one in English: a bar, and a tick for each data set
    where they differ.

    Args:
        costs: By language, the ratio in each data set.
    """
    rows: list[Row] = []
    for language, own in costs.items():
        mean = sum(own.values()) / len(own)
        rows.append(
            row_of(language=language, kind="mean", ratio=mean, said=f"{mean:.2f}", data="all data sets")
        )
        rows += [
            row_of(language=language, kind="data", ratio=one, said=f"{one:.2f}", data=name)
            for name, one in own.items()
            if max(own.values()) - min(own.values()) > _SAME
        ]
    base = alt.Chart(alt.Data(values=rows)).encode(
        y=alt.Y("language:N", title=None, scale=alt.Scale(domain=list(costs))),
        tooltip=tooltips(language="language", data="data", said="tokens, English = 1"),
    )
    x = alt.X("ratio:Q", title="tokens for the same content, English = 1")
    means = base.transform_filter("datum.kind === 'mean'")
    return alt.layer(
        means.mark_bar(color=BLUE, opacity=0.85, height=12).encode(x=x),
        means.mark_text(align="left", dx=8, color=INK).encode(x=x, text="said:N"),
        base.transform_filter("datum.kind === 'data'")
        .mark_tick(color=INK, thickness=1.5, height=14)
        .encode(x=x),
        alt.Chart(alt.Data(values=[{"one": 1}])).mark_rule(color=INK, strokeDash=[4, 3]).encode(x="one:Q"),
    ).properties(width=WIDTH, height=alt.Step(20))


def strategy_costs(ratios: Mapping[str, Mapping[str, Sequence[float]]]) -> alt.FacetChart:
    """Draw what each strategy costs over plain training: the median, and a line from the lowest to the highest.

    Args:
        ratios: By quantity and strategy, the ratio of each cell.
    """
    rows = [
        row_of(
            quantity=quantity,
            order=order,
            strategy=strategy,
            ratio=median(own),
            low=min(own),
            high=max(own),
            said=f"{median(own):.2f} ({min(own):.2f} to {max(own):.2f})",
            cells=str(len(own)),
        )
        for order, (quantity, strategies) in enumerate(ratios.items())
        for strategy, own in strategies.items()
    ]
    names = list(dict.fromkeys(str(row["strategy"]) for row in rows))
    base = alt.Chart().encode(
        y=alt.Y(
            "strategy:N", title=None, scale=alt.Scale(domain=names), axis=alt.Axis(labelLimit=190, grid=True)
        ),
        tooltip=tooltips(strategy="strategy", quantity="", said="over plain", cells="cells"),
    )
    title = "times plain"
    return (
        alt.layer(
            base.mark_rule(color=BLUE, strokeWidth=2, opacity=0.6).encode(
                x=alt.X("low:Q", title=title).scale(zero=False), x2="high"
            ),
            base.mark_point(filled=True, size=70, opacity=1, color=BLUE).encode(
                x=alt.X("ratio:Q", title=title, axis=alt.Axis(tickCount=4)).scale(zero=False)
            ),
            base.transform_filter("datum.order < 2")
            .transform_calculate(one="1")
            .mark_rule(color=INK, strokeDash=[4, 3], opacity=0.5)
            .encode(x=alt.X("one:Q")),
        )
        .properties(width=150, height=alt.Step(18))
        .facet(
            facet=alt.Facet("quantity:N", title=None, sort=alt.EncodingSortField("order", op="min")),
            columns=3,
            data=alt.Data(values=rows),
        )
        .resolve_scale(x="independent")
    )
