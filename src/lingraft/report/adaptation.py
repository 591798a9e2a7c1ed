"""The tables and the page of an adaptation: what was lost, what was gained, and which model was kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from lingraft.adapt.history import History, Learnt
from lingraft.adapt.outlook import outlook_lines
from lingraft.adapt.promise import ability_name
from lingraft.adapt.result import Adapted, Point, point_name
from lingraft.measures.base import Plot
from lingraft.report.adaptation_entries import gain_entry, loss_entry
from lingraft.report.contents import Lines, PlacedTable, Section
from lingraft.report.page import EMBEDDED_NOTICE, Page, render
from lingraft.report.signs import LIMIT_WORDS
from lingraft.report.tables import ABSENT, Column, Entry, Table, counted, written

if TYPE_CHECKING:
    import altair as alt

SELECTION, REPORT = "selection", "report"
_GAIN_MEANING = {
    "language ability": "gain in language ability, the mean score on tasks in the new languages",
    "bits per character": "by how many bits per character the loss of held-out answers fell",
}


def adaptation_table(adapted: Adapted) -> Table:
    """Return the trade-off: a row for the start, each model that was looked at, and the kept one on the report part."""
    rows = [_start_row(adapted, adapted.walked.points[0], SELECTION)]
    for one in adapted.walked.points:
        kept = "" if one != adapted.walked.kept else "chosen" if adapted.walked.chosen else "nearest"
        rows.append(_row(one, SELECTION, kept, "yes" if one.certified else "no"))
    rows.append(_start_row(adapted, adapted.report, REPORT))
    rows.append(_row(adapted.report, REPORT, "chosen" if adapted.walked.chosen else "nearest", ABSENT))
    kind = next((one.gain.kind for one in adapted.walked.points if one.gain is not None), "language ability")
    columns = [
        Column(
            "model", "how far from the start (alpha 0) to the trained model (alpha 1), and what was kept back"
        ),
        Column("items", "selection: on which the model was chosen; report: on which nothing was chosen"),
        Column("kept", "which model was written: the chosen one, or the nearest where none met the limit"),
    ]
    for loss in adapted.report.losses:
        name = ability_name(loss.name)
        columns += [
            Column(name, f"mean score on the tasks in {name}, in [0, 1]"),
            Column(f"loss of {name}", "share of the start's score that is gone, with its 95 % interval"),
            Column(
                f"limit {_percent(adapted.max_loss)}",
                "held: the whole interval lies at or below the limit; broken: above it; undecided: neither",
            ),
        ]
    columns += [
        Column("gain", f"{_GAIN_MEANING[kind]}, with its 95 % interval"),
        Column(
            "certified", "no promised ability lost more than the limit, with 95 % confidence for the choice"
        ),
    ]
    return Table(tuple(columns), tuple(rows), 3)


def _start_row(adapted: Adapted, beside: Point, items: str) -> tuple[str, ...]:
    scores = [cell for one in beside.losses for cell in (written(one.before.value, ".3f"), ABSENT, ABSENT)]
    return (f"start: {adapted.start}", items, "", *scores, ABSENT, ABSENT)


def _row(point: Point, items: str, kept: str, certified: str) -> tuple[str, ...]:
    losses = [
        cell
        for one in point.losses
        for cell in (
            written(one.after.value, ".3f"),
            loss_entry(one),
            Entry(LIMIT_WORDS[one.answer], answer=one.answer),
        )
    ]
    return (point.name, items, kept, *losses, gain_entry(point.gain), certified)


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


def promise_table(adapted: Adapted) -> Table:
    """Return what of each promised ability the kept model lost on the report part, and what its items can certify."""
    columns = (
        Column("ability", "English, and each language that an earlier adapt taught the model"),
        Column("items", "of the report part, on which nothing was chosen"),
        Column("start", "mean score before, in [0, 1], with its 95 % interval"),
        Column("kept model", "the same after"),
        Column("loss", "share of the start's score that is gone, with its 95 % interval"),
        Column("limit", "what may be lost"),
        Column("answer", "held: the whole interval lies at or below the limit; broken: above it"),
        Column("certifiable loss", "the smallest limit that as many items certify in 4 of 5 cases"),
        Column("items needed", "items that certify the limit so"),
    )
    rows = [
        (
            *(ability_name(one.name), counted(one.n)),
            *(
                Entry(f"{own.value:.3f} [{own.low:.2f}, {own.high:.2f}]", own.value, own.low, own.high)
                for own in (one.before, one.after)
            ),
            *(loss_entry(one), Entry(_percent(one.max_loss), one.max_loss)),
            Entry(LIMIT_WORDS[one.answer], answer=one.answer),
            ABSENT
            if one.certifiable_loss is None
            else Entry(f"{100 * one.certifiable_loss:.1f} %", one.certifiable_loss),
            ABSENT if one.items_needed is None else counted(one.items_needed),
        )
        for one in adapted.report.losses
    ]
    return Table(columns, tuple(rows), 1)


def data_table(adapted: Adapted) -> Table:
    """Return what became of the rows of each data set."""
    columns = (
        Column("data set", "as it was named"),
        Column("rows", "read, broken ones included"),
        Column("broken", "rows that could not be read"),
        Column("left out", "by a filter, or because another data set holds them out"),
        Column("held out", "kept to measure the loss of their answers"),
        Column("trained on", "rows"),
    )
    rows = [
        (
            one.source,
            *map(
                counted,
                (
                    one.rows,
                    one.broken,
                    sum(one.filtered.values()) + one.withheld,
                    one.held_out,
                    one.train,
                ),
            ),
        )
        for one in adapted.data
    ]
    return Table(columns, tuple(rows), 1)


def history_table(history: History) -> Table:
    """Return what the model was taught, the oldest first."""
    columns = (
        Column("date", "day on which it ended"),
        Column("languages", "that were taught"),
        Column("from", "the model that was taught"),
        Column("rows", "trained on, of all data sets"),
        Column("strategy", "how it was trained"),
        Column("model", "how far from its start to the trained model"),
        Column("limit", "what could be lost of each promised ability"),
        Column("loss", "of each, on items on which nothing was chosen"),
        Column("gain", "of the languages, likewise"),
    )
    return Table(columns, tuple(_learnt(one) for one in history.learnt), 2)


def _learnt(one: Learnt) -> tuple[str, ...]:
    losses = "; ".join(f"{ability_name(loss.name)} {loss_entry(loss)}" for loss in one.losses)
    return (
        one.date,
        ", ".join(one.languages),
        one.start,
        counted(sum(one.data.values())),
        one.strategy,
        "trained" if one.alpha is None else point_name(one.alpha, one.kept_back),
        ABSENT if one.max_loss is None else _percent(one.max_loss),
        losses or ABSENT,
        gain_entry(one.gain),
    )


def render_adaptation(
    adapted: Adapted, history: History, reported: Callable[[str], None] | None = None
) -> str:
    """Return the page of an adaptation, one self-contained HTML file.

    Args:
        adapted: What was done.
        history: What the kept model was taught, this time included.
        reported: Receives a sentence where the picture is missing from the page.
    """
    learnt = ", ".join(adapted.learnt)
    is_rescue = adapted.command == "rescue"
    page = Page(
        title=f"{adapted.start}: {learnt}" if learnt else adapted.start,
        kind="A lingraft rescue: what a damaged model gets back, and what that costs"
        if is_rescue
        else "A lingraft adaptation: what learning new languages gained, and what it cost",
        facts=(),
        notices=(EMBEDDED_NOTICE,) if adapted.start.startswith("embedded:") else (),
        sections=adaptation_sections(adapted, history),
    )
    return render(page, reported)


def adaptation_sections(adapted: Adapted, history: History) -> tuple[Section, ...]:
    """Return what the page of an adaptation shows, in reading order."""
    answer = LIMIT_WORDS[adapted.answer]
    limit = _percent(adapted.max_loss)
    promised = " and ".join(ability_name(one.name) for one in adapted.report.losses)
    sections = [
        Section(
            "answer",
            "Answer",
            (Lines("", (f"{answer.capitalize()}. {adapted.sentence}",), answer_kind(adapted)),),
        )
    ]
    if _has_figure(adapted):
        title = "What it cost and what it gained"
        caption = (
            "Each point is a model between the start and the trained one, on the selection items, with the 95 % "
            "intervals of its loss and its gain; lines join the models of one chain. Down is kept ability, right is "
            f"more of the new languages. The dashed red line is the limit, {limit}: a model meets it where its whole "
            "interval lies at or below it. The diamond is the kept model on the report items, on which nothing was "
            "chosen."
        )
        sections.append(
            Section("trade-off", title, (Plot("trade-off", title, caption, partial(_chart, adapted)),))
        )
    caption = (
        "Loss is 1 - retention: the share of the start's own score that is gone; below 0 it rose. Brackets are 95 % "
        "intervals. The walk goes outwards from the start and stops at the first model that is not certified to have "
        f"lost no more than {limit} of {promised}; of the certified ones it keeps the one that gained most. So the "
        "choice is wrong in at most 5 of 100 such walks, however many models were looked at (Learn then Test, arXiv "
        "2110.01052). Signs of the gain: ▲ rose, ▼ fell, = unchanged, ? undecided."
    )
    looked = PlacedTable("looked-at", "", caption, adaptation_table(adapted))
    sections.append(Section("looked-at", "What was looked at", (looked,)))
    reasons = tuple(
        f"{ability_name(one.name)}: {one.reason}" for one in adapted.report.losses if one.reason is not None
    )
    kept = PlacedTable("promise", "", "", promise_table(adapted))
    sections.append(
        Section("promise", "The promise, on items on which nothing was chosen", (kept, Lines("", reasons)))
    )
    done = [PlacedTable("done", "", "", done_table(adapted))]
    data = data_table(adapted)
    if data.rows:
        done.append(PlacedTable("data", "Data", "", data))
    sections.append(Section("done", "What was done", tuple(done)))
    if adapted.outlook is not None:
        known = Lines("", tuple(outlook_lines(adapted.outlook)))
        sections.append(Section("outlook", "What was known before the training", (known,)))
    if history.learnt:
        taught = PlacedTable("history", "", "", history_table(history))
        sections.append(Section("history", "What the model was taught, and when", (taught,)))
    return tuple(sections)


def done_table(adapted: Adapted) -> Table:
    """Return what was done with which model, a name and a text in each row."""
    rows = [("start", adapted.start)]
    if adapted.trained is not None:
        rows.append(("damaged model", adapted.trained))
    rows.append(("languages", ", ".join(adapted.learnt) or ABSENT))
    if adapted.earlier:
        rows.append(("taught before, promised as well", ", ".join(adapted.earlier)))
    training = (
        "none" if adapted.strategy is None else f"{adapted.strategy}, {adapted.steps:,} optimiser steps"
    )
    rows += [
        ("training", training),
        ("kept model", adapted.report.name),
        ("written", f"{adapted.folder}, weights in {adapted.dtype}"),
        ("evaluated in", adapted.precision),
        ("seed", str(adapted.seed)),
    ]
    return Table((Column("what", ""), Column("which", "")), tuple(rows), 1)


def answer_kind(adapted: Adapted) -> str:
    """Return how the answer looks: held, broken or undecided."""
    return adapted.answer if adapted.answer in ("held", "broken") else "undecided"


def _has_figure(adapted: Adapted) -> bool:
    """Return whether a model has both a loss and a gain."""
    return any(
        point.gain is not None and any(loss.loss is not None for loss in point.losses)
        for point in (*adapted.walked.points, adapted.report)
    )


def _chart(adapted: Adapted) -> alt.TopLevelMixin:
    from lingraft.report.adaptation_figure import adaptation_trade_off

    chart = adaptation_trade_off(adapted)
    assert chart is not None  # `_has_figure`
    return chart
