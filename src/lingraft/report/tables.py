"""The tables of a study: made once here, drawn in the terminal and on the page.

Every score carries its interval; the sign beside task ability says what its paired difference to Phase 1 says
(`signs`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Literal, Protocol

from lingraft.data.tokenizer_cost import LanguageCost
from lingraft.evaluate.results import AnyMatrix, Scores
from lingraft.intervals.changes import Answer, Answered, LimitAnswer, answer_over_seeds
from lingraft.intervals.macro_mean import Ratio
from lingraft.measures import REGISTRY
from lingraft.measures.base import Column as MeasureColumn
from lingraft.measures.base import Measure
from lingraft.report.merge import MergedResult
from lingraft.report.signs import LIMIT_WORDS, SIGNS
from lingraft.stage import mfu_text
from lingraft.study.limits import LimitResult
from lingraft.study.result import CellResult, FailedCell, PendingCell, SeedDifferences, StudyResult
from lingraft.study.unused import size_text
from lingraft.text.language_tags import ENGLISH

ABSENT = "-"
FAILED = "failed"
PENDING = "pending"
BASE = "base model"
_TASKS_SHOWN = 12  # columns of the table of tasks; the rest is folded at first
BEST = "*"  # before the best of a column in text

Matrix = Literal["ability", "bits_per_character"]


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        title: Its heading.
        meaning: A longer explanation.
        is_detail: Folded at first, and left out of narrow terminals; without these a table fits 80 columns.
        term: What of the page's list of terms explains it; empty: `meaning` says all.
        best: Which of its figures is the best one; None: none is better than another, or no interval could tell.
            The entries that are, or are not distinguishable from it, say so themselves (`Entry.is_best`).
    """

    title: str
    meaning: str
    is_detail: bool = False
    term: str = ""
    best: Literal["highest", "lowest"] | None = None


class Entry(str):
    """A table's text that shows a figure; plain text is a `str`.

    Attributes:
        value: The figure, by which a column is sorted and which exports write; of what is written in per cent the
            share. None: there is none, or not yet.
        low: Lower end of its 95 % interval; None: it has none.
        high: Upper end.
        answer: What its sign says; None: it has none.
        shorter: The same for narrow terminals: without the range of its seeds, then also without its interval; empty
            where it has neither.
        is_best: Whether it is the best of its column, or not distinguishable from that.
    """

    value: float | None
    low: float | None
    high: float | None
    answer: Answer | LimitAnswer | None
    shorter: tuple[str, ...]
    is_best: bool
    __slots__ = ("answer", "high", "is_best", "low", "shorter", "value")

    def __new__(
        cls,
        text: str,
        value: float | None = None,
        low: float | None = None,
        high: float | None = None,
        answer: Answer | LimitAnswer | None = None,
        *,
        shorter: tuple[str, ...] = (),
        is_best: bool = False,
    ) -> Entry:
        """Return the text with its figure."""
        own = super().__new__(cls, text)
        own.value, own.low, own.high, own.answer = value, low, high, answer
        own.shorter, own.is_best = shorter, is_best
        return own

    def with_text(self, text: str, shorter: tuple[str, ...] = ()) -> Entry:
        """Return the same figure, written in another way."""
        return Entry(
            text, self.value, self.low, self.high, self.answer, shorter=shorter, is_best=self.is_best
        )


_KEYS = (Column("data", "data set of the last phase"), Column("strategy", "mitigation of the last phase"))


