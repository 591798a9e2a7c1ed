"""The figures of a study, as Vega-Lite through altair; drawn to SVG offline by vl-convert."""

from __future__ import annotations

from typing import Any

import altair as alt

_WIDTH = 620


def trade_off(result: dict[str, Any]) -> alt.LayerChart | None:
    """Change of task ability against gain in language ability, a point with both 95 % intervals per cell.

    None where no cell is done.
    """
    rows = [
        {
            "cell": f"{cell['data']} / {cell['strategy']}",
            "seed": cell["seed"],
            **_spread("gain", cell["difference"]["language_ability"]),
            **_spread("change", cell["difference"]["task_ability"]),
        }
        for cell in result["cells"]
        if cell["status"] == "done"
    ]
    if not rows:
        return None
    base = alt.Chart(alt.Data(values=rows)).encode(color=alt.Color("cell:N", title="data / strategy"))
    gain, change = "gain in language ability", "change of task ability"
    x, y = alt.X("gain:Q", title=gain), alt.Y("change:Q", title=change)
    zero = alt.Chart(alt.Data(values=[{"zero": 0}])).mark_rule(strokeDash=[4, 4], color="#888")
    return alt.layer(
        zero.encode(y="zero:Q"),
        base.mark_rule().encode(x=alt.X("gain_low:Q", title=gain), x2="gain_high", y=y),
        base.mark_rule().encode(x=x, y=alt.Y("change_low:Q", title=change), y2="change_high"),
        base.mark_point(filled=True, size=90).encode(x=x, y=y),
    ).properties(width=_WIDTH, height=340)


def bits_per_character(result: dict[str, Any]) -> alt.Chart | None:
    """Loss of the held-out answers in bits per character, per language and model; lower is better."""
    models = [("base model", result["base"]), ("phase 1", result["phase_one"])]
    models += [(f"{c['data']} / {c['strategy']}", c.get("scores")) for c in result["cells"]]
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


def to_svg(chart: alt.Chart | alt.LayerChart) -> str:
    """Return the figure as SVG; texts in it are escaped by the renderer."""
    import vl_convert

    svg: str = vl_convert.vegalite_to_svg(chart.to_dict())
    return svg


def _spread(name: str, difference: dict[str, Any]) -> dict[str, float]:
    return {
        name: difference["value"],
        f"{name}_low": difference["low"],
        f"{name}_high": difference["high"],
    }
