"""The tables of a study: made once here, drawn in the terminal and on the page.

Every score carries its interval; the arrow says whether task ability differs from Phase 1's on the same items:
▲ or ▼ where the 95 % interval of the paired difference excludes 0, = where it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Literal, Protocol

from lingraft.data.tokenizer_cost import LanguageCost
from lingraft.evaluate.results import AnyMatrix, Scores
from lingraft.intervals.macro_mean import Difference
from lingraft.measures import REGISTRY
from lingraft.measures.base import Column as MeasureColumn
from lingraft.measures.base import Measure
from lingraft.study.result import CellResult, FailedCell, PendingCell, StudyResult
from lingraft.study.unused import size_text
from lingraft.text.language_tags import ENGLISH

ABSENT = "-"
FAILED = "failed"
PENDING = "pending"
BASE = "base model"

Matrix = Literal["ability", "bits_per_character"]


@dataclass(frozen=True)
class Column:
    """One column: its title, and a longer explanation."""

    title: str
    meaning: str


_KEYS = (Column("data", "data set of the last phase"), Column("strategy", "mitigation of the last phase"))


@dataclass(frozen=True)
class Table:
    """Columns and rows of text; the first `n_keys` columns name the row."""

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


@dataclass(frozen=True)
class _Entry:
    """One figure of one model as a table writes it; `arrow` where it is compared with Phase 1's."""

    value: float | None
    low: float | None = None
    high: float | None = None
    style: Literal["plain", "signed", "percent"] = "plain"
    arrow: str = ""

    def number(self, value: float, digits: int = 3) -> str:
        if self.style == "percent":
            return f"{100 * value:.1f} %"
        return f"{value:+.{digits}f}" if self.style == "signed" else f"{value:.{digits}f}"

    def text(self) -> str:
        if self.value is None:
            return ABSENT
        interval = ""
        if self.low is not None and self.high is not None:
            interval = f" [{self.number(self.low, 2)}, {self.number(self.high, 2)}]"
        return f"{self.number(self.value)}{interval}{self.arrow and ' ' + self.arrow}"


def _entry(one: Estimate | None, mark: str = "") -> _Entry:
    return _Entry(None) if one is None else _Entry(one.value, one.low, one.high, arrow=mark)


def _change(one: Estimate | None) -> _Entry:
    return replace(_entry(one), style="signed")


def _over_seeds(entries: Sequence[_Entry]) -> str:
    """Return the text of one entry; of several seeds their mean and range, and the arrow where all have the same.

    The range, lowest to highest, stands where one seed has an interval or a sign.
    """
    if len(entries) == 1:
        return entries[0].text()
    known = [entry.value for entry in entries if entry.value is not None]
    if not known:
        return ABSENT
    one = next((entry for entry in entries if entry.low is not None), entries[0])
    marks = {entry.arrow for entry in entries}
    mark = marks.pop() if len(marks) == 1 else "="
    spread = ""
    if one.low is not None or one.style == "signed":
        spread = f" ({one.number(min(known), 2)} to {one.number(max(known), 2)})"
    return f"{one.number(sum(known) / len(known))}{spread}{mark and ' ' + mark}"


def arrow(difference: Difference) -> str:
    """Return ▲ or ▼ where the difference's interval excludes 0, else =."""
    if difference.low > 0:
        return "▲"
    return "▼" if difference.high < 0 else "="


def measures_of(result: StudyResult) -> dict[str, Measure]:
    """Return the measures of a study by name; without a cell that is done there are none."""
    return {name: REGISTRY.get(name)() for cell in result.done[:1] for name in cell.measures}


