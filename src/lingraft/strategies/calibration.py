"""Rows of the data that must not be forgotten, up to a budget of tokens: what SSU and EWC look at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from lingraft.data.chat import encode_examples
from lingraft.data.example_table import select
from lingraft.errors import StrategyError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lingraft.data.chat import EncodedExample
    from lingraft.strategies.base import Context

_ROWS_AT_A_TIME = 64
_MAX_LENGTH = 1024


def calibration_rows(
    kind: str, tokenizer: PreTrainedTokenizerBase, context: Context, tokens: int
) -> list[EncodedExample]:
    """Return rows of the old English, drawn by the seed, until they hold `tokens` tokens or there are no more.

    Raises:
        StrategyError: There is none, or none that has an answer left.
    """
    rows = context.old_english
    order = context.generator(f"{kind} calibration").permutation(len(rows))
    found: list[EncodedExample] = []
    held = 0
    for start in range(0, len(order), _ROWS_AT_A_TIME):
        chosen = select(
            tuple(rows) if isinstance(rows, list) else rows, order[start : start + _ROWS_AT_A_TIME]
        )
        for one in encode_examples(chosen, tokenizer, _MAX_LENGTH).examples:
            if held < tokens:
                found.append(one)
                held += len(one.input_ids)
        if held >= tokens:
            break
    if not found:
        raise StrategyError(
            f"{kind!r}: no row of Phase 1's data (or of the set's `english`) can be looked at; leave the strategy out."
        )
    return found


@contextmanager
def bf16_arithmetic(model: Any) -> Iterator[None]:
    """Compute in bfloat16 on float32 weights, as training does by default."""
    with torch.autocast(model.device.type, dtype=torch.bfloat16):
        yield
