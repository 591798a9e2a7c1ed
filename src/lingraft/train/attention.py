"""Attention for training on a CPU: two batched matrix products a layer, the query heads of a group side by side.

torch's own ways are made for inference or long rows there: its flash kernel costs much the same however short the
rows, its mathematical one computes in float32. A layer of SmolLM2-135M forward and backward, best of 12:
8.9 ms (math) and 13.6 (flash) against 3.2 at 8 x 102 tokens, 43.5 and 38.3 against 13.5 at 3 x 340.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

GROUPED = "lingraft_grouped"
_REPLACED = "sdpa"
LONGEST = 512  # tokens; beyond, flash attention is as fast and does not keep the weights of all pairs


@contextmanager
def grouped_attention(model: nn.Module) -> Iterator[None]:
    """Let a model that attends by torch's scaled_dot_product_attention on a CPU use `grouped` inside.

    Any other implementation is left alone: whoever chose it had a reason.
    """
    inner = _inner(model)
    if inner is None or inner.device.type != "cpu" or inner.config._attn_implementation != _REPLACED:
        yield
        return
    AttentionInterface.register(GROUPED, grouped)
    AttentionMaskInterface.register(GROUPED, sdpa_mask)
    inner.set_attn_implementation(GROUPED)
    try:
        yield
    finally:
        inner.set_attn_implementation(_REPLACED)


def is_grouped(model: nn.Module) -> bool:
    """Return whether a model attends by `grouped` now."""
    inner = _inner(model)
    return inner is not None and inner.config._attn_implementation == GROUPED


def _inner(model: nn.Module) -> PreTrainedModel | None:
    """Return the model itself, also from inside an adapter's wrapper."""
    return next((part for part in model.modules() if isinstance(part, PreTrainedModel)), None)


def grouped(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend causally (B rows, H query heads in groups that share one of K key heads, L tokens, D wide).

    The scores are rounded to the type of the query before the softmax, as in transformers' eager attention; what
    this function does not cover (a mask, dropout, long rows, another device, as the Trainer may move the model later)
    goes to scaled_dot_product_attention.

    Args:
        module: The attention layer.
        query: [B, H, L, D].
        key: [B, K, L, D].
        value: [B, K, L, D].
        attention_mask: None where attention is plainly causal.
        dropout: Of the attention's weights.
        scaling: Factor of the scores; None: 1 / sqrt(D).
        is_causal: None: as the layer says.
        options: What scaled_dot_product_attention takes besides.

    Returns:
        [B, L, H, D], and None for the weights, which are not kept.
    """
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    length = query.shape[2]
    plain = attention_mask is None and causal and dropout == 0.0 and options.get("position_bias") is None
    if (
        query.device.type != "cpu"
        or not plain
        or length > LONGEST
        or length != key.shape[2]
        or options.get("softcap") is not None
    ):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **options
        )
    rows, heads, _, width = query.shape
    key_heads = key.shape[1]
    keys = key.reshape(rows * key_heads, length, width)
    values = value.reshape(rows * key_heads, length, value.shape[3])
    queries = query.reshape(rows * key_heads, -1, width)  # [B K, H/K L, D]
    future = torch.full((length, length), float("-inf"), dtype=query.dtype, device=query.device).triu_(1)
    future = future.repeat(heads // key_heads, 1).expand(rows * key_heads, -1, -1)
    scale = width**-0.5 if scaling is None else scaling
    weights = torch.baddbmm(future, queries, keys.transpose(1, 2), alpha=scale).softmax(dim=-1)
    attended = torch.bmm(weights, values).view(rows, heads, length, value.shape[3])
    return attended.transpose(1, 2).contiguous(), None
