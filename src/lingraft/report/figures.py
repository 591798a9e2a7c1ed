"""What all figures share: how they look, and what turns one into a job for `drawing`.

What models and data sets are called is data of a figure, and nothing else: never a field, an expression or a sort
order, which Vega would read as code.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final, Protocol

import altair as alt

from lingraft.intervals.changes import Answer
from lingraft.measures.look import BLUE, INK, VERMILLION, WIDTH, Look
from lingraft.report.drawing import Job
from lingraft.report.formats import Form
from lingraft.report.signs import SIGNS

__all__ = ["INK", "WIDTH"]

NARROW: Final = 280
"""Of a plot in a window of 360 pixels."""
GRID: Final = "#88888840"
MOST_IN_LEGEND: Final = 20
DEEP: Final = 0.93  # of the way from nearly white to a tile's deepest colour; white text is on no paler ones
_LOOK: Final = {
    "aria": False,  # the page has a text alternative for the figure as a whole
    "mark": {"aria": False},  # of layers, which the line above does not reach
    "font": "sans-serif",
    "view": {"stroke": "transparent"},
    "axis": dict.fromkeys(("labelColor", "titleColor", "tickColor", "domainColor"), INK)
    | {
        "gridColor": GRID,
        "tickCount": 8,
        "labelFontSize": 11,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
    },
    "legend": {
        "labelColor": INK,
        "titleColor": INK,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "labelLimit": 170,
        "orient": "bottom",
        "columns": 3,
        "layout": {"bottom": {"anchor": "start", "direction": "vertical"}},
    },
    "header": {"labelColor": INK, "titleColor": INK, "labelFontSize": 12, "labelLimit": 300},
    "title": {"color": INK, "fontSize": 12, "fontWeight": "normal"},
    "text": {"color": INK},
}


class Bounded(Protocol):
    """A figure with its interval."""

    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


class Changed(Bounded, Protocol):
    """A change with its interval, and what it says."""

    @property
    def answer(self) -> Answer: ...


Row = dict[str, str | float | bool]
"""A row of a figure's data, by field; fields are ours, texts in them may be anyone's."""


def said(one: Bounded | None, form: str = ".3f") -> str:
    """Return a figure with its interval, for what is shown on hover; None: a dash."""
    return "-" if one is None else f"{one.value:{form}} [{one.low:{form}}, {one.high:{form}}]"


def said_change(one: Changed) -> str:
    """Return a change with its interval and its sign, for what is shown on hover."""
    return f"{said(one, '+.3f')} {SIGNS[one.answer]}"


def limited(name: str, most: int = 30) -> str:
    """Return a name for a label; the whole of it is shown on hover."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def rounded(value: float) -> float:
    """Return a number as figures hold it: with five significant digits."""
    return float(f"{value:.5g}")


def row_of(**fields: str | float | Bounded | None) -> Row:
    """Return a row of a figure's data: of a figure with an interval its value, both ends, and how it is written."""
    row: Row = {}
    for name, one in fields.items():
        if isinstance(one, (int, float)):
            row[name] = rounded(one)
        elif isinstance(one, str):
            row[name] = one
        elif one is not None:
            row |= {
                name: rounded(one.value),
                f"{name}_low": rounded(one.low),
                f"{name}_high": rounded(one.high),
            }
            row[f"said_{name}"] = said(one)
    return row


def colour_scale(looks: Mapping[str, Look]) -> alt.Scale:
    """Return the colours of strategies."""
    return alt.Scale(domain=list(looks), range=[one.colour for one in looks.values()])


def fill_scale(looks: Mapping[str, Look]) -> alt.Scale:
    """Return what strategies' marks are filled with."""
    return alt.Scale(domain=list(looks), range=[one.fill for one in looks.values()])


def dash_scale(looks: Mapping[str, Look]) -> alt.Scale:
    """Return the dashes of strategies' lines."""
    return alt.Scale(domain=list(looks), range=[one.dash for one in looks.values()])


def diverging_scale(most: float) -> alt.Scale:
    """Return the colours of changes: orange below 0, blue above."""
    return alt.Scale(
        domain=[-most, 0, most], range=[VERMILLION, "#f3f3f3", BLUE], interpolate="lab", clamp=True
    )


def text_on(depth: str) -> Any:
    """Return the colour of a text on a tile: black, on the deepest colours white.

    Its contrast is at least 4.5 (WCAG 1.4.3).

    Args:
        depth: The field that says, from 0 to 1, how far the tile's colour is from nearly white.
    """
    return alt.condition(f"datum.{depth} > {DEEP}", alt.value("#ffffff"), alt.value("#000000"))


def facets_by_cell(chart: Any, rows: list[dict[str, Any]], width: int, gap: int) -> alt.FacetChart:
    """Return a picture for each cell, side by side.

    Args:
        chart: One of them.
        rows: Their data; `cell` is its name, `order` its place.
        width: Of one, in pixels.
        gap: Between two, with what stands beside the axes.
    """
    return chart.facet(
        facet=alt.Facet(
            "cell:N",
            title=None,
            sort=alt.EncodingSortField("order", op="min"),
            header=alt.Header(labelLimit=width + 20),
        ),
        columns=max(1, (WIDTH + 40) // (width + gap)),
        data=alt.Data(values=rows),
    )


def legend_for(names: Collection[str], title: str) -> alt.Legend | None:
    """Return the legend of so many names; None: there are too many to find one in it, or there is one alone."""
    return (
        alt.Legend(title=title, symbolLimit=0, symbolOpacity=1) if 1 < len(names) <= MOST_IN_LEGEND else None
    )


def tooltips(**titles: str) -> list[alt.Tooltip]:
    """Return what is shown on hover: fields of the data that are text already, with their titles."""
    return [alt.Tooltip(f"{field}:N", title=title) for field, title in titles.items()]


def job_of(chart: Any, form: Form = "page") -> Job:
    """Return what draws a figure, with the look that all share; on the page it is in the page's own ink.

    Behind it is nothing on the page and in a PDF, which stand on a page's or a slide's own ground, else white.
    """
    spec: dict[str, Any] = chart.to_dict()
    background = "transparent" if form in ("page", "pdf") else "white"
    return Job(form, spec | {"config": (spec.get("config") or {}) | _LOOK | {"background": background}})


def svg_of(drawing: bytes) -> str:
    """Return the SVG of a drawing of `job_of`; texts in it are escaped by the renderer."""
    return drawing.decode().replace(INK, "currentColor")
