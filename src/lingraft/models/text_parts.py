"""Which parameters text reaches: a model that also sees or hears has parts that no text ever runs through."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lingraft.models.layers import layer_of
from lingraft.models.token_ids import embedding_rows

if TYPE_CHECKING:
    from torch import Tensor, nn

_TOKENS = 4


def reached_by_text(model: nn.Module) -> frozenset[str]:
    """Return the names of the parameters that a loss on text depends on; the others would never have a gradient.

    A few tokens run through the model and autograd's graph is read, no backward pass is made: memory for the
    activations of these tokens, time for reading every weight once. An expert that these tokens are not sent to counts
    as reached where another one of its layer is.

    Args:
        model: A causal language model, also one wrapped by PEFT, and one without memory for its weights (on torch's
            device `meta`); left as it was.
    """
    parameters = dict(model.named_parameters())
    wanted = {name: parameter.requires_grad for name, parameter in parameters.items()}
    was_training = model.training
    device = next(iter(parameters.values())).device
    # Without weights there are no values either, which models look at unless they see that nothing is computed.
    values: AbstractContextManager[object]
    values = FakeTensorMode(allow_non_fake_inputs=True) if device.type == "meta" else nullcontext()
    any_model: Any = model
    config = any_model.config.get_text_config() if device.type == "meta" else None
    experts = getattr(config, "_experts_implementation", None)
    try:
        if config is not None and experts is not None:
            # Without values torch's grouped product refuses float32.
            config._experts_implementation = "batched_mm"
        model.eval()
        for parameter in parameters.values():
            if parameter.is_floating_point():
                parameter.requires_grad_(True)
        with torch.enable_grad(), values:
            ids = torch.arange(_TOKENS, device=device) % embedding_rows(model)
            logits = any_model(input_ids=ids[None], use_cache=False).logits
        found = {id(leaf) for leaf in _leaves(logits)}
    finally:
        if config is not None and experts is not None:
            config._experts_implementation = experts
        model.train(was_training)
        for name, parameter in parameters.items():
            if parameter.is_floating_point():
                parameter.requires_grad_(wanted[name])
    kinds = {_kind(name) for name, parameter in parameters.items() if id(parameter) in found}
    return frozenset(name for name in parameters if _kind(name) in kinds)


def _leaves(output: Tensor) -> Iterator[Tensor]:
    """Yield the parameters at the ends of autograd's graph."""
    seen: set[Any] = set()
    open_nodes = [output.grad_fn]
    while open_nodes:
        node: Any = open_nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        open_nodes += [following for following, _ in node.next_functions]


def _kind(name: str) -> str:
    """Return a name with the numbers of experts taken out: in a decoder layer all numbers after the layer's own."""
    layer = layer_of(name)
    if layer is None:
        return name
    before, number, after = name.partition(f".{layer}.")
    return before + number + ".".join("*" if one.isdecimal() else one for one in after.split("."))
