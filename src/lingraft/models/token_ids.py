"""Token ids that a model has no row for: a token that was added to the tokenizer alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from lingraft.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def embedding_rows(model: Any) -> int:
    """Return how many tokens a model has embeddings for: each valid id is smaller."""
    return int(model.get_input_embeddings().weight.shape[0])


def check_token_ids(
    ids: Iterable[int], rows: int, tokenizer: PreTrainedTokenizerBase | None, where: str
) -> None:
    """Refuse ids that the model has no embedding for, which would end in an error deep inside of it, or in none.

    Args:
        ids: Of what the model is to read.
        rows: From `embedding_rows`.
        tokenizer: Names the token; None: it goes by its id.
        where: What the ids are of, for the message.

    Raises:
        ModelError: There is one; says which, and what to do.
    """
    highest = max(ids, default=0)
    if highest < rows:
        return
    token = None if tokenizer is None else tokenizer.convert_ids_to_tokens(highest)
    raise ModelError(
        f"{where}: the token {token!r} has the id {highest}, but the model's embedding has {rows} rows: the token was "
        "added to the tokenizer alone. Resize the model (model.resize_token_embeddings(len(tokenizer)), then save "
        "both), or take the token out of the tokenizer, the chat template or the data."
    )


def unknown_words(tokenizer: PreTrainedTokenizerBase, rows: int) -> tuple[str, ...]:
    """Return the added tokens that a text can spell and the model has no embedding for; special ones are only text."""
    added = tokenizer.added_tokens_decoder
    return tuple(one.content for number, one in added.items() if number >= rows and not one.special)


def padding_id(tokenizer: PreTrainedTokenizerBase, rows: int) -> int:
    """Return an id to fill rows with, which masks hide: the tokenizer's pad token where the model knows it, else 0."""
    pad = tokenizer.pad_token_id
    return int(pad) if pad is not None and int(pad) < rows else 0
