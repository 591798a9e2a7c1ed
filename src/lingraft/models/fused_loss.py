"""The output head and the cross entropy in one: the logits of a few rows at a time, and never those of all.

8,192 tokens and a vocabulary of 128,256 make 2.1 GB of logits in bf16, and a gradient of the same size. Here each
portion's gradient is made in place of its logits and used up before the next portion is begun, in the forward pass.

Two libraries do the like, and neither is used whole. Liger's function waits for the device (it counts targets) in every
micro-batch; so its kernel alone is called, which makes a portion's losses and gradient in one go, where it is
installed and the device is CUDA's or ROCm's. torch's `linear_cross_entropy` sums up in bf16 where the weights are bf16:
7,392 for 7,474.4.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

MOST_WHOLE = 1 << 27  # logits: 2,730 tokens of a vocabulary of 49,152, 1,046 of 128,256
_AT_ONCE = 1 << 26  # logits of a portion: 128 MiB in bf16
_ROWS_IN_FLOAT32 = 64

# By these names configurations say that a model changes its logits after the head: by a cap (Gemma) or factor (Cohere).
_CHANGES_LOGITS = (
    "final_logit_softcapping",
    "logits_soft_cap",
    "softcap",
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
    "output_multiplier",
)


class LogitsChangedError(Exception):
    """A model does something with its logits after the head, which a loss in their place does not bear."""


def rows_at_once(vocabulary: int) -> int:
    """Return of how many tokens a fused loss holds the logits at the same time."""
    return max(1, _AT_ONCE // vocabulary)


def are_too_many(logits: int) -> bool:
    """Return whether so many logits are not to be made at once."""
    return logits > MOST_WHOLE


def can_be_fused(model: Any) -> bool:
    """Return whether a model's head is a plain matrix, whose products are the logits.

    It is not where it is quantised, has an adapter or a forward pass that was put in its place, or the model caps or
    scales what comes out of it.
    """
    config, head = model.config.get_text_config(), model.get_output_embeddings()
    changes = any(getattr(config, name, None) not in (None, 1, 1.0) for name in _CHANGES_LOGITS)
    return type(head) is nn.Linear and "forward" not in vars(head) and not changes


def liger_version(device: torch.device) -> str | None:
    """Return the version of Liger whose kernels compute on a device; None: it is not installed, or has none for it."""
    has_kernels = device.type == "cuda" and find_spec("liger_kernel") and find_spec("triton")
    return version("liger-kernel") if has_kernels else None


class FusedHead:
    """Context manager: inside, the output head of a model returns a summed loss in place of logits.

    The loss goes where logits go, through the model's own outputs, so that wrappers that divide or replicate a model
    see its gradient come back.

    Attributes:
        loss: [1, 1] float32, the sum in nats; None until the head has run.

    Args:
        model: One whose head `can_be_fused`.
        positions: [S] int64, places in 0..B*L-1 of the tokens that predict.
        targets: [S] int64, what they predict.
    """

    def __init__(self, model: Any, positions: Tensor, targets: Tensor) -> None:
        self.loss: Tensor | None = None
        self._head: Any = model.get_output_embeddings()
        self._positions, self._targets = positions, targets

    def __enter__(self) -> FusedHead:
        """Put it in the head's place."""
        self._head.forward = self._forward
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the head its place back, whatever happened inside."""
        del self._head.forward

    def _forward(self, hidden: Tensor) -> Tensor:
        # Called as the head is: a divided model's weights are whole here, and nowhere else.
        selected = hidden.flatten(0, 1).index_select(0, self._positions.to(hidden.device))
        targets = self._targets.to(hidden.device)
        self.loss = linear_cross_entropy(selected, self._head.weight, targets, self._head.bias)[None, None]
        return self.loss


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None) -> Tensor:
    """Return the summed cross entropy of what a head makes of hidden states, in nats, a float32 scalar.

    Products are computed as outside of it: in autocast's type where that is on. The gradient is made in the forward
    pass, so `backward` may be called once.

    Args:
        hidden: [S, width].
        weight: [V, width], the head's.
        targets: [S] int64, each in 0..V-1.
        bias: [V], the head's; None: it has none.
    """
    device = hidden.device.type
    arithmetic = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    total: Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden.to(arithmetic), weight, targets, bias
    )
    return total


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None) -> Tensor:
        wants_hidden, wants_weight, _, wants_bias = context.needs_input_grad
        of_hidden = torch.empty_like(hidden) if wants_hidden else None
        of_weight = torch.zeros_like(weight) if wants_weight else None
        of_bias = torch.zeros_like(bias) if wants_bias and bias is not None else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        is_liger = liger_version(hidden.device) is not None
        plain = (
            torch.autocast(hidden.device.type, enabled=False)
            if hidden.device.type != "meta"
            else nullcontext()
        )
        with plain:
            cast = weight.to(hidden.dtype)
            rows = rows_at_once(len(weight))
            for first in range(0, len(hidden), rows):
                part, wanted = hidden[first : first + rows], targets[first : first + rows]
                logits = part @ cast.T
                if bias is not None:
                    logits += bias
                total += _liger_losses_(logits, wanted) if is_liger else losses_(logits, wanted)
                if of_hidden is not None:
                    torch.mm(logits, cast, out=of_hidden[first : first + rows])
                if of_weight is not None:
                    of_weight += logits.T @ part
                if of_bias is not None:
                    of_bias += logits.sum(dim=0)
                del logits  # before the next portion's are made
        context.gradients = of_hidden, of_weight, of_bias
        return total

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (upstream,) = gradients
        of_hidden, of_weight, of_bias = (
            None if own is None else own.mul_(upstream) for own in context.gradients
        )
        del context.gradients  # a second backward pass fails: these were scaled in place
        return of_hidden, of_weight, None, of_bias


def losses_(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the summed cross entropy of [S, V] logits, a float32 scalar, and put its gradient in their place."""
    total = torch.zeros((), dtype=torch.float32, device=logits.device)
    portions = torch.split(logits, _ROWS_IN_FLOAT32), torch.split(targets[:, None], _ROWS_IN_FLOAT32)
    for part, wanted in zip(*portions, strict=True):
        normaliser = part.float().logsumexp(dim=1, keepdim=True)
        total += (normaliser - part.gather(1, wanted).float()).sum()
        chances = torch.sub(part, normaliser).exp_()  # float32: the normaliser is
        part.copy_(chances.scatter_(1, wanted, chances.gather(1, wanted) - 1))
    return total


