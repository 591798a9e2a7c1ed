"""Predictions summed up: the scores of one model, and the paired differences of two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from lingraft.errors import EvaluationError
from lingraft.evaluate.predictions import Ability, Item, Prediction
from lingraft.evaluate.results import (
    AnswerCounts,
    BitsPerCharacter,
    Differences,
    LanguageScore,
    NoiseFloor,
    Scores,
    TaskDifference,
    TaskScore,
)
from lingraft.intervals.changes import DEFAULT_MARGIN, NO_LIMITS, Margins, answer_over_seeds
from lingraft.intervals.macro_mean import (
    Difference,
    Interval,
    Ratio,
    difference_over_columns,
    macro_mean,
    mean_of_known,
    paired_difference,
    ratio_over_columns,
)
from lingraft.intervals.multiple_testing import Correction, compare_many
from lingraft.text.language_tags import ENGLISH

CORRECTION: Correction = "holm"


def score_summary(
    predictions: Sequence[Prediction],
    bits: Mapping[str, BitsPerCharacter],
    *,
    left_out: Sequence[str] = (),
    truncated: Mapping[str, int] | None = None,
    truncated_prompts: Mapping[str, int] | None = None,
    spelled_prompts: Mapping[str, int] | None = None,
    noise: NoiseFloor | None = None,
) -> Scores:
    """Return the scores of one model: per ability, per language and per task.

    Args:
        predictions: One per item.
        bits: Loss of its held-out answers, by language.
        left_out: As these four, see `Scores`.
        truncated: None: nothing was.
        truncated_prompts: None: none was.
        spelled_prompts: None: there are none.
        noise: What repeating changed.
    """

    def ability(name: Ability) -> Interval | None:
        own = _of(predictions, name)
        return macro_mean(own) if own else None

    languages = sorted({p.language for p in predictions} | set(bits))
    return Scores(
        task_ability=ability("task_ability"),
        language_ability=ability("language_ability"),
        further_languages=ability("further_languages"),
        per_language={tag: _language_score(tag, predictions, bits.get(tag)) for tag in languages},
        tasks=task_scores(predictions),
        left_out=tuple(left_out),
        truncated=dict(truncated or {}),
        truncated_prompts=dict(truncated_prompts or {}),
        spelled_prompts=dict(spelled_prompts or {}),
        noise=noise,
        wrong_language=_wrong_language(predictions),
        undetermined_language=_undetermined_language(predictions),
        answers=_answer_counts(predictions),
    )


def task_scores(predictions: Sequence[Prediction]) -> dict[str, TaskScore]:
    """Return the score of every task and language."""
    return {
        name: TaskScore(
            **asdict(macro_mean(own)),
            ability=own[0].ability,
            form=mean_of_known([p.form for p in own]),
            content=mean_of_known([p.content for p in own]),
            chrf=mean_of_known([p.chrf for p in own]),
            wrong_language=_wrong_language(own),
            undetermined_language=_undetermined_language(own),
            answers=_answer_counts(own),
        )
        for name, own in _by_task(predictions).items()
    }


def task_differences(
    before: Sequence[Prediction], after: Sequence[Prediction], *, margins: Margins = NO_LIMITS
) -> dict[str, TaskDifference]:
    """Return after - before on the same items, for every task and language.

    Args:
        before: Of the one model.
        after: Of the other.
        margins: How large a change nobody minds; of a task its own, else that of its ability.

    Raises:
        EvaluationError: A task stands on one side only, or the two do not hold the same items of one.
    """
    earlier, later = _by_task(before), _by_task(after)
    missing = [
        f"{', '.join(sorted(set(those) - set(own)))} {where}"
        for own, those, where in ((later, earlier, "before alone"), (earlier, later, "after alone"))
        if set(those) - set(own)
    ]
    if missing:
        raise EvaluationError(
            f"the two models were not asked the same tasks: {'; '.join(missing)}. Evaluate both on the same tasks."
        )
    pairs = {name: (own, later[name]) for name, own in earlier.items()}
    compared = compare_many(pairs, CORRECTION)
    return {
        name: TaskDifference(
            **asdict(paired_difference(own, others, margins.of(name, own[0].ability))),
            **asdict(compared[name]),
        )
        for name, (own, others) in pairs.items()
    }


def differences(
    before: Sequence[Prediction], after: Sequence[Prediction], *, margins: Margins = NO_LIMITS
) -> Differences:
    """Return after - before on the same items, per ability, language and task.

    Args:
        before: Of the one model.
        after: Of the other.
        margins: How large a change nobody minds; of a language its own, else that of its ability.

    Raises:
        EvaluationError: The two do not hold the same items.
    """

    def of_ability(name: Ability) -> Difference:
        return paired_difference(_of(before, name), _of(after, name), margins.of(name))

    further = any(_of(own, "further_languages") for own in (before, after))
    earlier, later = ([p for p in own if p.ability != "task_ability"] for own in (before, after))
    abilities = {p.language: p.ability for p in earlier}
    return Differences(
        task_ability=of_ability("task_ability"),
        language_ability=of_ability("language_ability"),
        further_languages=of_ability("further_languages") if further else None,
        per_language={
            tag: paired_difference(
                [p for p in earlier if p.language == tag],
                [p for p in later if p.language == tag],
                margins.of(tag, abilities[tag]),
            )
            for tag in sorted(abilities)
        },
        tasks=task_differences(before, after, margins=margins),
        correction=CORRECTION,
    )


def measured_by(predictions: Sequence[Item], name: str) -> list[Item]:
    """Return the predictions of an ability, of a language besides English (its tag), or of a task and language."""
    return [
        p
        for p in predictions
        if name in (p.ability, p.label) or (name == p.language and p.ability != "task_ability")
    ]


def difference_of(
    before: Sequence[Item], after: Sequence[Item], name: str, margin: float
) -> Difference | None:
    """Return after - before in what `measured_by` names; None: no item measures it.

    Raises:
        EvaluationError: The two do not hold the same items.
    """
    earlier, later = measured_by(before, name), measured_by(after, name)
    return paired_difference(earlier, later, margin) if earlier or later else None


def difference_over_seeds(
    pairs: Sequence[tuple[Sequence[Item], Sequence[Item]]],
    name: str,
    margin: float = DEFAULT_MARGIN,
) -> Difference:
    """Return the mean over seeds of after - before in what `measured_by` names.

    Every seed has its own two models; all are asked the same items, which are drawn alike for all seeds. The interval
    covers the choice of items at these seeds, not the choice of seeds; the answer says where they disagree.

    Raises:
        EvaluationError: The models of a seed do not hold the same items.
    """
    own = [(measured_by(before, name), measured_by(after, name)) for before, after in pairs]
    pooled = difference_over_columns(own, margin)
    seeds = [paired_difference(before, after, margin) for before, after in own]
    return replace(pooled, answer=answer_over_seeds(pooled.answer, seeds))


def retention(pairs: Sequence[tuple[Sequence[Prediction], Sequence[Prediction]]]) -> Ratio:
    """Return task ability after / before on the same items; of several seeds the means over them, divided.

    Raises:
        EvaluationError: The models of a seed do not hold the same items, or no task measures it.
    """
    return ratio_over_columns(
        [(_of(before, "task_ability"), _of(after, "task_ability")) for before, after in pairs]
    )


def _of(predictions: Sequence[Prediction], ability: Ability) -> list[Prediction]:
    return [p for p in predictions if p.ability == ability]


def _by_task(predictions: Sequence[Prediction]) -> dict[str, list[Prediction]]:
    found: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        found.setdefault(prediction.label, []).append(prediction)
    return found


def _language_score(
    tag: str, predictions: Sequence[Prediction], held_out: BitsPerCharacter | None
) -> LanguageScore:
    own = [p for p in predictions if p.language == tag and (p.ability == "task_ability") == (tag == ENGLISH)]
    score = macro_mean(own) if own else None
    return LanguageScore(
        value=None if score is None else score.value,
        low=None if score is None else score.low,
        high=None if score is None else score.high,
        n=0 if score is None else score.n,
        held_out=held_out,
        wrong_language=_wrong_language(own),
        undetermined_language=_undetermined_language(own),
        answers=_answer_counts(own),
    )


def _wrong_language(predictions: Sequence[Prediction]) -> float | None:
    return mean_of_known([p.wrong_language for p in predictions])


def _undetermined_language(predictions: Sequence[Prediction]) -> int:
    return sum(p.language_judged and p.wrong_language is None for p in predictions)


def _answer_counts(predictions: Sequence[Prediction]) -> AnswerCounts | None:
    generated = [p for p in predictions if p.truncated is not None]
    if not generated:
        return None
    return AnswerCounts(
        n=len(generated),
        empty=sum(bool(p.empty) for p in generated),
        looping=sum(bool(p.looping) for p in generated),
        truncated=sum(bool(p.truncated) for p in generated),
    )
