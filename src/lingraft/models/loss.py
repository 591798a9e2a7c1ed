"""The one place for masking, the loss and its token count: training and held-out evaluation both use it.

The output head over a large vocabulary is a big share of a small model's cost, and prompts need no
logits: a hook keeps only the positions whose next token is supervised, for any architecture. Of these logits, which
are of the type that the model computes in, no float32 copy is made but of a few rows at a time.

Where these positions are, and how many, `collate` says before a batch goes to its device: a mask there would have to be
read back to be used, and the host would wait for the device in every micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from lingraft.errors import ModelError
from lingraft.models.fused_loss import FusedHead, LogitsChangedError

if TYPE_CHECKING:
    from lingraft.data.encoded import EncodedExample, TokenArrays

Batch = Mapping[str, Tensor]

# Added to the loss of a batch: logits [S, V] at the supervised positions, the batch row of each [S], and the batch -> a
# sum over supervised tokens in nats, which is divided as the loss is.
OutputPenalty = Callable[[Tensor, Tensor, Batch], Tensor]

_ROWS_AT_A_TIME = 64  # of logits in float32: 13 MB at a vocabulary of 50,000


def collate(examples: Sequence[EncodedExample | TokenArrays], pad_token_id: int = 0) -> dict[str, Tensor]:
    """Pad examples on the right into one batch (B rows, L tokens of the longest).

    Masks come from lengths, never from ids: a pad token may equal the end token. A place is a number in 0..B*L-1, rows
    first.

    Returns:
        All int64 but the mask. `input_ids` [B, L]; `attention_mask` [B, L] bool, true on real tokens.

        Of the S tokens that are to be learned (a row's first never is: nothing predicts it) `positions` [S], the places
        of the tokens that predict them; their ids `targets` [S]; `rows` [S], in which they stand.

        Of the R rows that a strategy mixed in their numbers, `replayed_rows` [R]; of their T learned tokens the numbers
        among the S, `replayed_tokens` [T], and the places in a batch of these rows alone, `replayed_positions` [T].
    """
    lengths = np.array([len(one.input_ids) for one in examples])
    length = int(lengths.max())
    real = np.arange(length) < lengths[:, None]
    input_ids = np.full(real.shape, pad_token_id, np.int64)
    input_ids[real] = np.concatenate([np.asarray(one.input_ids) for one in examples])
    learned = np.zeros(real.shape, bool)
    learned[real] = np.concatenate([np.asarray(one.supervised) for one in examples])
    learned[:, 0] = False
    targets = np.flatnonzero(learned)  # places
    rows = targets // length
    replayed = np.array([one.replayed for one in examples])
    among_replayed = np.cumsum(replayed) - 1
    replayed_tokens = np.flatnonzero(replayed[rows])
    positions = targets - 1
    arrays = {
        "input_ids": input_ids,
        "attention_mask": real,
        "positions": positions,
        "targets": input_ids.reshape(-1)[targets],
        "rows": rows,
        "replayed_rows": np.flatnonzero(replayed),
        "replayed_tokens": replayed_tokens,
        "replayed_positions": among_replayed[rows[replayed_tokens]] * length
        + positions[replayed_tokens] % length,
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def replayed_part(batch: Batch) -> Batch:
    """Return the rows of a batch that a strategy mixed in, as a batch of their own; there must be some."""
    rows, tokens = batch["replayed_rows"], batch["replayed_tokens"]
    positions = batch["replayed_positions"]
    input_ids = batch["input_ids"].index_select(0, rows)
    return {
        "input_ids": input_ids,
        "attention_mask": batch["attention_mask"].index_select(0, rows),
        "positions": positions,
        "targets": batch["targets"].index_select(0, tokens),
        "rows": positions.div(input_ids.shape[1], rounding_mode="floor"),
    }


def count_supervised(batch: Batch) -> int:
    """Return how many tokens of a batch are predicted and learned; a row's first token never is."""
    return len(batch["targets"])


class SupervisedHead:
    """Context manager: inside, the output head of `model` sees only some positions.

    A forward pre-hook on `model.get_output_embeddings()`: [B, L, width] becomes [S, width], so that
    `outputs.logits` is [S, vocabulary].

    Args:
        model: A causal language model, also one wrapped by PEFT.
        positions: [S] int64, their places in 0..B*L-1, rows first (none is allowed: the head still runs, as sharded
            training needs of every process).

    Raises:
        ModelError: the model has no output embedding.
    """

    def __init__(self, model: nn.Module, positions: Tensor) -> None:
        head = model.get_output_embeddings()  # type: ignore[operator]
        if not isinstance(head, nn.Module):
            raise ModelError(
                f"{type(model).__name__} has no output embedding: it is no causal language model, "
                "which lingraft needs. Name a model that AutoModelForCausalLM can load."
            )
        self._head = head
        self._positions = positions

    def __enter__(self) -> SupervisedHead:
        """Put the hook on."""
        self._handle = self._head.register_forward_pre_hook(self._select)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the hook off, whatever happened inside."""
        self._handle.remove()

    def _select(self, _head: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = inputs[0].flatten(0, 1)  # [B L, width]
        return (hidden.index_select(0, self._positions.to(hidden.device)), *inputs[1:])


_rows_are_whole: ContextVar[bool] = ContextVar("_rows_are_whole", default=False)


@contextmanager
def whole_rows() -> Iterator[None]:
    """Inside, no row holds several sequences, and transformers need not look whether one does.

    It would in every forward pass without a mask, and the host would wait for the answer.
    """
    _let_rows_be_known()
    before = _rows_are_whole.set(True)
    try:
        yield
    finally:
        _rows_are_whole.reset(before)


@cache
def _let_rows_be_known() -> None:
    from transformers import masking_utils

    look = masking_utils.find_packed_sequence_indices

    def found(position_ids: Tensor) -> Tensor | None:
        return None if _rows_are_whole.get() else look(position_ids)

    masking_utils.find_packed_sequence_indices = found


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return each position's cross entropy in nats, computed in float32 whatever the type of the logits.

    Equal to torch's own on `logits.float()`, but without its four float32 tensors of that size.

    Args:
        logits: [S, V], floating.
        targets: [S] int64, each in 0..V-1.

    Returns:
        [S] float32.
    """
    values: Tensor = _CrossEntropy.apply(logits, targets)  # type: ignore[no-untyped-call]
    return values


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, logits: Tensor, targets: Tensor) -> Tensor:
        parts = [part.float().logsumexp(dim=1) for part in torch.split(logits, _ROWS_AT_A_TIME)]
        normalisers = torch.cat(parts)  # [S]
        context.save_for_backward(logits, targets, normalisers)
        return normalisers - logits.gather(1, targets[:, None])[:, 0].float()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        logits, targets, normalisers = context.saved_tensors
        (upstream,) = gradients  # [S]
        result = torch.empty_like(logits)
        columns = [
            tensor.split(_ROWS_AT_A_TIME) for tensor in (result, logits, targets, normalisers, upstream)
        ]
        for into, part, target, normaliser, above in zip(*columns, strict=True):
            chances = torch.sub(part, normaliser[:, None]).exp_()  # float32: the normaliser is
            chances.scatter_(1, target[:, None], chances.gather(1, target[:, None]) - 1)
            into.copy_(chances.mul_(above[:, None]))
        return result, None


