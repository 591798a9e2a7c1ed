"""The figures of the study's measures, and where the weights moved."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from lingraft.measures.base import Plot, PlottedCell
from lingraft.report.cells import choice_note, chosen_cells, shown_cells
from lingraft.report.contents import Section
from lingraft.report.runs import Report
from lingraft.report.stage_records import Moved, differences_of, moved_tensors
from lingraft.report.tables import measures_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import altair as alt

_MOST_CELLS: Final = 6  # with a picture of their weights


def section(report: Report) -> Section | None:
    """Return what each measure draws of the cells, and where weights moved; None: there is nothing to draw."""
    cells = shown_cells(report.result)
    plots = []
    for name, measure in measures_of(report.result).items():
        plotted = [
            PlottedCell(
                one.data,
                one.strategy,
                tuple(cell.measures[name] for cell in one.seeds if name in cell.measures),
            )
            for one in cells
        ]
        plots += list(measure.plots([one for one in plotted if one.seeds]))
    chosen = chosen_cells(cells, _MOST_CELLS)
    differences = differences_of(report)
    moved = (
        {cell.label: moved_tensors(report, cell.seeds[0], differences) for cell in chosen}
        if differences
        else {}
    )
    moved = {name: own for name, own in moved.items() if own}
    if moved:
        caption = (
            "L2 distance of each tensor from Phase 1 over its norm there: mean by layer and kind of module, of the "
            "first seed. MPD, the mean of the distances themselves, is shown on hover."
            + choice_note(
                len(moved),
                len(cells),
                "distances of the others stand in their records of the kind difference",
            )
        )
        plots.append(
            Plot(
                "moved-weights",
                "Where the weights moved",
                caption,
                partial(_chart, moved),
                _description(moved),
            )
        )
    return Section("measured", "What changed inside", tuple(plots)) if plots else None


def _description(moved: Mapping[str, Sequence[Moved]]) -> str:
    """Return the kind of module and layer that moved furthest in each cell."""
    named = []
    for name, own in moved.items():
        known = [one for one in own if one.relative is not None]
        if known:
            most = max(known, key=lambda one: one.relative or 0.0)
            where = f"layer {most.layer}" if most.layer.isdecimal() else "outside of the layers"
            named.append(f"{name}: {most.module} {where}, {most.relative:.3g}")
    return f"Heat map of layers and kinds of module. What moved furthest, relative to its norm: {'; '.join(named)}."


def _chart(moved: Mapping[str, Sequence[Moved]]) -> alt.TopLevelMixin:
    from lingraft.report.charts.weights import moved_weights

    return moved_weights(moved)
