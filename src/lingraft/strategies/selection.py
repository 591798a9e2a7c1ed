"""How options name parts of a model: ranges of layers, kinds of module, embeddings, the output head."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from lingraft.errors import StrategyError, did_you_mean
from lingraft.models.layers import layer_count, layer_of, module_type_of
from lingraft.strategies.base import is_embedding

_RANGES = re.compile(r"\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*")
_HEADS = frozenset(("lm_head", "embed_out", "output", "output_layer"))


def check_ranges(text: str) -> str:
    """Return a text that names ranges of layers, or raise ValueError."""
    if not _RANGES.fullmatch(text):
        raise ValueError("write layers as 0-9, as 3, or several of these joined by commas")
    for part in text.split(","):
        first, _, last = part.partition("-")
        if last and int(last) < int(first):
            raise ValueError(f"{part} ends before it begins")
    return text


def _as_text(value: Any) -> Any:
    """YAML reads a single layer as a number."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


PartName = Annotated[str, BeforeValidator(_as_text)]
LayerRanges = Annotated[PartName, AfterValidator(check_ranges)]


def layers_in(ranges: str) -> frozenset[int]:
    """Return the decoder layers, from 0, that `0-9,12` names; ends belong to it."""
    found: set[int] = set()
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def check_layers(kind: str, ranges: str, names: Collection[str]) -> None:
    """Refuse layers that a model does not have.

    Raises:
        StrategyError: With the strategy, the ranges and how many layers there are.
    """
    count = layer_count(names)
    missing = sorted(layer for layer in layers_in(ranges) if layer >= count)
    if missing:
        raise StrategyError(
            f"{kind!r}: layers {ranges}: there is no layer {missing[0]}; the model's {count} layers count from 0."
        )


def check_modules(kind: str, modules: Collection[str], names: Collection[str]) -> None:
    """Refuse kinds of module that no decoder layer has.

    Raises:
        StrategyError: With the strategy, the name and the kinds that there are.
    """
    known = {module_type_of(name) for name in names if layer_of(name) is not None}
    for module in modules:
        if module not in known:
            raise StrategyError(f"{kind!r}: no layer has a module {module!r}. {did_you_mean(module, known)}")


def check_ends(kind: str, names: Collection[str], *, embeddings: bool, head: bool) -> None:
    """Refuse embeddings, or a head of its own, that a model does not have.

    Raises:
        StrategyError: With the strategy; a tied head goes by the embeddings' name.
    """
    if embeddings and not any(is_embedding(name) for name in names):
        raise StrategyError(
            f"{kind!r}: embeddings: none of the model's {len(names)} parameters is known for its input embeddings. "
            "Leave that option out."
        )
    if head and not any(is_head(name) for name in names):
        raise StrategyError(
            f"{kind!r}: head: the model has no output head of its own; one that is tied to the embeddings goes by "
            "`embeddings`."
        )


def is_head(name: str) -> bool:
    """Return whether a parameter is an output head of its own; a tied one goes by the embeddings' name."""
    return layer_of(name) is None and module_type_of(name) in _HEADS


def is_named(
    name: str, *, layers: str | None, modules: Collection[str], embeddings: bool, head: bool
) -> bool:
    """Return whether options name a parameter: these modules of these layers, the embeddings, a head of its own."""
    if (embeddings and is_embedding(name)) or (head and is_head(name)):
        return True
    layer = layer_of(name)
    if layer is None or not (layers or modules):
        return False
    in_layers = layers is None or layer in layers_in(layers)
    return in_layers and (not modules or module_type_of(name) in modules)
