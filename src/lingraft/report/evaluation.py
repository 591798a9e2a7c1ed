"""The tables of `lingraft evaluate`: the scores of one model, and the paired differences of two."""

from __future__ import annotations

from collections.abc import Mapping

from lingraft.evaluate.results import TaskDifference, TaskScore
from lingraft.report.signs import SIGNS
from lingraft.report.tables import ABSENT, Column, Table, written

_KEYS = (Column("task", "what was asked"), Column("language", "BCP-47 tag"))


def score_table(scores: Mapping[str, TaskScore]) -> Table:
    """Return the table of task scores: a row for every task and language."""
    columns = (
        *_KEYS,
        Column("n", "items"),
        Column("score", "mean over the items, in [0, 1]"),
        Column("95 % interval", "of the score, items that share content resampled together"),
        Column(
            "wrong language", "share of answers in another language than requested, of those that are clear"
        ),
        Column("empty, looping, truncated", "generated answers that are so; one may be several of them"),
    )
    rows = []
    for name, one in scores.items():
        task, _, language = name.rpartition("/")
        faults = one.answers and f"{one.answers.empty}, {one.answers.looping}, {one.answers.truncated}"
        rows.append(
            (
                *(task, language, str(one.n), f"{one.value:.3f}", f"[{one.low:.3f}, {one.high:.3f}]"),
                written(one.wrong_language, ".1%"),
                faults or ABSENT,
            )
        )
    return Table(columns, tuple(rows), len(_KEYS))


def task_difference_table(differences: Mapping[str, TaskDifference]) -> Table:
    """Return the table of paired differences: a row for every task and language."""
    columns = (
        *_KEYS,
        Column("n", "items"),
        Column("difference", "second model - first, on the same items, with the sign of what it says"),
        Column("95 % interval", "of the difference"),
        Column("minimum detectable effect", "the smallest true difference that is found with 80 % power"),
    )
    rows = []
    for name, one in differences.items():
        task, _, language = name.rpartition("/")
        rows.append(
            (
                *(task, language, str(one.n), f"{SIGNS[one.answer]} {one.value:+.3f}"),
                f"[{one.low:+.3f}, {one.high:+.3f}]",
                f"{one.minimum_detectable_effect:.3f}",
            )
        )
    return Table(columns, tuple(rows), len(_KEYS))
