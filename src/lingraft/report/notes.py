"""What stands in words beside the tables of a study."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from lingraft.evaluate.results import Differences, NoiseFloor
from lingraft.evaluate.running import shortfalls
from lingraft.intervals.macro_mean import Difference
from lingraft.report.signs import legend
from lingraft.report.tables import Model, checkpoint_table, measures_of, models_of
from lingraft.study.limits import limit_sentence
from lingraft.study.result import CellResult, FailedCell, PendingCell, StudyResult
from lingraft.study.unused import size_text

_EXAMPLE = ", such as "
_NUMBER = re.compile(r"(?<![\w./-])\d+(?:,\d{3})*(?:\.\d+)?(?![\w/-])")  # none that is part of a name
_NAMED = 3  # cells named in a sentence; the page has all


def failures(result: StudyResult) -> list[str]:
    """Return what failed, each with its reason: the base model's evaluation, then cells."""
    base = [] if result.base_reason is None else [f"base model: {result.base_reason}"]
    cells = (cell for cell in result.cells if isinstance(cell, FailedCell))
    return base + [f"{cell.data} / {cell.strategy} / seed {cell.seed}: {cell.reason}" for cell in cells]


def notes(result: StudyResult) -> list[str]:
    """Return what stands below a study's table: what it could find, what is missing, precision and noise."""
    found = [
        *sign_notes(result),
        effect_note(result),
        *equal_score_notes(result),
        *retention_notes(result),
        *limit_notes(result),
        *missing_notes(result),
        precision_note(result),
    ]
    noise = [model.scores.noise for model in models_of(result) if model.scores.noise is not None]
    return [*pending_notes(result), *found, *([noise_sentence(noise)] if noise else [])]


def pending_notes(result: StudyResult) -> list[str]:
    """Return which cells are not made yet."""
    waiting = [cell for cell in result.cells if isinstance(cell, PendingCell)]
    if not waiting:
        return []
    names = _first([f"{cell.data} / {cell.strategy} / seed {cell.seed}" for cell in waiting])
    return [f"{len(waiting)} of {len(result.cells)} cells are pending: {names}. The same command goes on."]


def unused_notes(result: StudyResult) -> list[str]:
    """Return what else lies in the run folder."""
    if not result.unused:
        return []
    size = size_text(sum(one.bytes for one in result.unused))
    names = _first(list(dict.fromkeys(one.name or one.path for one in result.unused)))
    return [
        f"{result.run} also holds {len(result.unused)} stages ({size}) that the study file does not list: {names}. "
        f"`lingraft clean {result.run}` shows and removes them."
    ]


def model_notes(result: StudyResult) -> dict[str, list[str]]:
    """Return what of the evaluation was left out or truncated, each note with the names of its models."""
    return gathered({model.title(with_seed=True): shortfalls(model.scores) for model in models_of(result)})


def comparison_notes(result: StudyResult) -> dict[str, list[str]]:
    """Return what the comparisons of cells leave out, each note with the names of its cells."""
    return gathered({model.title(with_seed=True): unpaired_lines(model) for model in models_of(result)})


