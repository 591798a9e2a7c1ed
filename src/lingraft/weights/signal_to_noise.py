"""Signal-to-noise ratio of weight matrices (Spectrum): which modules hold structure, and which look like noise.

A matrix of independent noise has singular values up to an edge that its shape and the noise's size decide
(Marchenko and Pastur). What lies above is signal. Two estimators: `reference` gives the values of the public Spectrum
scanner, `median` is sound. Two matrices are in memory at a time.

Sources: Hartford et al. 2024, "Spectrum: Targeted Training on Signal to Noise Ratio", arXiv 2406.06623; Marchenko and
Pastur 1967; Gavish and Donoho 2014, "The Optimal Hard Threshold for Singular Values is 4/sqrt(3)" (noise from the
median).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from scipy.integrate import quad
from scipy.optimize import brentq
from threadpoolctl import threadpool_limits

from lingraft.errors import ConfigError, ModelError
from lingraft.models.compute import compute_device, has_float64
from lingraft.models.layers import layer_of, module_type_of
from lingraft.models.loaded import weights_of
from lingraft.models.tensor_files import WeightReader
from lingraft.notebook import InNotebook

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Estimator = Literal["reference", "median"]
ESTIMATORS: tuple[Estimator, ...] = ("median", "reference")
_AT_A_TIME = 2  # matrices in memory
_RESOLVED = 1e-3  # of the largest singular value
_ORDINARY = (1e-6, 1e6)  # largest weights whose squares float32 holds well
_IQR_OF_A_NORMAL = 1.349
_PROCESSOR = torch.device("cpu")

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class ModuleSignal:
    """One weight matrix's signal-to-noise ratio; of a stack of experts' matrices their mean.

    Attributes:
        type: Module type, such as q_proj; ranks compare within it.
        snr: The score, >= 0; higher holds more structure. `median`: sum of the singular values above the edge over the
            sum of the others, unchanged by the matrix's scale. `reference`: the same over its own threshold, divided by
            the largest singular value. Infinite where nothing is noise.
        rank: Place among the modules of its type, from 1, the highest score first.
        selected: Whether it is among the share to train.
        above: Singular values above the edge.
        of: Singular values.
    """

    name: str
    layer: int
    type: str
    snr: float
    rank: int
    selected: bool
    above: int
    of: int


@dataclass(frozen=True)
class SignalScan(InNotebook):
    """A model's weight matrices by signal-to-noise ratio.

    Attributes:
        modules: Every matrix of the decoder layers, in the order of their names.
        estimator: How noise was estimated.
        share: Share of each type that is selected: int(share * modules of the type).
        skipped: Tensors of the layers that are no matrices, and have no ratio.
        outside: Matrices outside the layers (embeddings, head), which are not ranked.
    """

    modules: tuple[ModuleSignal, ...]
    estimator: Estimator
    share: float
    skipped: tuple[str, ...]
    outside: tuple[str, ...]

    def by_type(self) -> dict[str, tuple[ModuleSignal, ...]]:
        """Return the modules of each type, the highest score first."""
        types: dict[str, list[ModuleSignal]] = {}
        for one in self.modules:
            types.setdefault(one.type, []).append(one)
        return {name: tuple(sorted(own, key=lambda one: one.rank)) for name, own in sorted(types.items())}

    def unfrozen_parameters(self, *, with_outside: bool = True) -> list[str]:
        """Return regular expressions of the parameters to train, as axolotl's `unfrozen_parameters` takes them.

        axolotl escapes the dots itself, so they stand bare; between `^` and `$` no other parameter fits.

        Args:
            with_outside: Train embeddings and head as well, as the public scanner's plans do.
        """
        chosen = [one.name for own in self.by_type().values() for one in own if one.selected]
        return [f"^{name}$" for name in [*(self.outside if with_outside else ()), *chosen]]

    def to_json(self) -> dict[str, Any]:
        """Return the scan as JSON values."""
        return {
            "estimator": self.estimator,
            "share": self.share,
            "modules": [
                asdict(one) | {"snr": one.snr if math.isfinite(one.snr) else None} for one in self.modules
            ],
            "skipped": list(self.skipped),
            "outside": list(self.outside),
        }


def signal_to_noise(
    model: str | Path | PreTrainedModel | WeightReader,
    *,
    estimator: Estimator = "median",
    share: float = 0.5,
    on_progress: Callable[[int, int], None] | None = None,
) -> SignalScan:
    """Rank the weight matrices of a model's decoder layers by signal-to-noise ratio, within each module type.

    Args:
        model: A folder (also of a LoRA adapter), hub id or `embedded:NAME`, a model in memory, or a reader.
        estimator: `median` or `reference`; see `signal_of`.
        share: Of each type, the share to select, in [0, 1]; int(share * modules) of them, as the public scanner does.
        on_progress: Called with the matrices done and all of them.

    Raises:
        ConfigError: An estimator that there is not, or a share outside [0, 1].
        ModelError: The folder is no checkpoint, it has no matrix in a decoder layer, or weights are not finite.
    """
    if estimator not in ESTIMATORS:
        raise ConfigError(f"estimator {estimator!r}: there are {' and '.join(ESTIMATORS)}.")
    if not isinstance(share, (int, float)) or not 0 <= share <= 1:
        raise ConfigError(f"share {share!r}: must lie between 0 and 1.")
    reader = weights_of(model)
    inside = [name for name in reader.names if layer_of(name) is not None]
    # Matrices or, of a mixture of experts, stacks of them.
    matrices = [
        name for name in inside if len(reader.shape(name)) in (2, 3) and min(reader.shape(name)[-2:]) > 1
    ]
    if not matrices:
        raise ModelError(f"{reader.folder}: no decoder layer holds a weight matrix.")
    found = []
    device = compute_device()
    if not has_float64(device):
        device = _PROCESSOR
    # Two at a time on half of the cores each: on two cores a quarter faster than one at a time on both.
    threads = max(1, (os.cpu_count() or 1) // _AT_A_TIME)
    with threadpool_limits(threads, user_api="blas"), ThreadPoolExecutor(_AT_A_TIME) as pool:
        signals = pool.map(lambda name: _signal_in(reader, name, estimator, device), matrices)
        for done, signal in enumerate(signals, start=1):
            found.append(signal)
            if on_progress is not None:
                on_progress(done, len(matrices))
    return SignalScan(
        modules=_ranked(matrices, found, share),
        estimator=estimator,
        share=share,
        skipped=tuple(name for name in inside if name not in set(matrices)),
        outside=tuple(n for n in reader.names if layer_of(n) is None and len(reader.shape(n)) == 2),
    )


@dataclass(frozen=True, slots=True)
class Signal:
    """A matrix's score, and how many of its singular values are signal."""

    snr: float
    above: int
    of: int


