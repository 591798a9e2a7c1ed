"""A model that only answers, such as distillation's teacher, divided between the processes of a sharded training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import distribute_tensor

from lingraft.models.layers import decoder_layers
from lingraft.models.loading import load_empty_model, load_model
from lingraft.train.sharding import own_piece, put, take_layout


@torch.no_grad()
def load_divided(
    folder: Path, device: torch.device, dtype: torch.dtype, *, trust_remote_code: bool = False
) -> Any:
    """Load a model in evaluation mode, of each weight a piece in every process; all of them call this, and then it.

    The first process alone reads the files, into its host's memory. On the devices one weight at a time is whole, and
    in a forward pass one layer, and what stands outside of the layers.

    Args:
        folder: A checkpoint.
        device: Of this process.
        dtype: Type of the weights.
        trust_remote_code: Run Python code that the model brings along.
    """
    is_first = dist.get_rank() == 0
    model: Any = (
        load_model(folder, dtype=dtype, trust_remote_code=trust_remote_code)
        if is_first
        else load_empty_model(folder, trust_remote_code=trust_remote_code)
    )
    weights = {name: parameter.data for name, parameter in model.named_parameters()} if is_first else {}
    take_layout(model, also_first=True)
    model.requires_grad_(False)
    buffers = dict(model.named_buffers())
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for layer in decoder_layers(model):
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)  # no backward pass would put it away
    model.to_empty(device=device)
    for name, value in buffers.items():
        put(model, name, value.to(device))
    for name, parameter in model.named_parameters():
        whole = (
            weights.pop(name).to(device)
            if is_first
            else torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
        )
        pieces = distribute_tensor(whole, parameter.device_mesh, parameter.placements)
        own_piece(parameter).copy_(own_piece(pieces))
    return model
