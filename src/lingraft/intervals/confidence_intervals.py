"""95 % intervals of macro means of clusters whose means lie in [0, 1], and of their differences in [-1, 1].

A mean is bounded as if it were a rate among as many independent trials as would leave the same standard error (the
effective number), by Jeffreys' interval: it leans away from 0 and 1 as the error of a rate does, which a bootstrap of a
hundred items sees too little of. The standard error is the linearised one of clusters, each squared influence divided
by 1 - leverage; the number is cut down as Student's t with (effective clusters - 1) degrees of freedom asks for. A
difference is gains less losses: each is bounded like that, and the two intervals are joined with the correlation of
their errors. Where few clusters vary, exact bounds take over.

Strata: tasks, languages and columns of unequal size weigh their clusters unequally, and few clusters may carry half of
a mean. Clusters that stand in the same languages and columns, and sets of such that weigh about alike, form a stratum.
Where in one of them few clusters vary, each gets an interval of its own, and these are joined.

Sources: Brown, Cai and DasGupta 2001, "Interval estimation for a binomial proportion" (Jeffreys' interval); Korn and
Graubard 1998, "Confidence intervals for proportions with small expected number of positive counts" (effective number,
degrees of freedom); Bell and McCaffrey 2002, "Bias reduction in standard errors for linear regression with multi-stage
samples" (leverage); Zou and Donner 2008, "Construction of confidence limits about effect measures" (joining: distances
of the ends from the estimates add in squares); Clopper and Pearson 1934, "The use of confidence or fiducial limits"
(exact bounds). Their coverage is simulated in benchmarks/interval_coverage.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import special

from lingraft.intervals.clusters import CONFIDENCE, Clusters, Floats

# Where fewer clusters vary (differ from the most common value of their kind), exact bounds take over.
FEWEST_VARYING = 5
_ALIKE = 2.0  # times the lightest
_ROUNDING = 1e-20  # a variance below it is none
TAIL = (1 - CONFIDENCE) / 2


@dataclass(frozen=True, slots=True)
class Bounds:
    """The ends of an interval.

    Attributes:
        error: Standard error, the one that a planned study would reckon with.
        exact: Whether exact bounds had a part in it.
    """

    low: float
    high: float
    error: float
    exact: bool


def bounds(clusters: Clusters, *, floor: float, tail: float = TAIL) -> Bounds:
    """Return the interval of a macro mean of clusters.

    Args:
        clusters: Their means lie in [floor, 1].
        floor: 0; for differences -1.
        tail: Probability that the true mean lies below the interval, and as much that it lies above; a 95 % interval
            by default.
    """
    strata = _strata(clusters)
    exact = any(_varying(one) < FEWEST_VARYING for _, one in strata)
    below, above, error = 0.0, 0.0, 0.0  # squares
    for share, part in strata if exact else [(1.0, clusters)]:
        centre, own = _centre(part), _part_bounds(part, floor, tail)
        below += (share * (centre - own.low)) ** 2
        above += (share * (own.high - centre)) ** 2
        error += (share * own.error) ** 2
    value = _centre(clusters)
    low, high = max(floor, value - below**0.5), min(1.0, value + above**0.5)
    return Bounds(min(low, value), max(high, value), error**0.5, exact)


def fewest_for_no_change(margin: float) -> int:
    """Return of how many independent items, none of which changed, a difference's interval lies inside +- margin."""
    return math.floor(math.log(TAIL / 2) / math.log1p(-margin)) + 1


def distinct(means: Floats) -> Floats:
    """Return means with what differs by rounding alone made equal: those of parallel items are sums of products."""
    rounded: Floats = means.round(12)
    return rounded


def _centre(clusters: Clusters) -> float:
    return float(clusters.gains.sum() - clusters.losses.sum())


def _strata(clusters: Clusters) -> list[tuple[float, Clusters]]:
    """Divide clusters into those that weigh about alike, kind by kind; each with its share in the macro mean."""
    kinds = np.unique(clusters.kinds)
    own = [clusters.shares[clusters.kinds == kind] for kind in kinds]
    weights = np.array([float(shares @ shares / shares.sum()) for shares in own])  # what one cluster weighs
    order = np.argsort(weights, kind="stable")
    found, start = [], 0
    while start < len(order):
        stop = int(np.searchsorted(weights[order], weights[order[start]] * _ALIKE, side="right"))
        chosen = np.isin(clusters.kinds, kinds[order[start:stop]])
        found.append((float(clusters.shares[chosen].sum()), clusters.part(chosen)))
        start = stop
    return found


