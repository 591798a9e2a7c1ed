"""torchao's AdamW with moments of 8 bits, in pieces of bounded size and rounded by a seed of its own.

torchao takes the noise of its stochastic rounding from torch's own generator, which dropout uses too, and computes a
tensor at once: on a processor, where nothing fuses, that is ten times the tensor in temporaries.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.utils._triton import has_triton

from lingraft.train.sharding import own_piece, piece_number
from lingraft.train.stochastic_rounding import CHUNK, load_uncast, seed_of


def _silent(record: logging.LogRecord) -> bool:  # noqa: ARG001
    """Return False: a filter that lets nothing pass."""
    return False


# It warns of kernels of other devices, and of a function of torch's that it still calls.
_noisy = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")]
for _one in _noisy:
    _one.addFilter(_silent)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torchao.optim import AdamW8bit  # type: ignore[import-untyped]
    from torchao.optim.adam import single_param_adam  # type: ignore[import-untyped]
for _one in _noisy:
    _one.removeFilter(_silent)

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
                seed = seed_of(self._seed, int(state["step"]), number, piece_number(parameter))
                tensors = (parameter.detach(), parameter.grad, state["exp_avg"], state["exp_avg_sq"])
                device = parameter.device
                devices, kind = ([], "cuda") if device.type == "cpu" else ([device.index or 0], device.type)
                with torch.random.fork_rng(devices, device_type=kind):
                    (torch.manual_seed if devices else torch.default_generator.manual_seed)(seed)
                    _update(tensors, state["step"], group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load moments without the cast to the weights' type that torch would apply."""
        super().load_state_dict(state_dict)
        load_uncast(self, state_dict)


def _update(tensors: tuple[Tensor, Tensor, Tensor, Tensor], step: Tensor, group: dict[str, Any]) -> None:
    """Update one parameter: fused and whole on an accelerator with Triton, else in pieces.

    Args:
        tensors: Parameter, gradient and both moments.
        step: Its number, from 1; in the processor's memory.
        group: The parameter's.
    """
    rest = (None, group["lr"], *group["betas"], group["weight_decay"], group["eps"], True, True)
    on_processor = tensors[0].device.type == "cpu"
    if not on_processor and has_triton():
        with torch._dynamo.utils.disable_cache_limit():  # as torchao: a graph for each shape of a model
            fused = torch.compile(single_param_adam, fullgraph=True, dynamic=False)
            parameter, gradient, first, second = tensors
            fused(parameter, gradient, step, first, second, *rest)  # type: ignore[no-untyped-call]
        return
    parameter, gradient, first, second = (own_piece(one) for one in tensors)
    flat = (parameter.view(-1), gradient.contiguous().view(-1), first.view(-1), second.view(-1))
    size, count = CHUNK if on_processor else _UNFUSED, parameter.numel()
    for start in range(0, count, size):
        weights, gradients, *moments = (one[start : min(start + size, count)] for one in flat)
        single_param_adam(weights, gradients, step, *moments, *rest)
