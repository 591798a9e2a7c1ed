"""What names in a model tell: a parameter's decoder layer and kind, what shares storage, which modules are layers."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

_LAYER_LISTS = frozenset({"layers", "layer", "h", "blocks", "block"})
# Parts of a model that sees or hears; their layers are no decoder layers.
_OTHER_TOWERS = re.compile(
    r"^vit|vision|visual|image|img|audio|speech|encoder|perceiver|resampler|qformer|projector"
)
_ADAPTER_PARTS = frozenset({"base_layer", "modules_to_save", "original_module"})
_TENSOR_KINDS = frozenset({"weight", "bias"})


def layer_of(parameter: str) -> int | None:
    """Return the decoder layer that a parameter belongs to, from 0; None for embeddings, head and final norm.

    The name is read component by component: the number right after the first list of layers counts. So
    `model.layers.12.mlp.experts.3.w1.weight` is in layer 12 (a search for ".3." would find layer 3), and the
    layers of an image encoder are no decoder layers.
    """
    components = parameter.split(".")
    for position, component in enumerate(components[:-1]):
        if _OTHER_TOWERS.search(component):
            return None
        following = components[position + 1]
        if component in _LAYER_LISTS and following.isdecimal():
            return int(following)
    return None


def module_type_of(parameter: str) -> str:
    """Return the kind of module that a parameter belongs to: "q_proj", "down_proj", "embed_tokens", ...

    It is the last component that names neither the tensor (weight, bias), nor a place in a list, nor a part
    of an adapter; equal in all layers, and for all experts of a mixture.
    """
    components = parameter.split(".")
    adapter = (
        i for i, c in enumerate(components) if i > 0 and (c.startswith("lora_") or c in _ADAPTER_PARTS)
    )
    components = components[: next(adapter, len(components))]
    named = [c for c in components if c not in _TENSOR_KINDS and not c.isdecimal()]
    return named[-1] if named else parameter


def layer_count(names: Iterable[str]) -> int:
    """Return the number of decoder layers: the highest layer among `names` plus 1; 0 where there is none."""
    return max((layer + 1 for name in names if (layer := layer_of(name)) is not None), default=0)


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """Return the decoder layers of a model in order, also of one wrapped by PEFT; none, where no name shows them."""
    found: dict[int, nn.Module] = {}
    for name, module in model.named_modules():
        layer = layer_of(name)
        if layer is not None and layer_of(name.rpartition(".")[0]) is None:
            found.setdefault(layer, module)
    return [found[layer] for layer in sorted(found)]


def tied_parameters(model: nn.Module) -> list[frozenset[str]]:
    """Return the groups of two or more parameter names that share storage, such as embedding and head.

    Freezing or changing one of a group does the same to the others.
    """
    names: dict[tuple[str, int], set[str]] = defaultdict(set)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        pointer = 0 if parameter.is_meta else parameter.untyped_storage().data_ptr()
        # Without storage (meta device, sharded away) only being the same object can tell.
        names["storage" if pointer else "object", pointer or id(parameter)].add(name)
    return sorted((frozenset(group) for group in names.values() if len(group) > 1), key=min)
