"""Layer reversion: give some layers back the weights that the phase started from."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, ClassVar

from pydantic import model_validator

from lingraft.strategies.base import Strategy
from lingraft.strategies.selection import LayerRanges, check_ends, check_layers, check_modules, is_named

if TYPE_CHECKING:
    from torch import Tensor


class Revert(Strategy):
    """Give named layers back the weights that the phase started from, after training.

    Cost: none in training; one pass over both checkpoints and a third on disk.

    Source: arXiv 2606.00284, which finds it best for translation. Relatives: interpolate, of which it is alpha 0 for
    some parts; freeze_modules, which keeps them while training.
    """

    kind: ClassVar[str] = "revert"
    combines: ClassVar[bool] = True

    layers: LayerRanges | None = None
    """Decoder layers, such as `20-29`, from 0."""
    modules: tuple[str, ...] = ()
    """Only these kinds of module, such as `[down_proj]`; of all layers where `layers` is null."""
    embeddings: bool = False
    """Revert the embeddings (and a tied head) too."""
    head: bool = False
    """Revert an output head of its own too."""

    @model_validator(mode="after")
    def _names_something(self) -> Revert:
        if not (self.layers or self.modules or self.embeddings or self.head):
            raise ValueError("names nothing to revert; give layers, modules, embeddings or head")
        return self

    def check(self, names: Collection[str]) -> None:
        """Refuse layers, modules and ends that the model does not have."""
        if self.layers is not None:
            check_layers(self.kind, self.layers, names)
        check_modules(self.kind, self.modules, names)
        # Both named means both ends, tied or not.
        check_ends(self.kind, names, embeddings=self.embeddings, head=self.head and not self.embeddings)

    def combine(self, name: str, before: Tensor, after: Tensor) -> Tensor:
        """Return the tensor of the one model or the other, bit for bit."""
        named = is_named(
            name, layers=self.layers, modules=self.modules, embeddings=self.embeddings, head=self.head
        )
        return before if named else after
