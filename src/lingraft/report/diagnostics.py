"""Tables and figures of the single measures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import altair as alt

from lingraft.errors import ConfigError
from lingraft.report.tables import ABSENT, Column, Table

if TYPE_CHECKING:
    from lingraft.similarity.comparison import Comparison
    from lingraft.similarity.embedding_similarity import EmbeddingSimilarity

FIGURE_SUFFIXES = (".svg", ".png", ".html")

_ESTIMATES = (
    Column("des", "the paper's value: cosine of the mean embeddings"),
    Column("corrected", "without the bias of small sets, with its 95 % interval"),
)


def check_figure(path: Path) -> None:
    """Refuse a figure that could not be written, before anything is computed.

    Raises:
        ConfigError: Its suffix is unknown, or its folder is not there.
    """
    if path.suffix.lower() not in FIGURE_SUFFIXES:
        raise ConfigError(
            f"{path}: a figure's name must end in {', '.join(FIGURE_SUFFIXES)}, not {path.suffix!r}."
        )
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: there is no folder {path.parent}; make it first.")


def write_figure(chart: Any, path: Path) -> None:
    """Write a figure as SVG, PNG (at twice its size) or HTML that needs no network, by the name's suffix."""
    check_figure(path)
    if path.suffix.lower() == ".html":
        chart.save(str(path), format="html", inline=True)
    else:
        chart.save(str(path), format=path.suffix.lower()[1:], scale_factor=2)


def similarity_table(found: Comparison) -> Table:
    """Return DES of every pair of sets, and the nearest neighbours in both directions."""
    overlaps = {(one.first, one.second): one.share for one in found.overlaps}
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
        rows.append((first, second, *_estimates(one), *(f"{share:.1%}" for share in shares)))
    return Table(columns, tuple(rows), 2)


def language_similarity_table(found: Comparison) -> Table:
    """Return DES of every language of one set with every language of another."""
    columns = (
        Column("first", "a data set and language"),
        Column("second", "another one"),
        *_ESTIMATES,
        Column("n", "instructions encoded of each"),
    )
    rows = [
        (
            f"{one.first} ({one.first_language})",
            f"{one.second} ({one.second_language})",
            *_estimates(one.similarity),
        )
        for one in found.by_language
    ]
    return Table(columns, tuple(rows), 2)


def similarity_figure(found: Comparison) -> alt.LayerChart:
    """Draw the matrix of corrected similarities; where there is none, the paper's value."""
    rows = []
    for i, first in enumerate(found.names):
        for j, second in enumerate(found.names):
            one = None if i == j else found.pairs[min(i, j), max(i, j)]
            value = 1.0 if one is None else one.des if one.corrected is None else one.corrected
            rows.append({"first": first, "second": second, "similarity": value})
    order = list(found.names)
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("second:N", sort=order, title=None), y=alt.Y("first:N", sort=order, title=None)
    )
    scale = alt.Scale(scheme="blues", domain=[0, 1], clamp=True)
    tiles = base.mark_rect().encode(color=alt.Color("similarity:Q", scale=scale, title="DES (corrected)"))
    numbers = base.mark_text().encode(
        text=alt.Text("similarity:Q", format=".3f"),
        color=alt.condition("datum.similarity > 0.6", alt.value("white"), alt.value("#10202f")),
    )
    return alt.layer(tiles, numbers).properties(
        width=alt.Step(90), height=alt.Step(40), title=f"encoder: {found.encoder}"
    )


def _estimates(one: EmbeddingSimilarity) -> tuple[str, str, str]:
    corrected = ABSENT if one.corrected is None else f"{one.corrected:.3f}"
    if one.low is not None and one.high is not None:
        corrected += f" [{one.low:.3f}, {one.high:.3f}]"
    return f"{one.des:.3f}", corrected, f"{one.n[0]}, {one.n[1]}"
