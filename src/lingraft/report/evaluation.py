"""The tables of `lingraft evaluate`: the scores of one model, and the paired differences of two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lingraft.report.tables import ABSENT, Column, Table, arrow

_KEYS = (Column("task", "what was asked"), Column("language", "BCP-47 tag"))


def score_table(scores: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return the table of task scores (`scores.task_scores`): a row for every task and language."""
    columns = (
        *_KEYS,
        Column("n", "items"),
        Column("score", "mean over the items, in [0, 1]"),
        Column("95 % interval", "of the score, items that share content resampled together"),
        Column(
            "wrong language",
            "share of answers in another language than asked, among those that could be told",
        ),
        Column("empty, looping, cut off", "generated answers that are so; one may be several of them"),
    )
    rows = [
        (
            *_key(name),
            str(one["n"]),
            f"{one['value']:.3f}",
            _interval(one, "{:.3f}"),
            _share(one),
            _faults(one),
        )
        for name, one in scores.items()
    ]
    return Table(columns, tuple(rows), len(_KEYS))


def task_difference_table(differences: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return the table of paired differences (`scores.task_differences`): a row for every task and language."""
    columns = (
        *_KEYS,
        Column("n", "items"),
        Column(
            "difference", "second model - first, on the same items; an arrow where the interval excludes 0"
        ),
        Column("95 % interval", "of the difference"),
        Column(
            "smallest visible", "smallest true difference that these items would have shown with 80 % power"
        ),
    )
    rows = [
        (
            *_key(name),
            str(one["n"]),
            f"{arrow(dict(one))} {one['value']:+.3f}",
            _interval(one, "{:+.3f}"),
            f"{one['minimum_detectable_effect']:.3f}",
        )
        for name, one in differences.items()
    ]
    return Table(columns, tuple(rows), len(_KEYS))


def _key(name: str) -> tuple[str, str]:
    task, _, language = name.rpartition("/")
    return task, language


def _interval(one: Mapping[str, Any], form: str) -> str:
    return f"[{form.format(one['low'])}, {form.format(one['high'])}]"


def _share(one: Mapping[str, Any]) -> str:
    return ABSENT if one["wrong_language"] is None else f"{one['wrong_language']:.1%}"


def _faults(one: Mapping[str, Any]) -> str:
    answers = one["answers"]
    return (
        ABSENT
        if answers is None
        else ", ".join(str(answers[key]) for key in ("empty", "looping", "truncated"))
    )
