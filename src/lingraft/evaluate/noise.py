"""The noise floor of generated scores: how far they move when nothing changes but the company of each request.

Greedy answers depend, in the last bits, on what stands beside them in a batch, and one token that tips changes all that
follow. Drawn answers depend on their draws. A difference between two models within this range may be this alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import stdev

from lingraft.evaluate.predictions import Ability, Prediction
from lingraft.evaluate.results import NoiseFloor, ScoreRange
from lingraft.intervals.macro_mean import macro_mean


def noise_floor(rounds: Sequence[Sequence[Prediction]]) -> NoiseFloor:
    """Return what repeating changed.

    Args:
        rounds: Two or more. The first holds every item, the others those of the generating tasks again; what is only
            in the first stays as it is.
    """
    whole = []
    for later in rounds:
        repeated = {one.key: one for one in later}
        whole.append([repeated.get(one.key, one) for one in rounds[0]])

    def of_ability(ability: Ability) -> ScoreRange | None:
        own = [[one for one in predictions if one.ability == ability] for predictions in whole]
        return _range(own) if own[0] else None

    return NoiseFloor(
        repeats=len(rounds),
        task_ability=of_ability("task_ability"),
        language_ability=of_ability("language_ability"),
        further_languages=of_ability("further_languages"),
        tasks={
            name: _range([[one for one in own if one.label == name] for own in rounds])
            for name in dict.fromkeys(one.label for one in rounds[1])
        },
    )


def _range(rounds: Sequence[Sequence[Prediction]]) -> ScoreRange:
    scores = tuple(macro_mean(own).value for own in rounds)
    by_item = zip(*([one.score for one in own] for own in rounds), strict=True)
    return ScoreRange(
        scores=scores,
        low=min(scores),
        high=max(scores),
        deviation=stdev(scores),
        changed=sum(len(set(values)) > 1 for values in by_item),
    )
