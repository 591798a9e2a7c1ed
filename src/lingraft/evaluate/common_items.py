"""The items on which models can be compared: those that all of them were asked alike, and that all have a score of.

Two scores are paired only where the same was asked in the same way (`manifest`): prompt, expected answer, settings,
harness, precision. Items are found again by that, not by their place: a limit or a data set may have changed between.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Generic

from lingraft.evaluate.predictions import Item
from lingraft.evaluate.task_records import EvaluationSettings, TaskRecord, TaskSettings

_Key = tuple[str, str, str, str, int]
_ADVICE = {
    "chat_template": "ask both without one (`--no-chat`), or give both models the same",
    "precision": "give both the same `precision`",
    "engine": "let the same engine answer for both",
    "harness": "evaluate both with the same version of lm_eval",
    "judge": "let the same judge score both",
}


@dataclass(frozen=True)
class CommonItems(Generic[Item]):
    """Predictions of several models on the same items.

    Attributes:
        models: Each model's, in the order that they were given in; items are called as in the first.
        unpaired: Items that some of the models have a score of and others have not, by task and language; they are in
            none of `models`.
        refused: By task and language that the models were asked in different ways, what differs and what to do; none of
            its items is in `models`.
    """

    models: tuple[tuple[Item, ...], ...]
    unpaired: dict[str, int]
    refused: dict[str, str]


def common_items(
    models: Sequence[Sequence[Item]], tasks: Sequence[Mapping[str, TaskRecord]]
) -> CommonItems[Item]:
    """Leave out what not every model was asked, and asked alike: it must neither be compared nor cost the whole.

    Predictions of earlier versions do not say what was asked: their tasks are left as they are, and are compared only
    where all models hold the same items. Of judged ones, what some have no verdict on is left out all the same.

    Args:
        models: Predictions of each model.
        tasks: What each model's evaluation recorded of its tasks, by task and language (`Evaluated.tasks`).
    """
    is_judged = {name for own in tasks for name, one in own.items() if one.judged is not None}
    unknown = {one.label for own in models for one in own if not one.asked} - is_judged
    keyed = [_keyed([one for one in own if one.label not in unknown]) for own in models]
    by_key = [{key: one for one, key in own.items()} for own in keyed]
    first = by_key[0]
    shared = set(first).intersection(*by_key[1:])
    names = sorted({one.label for own in models for one in own})
    refused: dict[str, str] = {}
    for name in names:
        settings = [own[name].settings for own in tasks if name in own]
        differing: dict[str, None] = {}
        for other in settings[1:]:
            differing |= _unequal(settings[0].evaluation, other.evaluation)
            for part in settings[0].parts.keys() & other.parts.keys():
                differing |= _unequal(settings[0].parts[part], other.parts[part])
        if differing:
            advice = [_ADVICE[key] for key in differing if key in _ADVICE]
            what = ", ".join(key.replace("_", " ") for key in differing)
            refused[name] = (
                f"{name}: not compared, because the models were not asked alike (other {what}); "
                f"{'; '.join(advice) or 'evaluate both again with the same options'}."
            )
    kept = tuple(
        tuple(
            replace(one, item=first[own[one]].item, cluster=first[own[one]].cluster) if one in own else one
            for one in whole
            if one.label not in refused and (one.label in unknown or own[one] in shared)
        )
        for whole, own in zip(models, keyed, strict=True)
    )
    lost = {key: one.label for own in by_key for key, one in own.items() if key not in shared}
    counts = Counter(name for name in lost.values() if name not in refused)
    return CommonItems(kept, dict(sorted(counts.items())), refused)


def _keyed(predictions: Sequence[Item]) -> dict[Item, _Key]:
    """Return the key of each prediction: what was asked; of items that ask the same, with their number among these."""
    seen: Counter[tuple[str, str, str, str]] = Counter()
    found: dict[Item, _Key] = {}
    for one in predictions:
        asked = one.asked or one.item  # files of earlier versions do not say
        key: tuple[str, str, str, str] = (one.ability, one.task, one.language, asked)
        found[one] = (*key, seen[key])
        seen[key] += 1
    return found


def _unequal(
    first: EvaluationSettings | TaskSettings, second: EvaluationSettings | TaskSettings
) -> dict[str, None]:
    names = [field.name for field in fields(first)]
    return {name: None for name in names if getattr(first, name) != getattr(second, name)}


def unpaired_sentence(task: str, count: int, *, judged: bool) -> str:
    """Return what is reported of a task, by its name and language, of which not all models have the same items."""
    what = "have a verdict for" if judged else "were asked alike of"
    return f"{task}: {count} items {what} some of the models only; the comparison leaves them out."
