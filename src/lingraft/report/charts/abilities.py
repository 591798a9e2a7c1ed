"""Changes by language and task, and the loss of held-out answers."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt

from lingraft.evaluate.results import BitsPerCharacter, TaskScore
from lingraft.measures.look import BASE_MARK, INK, looks_of, shapes_of
from lingraft.report.cells import MOST_MODELS, chosen_cells, drawn_in_heat_map, shown_cells
from lingraft.report.figures import (
    GRID,
    Row,
    colour_scale,
    diverging_scale,
    facets_by_cell,
    fill_scale,
    rounded,
    row_of,
    said,
    text_on,
    tooltips,
)
from lingraft.report.signs import SIGNS
from lingraft.report.tables import BASE, models_of
from lingraft.study.result import StudyResult
from lingraft.text.language_tags import ENGLISH


def split_task(name: str) -> tuple[str, str]:
    """Return task and language of what names both, such as `worldbook:lookup/de`."""
    task, _, language = name.rpartition("/")
    return (task, language) if task else (name, "")


def changes_by_task(result: StudyResult) -> alt.FacetChart:
    """Draw each cell's change from Phase 1 in each task and language; several seeds are drawn as their mean.

    A tile without a number is a task that only one of the two models has scores of; no tile: there is no such task.
    """
    cells = drawn_in_heat_map(result)
    names = list(
        dict.fromkeys(name for cell in shown_cells(result) for one in cell.seeds for name in one.scores.tasks)
    )
    tasks = list(dict.fromkeys(split_task(name)[0] for name in names))
    languages = sorted(dict.fromkeys(split_task(name)[1] for name in names), key=lambda tag: tag != ENGLISH)
    rows: list[Row] = []
    for order, cell in enumerate(cells):
        for name in names:
            task, language = split_task(name)
            row = row_of(cell=cell.label, order=order, task=task, language=language)
            scores = [own for one in cell.seeds if (own := one.scores.tasks.get(name)) is not None]
            if scores:
                row |= {"said_score": _score(scores), "said_items": str(scores[0].n)}
            changes = [by for one in cell.seeds if (by := one.difference.tasks.get(name)) is not None]
            if changes:
                change = sum(one.value for one in changes) / len(changes)
                row["change"] = rounded(change)
                row["number"] = f"{change:+.2f}"
                row["said_change"] = (
                    f"{said(changes[0], '+.3f')} {SIGNS[changes[0].answer]}, p {changes[0].p_adjusted:.2g}"
                    if len(changes) == 1
                    else f"{change:+.3f}, seeds {min(one.value for one in changes):+.3f} to "
                    f"{max(one.value for one in changes):+.3f}"
                )
            rows.append(row)
    most = max([abs(float(row["change"])) for row in rows if "change" in row] or [0.0]) or 0.1
    for row in rows:
        if "change" in row:
            row["depth"] = rounded(abs(float(row["change"])) / most)

    base = alt.Chart().encode(
        x=alt.X(
            "task:N", title=None, scale=alt.Scale(domain=tasks), axis=alt.Axis(labelAngle=-35, labelLimit=130)
        ),
        y=alt.Y("language:N", title=None, scale=alt.Scale(domain=languages)),
        tooltip=tooltips(
            cell="cell",
            task="task",
            language="language",
            said_change="change from Phase 1",
            said_score="score",
            said_items="items",
        ),
    )
    legend = alt.Legend(title="change from Phase 1", gradientLength=160)
    tiles = (
        base.mark_rect(stroke=GRID)
        .transform_filter("isValid(datum.change)")
        .encode(color=alt.Color("change:Q", scale=diverging_scale(most), legend=legend))
    )
    missing = base.transform_filter("!isValid(datum.change)")
    numbers = (
        base.mark_text(fontSize=10)
        .transform_filter("isValid(datum.change)")
        .encode(text="number:N", color=text_on("depth"))
    )
    wide = max(130, 36 * len(tasks))
    chart = alt.layer(
        missing.mark_rect(fillOpacity=0, stroke=INK, strokeOpacity=0.35, strokeDash=[2, 2]),
        missing.mark_text(text="/", color=INK, opacity=0.5),
        tiles,
        numbers,
    ).properties(width=wide, height=alt.Step(17))
    return facets_by_cell(chart, rows, wide, 20)


def _score(scores: Sequence[TaskScore]) -> str:
    if len(scores) == 1:
        return said(scores[0])
    values = [one.value for one in scores]
    return f"{sum(values) / len(values):.3f}, seeds {min(values):.3f} to {max(values):.3f}"


def bits_per_character(result: StudyResult) -> alt.FacetChart:
    """Draw the loss of held-out answers in bits per character, a picture for each language; lower is better.

    Lines are 95 % intervals; of several seeds, drawn as their mean, from the lowest to the highest. Each language has
    an axis of its own, which need not begin at 0.
    """
    labels = {cell.label for cell in chosen_cells(shown_cells(result), MOST_MODELS)}
    groups: dict[tuple[str, str], list[BitsPerCharacter]] = {}
    looked: dict[str, Row] = {}
    for model in models_of(result):
        title = model.title(with_seed=False)
        if model.cell is not None and title not in labels:
            continue
        kind = "cell" if model.cell is not None else "base" if model.data == BASE else "phase one"
        looked[title] = {"kind": kind}
        if model.cell is not None:
            looked[title] |= {"data": model.data, "strategy": model.strategy}
        for language, score in model.scores.per_language.items():
            if score.held_out is not None:
                groups.setdefault((title, language), []).append(score.held_out)
    rows: list[Row] = []
    for (model_name, language), own in groups.items():
        bits = sum(one.value for one in own) / len(own)
        low, high = (
            (own[0].low, own[0].high)
            if len(own) == 1
            else (min(one.value for one in own), max(one.value for one in own))
        )
        row = row_of(model=model_name, language=language, bits=bits, low=low, high=high)
        row |= {"said_bits": f"{bits:.3f} [{low:.3f}, {high:.3f}]", "said_items": str(own[0].n)}
        rows.append(row | looked[model_name])
    names = list(dict.fromkeys(model_name for model_name, _ in groups))
    looks = looks_of(cell.strategy for cell in result.cells)
    shapes = shapes_of(cell.data for cell in result.cells)
    title = "bits per character"
    hover = tooltips(model="model", language="language", said_bits=title, said_items="answers")
    base = alt.Chart().encode(
        y=alt.Y(
            "model:N", title=None, scale=alt.Scale(domain=names), axis=alt.Axis(labelLimit=190, grid=True)
        ),
        tooltip=hover,
    )
    x = alt.X("bits:Q", title=title).scale(zero=False)
    bars = alt.X("low:Q", title=title).scale(zero=False)
    colour = alt.Stroke("strategy:N", scale=colour_scale(looks), legend=None)
    of_cells = base.transform_filter("datum.kind === 'cell'")
    others = base.transform_filter("datum.kind !== 'cell'")
    crosses = [("phase one", "cross"), ("base", BASE_MARK)]
    return (
        alt.layer(
            of_cells.mark_rule(opacity=0.5).encode(x=bars, x2="high", stroke=colour),
            others.mark_rule(opacity=0.5, color=INK).encode(x=bars, x2="high"),
            of_cells.mark_point(size=60, opacity=1, strokeWidth=2).encode(
                x=x,
                stroke=colour,
                fill=alt.Fill("strategy:N", scale=fill_scale(looks), legend=None),
                shape=alt.Shape(
                    "data:N", scale=alt.Scale(domain=list(shapes), range=list(shapes.values())), legend=None
                ),
            ),
            *(
                base.transform_filter(f"datum.kind === '{kind}'")
                .mark_point(size=70, opacity=1, strokeWidth=2, color=INK, shape=mark)
                .encode(x=x)
                for kind, mark in crosses
            ),
        )
        .properties(width=200, height=alt.Step(17))
        .facet(facet=alt.Facet("language:N", title=None), columns=2, data=alt.Data(values=rows))
        .resolve_scale(x="independent")
    )
