"""The table and the page of an adaptation: what was lost, what was gained, and which model was kept.

What models and data sets say is untrusted: the template escapes everything but the figure's SVG, in which the renderer
has escaped it. The page needs nothing but itself.
"""

from __future__ import annotations

from collections.abc import Callable

from markupsafe import Markup

from lingraft.adapt.history import History, Learnt
from lingraft.adapt.outlook import outlook_lines
from lingraft.adapt.promise import AbilityLoss, Gain, ability_name
from lingraft.adapt.result import Adapted, Point, point_name
from lingraft.report.drawing import draw
from lingraft.report.page import template_of
from lingraft.report.signs import LIMIT_WORDS, SIGNS
from lingraft.report.tables import ABSENT, Column, Entry, Table, counted, written

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
            _loss(one),
            Entry(LIMIT_WORDS[one.answer], answer=one.answer),
        )
    ]
    return (point.name, items, kept, *losses, _gain(point.gain), certified)


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


def _loss(loss: AbilityLoss) -> Entry:
    if loss.loss is None or loss.low is None or loss.high is None:
        return Entry(ABSENT)
    text = f"{100 * loss.loss:.1f} % [{100 * loss.low:.1f}, {100 * loss.high:.1f}]"
    return Entry(text, loss.loss, loss.low, loss.high)


def _gain(gain: Gain | None) -> Entry:
    if gain is None:
        return Entry(ABSENT)
    interval = "" if gain.low is None or gain.high is None else f" [{gain.low:+.2f}, {gain.high:+.2f}]"
    return Entry(
        f"{gain.value:+.3f}{interval} {SIGNS[gain.answer]}", gain.value, gain.low, gain.high, gain.answer
    )


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
            *(_loss(one), Entry(_percent(one.max_loss), one.max_loss)),
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
    losses = "; ".join(f"{ability_name(loss.name)} {_loss(loss)}" for loss in one.losses)
    return (
        one.date,
        ", ".join(one.languages),
        one.start,
        counted(sum(one.data.values())),
        one.strategy,
        "trained" if one.alpha is None else point_name(one.alpha, one.kept_back),
        ABSENT if one.max_loss is None else _percent(one.max_loss),
        losses or ABSENT,
        _gain(one.gain),
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
    svg, problem = _drawn(adapted)
    if problem and reported is not None:
        reported(problem)
    promised = " and ".join(ability_name(one.name) for one in adapted.report.losses)
    return template_of("adaptation.html").render(
        adapted=adapted,
        answer=LIMIT_WORDS[adapted.answer],
        limit=_percent(adapted.max_loss),
        promised=promised,
        svg=svg,
        picture_problem=problem,
        table=adaptation_table(adapted),
        promise=promise_table(adapted),
        reasons=[
            f"{ability_name(one.name)}: {one.reason}"
            for one in adapted.report.losses
            if one.reason is not None
        ],
        outlook=[] if adapted.outlook is None else outlook_lines(adapted.outlook),
        data=data_table(adapted),
        history=history_table(history),
        embedded=adapted.start.startswith("embedded:"),
    )


def _drawn(adapted: Adapted) -> tuple[Markup | None, str]:
    """Return the figure of the trade-off, and why it has no picture; empty: it has one, or there is nothing to draw."""
    try:
        from lingraft.report.adaptation_figure import adaptation_trade_off
        from lingraft.report.figures import job_of, svg_of

        chart = adaptation_trade_off(adapted)
        if chart is None:
            return None, ""
        (drawing,) = draw([job_of(chart)])
    except (ImportError, MemoryError) as error:  # the tables need none
        return None, f"The page has no picture: it cannot be made ({error or 'no memory'})."
    if drawing.content is None:
        return None, f"The page has no picture: {drawing.problem}."
    return Markup(svg_of(drawing.content)), ""
