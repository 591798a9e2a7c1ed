"""A model's weights written again in another type: in shards and piece by piece, so that none is whole in memory.

Bytes go from the source's files through one small buffer into the new ones, whatever the size of the model.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from lingraft.errors import DiskError, ModelError
from lingraft.models.tensor_files import INDEX_FILE, SINGLE_FILE, StoredTensor, write_tensors
from lingraft.models.weights import ModelWeights
from lingraft.records import write_json_atomically

_ELEMENTS_AT_ONCE = 2**22


def write_shards(weights: ModelWeights, folder: Path, dtype: torch.dtype, shard_bytes: int) -> int:
    """Write all tensors of a model under the names that its files have, and the index of several shards.

    Parameters are rounded to `dtype`, but for those that the architecture keeps in float32; whole numbers, marks and
    what is no parameter stay as they are. A tensor that repeats the one it is tied to is left out.

    Args:
        weights: The model.
        folder: Where the files go; it exists.
        dtype: See above.
        shard_bytes: Most bytes of tensors in a file; a larger tensor has one of its own.

    Returns:
        Bytes of all tensors.

    Raises:
        DiskError: They do not fit on the disk.
        ModelError: A value is too large for `dtype`.
    """
    shards: list[list[StoredTensor]] = [[]]
    for tensor in _tensors(weights, dtype):
        if shards[-1] and sum(one.bytes for one in shards[-1]) + tensor.bytes > shard_bytes:
            shards.append([])
        shards[-1].append(tensor)
    total = sum(tensor.bytes for shard in shards for tensor in shard)
    free = shutil.disk_usage(folder).free
    if free < total:
        raise DiskError(
            f"{folder.parent}: the model takes {total / 1e9:.1f} GB, and {free / 1e9:.1f} GB of the disk are free: "
            "free some space, or name a folder elsewhere."
        )
    count = len(shards)
    names = [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    for name, shard in zip(names if count > 1 else [SINGLE_FILE], shards, strict=True):
        write_tensors(folder / name, shard, lambda tensor: _rounded(tensor, weights))
    if count > 1:
        places = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        index = {"metadata": {"total_size": total}, "weight_map": places}
        write_json_atomically(folder / INDEX_FILE, index)
    return total


def _tensors(weights: ModelWeights, dtype: torch.dtype) -> list[StoredTensor]:
    found = []
    for part in weights.parts():
        kept = {weights.type_in(name, dtype) for name in part.parameters}
        wanted = kept.pop() if len(kept) == 1 else torch.float32 if kept else None
        for name in part.stored:
            stored = weights.files.kind(name)
            own = stored if wanted is None or not stored.is_floating_point else wanted
            found.append(StoredTensor(name, own, weights.files.shape(name)))
    return found


def _rounded(tensor: StoredTensor, weights: ModelWeights) -> Iterator[torch.Tensor]:
    for piece in weights.files.pieces(tensor.name, _ELEMENTS_AT_ONCE):
        rounded = piece.to(tensor.dtype)
        if tensor.dtype == torch.float16 and not (rounded.isfinite() | ~piece.isfinite()).all():
            raise ModelError(
                f"{weights.folder}: {tensor.name} holds values above 65504, which float16 cannot hold; take "
                "bf16 or float32."
            )
        yield rounded
