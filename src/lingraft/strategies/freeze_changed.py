"""LF_H2: freeze the layers that Phase 1 changed most."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from lingraft.errors import StrategyError
from lingraft.strategies.base import FREEZES_WITH_LORA, Context, Need, Strategy
from lingraft.strategies.freeze_random import unfrozen

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class FreezeChanged(Strategy):
    """Freeze the decoder layers that changed most from the base to Phase 1 (the paper's LF_H2).

    The change of a layer is ||w_1 - w_0|| / ||w_0|| over all its weights together, w_0 the base's and w_1 Phase 1's;
    of L layers the round(share * L) with the largest change are frozen. Both the measure and the number are open in
    the paper: the relative norm keeps a layer with large weights from being chosen for its size alone; half is our
    choice.

    Cost: less than plain training, plus one pass over both checkpoints, one tensor at a time.

    Source: arXiv 2410.16006. Relatives: freeze_random.
    """

    kind: ClassVar[str] = "freeze_changed"
    conflicts: ClassVar[dict[str, str]] = FREEZES_WITH_LORA

    share: float = Field(0.5, ge=0, le=1)
    """Share of the decoder layers that is frozen."""
    embeddings: bool = False
    """Freeze the embeddings too, and with them a tied output head."""

    @property
    def needs(self) -> frozenset[Need]:
        """The base model, and a phase before."""
        return frozenset(("base",))

    def trainable(self, model: PreTrainedModel, context: Context) -> frozenset[str]:
        """Return all parameters outside the layers that changed most (and the embeddings, if frozen).

        Raises:
            StrategyError: The base and the previous phase's model are the same, so no layer changed.
        """
        if context.base is None:
            raise StrategyError("'freeze_changed' needs the base model: give the study a `model`.")
        changes = layer_changes(context.base, context.previous, trust_remote_code=context.trust_remote_code)
        if not any(changes.values()):
            raise StrategyError(
                f"'freeze_changed': no layer differs between {context.base.name} and the previous phase's model; "
                "there is no change to rank by. Take freeze_random."
            )
        ranked = sorted(changes, key=lambda layer: (-changes[layer], layer))
        frozen = frozenset(ranked[: round(self.share * len(ranked))])
        return unfrozen([name for name, _ in model.named_parameters()], frozen, embeddings=self.embeddings)


def layer_changes(base: Path, phase_one: Path, *, trust_remote_code: bool = False) -> dict[int, float]:
    """Return per layer ||w_1 - w_0|| / ||w_0|| over its weights together."""
    from lingraft.models.weights import ModelWeights
    from lingraft.weights.difference import parameter_difference

    models = [ModelWeights(folder, trust_remote_code=trust_remote_code) for folder in (base, phase_one)]
    squares: dict[int, list[float]] = {}
    for tensor in parameter_difference(*models).tensors:
        if tensor.layer is not None:
            sums = squares.setdefault(tensor.layer, [0.0, 0.0])
            sums[0] += tensor.l2**2
            sums[1] += tensor.norm**2
    return {layer: math.sqrt(moved / total) if total else 0.0 for layer, (moved, total) in squares.items()}
