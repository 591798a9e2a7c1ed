"""What each phase was trained on, which parameters were trained, and how the loss fell."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from lingraft.measures.base import Plot
from lingraft.report.cells import ShownCell, chosen_cells, shown_cells
from lingraft.report.contents import Block, PlacedTable, Section
from lingraft.report.curves import MOST_LINES, MOST_PANELS, curves_of, drawn_curves
from lingraft.report.runs import Report
from lingraft.report.stage_records import TrainedShare, trained_shares
from lingraft.report.tables import training_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    import altair as alt

_MOST_READ: Final = 60  # cells whose records are looked at
_MOST_PATTERNS: Final = 8  # with a picture
_Pattern = tuple[TrainedShare, ...]


def section(report: Report) -> Section | None:
    """Return the counts of each training, its curve, and what was trained; None: nothing is trained."""
    blocks: list[Block] = []
    counts = training_table(report.result)
    if any(phase.losses for cell in report.result.done for phase in cell.phases):
        blocks.append(_curves(report))
    trained = _trained(report)
    if trained is not None:
        blocks.append(trained)
    if counts is not None:
        blocks.append(PlacedTable("training", "What was trained", "", counts, is_folded=True))
    return Section("training", "Training", tuple(blocks)) if blocks else None


def _curves(report: Report) -> Plot:
    """Return the training curves of all phases."""
    cells = report.result.done
    ends = [
        (f"{cell.data} / {cell.strategy}", sum(losses) / len(losses))
        for cell in cells
        if (losses := [loss for _, loss in cell.phases[-1].losses[-5:]])
    ]
    ends.sort(key=lambda one: one[1])
    caption = (
        "Of every phase, each training once however many cells share it: the mean of the last tenth of the steps, over "
        "faint points of single steps, in nats per supervised token. Strategies train on other rows (replay), so "
        "lower is not better."
    )
    curves, drawn = curves_of(report.result), drawn_curves(report.result)
    if len(drawn) < len(curves):
        caption += (
            f" Drawn are {len(drawn)} of {len(curves)} trainings, of at most {MOST_PANELS} phases and data sets with "
            f"{MOST_LINES} strategies each, the bounds and the non-dominated first; all losses stand in result.json."
        )
    description = f"Line charts of {len(drawn)} trainings. " + (
        f"Mean loss of the last five steps of the last phase: lowest {ends[0][1]:.3f} ({ends[0][0]}), highest "
        f"{ends[-1][1]:.3f} ({ends[-1][0]})."
        if ends
        else ""
    )
    return Plot("training-loss", "Training loss", caption, partial(_curve_chart, report), description)


def _trained(report: Report) -> Plot | None:
    """Return which parameters were trained, cells that trained the same together; None: no record tells."""
    cells = shown_cells(report.result)
    read = chosen_cells(cells, _MOST_READ)
    patterns: dict[_Pattern, list[ShownCell]] = {}
    for cell in read:
        own = trained_shares(report, cell.seeds[0])
        if own:
            patterns.setdefault(own, []).append(cell)
    if not patterns:
        return None
    names = {pattern: _name(own) for pattern, own in patterns.items()}
    drawn = {name: pattern for pattern, name in list(names.items())[:_MOST_PATTERNS]}
    masked = [
        f"{cell.label} {cell.seeds[0].training.masked_parameters:,}"
        for cell in read
        if cell.seeds[0].training.masked_parameters
    ]
    caption = (
        "Share of the parameters of each kind of module of each layer that training could change in the last phase, "
        "of the first seed; cells that trained the same are drawn once. An adapter's parameters count to the module "
        "that it adapts."
    )
    if masked:
        caption += f" Inside of tensors that train, a mask froze besides: {', '.join(masked[:8])} parameters."
    if len(patterns) > len(drawn) or len(read) < len(cells):
        caption += f" {len(read)} of {len(cells)} cells were looked at, {len(drawn)} of {len(patterns)} patterns drawn."
    shares = [
        f"{name} {sum(one.trained for one in own) / max(1, sum(one.of for one in own)):.1%}"
        for name, own in drawn.items()
    ]
    return Plot(
        "trained-parameters",
        "Which parameters were trained",
        caption,
        partial(_trained_chart, drawn),
        f"Heat map of layers and kinds of module. Trained of all parameters: {'; '.join(shares)}.",
    )


def _name(cells: list[ShownCell]) -> str:
    """Return what cells that trained the same are called together."""
    strategies = list(dict.fromkeys(one.strategy for one in cells))
    several = len(cells) > 1
    named = ", ".join(strategies[:3]) + (f" and {len(strategies) - 3} more" if len(strategies) > 3 else "")
    return f"{len(cells)} cells: {named}" if several else cells[0].label


def _curve_chart(report: Report) -> alt.TopLevelMixin:
    from lingraft.report.charts.training import training_loss

    return training_loss(report.result)


def _trained_chart(patterns: Mapping[str, _Pattern]) -> alt.TopLevelMixin:
    from lingraft.report.charts.weights import trained_weights

    return trained_weights(patterns)
