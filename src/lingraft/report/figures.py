"""The figures of a study, as Vega-Lite through altair; drawn to SVG offline by vl-convert."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from lingraft.report.tables import BITS, mean_of_known, model_title, phase_one_models

_WIDTH = 620
_POINT = "#2a6fdb"
_INK = "#010203"  # stands for the page's own text colour, light or dark; see `to_svg`
_MOST_MATRICES = 12  # drawn; the table below the figure has all
_LOOK = {
    "background": "transparent",
    "view": {"stroke": "transparent"},
    "axis": dict.fromkeys(("labelColor", "titleColor", "tickColor", "domainColor"), _INK)
    | {"gridColor": "#88888855"},
    "legend": {"labelColor": _INK, "titleColor": _INK},
    "header": {"labelColor": _INK, "titleColor": _INK},
}


def trade_off(result: dict[str, Any]) -> alt.FacetChart | None:
    """Change of task ability against gain in language ability: a point with both 95 % intervals for each strategy.

    One picture per data set. Several seeds make one point, their mean; None where no cell is done.
    """
    rows = [
        {
            "data": one["data"],
            "strategy": one["strategy"],
            **_spread("gain", one["language_ability"]),
            **_spread("change", one["task_ability"]),
        }
        for one in _changes(result)
    ]
    if not rows:
        return None
    base = alt.Chart()
    gain, change = "gain in language ability", "change of task ability"
    x, y = alt.X("gain:Q", title=gain).scale(zero=False), alt.Y("change:Q", title=change)
    zero = base.transform_calculate(zero="0").mark_rule(strokeDash=[4, 4], color="#888")
    interval = {"opacity": 0.35, "color": _POINT}
    label = {"align": "left", "dx": 7, "dy": -5, "fontSize": 10, "color": _INK}
    return (
        alt.layer(
            zero.encode(y="zero:Q"),
            base.mark_rule(**interval).encode(x=alt.X("gain_low:Q", title=gain), x2="gain_high", y=y),
            base.mark_rule(**interval).encode(x=x, y=alt.Y("change_low:Q", title=change), y2="change_high"),
            base.mark_point(filled=True, size=60, opacity=1, color=_POINT).encode(x=x, y=y),
            base.mark_text(**label).encode(x=x, y=y, text="strategy:N"),
            data=alt.Data(values=rows),
        )
        .properties(width=_WIDTH, height=380)
        .facet(row=alt.Row("data:N", title=None))
        .resolve_scale(x="independent")
    )


def _changes(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return each strategy's paired differences to Phase 1: over seeds, where several are done of it."""
    pooled = {(one["data"], one["strategy"]): one for one in result["over_seeds"]}
    single = {
        (cell["data"], cell["strategy"]): {"data": cell["data"], "strategy": cell["strategy"]}
        | cell["difference"]
        for cell in result["cells"]
        if cell["status"] == "done"
    }
    return list((single | pooled).values())


def bits_per_character(result: dict[str, Any]) -> alt.Chart | None:
    """Loss of the held-out answers in bits per character, per language and model; lower is better."""
    entries = [*phase_one_models(result), *result["cells"]]  # several seeds are drawn as their mean
    models = [("base model", result["base"])]
    models += [(model_title(one, with_seed=False), one.get("scores")) for one in entries]
    order = list(dict.fromkeys(name for name, _ in models))
    rows = [
        {"model": name, "language": language, "bits": entry["bits_per_character"]}
        for name, scores in models
        for language, entry in ((scores or {}).get("per_language") or {}).items()
        if entry.get("bits_per_character") is not None
    ]
    if not rows:
        return None
    return (
        alt.Chart(alt.Data(values=rows))
        .mark_point(filled=True, size=80)
        .encode(
            x=alt.X("mean(bits):Q", title="bits per character of held-out answers"),
            y=alt.Y("model:N", sort=order, title=None),
            color=alt.Color("language:N"),
        )
        .properties(width=_WIDTH)
    )


def training_loss(result: dict[str, Any]) -> alt.Chart | None:
    """Training loss of the last phase of each cell, in nats per supervised token, over its steps."""
    rows = [
        {"cell": f"{cell['data']} / {cell['strategy']} / {cell['seed']}", "step": step, "loss": loss}
        for cell in result["cells"]
        if cell["status"] == "done"
        for step, loss in cell["phases"][-1]["losses"]
    ]
    if not rows:
        return None
    return (
        alt.Chart(alt.Data(values=rows))
        .mark_line()
        .encode(
            x=alt.X("step:Q", title="optimiser step"),
            y=alt.Y("loss:Q", title="loss in nats per token", scale=alt.Scale(zero=False)),
            color=alt.Color("cell:N", title="cell"),
        )
        .properties(width=_WIDTH, height=260)
    )


