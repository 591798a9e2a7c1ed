"""The report page of a study: one self-contained HTML file.

What models and data sets say is untrusted: the template escapes everything but the figures' SVG, in which the
renderer has escaped it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from lingraft.config.load import dump_study
from lingraft.config.schema import Study
from lingraft.measures.base import Plot
from lingraft.records import write_text_atomically
from lingraft.report.drawing import draw
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
        "set's languages (English: task ability), 0 to 1; paler is lower. Whether a fall is more than chance, backward "
        "transfer says, in the table.",
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
class _Figure:
    """A figure of the page, perhaps with the same as a table.

    Attributes:
        title: Its heading.
        caption: What it shows.
        svg: None: it could not be drawn.
        table: The same as a table.
    """

    title: str
    caption: str
    svg: Markup | None
    table: Table | None = None


def write_page(result: StudyResult, study: Study, reported: Callable[[str], None] | None = None) -> Path:
    """Write `report/index.html` into the run folder of `result`, and return its path.

    Args:
        result: What the study found.
        study: The study.
        reported: Receives a sentence where pictures are missing from the page.
    """
    folder = Path(result.run) / "report"
    folder.mkdir(exist_ok=True)
    path = folder / "index.html"
    write_text_atomically(path, render_page(result, study, reported))
    return path


def render_page(result: StudyResult, study: Study, reported: Callable[[str], None] | None = None) -> str:
    """Return the page's HTML; arguments as of `write_page`."""
    measures = measures_of(result)
    matrices, figures, problem = _drawn(result)
    if problem and reported is not None:
        reported(problem)
    return template_of("page.html").render(
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
        matrices=matrices,
        figures=figures,
        picture_problem=problem,
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


def template_of(name: str) -> Template:
    """Return a page's template; it escapes all that it is given."""
    environment = Environment(
        loader=PackageLoader("lingraft", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _drawn(result: StudyResult) -> tuple[list[_Figure], list[_Figure], str]:
    """Return the matrices, the other figures, and why some have no picture; empty: all have one."""
    tables = {kind: forgetting_table(result, kind, with_intervals=True) for kind, *_ in _MATRICES}
    try:
        from lingraft.report.figures import job_of, matrices, svg_of

        charts = {kind: chart for kind in tables if (chart := matrices(result, kind)) is not None}
        plots = _plots(result)
        jobs = [job_of(chart) for chart in (*charts.values(), *(one.chart for one in plots))]
    except (ImportError, MemoryError) as error:  # the tables need none
        bare = [
            _Figure(title, caption, None, tables[kind]) for kind, title, caption in _MATRICES if tables[kind]
        ]
        return bare, [], f"The report has no pictures: they cannot be made ({error or 'no memory'})."
    drawings = draw(jobs)
    svgs = [None if one.content is None else Markup(svg_of(one.content)) for one in drawings]
    of_matrix = dict(zip(charts, svgs, strict=False))
    problems = list(dict.fromkeys(one.problem for one in drawings if one.content is None))
    missing = svgs.count(None)
    how_many = "no pictures" if missing == len(svgs) else f"{len(svgs) - missing} of {len(svgs)} pictures"
    return (
        [
            _Figure(title, caption, of_matrix[kind], tables[kind])
            for kind, title, caption in _MATRICES
            if kind in charts
        ],
        [
            _Figure(one.title, one.caption, svg)
            for one, svg in zip(plots, svgs[len(charts) :], strict=True)
            if svg is not None
        ],
        f"The report has {how_many}: {'; '.join(problems)}." if problems else "",
    )


def _plots(result: StudyResult) -> list[Plot]:
    """Return the page's figures: of abilities, of the held-out loss, of each measure, of the training."""
    from lingraft.report.figures import bits_per_character, trade_off, training_loss

    charts: tuple[tuple[str, str, Any], ...] = (
        (
            "What it cost and what it gained",
            "Each point is a cell, with the 95 % intervals of its paired differences to Phase 1, and the sign of its "
            "task ability; several seeds make one point, their mean, with the interval of that, and a ring for each "
            "seed. Up is kept English, right is more of the new languages. Where intervals overlap, no order is known.",
            trade_off(result),
        ),
        (
            "Loss of held-out answers",
            "Bits per character of answers that no phase trained on, with 95 % intervals (of several seeds the mean, "
            "from the lowest to the highest); lower is better, and comparable between tokenizers.",
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
