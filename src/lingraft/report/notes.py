"""What stands in words beside the tables of a study."""

from __future__ import annotations

from collections.abc import Sequence

from lingraft.evaluate.results import NoiseFloor
from lingraft.report.tables import Model, measures_of, models_of
from lingraft.study.result import FailedCell, StudyResult


def failures(result: StudyResult) -> list[str]:
    """Return what failed, each with its reason: the base model's evaluation, then cells."""
    base = [] if result.base_reason is None else [f"base model: {result.base_reason}"]
    cells = (cell for cell in result.cells if isinstance(cell, FailedCell))
    return base + [f"{cell.data} / {cell.strategy} / seed {cell.seed}: {cell.reason}" for cell in cells]


def notes(result: StudyResult) -> list[str]:
    """Return what stands below a study's table: what it could find, what is missing, precision and noise."""
    found = [effect_note(result), *missing_notes(result), precision_note(result)]
    noise = [model.scores.noise for model in models_of(result) if model.scores.noise is not None]
    return [*found, noise_sentence(noise)] if noise else found


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
        *(f"{task}: {count} items" for task, count in cell.unpaired.items()),
        *cell.not_paired.values(),
        *(f"Base model: {problem}" for problem in (() if matrix is None else matrix.not_paired.values())),
    ]