def _columns(result: StudyResult) -> list[tuple[Column, Callable[[Model], _Entry]]]:
    """Return the columns of the study's table, each with what it shows of a model."""

    def of_cell(show: Callable[[CellResult], _Entry]) -> Callable[[Model], _Entry]:
        return lambda model: _Entry(None) if model.cell is None else show(model.cell)

    def measured(name: str, column: MeasureColumn) -> Callable[[Model], _Entry]:
        return of_cell(lambda cell: _entry(cell.measures[name].figure(column)))

    def in_language(tag: str) -> Callable[[Model], _Entry]:
        def entry(model: Model) -> _Entry:
            score = model.scores.per_language.get(tag)
            return _Entry(None if score is None else score.value)

        return entry

    def task_ability(model: Model) -> _Entry:
        return _entry(
            model.scores.task_ability, arrow(model.cell.difference.task_ability) if model.cell else ""
        )

    models = models_of(result)
    columns: list[tuple[Column, Callable[[Model], _Entry]]] = [
        *(
            (Column(column.title, column.meaning), measured(name, column))
            for name, measure in measures_of(result).items()
            for column in measure.columns
        ),
        (
            Column("task ability", "mean score of the English tasks, 0 to 1, with its 95 % interval"),
            task_ability,
        ),
        (
            Column("change", "paired difference of task ability to Phase 1, with its 95 % interval"),
            of_cell(lambda cell: _change(cell.difference.task_ability)),
        ),
        (
            Column("retention", "task ability after / before"),
            of_cell(lambda cell: _Entry(cell.retention, style="percent")),
        ),
        *(
            (Column(tag, f"language ability in {tag}"), in_language(tag))
            for tag in dict.fromkeys(
                tag
                for model in models
                for tag, score in model.scores.per_language.items()
                if score.value is not None and tag != ENGLISH  # which has a loss but is no new language
            )
        ),
        (
            Column("language ability", "mean over the trained languages of the mean over tasks, 0 to 1"),
            lambda model: _entry(model.scores.language_ability),
        ),
        (
            Column("gain", "language ability after - before, with its 95 % interval"),
            of_cell(lambda cell: _change(cell.difference.language_ability)),
        ),
    ]
    if any(model.scores.further_languages is not None for model in models):
        meaning = "the same mean over the languages that are evaluated and not trained"
        columns.append(
            (Column("further languages", meaning), lambda model: _entry(model.scores.further_languages))
        )
    meaning = "share of answers in another language than requested"
    columns.append(
        (Column("wrong lang.", meaning), lambda model: _Entry(model.scores.wrong_language, style="percent"))
    )
    return columns


def study_table(result: StudyResult) -> Table:
    """Return the table of a study: one row per data and strategy.

    With several seeds a row holds the mean over them, in place of an interval with the lowest and the highest in
    parentheses; their number stands beside it. `seed_table` has them one by one.
    """
    columns = _columns(result)
    groups: dict[tuple[str, str], list[Model | FailedCell | PendingCell]] = {}
    for entry in entries_of(result):
        groups.setdefault((entry.data, entry.strategy), []).append(entry)
    rows = []
    for key, entries in groups.items():
        done = [one for one in entries if isinstance(one, Model)]
        texts = [_over_seeds([show(model) for model in done]) if done else ABSENT for _, show in columns]
        if not done:
            texts[0] = PENDING if all(isinstance(one, PendingCell) for one in entries) else FAILED
        if result.has_seeds:
            n = str(len(done)) if len(done) == len(entries) else f"{len(done)} of {len(entries)}"
            if entries[0].seed is None:
                n = "" if key == (BASE, "") else ABSENT  # a checkpoint has no seed of ours
            texts.insert(0, n)
        rows.append((*key, *texts))
    keys = (*_KEYS, Column("seeds", "seeds that are done")) if result.has_seeds else _KEYS
    return Table((*keys, *(column for column, _ in columns)), tuple(rows), len(keys))


def seed_table(result: StudyResult) -> Table | None:
    """Return the table with a row for every seed; None: there is only one."""
    if not result.has_seeds:
        return None
    columns = _columns(result)
    rows = []
    for one in entries_of(result):
        if one.data == BASE and one.seed is None:
            continue
        seed = ABSENT if one.seed is None else str(one.seed)
        texts = [show(one).text() if isinstance(one, Model) else ABSENT for _, show in columns]
        if not isinstance(one, Model):
            texts[0] = FAILED if isinstance(one, FailedCell) else PENDING
        rows.append((one.data, one.strategy, seed, *texts))
    keys = (*_KEYS, Column("seed", "seed of every phase of the cell"))
    return Table((*keys, *(column for column, _ in columns)), tuple(rows), len(keys))


