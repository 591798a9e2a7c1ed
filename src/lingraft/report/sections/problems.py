"""What went wrong: what failed, and what was dropped, truncated or is missing; each thing is counted once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from lingraft.data.chat import handled_sentences
from lingraft.errors import ConfigError
from lingraft.report.contents import Block, Lines, PlacedTable, Section
from lingraft.report.notes import (
    comparison_notes,
    gathered,
    holds_for,
    missing_notes,
    model_notes,
    summed_up,
    unused_notes,
)
from lingraft.report.runs import Report, Run
from lingraft.report.tables import ABSENT, Column, Entry, Table, models_of, unused_table
from lingraft.stage_record import RECORD
from lingraft.study.event_log import log_of
from lingraft.study.failures import FailedAttempt, failed_attempts
from lingraft.study.made import without_secrets
from lingraft.study.result import DataCounts, FailedCell, TrainingCounts
from lingraft.study.unused import read_plan


def section(report: Report) -> Section | None:
    """Return all that failed, was left out or is missing; None: nothing is."""
    result = report.result
    blocks: list[Block] = []
    failed = _failed(report)
    if failed:
        blocks.append(Lines("What failed", failed, "problems"))
    attempts = tuple(_attempts(report))
    if attempts:
        blocks.append(Lines("Attempts at stages that failed, and their logs", attempts, is_folded=True))
    counted = _table(report)
    if counted is not None:
        caption = (
            "The largest share first. Rows of a data set and examples of a training count once, however many cells "
            "share them; answers count once for each model. Of some of these nothing is wrong: filters do what the "
            "study asks, and short answers have no clear language."
        )
        blocks.append(PlacedTable("left-out", "What was dropped, truncated or left out", caption, counted))
    missing = tuple(missing_notes(result))
    if missing:
        blocks.append(Lines("What is missing", missing))
    left_out = tuple(summed_up(comparison_notes(result), result))
    if left_out:
        blocks.append(Lines("What the comparisons leave out", left_out))
    models = len({model.title(with_seed=True) for model in models_of(result)})
    noted = model_notes(result) | comparison_notes(result)
    if noted:
        lines = tuple(f"{holds_for(names, models)}: {note}" for note, names in noted.items())
        blocks.append(Lines("Model by model", lines, is_folded=True))
    for number, run in enumerate(report.runs):
        unused = unused_table(run.result)
        if unused is not None:
            several = f": {run.name}" if len(report.runs) > 1 else ""
            name = f"unused-{number + 1}" if several else "unused"
            caption = " ".join(unused_notes(run.result))
            title = f"What else lies in the run folder{several}"
            blocks.append(PlacedTable(name, title, caption, unused, is_folded=True))
    return Section("problems", "What went wrong", tuple(blocks)) if blocks else None


def _failed(report: Report) -> tuple[str, ...]:
    """Return each reason once with the cells that failed by it, the reason of most cells first."""
    result = report.result
    by_cell = {
        f"{cell.data} / {cell.strategy} / seed {cell.seed}": [without_secrets(cell.reason)]
        for cell in result.cells
        if isinstance(cell, FailedCell)
    }
    grouped = sorted(gathered(by_cell).items(), key=lambda one: -len(one[1]))
    base = [] if result.base_reason is None else [f"base model: {without_secrets(result.base_reason)}"]
    return (
        *base,
        *(
            f"{cells[0]}: {reason}"
            if len(cells) == 1
            else f"{len(cells)} cells ({', '.join(cells)}): {reason}"
            for reason, cells in grouped
        ),
    )


def _attempts(report: Report) -> Iterator[str]:
    """Return the last failed attempt at each stage that was made again or left a log, and where that lies."""
    for run in report.runs:
        last: dict[str, list[FailedAttempt]] = {}
        for attempt in failed_attempts(run.folder):
            last.setdefault(attempt.stage, []).append(attempt)
        try:
            names = {folder: one.name for folder, one in read_plan(run.folder).stages.items()}
        except (ConfigError, OSError):
            names = {}
        several = f"{run.name}: " if len(report.runs) > 1 else ""
        for stage, attempts in last.items():
            kind, one = stage.partition("-")[0], attempts[-1]
            count = f"{len(attempts)} attempts" if len(attempts) > 1 else "1 attempt"
            where = f" on {one.where}" if one.where else ""
            made = "; made since" if (run.folder / "stages" / stage / RECORD).is_file() else ""
            log = log_of(run.folder, stage)
            if log is None and len(attempts) == 1:  # what failed by it says all
                continue
            lies = (
                "" if log is None else f" (log: {log.relative_to(run.folder).as_posix()} in the run folder)"
            )
            name = f"{kind} {names[stage]}" if stage in names else stage
            yield f"{several}{name}: {count}, the last{where}: {without_secrets(one.reason)}{made}{lies}"


@dataclass
class _Counted:
    """One kind of thing that was left out.

    Attributes:
        of: What it is counted of.
        places: By data set, training or model: how many, of how many.
        example: The first of them, as it was recorded; empty: none was.
    """

    of: str
    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    example: str = ""

    @property
    def count(self) -> int:
        return sum(count for count, _ in self.places.values())

    @property
    def whole(self) -> int:
        return sum(whole for _, whole in self.places.values())


def _table(report: Report) -> Table | None:
    """Return what was left out, kind by kind; None: nothing was."""
    found: dict[str, _Counted] = {}
    for run in report.runs:
        for what, of, where, count, whole, example in _counts(run):
            own = found.setdefault(what, _Counted(of))
            place = f"{run.name}: {where}" if len(report.runs) > 1 else where
            own.places[place] = max(own.places.get(place, (0, 0)), (count, whole))
            own.example = own.example or (example if count else "")
    rows = []
    for what, one in found.items():
        if not one.count:
            continue
        share = one.count / one.whole if one.whole else None
        most = max(one.places, key=lambda place: one.places[place][0])
        count, whole = one.places[most]
        touched = sum(count > 0 for count, _ in one.places.values())
        rows.append(
            (
                what,
                Entry(f"{one.count:,}", one.count),
                Entry(f"{one.whole:,} {one.of}", one.whole) if one.whole else ABSENT,
                ABSENT if share is None else Entry(f"{share:.1%}", 100 * share),
                f"{most}: {count:,} of {whole:,}" if whole else f"{most}: {count:,}",
                Entry(f"{touched} of {len(one.places)}", touched),
                one.example or ABSENT,
            )
        )
    rows.sort(key=lambda row: -(getattr(row[3], "value", None) or 0.0))
    columns = (
        Column("what", "what was dropped, truncated or left out"),
        Column("how many", "all of them together"),
        Column("of", "what they are counted of"),
        Column("share", "how many of all"),
        Column("most in", "the data set, training or model that has most of them"),
        Column("places", "data sets, trainings or models that have any", is_detail=True),
        Column("such as", "the first of them", is_detail=True),
    )
    return Table(columns, tuple(rows), 1) if rows else None


_Count = tuple[str, str, str, int, int, str]  # what, of what, where, how many, of how many, an example


def _counts(run: Run) -> Iterator[_Count]:
    """Yield every count of a run; what several cells share comes once for each, with the same place."""
    for cell in run.result.done:
        path = ""
        for phase in cell.phases:
            path += f"{' > ' if path else ''}{phase.data} / {phase.strategy}"
            own = phase.training
            for data in own.data:
                yield from _of_data(data, f"{phase.phase}, {without_secrets(data.source)}")
            yield from _of_training(own, f"{path}, seed {cell.seed}")
    for model in models_of(run.result):
        scores, place = model.scores, model.title(with_seed=run.result.has_seeds)
        items = sum(task.n for task in scores.tasks.values())
        left_out = len(scores.left_out)
        yield (
            "items that could not be scored",
            "items",
            place,
            left_out,
            items + left_out,
            "",  # stands below, with the models
        )
        for what, by_task in (
            ("prompts that did not fit, and lost their beginning", scores.truncated_prompts),
            ("items that spell control tokens, which are read as text", scores.spelled_prompts),
        ):
            yield (what, "items", place, sum(by_task.values()), items, _most(by_task))
        if scores.answers is not None:
            answers, by_task = scores.answers, scores.truncated
            clear = answers.n - scores.undetermined_language
            wrong = round((scores.wrong_language or 0.0) * clear)
            yield (
                "answers in another language than requested",
                "answers of a clear language",
                place,
                wrong,
                clear,
                "",
            )
            yield (
                "answers without a clear language",
                "answers",
                place,
                scores.undetermined_language,
                answers.n,
                "",
            )
            yield (
                "answers that used all their tokens",
                "answers",
                place,
                answers.truncated,
                answers.n,
                _most(by_task),
            )
            yield (
                "answers that say the same again and again",
                "answers",
                place,
                answers.looping,
                answers.n,
                "",
            )
            yield ("empty answers", "answers", place, answers.empty, answers.n, "")
        if model.cell is not None:
            yield (
                "items that only one of two compared models has a score of",
                "items",
                place,
                sum(model.cell.unpaired.values()),
                items,
                _most(model.cell.unpaired),
            )


def _of_data(data: DataCounts, place: str) -> Iterator[_Count]:
    rows = data.rows
    yield ("rows that could not be read", "rows", place, data.broken, rows, "".join(data.first_broken[:1]))
    for name, count in data.filtered.items():
        yield (f"rows that the filter {name} left out", "rows", place, count, rows, "")
    yield (
        "rows in groups without one of the languages",
        "rows",
        place,
        data.incomplete_groups or 0,
        rows,
        "",
    )
    yield ("rows that another set of the study holds out", "rows", place, data.withheld, rows, "")
    asked = data.train + data.shortfall
    yield ("rows fewer than `limit` asks for", "rows asked for", place, data.shortfall, asked, "")
    unread = max(data.unknown_keys.values(), default=0)
    yield ("rows with keys that nothing reads", "rows", place, unread, rows, ", ".join(data.unknown_keys))


def _of_training(own: TrainingCounts, place: str) -> Iterator[_Count]:
    whole = own.examples + own.dropped
    yield ("examples cut to `max_length`", "examples", place, own.truncated, whole, "")
    what = "examples that the chat template refuses, or whose answer was cut off"
    yield (what, "examples", place, own.dropped, whole, "".join(own.first_dropped[:1]))
    for count, sentence in handled_sentences(own.handled):
        yield (sentence, "examples", place, count, whole, "")
    for reason, count in own.replay_dropped.items():
        yield (f"replayed rows left out: {reason}", "replayed rows", place, count, own.replayed + count, "")
    wanted = own.replayed + own.replay_shortfall
    yield (
        "replayed rows fewer than the strategy asks for",
        "replayed rows",
        place,
        own.replay_shortfall,
        wanted,
        "",
    )


def _most(by_task: dict[str, int]) -> str:
    """Return the task with most of them; empty: none has any."""
    return next((f"{task}: {count}" for task, count in Counter(by_task).most_common(1) if count), "")
