"""What computes, and in which types: every kind of machine, whatever this one is."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lingraft.errors import ConfigError
from lingraft.evaluate import held_out
from lingraft.models import compute
from lingraft.models.answering import InThisProcess
from lingraft.models.compute import (
    CLEARLY_FASTER,
    AskedPrecision,
    Machine,
    accumulated,
    compute_for,
    has_float64,
    machine_with,
    measured_speed_up,
    processor_features,
)
from lingraft.models.loss import TokenLosses, token_losses
from lingraft.representation.covariance import Moments
from lingraft.representation.similarity import linear_cka

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda", 0), torch.device("mps")


def never() -> float:
    raise AssertionError("was measured")


def machine(device: torch.device, *, has_bf16: bool, speed_up: float | None = None) -> Machine:
    return Machine(device, has_bf16, never if speed_up is None else lambda: speed_up)


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (machine(CPU, has_bf16=False), "float32"),  # and nothing is measured
        (machine(CPU, has_bf16=True, speed_up=0.1), "float32"),
        (machine(CPU, has_bf16=True, speed_up=CLEARLY_FASTER - 0.1), "float32"),
        (machine(CPU, has_bf16=True, speed_up=2.1), "bf16"),
        (machine(CUDA, has_bf16=True), "bf16"),
        (machine(CUDA, has_bf16=False), "float32"),  # such as a V100 or a T4
        (machine(MPS, has_bf16=False), "float32"),
    ],
)
def test_auto_is_bf16_where_it_pays(there: Machine, expected: str) -> None:
    found = compute_for("auto", there)
    assert found.precision == expected
    kind = {"bf16": torch.bfloat16, "float32": torch.float32}[expected]
    assert (found.arithmetic, found.held, found.device) == (kind, kind, there.device)
    assert found.inference_precision == expected


@pytest.mark.parametrize("asked", ["bf16", "bf16_pure", "float32"])
def test_what_is_asked_for_by_name_is_taken_and_not_measured(asked: AskedPrecision) -> None:
    found = compute_for(asked, machine(CPU, has_bf16=True))
    assert found.precision == asked
    assert found.inference_precision == asked.removesuffix("_pure")
    assert found.held == (torch.float32 if asked == "float32" else torch.bfloat16)


def test_float64_is_not_on_every_device() -> None:
    assert [has_float64(device) for device in (CPU, CUDA, MPS)] == [True, True, False]
    assert accumulated(torch.ones(2, dtype=torch.bfloat16)).dtype == torch.float64


def test_apples_gpus_are_known_for_what_they_do_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    there = machine_with(MPS)
    assert not there.has_bf16
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *_: False)
    with pytest.raises(ConfigError, match="'bf16': Metal computes no bf16 before macOS 14; take float32"):
        compute_for("bf16", there)
    assert compute_for("auto", there).precision == "float32"
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *_: True)
    assert compute_for("bf16", there).arithmetic == torch.bfloat16


@pytest.mark.parametrize("native", [True, False])
def test_a_card_that_only_emulates_bf16_computes_in_float32(
    monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    def supported(*, including_emulation: bool = True) -> bool:
        return including_emulation or native

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    there = machine_with(CUDA)
    assert there.has_bf16 == native
    assert compute_for("auto", there).precision == ("bf16" if native else "float32")


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        (("avx2", "fma3"), False),
        (("avx512_f", "avx512_vnni"), False),
        (("avx512_f", "avx512_bf16"), True),
        (("amx_tile", "amx_bf16"), True),
        (("neon", "bf16"), True),
        (("sve", "sve_bf16"), True),
        ((), False),
    ],
)
def test_processors_are_known_by_their_instructions(
    monkeypatch: pytest.MonkeyPatch, features: tuple[str, ...], expected: bool
) -> None:
    monkeypatch.setattr(compute, "processor_features", lambda: frozenset(features))
    assert machine_with(CPU).has_bf16 is expected


def test_an_older_torch_reads_the_instructions_of_linux(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    listed = tmp_path / "cpuinfo"
    listed.write_text(
        "processor\t: 0\nFeatures\t: fp asimd bf16\n\nprocessor\t: 1\nflags\t\t: fpu avx512_bf16\n"
    )
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(compute, "Path", lambda _: listed)
    assert processor_features() == {"fp", "asimd", "bf16", "fpu", "avx512_bf16"}
    monkeypatch.setattr(compute, "Path", lambda _: tmp_path / "absent")
    assert processor_features() == frozenset()


def test_the_shortest_of_interleaved_repetitions_are_compared() -> None:
    asked: list[torch.dtype] = []
    others = iter([0.09, 0.08, 0.01, 0.005, 0.07, 0.03, 0.02, 0.06])  # float32 first; what else runs disturbs

    def seconds(dtype: torch.dtype) -> float:
        asked.append(dtype)
        return next(others)

    assert measured_speed_up(seconds) == pytest.approx(0.01 / 0.005)
    assert asked == [torch.float32, torch.bfloat16] * 3  # it ends when it has taken long enough


def test_a_quick_processor_is_measured_often_and_a_slow_one_for_a_moment() -> None:
    taken: list[float] = []

    def seconds(dtype: torch.dtype) -> float:
        taken.append(0.0003 if dtype == torch.float32 else 0.0001)
        return taken[-1]

    assert measured_speed_up(seconds) == pytest.approx(3)
    assert 20 <= len(taken) <= 100


def test_the_measurement_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found = compute.bf16_speed_up()
    assert found > 0
    monkeypatch.setattr(compute, "measured_speed_up", lambda _: pytest.fail("measured twice"))
    assert compute.bf16_speed_up() == found


def test_it_is_measured_on_one_thread_which_a_busy_machine_does_not_stall(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, during = torch.get_num_threads(), []

    def watched(seconds: Callable[[torch.dtype], float]) -> float:
        assert 0 < seconds(torch.float32) < 1
        during.append(torch.get_num_threads())
        raise KeyboardInterrupt

    monkeypatch.setattr(compute, "measured_speed_up", watched)
    compute.bf16_speed_up.cache_clear()
    with pytest.raises(KeyboardInterrupt):
        compute.bf16_speed_up()
    assert during == [1]
    assert torch.get_num_threads() == before


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the variables are of x86-64")
def test_instructions_that_the_libraries_do_not_use_are_found_out_by_measuring() -> None:
    code = "from lingraft.models.compute import compute_for; print(compute_for('auto').precision)"
    without = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **without, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.stdout.split() == ["float32"]


class Apple(torch.Tensor):
    """A tensor on a device without float64: it refuses the type until it is taken to the processor."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return MPS

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.cpu:
            return args[0].as_subclass(torch.Tensor)
        found = super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]
        if isinstance(found, Apple) and found.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return found


