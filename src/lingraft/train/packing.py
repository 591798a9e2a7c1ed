"""Packed batches on accelerators: a micro-batch's rows end to end in one row of fixed length.

Attention stays within each row (`torch.nn.attention.varlen`), positions begin anew in each, so losses and gradients are
those of padded rows but for rounding. All batches have one shape: one graph, and memory that is laid out once.
Processors, and models whose layers mix tokens otherwise, keep padded rows.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedModel

from lingraft.data.batching import Lengths
from lingraft.models.loss import Batch

PACKED = "lingraft_packed"
PACKING = frozenset({("cuda", torch.bfloat16)})
"""Devices, with types of arithmetic, on which phases pack: where the kernel is."""
_REPLACED = ("sdpa", "flash_attention_2", "flash_attention_3")
_MULTIPLE = 64  # of the packed length: shapes that matrix units like
_WIDEST = 256  # head that flash attention takes
_TOLERANCE = 0.03  # of bf16 attention against float32, relative
# Keys are wider than values, or heads of some layers than those of others; `kernel_problem` tries one width.
_OTHER_WIDTHS = ("qk_nope_head_dim", "v_head_dim", "global_head_dim")
_DROPOUTS = ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob")


@dataclass(frozen=True, slots=True)
class Packing:
    """How batches are packed.

    Attributes:
        length: Tokens of every packed row, padding at the end included.
        longest: Tokens of the longest row that is packed.
    """

    length: int
    longest: int


def packing_for(parts: Iterable[Sequence[int]], lengths: Lengths) -> Packing:
    """Return the packing that holds all batches.

    Args:
        parts: The rows of each micro-batch of each process; numbers behind the last row teach nothing, and are short.
        lengths: Tokens of each row.
    """
    own = np.append(np.asarray(lengths, np.int64), int(np.min(lengths)))
    most = max(int(own[list(rows)].sum()) for rows in parts)
    return Packing(-(-most // _MULTIPLE) * _MULTIPLE, int(own.max()))


def packed(batch: Batch, packing: Packing) -> dict[str, Tensor]:
    """Lay the rows of a batch end to end (T = `packing.length` tokens; N rows, those of padding included).

    Args:
        batch: From `collate`, on the processor.
        packing: See `packing_for`.

    Returns:
        `input_ids`, `attention_mask` and `position_ids` [1, T]; `positions`, places in 0..T-1, with `targets` and
        `rows` as they were; `cu_seq_lens_q` [N + 1] int32, where each row begins, and T.
    """
    real = batch["attention_mask"].numpy()
    lengths = real.sum(axis=1)
    total, width = int(lengths.sum()), real.shape[1]
    # Padding attends to itself, in pieces no longer than rows are.
    left = packing.length - total
    pieces = [packing.longest] * (left // packing.longest)
    pieces += [left % packing.longest] if left % packing.longest else []
    whole = np.concatenate([lengths, np.array(pieces, np.int64)])
    begins = np.concatenate([[0], np.cumsum(whole)])
    ids = np.zeros(packing.length, np.int64)
    ids[:total] = batch["input_ids"].numpy()[real]
    positions = batch["positions"].numpy()
    arrays = {
        "input_ids": ids[None],
        "attention_mask": (np.arange(packing.length) < total)[None],
        "position_ids": (np.arange(packing.length) - np.repeat(begins[:-1], whole))[None],
        "positions": begins[positions // width] + positions % width,
        "cu_seq_lens_q": begins.astype(np.int32),
    }
    made = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return {**made, "targets": batch["targets"], "rows": batch["rows"]}


def can_pack(model: nn.Module, longest: int) -> bool:
    """Return whether rows of a model see each other nowhere but in attention, and there only where all may be seen.

    Nor where the heads of its queries, keys and values have several widths, which the kernel does not take.

    Args:
        model: A causal language model, also one wrapped by PEFT.
        longest: Tokens of the longest row: a window that holds it hides nothing.
    """
    inner = next((part for part in model.modules() if isinstance(part, PreTrainedModel)), None)
    if inner is None:
        return False
    config = inner.config
    kinds = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", True) is False:
        window = None
    names = [name for name, _ in inner.named_parameters()]
    heads = getattr(config, "num_attention_heads", None)
    width = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    return (
        config.get_text_config() is config
        and config._attn_implementation in _REPLACED
        and bool(inner._supports_attention_backend)
        and not getattr(inner, "_is_stateful", False)
        and "position_ids" in inspect.signature(inner.forward).parameters
        and kinds <= {"full_attention", "sliding_attention"}
        and (window is None or window >= longest)
        and not getattr(config, "output_router_logits", False)
        and getattr(config, "attn_logit_softcapping", None) is None
        and not any(getattr(config, name, 0) for name in (*_DROPOUTS, *_OTHER_WIDTHS))
        and not any(isinstance(part, nn.Conv1d) for part in inner.modules())
        and not any(name.endswith(("sinks", "sink")) for name in names)
        and 0 < width <= _WIDEST
        and width % 8 == 0
    )


@contextmanager
def packed_attention(model: nn.Module, packing: Packing) -> Iterator[None]:
    """Let a model that `can_pack` attend within the rows of packed batches inside."""
    inner = next(part for part in model.modules() if isinstance(part, PreTrainedModel))
    before = inner.config._attn_implementation
    AttentionInterface.register(PACKED, partial(attend, longest=packing.longest))  # it has no mask of its own
    inner.set_attn_implementation(PACKED)
    try:
        yield
    finally:
        inner.set_attn_implementation(before)


def attend(
    module: nn.Module,  # noqa: ARG001
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001
    dropout: float = 0.0,  # noqa: ARG001
    scaling: float | None = None,
    *,
    longest: int,
    cu_seq_lens_q: Tensor,
    **options: Any,  # noqa: ARG001
) -> tuple[Tensor, None]:
    """Attend causally within the rows of a packed batch (T tokens, H query and K key heads, D wide).

    Args:
        module: The attention layer.
        query: [1, H, T, D].
        key: [1, K, T, D].
        value: [1, K, T, D].
        attention_mask: Not needed.
        dropout: None; see `can_pack`.
        scaling: Factor of the scores; None: 1 / sqrt(D).
        longest: Tokens of the longest row.
        cu_seq_lens_q: [N + 1] int32, where rows begin, and T.
        options: What other ways of attending take.

    Returns:
        [1, T, H, D], and None for the weights, which are not kept.
    """
    kind = query.device.type
    if kind == "cpu":
        return _masked(query, key, value, scaling, cu_seq_lens_q).transpose(1, 2), None
    from torch.nn.attention.varlen import varlen_attn

    # Rotary positions make float32 of what autocast computed; the kernel is not known to autocast.
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else value.dtype
    queries, keys, values = (part[0].transpose(0, 1).to(dtype) for part in (query, key, value))
    attended = varlen_attn(
        queries,
        keys,
        values,
        cu_seq_lens_q,
        cu_seq_lens_q,
        longest,
        longest,
        scale=scaling,
        window_size=(-1, 0),  # causal
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(attended, Tensor)
    return attended[None], None


def _masked(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, begins: Tensor) -> Tensor:
    """Return [1, H, T, D]: the same by a mask of all pairs, which any device computes."""
    places = torch.arange(query.shape[2], device=query.device)
    row = torch.searchsorted(begins, places.to(begins.dtype), right=True)
    mask = (row[:, None] == row) & (places[:, None] >= places)
    return functional.scaled_dot_product_attention(
        query, key, value, mask, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )


def kernel_problem(model: nn.Module, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return what is wrong with attention within packed rows on a device, by one small product; None: nothing.

    Args:
        model: Whose heads it has.
        device: An accelerator.
        dtype: Of the arithmetic.
    """
    config = next(part for part in model.modules() if isinstance(part, PreTrainedModel)).config
    heads = int(config.num_attention_heads)
    keys = int(getattr(config, "num_key_value_heads", None) or heads)
    width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    generator = torch.Generator().manual_seed(0)
    begins = torch.tensor([0, 5, 48, 64], dtype=torch.int32, device=device)

    def drawn(number: int) -> Tensor:
        values = torch.randn((1, number, 64, width), generator=generator)
        return values.to(device=device, dtype=dtype).requires_grad_()

    query, key, value = given = drawn(heads), drawn(keys), drawn(keys)
    upstream = torch.randn((1, 64, heads, width), generator=generator).to(device=device, dtype=dtype)
    try:
        found, _ = attend(model, query, key, value, None, longest=43, cu_seq_lens_q=begins)
        expected = _masked(query.float(), key.float(), value.float(), None, begins).transpose(1, 2)
        mine = torch.autograd.grad(found, given, upstream)
        theirs = torch.autograd.grad(expected, given, upstream.float())
    except (RuntimeError, ValueError) as error:
        return str(error).strip().partition("\n")[0]
    for own, other in zip((found, *mine), (expected, *theirs), strict=True):
        off = float((own.float() - other).detach().norm() / other.detach().norm())
        if not off < _TOLERANCE:
            return f"it is off by {off:.2g}"
    return None
