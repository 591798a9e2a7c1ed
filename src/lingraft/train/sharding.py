"""Parameters that FSDP2 has divided between processes, read and written as if they were whole.

Every function works on undivided parameters too; with divided ones every process must call it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.parallelism_config import ParallelismConfig
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class _Layout:
    """What a model is made of: by name each parameter's own name (that of the one it is tied to), shape and type.

    Attributes:
        parameters: See above, the shape and type of meta tensors.
        buffers: By name, with values: the frequencies of positions and the like, which no file holds.
    """

    parameters: Mapping[str, tuple[str, tuple[int, ...], torch.dtype]]
    buffers: Mapping[str, Tensor]


def from_first(value: _Value) -> _Value:
    """Return the first process's value, in all."""
    values = [value]
    broadcast_object_list(values)
    return values[0]


def from_all(value: _Value) -> list[_Value]:
    """Return the values of all processes in order; of a process by itself its own."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def take_layout(model: nn.Module, *, also_first: bool = False) -> None:
    """Give a model that was begun without weights the ties, types and buffers of the first process's model.

    Its configuration alone does not tell them: files may hold a head of its own beside embeddings that could be tied.

    Args:
        model: With the same modules as the first process's, which stays as it is; the parameters of another become
            empty ones on the meta device.
        also_first: Those of the first process's model as well.
    """
    is_first = dist.get_rank() == 0
    owners = {id(parameter): name for name, parameter in model.named_parameters()}
    named = dict(model.named_parameters(remove_duplicate=False))
    layout = from_first(
        _Layout(
            {name: (owners[id(one)], tuple(one.shape), one.dtype) for name, one in named.items()},
            {name: one.detach().cpu() for name, one in model.named_buffers()},
        )
        if is_first
        else _Layout({}, {})
    )
    if is_first and not also_first:
        return
    made: dict[str, nn.Parameter] = {}
    for name, (owner, shape, dtype) in layout.parameters.items():
        if owner not in made:
            empty = torch.empty(shape, dtype=dtype, device="meta")
            made[owner] = nn.Parameter(empty, requires_grad=dtype.is_floating_point)
        put(model, name, made[owner])
    for name, value in layout.buffers.items():
        put(model, name, value)


@contextmanager
def while_it_is_divided(model: nn.Module) -> Iterator[None]:
    """Let accelerate divide a model's parameters, and leave its ties and buffers as they are.

    It would divide buffers that files hold, and ties what the configuration calls tied, whatever the files say.
    """
    stored = [
        (module, name)
        for module in model.modules()
        for name in module._buffers
        if name not in module._non_persistent_buffers_set
    ]
    for module, name in stored:
        module._non_persistent_buffers_set.add(name)
    owners = {id(parameter): name for name, parameter in model.named_parameters()}
    ties = {name: owners[id(one)] for name, one in model.named_parameters(remove_duplicate=False)}

    def tie_weights() -> None:
        for name, owner in ties.items():
            if name != owner:
                put(model, name, model.get_parameter(owner))

    any_model: Any = model
    any_model.tie_weights = tie_weights
    try:
        yield
    finally:
        del any_model.tie_weights
        for module, name in stored:
            module._non_persistent_buffers_set.discard(name)


@contextmanager
def divided_in_groups(accelerator: Accelerator, replicas: int) -> Iterator[None]:
    """Let accelerate divide a model inside of groups of processes, which follow each other in rank; 1: between all.

    It would also read the mesh where it deals batches, so the mesh is taken away again.
    """
    if replicas == 1:
        yield
        return
    size = accelerator.num_processes // replicas
    groups = ParallelismConfig(
        dp_replicate_size=replicas, dp_shard_size=size, tp_size=1, cp_size=1, sp_size=1
    )
    state: Any = accelerator.state
    before = state.parallelism_config, state.device_mesh
    state.parallelism_config, state.device_mesh = groups, groups.get_device_mesh(accelerator.device.type)
    try:
        yield
    finally:
        state.parallelism_config, state.device_mesh = before


def put(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a parameter or buffer where its name says."""
    module, _, own = name.rpartition(".")
    setattr(model.get_submodule(module), own, tensor)


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


@torch.no_grad()
def set_whole(own: nn.Module | None, divided: nn.Module, names: Collection[str]) -> None:
    """Copy a divided model's named parameters into an undivided one, bit for bit and one after the other.

    Args:
        own: Gets them, in place; None: this process sends only.
        divided: Every process's.
        names: In the same order everywhere, where they are sorted.
    """
    places = {} if own is None else dict(own.named_parameters())
    pieces = dict(divided.named_parameters())
    for name in sorted(names):
        full = whole(pieces[name])
        if own is not None:
            places[name].copy_(full)


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
