"""Means and covariances of hidden states, accumulated in float64 without holding the states."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lingraft.models.compute import accumulated


@dataclass(frozen=True)
class Moments:
    """First and second moments of n states of width d.

    Attributes:
        n: States.
        mean: [d] float64.
        scatter: [d, d] float64, the sum of the outer products of the states' distances from their mean.
    """

    n: int
    mean: torch.Tensor
    scatter: torch.Tensor

    @classmethod
    def of(cls, states: torch.Tensor) -> Moments:
        """Return the moments of [n, d] states; n may be 0. They are where the states are, if that has float64."""
        wide = accumulated(states)
        mean = wide.mean(dim=0) if len(wide) else wide.new_zeros(wide.shape[1])
        centred = wide - mean
        return cls(len(wide), mean, centred.T @ centred)

    def __add__(self, other: Moments) -> Moments:
        """Return the moments of both sets of states together, without cancellation.

        Source: Chan, Golub and LeVeque 1979, "Updating Formulae and a Pairwise Algorithm for Computing Sample
        Variances".
        """
        n = self.n + other.n
        if n == 0:
            return self
        shift = other.mean - self.mean
        scatter = self.scatter + other.scatter + torch.outer(shift, shift) * (self.n * other.n / n)
        return Moments(n, self.mean + shift * (other.n / n), scatter)

    def cpu(self) -> Moments:
        """Return the same in ordinary memory, which lets a GPU's go."""
        return Moments(self.n, self.mean.cpu(), self.scatter.cpu())

    @property
    def covariance(self) -> torch.Tensor:
        """The covariance [d, d], divided by n - 1; by 1 where there is one state."""
        return self.scatter / max(1, self.n - 1)


class RunningMoments:
    """Moments that grow by blocks of states, in ordinary memory: 8 d^2 bytes, however many there are of them.

    A block's are computed where its states are and let go at once, so a GPU holds those of one block at a time.
    """

    def __init__(self) -> None:
        self._sum: Moments | None = None

    def add(self, states: torch.Tensor) -> None:
        """Take [n, d] states."""
        own = Moments.of(states).cpu()
        if self._sum is None:
            self._sum = own
            return
        # As `Moments.__add__`, in place: of a large width each copy is a tenth of a gigabyte.
        before, n = self._sum, self._sum.n + own.n
        shift = own.mean - before.mean
        before.scatter.add_(own.scatter)
        if n:
            before.scatter.add_(torch.outer(shift, shift).mul_(before.n * own.n / n))
        self._sum = Moments(n, before.mean + shift * (own.n / max(1, n)), before.scatter)

    @property
    def moments(self) -> Moments:
        """Those of all states so far; none have been taken: an error."""
        assert self._sum is not None, "no states were taken"
        return self._sum


def covariance_change(before: Moments, after: Moments) -> float | None:
    """Return ||C2 - C1||_F / ||C1||_F, >= 0; None where C1 is zero."""
    norm = float(before.covariance.norm())
    return float((after.covariance - before.covariance).norm()) / norm if norm > 0 else None


def trace_change(before: Moments, after: Moments) -> float | None:
    """Return (tr C2 - tr C1) / tr C1: how much more the states vary in all; None where C1 is zero."""
    total = float(before.covariance.trace())
    return float(after.covariance.trace() - before.covariance.trace()) / total if total > 0 else None


def variance_change(before: Moments, after: Moments) -> float | None:
    """Return sum_i |v2_i - v1_i| / sum_i v1_i over the d variances v, >= 0; None where C1 is zero."""
    old, new = before.covariance.diagonal(), after.covariance.diagonal()
    total = float(old.sum())
    return float((new - old).abs().sum()) / total if total > 0 else None
