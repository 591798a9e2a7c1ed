"""What a study may lose (`limits`): whether it did, and before training how many items could decide that."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lingraft.errors import ConfigError, did_you_mean
from lingraft.intervals.changes import LimitAnswer, limit_answer, limit_answer_over_seeds
from lingraft.intervals.clusters import ClusteredValues, Value
from lingraft.intervals.confidence_intervals import fewest_for_no_change
from lingraft.intervals.macro_mean import POWER_FACTOR, Difference

if TYPE_CHECKING:  # it brings torch, and who only reads results needs none
    from lingraft.study.stages.evaluate import Questions

ASSUMED_SHARE = 0.1
"""Share of the items whose score the last phase changes, rises and falls together. An assumption, stated with the plan:
what changes more needs more items; what did change is `n_differing` of a difference."""


@dataclass(frozen=True, kw_only=True)
class LimitPlan:
    """How many items could decide a limit.

    Attributes:
        limit: What may be lost of a score in [0, 1].
        needed: Independent items that show in 4 of 5 cases that a limit was kept where nothing is lost on average, if
            the assumed share of them changes by 1; at least as many as hold it where none changes.
        available: Independent items that are asked: clusters, fewer where they weigh unequally; None: not known.
        assumed_share: See `needed`.
    """

    limit: float
    needed: int
    available: int | None
    assumed_share: float


@dataclass(frozen=True, kw_only=True)
class LimitResult:
    """Whether a limit was kept.

    Attributes:
        limit: What may be lost.
        low: Lower end of the 95 % interval of the paired difference; None: the two models were not compared in it.
        high: Upper end.
        answer: Held: the interval lies above -limit; broken: below it; undecided: neither; over several seeds also that
            one seed says the opposite of another or of their mean.
    """

    limit: float
    low: float | None
    high: float | None
    answer: LimitAnswer


def plan_limits(limits: Mapping[str, float], asked: Questions) -> dict[str, LimitPlan]:
    """Return how many items could decide each limit.

    Raises:
        ConfigError: A limit is of no ability, language or task that is asked.
    """
    tasks = asked.manifest["tasks"]
    names: set[str] = set()
    for key in tasks if isinstance(tasks, Mapping) else ():
        ability, task, tag, _ = key.split("|", 3)
        names |= {ability, f"{task}/{tag}"} | ({tag} if ability != "task_ability" else set())
    unknown = [name for name in limits if name not in names]
    if unknown:
        raise ConfigError(
            "\n".join(
                f"limits: {name!r} is nothing that is evaluated. {did_you_mean(name, names)}"
                for name in unknown
            )
        )
    found = {}
    for name, limit in limits.items():
        own = [
            Value(one.task, one.language, one.cluster, 0.0)
            for one in asked.items
            if name in (one.ability, f"{one.task}/{one.language}")
            or (name == one.language and one.ability != "task_ability")
        ]
        found[name] = LimitPlan(
            limit=limit,
            needed=max(math.ceil(POWER_FACTOR**2 * ASSUMED_SHARE / limit**2), fewest_for_no_change(limit)),
            available=round(ClusteredValues([own]).clusters().effective) if own else None,
            assumed_share=ASSUMED_SHARE,
        )
    return found


def limit_sentence(name: str, plan: LimitPlan) -> str:
    """Return how many items could decide a limit, and what to expect of those that there are."""
    said = (
        f"limits: {name} may lose {plan.limit:g}: if {100 * plan.assumed_share:g} % of the items change, about "
        f"{plan.needed:,} independent ones show in 4 of 5 cases that no more was lost"
    )
    if plan.available is None:
        return f"{said}."
    if plan.available >= plan.needed:
        return f"{said}; {plan.available:,} are asked."
    fewest = fewest_for_no_change(plan.limit)
    if plan.available < fewest:
        return (
            f"{said}, and at least {fewest:,} if none changes at all; {plan.available:,} are asked, so it cannot be "
            "shown to hold. Ask more items, or state a wider limit."
        )
    within = POWER_FACTOR * math.sqrt(plan.assumed_share / plan.available)
    return (
        f"{said}; {plan.available:,} are asked, so it will probably stay undecided. Ask more items, or state a limit "
        f"of {within:.2g} or more."
    )


def limit_result(limit: float, found: Difference | None, seeds: Sequence[LimitResult] = ()) -> LimitResult:
    """Return whether a limit was kept.

    Args:
        limit: What may be lost.
        found: Of one cell, or the mean over seeds; None: not compared.
        seeds: Of a mean, what each seed says.
    """
    if found is None:
        return LimitResult(limit=limit, low=None, high=None, answer="undecided")
    said = limit_answer(found.low, found.high, limit, found.all_scores)
    said = limit_answer_over_seeds(said, [one.answer for one in seeds])
    return LimitResult(limit=limit, low=found.low, high=found.high, answer=said)
