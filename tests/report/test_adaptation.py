"""The table and the page of an adaptation say what was found, which model is kept, and execute nothing."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from page_reader import assert_harmless

from lingraft.adapt.history import History, Learnt
from lingraft.adapt.outlook import Outlook, Room
from lingraft.adapt.probe import Probed
from lingraft.adapt.promise import AbilityLoss, Gain
from lingraft.adapt.result import Adapted, Point, Walked
from lingraft.intervals.changes import LimitAnswer
from lingraft.intervals.macro_mean import Interval
from lingraft.report.adaptation import (
    adaptation_table,
    history_table,
    promise_table,
    render_adaptation,
)
from lingraft.report.adaptation_figure import adaptation_trade_off
from lingraft.report.drawing import draw
from lingraft.report.figures import job_of
from lingraft.report.tables import Table
from lingraft.study.result import DataCounts

HOSTILE = '<script>alert("x")</script>'


def lost(share: float, answer: LimitAnswer, name: str = "en") -> AbilityLoss:
    after = 0.5 * (1 - share)
    return AbilityLoss(
        name=name,
        before=Interval(0.5, 0.45, 0.55, 400),
        after=Interval(after, after - 0.05, after + 0.05, 400),
        loss=share,
        low=share - 0.04,
        high=share + 0.04,
        max_loss=0.05,
        n=400,
        answer=answer,
        reason=None,
        certifiable_loss=0.06,
        items_needed=1234,
    )


def gained(value: float) -> Gain:
    return Gain(
        languages=("de",),
        kind="language ability",
        before=0.1,
        after=0.1 + value,
        value=value,
        low=value - 0.05,
        high=value + 0.05,
        n=300,
        answer="rose",
    )


def point(
    alpha: float, loss: float, gain: float | None, *, certified: bool, kept_back: str | None = None
) -> Point:
    return Point(
        alpha=alpha,
        kept_back=kept_back,
        losses=(lost(loss, "held" if certified else "undecided"),),
        gain=None if gain is None else gained(gain),
        certified=certified,
        model="m",
        evaluation="e",
    )


POINTS = (
    point(0.2, 0.001, 0.08, certified=True),
    point(0.4, 0.008, 0.15, certified=True),
    point(0.6, 0.04, 0.2, certified=False),
    point(1.0, 0.03, 0.22, certified=False, kept_back="0-9"),
)
DATA = DataCounts(
    source="rows.jsonl",
    rows=1000,
    broken=2,
    first_broken=("rows.jsonl:3: no text",),
    filtered={"language": 5},
    incomplete_groups=None,
    unknown_keys={},
    max_broken_share=0.01,
    held_out=100,
    withheld=0,
    train=893,
    shortfall=0,
)


def adapted(**changes: object) -> Adapted:
    walked = Walked(
        points=POINTS, chosen=POINTS[1], nearest=POINTS[1], answer="held", sentence="alpha 0.4: it holds."
    )
    found = Adapted(
        format=1,
        command="adapt",
        start="org/model",
        start_identity={"weights": "abc"},
        trained=None,
        trained_identity=None,
        max_loss=0.05,
        learnt=("de",),
        earlier=(),
        data=(DATA,),
        strategy="plain",
        steps=120,
        seed=0,
        dtype="bf16",
        precision="float32",
        outlook=None,
        walked=walked,
        report=point(0.4, 0.012, 0.14, certified=True),
        answer="held",
        sentence="alpha 0.4: no more than 5 % of English was lost.",
        folder="adapted/model-de",
    )
    return replace(found, **changes)  # type: ignore[arg-type]


LEARNT = Learnt(
    date="2026-05-01",
    languages=("de",),
    data={"rows.jsonl": 893},
    strategy="plain",
    alpha=0.4,
    kept_back=None,
    max_loss=0.05,
    losses=(lost(0.012, "held"),),
    gain=gained(0.14),
    start="org/model",
    start_identity="abc",
    lingraft="0.1",
)

OUTLOOK = Outlook(
    format=1,
    model=HOSTILE,
    parameters=135_000_000,
    has_chat_template=True,
    probed=Probed(questions=10, answered=10, faults={}, prompts=0, dropped={}, reason=None),
    data={},
    english_rows=0,
    replayed="nothing",
    strategy="plain",
    max_length=512,
    alike=(),
    contamination={},
    room=Room(
        place="processor",
        memory_bytes=None,
        memory_free=None,
        disk_bytes=None,
        largest_bytes=None,
        disk_free=10**9,
    ),
)


def named(table: Table) -> list[dict[str, str]]:
    titles = [column.title for column in table.columns]
    assert len(set(titles)) == len(titles)
    assert {len(row) for row in table.rows} == {len(titles)}
    return [dict(zip(titles, row, strict=True)) for row in table.rows]


def test_the_table_has_the_start_every_model_and_the_kept_one_on_the_report_items() -> None:
    rows = named(adaptation_table(adapted()))
    assert [(row["model"], row["items"], row["kept"]) for row in rows] == [
        ("start: org/model", "selection", ""),
        ("alpha 0.2", "selection", ""),
        ("alpha 0.4", "selection", "chosen"),
        ("alpha 0.6", "selection", ""),
        ("alpha 1, layers 0-9 kept back", "selection", ""),
        ("start: org/model", "report", ""),
        ("alpha 0.4", "report", "chosen"),
    ]
    assert rows[2]["English"] == "0.496"
    assert rows[2]["loss of English"] == "0.8 % [-3.2, 4.8]"
    assert rows[2]["limit 5 %"] == "held"
    assert rows[2]["gain"] == "+0.150 [+0.10, +0.20] ▲"
    assert [row["certified"] for row in rows] == ["-", "yes", "yes", "no", "no", "-", "-"]
    assert rows[0]["English"] == "0.500"


def test_every_promised_ability_has_its_columns() -> None:
    def both(one: Point) -> Point:
        return replace(one, losses=(*one.losses, lost(0.02, "broken", "sw")))

    points = tuple(map(both, POINTS))
    walked = replace(adapted().walked, points=points, chosen=None, nearest=points[0])
    found = adapted(walked=walked, report=both(adapted().report), earlier=("sw",))
    table = adaptation_table(found)
    assert [c.title for c in table.columns].count("limit 5 %") == 2
    assert [row[2] for row in table.rows] == ["", "nearest", "", "", "", "", "nearest"]
    assert [row["ability"] for row in named(promise_table(found))] == ["English", "sw"]
    page = render_adaptation(found, History())
    assert "loss of sw" in page
    assert "English and sw" in page


def test_what_has_no_loss_and_no_gain_is_absent_and_its_reason_is_given() -> None:
    nothing = replace(
        lost(0.0, "undecided"),
        loss=None,
        low=None,
        high=None,
        reason="the score before is 0",
        certifiable_loss=None,
        items_needed=None,
    )
    one = replace(POINTS[0], losses=(nothing,), gain=None)
    walked = replace(adapted().walked, points=(one,), chosen=None, nearest=one, answer="undecided")
    found = adapted(walked=walked, report=one, answer="undecided")
    row = named(adaptation_table(found))[1]
    assert (row["loss of English"], row["gain"]) == ("-", "-")
    assert adaptation_trade_off(found) is None
    page = render_adaptation(found, History())
    assert "the score before is 0" in page
    assert "<svg" not in page


def test_the_page_says_the_answer_first_and_needs_no_network() -> None:
    page = render_adaptation(adapted(), History(learnt=(LEARNT,)))
    places = [
        page.index(one)
        for one in (
            "Held.",
            "no more than 5 % of English was lost",
            "<svg",
            "<h2>What was looked at",
            "2026-05-01",
        )
    ]
    assert places == sorted(places)
    assert not re.search(r"@import|url\((?!#)", page)  # a clip path of the figure has url(#...)
    assert "rows.jsonl" in assert_harmless(page).text
    assert "{{" not in page


def test_the_figure_has_the_limit_and_each_model() -> None:
    chart = adaptation_trade_off(adapted())
    assert chart is not None
    (drawing,) = draw([job_of(chart)])
    assert drawing.content is not None, drawing.problem
    for text in ("0.2", "1, layers 0-9 kept back", "gain in language ability", "looked at"):
        assert text in drawing.content.decode()


def test_the_history_has_a_row_for_each_time() -> None:
    first = replace(
        LEARNT, date="2026-01-01", languages=("sw",), alpha=None, max_loss=None, losses=(), gain=None
    )
    rows = named(history_table(History(learnt=(first, LEARNT))))
    assert [row["languages"] for row in rows] == ["sw", "de"]
    assert (rows[0]["model"], rows[0]["limit"], rows[0]["loss"]) == ("trained", "-", "-")
    assert (rows[1]["model"], rows[1]["loss"]) == ("alpha 0.4", "English 1.2 % [-2.8, 5.2]")


@pytest.mark.parametrize(
    "changes",
    [
        {"start": HOSTILE},
        {"trained": HOSTILE, "command": "rescue", "strategy": None},
        {"sentence": HOSTILE},
        {"folder": HOSTILE},
        {"outlook": OUTLOOK},
        {"data": (replace(DATA, source=HOSTILE),)},
        {"learnt": (HOSTILE,)},
        {"earlier": (HOSTILE,)},
        {"walked": replace(adapted().walked, points=(replace(POINTS[0], kept_back=HOSTILE), *POINTS[1:]))},
        {"report": replace(adapted().report, losses=(lost(0.01, "held", HOSTILE),))},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_nothing_that_a_model_or_a_data_set_says_is_executed(changes: dict[str, object]) -> None:
    learnt = replace(LEARNT, start=HOSTILE, data={HOSTILE: 1}, strategy=HOSTILE)
    page = render_adaptation(adapted(**changes), History(learnt=(learnt,)))
    assert HOSTILE not in page
    assert HOSTILE in assert_harmless(page).text
    assert ("135,000,000 parameters" in page) == ("outlook" in changes)
