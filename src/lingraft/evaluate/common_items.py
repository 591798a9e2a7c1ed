"""The items on which models can be compared: of a judged task those that the judge gave every model a verdict on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lingraft.evaluate.predictions import Prediction


@dataclass(frozen=True)
class CommonItems:
    """Predictions of several models on the same items.

    Attributes:
        models: Each model's, in the order that they were given in.
        unpaired: Items that some of the models have a verdict on and others have not, by task and language; they are
            in none of `models`.
    """

    models: tuple[tuple[Prediction, ...], ...]
    unpaired: dict[str, int]


def common_items(
    models: Sequence[Sequence[Prediction]], tasks: Sequence[Mapping[str, Mapping[str, Any]]]
) -> CommonItems:
    """Leave out of judged tasks what not every model has: a lost verdict must not cost the whole comparison.

    Other tasks are left as they are: there, a missing item means that the models were asked different things.

    Args:
        models: Predictions of each model.
        tasks: What each model's evaluation recorded of its tasks, by task and language (`Evaluated.tasks`).
    """
    judged = {name for described in tasks for name, told in described.items() if "judged" in told}
    held = Counter(one.key for own in models for one in own if _name(one) in judged)
    lost = {key for key, count in held.items() if count < len(models)}
    kept = tuple(tuple(one for one in own if one.key not in lost) for own in models)
    names = {one.key: _name(one) for own in models for one in own if one.key in lost}
    return CommonItems(kept, dict(sorted(Counter(names.values()).items())))


def unpaired_sentence(task: str, count: int) -> str:
    """Return what is to be told of a judged task, by its name and language, whose models lack other verdicts."""
    return (
        f"{task}: {count} items have a verdict for some of the models only; the comparison leaves them out."
    )


def _name(prediction: Prediction) -> str:
    return f"{prediction.task}/{prediction.language}"
