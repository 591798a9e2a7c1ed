"""HFT: freeze half of the matrices of every layer, drawn at random."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from lingraft.models.layers import layer_of
from lingraft.strategies.base import FREEZES_WITH_LORA, Context, Strategy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ATTENTION = ("attn", "attention", "mixer")  # parts of the names that architectures give it


class Half(Strategy):
    """Freeze half of the weight matrices of every decoder layer, drawn at random (half fine-tuning, HFT).

    Of a layer's n attention matrices and of its n MLP matrices n / 2 each are frozen; where n is odd, a coin that is
    thrown for every layer says whether one more or one less. Embeddings, head, biases and norms train: what the paper
    does with norms is not known to us.

    Cost: half of plain training's optimiser states and weight gradients.

    Source: arXiv 2404.18466. Relatives: freeze_random, which freezes whole layers.
    """

    kind: ClassVar[str] = "half"
    conflicts: ClassVar[dict[str, str]] = FREEZES_WITH_LORA

    def trainable(self, model: PreTrainedModel, context: Context) -> frozenset[str]:
        """Return all parameters but the drawn matrices."""
        groups: dict[tuple[int, bool], list[str]] = {}
        for name, parameter in model.named_parameters():
            layer = layer_of(name)
            if layer is not None and parameter.dim() > 1:
                is_attention = any(part in component for component in name.split(".") for part in _ATTENTION)
                groups.setdefault((layer, is_attention), []).append(name)
        generator = context.generator(self.kind)
        frozen: set[str] = set()
        for _, names in sorted(groups.items()):
            count = (len(names) + int(generator.integers(2))) // 2  # of 4 two, of 3 one or two
            frozen.update(names[place] for place in generator.permutation(len(names))[:count])
        return frozenset(name for name, _ in model.named_parameters()) - frozen
