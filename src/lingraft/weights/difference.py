"""Model Parameter Difference (MPD): how far two models' weights lie apart, tensor by tensor.

Source: arXiv 2410.16006, Definition 2. Whether the paper's index runs over tensors or elements is open; tensors
are ours, because element by element it would be no L2 norm. One tensor of each model is in memory at a time, and
of it a small piece in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from lingraft.errors import ModelError
from lingraft.models.checkpoints import CheckpointReader
from lingraft.models.layers import layer_of, module_type_of

_ELEMENTS_PER_PIECE = 2**22  # 32 MiB in float64; an embedding of a large model would take gigabytes


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """One tensor's change.

    Attributes:
        name: Parameter name.
        layer: Decoder layer; None outside the layers.
        module: Module type, such as q_proj.
        l2: ||w1 - w2||, >= 0.
        relative: ||w1 - w2|| / ||w1||; None where w1 is all zeros.
        cosine: Of w1 and w2, in [-1, 1]; None where either is all zeros.
        norm: ||w1||.
    """

    name: str
    layer: int | None
    module: str
    l2: float
    relative: float | None
    cosine: float | None
    norm: float


@dataclass(frozen=True, slots=True)
class ParameterDifference:
    """Two models' distance.

    Attributes:
        mpd: Mean over the common tensors of their L2 distances, >= 0; 0: equal.
        relative: L2 distance of all common weights over the L2 norm of the first model's; None where that is 0.
        tensors: One entry per common tensor.
        missing: Tensors that only one model has; they are in no figure.
    """

    mpd: float
    relative: float | None
    tensors: tuple[TensorDifference, ...]
    missing: tuple[str, ...]


def parameter_difference(first: Path, second: Path) -> ParameterDifference:
    """Return MPD(T1, T2) = (1/n) sum_i ||w(T1, i) - w(T2, i)||_2 over the n tensors that both models have.

    A tied output head counts once, also where a checkpoint stores it in full. Norms are accumulated in float64.

    Args:
        first: Checkpoint folder of safetensors.
        second: The other one.

    Raises:
        ModelError: A folder is no checkpoint, the two have no tensor in common, shapes differ, or weights are
            not finite.
    """
    one, other = CheckpointReader(first), CheckpointReader(second)
    repeated, other_repeated = _stored_twice(one), _stored_twice(other)
    counted = frozenset(other.names) - (repeated & other_repeated)
    common = [name for name in one.names if name in counted]
    if not common:
        raise ModelError(f"{first} and {second}: have no tensor in common; these are two architectures.")
    for name in common:
        if one.shape(name) != other.shape(name):
            raise ModelError(
                f"{first} and {second}: {name} is {one.shape(name)} in one and {other.shape(name)} in the other."
            )
    tensors = tuple(_tensor_difference(name, one.tensor(name), other.tensor(name)) for name in common)
    norm = math.sqrt(sum(t.norm**2 for t in tensors))
    distance = math.sqrt(sum(t.l2**2 for t in tensors))
    return ParameterDifference(
        mpd=sum(t.l2 for t in tensors) / len(tensors),
        relative=distance / norm if norm > 0 else None,
        tensors=tensors,
        missing=tuple(sorted((set(one.names) ^ set(other.names)) - repeated - other_repeated)),
    )


def _stored_twice(reader: CheckpointReader) -> frozenset[str]:
    """Return the matrices outside the layers that repeat another one bit for bit: tied heads stored in full."""
    outside = [name for name in reader.names if layer_of(name) is None and len(reader.shape(name)) == 2]
    outside.sort(key=lambda name: "embed" not in name and "wte" not in name)  # the embedding is the original
    return frozenset(
        later
        for position, later in enumerate(outside)
        for earlier in outside[:position]
        if reader.shape(earlier) == reader.shape(later)
        and torch.equal(reader.tensor(earlier), reader.tensor(later))
    )


def _tensor_difference(name: str, one: torch.Tensor, other: torch.Tensor) -> TensorDifference:
    l2, norm, other_norm, product = _norms(one, other)
    if not all(map(math.isfinite, (l2, norm, other_norm, product))):
        raise ModelError(
            f"{name}: holds weights that are not finite (NaN or infinity) in one of the two models, so training "
            "diverged or the file is damaged. Train with a lower learning rate, or fetch it again."
        )
    cosine = product / (norm * other_norm) if norm > 0 and other_norm > 0 else None
    return TensorDifference(
        name=name,
        layer=layer_of(name),
        module=module_type_of(name),
        l2=l2,
        relative=l2 / norm if norm > 0 else None,
        cosine=None if cosine is None else max(-1.0, min(1.0, cosine)),
        norm=norm,
    )


def _norms(one: torch.Tensor, other: torch.Tensor) -> tuple[float, float, float, float]:
    """Return ||one - other||, ||one||, ||other|| and the inner product, summed in float64 piece by piece."""
    sums = torch.zeros(4, dtype=torch.float64)
    pieces = (torch.split(tensor.flatten(), _ELEMENTS_PER_PIECE) for tensor in (one, other))
    for first, second in zip(*pieces, strict=True):
        a, b = first.double(), second.double()
        change = a - b
        sums += torch.stack([change @ change, a @ a, b @ b, a @ b])
    squared_distance, squared_norm, squared_other, product = sums.tolist()
    return math.sqrt(squared_distance), math.sqrt(squared_norm), math.sqrt(squared_other), product