@dataclass(frozen=True)
class Table:
    """Columns and rows of text, or `Entry` where it shows a figure; the first `n_keys` columns name the row."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    n_keys: int

    def part(self, chosen: Sequence[int]) -> Table:
        """Return the table of the chosen columns, for narrow terminals."""
        return Table(
            tuple(self.columns[i] for i in chosen),
            tuple(tuple(row[i] for i in chosen) for row in self.rows),
            self.n_keys,
        )

    @property
    def essential(self) -> Table:
        """Return the table without its details."""
        return self.part([i for i, column in enumerate(self.columns) if not column.is_detail])

    @property
    def marks(self) -> tuple[str, ...]:
        """Return what bold figures and signs in it mean, for a file that stands alone."""
        entries = [cell for row in self.rows for cell in row if isinstance(cell, Entry)]
        bold = "Bold: the best of a column, and all that cannot be distinguished from it."
        signs = ", ".join(f"{SIGNS[one]} {one}" for one in ("rose", "fell", "unchanged", "undecided"))
        has_signs = any(one.value is not None and one.answer is not None for one in entries)
        return (
            *([bold] if any(one.is_best for one in entries) else []),
            *([f"{signs}."] if has_signs else []),
        )

    def is_of_figures(self, index: int) -> bool:
        """Return whether a column shows figures; a word may stand in place of some."""
        cells = (row[index] for row in self.rows)
        return any(isinstance(cell, Entry) and cell.value is not None for cell in cells)


@dataclass(frozen=True)
class Model:
    """A model that tables show: the base, a Phase 1 model, or that of a cell which is done.

    Attributes:
        data: Data set of its last phase; of the base and of Phase 1 what it is.
        strategy: Of its last phase; empty where `data` says all.
        seed: None: it was not trained here.
        scores: Its scores.
        predictions: Where its answers are in the run folder.
        checkpoint: Where it lies in the run folder; None: it is not kept, or was not made here.
        cell: None: it is no cell's.
    """

    data: str
    strategy: str
    seed: int | None
    scores: Scores
    predictions: str
    checkpoint: str | None = None
    cell: CellResult | None = None

    def title(self, *, with_seed: bool) -> str:
        """Return its name in figures and headings."""
        seed = f"seed {self.seed}" if with_seed and self.seed is not None else ""
        return " / ".join(part for part in (self.data, self.strategy, seed) if part)


def entries_of(result: StudyResult) -> list[Model | FailedCell | PendingCell]:
    """Return the base model, the Phase 1 models and the cells, in the order of the tables.

    Phase 1 models of one kind are named just as such.
    """
    found: list[Model | FailedCell | PendingCell] = []
    if result.base is not None:
        found.append(Model(BASE, "", None, result.base, result.base_predictions or ""))
    for own in result.bases if isinstance(result, MergedResult) else ():
        found.append(Model(f"{own.run}: {BASE}", "", None, own.scores, own.predictions))
    several = len({(one.data, one.strategy) for one in result.phase_ones}) > 1
    for one in result.phase_ones:
        data, strategy = (f"phase 1: {one.data}", one.strategy or "") if several else ("phase 1", "")
        found.append(Model(data, strategy, one.seed, one.scores, one.predictions, one.checkpoint))
    for cell in result.cells:
        found.append(
            Model(cell.data, cell.strategy, cell.seed, cell.scores, cell.predictions, cell.checkpoint, cell)
            if isinstance(cell, CellResult)
            else cell
        )
    return found


def models_of(result: StudyResult) -> list[Model]:
    """Return all but the failed and the pending cells of `entries_of`."""
    return [one for one in entries_of(result) if isinstance(one, Model)]


class Estimate(Protocol):
    """A figure, perhaps with an interval."""

    @property
    def value(self) -> float | None: ...  # noqa: D102
    @property
    def low(self) -> float | None: ...  # noqa: D102
    @property
    def high(self) -> float | None: ...  # noqa: D102


class Change(Answered, Estimate, Protocol):
    """A difference of two models, and what it says."""


@dataclass(frozen=True)
class _Figure:
    """One figure of one model as a table writes it, or a word in its place.

    Attributes:
        value: None: there is none.
        low: Lower end of its 95 % interval.
        high: Upper end.
        style: How it is written.
        change: The difference that its sign speaks of; None: it has no sign.
        word: Stands for all of it, where it is not empty.
        limit: What the word says of a limit.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    style: Literal["plain", "signed", "percent"] = "plain"
    change: Answered | None = None
    word: str = ""
    limit: LimitAnswer | None = None

    def number(self, value: float, digits: int = 3) -> str:
        if self.style == "percent":
            return f"{100 * value:.1f}"
        return f"{value:+.{digits}f}" if self.style == "signed" else f"{value:.{digits}f}"

    def written(self, value: float) -> str:
        return f"{self.number(value)} %" if self.style == "percent" else self.number(value)

    @property
    def interval(self) -> str:
        if self.low is None or self.high is None:
            return ""
        return f" [{self.number(self.low, 2)}, {self.number(self.high, 2)}]"

    def entry(self) -> Entry:
        if self.word or self.value is None:
            return Entry(self.word or ABSENT, answer=self.said)
        sign = "" if self.change is None else f" {SIGNS[self.change.answer]}"
        return _joined(self, self.value, self.interval, "", sign, self.said)

    @property
    def said(self) -> Answer | LimitAnswer | None:
        return self.limit if self.change is None else self.change.answer