def _part_bounds(part: Clusters, floor: float, tail: float) -> Bounds:
    error = float(np.sqrt(_covariance(part, part.gain_errors - part.loss_errors)))
    if _varying(part) < FEWEST_VARYING:
        low, high = _exact_bounds(part, floor, tail)
        least = min(1.0, float(np.sqrt(FEWEST_VARYING)) / len(part.shares))
        return Bounds(low, high, max(error, least), exact=True)
    gain, loss = float(part.gains.sum()), float(part.losses.sum())
    low_gain, high_gain = _jeffreys(gain, _trials(part, gain, part.gain_errors, tail), tail)
    low_loss, high_loss = 0.0, 0.0
    if floor != 0:
        low_loss, high_loss = _jeffreys(loss, _trials(part, loss, part.loss_errors, tail), tail)
    scale = _covariance(part, part.gain_errors) * _covariance(part, part.loss_errors)
    shared = _covariance(part, part.gain_errors, part.loss_errors)
    correlation = max(-1.0, min(1.0, shared / scale**0.5)) if scale > 0 else 0.0
    below = _joined(gain - low_gain, high_loss - loss, correlation)
    above = _joined(high_gain - gain, loss - low_loss, correlation)
    return Bounds(gain - loss - below, gain - loss + above, error, exact=False)


def _joined(first: float, second: float, correlation: float) -> float:
    """Return the distance of an end from a difference of two estimates, of the distances of their own ends."""
    return float(np.sqrt(max(0.0, first**2 + second**2 - 2 * correlation * first * second)))


def _covariance(part: Clusters, first: Floats, second: Floats | None = None) -> float:
    """Return the covariance of two sums from their influences; the variance of one."""
    weight = np.divide(1.0, 1 - part.leverages, out=np.zeros(len(first)), where=part.leverages < 1)
    return float((first * (first if second is None else second)) @ weight)


def _trials(part: Clusters, mean: float, errors: Floats, tail: float) -> float:
    """Return the effective number of independent trials behind a mean in [0, 1].

    Where clusters weigh alike it is at least their number, because no bounded mean varies more than a rate.
    """
    clusters, variance = part.effective, _covariance(part, errors)
    if variance <= _ROUNDING:
        return clusters
    quantile = float(special.stdtrit(clusters - 1, 1 - tail))
    found = mean * (1 - mean) / variance * (float(special.ndtri(1 - tail)) / quantile) ** 2
    are_alike = part.shares.max() <= _ALIKE * part.shares.min()
    return max(found, clusters) if are_alike else found


def _jeffreys(rate: float, n: float, tail: float) -> tuple[float, float]:
    """Return Jeffreys' bounds of a rate among `n` trials, which may lie between whole numbers."""
    successes, failures = rate * n, (1 - rate) * n
    low = float(special.betaincinv(successes + 0.5, failures + 0.5, tail)) if successes > 0 else 0.0
    high = float(special.betaincinv(successes + 0.5, failures + 0.5, 1 - tail)) if failures > 0 else 1.0
    return min(low, rate), max(high, rate)


def _clopper_pearson(mean: float, most: float, n: float, tail: float) -> tuple[float, float]:
    """Return the exact bounds of a mean of `n` trials in [0, most]; `n` may lie between whole numbers."""
    if most <= 0:
        return 0.0, 0.0
    rate = min(mean / most, 1.0)
    successes, failures = rate * n, (1 - rate) * n
    low = float(special.betaincinv(successes, failures + 1, tail)) if successes > 0 else 0.0
    high = float(special.betaincinv(successes + 1, failures, 1 - tail)) if failures > 0 else 1.0
    return most * low, most * high


def _most_common(means: Floats) -> float:
    values, counts = np.unique(distinct(means), return_counts=True)
    return float(values[counts.argmax()])


def _varying(part: Clusters) -> int:
    """Count the clusters that differ from the most common mean of their kind."""
    means, found = distinct(part.means), 0
    for kind in np.unique(part.kinds):
        own = means[part.kinds == kind]
        found += int((own != _most_common(own)).sum())
    return found


def _exact_bounds(part: Clusters, floor: float, tail: float) -> tuple[float, float]:
    """Bound a mean of clusters by bounds of their rises and falls from the most common one.

    Each gets half of the error, or all of it where the other cannot be. Of a difference each cluster counts as one
    trial, which is conservative; of a score as many as its standard error says.
    """
    means, centre = part.means, _centre(part)
    usual = _most_common(means)
    upward, downward = max(0.0, 1.0 - usual), max(0.0, usual - floor)  # how far one can rise, and fall
    both = upward > 0 and downward > 0
    n = part.effective
    if floor == 0 and not both:
        n = max(n, _trials(part, min(1.0, centre), part.gain_errors, tail))
    tail /= 2 if both else 1
    low_rise, high_rise = _clopper_pearson(float((means - usual).clip(min=0) @ part.shares), upward, n, tail)
    low_fall, high_fall = _clopper_pearson(
        float((usual - means).clip(min=0) @ part.shares), downward, n, tail
    )
    low, high = usual + low_rise - high_fall, usual + high_rise - low_fall
    return min(max(floor, low), centre), max(min(1.0, high), centre)
