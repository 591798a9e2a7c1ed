"""Model Parameter Difference (MPD): how far two models' weights lie apart, tensor by tensor.

Source: arXiv 2410.16006, Definition 2. Whether the paper's index runs over tensors or elements is open; tensors
are ours, because element by element it would be no L2 norm. A piece of each model is in memory at a time, however
large the models and their tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from lingraft.errors import ModelError
from lingraft.models.layers import layer_of, module_type_of
from lingraft.models.loaded import weights_of
from lingraft.models.tensor_files import WeightReader, repeats
from lingraft.models.weights import WRAPPED_ADVICE
from lingraft.notebook import InNotebook

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ELEMENTS_PER_PIECE = 2**20  # read at a time
_ELEMENTS_IN_CACHE = 2**17  # computed with at a time: 1 MiB in float64
_Key = TypeVar("_Key", int, str)


@dataclass(frozen=True, slots=True)
class UpdateComparison:
    """How two models' changes of one tensor, from a common base, point.

    Attributes:
        cosine: Of the two updates, in [-1, 1]; below 0 they undo each other; None where either is all zeros.
        sign_agreement: Of the parameters that both change, the share that both change in one direction, in [0, 1]; 0.5
            is chance; None: there are none.
        first_norm: ||w1 - w0||.
        second_norm: ||w2 - w0||.
        product: <w1 - w0, w2 - w0>.
        agreeing: Parameters that both change in one direction.
        changed: Parameters that both change.
    """

    cosine: float | None
    sign_agreement: float | None
    first_norm: float
    second_norm: float
    product: float
    agreeing: int
    changed: int


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
        other_norm: ||w2||.
        rows: Rows compared, where one has more of them (a resized vocabulary); None: all.
        update: The two updates from the base; None: no base was given, or it does not have the tensor.
    """

    name: str
    layer: int | None
    module: str
    l2: float
    relative: float | None
    cosine: float | None
    norm: float
    other_norm: float
    rows: int | None
    update: UpdateComparison | None


@dataclass(frozen=True, slots=True)
class GroupDifference:
    """The change of several tensors together, as if they were one long vector.

    Attributes:
        name: Layer number, module type, or `outside the layers`.
        tensors: How many.
        mpd: Mean of their L2 distances.
        l2: L2 distance of all of their parameters.
        relative: `l2` over the first model's norm; None where that is 0.
        cosine: Of the two models' parameters; None where either is all zeros.
        update_cosine: Of the two updates from the base; None: no base, or no update.
        sign_agreement: See UpdateComparison.
    """

    name: str
    tensors: int
    mpd: float
    l2: float
    relative: float | None
    cosine: float | None
    update_cosine: float | None
    sign_agreement: float | None


