"""L2-SP: pull the weights towards those that the phase starts from."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from lingraft.models.layers import layer_of
from lingraft.strategies.base import ANCHORS_WITH_LORA, Anchor, Context, Strategy
from lingraft.strategies.selection import LayerRanges, check_layers, layers_in

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class L2Anchor(Strategy):
    """Pull the weights towards those that the phase starts from (L2-SP).

    Adds strength / 2 * sum_i (w_i - start_i)^2 to the loss, once per optimiser step; gradients are clipped after it.

    Cost: a second copy of the pulled weights in memory, and a pass over them every step.

    Defaults: the strength is ours, for a loss in nats per token. Source: Li et al. 2018, arXiv 1802.01483. Relatives:
    ewc, which weighs the pull by importance; interpolate, which moves back afterwards.
    """

    kind: ClassVar[str] = "l2_anchor"
    conflicts: ClassVar[dict[str, str]] = ANCHORS_WITH_LORA

    strength: float = Field(0.01, ge=0)
    """Factor of the penalty; 0: none."""
    layers: LayerRanges | None = None
    """Decoder layers that are pulled, such as `0-9`; null: every parameter that trains."""

    def check(self, names: Collection[str]) -> None:
        """Refuse layers that the model does not have."""
        if self.layers is not None:
            check_layers(self.kind, self.layers, names)

    def held_bytes(self, parameters: int, trained: int, width: int) -> int:  # noqa: ARG002
        """Return the size of the weights that the pull goes towards."""
        return 4 * trained

    def anchor(self, model: PreTrainedModel, context: Context) -> Anchor | None:  # noqa: ARG002
        """Return the pull; None where its strength is 0."""
        if self.strength == 0:
            return None
        if self.layers is None:
            return Anchor(self.strength)
        chosen = layers_in(self.layers)
        names = frozenset(name for name, _ in model.named_parameters() if layer_of(name) in chosen)
        return Anchor(self.strength, names=names)