def _joined(
    one: _Figure, value: float, interval: str, spread: str, sign: str, said: Answer | LimitAnswer | None
) -> Entry:
    """Return the parts of an entry as its text, with its shorter forms."""
    number = one.written(value)
    low, high = (one.low, one.high) if interval else (None, None)
    shorter = (number + (interval or spread) + sign, number + sign)
    return Entry(number + interval + spread + sign, value, low, high, said, shorter=shorter)


def _entry(one: Estimate | None, change: Answered | None = None) -> _Figure:
    return _Figure(None) if one is None else _Figure(one.value, one.low, one.high, change=change)


def _change(one: Change | None, *, has_sign: bool = False) -> _Figure:
    return replace(_entry(one, one if has_sign else None), style="signed")


def _retention(one: Ratio) -> _Figure:
    return _Figure(one.value, one.low, one.high, "percent", word=ABSENT if one.value is None else "")


def _limit(one: LimitResult | None) -> _Figure:
    return _Figure(None) if one is None else _Figure(None, word=LIMIT_WORDS[one.answer], limit=one.answer)


def _over_seeds(
    figures: Sequence[_Figure], pooled: _Figure | None = None, *, always_range: bool = False
) -> Entry:
    """Return one entry; of several seeds their mean, its interval, and their range in parentheses.

    Args:
        figures: One for each seed.
        pooled: Of the mean over them, with its interval; None: no interval of it is known.
        always_range: Show the range, lowest to highest, also of numbers that have no interval and no sign.
    """
    if len(figures) == 1:
        return figures[0].entry()
    known = [one.value for one in figures if one.value is not None]
    if pooled is not None and pooled.word:
        return pooled.entry()
    value = sum(known) / len(known) if known else None
    if pooled is not None and pooled.value is not None:
        value = pooled.value
    if value is None:
        return Entry(ABSENT)
    one = next((figure for figure in figures if figure.low is not None), figures[0])
    spread = ""
    if known and (always_range or one.low is not None or one.style == "signed"):
        spread = f" ({one.number(min(known), 2)} to {one.number(max(known), 2)})"
    changes = [figure.change for figure in figures if figure.change is not None]
    said = answer_over_seeds(None, changes) if changes else None
    if pooled is not None and pooled.change is not None:
        said = pooled.change.answer
    sign = "" if said is None else f" {SIGNS[said]}"
    written_as = one if pooled is None else replace(one, low=pooled.low, high=pooled.high)
    return _joined(written_as, value, "" if pooled is None else pooled.interval, spread, sign, said)


def measures_of(result: StudyResult) -> dict[str, Measure]:
    """Return the measures of a study by name; without a cell that is done there are none, and all cells have them."""
    return {name: REGISTRY.get(name)() for cell in result.done[:1] for name in cell.measures}


@dataclass(frozen=True)
class _Shown:
    """A column of the study's table.

    Attributes:
        column: Its title and meaning.
        of_model: What it shows of a model.
        over_seeds: Of the mean over several seeds, where that has an interval or an answer of its own.
    """

    column: Column
    of_model: Callable[[Model], _Figure]
    over_seeds: Callable[[SeedDifferences], _Figure] | None = None


