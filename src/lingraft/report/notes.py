"""What stands in words beside the tables of a study."""

from __future__ import annotations

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
    """Return of which abilities and tasks all scores are equal, so that they cannot tell models apart."""
    found: dict[tuple[float, str], list[str]] = {}  # by the score, and the models of which it is that
    differences = [cell.difference for cell in result.done]
    named = list(dict.fromkeys(name for own in differences for name in _named(own)))
    for name in named:
        scores: dict[float, list[str]] = {}
        for cell in result.done:
            one = _named(cell.difference).get(name)
            if one is not None and one.all_scores is not None:
                scores.setdefault(one.all_scores, []).append(_title(cell, result))
        for score, cells in scores.items():
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
    for cell in result.done:
        if cell.retention.reason is not None:
            found.setdefault(cell.retention.reason, []).append(_title(cell, result))
    return [
        f"Retention is missing where {reason}: "
        f"{', '.join(cells) if len(cells) < max(2, len(result.done)) else 'all cells'}."
        for reason, cells in found.items()
    ]


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
        if known:
            found.append(f"{measure.title} is missing where {'; and where '.join(known)}.")
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
