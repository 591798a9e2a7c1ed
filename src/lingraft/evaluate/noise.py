"""The noise floor of generated scores: how far they move when nothing changes but the company of each request.

Greedy answers depend, in the last bits, on what stands beside them in a batch, and one token that tips changes all that
follow. Drawn answers depend on their draws. A difference between two models within this range is no difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import stdev
from typing import Any

from lingraft.evaluate.predictions import Prediction
from lingraft.intervals.macro_mean import macro_mean


def noise_floor(rounds: Sequence[Sequence[Prediction]]) -> dict[str, Any]:
    """Return what repeating changed, as JSON: per ability and per task.

    Args:
        rounds: Two or more. The first holds every item, the others those of the generating tasks again; what is only
            in the first stays as it is.

    Returns:
        `repeats`, and for `task_ability`, `language_ability`, `further_languages` (null where the ability has no item)
        and each of `tasks`
        that generate: the `scores` of the rounds, their `low` and `high`, their standard `deviation` (over rounds, n -
        1), and `changed`, the number of items whose score was not the same in all rounds.
    """
    whole = [_with_others(rounds[0], later) for later in rounds]
    tasks = dict.fromkeys(_name(one) for one in rounds[1])
    return {
        "repeats": len(rounds),
        **{
            ability: _spread([[one for one in own if one.ability == ability] for own in whole])
            for ability in ("task_ability", "language_ability", "further_languages")
        },
        "tasks": {
            name: _spread([[one for one in own if _name(one) == name] for own in rounds]) for name in tasks
        },
    }


def _with_others(first: Sequence[Prediction], later: Sequence[Prediction]) -> list[Prediction]:
    repeated = {one.key: one for one in later}
    return [repeated.get(one.key, one) for one in first]


def _name(prediction: Prediction) -> str:
    return f"{prediction.task}/{prediction.language}"


def _spread(rounds: Sequence[Sequence[Prediction]]) -> dict[str, Any] | None:
    if not rounds[0]:
        return None
    scores = [macro_mean(own).value for own in rounds]
    by_item = zip(*([one.score for one in own] for own in rounds), strict=True)
    return {
        "scores": scores,
        "low": min(scores),
        "high": max(scores),
        "deviation": stdev(scores),
        "changed": sum(len(set(values)) > 1 for values in by_item),
    }
