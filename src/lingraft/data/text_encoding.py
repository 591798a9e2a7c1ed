"""From texts with spans to token ids, with the tokens marked that hold something of a span.

Tokens are placed by the tokenizer's offsets, or, where the tokens are the text's bytes in pieces, by their sizes.
Nothing is ever concluded from what a token is: a pad token may equal the end token.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers.decoders import ByteLevel

from lingraft.data.encoded import Bools, Int32s, Int64s
from lingraft.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]


def plain_core(tokenizer: PreTrainedTokenizerBase) -> Any:
    """Return the tokenizer beneath, of the library tokenizers, set to give every token of a text.

    Raises:
        ModelError: There is none, so that no token can be placed in its text.
    """
    if not tokenizer.is_fast:
        raise ModelError(
            f"{type(tokenizer).__name__} gives no character offsets, so the assistant's tokens cannot be found; "
            "use a model with a tokenizer.json."
        )
    core: Any = tokenizer.backend_tokenizer
    core.no_truncation()
    core.no_padding()
    core.encode_special_tokens = tokenizer.split_special_tokens
    return core


def bytes_of_tokens(core: Any) -> Int64s | None:
    """Return the bytes of text that each token stands for, [vocabulary]; None where tokens are not bytes in pieces.

    They are in a byte-level tokenizer without a normaliser, which spells every byte as one letter.
    """
    if core.normalizer is not None or not isinstance(core.decoder, ByteLevel):
        return None
    vocabulary = core.get_vocab(with_added_tokens=True)
    sizes = np.zeros(1 + max(vocabulary.values()), np.int64)
    for token, number in vocabulary.items():
        sizes[number] = len(token)
    for number, added in core.get_added_tokens_decoder().items():  # spelled as they are
        sizes[number] = len(added.content.encode("utf-8"))
    return sizes


def encode_by_offsets(
    texts: Sequence[str], spans: Sequence[tuple[Span, ...]], core: Any
) -> tuple[Int64s, Int32s, Bools]:
    """Return the tokens of each text, [texts], all tokens, and which of them hold something of a span of their text."""
    # The offsets of a token are to cover its white space too. Llama 3 and others have a post-processor that trims it
    # ("\n " is given as "\n"). Without special tokens to add it does nothing else, so ids stay the same.
    trimming, core.post_processor = core.post_processor, None
    try:
        found = core.encode_batch(list(texts), add_special_tokens=False)
    finally:
        core.post_processor = trimming
    lengths, tokens = flat([one.ids for one in found])
    offsets = chain.from_iterable(chain.from_iterable(one.offsets for one in found))
    pairs = np.fromiter(offsets, np.int64, 2 * len(tokens)).reshape(-1, 2)
    return lengths, tokens, within_spans(pairs[:, 0], pairs[:, 1], lengths, spans)


def encode_by_bytes(
    texts: Sequence[str], spans: Sequence[tuple[Span, ...]], core: Any, token_bytes: Int64s
) -> tuple[Int64s, Int32s, Bools] | None:
    """Return the same without asking for offsets, which takes half of the time again.

    The tokens of a row are its bytes in pieces, so that their sizes tell where they lie. That is checked: None where
    the bytes of a row are not as many as its tokens' (an added token may swallow the space beside it).
    """
    found = core.encode_batch_fast(list(texts), add_special_tokens=False)
    lengths, tokens = flat([one.ids for one in found])
    sizes = token_bytes[tokens]
    ends = np.concatenate([[0], np.cumsum(sizes)])  # over all rows
    row_ends = ends[np.concatenate([[0], np.cumsum(lengths)])]
    if np.diff(row_ends).tolist() != [len(text.encode("utf-8")) for text in texts]:
        return None
    ends = ends[1:] - np.repeat(row_ends[:-1], lengths)
    of_bytes = [
        own
        if text.isascii()
        else tuple((len(text[:start].encode("utf-8")), len(text[:end].encode("utf-8"))) for start, end in own)
        for text, own in zip(texts, spans, strict=True)
    ]
    return lengths, tokens, within_spans(ends - sizes, ends, lengths, of_bytes)


def flat(ids: Sequence[Sequence[int]]) -> tuple[Int64s, Int32s]:
    """Return the lengths of several lists of token ids, and all ids one after the other."""
    lengths = np.array([len(one) for one in ids], np.int64)
    return lengths, np.fromiter(chain.from_iterable(ids), np.int32, int(lengths.sum()))


def within_spans(starts: Int64s, ends: Int64s, lengths: Int64s, spans: Sequence[tuple[Span, ...]]) -> Bools:
    """Return for each token whether it holds something of a span of its row.

    Args:
        starts: [tokens] where each begins in the row's text, in the unit of the spans.
        ends: [tokens] where it ends.
        lengths: [rows] tokens of each row.
        spans: Of each row.
    """
    seen: Bools = np.zeros(len(starts), bool)
    for turn in range(max(map(len, spans), default=0)):
        # A row with fewer turns gets a span that holds nothing.
        one = np.array([row[turn] if turn < len(row) else (0, 0) for row in spans], np.int64)
        seen |= (starts < np.repeat(one[:, 1], lengths)) & (ends > np.repeat(one[:, 0], lengths))
    return seen
