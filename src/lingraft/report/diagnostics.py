"""Tables and figures of the single measures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import altair as alt

from lingraft.intervals.macro_mean import mean_of_known
from lingraft.measures.drift import LayerPoint, layer_curves
from lingraft.measures.look import BLUE, VERMILLION, looks_of, shapes_of
from lingraft.report.figures import GRID, rounded, text_on, tooltips
from lingraft.report.tables import Column, Table, counted, written

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lingraft.representation.drift import Drift, LayerDrift
    from lingraft.similarity.comparison import Comparison
    from lingraft.similarity.embedding_similarity import EmbeddingSimilarity
    from lingraft.weights.difference import GroupDifference, ParameterDifference, TensorDifference
    from lingraft.weights.signal_to_noise import SignalScan

_ESTIMATES = (
    Column("des", "the paper's value: cosine of the mean embeddings"),
    Column("corrected", "without the bias of small sets, with its 95 % interval"),
)
_DRIFT = (
    Column("mean cosine", "cosine of the mean states; 1: same direction"),
    Column("CKA", "linear CKA of the states of the same tokens; 1: the same up to rotation and scale"),
    Column("covariance", "change of the covariance, Frobenius norm over the first model's"),
    Column("trace", "change of the whole variance; above 0 the states vary more"),
    Column("variance", "sum of the changes of the variances over their sum"),
)


def similarity_table(found: Comparison) -> Table:
    """Return DES of every pair of sets, and the nearest neighbours in both directions."""
    overlaps = {(one.first, one.second): one.share for one in found.overlaps}
    short = without_shared_folders(found.names)
    columns = (
        Column("first", "a data set"),
        Column("second", "another one"),
        *_ESTIMATES,
        Column("n", "instructions encoded of each"),
        Column("first in second", f"share with a neighbour of cosine {found.closeness} or more in the other"),
        Column("second in first", "the same the other way round"),
    )
    rows = []
    for (i, j), one in found.pairs.items():
        first, second = found.names[i], found.names[j]
        shares = (overlaps[first, second], overlaps[second, first])
        rows.append(
            (short[first], short[second], *_estimates(one), *(written(share, ".1%") for share in shares))
        )
    return Table(columns, tuple(rows), 2)


def task_type_similarity_table(found: Comparison) -> Table:
    """Return DES of every task type of one set with the whole of another."""
    columns = (
        Column("first", "a data set"),
        Column("task type", "as its rows say"),
        Column("second", "another data set, whole"),
        *_ESTIMATES,
        Column("n", "instructions encoded of each"),
    )
    short = without_shared_folders(found.names)
    rows = [
        (short[one.first], one.task_type, short[one.second], *_estimates(one.similarity))
        for one in found.by_task_type
    ]
    return Table(columns, tuple(rows), 3)


def language_similarity_table(found: Comparison) -> Table:
    """Return DES of every language of one set with every language of another."""
    columns = (
        Column("first", "a data set and language"),
        Column("second", "another one"),
        *_ESTIMATES,
        Column("n", "instructions encoded of each"),
    )
    short = without_shared_folders(found.names)
    rows = [
        (
            f"{short[one.first]} ({one.first_language})",
            f"{short[one.second]} ({one.second_language})",
            *_estimates(one.similarity),
        )
        for one in found.by_language
    ]
    return Table(columns, tuple(rows), 2)


def similarity_figure(found: Comparison) -> alt.LayerChart:
    """Draw the matrix of corrected similarities; where there is none, the paper's value."""
    order = list(without_shared_folders(found.names).values())
    rows = []
    for i, first in enumerate(order):
        for j, second in enumerate(order):
            one = None if i == j else found.pairs[min(i, j), max(i, j)]
            value = 1.0 if one is None else one.des if one.corrected is None else one.corrected
            said_value = f"{value:.3f}"
            if one is not None and one.corrected is not None and one.low is not None and one.high is not None:
                said_value += f" [{one.low:.3f}, {one.high:.3f}]; as in the paper {one.des:.3f}"
            rows.append({"first": first, "second": second, "similarity": value, "said": said_value})
    longest = alt.Axis(labelLimit=260)
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X(
            "second:N",
            scale=alt.Scale(domain=order),
            title=None,
            axis=alt.Axis(labelLimit=260, labelAngle=-30),
        ),
        y=alt.Y("first:N", scale=alt.Scale(domain=order), title=None, axis=longest),
        tooltip=tooltips(first="first", second="second", said="DES"),
    )
    scale = alt.Scale(range=["#f3f3f3", BLUE], domain=[0, 1], clamp=True, interpolate="lab")
    tiles = base.mark_rect().encode(color=alt.Color("similarity:Q", scale=scale, title="DES (corrected)"))
    numbers = base.mark_text().encode(
        text=alt.Text("similarity:Q", format=".3f"),
        color=text_on("similarity"),
    )
    return alt.layer(tiles, numbers).properties(
        width=alt.Step(90), height=alt.Step(40), title=f"encoder: {found.encoder}"
    )


