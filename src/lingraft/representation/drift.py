"""Drift: how far a model's hidden states moved from those of another, layer by layer.

Source: arXiv 2410.16006, Figures 1 (similarity of mean hidden activations) and 2 (change of their covariance).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lingraft.errors import ModelError
from lingraft.representation.covariance import Moments, covariance_change, trace_change, variance_change
from lingraft.representation.similarity import linear_cka, mean_cosine
from lingraft.representation.states import LayerStates

ALL = "all"


@dataclass(frozen=True, slots=True)
class LayerDrift:
    """One layer's drift from the first model to another.

    Attributes:
        layer: From 0.
        mean_cosine: Cosine of the mean states, in [-1, 1]; 1: same direction.
        cka: Linear CKA of the states of the same tokens, in [0, 1]; 1: the same up to rotation and scale; None for one
            language of several, and where the states do not vary.
        covariance_change: ||C2 - C1||_F / ||C1||_F of the states' covariances, >= 0.
        trace_change: (tr C2 - tr C1) / tr C1: above 0 the states vary more.
        variance_change: Sum of the changes of the d variances over their sum, >= 0.
    """

    layer: int
    mean_cosine: float | None
    cka: float | None
    covariance_change: float | None
    trace_change: float | None
    variance_change: float | None


@dataclass(frozen=True)
class Drift:
    """A model's drift from the first one.

    Attributes:
        model: Its name.
        layers: Over all prompts.
        by_language: Layers by BCP-47 tag, where the prompts are of several.
    """

    model: str
    layers: tuple[LayerDrift, ...]
    by_language: dict[str, tuple[LayerDrift, ...]]

    @property
    def most_changed(self) -> tuple[int, ...]:
        """The three layers whose covariance changed most, the most changed first."""
        order = sorted(self.layers, key=lambda one: -(one.covariance_change or 0.0))
        return tuple(one.layer for one in order[:3])

    @property
    def upper_to_lower(self) -> float | None:
        """Mean covariance change of the upper third of the layers over that of the lower third; None: that is 0.

        The paper finds 3 to 4 for dissimilar data pairs.
        """
        third = max(1, len(self.layers) // 3)
        lower = sum(one.covariance_change or 0.0 for one in self.layers[:third])
        upper = sum(one.covariance_change or 0.0 for one in self.layers[-third:])
        return upper / lower if lower > 0 else None

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return {
            "model": self.model,
            "layers": [asdict(one) for one in self.layers],
            "by_language": {tag: [asdict(one) for one in own] for tag, own in self.by_language.items()},
            "most_changed": list(self.most_changed),
            "upper_to_lower": self.upper_to_lower,
        }


def drift_between(name: str, before: Sequence[LayerStates], after: Sequence[LayerStates]) -> Drift:
    """Compare two models' states of the same prompts.

    Args:
        name: The second model's.
        before: The first model's states, from `layer_states`.
        after: The second's.

    Raises:
        ModelError: Other numbers of layers, or other widths.
    """
    if len(before) != len(after):
        raise ModelError(f"{name}: has {len(after)} decoder layers, the first model has {len(before)}.")
    widths = {(len(one.whole.mean), len(other.whole.mean)) for one, other in zip(before, after, strict=True)}
    for width, other_width in widths:
        if width != other_width:
            raise ModelError(f"{name}: its states are {other_width} wide, the first model's {width}.")
    languages = list(before[0].moments)
    return Drift(
        model=name,
        layers=_layers(before, after, lambda one: one.whole, with_cka=True),
        by_language={
            tag: _layers(before, after, lambda one, tag=tag: one.moments[tag], with_cka=False)  # type: ignore[misc]
            for tag in (languages if len(languages) > 1 else ())
        },
    )


def _layers(
    before: Sequence[LayerStates],
    after: Sequence[LayerStates],
    moments: Callable[[LayerStates], Moments],
    *,
    with_cka: bool,
) -> tuple[LayerDrift, ...]:
    found = []
    for number, (one, other) in enumerate(zip(before, after, strict=True)):
        old, new = moments(one), moments(other)
        found.append(
            LayerDrift(
                layer=number,
                mean_cosine=mean_cosine(old.mean, new.mean),
                cka=linear_cka(one.sample, other.sample) if with_cka else None,
                covariance_change=covariance_change(old, new),
                trace_change=trace_change(old, new),
                variance_change=variance_change(old, new),
            )
        )
    return tuple(found)
