"""Weight interpolation: go part of the way back to the model that the phase started from."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, field_validator

from lingraft.models.layers import layer_of
from lingraft.strategies.base import Strategy, Swept, is_embedding
from lingraft.strategies.selection import PartName, check_ends, check_layers, check_ranges, is_head, layers_in

if TYPE_CHECKING:
    from torch import Tensor

_EMBEDDINGS, _HEAD = "embeddings", "head"


class Interpolate(Strategy):
    """Mix the weights that the phase started from with those that it trained (WiSE-FT).

    w = start + alpha (trained - start): 1 is the trained model, 0 the one before. Done after training, so any number of
    alphas costs one training: `alpha: [0.3, 0.6]` makes a cell for each.

    Cost: none in training; one pass over both checkpoints and a third on disk.

    Source: Wortsman et al. 2022, arXiv 2109.01903. Relatives: revert, which is alpha 0 for some layers; l2_anchor.
    """

    kind: ClassVar[str] = "interpolate"
    combines: ClassVar[bool] = True

    alpha: Annotated[float, Swept()] = Field(0.5, ge=0, le=1)
    """Share of the way from the start to the trained weights; under `strategies` also a list, for a cell each."""
    layers: dict[PartName, float] = Field(default_factory=dict)
    """Other alphas by part: `{0-9: 0.2, embeddings: 1, head: 1}`; all else takes `alpha`."""

    @field_validator("layers")
    @classmethod
    def _are_parts(cls, layers: dict[str, float]) -> dict[str, float]:
        seen: set[int] = set()
        for part, alpha in layers.items():
            if not 0 <= alpha <= 1:
                raise ValueError(f"{part}: {alpha} must lie between 0 and 1")
            if part in (_EMBEDDINGS, _HEAD):
                continue
            own = layers_in(check_ranges(part))
            if seen & own:
                raise ValueError(f"layer {min(seen & own)} stands twice")
            seen |= own
        return layers

    def check(self, names: Collection[str]) -> None:
        """Refuse layers and ends that the model does not have."""
        for part in self.layers:
            if part not in (_EMBEDDINGS, _HEAD):
                check_layers(self.kind, part, names)
        embeddings, head = self.layers.get(_EMBEDDINGS), self.layers.get(_HEAD)
        check_ends(
            self.kind,
            names,
            embeddings=embeddings is not None,
            head=head is not None and head != embeddings,  # alike they hold for tied ones as well
        )

    def combine(self, name: str, before: Tensor, after: Tensor) -> Tensor:
        """Return the tensor at its part's alpha; at 1 and 0 bit for bit the one or the other."""
        layer = layer_of(name)
        alpha = self.alpha
        for part, own in self.layers.items():
            if part == _EMBEDDINGS:
                fits = is_embedding(name)
            elif part == _HEAD:
                fits = is_head(name)
            else:
                fits = layer is not None and layer in layers_in(part)
            if fits:
                alpha = own
                break
        if alpha in (0.0, 1.0):
            return after if alpha else before
        return before + alpha * (after - before)
