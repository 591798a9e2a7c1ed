"""AdamW on bfloat16 weights whose updates are rounded at random, and so right on average.

A bfloat16 keeps 8 significant bits: near 0.02 its neighbours are 1.2e-4 apart, and an update of 1e-5,
rounded to the nearest, vanishes every time. Rounded up with the probability of the remainder it is made
in 8 % of the steps, 1.2e-4 at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, overload

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

from lingraft.train.sharding import own_piece, piece_number

# Elements that a processor updates at a time: float32 temporaries stay small, and in the cache.
CHUNK = 1 << 18
_WHOLE = 1 << 28  # that an accelerator does: whole tensors, of the largest a part whose temporaries have 3 GB


class RoundingNoise:
    """The random bits of one optimiser step: 16 for each weight, uniform, any two weights' independent.

    Drawing bits is a third of an update's cost on a CPU. So one block of them is drawn in a step, and for each chunk of
    weights it is combined (exclusive or) with 16 bits drawn for that chunk. Independence of pairs is all that the
    variance of a sum of rounding errors asks for.

    Args:
        generator: Decides all bits; on the weights' device.
    """

    def __init__(self, generator: torch.Generator) -> None:
        words = torch.empty(CHUNK // 4, dtype=torch.int64, device=generator.device)
        words.random_(-(2**63), None, generator=generator)  # all 64 bits at random: four values from one draw
        self._block = words.view(torch.int16).to(torch.int32) & 0xFFFF
        self._generator = generator

    def draw(self, count: int) -> Tensor:
        """Return [count] int32 in 0..65535, for at most CHUNK weights."""
        mask = torch.randint(
            1 << 16, (), generator=self._generator, dtype=torch.int32, device=self._block.device
        )
        return self._block[:count] ^ mask


class WholeNoise:
    """The same of an accelerator: bits of a tensor are drawn at once, each by itself.

    Args:
        generator: Decides all bits; on the weights' device.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def draw(self, count: int) -> Tensor:
        """Return [count] int32 in 0..65535."""
        device = self._generator.device
        return torch.randint(1 << 16, (count,), generator=self._generator, dtype=torch.int32, device=device)


def elements_at_once(device: torch.device) -> int:
    """Return how many weights are updated together: on an accelerator what is launched must not grow with them."""
    return CHUNK if device.type == "cpu" else _WHOLE


def noise_for(parameter: Tensor, *numbers: int) -> RoundingNoise | WholeNoise:
    """Return the noise that `numbers` decide on a parameter's device, of a divided one with its piece."""
    pieces = (piece_number(parameter),) if isinstance(parameter, DTensor) else ()
    generator = torch.Generator(parameter.device)
    generator.manual_seed(seed_of(*numbers, *pieces))
    on_processor = elements_at_once(parameter.device) == CHUNK
    return RoundingNoise(generator) if on_processor else WholeNoise(generator)


def round_stochastically(values: Tensor, noise: RoundingNoise | WholeNoise, out: Tensor) -> None:
    """Round float32 `values` ([as many as the noise is for], overwritten) into bfloat16 `out`, up or down.

    Right in expectation: adds 16 random bits below the last bit that stays, then cuts them off. Finite values only:
    the carry would turn a NaN into a number.

    Source: Zamirai et al. 2020, "Revisiting BFloat16 Training", arXiv 2010.06192, section 4.
    """
    bits = values.view(torch.int32)
    bits += noise.draw(len(values))
    out.view(torch.int16).copy_(bits.bitwise_right_shift_(16))


class StochasticRoundingAdamW(torch.optim.Optimizer):
    """AdamW that computes each update in float32 and rounds the new bfloat16 weight stochastically.

    The moments stay float32: with beta2 = 0.999 a bfloat16 second moment would never decay. Memory per
    weight: 2 bytes, 2 of gradient and 8 of moments, against 16 with float32 weights.

    Args:
        params: bfloat16 parameters or groups of them.
        lr: Learning rate.
        betas: Decay of the two moments.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled weight decay.
        seed: With the number of the step, and of divided parameters the piece, it decides all rounding, so a resumed
            run rounds the same.

    Source: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2; rounding as in
    `round_stochastically`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._seed = seed

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        noises: dict[tuple[torch.device, bool], RoundingNoise | WholeNoise] = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = 0
                    for moment in ("exp_avg", "exp_avg_sq"):
                        state[moment] = torch.zeros_like(parameter, dtype=torch.float32)
                state["step"] += 1
                kind = parameter.device, isinstance(parameter, DTensor)
                if kind not in noises:
                    noises[kind] = noise_for(parameter, self._seed, state["step"])
                tensors = (
                    parameter.detach(),
                    parameter.grad.contiguous(),
                    state["exp_avg"],
                    state["exp_avg_sq"],
                )
                size = elements_at_once(parameter.device)
                for weights, gradients, first, second in zip(
                    *(torch.split(own_piece(one).view(-1), size) for one in tensors), strict=True
                ):
                    update(weights, gradients, first, second, state["step"], group, noises[kind])
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load moments without the cast to the weights' type that torch would apply."""
        super().load_state_dict(state_dict)
        load_uncast(self, state_dict)


@torch.no_grad()
def update(
    weights: Tensor,
    gradients: Tensor,
    first: Tensor,
    second: Tensor,
    step: int,
    group: Mapping[str, Any],
    noise: RoundingNoise | WholeNoise,
) -> None:
    """Make one step of AdamW in place, computed in float32, and round the new weights stochastically.

    Args:
        weights: [n] bfloat16.
        gradients: [n], of any type.
        first: [n] float32, the first moment.
        second: [n] float32, the second moment.
        step: Its number, from 1.
        group: Rates, decays and eps.
        noise: Rounds.
    """
    exact = weights.float()
    adamw(
        [exact],
        [gradients.float()],
        [first],
        [second],
        [],
        [
            torch.full((), float(step - 1), device=exact.device)
        ],  # a copy from the processor would wait for the device
        fused=True,
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=float(group["lr"]),
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )
    round_stochastically(exact, noise, out=weights)


def load_uncast(optimizer: torch.optim.Optimizer, state_dict: Mapping[str, Any]) -> None:
    """Give an optimizer that has loaded `state_dict` its moments in the types that they were saved in.

    The number of the step stays where it is read: in the processor's memory.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
    for number, parameter in zip(numbers, parameters, strict=True):
        for key, value in state_dict["state"].get(number, {}).items():
            if isinstance(value, Tensor):
                device = "cpu" if key == "step" else parameter.device
                optimizer.state[parameter][key] = value.to(device, copy=True)


def seed_of(*numbers: int) -> int:
    """Return 32 bits that depend on all numbers: torch's generator of a CPU drops all others."""
    return int.from_bytes(hashlib.sha256(" ".join(map(str, numbers)).encode()).digest()[:4], "big")
