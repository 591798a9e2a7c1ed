"""What strategies cost over plain training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Final

from lingraft.measures.base import Plot
from lingraft.report.contents import PlacedTable, Section
from lingraft.report.runs import Report
from lingraft.report.tables import cost_ratios, strategy_cost_table

if TYPE_CHECKING:
    import altair as alt

_QUANTITIES: Final = ("training time", "peak memory", "time before and after")
_MOST_DRAWN: Final = 30  # strategies


def section(report: Report) -> Section | None:
    """Return the ratios of time and memory; None: there is no plain training to compare with."""
    table = strategy_cost_table(report.result)
    if table is None:
        return None
    caption = (
        "Over plain training of the same data and seed on this machine: the median over data sets and seeds, with the "
        "lowest and the highest. On a machine that does other work besides, single ratios mislead."
    )
    ratios = cost_ratios(report.result)
    drawn = dict(list(ratios.items())[:_MOST_DRAWN])
    of_quantity: dict[str, dict[str, list[float]]] = {name: {} for name in _QUANTITIES}
    for strategy, own in drawn.items():
        seconds, beside, memory = (list(column) for column in zip(*own, strict=True))
        for name, values in zip(_QUANTITIES, (seconds, memory, beside), strict=True):
            of_quantity[name][strategy] = values
    more = (
        f" Drawn are {len(drawn)} of {len(ratios)} strategies; the table has all."
        if len(drawn) < len(ratios)
        else ""
    )
    named = [
        f"{strategy} {median(times):.2f} times the time and {median(of_quantity['peak memory'][strategy]):.2f} times "
        "the memory"
        for strategy, times in list(of_quantity["training time"].items())[:10]
    ]
    plot = Plot(
        "costs-of-strategies",
        "Time and memory over plain",
        f"{caption} 1 is as much as plain; what is done before and after training is over plain's training.{more}",
        partial(_chart, of_quantity),
        f"Dot plots; strategies: {len(drawn)}. Medians: {'; '.join(named)}.",
    )
    return Section("costs", "What strategies cost", (plot, PlacedTable("costs", "", caption, table)))


def _chart(ratios: Mapping[str, Mapping[str, Sequence[float]]]) -> alt.TopLevelMixin:
    from lingraft.report.charts.bars import strategy_costs

    return strategy_costs(ratios)
