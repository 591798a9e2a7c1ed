"""Precision and device, decided once: training, evaluation, replay, calibration, distillation and drift are given it.

`precision: auto` is resolved here and nowhere else; records and fingerprints hold what it was resolved to.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch.nn import functional

from lingraft.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

Precision = Literal["bf16", "bf16_pure", "float32"]
AskedPrecision = Literal["auto", "bf16", "bf16_pure", "float32"]

CLEARLY_FASTER = 1.3
"""How many times as fast bf16 must be on a processor. One with the instructions measured 1.7 to 2.1 beside ten busy
threads, one whose library does not use them 0.2: other work must not turn the answer, which fingerprints hold."""

_BF16_FEATURES = frozenset(("amx_bf16", "avx512_bf16", "bf16", "sve_bf16", "svebf16"))
_HELD: Mapping[Precision, torch.dtype] = {
    "bf16": torch.bfloat16,
    "bf16_pure": torch.bfloat16,
    "float32": torch.float32,
}
_PRODUCT = (192, 512, 512)  # rows, inputs, outputs: 0.1 GFLOP, as of a small model's layer
_FEWEST, _MOST, _SECONDS = 3, 24, 0.15


@dataclass(frozen=True, slots=True)
class Machine:
    """What decides how `precision: auto` is resolved.

    Attributes:
        device: What computes.
        has_bf16: A processor: it has bf16 instructions (AMX, AVX-512 or Arm's). A GPU: it computes bf16 itself.
        speed_up: Measures how many times as fast a bf16 matrix product is as a float32 one; asked of processors with
            bf16 instructions only.
    """

    device: torch.device
    has_bf16: bool
    speed_up: Callable[[], float]


@dataclass(frozen=True, slots=True)
class Compute:
    """What computes, and in which types.

    Attributes:
        precision: What was asked for, or what `auto` was resolved to.
        device: What computes: an accelerator, else the processor.
        arithmetic: Type of matrix products.
        held: Type of weights that are only held: of a model that is evaluated, that answers or that teaches.
    """

    precision: Precision
    device: torch.device
    arithmetic: torch.dtype
    held: torch.dtype

    def autocast(self) -> AbstractContextManager[object]:
        """Return a context in which float32 weights are computed with in `arithmetic`."""
        if self.arithmetic == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.arithmetic)

    @property
    def inference_precision(self) -> Literal["bf16", "float32"]:
        """The type of weights that are only held, as records name it."""
        return "float32" if self.held == torch.float32 else "bf16"


def compute_for(precision: AskedPrecision = "auto", machine: Machine | None = None) -> Compute:
    """Decide what computes, and in which types.

    Args:
        precision: `auto`, `bf16`, `bf16_pure` or `float32`; see `resolved_precision`.
        machine: What there is; None: this machine.

    Raises:
        ConfigError: bf16 was asked for, and this machine's GPU cannot compute it at all.
    """
    machine = machine or machine_with(compute_device())
    resolved = resolved_precision(precision, machine)
    is_metal = resolved != "float32" and machine.device.type == "mps"
    if is_metal and not torch.backends.mps.is_macos_or_newer(14, 0):
        raise ConfigError(f"precision {precision!r}: Metal computes no bf16 before macOS 14; take float32.")
    return Compute(
        precision=resolved,
        device=machine.device,
        arithmetic=_HELD[resolved],
        held=_HELD[resolved],
    )


def resolved_precision(precision: AskedPrecision, machine: Machine) -> Precision:
    """Return what a precision means on a machine: itself, unless it is `auto`.

    `auto` is bf16 on a GPU that computes it itself and on a processor that has the instructions and on which a matrix
    product is measured to be CLEARLY_FASTER; float32 elsewhere.
    """
    if precision != "auto":
        return precision
    if not machine.has_bf16:
        return "float32"
    if machine.device.type == "cpu" and machine.speed_up() < CLEARLY_FASTER:
        return "float32"
    return "bf16"


def trained_in(precision: AskedPrecision, optimizer: str, machine: Machine | None = None) -> Precision:
    """Return what a precision means in training on a machine: `auto` with 8-bit moments is `bf16_pure`.

    Args:
        precision: As asked for.
        optimizer: `adamw` or `adamw_8bit`, whose weights are bf16 on every machine.
        machine: What there is; None: this machine.

    Raises:
        ConfigError: See `compute_for`.
    """
    is_low = precision == "auto" and optimizer == "adamw_8bit"
    return compute_for("bf16_pure" if is_low else precision, machine).precision


def accumulated(values: Tensor) -> Tensor:
    """Return values in float64, as accumulators hold them: where they are, else on the processor.

    They are moved before they are widened: Apple's GPUs and some of Intel's have no float64.
    """
    return (values if has_float64(values.device) else values.cpu()).double()


def has_float64(device: torch.device) -> bool:
    """Return whether a device has float64."""
    if device.type == "xpu":
        return bool(torch.xpu.get_device_properties(device).has_fp64)
    return device.type in ("cpu", "cuda", "meta")


def compute_device() -> torch.device:
    """Return what a process by itself computes on: this machine's accelerator, else its processor."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def machine_with(device: torch.device) -> Machine:
    """Return what this machine has, computing on `device`."""
    return Machine(device, has_bf16(device), bf16_speed_up)


def has_bf16(device: torch.device) -> bool:
    """Return whether a device computes bf16 itself, a processor by its instructions."""
    if device.type == "cpu":
        return bool(processor_features() & _BF16_FEATURES)
    if device.type == "mps":  # emulated before the M3, refused before macOS 14: float32 works on all of them
        return False
    supported = getattr(getattr(torch, device.type, None), "is_bf16_supported", None)
    if supported is None:
        return False
    return bool(supported(including_emulation=False) if device.type in ("cuda", "xpu") else supported())


def processor_features() -> frozenset[str]:
    """Return the names of this processor's instruction sets, as torch or else Linux calls them."""
    known = getattr(torch.cpu, "get_capabilities", None)  # older versions of torch have none
    if known is not None:
        return frozenset(name for name, has in known().items() if has is True)
    listed = Path("/proc/cpuinfo")
    if not listed.exists():
        return frozenset()
    lines = listed.read_text(encoding="utf-8", errors="replace").splitlines()
    return frozenset(
        word
        for line in lines
        if line.startswith(("flags", "Features"))
        for word in line.split(":", 1)[1].split()
    )


@cache
def bf16_speed_up() -> float:
    """Return how many times as fast this processor multiplies matrices in bf16 as in float32; measured once.

    It may have the instructions and a library that does not use them (`ONEDNN_MAX_CPU_ISA=AVX2`). On one thread, by its
    own processor time: threads that wait for one that lost its core took up to 50 times as long.
    """
    rows, inputs, outputs = _PRODUCT
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(rows, inputs, generator=generator)
    weight = torch.randn(outputs, inputs, generator=generator)

    def seconds(dtype: torch.dtype) -> float:
        one, other = given.to(dtype), weight.to(dtype)
        with torch.inference_mode():
            begin = time.thread_time()
            functional.linear(one, other)
            return time.thread_time() - begin

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return measured_speed_up(seconds)
    finally:
        torch.set_num_threads(threads)


def measured_speed_up(seconds: Callable[[torch.dtype], float]) -> float:
    """Return the time in float32 over that in bf16, each the shortest of interleaved repetitions.

    What else the machine does only ever makes a repetition longer, so the shortest ones compare the processor.

    Args:
        seconds: Computes the same once in a type and returns the time that it took.
    """
    shortest = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    spent = 0.0
    for repetition in range(_MOST):
        if repetition >= _FEWEST and spent > _SECONDS:
            break
        for dtype, before in shortest.items():
            took = seconds(dtype)
            spent += took
            shortest[dtype] = min(before, took)
    return shortest[torch.float32] / max(shortest[torch.bfloat16], 1e-9)


def device_name(device: torch.device) -> str:
    """Return a GPU's model, else the kind of device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return device.type