def _columns(result: StudyResult) -> list[_Shown]:
    """Return the columns of the study's table."""

    def of_cell(show: Callable[[CellResult], _Figure]) -> Callable[[Model], _Figure]:
        return lambda model: _Figure(None) if model.cell is None else show(model.cell)

    def measured(name: str, column: MeasureColumn) -> Callable[[Model], _Figure]:
        return of_cell(lambda cell: _entry(cell.measures[name].figure(column)))

    def in_language(tag: str) -> Callable[[Model], _Figure]:
        def entry(model: Model) -> _Figure:
            score = model.scores.per_language.get(tag)
            return _Figure(None if score is None else score.value)

        return entry

    def limit(name: str, value: float) -> _Shown:
        column = Column(
            f"limit {spelled_limit(name)} {value:g}",
            f"whether no more than {value:g} of {spelled_limit(name)} was lost",
            term="limit",
        )
        return _Shown(
            column,
            of_cell(lambda cell: _limit(cell.limits.get(name))),
            lambda mean: _limit(mean.limits.get(name)),
        )

    def task_ability(model: Model) -> _Figure:
        change = None if model.cell is None else model.cell.difference.task_ability
        return _entry(model.scores.task_ability, change)

    models = models_of(result)
    columns = [
        *(
            _Shown(
                Column(column.title, column.meaning, is_detail=True, term=measure.title),
                measured(name, column),
            )
            for name, measure in measures_of(result).items()
            for column in measure.columns
        ),
        _Shown(
            Column(
                "task ability",
                "mean score of the English tasks, 0 to 1, with its 95 % interval",
                term="task ability",
                best="highest",
            ),
            task_ability,
            lambda mean: _Figure(None, change=mean.task_ability),
        ),
        _Shown(
            Column(
                "change",
                "paired difference of task ability to Phase 1, with its 95 % interval",
                is_detail=True,
                term="paired difference",
            ),
            of_cell(lambda cell: _change(cell.difference.task_ability)),
            lambda mean: _change(mean.task_ability),
        ),
        _Shown(
            Column("retention", "task ability after / before, with its 95 % interval", term="retention"),
            of_cell(lambda cell: _retention(cell.retention)),
            lambda mean: _retention(mean.retention),
        ),
        *(limit(name, plan.limit) for name, plan in result.limits.items()),
        *(
            _Shown(
                Column(tag, f"language ability in {tag}", is_detail=True, term="language ability"),
                in_language(tag),
            )
            for tag in dict.fromkeys(
                tag
                for model in models
                for tag, score in model.scores.per_language.items()
                if score.value is not None and tag != ENGLISH  # which has a loss but is no new language
            )
        ),
        _Shown(
            Column(
                "language ability",
                "mean over the trained languages of the mean over tasks, 0 to 1",
                term="language ability",
                best="highest",
            ),
            lambda model: _entry(model.scores.language_ability),
        ),
        _Shown(
            Column("gain", "language ability after - before, with its 95 % interval", term="gain"),
            of_cell(lambda cell: _change(cell.difference.language_ability)),
            lambda mean: _change(mean.language_ability),
        ),
    ]
    if any(model.scores.further_languages is not None for model in models):
        meaning = "the same mean over the languages that are evaluated and not trained"
        columns.append(
            _Shown(
                Column("further languages", meaning, term="further languages"),
                lambda model: _entry(model.scores.further_languages),
            )
        )
    meaning = "share of answers in another language than requested"
    columns.append(
        _Shown(
            Column("wrong lang.", meaning),
            lambda model: _Figure(model.scores.wrong_language, style="percent"),
        )
    )
    return columns


def study_table(result: StudyResult, best: Mapping[str, Collection[tuple[str, str]]] | None = None) -> Table:
    """Return the table of a study: one row per data and strategy.

    With several seeds a row holds the mean over them, with its interval where it has one, and the lowest and the
    highest in parentheses; their number stands beside it. `seed_table` has them one by one.

    Args:
        result: Of the study.
        best: By title of a column, the data and strategies whose entry is the best, or is not distinguishable from it
            (`rivals.best_cells`); None: none is marked.
    """
    best = best or {}
    columns = _columns(result)
    first_shown = next(i for i, one in enumerate(columns) if not one.column.is_detail)
    means = {(one.data, one.strategy): one for one in result.over_seeds}
    groups: dict[tuple[str, str], list[Model | FailedCell | PendingCell]] = {}
    for entry in entries_of(result):
        groups.setdefault((entry.data, entry.strategy), []).append(entry)
    rows = []
    for key, entries in groups.items():
        done = [one for one in entries if isinstance(one, Model)]
        mean = means.get(key)
        texts: list[str] = [ABSENT] * len(columns)
        if done:
            shown_entries = [
                _over_seeds(
                    [shown.of_model(model) for model in done],
                    None if mean is None or shown.over_seeds is None else shown.over_seeds(mean),
                    always_range=True,
                )
                for shown in columns
            ]
            for shown, own in zip(columns, shown_entries, strict=True):
                own.is_best = key in best.get(shown.column.title, ())
            texts = list(shown_entries)
        else:
            texts[first_shown] = PENDING if all(isinstance(one, PendingCell) for one in entries) else FAILED
        if result.has_seeds:
            n = Entry(
                str(len(done)) if len(done) == len(entries) else f"{len(done)} of {len(entries)}", len(done)
            )
            if entries[0].seed is None:
                n = Entry("" if key == (BASE, "") else ABSENT)  # a checkpoint has no seed of ours
            texts.insert(0, n)
        rows.append((*key, *texts))
    keys = (*_KEYS, Column("seeds", "seeds that are done")) if result.has_seeds else _KEYS
    return Table((*keys, *(shown.column for shown in columns)), tuple(rows), len(keys))


