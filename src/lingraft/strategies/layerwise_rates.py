"""Layerwise learning rates: lower layers learn slower."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from lingraft.models.layers import layer_count, layer_of
from lingraft.strategies.base import Strategy, is_embedding

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedModel


class LayerwiseRates(Strategy):
    """Multiply the learning rate by a factor that falls from the last layer to the first.

    Layer l of L learns at decay^(L - 1 - l) of the rate, embeddings (and with them a tied head) at decay^L, the final
    norm and a head of its own at the full rate. 1 is plain training.

    Cost: none.

    Source: Howard and Ruder 2018, arXiv 1801.06146 (discriminative fine-tuning). Relatives: freeze_modules, which stops
    them altogether.
    """

    kind: ClassVar[str] = "layerwise_rates"

    decay: float = Field(0.9, gt=0, le=1)
    """Factor from one layer to the one below."""

    def learning_rates(self, model: PreTrainedModel) -> Mapping[str, float]:
        """Return the factor of every parameter that does not learn at the full rate."""
        if self.decay == 1:
            return {}
        names = [name for name, _ in model.named_parameters()]
        count = layer_count(names)
        factors = {}
        for name in names:
            layer = layer_of(name)
            if layer is not None:
                factors[name] = self.decay ** (count - 1 - layer)
            elif is_embedding(name):
                factors[name] = self.decay**count
        return factors
