"""Stochastic rounding: right on average, exact where exact is possible, and the same when resumed."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from lingraft.train import stochastic_rounding
from lingraft.train.eight_bit import EightBitAdamW
from lingraft.train.stochastic_rounding import (
    CHUNK,
    RoundingNoise,
    StochasticRoundingAdamW,
    round_stochastically,
)


def _one_step(weight: torch.Tensor, gradient: torch.Tensor, **options: float) -> torch.Tensor:
    parameter = torch.nn.Parameter(weight.clone())
    parameter.grad = gradient.to(weight.dtype)
    StochasticRoundingAdamW([parameter], **options).step()  # type: ignore[arg-type]
    return parameter.detach()


def _rounded(values: torch.Tensor) -> torch.Tensor:
    noise = RoundingNoise(torch.Generator().manual_seed(0))
    result = torch.empty(values.shape, dtype=torch.bfloat16)
    for part, into in zip(torch.split(values.clone(), CHUNK), torch.split(result, CHUNK), strict=True):
        round_stochastically(part, noise, out=into)
    return result


def test_an_update_of_1e_5_on_a_weight_of_0_02_is_right_in_expectation() -> None:
    weight = torch.full((1_500_000,), 0.02).bfloat16()
    before = weight[0].item()
    after = _one_step(weight, torch.ones(weight.shape), lr=1e-5)  # AdamW's first update is the learning rate
    assert (before - after.double().mean().item()) == pytest.approx(1e-5, rel=0.02)
    assert len(set(after.tolist())) == 2
    nearest = torch.full((), 0.02).bfloat16() - torch.tensor(1e-5)
    assert nearest.bfloat16().item() == before  # rounding to the nearest would have lost it


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_both_neighbours_are_drawn_with_the_remainder_as_probability(sign: float) -> None:
    low, high = 1.0, 1.0078125  # neighbours in bfloat16
    values = torch.full((400_000,), sign * (low + 0.25 * (high - low)))
    rounded = _rounded(values).float()
    assert set(rounded.tolist()) == {sign * low, sign * high}
    assert (rounded == sign * high).double().mean().item() == pytest.approx(0.25, abs=0.004)


def test_a_value_that_bfloat16_holds_stays_as_it_is() -> None:
    values = torch.randn(1001, generator=torch.Generator().manual_seed(1)).bfloat16()
    rounded = _rounded(values.float())
    assert torch.equal(rounded, values)


def test_the_noise_is_uniform_and_that_of_two_chunks_independent() -> None:
    noise = RoundingNoise(torch.Generator().manual_seed(0))
    first, second = (noise.draw(CHUNK).double() / 65536 for _ in range(2))
    for one in (first, second):
        assert one.mean().item() == pytest.approx(0.5, abs=0.003)
        assert one.var().item() == pytest.approx(1 / 12, rel=0.01)
    masks = torch.stack([noise.draw(1)[0] for _ in range(4000)]).double() / 65536  # one weight, many chunks
    assert masks.mean().item() == pytest.approx(0.5, abs=0.02)
    assert abs(torch.corrcoef(torch.stack([masks[:-1], masks[1:]]))[0, 1].item()) < 0.06


def test_one_step_is_torchs_adamw_up_to_rounding() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 1000, generator=generator).bfloat16()
    gradient = torch.randn(3, 1000, generator=generator).bfloat16()
    reference = torch.nn.Parameter(weight.float())
    reference.grad = gradient.float()
    torch.optim.AdamW([reference], lr=1e-2, weight_decay=0.1).step()
    found = _one_step(weight, gradient, lr=1e-2, weight_decay=0.1).float()
    spacing = torch.exp2(torch.floor(torch.log2(reference.detach().abs())) - 7)
    assert ((found - reference.detach()).abs() <= spacing).all()


def test_another_seed_rounds_otherwise_and_the_same_one_the_same() -> None:
    weight, gradient = torch.full((5000,), 0.02).bfloat16(), torch.ones(5000)
    one, again, other = (_one_step(weight, gradient, lr=1e-5, seed=seed) for seed in (0, 0, 7))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_saved_and_loaded_in_the_middle_it_rounds_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(2000, generator=generator).bfloat16())
    gradients = [torch.randn(2000, generator=generator).bfloat16() for _ in range(4)]
    optimizer = StochasticRoundingAdamW([parameter], seed=5)
    saved: tuple[torch.Tensor, dict[str, object]] | None = None
    for step, gradient in enumerate(gradients):
        if step == 2:
            saved = parameter.detach().clone(), copy.deepcopy(optimizer.state_dict())
        parameter.grad = gradient
        optimizer.step()
    assert saved is not None
    resumed = torch.nn.Parameter(saved[0])
    continued = StochasticRoundingAdamW([resumed], seed=5)
    continued.load_state_dict(saved[1])
    assert continued.state[resumed]["exp_avg_sq"].dtype == torch.float32
    for gradient in gradients[2:]:
        resumed.grad = gradient
        continued.step()
    assert torch.equal(resumed, parameter)


class Calls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations that run, by name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found[str(func)] += 1
        return func(*args, **(kwargs or {}))


def test_on_an_accelerator_calls_grow_with_tensors_and_none_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stochastic_rounding, "elements_at_once", lambda _: 1 << 28)

    def calls(count: int, size: int) -> Any:
        parameters = [torch.nn.Parameter(torch.zeros(size, dtype=torch.bfloat16)) for _ in range(count)]
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        optimizer = StochasticRoundingAdamW(parameters)
        optimizer.step()
        with Calls() as found:
            optimizer.step()
        assert all((parameter != 0).all() for parameter in parameters)
        return found.found

    small, large, twice = calls(3, 1000), calls(3, 3 * CHUNK), calls(6, 1000)
    assert small == large
    assert twice.total() <= 2 * small.total() <= 2 * 3 * 25
    waiting = ("_local_scalar_dense", "_to_copy.default", "lift_fresh", "nonzero", "copy_.default")
    assert large["aten._to_copy.default"] <= 3 * 2  # weights and gradients to float32
    assert large["aten.copy_.default"] == 3  # the rounded weights
    assert not any(name in call for call in large for name in waiting if "copy" not in name)


@contextmanager
def one_of_two(rank: int) -> Iterator[None]:
    """One process of two, whose other is not there."""
    dist.init_process_group("fake", rank=rank, world_size=2, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("kind", [StochasticRoundingAdamW, EightBitAdamW])
def test_divided_parameters_are_updated_in_pieces_that_round_by_themselves(kind: Any) -> None:
    weight = torch.full((128, 64), 0.02).bfloat16()

    def piece(rank: int, lr: float) -> Tensor:
        with one_of_two(rank):
            # Torch remembers what it did on an equal mesh, also of a process that was another.
            mesh = init_device_mesh("cpu", (2,), mesh_dim_names=(f"of process {rank}, {lr}",))
            divided = distribute_tensor(weight, mesh, [Shard(0)], src_data_rank=None)
            parameter = torch.nn.Parameter(divided)
            parameter.grad = distribute_tensor(torch.ones_like(weight), mesh, [Shard(0)], src_data_rank=None)
            optimizer = kind([parameter], lr=lr, seed=3)
            optimizer.step()
            moment = optimizer.state[parameter]["exp_avg"]
            assert isinstance(moment, DTensor)
            assert moment.shape == weight.shape
            found: Any = parameter
            return found.to_local().detach().clone()  # type: ignore[no-any-return]

    first, second = piece(0, 1e-5), piece(1, 1e-5)
    assert torch.equal(first, piece(0, 1e-5))
    assert not torch.equal(first, second)
    assert first.shape == second.shape == (64, 64)
    together = torch.cat([first, second]).double()
    assert weight[0, 0].item() - together.mean().item() == pytest.approx(1e-5, rel=0.15)
    whole = torch.nn.Parameter(weight.clone())
    whole.grad = torch.ones_like(weight)
    kind([whole], lr=0.02, seed=3).step()
    pieces = torch.cat([piece(0, 0.02), piece(1, 0.02)])
    assert torch.allclose(whole.detach().float(), pieces.float(), rtol=0.01)  # but for the noise