def seed_table(result: StudyResult) -> Table | None:
    """Return the table with a row for every seed; None: there is only one."""
    if not result.has_seeds:
        return None
    columns = _columns(result)
    first_shown = next(i for i, one in enumerate(columns) if not one.column.is_detail)
    rows = []
    for one in entries_of(result):
        if one.data == BASE and one.seed is None:
            continue
        seed = ABSENT if one.seed is None else str(one.seed)
        texts: list[str] = [
            shown.of_model(one).entry() if isinstance(one, Model) else ABSENT for shown in columns
        ]
        if not isinstance(one, Model):
            texts[first_shown] = FAILED if isinstance(one, FailedCell) else PENDING
        rows.append((one.data, one.strategy, seed, *texts))
    keys = (*_KEYS, Column("seed", "seed of every phase of the cell"))
    return Table((*keys, *(shown.column for shown in columns)), tuple(rows), len(keys))


def change_table(result: StudyResult) -> Table | None:
    """Return each strategy's mean change over its seeds, with 95 % intervals; None: no strategy has several.

    Intervals cover the choice of items at these seeds, not the choice of seeds.
    """
    columns = (
        *_KEYS,
        Column("seeds", "seeds that are done"),
        Column("change", "of task ability against Phase 1, mean over seeds"),
        Column("by seed", "the same, lowest to highest"),
        Column("retention", "task ability after / before, of the means over seeds"),
        Column("gain", "of language ability against Phase 1, mean over seeds"),
        Column(
            "detectable", "minimum detectable effect: the smallest true change that is found with 80 % power"
        ),
    )
    rows = []
    for one in result.over_seeds:
        task = one.task_ability
        single = sorted(
            cell.difference.task_ability.value
            for cell in result.done
            if (cell.data, cell.strategy) == (one.data, one.strategy)
        )
        rows.append(
            (
                *(one.data, one.strategy, counted(one.seeds)),
                _change(task, has_sign=True).entry(),
                f"{single[0]:+.2f} to {single[-1]:+.2f}",
                _retention(one.retention).entry(),
                _change(one.language_ability, has_sign=True).entry(),
                written(task.minimum_detectable_effect, ".3f"),
            )
        )
    return Table(columns, tuple(rows), len(_KEYS)) if rows else None


def task_table(result: StudyResult) -> Table | None:
    """Return the score of every task: a row for each model, a column for each task; None: no cell is done.

    A cell's score has the sign of its change from Phase 1 beside it, and the change's corrected p-value. With several
    seeds a row holds the means over them, from the lowest to the highest.
    """
    if not result.done:
        return None
    groups: dict[tuple[str, str], list[Model]] = {}
    for model in models_of(result):
        groups.setdefault((model.data, model.strategy), []).append(model)
    names = list(dict.fromkeys(name for own in groups.values() for one in own for name in one.scores.tasks))
    rows = [(*key, *(_task_entry(own, name) for name in names)) for key, own in groups.items()]
    columns = [*_KEYS]
    for number, name in enumerate(names):
        items = dict.fromkeys(
            one.scores.tasks[name].n for own in groups.values() for one in own if name in one.scores.tasks
        )
        meaning = (
            f"score in {name}, 0 to 1, of {', '.join(map(str, items))} items; p: of its change from Phase 1, corrected "
            "for the number of tasks"
        )
        columns.append(Column(name, meaning, is_detail=number >= _TASKS_SHOWN))
    return Table(tuple(columns), tuple(rows), len(_KEYS))


