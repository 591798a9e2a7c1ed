"""Predictions summed up: the scores of one model, and the paired differences of two."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lingraft.errors import EvaluationError
from lingraft.evaluate.predictions import Prediction
from lingraft.evaluate.results import BitsPerCharacter
from lingraft.intervals.macro_mean import difference_over_columns, macro_mean, paired_difference
from lingraft.intervals.multiple_testing import Correction, compare_many
from lingraft.text.language_tags import ENGLISH

CORRECTION: Correction = "holm"
ABILITIES = ("task_ability", "language_ability")
FURTHER = "further_languages"  # evaluated besides those trained; null where there are none


def score_summary(predictions: Sequence[Prediction], bits: Mapping[str, BitsPerCharacter]) -> dict[str, Any]:
    """Return the scores of one model as JSON: per ability, per language and per task, each with n and interval.

    `wrong_language` is the share of answers in another language than asked, among those that could be told; null
    where there are none. `answers` counts the generated ones (`n`) and what is wrong with them, one answer perhaps in
    several ways; null where nothing is generated. English stands in `per_language` with its task ability.
    """
    abilities = {ability: [p for p in predictions if p.ability == ability] for ability in ABILITIES}
    further = [p for p in predictions if p.ability == FURTHER]
    languages = sorted({p.language for p in predictions} | set(bits))
    return {
        **{ability: asdict(macro_mean(own)) for ability, own in abilities.items()},
        FURTHER: asdict(macro_mean(further)) if further else None,
        "per_language": {tag: _language(tag, predictions, bits.get(tag)) for tag in languages},
        **_wrong_language(predictions),
        "answers": _answers(predictions),
        "tasks": task_scores(predictions),
    }


def task_scores(predictions: Sequence[Prediction]) -> dict[str, dict[str, Any]]:
    """Return the score of every task and language as JSON, with n, interval, and wrong languages."""
    return {name: _task(own) for name, own in _by_task(predictions).items()}


def task_differences(before: Sequence[Prediction], after: Sequence[Prediction]) -> dict[str, dict[str, Any]]:
    """Return after - before on the same items, for every task and language, with intervals and p-values.

    `p_adjusted` is corrected for the number of tasks (`CORRECTION`).

    Raises:
        EvaluationError: A task stands on one side only, or the two do not hold the same items of one.
    """
    earlier, later = _by_task(before), _by_task(after)
    lacking = [
        f"{', '.join(sorted(set(those) - set(own)))} {where}"
        for own, those, where in ((later, earlier, "before alone"), (earlier, later, "after alone"))
        if set(those) - set(own)
    ]
    if lacking:
        raise EvaluationError(
            f"the two models were not asked the same tasks: {'; '.join(lacking)}. Evaluate both on the same tasks."
        )
    pairs = {name: (own, later[name]) for name, own in earlier.items()}
    compared = compare_many(pairs, CORRECTION)
    return {name: asdict(paired_difference(*pair)) | asdict(compared[name]) for name, pair in pairs.items()}


def differences(before: Sequence[Prediction], after: Sequence[Prediction]) -> dict[str, Any]:
    """Return after - before on the same items, per ability and per task, with intervals.

    Each task has beside it `p`, and `p_adjusted` for the number of tasks by `correction`.

    Raises:
        EvaluationError: The two do not hold the same items.
    """
    found: dict[str, Any] = {
        ability: asdict(
            paired_difference(
                [p for p in before if p.ability == ability], [p for p in after if p.ability == ability]
            )
        )
        for ability in ABILITIES
    }
    further = [[p for p in own if p.ability == FURTHER] for own in (before, after)]
    found[FURTHER] = asdict(paired_difference(*further)) if any(further) else None
    found["tasks"] = task_differences(before, after)
    found["correction"] = CORRECTION
    found["per_language"] = {
        tag: asdict(
            paired_difference(
                [p for p in before if p.ability != "task_ability" and p.language == tag],
                [p for p in after if p.ability != "task_ability" and p.language == tag],
            )
        )
        for tag in sorted({p.language for p in before if p.ability != "task_ability"})
    }
    return found


def differences_over_seeds(
    pairs: Sequence[tuple[Sequence[Prediction], Sequence[Prediction]]],
) -> dict[str, Any]:
    """Return the mean over seeds of after - before, per ability, with intervals.

    Every seed has its own two models; all are asked the same items, which are drawn alike for all seeds. The interval
    covers the choice of items at these seeds, not the choice of seeds.

    Raises:
        EvaluationError: The models of a seed do not hold the same items.
    """
    found = {}
    for ability in ABILITIES:
        columns = [
            ([p for p in before if p.ability == ability], [p for p in after if p.ability == ability])
            for before, after in pairs
        ]
        found[ability] = asdict(difference_over_columns(columns))
    return found


def _by_task(predictions: Sequence[Prediction]) -> dict[str, list[Prediction]]:
    found: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        found.setdefault(f"{prediction.task}/{prediction.language}", []).append(prediction)
    return found


def _language(tag: str, predictions: Sequence[Prediction], bits: BitsPerCharacter | None) -> dict[str, Any]:
    own = [p for p in predictions if p.language == tag and (p.ability == "task_ability") == (tag == ENGLISH)]
    scores: dict[str, Any] = (
        asdict(macro_mean(own)) if own else {"value": None, "low": None, "high": None, "n": 0}
    )
    scores["bits_per_character"] = None if bits is None else bits.value
    scores["held_out"] = None if bits is None else asdict(bits)
    return scores | _wrong_language(own) | {"answers": _answers(own)}


def _wrong_language(predictions: Sequence[Prediction]) -> dict[str, Any]:
    told = [p.wrong_language for p in predictions if p.wrong_language is not None]
    asked = [p for p in predictions if p.language_judged]
    return {
        "wrong_language": sum(told) / len(told) if told else None,
        "undetermined_language": len(asked) - len(told),
    }


def _answers(predictions: Sequence[Prediction]) -> dict[str, int] | None:
    generated = [p for p in predictions if p.truncated is not None]
    if not generated:
        return None
    return {
        "n": len(generated),
        "empty": sum(bool(p.empty) for p in generated),
        "looping": sum(bool(p.looping) for p in generated),
        "truncated": sum(bool(p.truncated) for p in generated),
    }


def _task(predictions: Sequence[Prediction]) -> dict[str, Any]:
    parts: dict[str, Callable[[Prediction], float | None]] = {
        "form": lambda p: p.form,
        "content": lambda p: p.content,
        "chrf": lambda p: p.chrf,
    }
    means = {}
    for name, part in parts.items():
        values = [value for value in map(part, predictions) if value is not None]
        means[name] = sum(values) / len(values) if values else None
    return {
        **asdict(macro_mean(predictions)),
        **means,
        **_wrong_language(predictions),
        "answers": _answers(predictions),
        "ability": predictions[0].ability,
    }