def signal_of(matrix: torch.Tensor, estimator: Estimator, device: torch.device = _PROCESSOR) -> Signal:
    """Return a matrix's signal-to-noise ratio.

    median: sigma = median(S) / sqrt(mu * max(n, m)), mu the median of the Marchenko-Pastur law of ratio min / max; the
    edge is sigma * (sqrt(n) + sqrt(m)). Right for noise under fewer spikes than half of the singular values.

    reference: sigma = (q75(S) - q25(S)) / 1.349, the threshold sigma * (1 + sqrt(min / max)), the score divided by the
    largest singular value. The threshold is not the edge: of pure noise 300 x 900 it calls nine tenths signal, and the
    score changes with the matrix's scale. For parity with published scans.

    Args:
        matrix: [n, m], finite.
        estimator: `median` or `reference`.
        device: What computes the singular values; it has float64.
    """
    values = singular_values(matrix) if device.type == "cpu" else exact_singular_values(matrix.to(device))
    n, m = matrix.shape
    if estimator == "median":
        edge = noise_edge(values, n, m)
    else:
        low, high = np.quantile(values, [0.25, 0.75])
        edge = float(high - low) / _IQR_OF_A_NORMAL * (1 + math.sqrt(min(n, m) / max(n, m)))
    signal = values[values > edge]
    noise = values[values <= edge]
    below = float(noise.sum()) if len(noise) else 1.0
    ratio = float(signal.sum()) / below if below > 0 else math.inf
    largest = float(values[0])
    if estimator == "reference":
        ratio = ratio / largest if largest > 0 else 0.0
    return Signal(0.0 if largest == 0 else ratio, len(signal), len(values))


def singular_values(matrix: torch.Tensor) -> Floats:
    """Return a matrix's singular values, the largest first, from the eigenvalues of its smaller Gram matrix.

    A third of the cost of a decomposition. Computed in float32, in which squaring leaves values below 2.4e-4 of the
    largest unresolved; where the median is below a thousandth of the largest, in float64.
    """
    scale = _largest(matrix)
    if scale == 0:
        return np.zeros(min(matrix.shape))
    values = _roots(matrix, torch.float32, scale)
    return values if np.median(values) > _RESOLVED * values[0] else _roots(matrix, torch.float64, scale)