def _task_entry(models: Sequence[Model], name: str) -> Entry:
    """Return a task's score, of several seeds their mean; of another run's models it may not have been asked."""
    own = [one.scores.tasks[name] for one in models if name in one.scores.tasks]
    if not own:
        return Entry(ABSENT)
    changes = [
        one.cell.difference.tasks[name]
        for one in models
        if one.cell is not None and name in one.cell.difference.tasks
    ]
    value = sum(one.value for one in own) / len(own)
    spread = (
        ""
        if len(own) == 1
        else f" ({min(one.value for one in own):.2f} to {max(one.value for one in own):.2f})"
    )
    p = f" (p {changes[0].p_adjusted:.2g})" if len(changes) == len(own) == 1 else ""
    said = answer_over_seeds(None, changes) if changes else None
    sign = "" if said is None else f" {SIGNS[said]}"
    low, high = (own[0].low, own[0].high) if len(own) == 1 else (None, None)
    shorter = (f"{value:.3f}{spread}{sign}", f"{value:.3f}{sign}")
    return Entry(f"{value:.3f}{spread}{p}{sign}", value, low, high, said, shorter=shorter)


def contamination_table(result: StudyResult) -> Table | None:
    """Return how much of each task stands in the training rows; None: nobody looked."""
    if result.contamination is None or not result.contamination.tasks:
        return None
    columns = (
        Column("task", "task and language"),
        Column("items", "items looked at"),
        Column(
            "contaminated",
            "share of the items of which 80 % of the n-grams, or the whole prompt, stand there",
        ),
        Column("touched", "share of the items that share an n-gram or more with a row: templates do"),
        Column("n-grams", "share of all the task's n-grams"),
    )
    rows = tuple(
        (
            task,
            counted(one.items),
            written(one.contaminated, ".1%"),
            written(one.touched, ".1%"),
            written(one.coverage, ".1%"),
        )
        for task, one in result.contamination.tasks.items()
    )
    return Table(columns, rows, 1)


def training_table(result: StudyResult) -> Table | None:
    """Return what each phase of each cell was trained on, and what of its data was not; None: no cell is done."""
    measured = [(name, column) for name, one in measures_of(result).items() for column in one.phase_columns]
    columns = (
        Column("cell", "data, strategy and seed"),
        Column("phase", "phase, data set and strategy"),
        *(Column(column.title, column.meaning) for _, column in measured),
        Column("broken", "rows that could not be read"),
        Column("filtered", "rows that filters left out or could not judge"),
        Column("incomplete groups", "parallel groups without one of the languages"),
        Column("held out", "rows kept for the held-out loss"),
        Column("withheld", "rows that another set of the study holds out"),
        Column("short of limit", "rows fewer than `limit` asked for"),
        Column("examples", "examples trained on, replay included"),
        Column("replayed", "of these from replay"),
        Column("truncated", "examples cut to max_length"),
        Column("dropped", "examples that the chat template refuses, or whose answer was truncated away"),
        Column("tokens", "tokens of all epochs, without padding"),
        Column("steps", "optimiser steps"),
        Column("tokens per step", "their mean"),
        Column("trained parameters", "parameters that training could change"),
        Column("frozen", "parameters that it could not"),
    )
    rows = []
    for cell in result.done:
        for phase in cell.phases:
            counts, sets = phase.training, phase.training.data
            numbers = (
                sum(one.broken for one in sets),
                sum(sum(one.filtered.values()) for one in sets),
                sum(one.incomplete_groups or 0 for one in sets),
                sum(one.held_out for one in sets),
                sum(one.withheld for one in sets),
                sum(one.shortfall for one in sets),
                counts.examples,
                counts.replayed,
                counts.truncated,
                counts.dropped,
                counts.tokens,
                counts.steps,
                round(counts.tokens / counts.steps),
                counts.trainable_parameters,
                counts.frozen_parameters,
            )
            rows.append(
                (
                    f"{cell.data} / {cell.strategy} / seed {cell.seed}",
                    f"{phase.phase}: {phase.data} / {phase.strategy}",
                    *(written(phase.measures[name].figure(column).value, ".3f") for name, column in measured),
                    *map(counted, numbers),
                )
            )
    return Table(columns, tuple(rows), 2) if rows else None


def cost_ratios(result: StudyResult) -> dict[str, list[tuple[float, float, float]]]:
    """Return by strategy what each cell cost over plain of the same data and seed; empty: plain is missing.

    The ratios are seconds of training, seconds of preparing and combining over those of plain's training, and largest
    resident memory. Cells that were interrupted are left out: their seconds are of the rest only.
    """
    whole = [cell for cell in result.done if cell.cost.resumed_from is None]
    plain = {(cell.data, cell.seed): cell.cost for cell in whole if cell.strategy == "plain"}
    ratios: dict[str, list[tuple[float, float, float]]] = {}
    for cell in whole:
        base, own = plain.get((cell.data, cell.seed)), cell.cost
        if base is not None and base.training_seconds and cell.strategy not in ("plain", "mixed"):
            ratios.setdefault(cell.strategy, []).append(
                (
                    own.training_seconds / base.training_seconds,
                    (own.prepare_seconds + own.combine_seconds) / base.training_seconds,
                    own.peak_bytes / base.peak_bytes,
                )
            )
    return ratios