def apple(values: torch.Tensor) -> torch.Tensor:
    return values.as_subclass(Apple)


@pytest.fixture
def values() -> torch.Tensor:
    return torch.randn(7, 4, generator=torch.Generator().manual_seed(0))


def test_accumulators_are_never_float64_on_a_device_without_it(values: torch.Tensor) -> None:
    with pytest.raises(TypeError, match="float64"):
        apple(values).double()  # the stand-in refuses what Metal does
    found = accumulated(apple(values))
    assert type(found) is torch.Tensor
    assert torch.equal(found, values.double())


def test_moments_and_similarity_of_states_on_such_a_device_equal_those_of_the_processor(
    values: torch.Tensor,
) -> None:
    one, other = Moments.of(apple(values)), Moments.of(values)
    assert torch.equal(one.scatter, other.scatter)
    assert torch.equal(one.mean, other.mean)
    assert linear_cka(apple(values), apple(values + values.sin())) == linear_cka(
        values, values + values.sin()
    )


def test_held_out_losses_of_a_model_on_such_a_device_are_summed_on_the_processor(
    monkeypatch: pytest.MonkeyPatch, tiny_llama: Callable[..., Any], examples: Callable[..., Any]
) -> None:
    tokenizer: Any = None  # rows are encoded already
    asked, rows = InThisProcess(tiny_llama(), tokenizer), examples(3)
    expected = held_out._nats_per_example(asked, rows, 4096, None)

    def on_apple(*given: Any, **options: Any) -> TokenLosses:
        found = token_losses(*given, **options)
        return replace(found, values=apple(found.values))

    monkeypatch.setattr(held_out, "token_losses", on_apple)
    assert held_out._nats_per_example(asked, rows, 4096, None).tolist() == expected.tolist()