def _liger_losses_(logits: Tensor, targets: Tensor) -> Tensor:
    """Do what `losses_` does with one kernel."""
    kernel, block, warps = _liger_kernel(logits.shape[1])
    losses = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    kernel[(len(logits),)](
        X_ptr=logits,
        X_stride=logits.stride(0),
        Y_ptr=targets,
        Y_stride=targets.stride(0),
        weight_ptr=None,
        loss_ptr=losses,
        z_loss_ptr=None,
        loss_stride=1,
        token_accuracy_ptr=None,
        token_accuracy_stride=0,
        predicted_tokens_ptr=None,
        predicted_tokens_stride=0,
        n_cols=logits.shape[1],
        n_non_ignore=len(logits),
        sum_non_ignore_weight=len(logits),
        weight_sum=0.0,
        ignore_index=-100,
        lse_square_scale=0.0,
        label_smoothing=0.0,
        reduction="sum",
        softcap=None,
        RETURN_Z_LOSS=False,
        RETURN_TOKEN_ACCURACY=False,
        RETURN_PREDICTED_TOKENS=False,
        BLOCK_SIZE=block,
        HAS_WEIGHT=False,
        HAS_SOFTCAPPING=False,
        HAS_GRADIENTS=True,
        num_warps=warps,
    )
    return losses.sum()


@cache
def _liger_kernel(vocabulary: int) -> tuple[Any, int, int]:
    """Return Liger's kernel of a cross entropy, with the block and the warps that Liger gives it."""
    triton: Any = import_module("triton")  # neither has types
    cross_entropy, utils = (import_module(f"liger_kernel.ops.{name}") for name in ("cross_entropy", "utils"))
    block = min(cross_entropy.MAX_FUSED_SIZE, triton.next_power_of_2(vocabulary))
    return cross_entropy.liger_cross_entropy_kernel, block, 16 if utils.is_hip() else 32