def drift_table(drift: Drift) -> Table:
    """Return a model's drift from the first one, layer by layer."""
    rows = [
        (counted(one.layer), *(written(value, ".4f") for value in _drift_figures(one)))
        for one in drift.layers
    ]
    return Table((Column("layer", "decoder layer"), *_DRIFT), tuple(rows), 1)


def language_drift_table(drift: Drift) -> Table:
    """Return a model's drift by language of the prompts, as means over the layers."""
    rows = []
    for tag, layers in drift.by_language.items():
        means = [mean_of_known(column) for column in zip(*map(_drift_figures, layers), strict=True)]
        rows.append((tag, *(written(value, ".4f") for value in means)))
    return Table((Column("language", "BCP-47 tag of the prompts"), *_DRIFT), tuple(rows), 1)


def _drift_figures(one: LayerDrift) -> tuple[float | None, ...]:
    return (one.mean_cosine, one.cka, one.covariance_change, one.trace_change, one.variance_change)


def drift_figure(found: Sequence[Drift]) -> alt.VConcatChart:
    """Draw the paper's Figures 1 and 2: the cosine of mean states, and the covariance's change, over the layers."""
    short = without_shared_folders([drift.model for drift in found])
    points = [
        LayerPoint(short[drift.model], short[drift.model], one.layer, one.mean_cosine, one.covariance_change)
        for drift in found
        for one in drift.layers
    ]
    return layer_curves(points, looks_of(short.values()), shapes_of(short.values()), "model")