@dataclass(frozen=True, slots=True)
class ParameterDifference(InNotebook):
    """Two models' distance.

    Attributes:
        mpd: Mean over the common tensors of their L2 distances, >= 0; 0: equal.
        relative: L2 distance of all common weights over the L2 norm of the first model's; None where that is 0.
        tensors: One entry per common tensor.
        missing: Tensors that only one model has; they are in no figure.
        resized: Matrices outside the layers of which only the rows that both have are compared.
        without_base: Tensors that the base does not have in this shape, and whose updates are not compared.
    """

    mpd: float
    relative: float | None
    tensors: tuple[TensorDifference, ...] = field(repr=False)
    missing: tuple[str, ...]
    resized: tuple[str, ...] = ()
    without_base: tuple[str, ...] = ()

    def by_layer(self) -> tuple[GroupDifference, ...]:
        """Return the change of each decoder layer, and of what lies outside of them."""
        groups = _grouped(self.tensors, lambda one: -1 if one.layer is None else one.layer)
        return tuple(
            _group("outside the layers" if layer < 0 else str(layer), groups[layer])
            for layer in sorted(groups)
        )

    def by_module(self) -> tuple[GroupDifference, ...]:
        """Return the change of each module type, the largest relative change first."""
        groups = _grouped(self.tensors, lambda one: one.module)
        found = [_group(name, own) for name, own in groups.items()]
        return tuple(sorted(found, key=lambda one: -(one.relative or 0.0)))

    def whole(self) -> GroupDifference:
        """Return the change of all common tensors."""
        return _group("all", self.tensors)

    @property
    def has_updates(self) -> bool:
        """Whether the two updates from a base were compared."""
        return any(one.update is not None for one in self.tensors)

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON values; those of the updates only where there was a base."""
        whole = self.whole()
        update = {"update_cosine": whole.update_cosine, "sign_agreement": whole.sign_agreement}
        unknown = () if self.has_updates else tuple(update)
        layers, modules = (
            [{name: own for name, own in asdict(one).items() if name not in unknown} for one in groups]
            for groups in (self.by_layer(), self.by_module())
        )
        tensors = []
        for one in self.tensors:
            own: dict[str, str | int | float | None] = {
                "name": one.name,
                "layer": one.layer,
                "module": one.module,
                "l2": one.l2,
                "relative": one.relative,
                "cosine": one.cosine,
            }
            if one.rows is not None:
                own["rows"] = one.rows
            if one.update is not None:
                own |= {"update_cosine": one.update.cosine, "sign_agreement": one.update.sign_agreement}
            tensors.append(own)
        return {
            "mpd": self.mpd,
            "n_tensors": len(self.tensors),
            "relative": self.relative,
            **(update if self.has_updates else {}),
            "layers": layers,
            "modules": modules,
            "tensors": tensors,
            "missing": list(self.missing),
            "resized": list(self.resized),
            "without_base": list(self.without_base),
        }


def parameter_difference(
    first: str | Path | PreTrainedModel | WeightReader,
    second: str | Path | PreTrainedModel | WeightReader,
    base: str | Path | PreTrainedModel | WeightReader | None = None,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> ParameterDifference:
    """Return MPD(T1, T2) = (1/n) sum_i ||w(T1, i) - w(T2, i)||_2 over the n tensors that both models have.

    Tensors go by the names of the models' parameters, whatever the files call them. A tied output head counts once,
    also where a checkpoint stores it in full. Types may differ: everything is computed in float64. Of embeddings and
    heads of which one has more rows (a resized vocabulary) the common rows are compared.

    Args:
        first: A folder (also of a LoRA adapter), hub id or `embedded:NAME`, a model in memory, or a reader.
        second: The other one.
        base: The model that both come from: compares the two updates as well.
        on_progress: Called with the tensors done and all of them.

    Raises:
        ModelError: A folder is no checkpoint, the models are of two architectures (their configurations say so, or
            they have no tensor in common), shapes differ, or weights are not finite.
    """
    one, other = weights_of(first), weights_of(second)
    origin = None if base is None else weights_of(base)
    for model in (other, *([] if origin is None else [origin])):
        kinds = one.architecture, model.architecture
        if None not in kinds and kinds[0] != kinds[1]:
            raise ModelError(
                f"{one.folder} is a {kinds[0]}, {model.folder} a {kinds[1]}: weights of two architectures do not "
                "compare."
            )
    repeated, other_repeated = _stored_twice(one), _stored_twice(other)
    counted = frozenset(other.names) - (repeated & other_repeated)
    common = [name for name in one.names if name in counted]
    if not common:
        problem = f"{one.folder} and {other.folder}: have no tensor in common"
        if None in (one.architecture, other.architecture):
            raise ModelError(f"{problem}; these are two architectures.")
        raise ModelError(
            f"{problem}, though both are a {one.architecture}: one holds {one.names[0]}, the other {other.names[0]}. "
            f"{WRAPPED_ADVICE}"
        )
    rows = {name: _common_rows(name, one, other) for name in common}
    tensors: tuple[TensorDifference, ...] = ()
    for name in common:
        tensors += (_tensor_difference(name, rows[name], one, other, origin),)
        if on_progress is not None:
            on_progress(len(tensors), len(common))
    whole = _group("all", tensors)
    return ParameterDifference(
        mpd=whole.mpd,
        relative=whole.relative,
        tensors=tensors,
        missing=tuple(sorted((set(one.names) ^ set(other.names)) - repeated - other_repeated)),
        resized=tuple(name for name in common if rows[name] is not None),
        without_base=tuple(one.name for one in tensors if origin is not None and one.update is None),
    )


def _common_rows(name: str, one: WeightReader, other: WeightReader) -> int | None:
    """Return how many rows both have where only the vocabulary differs, None where the shapes are equal."""
    shape, other_shape = one.shape(name), other.shape(name)
    if shape == other_shape:
        return None
    if layer_of(name) is None and len(shape) == len(other_shape) == 2 and shape[1] == other_shape[1]:
        return min(shape[0], other_shape[0])
    raise ModelError(
        f"{one.folder} and {other.folder}: {name} is {shape} in one and {other_shape} in the other."
    )


def _stored_twice(reader: WeightReader) -> frozenset[str]:
    """Return the matrices outside the layers that repeat another one bit for bit: tied heads stored in full."""
    outside = [name for name in reader.names if layer_of(name) is None and len(reader.shape(name)) == 2]
    outside.sort(key=lambda name: "embed" not in name and "wte" not in name)  # the embedding is the original
    return frozenset(
        later
        for position, later in enumerate(outside)
        for earlier in outside[:position]
        if repeats(reader, earlier, later)
    )


def _tensor_difference(
    name: str, rows: int | None, one: WeightReader, other: WeightReader, base: WeightReader | None
) -> TensorDifference:
    shape = one.shape(name)
    rows_read = rows if rows is not None else (shape or (1,))[0]
    readers = [one, other]
    if base is not None and name in base.names:
        own = base.shape(name)
        if own[1:] == shape[1:] and own[:1] >= ((rows,) if rows is not None else shape[:1]):
            readers.append(base)
    pieces = zip(*(reader.pieces(name, _ELEMENTS_PER_PIECE, rows_read) for reader in readers), strict=True)
    # |a - b|^2, |a|^2 and |b|^2; with a base c also |a - c|^2, |b - c|^2, <a - c, b - c>, and how many parameters both
    # change, in one direction and at all.
    sums = torch.zeros(3 if len(readers) == 2 else 8, dtype=torch.float64)
    for piece in pieces:
        for stored in zip(*(torch.split(part, _ELEMENTS_IN_CACHE) for part in piece), strict=True):
            a, b, *origin = (part.double() for part in stored)
            change = a - b
            parts = [change @ change, a @ a, b @ b]
            for c in origin:
                u, v = a - c, b - c
                signs = torch.sign(u) * torch.sign(v)
                parts += [u @ u, v @ v, u @ v, (signs > 0).sum(), (signs != 0).sum()]
            sums += torch.stack([part.double() for part in parts])
    if not bool(torch.isfinite(sums).all()):
        raise ModelError(
            f"{name}: holds weights that are not finite (NaN or infinity) in one of the models, so training "
            "diverged or the file is damaged. Train with a lower learning rate, or fetch it again."
        )
    distance, square, other_square, *updates = sums.tolist()
    l2, norm, other_norm = math.sqrt(distance), math.sqrt(square), math.sqrt(other_square)
    update = None
    if updates:
        first, second, product, agreeing, changed = updates
        norms = math.sqrt(first), math.sqrt(second)
        update = UpdateComparison(
            cosine=_cosine(product, *norms),
            sign_agreement=agreeing / changed if changed else None,
            first_norm=norms[0],
            second_norm=norms[1],
            product=product,
            agreeing=int(agreeing),
            changed=int(changed),
        )
    product = (square + other_square - distance) / 2  # in float64 as good as summing it, and a pass less
    return TensorDifference(
        name=name,
        layer=layer_of(name),
        module=module_type_of(name),
        l2=l2,
        relative=l2 / norm if norm > 0 else None,
        cosine=_cosine(product, norm, other_norm),
        norm=norm,
        other_norm=other_norm,
        rows=rows,
        update=update,
    )


def _cosine(product: float, norm: float, other_norm: float) -> float | None:
    if norm <= 0 or other_norm <= 0:
        return None
    return max(-1.0, min(1.0, product / (norm * other_norm)))


def _grouped(
    tensors: Sequence[TensorDifference], key: Callable[[TensorDifference], _Key]
) -> dict[_Key, list[TensorDifference]]:
    groups: dict[_Key, list[TensorDifference]] = {}
    for one in tensors:
        groups.setdefault(key(one), []).append(one)
    return groups


def _group(name: str, tensors: Sequence[TensorDifference]) -> GroupDifference:
    norm = math.sqrt(sum(one.norm**2 for one in tensors))
    other = math.sqrt(sum(one.other_norm**2 for one in tensors))
    l2 = math.sqrt(sum(one.l2**2 for one in tensors))
    product = sum((one.cosine or 0.0) * one.norm * one.other_norm for one in tensors)
    updates = [one.update for one in tensors if one.update is not None]
    first_length = math.sqrt(sum(u.first_norm**2 for u in updates))
    second_length = math.sqrt(sum(u.second_norm**2 for u in updates))
    changed = sum(u.changed for u in updates)
    return GroupDifference(
        name=name,
        tensors=len(tensors),
        mpd=sum(one.l2 for one in tensors) / len(tensors),
        l2=l2,
        relative=l2 / norm if norm > 0 else None,
        cosine=_cosine(product, norm, other),
        update_cosine=_cosine(sum(u.product for u in updates), first_length, second_length),
        sign_agreement=sum(u.agreeing for u in updates) / changed if changed else None,
    )
