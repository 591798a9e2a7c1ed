"""How alike two models' hidden states of the same tokens are."""

from __future__ import annotations

import torch

from lingraft.models.compute import accumulated


def mean_cosine(one: torch.Tensor, other: torch.Tensor) -> float | None:
    """Return the cosine of two mean states [d], in [-1, 1]; None where either is zero."""
    norms = float(one.norm() * other.norm())
    return max(-1.0, min(1.0, float(one @ other) / norms)) if norms > 0 else None


def linear_cka(one: torch.Tensor, other: torch.Tensor) -> float | None:
    """Return linear centred kernel alignment of two models' states of the same n tokens, in [0, 1].

    ||Y' X||_F^2 / (||X' X||_F ||Y' Y||_F), X and Y centred. 1: equal up to rotation and scale. Leans upwards where n is
    not well above the width.

    Args:
        one: [n, d1].
        other: [n, d2].

    Returns:
        None where there are no states, or those of either do not vary.

    Source: Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited", arXiv 1905.00414.
    """
    if not len(one):
        return None
    x, y = (wide - wide.mean(dim=0) for wide in (accumulated(one), accumulated(other)))
    scale = _norm(x) * _norm(y)
    # Through whichever side is smaller: tokens by tokens, or width by width.
    if len(x) <= min(x.shape[1], y.shape[1]):
        alike = float(((x @ x.T) * (y @ y.T)).sum())
    else:
        alike = float((y.T @ x).square().sum())
    return max(0.0, min(1.0, alike / scale)) if scale > 0 else None


def _norm(states: torch.Tensor) -> float:
    gram = states @ states.T if len(states) <= states.shape[1] else states.T @ states
    return float(gram.norm())
