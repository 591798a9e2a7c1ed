"""In which types a phase holds the weights while it trains, and how they come out.

A frozen weight that autocast would cast to bf16 in every step is held in bf16, at half of float32's memory; the
results are the same bit for bit. What bf16 cannot hold is kept where it came from: of a model that was loaded, that is
its file, which stays mapped into memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.pytorch_utils import Conv1D

from lingraft.models.compute import Compute

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def held_weights(
    model: nn.Module, compute: Compute, frozen_mask: Mapping[str, Tensor], *, divided: bool = False
) -> Iterator[None]:
    """Hold weights as a phase computes with them, inside; parameters say themselves whether they train.

    Inside, in `bf16_pure` all weights are bf16. In `bf16` what trains is float32; of what is frozen, matrices that
    autocast casts are bf16, and so are embeddings that are bf16 numbers, whose output is widened; norms and what
    autocast does not reach are float32. In `float32` all are float32.

    Outside, what trained is float32, and what is frozen has the type and the very bits that it had. Where bf16 does not
    hold these, the model goes back to the device it came from, so that no accelerator needs room for them.

    Args:
        model: Before it is moved to a device.
        compute: Of the phase.
        frozen_mask: Freezes elements of parameters that train.
        divided: The parameters will be divided between processes: what is frozen stays as it is in `bf16`, and the
            caller has its bits.
    """
    is_pure = compute.precision == "bf16_pure"
    layers, embeddings = ({}, {}) if divided or compute.precision != "bf16" else _reached_by_autocast(model)
    came_from = next(model.parameters()).device
    types: dict[str, torch.dtype] = {}
    originals: dict[str, Tensor] = {}
    widened: list[nn.Module] = []
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point():  # codes
            continue
        types[name] = parameter.dtype
        is_cast = not parameter.requires_grad and (parameter in layers or parameter in embeddings)
        if not (is_pure or is_cast):
            parameter.data = parameter.data.float()
            continue
        low = parameter.data.to(torch.bfloat16)
        is_needed = not divided and (not parameter.requires_grad or name in frozen_mask)
        is_held = (
            not is_needed
            or low.dtype == parameter.dtype
            or torch.equal(low.to(parameter.dtype), parameter.data)
        )
        if is_cast and parameter in embeddings:
            if not is_held:  # it would return other numbers
                parameter.data = parameter.data.float()
                continue
            widened.append(embeddings[parameter])
        if not is_held:
            originals[name] = parameter.data.cpu()
        parameter.data = low
    try:
        with ExitStack() as stack:
            for module in widened:
                stack.callback(module.register_forward_hook(_widened).remove)
            yield
    finally:
        if originals and next(model.parameters()).device != came_from:
            model.to(came_from)
        for name, parameter in model.named_parameters():
            if name not in types:
                continue
            if isinstance(parameter, DTensor):
                if parameter.requires_grad and parameter.dtype != torch.float32:
                    _replace(model, parameter, parameter.detach().float())
                continue
            original = originals.pop(name, None)
            if original is not None:
                original = original.to(parameter.device)
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(types[name]) if original is None else original
                continue
            trained = parameter.data.float()
            if original is not None:
                trained = torch.where(frozen_mask[name].to(trained.device), original.float(), trained)
            parameter.data = trained


def _replace(model: nn.Module, old: nn.Parameter, new: Tensor) -> None:
    """Put a divided tensor in a parameter's place, wherever it stands: `data` would leave its piece as it was."""
    made = nn.Parameter(new, requires_grad=old.requires_grad)
    for module in model.modules():
        for name, own in module._parameters.items():
            if own is old:
                module._parameters[name] = made


def _reached_by_autocast(model: nn.Module) -> tuple[dict[Tensor, nn.Module], dict[Tensor, nn.Module]]:
    """Return the parameters of the layers whose product autocast computes in its own type, and those of embeddings.

    A layer or embedding with a forward pass of its own, such as a router's, may compute in float32: what it uses is
    left out, also where another shares it.
    """
    layers: dict[Tensor, nn.Module] = {}
    embeddings: dict[Tensor, nn.Module] = {}
    others: set[Tensor] = set()
    for module in model.modules():
        own: dict[Tensor, nn.Module] = dict.fromkeys(module.parameters(recurse=False), module)
        if type(module).forward in (nn.Linear.forward, Conv1D.forward):
            layers.update(own)
        elif type(module).forward is nn.Embedding.forward:
            embeddings.update(own)
        else:
            others.update(own)
    for parameter in others:
        layers.pop(parameter, None)
        embeddings.pop(parameter, None)
    return layers, embeddings


def in_float32(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model on the processor with all weights in float32: what adapters are merged in, and what is saved."""
    model.to("cpu")  # type: ignore[arg-type]  # there is room
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.float()
    return model


def _widened(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    """Widen what an embedding returns: the residual stream is float32."""
    return output.float()