def change_table(result: StudyResult) -> Table | None:
    """Return each strategy's mean change over its seeds, with 95 % intervals; None: no strategy has several.

    Intervals cover the choice of items at these seeds, not the choice of seeds.
    """
    columns = (
        *_KEYS,
        Column("seeds", "seeds that are done"),
        Column("change", "of task ability against Phase 1, mean over seeds"),
        Column("by seed", "the same, lowest to highest"),
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
                *(one.data, one.strategy, str(one.seeds)),
                replace(_change(task), arrow=arrow(task)).text(),
                f"{single[0]:+.2f} to {single[-1]:+.2f}",
                _change(one.language_ability).text(),
                f"{task.minimum_detectable_effect:.3f}",
            )
        )
    return Table(columns, tuple(rows), len(_KEYS)) if rows else None


def task_table(result: StudyResult) -> Table | None:
    """Return the score of every task under every Phase 1 model and every cell that is done; None: no cell is.

    A cell's score has the corrected p-value of its change beside it.
    """
    if not result.done:
        return None
    models = [model for model in models_of(result) if model.data != BASE or model.seed is not None]
    rows = []
    for name in dict.fromkeys(name for model in models for name in model.scores.tasks):
        texts = []
        for model in models:
            p = "" if model.cell is None else f" (p {model.cell.difference.tasks[name].p_adjusted:.2g})"
            texts.append(f"{model.scores.tasks[name].value:.3f}{p}")
        rows.append((name, str(models[-1].scores.tasks[name].n), *texts))
    meaning = "score, 0 to 1; p: of its change from Phase 1, corrected for the number of tasks"
    titles = [model.title(with_seed=result.has_seeds) for model in models]
    keys = (Column("task", "task and language"), Column("n", "items"))
    return Table((*keys, *(Column(title, meaning) for title in titles)), tuple(rows), 1)


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
            str(one.items),
            f"{one.contaminated:.1%}",
            f"{one.touched:.1%}",
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
                    *(f"{number:,}" for number in numbers),
                )
            )
    return Table(columns, tuple(rows), 2) if rows else None


def strategy_cost_table(result: StudyResult) -> Table | None:
    """Return what each strategy cost, as a ratio to plain of the same data and seed; None: plain is missing.

    Several data sets and seeds are summed up by the median, with the lowest and the highest in parentheses.
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

    def spread(values: Sequence[float]) -> str:
        middle = f"{median(values):.2f}"
        return middle if len(values) == 1 else f"{middle} ({min(values):.2f} to {max(values):.2f})"

    columns = (
        Column("strategy", "of the last phase"),
        Column("cells", "data sets and seeds that it was measured on"),
        Column("training", "seconds of training over plain's"),
        Column("before and after", "seconds of preparing and combining over those of plain's training"),
        Column("peak memory", "largest resident memory over plain's; an accelerator's is not in it"),
    )
    rows = [(name, str(len(own)), *map(spread, zip(*own, strict=True))) for name, own in ratios.items()]
    return Table(columns, tuple(rows), 1) if rows else None


def answer_table(result: StudyResult) -> Table | None:
    """Return what was wrong with the generated answers of every model, in counts; None: nothing was generated."""
    rows = [
        (
            model.title(with_seed=True),
            *(str(count) for count in (answers.n, answers.empty, answers.looping, answers.truncated)),
            written(model.scores.wrong_language, ".1%"),
            str(model.scores.undetermined_language),
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
            _over_seeds([_change(one.backward_transfer) for one in matrices]),
            _over_seeds([_change(one.forward_transfer) for one in matrices]),
            _over_seeds([_Entry(one.forgetting, style="signed") for one in matrices]),
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
            size_text(one.bytes),
            one.path,
        )
        for one in sorted(result.unused, key=lambda one: (one.name or "", one.path))
    )
    return Table(columns, rows, 2) if rows else None


def written(value: float | None, form: str) -> str:
    """Return a value in a format; None: a dash."""
    return ABSENT if value is None else format(value, form)


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
            str(cost.examples),
            written(cost.tokens_per_word, ".3f"),
            written(cost.words_against_english, ".3f"),
            written(cost.tokens_per_character, ".3f"),
            written(cost.characters_against_english, ".3f"),
            written(cost.content_against_english, ".3f"),
            ABSENT if cost.basis is None else f"{cost.parallel_groups} {cost.basis}",
            f"{cost.partial_share:.1%}",
        )
        for tag, cost in costs.items()
    )
    return Table(columns, rows, 1)