def reverse_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Return each position's KL(student || teacher) in nats, over the whole vocabulary, computed in float32.

    Its gradient is the student's alone, p_i (log p_i - log q_i - KL). It is made in the forward pass, in place of the
    teacher's logits: so the two take no more memory than a cross entropy and its gradient.

    Args:
        student: [S, V] logits, floating.
        teacher: [S, V] logits, which this call overwrites.

    Returns:
        [S] float32, at least 0 but for rounding.
    """
    values: Tensor = _ReverseDivergence.apply(student, teacher)  # type: ignore[no-untyped-call]
    return values


class _ReverseDivergence(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, student: Tensor, teacher: Tensor) -> Tensor:
        gradient = teacher if teacher.dtype == student.dtype else torch.empty_like(student)
        parts = []
        columns = [torch.split(tensor, _ROWS_AT_A_TIME) for tensor in (gradient, student, teacher)]
        for into, own, other in zip(*columns, strict=True):
            log_p = own.float().log_softmax(dim=1)
            ratio = log_p - other.float().log_softmax(dim=1)
            p = log_p.exp_()
            values = (p * ratio).sum(dim=1)
            into.copy_(ratio.sub_(values[:, None]).mul_(p))
            parts.append(values)
        context.save_for_backward(gradient)
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = context.saved_tensors
        (upstream,) = gradients  # [S]
        result = torch.empty_like(gradient)
        columns = [tensor.split(_ROWS_AT_A_TIME) for tensor in (result, gradient, upstream)]
        for into, part, above in zip(*columns, strict=True):
            into.copy_(part * above[:, None])  # the product is float32
        return result, None


@dataclass(frozen=True, slots=True)
class TokenLosses:
    """The loss of every supervised token of a batch (S of them).

    Attributes:
        values: [S] float32, cross entropy in nats.
        rows: [S] int64, the batch row that each belongs to.
        logits: [S, vocabulary], of the positions that predict them.
        auxiliary: A mixture of experts' load-balancing loss, already times its coefficient; None: none.
    """

    values: Tensor
    rows: Tensor
    logits: Tensor
    auxiliary: Tensor | None


def token_losses(
    model: nn.Module, batch: Batch, *, arithmetic: AbstractContextManager[object] | None = None
) -> TokenLosses:
    """Return the cross entropy of each supervised token, the head applied to those positions only.

    The model gets no attention mask where it needs none: padding is on the right, so a causal model's real
    tokens never see it, and without a mask attention takes its fast causal path. Only a router's
    load-balancing loss, which averages over tokens, needs to know which are real.

    Args:
        model: A causal language model.
        batch: From `collate`, or packed.
        arithmetic: What the model runs in, such as `Compute.autocast()`; the loss is taken outside of it.
    """
    head = SupervisedHead(_unwrapped(model), batch["positions"])
    logits, auxiliary = _outputs(model, batch, head, arithmetic)
    return TokenLosses(cross_entropy(logits, batch["targets"]), batch["rows"], logits, auxiliary)


def _outputs(
    model: nn.Module,
    batch: Batch,
    head: AbstractContextManager[object],
    arithmetic: AbstractContextManager[object] | None,
) -> tuple[Tensor, Tensor | None]:
    """Return what a model gives for logits inside of `head`, and its load-balancing loss times its coefficient."""
    unwrapped = _unwrapped(model)
    routed = bool(getattr(unwrapped.config.get_text_config(), "output_router_logits", False))
    mask = {"attention_mask": batch["attention_mask"]} if routed else {}
    # Of a packed batch (train.packing) attention knows where rows begin, and has no mask.
    rows = {name: batch[name] for name in ("position_ids", "cu_seq_lens_q") if name in batch}
    with head, whole_rows(), arithmetic or nullcontext():
        outputs = model(input_ids=batch["input_ids"], use_cache=False, **mask, **rows)
    if not routed:
        return outputs.logits, None
    auxiliary = getattr(outputs, "aux_loss", None)
    coefficient = getattr(unwrapped.config.get_text_config(), "router_aux_loss_coef", None)
    if coefficient is None or not isinstance(auxiliary, Tensor):
        raise ModelError(
            f"{type(unwrapped).__name__} has output_router_logits set, but gives no aux_loss or its configuration "
            "no router_aux_loss_coef: its load-balancing loss would be lost. Set output_router_logits to false."
        )
    return outputs.logits, auxiliary * float(coefficient)


def _unwrapped(model: nn.Module) -> Any:
    return getattr(model, "module", model)  # DistributedDataParallel hides the model's methods


def supervised_loss(
    model: nn.Module,
    batch: Batch,
    *,
    with_auxiliary: bool = False,
    arithmetic: AbstractContextManager[object] | None = None,
    penalties: Sequence[OutputPenalty] = (),
    has_likelihood: bool = True,
    fused: bool = False,
) -> tuple[Tensor, int]:
    """Return the summed cross entropy of a batch's supervised tokens and their number.

    Divide by the number of *all* tokens that the mean is taken over (of an optimiser step, of a data set):
    a mean of batch means would weigh tokens by the company they keep.

    Args:
        model: A causal language model; its mode and gradients are the caller's.
        batch: From `collate`.
        with_auxiliary: Add a mixture of experts' load-balancing loss, times the batch's supervised tokens:
            after the division it is the mean over micro-batches, weighted as the loss is. For training.
        arithmetic: See `token_losses`.
        penalties: Added to the sum.
        has_likelihood: Whether the cross entropy is in the sum; else the penalties alone are.
        fused: Make no logits but of a portion of the tokens at a time; see `models.fused_loss`. Penalties need them
            all.

    Returns:
        The sum in nats, a float32 scalar, and the number of supervised tokens.

    Raises:
        LogitsChangedError: `fused`, and the model changes what comes out of its head.
    """
    if fused:
        head = FusedHead(_unwrapped(model), batch["positions"], batch["targets"])
        found, auxiliary = _outputs(model, batch, head, arithmetic)
        if found is not head.loss:
            raise LogitsChangedError
        total = found.sum()
    else:
        losses = token_losses(model, batch, arithmetic=arithmetic)
        total = losses.values.sum() if has_likelihood else losses.values.new_zeros(())
        auxiliary = losses.auxiliary
    if with_auxiliary and auxiliary is not None:
        total = total + auxiliary.float() * count_supervised(batch)
    for penalty in penalties:
        total = total + penalty(losses.logits, losses.rows, batch)
    return total, count_supervised(batch)
