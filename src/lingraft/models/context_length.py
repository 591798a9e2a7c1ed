"""How many tokens a model can read at once: the one answer for losses, states, calibration, replay and training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

# In this order: GPT-2's own name, nearly everybody's, and those of GPT-J and of MPT.
_FIELDS = ("n_positions", "max_position_embeddings", "n_ctx", "max_seq_len")


def context_length_of(config: Any) -> int | None:
    """Return the positions that a model has, by its configuration; None: it names no limit (Bloom's are unlimited).

    With learned positions nothing longer can be read at all; with rotary ones a model was never trained on it. A
    sliding window is no limit: what leaves it is still read. Of a model with several parts, the text's.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    named = (getattr(text, field, None) for field in _FIELDS)
    return next((int(value) for value in named if isinstance(value, int) and value > 0), None)


def context_length(folder: Path, *, trust_remote_code: bool = False) -> int | None:
    """Return `context_length_of` the model in a folder, without loading it."""
    from transformers import AutoConfig

    return context_length_of(AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code))


def at_most(wanted: int, length: int | None) -> int:
    """Return the smaller of a wanted length and a model's, which may be unlimited (None)."""
    return wanted if length is None else min(wanted, length)