def signal_table(scan: SignalScan) -> Table:
    """Return, of each module type, which layers hold the most signal."""
    columns = (
        Column("type", "module type"),
        Column("modules", "matrices of it"),
        Column("selected", "how many are to be trained"),
        Column("highest", "highest signal-to-noise ratio"),
        Column("median", "median of the ratios"),
        Column("signal", "share of all singular values that are signal"),
        Column("selected layers", "the highest ratio first"),
    )
    rows = []
    for name, own in scan.by_type().items():
        scores = sorted(one.snr for one in own)
        chosen = [str(one.layer) for one in own if one.selected]
        signal = sum(one.above for one in own) / sum(one.of for one in own)
        figures = (
            written(scores[-1], ".4g"),
            written(scores[len(scores) // 2], ".4g"),
            written(signal, ".1%"),
        )
        rows.append((name, counted(len(own)), counted(len(chosen)), *figures, " ".join(chosen)))
    return Table(columns, tuple(rows), 1)


def signal_figure(scan: SignalScan) -> alt.LayerChart:
    """Draw each module's rank within its type: layers down, types across; darker is higher, a dot is selected."""
    rows = [
        {
            "type": one.type,
            "layer": one.layer,
            "place": rounded(1 - (one.rank - 1) / max(1, len(own) - 1)),
            "selected": one.selected,
            "said": f"{one.snr:.4g}",
            "rank": f"{one.rank} of {len(own)}",
        }
        for own in scan.by_type().values()
        for one in own
    ]
    types = list(scan.by_type())
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("type:N", title=None, scale=alt.Scale(domain=types), axis=alt.Axis(labelAngle=-60)),
        y=alt.Y("layer:O", title="layer"),
        tooltip=tooltips(type="type", layer="layer", said="signal-to-noise ratio", rank="rank in its type"),
    )
    scale = alt.Scale(range=["#f3f3f3", BLUE], domain=[0, 1], interpolate="lab")
    colour = alt.Color("place:Q", scale=scale, title="place in its type (1: highest)")
    dots = base.transform_filter("datum.selected").mark_point(
        filled=True, color=VERMILLION, size=22, opacity=1
    )
    return alt.layer(base.mark_rect(stroke=GRID, strokeWidth=0.5).encode(color=colour), dots).properties(
        width=alt.Step(30),
        height=alt.Step(14),
        title=f"signal-to-noise ratio, {scan.estimator}; dots are selected",
    )


def difference_table(groups: Sequence[GroupDifference], name: str, *, with_updates: bool) -> Table:
    """Return the change of groups of tensors: layers, or module types."""
    columns: tuple[Column, ...] = (
        Column(name, "what the tensors are grouped by"),
        Column("tensors", "how many"),
        Column("MPD", "mean of the tensors' L2 distances"),
        Column("L2", "L2 distance of all of their parameters"),
        Column("relative", "L2 distance over the first model's norm"),
        Column("1 - cosine", "1 minus the cosine of the two models' parameters"),
    )
    if with_updates:
        columns += (
            Column("update cosine", "cosine of the two updates from the base; below 0 they undo each other"),
            Column("same sign", "share of the parameters moved by both that move one way; 50 % is chance"),
        )
    rows: list[tuple[str, ...]] = []
    for one in groups:
        turned = None if one.cosine is None else 1 - one.cosine
        row: tuple[str, ...] = (one.name, counted(one.tensors), written(one.mpd, ".4f"))
        row += (written(one.l2, ".4f"),)
        row += (written(one.relative, ".5f"), written(turned, ".2e"))
        if with_updates:
            row += (written(one.update_cosine, ".3f"), written(one.sign_agreement, ".1%"))
        rows.append(row)
    return Table(columns, tuple(rows), 1)


def difference_figure(found: ParameterDifference) -> alt.LayerChart:
    """Draw the mean of the tensors' relative changes: module types across, layers down; darker moved further."""
    groups: dict[tuple[str, str], list[TensorDifference]] = {}
    for one in found.tensors:
        layer = "outside" if one.layer is None else str(one.layer)
        groups.setdefault((one.module, layer), []).append(one)
    rows = [
        {
            "module": module,
            "layer": layer,
            "relative": rounded(mean),
            "said": f"{mean:.3g}",
            "mpd": f"{sum(one.l2 for one in own) / len(own):.4g}",
        }
        for (module, layer), own in groups.items()
        if (mean := mean_of_known([one.relative for one in own])) is not None
    ]
    numbers = sorted({-1 if one.layer is None else one.layer for one in found.tensors})
    layers = ["outside" if number < 0 else str(number) for number in numbers]
    modules = list(dict.fromkeys(one.module for one in found.tensors))
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("module:N", title=None, scale=alt.Scale(domain=modules), axis=alt.Axis(labelAngle=-60)),
        y=alt.Y("layer:N", scale=alt.Scale(domain=layers), title="layer"),
        tooltip=tooltips(module="module", layer="layer", said="relative change", mpd="MPD"),
    )
    scale = alt.Scale(range=["#f3f3f3", BLUE], interpolate="lab", domainMin=0)
    colour = alt.Color("relative:Q", scale=scale, title="relative change")
    return alt.layer(base.mark_rect(stroke=GRID, strokeWidth=0.5).encode(color=colour)).properties(
        width=alt.Step(26), height=alt.Step(14)
    )


def without_shared_folders(names: Sequence[str]) -> dict[str, str]:
    """Return names to be read, by name: paths without the folders that all of them share."""
    parts = [name.split("/") for name in names]
    shared = 0
    while all(len(own) > shared + 1 for own in parts) and len({own[shared] for own in parts}) == 1:
        shared += 1
    return {name: "/".join(own[shared:]) for name, own in zip(names, parts, strict=True)}


def _estimates(one: EmbeddingSimilarity) -> tuple[str, str, str]:
    corrected = written(one.corrected, ".3f", one.low, one.high)
    if one.low is not None and one.high is not None:
        corrected = corrected.with_text(f"{corrected} [{one.low:.3f}, {one.high:.3f}]")
    return written(one.des, ".3f"), corrected, f"{one.n[0]}, {one.n[1]}"
