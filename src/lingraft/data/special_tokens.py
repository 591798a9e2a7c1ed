"""Which tokens of a tokenizer are special: the one place that says so."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids of the special tokens, those included that only the tokenizer's file marks as special.

    Llama 3's headers are such: they are missing in `all_special_ids`.
    """
    added = tokenizer.added_tokens_decoder
    return frozenset(tokenizer.all_special_ids) | {token for token, one in added.items() if one.special}
