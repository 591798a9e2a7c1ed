"""The report page of a study: one self-contained HTML file.

What models and data sets say is untrusted: the template escapes everything but the figures' SVG, in which the
renderer has escaped it.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from lingraft.config.load import dump_study
from lingraft.config.schema import Study
from lingraft.measures.base import Plot
from lingraft.records import write_text_atomically
from lingraft.report.figures import bits_per_character, matrices, to_svg, trade_off, training_loss
from lingraft.report.notes import comparison_notes, failures, holds_for, model_notes, notes, unused_notes
from lingraft.report.tables import (
    Matrix,
    Table,
    answer_table,
    change_table,
    checkpoint_table,
    contamination_table,
    forgetting_table,
    measures_of,
    models_of,
    seed_table,
    strategy_cost_table,
    study_table,
    task_table,
    training_table,
    unused_table,
)
from lingraft.study.result import StudyResult

_MATRICES: tuple[tuple[Matrix, str, str], ...] = (
    (
        "ability",
        "Forgetting: abilities",
        "Rows: the model after each phase. Columns: what each phase taught, measured by the abilities of its data "
        "set's languages (English: task ability), 0 to 1. A column that pales downwards is being forgotten.",
    ),
    (
        "bits_per_character",
        "Forgetting: loss of held-out answers",
        "The same, measured by the bits per character of each phase's own held-out answers, which no phase trained "
        "on. Lower is better; shades compare the entries for one data set, darker is lower. In the summary signs are "
        "turned: backward transfer below 0 is forgotten.",
    ),
)


@dataclass(frozen=True)
class _Drawn:
    """A figure of the page, perhaps with the same as a table."""

    title: str
    caption: str
    svg: Markup
    table: Table | None = None


def write_page(result: StudyResult, study: Study) -> Path:
    """Write `report/index.html` into the run folder of `result`, and return its path."""
    folder = Path(result.run) / "report"
    folder.mkdir(exist_ok=True)
    path = folder / "index.html"
    write_text_atomically(path, render_page(result, study))
    return path


def render_page(result: StudyResult, study: Study) -> str:
    """Return the page's HTML."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string((files("lingraft.report") / "page.html").read_text(encoding="utf-8"))
    measures = measures_of(result)
    return template.render(
        study=study,
        study_file=dump_study(study),
        result=result,
        models={model.title(with_seed=True): model for model in models_of(result)},
        table=study_table(result),
        legends=[
            measure.legend([cell.measures[name] for cell in result.done])
            for name, measure in measures.items()
        ],
        notes=notes(result),
        seeds=seed_table(result),
        changes=change_table(result),
        matrices=[
            _Drawn(title, caption, Markup(to_svg(chart)), forgetting_table(result, kind, with_intervals=True))
            for kind, title, caption in _MATRICES
            if (chart := matrices(result, kind)) is not None
        ],
        figures=[_Drawn(one.title, one.caption, Markup(to_svg(one.chart))) for one in _plots(result)],
        failures=failures(result),
        tasks=task_table(result),
        contamination=contamination_table(result),
        training=training_table(result),
        costs=strategy_cost_table(result),
        answers=answer_table(result),
        model_notes=model_notes(result) | comparison_notes(result),
        holds_for=holds_for,
        checkpoints=checkpoint_table(result),
        unused=unused_table(result),
        unused_notes=unused_notes(result),
        embedded=any(
            (name or "").startswith("embedded:") for name in (study.model, study.phases[0].checkpoint)
        ),
    )


def _plots(result: StudyResult) -> list[Plot]:
    """Return the page's figures: of abilities, of the held-out loss, of each measure, of the training."""
    charts: tuple[tuple[str, str, Any], ...] = (
        (
            "What it cost and what it gained",
            "Each point is a cell, with the 95 % intervals of its paired differences to Phase 1. Up is kept English, "
            "right is more of the new languages.",
            trade_off(result),
        ),
        (
            "Loss of held-out answers",
            "Bits per character of answers that no phase trained on; lower is better, and comparable between "
            "tokenizers.",
            bits_per_character(result),
        ),
    )
    found = [Plot(*one) for one in charts if one[2] is not None]
    for name, measure in measures_of(result).items():
        found += measure.plots(
            [(f"{cell.data} / {cell.strategy}", cell.measures[name]) for cell in result.done]
        )
    loss = training_loss(result)
    return found if loss is None else [*found, Plot("Training loss", "Of each cell's last phase.", loss)]
