"""torchao's AdamW with moments of 8 bits, rounded by a seed of its own.

torchao fuses an update by Triton. Where there is none, on a processor, its way takes 170 ns for a weight and ten times
the tensor in temporaries; in pieces, with the codes of moments looked up, 20 ns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, overload

import torch
from torch import Tensor
from torch.utils._triton import has_triton
from torchao.optim import AdamW8bit  # type: ignore[import-untyped]
from torchao.optim.adam import single_param_adam  # type: ignore[import-untyped]
from torchao.optim.quant_utils import scale_tensor  # type: ignore[import-untyped]
from torchao.optim.subclass_8bit import (  # type: ignore[import-untyped]
    OptimState8bit,
    get_qmap_signed,
    get_qmap_unsigned,
)

from lingraft.train.sharding import own_piece, piece_number
from lingraft.train.stochastic_rounding import elements_at_once, load_uncast, noise_for, seed_of, update

_UNFUSED = 1 << 26  # elements at a time on an accelerator without Triton: temporaries of a few GB


class EightBitAdamW(AdamW8bit):  # type: ignore[misc]
    """AdamW on bfloat16 weights whose moments hold 8 bits for each weight, and whose updates are rounded at random.

    Memory per weight: 2 bytes, 2 of gradient and 2.03 of moments, against 12 of `StochasticRoundingAdamW` and 16 with
    float32 weights. Moments of tensors below 4,096 elements are float32: there bits save nothing, and a bfloat16 second
    moment would never decay.

    Args:
        params: bfloat16 parameters or groups of them.
        lr: Learning rate.
        betas: Decay of the two moments.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled weight decay.
        seed: With step, parameter and, of a divided one, piece it decides all rounding, so a resumed run rounds the
            same.

    A second moment is never rounded to 0, as torchao would: it is at least 3e-7 of its block's largest.

    Source: Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization", arXiv 2110.02861, blocks of 256 as
    torchao takes them; rounding: Zamirai et al. 2020, arXiv 2010.06192.
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
        super().__init__(
            params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, bf16_stochastic_round=True
        )
        self._seed = seed

    def _new_buffer(self, p: Tensor, signed: bool) -> Tensor:
        """Return a moment of zeros: 8 bits where torchao takes them, else float32 in place of the weights' type."""
        moment: Tensor = super()._new_buffer(p, signed)
        return moment if hasattr(own_piece(moment), "codes") else moment.float()

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
        number = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                number += 1
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.tensor(0.0)
                    state["exp_avg"] = self._new_buffer(parameter, True)
                    state["exp_avg_sq"] = self._new_buffer(parameter, False)
                state["step"] += 1
                self._update(parameter, state, group, number)
                # A second moment of a ten-millionth of its block's largest would become 0, its first moment would not:
                # in a step without a gradient, as of a token that is not met, the weight would jump by their ratio.
                second = own_piece(state["exp_avg_sq"])
                if isinstance(second, OptimState8bit):
                    second.codes.clamp_(min=1)
        return loss

    def _update(self, parameter: Tensor, state: dict[str, Any], group: dict[str, Any], number: int) -> None:
        """Update one parameter: fused and whole on an accelerator with Triton, else in pieces."""
        step, device = int(state["step"]), parameter.device
        first, second = state["exp_avg"], state["exp_avg_sq"]
        if device.type != "cpu" and has_triton():
            rest = (None, group["lr"], *group["betas"], group["weight_decay"], group["eps"], True, True)
            fused = torch.compile(single_param_adam, fullgraph=True, dynamic=False)
            with (
                torch.random.fork_rng([device.index or 0], device_type=device.type),
                torch._dynamo.utils.disable_cache_limit(),  # as torchao: a graph for each shape of a model
            ):
                torch.manual_seed(seed_of(self._seed, step, number, piece_number(parameter)))
                fused(parameter.detach(), parameter.grad, state["step"], first, second, *rest)  # type: ignore[no-untyped-call]
            return
        noise = noise_for(parameter, self._seed, step, number)
        assert parameter.grad is not None  # `step` looked
        tensors = (parameter.detach(), parameter.grad.contiguous(), first, second)
        flat = [own_piece(one).view(-1) for one in tensors]
        size, count = min(elements_at_once(device), _UNFUSED), flat[0].numel()
        for start in range(0, count, size):
            weights, gradients, *moments = (one[start : min(start + size, count)] for one in flat)
            exact = [one.dequantize() if isinstance(one, OptimState8bit) else one for one in moments]
            update(weights, gradients, exact[0], exact[1], step, group, noise)
            for moment, new in zip(moments, exact, strict=True):
                if isinstance(moment, OptimState8bit):
                    scaled, scale = scale_tensor(new, moment.block_size)
                    moment.codes.copy_(nearest_codes(scaled, signed=moment.signed))
                    moment.scale.copy_(scale)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load moments without the cast to the weights' type that torch would apply."""
        super().load_state_dict(state_dict)
        load_uncast(self, state_dict)


def nearest_codes(values: Tensor, *, signed: bool) -> Tensor:
    """Return the codes of the nearest numbers of a moment's 256, as torchao's search finds them in 20 times the time.

    The upper 16 bits of a value leave two codes, since no two midpoints share them.

    Args:
        values: [n] float32 in -1..1.
        signed: Whether the moment may be negative.

    Returns:
        [n] int32 in 0..255.
    """
    below, midpoints = _neighbours(signed, values.device)
    codes = below.index_select(0, (values.view(torch.int32) >> 16) & 0xFFFF)
    return codes + (values >= midpoints.index_select(0, codes))


@cache
def _neighbours(signed: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return of each upper half of a float32 the code of its least value, and the 255 midpoints and infinity."""
    qmap = torch.tensor(get_qmap_signed() if signed else get_qmap_unsigned())
    midpoints = (qmap[1:] + qmap[:-1]) / 2
    bits = torch.arange(1 << 16, dtype=torch.int64) << 16
    bits += torch.where(bits >= 1 << 31, 0xFFFF - (1 << 32), 0)
    least = bits.to(torch.int32).view(torch.float32)
    below = torch.bucketize(least, midpoints, out_int32=True, right=True)
    return below.to(device), torch.nn.functional.pad(midpoints, (0, 1), value=torch.inf).to(device)
