"""Many comparisons at once: p-values of paired differences, corrected for how many of them were looked at.

Of 60 tasks that did not change, 3 have a 95 % interval that excludes 0. Holm's correction bounds the chance of a single
false alarm among all; that of Benjamini and Hochberg bounds the share of false alarms among the alarms, and finds more.

Sources: Fisher 1935, "The Design of Experiments", section 21 (permutation of signs); Phipson and Smyth 2010,
"Permutation p-values should never be zero"; Holm 1979, "A simple sequentially rejective multiple test procedure";
Benjamini and Hochberg 1995, "Controlling the false discovery rate".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from scipy import special, stats

from lingraft.errors import EvaluationError, did_you_mean
from lingraft.intervals.clusters import ClusteredValues
from lingraft.intervals.macro_mean import Scored, paired_values

Correction = Literal["holm", "benjamini_hochberg"]
PERMUTATIONS = 9_999  # the smallest p-value is 1e-4: enough for Holm's correction of 500 tests at 5 %


@dataclass(frozen=True, slots=True)
class Comparison:
    """One of several paired comparisons of two models.

    Attributes:
        p: How often a difference at least as large, in either direction, would come up if the two models were alike;
            in (0, 1], two-sided.
        p_adjusted: The same, corrected for the number of comparisons; at least `p`, at most 1.
    """

    p: float
    p_adjusted: float


def compare_many(
    pairs: Mapping[str, tuple[Sequence[Scored], Sequence[Scored]]], correction: Correction = "holm"
) -> dict[str, Comparison]:
    """Compare two models on several sets of items, such as one for each task and language.

    Args:
        pairs: By name: the scores before and after, both of the same items.
        correction: `holm` bounds the chance of any false alarm, `benjamini_hochberg` the share of false ones.

    Raises:
        EvaluationError: Two models do not hold the same items, or there is no such correction.
    """
    p_values = {name: p_value(before, after) for name, (before, after) in pairs.items()}
    adjusted = adjust(list(p_values.values()), correction)
    return {name: Comparison(p, own) for (name, p), own in zip(p_values.items(), adjusted, strict=True)}


def p_value(before: Sequence[Scored], after: Sequence[Scored]) -> float:
    """Return the two-sided p-value of a paired difference of macro means, by a permutation test with sign flips.

    If the two models are alike, each cluster could as well have changed the other way round. All permutations of signs
    are counted where every cluster that changed did so by the same amount (of right and wrong answers of equal weight:
    McNemar's exact test), else 9,999 random ones with a fixed seed and the observed one; p is at least 1e-4 then. 1
    where nothing changed.

    Raises:
        EvaluationError: The two models do not hold the same items, or there are none.
    """
    clusters = ClusteredValues([paired_values(before, after)]).clusters()
    changes = clusters.gains - clusters.losses
    sizes, counts = np.unique(np.abs(changes[np.abs(changes) > 1e-12]).round(12), return_counts=True)
    observed = abs(float(changes.sum()))
    if len(sizes) == 0:
        return 1.0
    if len(sizes) == 1:
        n = int(counts[0])
        fewer = (n - round(observed / float(sizes[0]))) // 2  # clusters that changed against the others
        return min(1.0, 2 * float(special.bdtr(fewer, n, 0.5)))
    flipped = np.random.default_rng(0).binomial(counts, 0.5, size=(PERMUTATIONS, len(counts)))
    sums = (2 * flipped - counts) @ sizes
    return (1 + int((np.abs(sums) >= observed - 1e-9).sum())) / (1 + PERMUTATIONS)


def adjust(p_values: Sequence[float], correction: Correction = "holm") -> list[float]:
    """Return p-values corrected for their number, in their order; raise EvaluationError for an unknown correction."""
    if correction not in get_args(Correction):
        raise EvaluationError(
            f"there is no correction {correction!r}. {did_you_mean(correction, get_args(Correction))}"
        )
    if not p_values:
        return []
    if correction == "benjamini_hochberg":
        return [float(p) for p in stats.false_discovery_control(p_values)]
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    found = np.empty(len(p_values))
    found[order] = np.maximum.accumulate(np.array(p_values)[order] * factors).clip(max=1.0)
    return [float(p) for p in found]
