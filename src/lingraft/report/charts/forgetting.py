"""The forgetting matrices."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import altair as alt

from lingraft.measures.look import BLUE
from lingraft.report.figures import GRID, facets_by_cell, rounded, text_on, tooltips
from lingraft.report.tables import Matrix, matrix_of
from lingraft.study.result import StudyResult


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


def matrices(result: StudyResult, kind: Matrix, most: int) -> alt.FacetChart:
    """Draw the forgetting matrix of each cell. Several seeds are drawn as their mean.

    At most so many cells are drawn. Darker is higher for abilities. For bits per character darker is lower, among all
    cells' entries for the same data set: losses of two languages are on no one scale.
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

    cells = list(dict.fromkeys(tile.cell for tile in tiles))[:most]
    phases = list(dict.fromkeys(tile.taught for tile in tiles))
    base = alt.Chart().encode(
        x=alt.X(
            "taught:N", scale=alt.Scale(domain=phases), title="taught by phase", axis=alt.Axis(labelAngle=0)
        ),
        y=alt.Y("after:N", sort=alt.EncodingSortField("row"), title="after phase"),
        tooltip=tooltips(
            cell="cell", after="after phase", taught="taught by phase", data="data", said="value"
        ),
    )
    number = base.mark_text(fontSize=13).encode(text="said:N", color=text_on("shade"))
    scale = alt.Scale(range=["#f3f3f3", BLUE], domain=[0, 1], interpolate="lab")
    shades = base.mark_rect(stroke=GRID).encode(color=alt.Color("shade:Q", scale=scale, legend=None))
    wide = max(130, 72 * len(phases))
    rows = [
        asdict(tile)
        | {"order": cells.index(tile.cell), "said": f"{tile.value:.3f}", "shade": rounded(tile.shade)}
        for tile in tiles
        if tile.cell in cells
    ]
    chart = alt.layer(shades, number).properties(width=wide, height=alt.Step(30))
    return facets_by_cell(chart, rows, wide, 60).resolve_scale(y="independent")