def strategy_cost_table(result: StudyResult) -> Table | None:
    """Return what each strategy cost, as a ratio to plain of the same data and seed; None: plain is missing.

    Several data sets and seeds are summed up by the median, with the lowest and the highest in parentheses.
    """

    def spread(values: Sequence[float]) -> Entry:
        middle = f"{median(values):.2f}"
        text = middle if len(values) == 1 else f"{middle} ({min(values):.2f} to {max(values):.2f})"
        return Entry(text, median(values))

    columns = (
        Column("strategy", "of the last phase"),
        Column("cells", "data sets and seeds that it was measured on"),
        Column("training", "seconds of training over plain's"),
        Column("before and after", "seconds of preparing and combining over those of plain's training"),
        Column("peak memory", "largest resident memory over plain's; an accelerator's is not in it"),
        Column(
            "MFU",
            "model FLOPs utilisation of the training, the median: what real tokens need over what the device could "
            "compute in the time",
        ),
        Column("plain's MFU", "of plain training, for comparison"),
    )

    def utilisation(strategy: str) -> Entry | str:
        own = [
            cell.cost.mfu for cell in result.done if cell.strategy == strategy and cell.cost.mfu is not None
        ]
        return Entry(mfu_text(median(own)), median(own)) if own else ABSENT

    plain = utilisation("plain")
    rows = [
        (name, counted(len(own)), *map(spread, zip(*own, strict=True)), utilisation(name), plain)
        for name, own in cost_ratios(result).items()
    ]
    return Table(columns, tuple(rows), 1) if rows else None


def answer_table(result: StudyResult) -> Table | None:
    """Return what was wrong with the generated answers of every model, in counts; None: nothing was generated."""
    rows = [
        (
            model.title(with_seed=True),
            *map(counted, (answers.n, answers.empty, answers.looping, answers.truncated)),
            written(model.scores.wrong_language, ".1%"),
            counted(model.scores.undetermined_language),
        )
        for model in models_of(result)
        if (answers := model.scores.answers) is not None
    ]
    columns = (
        Column("model", "data, strategy and seed"),
        Column("answers", "generated answers, of all tasks"),
        Column("empty", "answers of white space alone"),
        Column("looping", "answers that say the same again and again"),
        Column("truncated", "answers that used all the tokens that they were allowed"),
        Column(
            "wrong lang.",
            "share of answers in another language than requested, of those whose language is clear",
        ),
        Column("undetermined", "answers whose language is not clear, mostly because they are short"),
    )
    return Table(columns, tuple(rows), 1) if rows else None


def matrix_of(cell: CellResult, kind: Matrix) -> AnyMatrix | None:
    """Return one of a cell's forgetting matrices; None: nothing measures it."""
    return cell.forgetting.ability if kind == "ability" else cell.forgetting.bits_per_character


