"""The report page of a study: one self-contained HTML file.

What models and data sets say is untrusted: the template escapes everything but the figures' SVG, in which the
renderer has escaped it.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from lingraft.config.load import dump_study
from lingraft.config.schema import Study
from lingraft.records import write_text_atomically
from lingraft.report.figures import (
    ability_matrix,
    bits_per_character,
    hidden_states,
    loss_matrix,
    to_svg,
    trade_off,
    training_loss,
)
from lingraft.report.tables import (
    BITS,
    answer_table,
    change_table,
    contamination_table,
    des_note,
    failures,
    forgetting_table,
    minimum_detectable_effect,
    model_title,
    noise_note,
    phase_one_models,
    precision_note,
    seed_table,
    strategy_cost_table,
    study_table,
    task_table,
    training_table,
    unpaired_lines,
)

_FIGURES = (
    (
        "What it cost and what it gained",
        "Each point is a cell, with the 95 % intervals of its paired differences to Phase 1. Up is kept English, "
        "right is more of the new languages.",
        trade_off,
    ),
    (
        "Loss of held-out answers",
        "Bits per character of answers that no phase trained on; lower is better, and comparable between tokenizers.",
        bits_per_character,
    ),
    (
        "Drift of the hidden states",
        "From Phase 1 to each cell, layer by layer: the cosine of the mean states (1: same direction) and the relative "
        "change of their covariance, over every token of the prompts. The paper finds that dissimilar data shift high "
        "layers 3 to 4 times as much.",
        hidden_states,
    ),
    ("Training loss", "Of each cell's last phase.", training_loss),
)
_MATRICES = (
    (
        "Forgetting: abilities",
        "Rows: the model after each phase. Columns: what each phase taught, measured by the abilities of its data "
        "set's languages (English: task ability), 0 to 1. A column that pales downwards is being forgotten.",
        ability_matrix,
        "ability",
    ),
    (
        "Forgetting: loss of held-out answers",
        "The same, measured by the bits per character of each phase's own held-out answers, which no phase trained "
        "on. Lower is better; shades compare the entries for one data set, darker is lower. In the summary signs are "
        "turned: backward transfer below 0 is forgotten.",
        loss_matrix,
        BITS,
    ),
)


def write_page(result: dict[str, Any], study: Study) -> Path:
    """Write `report/index.html` into the run folder of `result`, and return its path."""
    folder = Path(result["run"]) / "report"
    folder.mkdir(exist_ok=True)
    path = folder / "index.html"
    write_text_atomically(path, render_page(result, study))
    return path


def render_page(result: dict[str, Any], study: Study) -> str:
    """Return the page's HTML."""
    drawn = [(title, caption, figure(result)) for title, caption, figure in _FIGURES]
    matrices = [
        (title, caption, Markup(to_svg(chart)), forgetting_table(result, kind, with_intervals=True))
        for title, caption, figure, kind in _MATRICES
        if (chart := figure(result)) is not None
    ]
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string((files("lingraft.report") / "page.html").read_text(encoding="utf-8"))
    done = [cell for cell in result["cells"] if cell["status"] == "done"]
    models = {} if result["base"] is None else {"base model": result["base"]}
    models |= {model_title(one, with_seed=True): one["scores"] for one in [*phase_one_models(result), *done]}
    return template.render(
        study=study,
        study_file=dump_study(study),
        table=study_table(result),
        seeds=seed_table(result),
        changes=change_table(result),
        matrices=matrices,
        figures=[
            (title, caption, Markup(to_svg(chart))) for title, caption, chart in drawn if chart is not None
        ],
        failures=failures(result),
        tasks=task_table(result),
        contamination=contamination_table(result),
        correction=next((cell["difference"]["correction"].replace("_", " ").title() for cell in done), ""),
        training=training_table(result),
        costs=strategy_cost_table(result),
        visible=minimum_detectable_effect(result),
        noise=noise_note(result),
        des=des_note(result),
        precision=precision_note(result),
        answers=answer_table(result),
        unpaired={
            model_title(one, with_seed=True): unpaired_lines(one) for one in done if unpaired_lines(one)
        },
        language_notes=result.get("language_notes") or [],  # results of earlier versions have none
        left_out={name: scores["left_out"] for name, scores in models.items() if scores["left_out"]},
        truncated={name: sum(scores["truncated"].values()) for name, scores in models.items()},
        truncated_prompts={
            name: scores["truncated_prompts"]
            for name, scores in models.items()
            if scores["truncated_prompts"]
        },
        encoder=next((cell["encoder"] for cell in done if cell["encoder"]), None),
        embedded=any(
            (name or "").startswith("embedded:") for name in (study.model, study.phases[0].checkpoint)
        ),
    )
