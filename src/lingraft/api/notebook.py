"""What a notebook shows of the results of `run_study`, `compare_sets`, `parameter_difference` and their like."""

from __future__ import annotations

from functools import singledispatch

from lingraft.adapt.checked import ABILITY, TASK, Checked
from lingraft.api.printed import html_of_tables
from lingraft.report.check import check_table
from lingraft.report.notes import failures
from lingraft.report.rivals import best_cells
from lingraft.report.runs import report_of
from lingraft.report.tables import Column, Table, study_table, written
from lingraft.report.verdict import verdict_of
from lingraft.representation.drift import Drift, DriftOfModels
from lingraft.similarity.comparison import Comparison
from lingraft.similarity.embedding_similarity import EmbeddingSimilarity
from lingraft.study.result import StudyResult
from lingraft.weights.difference import ParameterDifference
from lingraft.weights.signal_to_noise import SignalScan


@singledispatch
def html_of(found: object) -> str:
    """Return a result as HTML that is nothing but text: tables, and what is said below them.

    Raises:
        TypeError: Nobody says how such a thing is shown.
    """
    raise TypeError(f"{type(found).__name__}: has no tables.")


@html_of.register
def _(found: StudyResult) -> str:
    report = report_of(found, None)
    verdict = verdict_of(report)
    table = study_table(report.result, best_cells(report.result, report.comparer))
    lines = (verdict.sentence, *verdict.notes, *(f"failed: {one}" for one in failures(found)))
    return html_of_tables([(report.title, table)], lines)


@html_of.register
def _(found: Checked) -> str:
    tables = [(found.title, check_table(ABILITY, found.abilities))]
    if found.tasks:
        tables.append((found.task_title, check_table(TASK, found.tasks)))
    return html_of_tables(tables, [*found.sentences(), *found.left_out()])


@html_of.register
def _(found: Comparison) -> str:
    from lingraft.report.diagnostics import similarity_table

    return html_of_tables([("DES of each pair", similarity_table(found))], [f"Encoder: {found.encoder}"])


@html_of.register
def _(found: EmbeddingSimilarity) -> str:
    columns = (
        Column("DES", "the paper's value: cosine of the mean embeddings"),
        Column("corrected", "without the bias of small sets"),
        Column("low", "lower end of its 95 % interval"),
        Column("high", "upper end"),
    )
    row = tuple(written(value, ".3f") for value in (found.des, found.corrected, found.low, found.high))
    return html_of_tables(
        [(f"{found.n[0]:,} and {found.n[1]:,} instructions", Table(columns, (row,), 0))],
        [f"Encoder: {found.encoder}"],
    )


@html_of.register
def _(found: ParameterDifference) -> str:
    from lingraft.report.diagnostics import difference_table

    with_updates = found.has_updates
    tables = [
        ("All parameters", difference_table([found.whole()], "of", with_updates=with_updates)),
        ("By layer", difference_table(found.by_layer(), "layer", with_updates=with_updates)),
        ("By module", difference_table(found.by_module(), "module", with_updates=with_updates)),
    ]
    missing = f"In one model alone, and in no figure: {', '.join(found.missing)}"
    return html_of_tables(tables, [missing] if found.missing else [])


@html_of.register
def _(found: Drift) -> str:
    from lingraft.report.diagnostics import drift_table

    return html_of_tables([(found.model, drift_table(found))])


@html_of.register
def _(found: DriftOfModels) -> str:
    from lingraft.report.diagnostics import drift_table

    said = f"{found.prompts:,} prompts, {found.tokens:,} states of each layer."
    cut = [f"{found.truncated:,} prompts lost their beginning."] if found.truncated else []
    return html_of_tables([(one.model, drift_table(one)) for one in found.drifts], [said, *cut])


@html_of.register
def _(found: SignalScan) -> str:
    from lingraft.report.diagnostics import signal_table

    return html_of_tables([(f"Signal-to-noise ratios, {found.estimator}", signal_table(found))])