def forgetting_table(result: StudyResult, kind: Matrix, *, with_intervals: bool) -> Table | None:
    """Return the forgetting matrices of all cells, one under the other; None: there are none.

    A row is a cell's model after one phase, a column what one phase taught; a cell's summary stands in its last row.
    With several seeds the entries are means over them.

    Args:
        result: The study's result.
        kind: `ability`, or `bits_per_character` (lower is better).
        with_intervals: Write each entry's 95 % interval, where one seed has it.
    """
    groups: dict[tuple[str, str], list[AnyMatrix]] = {}
    for cell in result.done:
        if (matrix := matrix_of(cell, kind)) is not None:
            groups.setdefault((cell.data, cell.strategy), []).append(matrix)
    if not groups:
        return None
    phases = tuple(dict.fromkeys(column.phase for own in groups.values() for column in own[0].columns))
    rows = []
    for key, matrices in groups.items():
        places = {column.phase: j for j, column in enumerate(matrices[0].columns)}
        summary = [
            _over_seeds([_entry(one.average) for one in matrices]),
            _over_seeds([_change(one.backward_transfer, has_sign=True) for one in matrices]),
            _over_seeds([_change(one.forward_transfer, has_sign=True) for one in matrices]),
            _over_seeds([_Figure(one.forgetting, style="signed") for one in matrices]),
        ]
        for number, row in enumerate(matrices[0].rows):
            texts = []
            for phase in phases:
                own = [_entry(one.rows[number].scores[places[phase]]) for one in matrices if phase in places]
                if len(own) > 1 or not with_intervals:
                    own = [replace(one, low=None, high=None) for one in own]
                texts.append(_over_seeds(own) if own else ABSENT)
            is_last = number == len(matrices[0].rows) - 1
            rows.append((*key, row.after, *texts, *(summary if is_last else [""] * len(summary))))
    unit = "score" if kind == "ability" else "bits per character"
    columns = (
        *_KEYS,
        Column("after", "the model after this phase"),
        *(Column(phase, f"{unit} on what phase {phase} taught") for phase in phases),
        Column("average", "mean over the phases' columns after the last phase"),
        Column("backward", "backward transfer: last - just learned, over earlier phases; below 0: forgotten"),
        Column(
            "forward", "forward transfer: just before learning - base model; above 0: earlier phases helped"
        ),
        Column("forgetting", "best of the phases before the last - last, over earlier phases"),
    )
    return Table(columns, tuple(rows), len(_KEYS) + 1)


def checkpoint_table(result: StudyResult) -> Table | None:
    """Return where each model that was trained lies in the run folder; None: none was."""
    rows = tuple(
        (model.title(with_seed=result.has_seeds), model.checkpoint or "not kept (`keep` in the study file)")
        for model in models_of(result)
        if model.cell is not None or model.seed is not None  # else it is a model that the study file names
    )
    columns = (
        Column("model", "data, strategy and seed"),
        Column("checkpoint", "its folder in the run folder"),
    )
    return Table(columns, rows, 2) if rows else None


def unused_table(result: StudyResult) -> Table | None:
    """Return what else lies in the run folder, of cells that the study file does not list; None: nothing."""
    columns = (
        Column("of", "cell or model, as it was called when it was made"),
        Column("stage", "what it does"),
        Column("state", "finished, or interrupted"),
        Column("size", "of its files"),
        Column("folder", "in the run folder"),
    )
    rows = tuple(
        (
            one.name or ABSENT,
            one.kind,
            "finished" if one.is_finished else "unfinished",
            Entry(size_text(one.bytes), one.bytes),
            one.path,
        )
        for one in sorted(result.unused, key=lambda one: (one.name or "", one.path))
    )
    return Table(columns, rows, 2) if rows else None


def spelled_limit(name: str) -> str:
    """Return what a limit is on as words; a task keeps its name as it is."""
    return name.replace("_", " ") if "/" not in name else name


def written(value: float | None, form: str, low: float | None = None, high: float | None = None) -> Entry:
    """Return a figure in a format, with the interval that its column does not write; None: a dash."""
    return Entry(ABSENT) if value is None else Entry(format(value, form), value, low, high)


def counted(count: int) -> Entry:
    """Return a count."""
    return Entry(f"{count:,}", count)


def cost_table(costs: Mapping[str, LanguageCost]) -> Table:
    """Return what each language costs in tokens; `x en` stands for a multiple of English."""
    columns = (
        Column("language", "BCP-47 tag"),
        Column("rows", "examples"),
        Column("per word", "tokens per word"),
        Column("words x en", "tokens per word divided by English's"),
        Column("per character", "tokens per character"),
        Column("characters x en", "tokens per character divided by English's"),
        Column("same content x en", "tokens divided by those of the same content in English"),
        Column("compared", "contents compared, of the data's groups or of worldbook"),
        Column("partial", "share of tokens that are no whole characters"),
    )
    rows = tuple(
        (
            tag,
            counted(cost.examples),
            written(cost.tokens_per_word, ".3f"),
            written(cost.words_against_english, ".3f"),
            written(cost.tokens_per_character, ".3f"),
            written(cost.characters_against_english, ".3f"),
            written(cost.content_against_english, ".3f"),
            ABSENT
            if cost.basis is None
            else Entry(f"{cost.parallel_groups} {cost.basis}", cost.parallel_groups),
            written(cost.partial_share, ".1%"),
        )
        for tag, cost in costs.items()
    )
    return Table(columns, rows, 1)
