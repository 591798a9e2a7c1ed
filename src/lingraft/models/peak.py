"""What a device could compute at most: what MFU (model FLOPs utilisation) is a share of.

MFU is the FLOPs that a model needs for real tokens, recomputed activations and padding not counted, over what the
devices could have done in that time (Chowdhery et al. 2022, arXiv 2204.02311, appendix B).
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch

from lingraft.models.compute import Compute, device_name

_TERA = 1e12
# Dense, bf16 and TF32 on tensor cores and float32 without: NVIDIA's data sheets (they print the first two with
# sparsity, which is twice as much), for GeForce the white papers of Ada and Ampere, float32 accumulation.
_KNOWN: tuple[tuple[str, float, float, float], ...] = (
    (r"\bB200\b", 2250, 1125, 75),
    (r"\bH[12]00 NVL\b", 835, 417, 60),
    (r"\bH[18]00\b.*PCIe", 756, 378, 51),
    (r"\bG?H[128]00\b", 989, 494, 67),
    (r"\bA[18]00\b", 312, 156, 19.5),
    (r"\bL40S\b", 362, 183, 91.6),
    (r"\bL4\b", 121, 60, 30.3),
    (r"\bA10\b", 125, 62.5, 31.2),
    (r"\bRTX 4090\b(?! D| Laptop)", 165, 82.6, 82.6),
    (r"\bRTX 3090\b(?! Ti)", 71, 35.6, 35.6),
)
_SIDE, _SIDE_OF_PROCESSORS = 4096, 1024  # of the square matrices that are multiplied to measure
_FEWEST, _SECONDS = 3, 0.2


@dataclass(frozen=True, slots=True)
class Peak:
    """The most that one device, or all cores that a process may use, can compute.

    Attributes:
        flops: A second.
        source: `data sheet`, or `measured`: the best of a few products of large matrices.
    """

    flops: float
    source: Literal["data sheet", "measured"]


def peak_of(compute: Compute) -> Peak:
    """Return the peak of what computes, in the type of its matrix products.

    Of cards that are in the table it is the maker's figure; others and processors are measured, once a process: what
    else a machine does while it is measured makes the peak too low, and MFU too high.
    """
    is_tf32 = torch.get_float32_matmul_precision() != "highest"
    known = known_flops(device_name(compute.device), compute.arithmetic, is_tf32=is_tf32)
    if known is not None:
        return Peak(known, "data sheet")
    return Peak(_measured(compute.device, compute.arithmetic, torch.get_num_threads()), "measured")


def known_flops(name: str, arithmetic: torch.dtype, *, is_tf32: bool) -> float | None:
    """Return a card's dense peak in FLOPs a second by its name; None: it is not in the table.

    Args:
        name: As the driver calls it, such as `NVIDIA H100 80GB HBM3`.
        arithmetic: Type of the matrix products.
        is_tf32: Whether float32 products may be computed in TF32.
    """
    for pattern, bf16, tf32, float32 in _KNOWN:
        if re.search(pattern, name):
            return _TERA * (bf16 if arithmetic == torch.bfloat16 else tf32 if is_tf32 else float32)
    return None


@cache
def _measured(device: torch.device, arithmetic: torch.dtype, threads: int) -> float:  # noqa: ARG001
    """Return the best rate of a product of two square matrices; threads are what a processor's depends on."""
    side = _SIDE_OF_PROCESSORS if device.type == "cpu" else _SIDE
    given = torch.full((side, side), 0.5, dtype=arithmetic, device=device)
    into = torch.empty_like(given)
    best, spent, repetitions = float("inf"), 0.0, 0
    while repetitions < _FEWEST or spent < _SECONDS:
        begun = time.perf_counter()
        torch.mm(given, given, out=into)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        took = time.perf_counter() - begun
        best, spent, repetitions = min(best, took), spent + took, repetitions + 1
    return 2.0 * side**3 / max(best, 1e-9)