def gathered(lines: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return each line once, with the names that it holds for."""
    found: dict[str, list[str]] = {}
    for name, own in lines.items():
        for line in own:
            found.setdefault(line, []).append(name)
    return found


def holds_for(names: Sequence[str], models: int) -> str:
    """Return whom a note holds for, of so many models."""
    return "All models" if len(names) == models > 1 else ", ".join(names)


def summed_up(notes: Mapping[str, Sequence[str]], result: StudyResult) -> list[str]:
    """Return notes that say the same of several tasks or with other numbers as one, with the range of the numbers.

    Args:
        notes: Each with the names of the models that it holds for.
        result: Of the study.
    """
    models = models_of(result)
    tasks = {name for model in models for name in model.scores.tasks}
    titles = {model.title(with_seed=True) for model in models}
    by_length = sorted(tasks, key=len, reverse=True)
    task = re.compile("|".join(rf"(?<!\S){re.escape(one)}(?=[:.,]?(?:\s|$))" for one in by_length) or "(?!)")
    kinds: dict[str, list[tuple[str, Sequence[str]]]] = {}
    for note, names in notes.items():
        said = note.partition(_EXAMPLE)[0]
        kinds.setdefault(_NUMBER.sub("0", task.sub("\0", said)), []).append((note, names))
    found = []
    for own in kinds.values():
        whom = list(dict.fromkeys(name for _, names in own for name in names))
        who = "All models" if len(whom) == len(titles) > 1 else _first(whom)
        if len(own) == 1:
            found.append(f"{who}: {own[0][0]}")
            continue
        named = list(
            dict.fromkeys(one for note, _ in own for one in task.findall(note.partition(_EXAMPLE)[0]))
        )
        _, such_as, example = own[0][0].partition(_EXAMPLE)
        text = _with_ranges([task.sub("\0", note.partition(_EXAMPLE)[0]) for note, _ in own])
        text = text.replace("\0", _first(named))
        found.append(f"{who}: {text}{such_as}{example}")
    return found


def _range(numbers: Sequence[str]) -> str:
    """Return the lowest and the highest of numbers as they are written."""
    ordered = sorted(set(numbers), key=lambda one: float(one.replace(",", "")))
    return ordered[0] if len(ordered) == 1 else f"{ordered[0]} to {ordered[-1]}"


def checkpoint_lines(result: StudyResult) -> list[str]:
    """Return where the models of a study lie, one a line, from the working directory."""
    table = checkpoint_table(result)
    if table is None:
        return []
    kept = {model.checkpoint for model in models_of(result)}
    width = max(len(name) for name, _ in table.rows)
    places = ((name, str(Path(result.run) / place) if place in kept else place) for name, place in table.rows)
    return ["Checkpoints:", *(f"  {name:<{width}}  {place}" for name, place in places)]


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def sign_notes(result: StudyResult) -> list[str]:
    """Return what the signs of the study's table mean."""
    margins = {cell.difference.task_ability.margin for cell in result.done}
    return [legend("Task ability against Phase 1", one, has_seeds=result.has_seeds) for one in margins]


def equal_score_notes(result: StudyResult) -> list[str]:
    """Return of which abilities and tasks all scores are equal, so that they cannot tell models apart; many as one."""
    lines = equal_score_lines(result)
    if len(lines) <= _NAMED:
        return lines
    equal = [
        {name for name, one in _named(cell.difference).items() if _is_equal(one)} for cell in result.done
    ]
    counts = Counter(name for own in equal for name in own)
    tasks = [f"{name} in {count} cells" for name, count in counts.most_common()]
    return [
        f"All scores of a cell and of Phase 1 are equal in some tasks of {sum(map(bool, equal))} of {len(equal)} "
        f"cells, which cannot tell the two apart: {_first(tasks)}."
    ]


def _is_equal(one: Difference) -> bool:
    return one.all_scores is not None


def equal_score_lines(result: StudyResult) -> list[str]:
    """Return the same of each group of cells."""
    found: dict[tuple[float, str], list[str]] = {}  # by the score, and the models of which it is that
    named = list(dict.fromkeys(name for cell in result.done for name in _named(cell.difference)))
    scores: dict[str, dict[float, list[str]]] = {name: {} for name in named}
    for cell in result.done:
        for name, one in _named(cell.difference).items():
            if one.all_scores is not None:
                scores[name].setdefault(one.all_scores, []).append(_title(cell, result))
    for name, own in scores.items():
        for score, cells in own.items():
            models = "these models" if len(cells) == len(result.done) else f"{', '.join(cells)} and Phase 1"
            found.setdefault((score, models), []).append(name)
    return [
        equal_scores_sentence([] if len(names) == len(named) else names, score, models)
        for (score, models), names in found.items()
    ]


def _named(own: Differences) -> dict[str, Difference]:
    """Return the differences of abilities and tasks by name."""
    abilities = {
        "task ability": own.task_ability,
        "language ability": own.language_ability,
        "further languages": own.further_languages,
    }
    return {name: one for name, one in abilities.items() if one is not None} | own.tasks


def equal_task_notes(scores: Mapping[str, float | None], models: str) -> list[str]:
    """Return of which tasks all scores are equal.

    Args:
        scores: By task and language, the score that every item has; None: they vary.
        models: What such a task cannot tell apart.
    """
    found: dict[float, list[str]] = {}
    for name, score in scores.items():
        if score is not None:
            found.setdefault(score, []).append(name)
    return [
        equal_scores_sentence([] if len(names) == len(scores) else names, score, models)
        for score, names in found.items()
    ]


def equal_scores_sentence(names: Sequence[str], score: float, models: str) -> str:
    """Return that tasks or abilities cannot tell models apart; no names: all of them."""
    where = f" in {', '.join(names)}" if names else ""
    subject = "this" if len(names) == 1 else "these tasks"
    return f"All scores are {score:g}{where}: {subject} cannot tell {models} apart."


def retention_notes(result: StudyResult) -> list[str]:
    """Return of which cells there is no retention, and why."""
    found: dict[str, list[str]] = {}
    reasons: dict[str, list[str]] = {}
    for cell in result.done:
        reason = cell.retention.reason
        if reason is not None:
            kind = _NUMBER.sub("0", reason)
            found.setdefault(kind, []).append(_title(cell, result))
            reasons.setdefault(kind, []).append(reason)
    return [
        f"Retention is missing where {_with_ranges(reasons[kind])}: "
        f"{_first(cells) if len(cells) < max(2, len(result.done)) else 'all cells'}."
        for kind, cells in found.items()
    ]


def _with_ranges(lines: Sequence[str]) -> str:
    """Return lines that differ in their numbers as one."""
    ranges = iter([_range(column) for column in zip(*map(_NUMBER.findall, lines), strict=True)])
    return _NUMBER.sub(lambda _: next(ranges), lines[0])


def limit_notes(result: StudyResult) -> list[str]:
    """Return what the words of the limits' columns mean, and how many items could decide them."""
    if not result.limits:
        return []
    meaning = (
        "Limits: held, no more was lost (the 95 % interval of the paired difference to Phase 1 lies above -limit); "
        "broken, more was (it lies below); undecided, these items do not show which"
    )
    seeds = (
        "; seeds disagree, one seed says the opposite of another or of the mean" if result.has_seeds else ""
    )
    return [f"{meaning}{seeds}.", *(limit_sentence(name, plan) for name, plan in result.limits.items())]


def _title(cell: CellResult, result: StudyResult) -> str:
    seed = f" / seed {cell.seed}" if result.has_seeds else ""
    return f"{cell.data} / {cell.strategy}{seed}"


def effect_note(result: StudyResult) -> str:
    """Return the minimum detectable effect of the study's comparisons with Phase 1, of the worst cell."""
    differences = [cell.difference for cell in result.done]
    if not differences:
        return "No cell is done, so nothing was compared."
    task = [one.task_ability for one in differences]
    language = [one.language_ability for one in differences]
    parts = [
        f"{name} {max(one.minimum_detectable_effect for one in own):.3f} ({own[0].n} items)"
        for name, own in (("task ability", task), ("language ability", language))
    ]
    return f"Minimum detectable effect against Phase 1 (80 % power): {', '.join(parts)}."


def missing_notes(result: StudyResult) -> list[str]:
    """Return, of each measure that could not be taken of some cells, why."""
    found = []
    for name, measure in measures_of(result).items():
        reasons = dict.fromkeys(phase.measures[name].reason for cell in result.done for phase in cell.phases)
        known = [reason for reason in reasons if reason is not None]
        kinds: dict[str, list[str]] = {}
        for reason in known:
            kinds.setdefault(_NUMBER.sub("0", reason), []).append(reason)
        if known:
            said = "; and where ".join(map(_with_ranges, kinds.values()))
            found.append(f"{measure.title} is missing where {said}.")
    return found


def precision_note(result: StudyResult) -> str:
    """Return in which types, and on what, models were trained and evaluated."""
    used = result.precision
    trained = f"Trained in {' and '.join(used.training)}, evaluated" if used.training else "Evaluated"
    return f"{trained} in {used.evaluation} on {used.device}."


def noise_sentence(found: Sequence[NoiseFloor]) -> str:
    """Return how far the scores of one or more models moved, by the one that moved most."""
    parts = []
    for name, ranges in (
        ("task ability", [one.task_ability for one in found]),
        ("language ability", [one.language_ability for one in found]),
    ):
        known = [one for one in ranges if one is not None]
        if known:
            widest = max(known, key=lambda one: one.high - one.low)
            parts.append(
                f"{name} by up to {widest.high - widest.low:.3f} (standard deviation {widest.deviation:.3f})"
            )
    times = found[0].repeats
    return f"Noise floor: generated {times} times, each in other batches, scores moved: {', '.join(parts)}."


def unpaired_lines(model: Model) -> list[str]:
    """Return what a cell's comparisons leave out, and why."""
    cell = model.cell
    if cell is None:
        return []
    matrix = cell.forgetting.ability
    return [
        *(f"left out of the comparison: {count} items of {task}." for task, count in cell.unpaired.items()),
        *cell.not_paired.values(),
        *(f"base model: {problem}" for problem in (() if matrix is None else matrix.not_paired.values())),
    ]