def exact_singular_values(matrix: torch.Tensor) -> Floats:
    """Return the same from a Gram matrix in float64, computed where the matrix is.

    For an accelerator, which has the time: values down to 1e-8 of the largest are resolved.
    """
    wide = matrix.double()
    gram = wide @ wide.T if wide.shape[0] <= wide.shape[1] else wide.T @ wide
    values: Floats = torch.linalg.eigvalsh(gram).clamp_(min=0).sqrt_().flip(0).cpu().numpy()
    return values


def _roots(matrix: torch.Tensor, kind: torch.dtype, scale: float) -> Floats:
    """Return the square roots of the eigenvalues of the smaller of W W' and W' W; `scale` is the largest of |W|."""
    # Squares of ordinary weights are far from the ends of float32; a copy of each matrix would cost a tenth of a scan.
    unit = 1.0 if _ORDINARY[0] <= scale <= _ORDINARY[1] else scale
    rows = (matrix.to(kind) if unit == 1.0 else matrix.to(kind) / unit).contiguous().numpy()
    # A matrix by its own transpose is half the work of a general product, and numpy sees that.
    gram = rows @ rows.T if rows.shape[0] <= rows.shape[1] else rows.T @ rows
    squares = np.linalg.eigvalsh(gram)
    roots: Floats = np.sqrt(squares.astype(np.float64).clip(min=0))[::-1] * unit
    return roots


def noise_edge(values: Floats, n: int, m: int) -> float:
    """Return the largest singular value that noise of this size would have, [n, m] large; see `signal_of`."""
    beta = min(n, m) / max(n, m)
    sigma = float(np.median(values)) / math.sqrt(marchenko_pastur_median(beta) * max(n, m))
    return sigma * (math.sqrt(n) + math.sqrt(m))


@cache
def marchenko_pastur_median(beta: float) -> float:
    """Return the median of the Marchenko-Pastur law of unit variance and ratio `beta` in (0, 1]."""
    low, high = (1 - math.sqrt(beta)) ** 2, (1 + math.sqrt(beta)) ** 2

    def density(x: float) -> float:
        return math.sqrt(max((high - x) * (x - low), 0.0)) / (2 * math.pi * beta * x) if x > 0 else 0.0

    def excess(x: float) -> float:
        return float(quad(density, low, x, limit=200)[0]) - 0.5

    return float(brentq(excess, low, high, xtol=1e-10))


def _signal_in(reader: WeightReader, name: str, estimator: Estimator, device: torch.device) -> Signal:
    """Return a matrix's signal; of a stack the mean ratio of its matrices and their counts' sums."""
    *_, rows, columns = shape = reader.shape(name)
    found = []
    for piece in reader.pieces(name, math.prod(shape) if len(shape) == 2 else 1):
        matrix = piece.view(rows, columns)
        if not math.isfinite(_largest(matrix)):
            raise ModelError(f"{reader.folder}: {name} holds weights that are not finite (NaN or infinity).")
        found.append(signal_of(matrix, estimator, device))
    ratio = sum(one.snr for one in found) / len(found)
    return Signal(ratio, sum(one.above for one in found), sum(one.of for one in found))


def _largest(matrix: torch.Tensor) -> float:
    """Return the largest absolute value; NaN where there is one."""
    low, high = torch.aminmax(matrix)
    return float(torch.maximum(low.abs(), high.abs()))


def _ranked(names: Sequence[str], found: Sequence[Signal], share: float) -> tuple[ModuleSignal, ...]:
    types: dict[str, list[int]] = {}
    for position, name in enumerate(names):
        types.setdefault(module_type_of(name), []).append(position)
    ranks: dict[int, tuple[int, bool]] = {}
    for own in types.values():
        kept = int(len(own) * share)
        for rank, position in enumerate(sorted(own, key=lambda p: -found[p].snr), start=1):
            ranks[position] = (rank, rank <= kept)
    return tuple(
        ModuleSignal(
            name, layer_of(name) or 0, module_type_of(name), one.snr, *ranks[position], one.above, one.of
        )
        for position, (name, one) in enumerate(zip(names, found, strict=True))
    )
