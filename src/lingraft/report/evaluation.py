"""The tables of `lingraft evaluate`: the scores of one model, and the paired differences of two."""

from __future__ import annotations

from collections.abc import Iterable

from lingraft.evaluate.results import LanguageScore, ModelDifferences, Scores, TaskDifference, TaskScore
from lingraft.intervals.macro_mean import Difference, Interval
from lingraft.report.signs import SIGNS
from lingraft.report.tables import ABSENT, Column, Entry, Table, counted, written
from lingraft.text.language_tags import ENGLISH

_KEYS = (
    Column("task", "what was asked; an ability is the mean over languages of the mean over tasks"),
    Column("language", "BCP-47 tag"),
)
_SEVERAL = "all"


def score_table(scores: Scores, tasks: Iterable[str]) -> Table:
    """Return the table of scores: a row for every ability, for every one of several languages, and for every task.

    Args:
        scores: Of the model.
        tasks: The tasks and languages, in the order of their rows.
    """
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
    languages = [tag for tag, one in scores.per_language.items() if tag != ENGLISH and one.value is not None]
    found: list[tuple[str, str, Interval | LanguageScore | None]] = [
        ("task ability", ENGLISH, scores.task_ability and scores.per_language[ENGLISH]),
    ]
    if len(languages) > 1:
        found.append(("language ability", _SEVERAL, scores.language_ability))
    found += [("language ability", tag, scores.per_language[tag]) for tag in languages]
    found += [(*_named(name), scores.tasks[name]) for name in tasks]
    rows = []
    for task, language, one in found:
        if one is None or one.value is None:
            continue
        generated = one if isinstance(one, (LanguageScore, TaskScore)) else None
        faults = None if generated is None else generated.answers
        rows.append(
            (
                *(task, language, counted(one.n), written(one.value, ".3f", one.low, one.high)),
                f"[{one.low:.3f}, {one.high:.3f}]",
                written(None if generated is None else generated.wrong_language, ".1%"),
                f"{faults.empty}, {faults.looping}, {faults.truncated}" if faults else ABSENT,
            )
        )
    return Table(columns, tuple(rows), len(_KEYS))


def difference_table(compared: ModelDifferences) -> Table:
    """Return the table of two models' paired differences, with the rows of `score_table`."""
    columns = (
        *_KEYS,
        Column("n", "items that both models were asked alike"),
        Column("difference", "second model - first, on the same items, with the sign of what it says"),
        Column("95 % interval", "of the difference"),
        Column("minimum detectable effect", "the smallest true difference that is found with 80 % power"),
    )
    found: list[tuple[str, str, Difference | TaskDifference | None]] = [
        ("task ability", ENGLISH, compared.task_ability),
    ]
    if len(compared.per_language) > 1:
        found.append(("language ability", _SEVERAL, compared.language_ability))
    found += [("language ability", tag, one) for tag, one in compared.per_language.items()]
    found += [(*_named(name), one) for name, one in compared.differences.items()]
    rows = [
        (
            *(task, language, counted(one.n)),
            Entry(f"{SIGNS[one.answer]} {one.value:+.3f}", one.value, one.low, one.high, one.answer),
            f"[{one.low:+.3f}, {one.high:+.3f}]",
            written(one.minimum_detectable_effect, ".3f"),
        )
        for task, language, one in found
        if one is not None
    ]
    return Table(columns, tuple(rows), len(_KEYS))


def _named(label: str) -> tuple[str, str]:
    task, _, language = label.rpartition("/")
    return task, language
