"""The forgetting matrices."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Final

import altair as alt

from lingraft.report.tables import Matrix, matrix_of
from lingraft.study.result import StudyResult

_MOST_MATRICES: Final = 12  # drawn; the table below the figure has all


@dataclass(frozen=True)
class _Tile:
    """An entry of a forgetting matrix in a picture; `shade`, in [0, 1], colours it, and its value stands in it."""

    cell: str
    row: int
    after: str
    taught: str
    data: str
    value: float
    shade: float


def matrices(result: StudyResult, kind: Matrix) -> alt.FacetChart:
    """Draw the forgetting matrix of each cell. Several seeds are drawn as their mean.

    Darker is higher for abilities. For bits per character darker is lower, among all cells' entries for the same data
    set: losses of two languages are on no one scale.
    """
    found: dict[tuple[str, int, str, str, str], list[float]] = {}
    for cell in result.done:
        matrix = matrix_of(cell, kind)
        if matrix is None:
            continue
        for number, row in enumerate(matrix.rows):
            values = [entry.value for entry in row.scores]
            for column, value in zip(matrix.columns, values, strict=True):
                key = (f"{cell.data} / {cell.strategy}", number, row.after, column.phase, column.data)
                found.setdefault(key, []).append(value)
    means = {key: sum(values) / len(values) for key, values in found.items()}
    tiles = []
    for key, value in means.items():
        shade = value
        if kind != "ability":
            same = [other for place, other in means.items() if place[3:] == key[3:]]
            shade = (max(same) - value) / ((max(same) - min(same)) or 1.0)
        tiles.append(_Tile(*key, value=value, shade=shade))

    cells = list(dict.fromkeys(tile.cell for tile in tiles))[:_MOST_MATRICES]
    phases = list(dict.fromkeys(tile.taught for tile in tiles))
    base = alt.Chart().encode(
        x=alt.X("taught:N", sort=phases, title="taught by phase", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("after:N", sort=alt.EncodingSortField("row"), title="after phase"),
    )
    number = base.mark_text(fontSize=13).encode(
        text=alt.Text("value:Q", format=".3f"),
        color=alt.condition("datum.shade > 0.5", alt.value("white"), alt.value("#10202f")),
    )
    scale = alt.Scale(scheme="blues", domain=[0, 1])
    shades = base.mark_rect(stroke="#88888855").encode(color=alt.Color("shade:Q", scale=scale, legend=None))
    return (
        alt.layer(shades, number)
        .properties(width=72 * len(phases), height=alt.Step(30))
        .facet(
            facet=alt.Facet("cell:N", title=None, sort=cells),
            columns=max(1, 10 // (len(phases) + 1)),
            data=alt.Data(values=[asdict(tile) for tile in tiles if tile.cell in cells]),
        )
        .resolve_scale(y="independent")
    )
