"""LF_H1: freeze a random subset of layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from lingraft.models.layers import layer_count, layer_of
from lingraft.strategies.base import FREEZES_WITH_LORA, Context, Strategy, is_embedding

if TYPE_CHECKING:
    from collections.abc import Collection

    from transformers import PreTrainedModel


class FreezeRandom(Strategy):
    """Freeze a random subset of the decoder layers (the paper's LF_H1).

    Of L layers, round(share * L) are drawn without replacement from the cell's seed. How many the paper freezes is
    open; half is our choice.

    Cost: less than plain training. A frozen layer has no optimiser state and no weight gradient; its backward pass
    is saved only where nothing below it trains.

    Source: arXiv 2410.16006. Relatives: freeze_changed.
    """

    kind: ClassVar[str] = "freeze_random"
    conflicts: ClassVar[dict[str, str]] = FREEZES_WITH_LORA

    share: float = Field(0.5, ge=0, le=1)
    """Share of the decoder layers that is frozen."""
    embeddings: bool = False
    """Freeze the embeddings too, and with them a tied output head."""

    def trainable(self, model: PreTrainedModel, context: Context) -> frozenset[str]:
        """Return all parameters outside the drawn layers (and the embeddings, if frozen)."""
        names = [name for name, _ in model.named_parameters()]
        layers = layer_count(names)
        drawn = context.generator(self.kind).permutation(layers)[: round(self.share * layers)]
        return unfrozen(names, frozenset(int(layer) for layer in drawn), embeddings=self.embeddings)


def unfrozen(names: Collection[str], layers: frozenset[int], *, embeddings: bool) -> frozenset[str]:
    """Return the names outside the frozen `layers`, and outside the embeddings if these are frozen too."""
    return frozenset(
        name for name in names if layer_of(name) not in layers and not (embeddings and is_embedding(name))
    )