def hidden_states(result: dict[str, Any]) -> alt.VConcatChart | None:
    """Draw the paper's Figures 1 and 2 for the cells: drift of the hidden states from Phase 1, layer by layer.

    Several seeds are drawn as their mean.
    """
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for cell in result["cells"]:
        for one in (cell["drift"] or {"layers": []})["layers"] if cell["status"] == "done" else ():
            found.setdefault((f"{cell['data']} / {cell['strategy']}", one["layer"]), []).append(one)
    rows = [
        {
            "model": name,
            "layer": layer,
            "cosine": mean_of_known([one["mean_cosine"] for one in seeds]),
            "covariance": mean_of_known([one["covariance_change"] for one in seeds]),
        }
        for (name, layer), seeds in found.items()
    ]
    return layer_curves(rows) if rows else None


def layer_curves(rows: Sequence[dict[str, Any]]) -> alt.VConcatChart:
    """Draw `cosine` (of mean states) and `covariance` (its change) of each `model` over the layers."""
    base = alt.Chart(alt.Data(values=rows)).mark_line(point=True).properties(width=520, height=220)
    layer = alt.X("layer:Q", title="decoder layer", axis=alt.Axis(tickMinStep=1, format="d"))
    colour = alt.Color("model:N", title="model")
    cosine = alt.Y("cosine:Q", title="cosine of mean states", scale=alt.Scale(zero=False))
    change = alt.Y("covariance:Q", title="change of the covariance")
    return alt.vconcat(
        base.encode(x=layer, y=cosine, color=colour), base.encode(x=layer, y=change, color=colour)
    )


def ability_matrix(result: dict[str, Any]) -> alt.FacetChart | None:
    """Forgetting matrix of each cell: ability in what each phase taught, after each phase; darker is higher."""
    entries = _matrix_entries(result, "ability")
    return _heat_map([entry | {"shade": entry["value"]} for entry in entries])


def loss_matrix(result: dict[str, Any]) -> alt.FacetChart | None:
    """Forgetting matrix of each cell: bits per character of each phase's own held-out answers, after each phase.

    Darker is lower, among all cells' entries for the same data set: losses of two languages are on no one scale.
    """
    entries = _matrix_entries(result, BITS)
    values: dict[tuple[str, str], list[float]] = {}
    for entry in entries:
        values.setdefault((entry["taught"], entry["data"]), []).append(entry["value"])
    shaded = []
    for entry in entries:
        own = values[entry["taught"], entry["data"]]
        width = (max(own) - min(own)) or 1.0
        shaded.append(entry | {"shade": (max(own) - entry["value"]) / width})
    return _heat_map(shaded)


def _matrix_entries(result: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """Return the entries of the cells' matrices, several seeds' averaged."""
    found: dict[tuple[str, int, str], list[float]] = {}
    places: dict[tuple[str, int, str], dict[str, Any]] = {}
    for cell in result["cells"]:
        matrix = (cell["forgetting"][kind] if cell["status"] == "done" else None) or {"rows": []}
        name = f"{cell['data']} / {cell['strategy']}"
        for number, row in enumerate(matrix["rows"]):
            for column, entry in zip(matrix["columns"], row["scores"], strict=True):
                key = (name, number, column["phase"])
                found.setdefault(key, []).append(entry["value"])
                places[key] = {"cell": name, "row": number, "after": row["after"]}
                places[key] |= {"taught": column["phase"], "data": column["data"]}
    return [places[key] | {"value": sum(values) / len(values)} for key, values in found.items()]


def _heat_map(rows: list[dict[str, Any]]) -> alt.FacetChart | None:
    """Draw one matrix per cell; `shade`, in [0, 1], colours an entry, its number stands in it."""
    if not rows:
        return None
    cells = list(dict.fromkeys(row["cell"] for row in rows))[:_MOST_MATRICES]
    phases = list(dict.fromkeys(row["taught"] for row in rows))
    base = alt.Chart().encode(
        x=alt.X("taught:N", sort=phases, title="taught by phase", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("after:N", sort=alt.EncodingSortField("row"), title="after phase"),
    )
    number = base.mark_text(fontSize=13).encode(
        text=alt.Text("value:Q", format=".3f"),
        color=alt.condition("datum.shade > 0.5", alt.value("white"), alt.value("#10202f")),
    )
    scale = alt.Scale(scheme="blues", domain=[0, 1])
    tiles = base.mark_rect(stroke="#88888855").encode(color=alt.Color("shade:Q", scale=scale, legend=None))
    return (
        alt.layer(tiles, number)
        .properties(width=72 * len(phases), height=alt.Step(30))
        .facet(
            facet=alt.Facet("cell:N", title=None, sort=cells),
            columns=max(1, 10 // (len(phases) + 1)),
            data=alt.Data(values=[row for row in rows if row["cell"] in cells]),
        )
        .resolve_scale(y="independent")
    )


def to_svg(chart: Any) -> str:
    """Return the figure as SVG, drawn in the page's own ink; texts in it are escaped by the renderer."""
    import vl_convert

    spec = chart.to_dict()
    svg: str = vl_convert.vegalite_to_svg(spec | {"config": (spec.get("config") or {}) | _LOOK})
    return svg.replace(_INK, "currentColor")


def _spread(name: str, difference: dict[str, Any]) -> dict[str, float]:
    return {
        name: difference["value"],
        f"{name}_low": difference["low"],
        f"{name}_high": difference["high"],
    }
