"""Parameters that FSDP2 has divided between processes, read and written as if they were whole.

Every function works on undivided parameters too; with divided ones every process must call it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


def whole(parameter: Tensor) -> Tensor:
    """Return a parameter's values, without a gradient; those of a divided one come from all processes."""
    full: Tensor = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
    return full.detach()


def own_piece(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor, in place: its piece of a divided one, else all."""
    piece: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return piece


def beside(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Return of a whole tensor what lies over this process's piece of a parameter, as a view; nothing is sent.

    Args:
        tensor: Of the parameter's shape, or one that is broadcast to it.
        parameter: Divided or not.
    """
    if not isinstance(parameter, DTensor):
        return tensor
    shape, offset = compute_local_shape_and_global_offset(
        parameter.shape, parameter.device_mesh, parameter.placements
    )
    missing = parameter.dim() - tensor.dim()
    for dimension, size in enumerate(tensor.shape):
        if size > 1 or parameter.shape[missing + dimension] == 1:
            length = shape[missing + dimension]
            begin = offset[missing + dimension] if length else 0
            tensor = tensor.narrow(dimension, begin, length)
    return tensor


def whole_weights(model: nn.Module, names: Collection[str]) -> dict[str, Tensor]:
    """Return the named parameters of a model, whole and contiguous."""
    chosen = set(names)
    return {
        name: whole(parameter).contiguous() for name, parameter in model.named_parameters() if name in chosen
    }


@torch.no_grad()
def set_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy whole tensors into a model's parameters in place, bit for bit."""
    parameters = dict(model.named_parameters())
    for name, weight in weights.items():
        parameter = parameters[name]
        if isinstance(parameter, DTensor):
            parameter.copy_(distribute_tensor(weight, parameter.device_mesh, parameter.placements))
        else:
            parameter.copy_(weight)


def piece_number(tensor: Tensor) -> int:
    """Return which of a divided tensor's different pieces lies in this process, from 0; 0 of an undivided one."""
    if not isinstance(tensor, DTensor):
        return 0
    number, mesh = 0, tensor.device_mesh
    for dimension, (placement, own) in enumerate(
        zip(tensor.placements, mesh.get_coordinate() or [0] * mesh.ndim, strict=True)
    ):
        if placement.is_shard():
            number = number * mesh.size(dimension) + own
    return number
