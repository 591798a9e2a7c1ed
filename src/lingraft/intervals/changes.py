"""What a paired difference says: it changed, it did not within a margin, or nobody can tell from it.

Every sign, colour, word and JSON field that says whether a score changed or a limit was kept is decided here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

Answer = Literal["rose", "fell", "unchanged", "undecided", "seeds_disagree"]
"""Rose or fell: the interval excludes 0. Unchanged: it lies inside +- the margin. Undecided: neither."""

LimitAnswer = Literal["held", "broken", "undecided", "seeds_disagree"]
"""Held: the whole interval lies above -limit. Broken: the whole interval lies below it. Undecided: neither."""

DEFAULT_MARGIN = 0.01
"""One point of a hundred: the last digit in which scores are commonly reported."""


class Answered(Protocol):
    """A difference with the ends of its 95 % interval, where it has one, and what it says."""

    @property
    def low(self) -> float | None: ...  # noqa: D102
    @property
    def high(self) -> float | None: ...  # noqa: D102
    @property
    def answer(self) -> Answer: ...  # noqa: D102


@dataclass(frozen=True)
class Margins:
    """How large a change nobody minds, as differences of scores in (0, 1).

    Attributes:
        limits: What may be lost, by ability, BCP-47 tag, or task and language (`limits` of a study).
        default: Of all that no limit is stated for.
    """

    limits: Mapping[str, float] = field(default_factory=dict)
    default: float = DEFAULT_MARGIN

    def of(self, *names: str) -> float:
        """Return the limit of the first of `names` that has one, else the default."""
        return next((self.limits[name] for name in names if name in self.limits), self.default)


NO_LIMITS = Margins()


def answer(low: float, high: float, margin: float | None, all_scores: float | None = None) -> Answer:
    """Return what the interval of a paired difference says.

    Args:
        low: Lower end.
        high: Upper end.
        margin: A change up to it counts as none; None: no size does.
        all_scores: The score that both models have on every item: such items tell no models apart. None: they vary.
    """
    if low > 0:
        return "rose"
    if high < 0:
        return "fell"
    is_inside = margin is not None and -margin <= low and high <= margin
    return "unchanged" if is_inside and all_scores is None else "undecided"


def answer_over_seeds(pooled: Answer | None, seeds: Sequence[Answered]) -> Answer:
    """Return what the mean of several seeds' differences says.

    Seeds disagree where they say different things, and two of their intervals have no value in common or one says the
    opposite of the mean. Else the mean's own interval, over the items at these seeds, decides; it says unchanged only
    where no seed rose or fell.

    Args:
        pooled: What the interval of the mean says; None: it has none, and only what all seeds say counts.
        seeds: The differences of each seed.
    """
    said = {one.answer for one in seeds}
    ends = [(one.low, one.high) for one in seeds if one.low is not None and one.high is not None]
    are_apart = bool(ends) and max(low for low, _ in ends) > min(high for _, high in ends)
    if pooled is None:
        pooled = seeds[0].answer if len(said) == 1 else "undecided"
    if (len(said) > 1 and are_apart) or {"rose", "fell"} <= said | {pooled}:
        return "seeds_disagree"
    return "undecided" if pooled == "unchanged" and said & {"rose", "fell"} else pooled


def limit_answer(low: float, high: float, limit: float, all_scores: float | None = None) -> LimitAnswer:
    """Return whether no more was lost than `limit`; arguments as of `answer`.

    Where all scores of both models are 0 there was nothing to lose, so nothing is known.
    """
    if all_scores == 0:
        return "undecided"
    if low > -limit:
        return "held"
    return "broken" if high < -limit else "undecided"


def limit_answer_over_seeds(pooled: LimitAnswer, seeds: Sequence[LimitAnswer]) -> LimitAnswer:
    """Return whether the mean over seeds lost no more than the limit.

    They disagree where one says held and another one, or their mean, says broken.

    Args:
        pooled: What the interval of the mean says.
        seeds: What each seed's own interval says.
    """
    return "seeds_disagree" if {"held", "broken"} <= {pooled, *seeds} else pooled
