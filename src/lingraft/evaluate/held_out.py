"""The loss of held-out answers in bits per character: the measure that moves first.

Comparable between tokenizers, because it is divided by characters and not by tokens.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from lingraft.data.batching import token_budget_batches
from lingraft.data.chat import encode_example
from lingraft.data.example import Example
from lingraft.errors import DataError
from lingraft.train.loss import collate, token_losses

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lingraft.data.chat import EncodedExample
    from lingraft.evaluate.statistics import Floats

_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class BitsPerCharacter:
    """Loss of one language's held-out answers.

    Attributes:
        value: Bits per character; 0 is perfect prediction, lower is better.
        low: Lower end of the 95 % interval (bootstrap over examples).
        high: Upper end.
        n: Examples.
        characters: Characters (Unicode code points) of all assistant turns.
        left_out: Examples that are too long or that the chat template refuses; they count nowhere else.
    """

    value: float
    low: float
    high: float
    n: int
    characters: int
    left_out: int = 0


def bits_per_character(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    tokens_per_batch: int = 2048,
    max_length: int = 4096,
) -> dict[str, BitsPerCharacter]:
    """Return the loss of the assistant turns by language.

    The cross entropy of every supervised token (a turn's end token included, so that knowing when to stop
    counts) is summed in nats, divided by ln 2 and by the characters of the assistant turns.

    Args:
        model: A causal language model, evaluated as it is.
        tokenizer: The model's own.
        examples: What was never trained on.
        tokens_per_batch: Padded tokens per forward pass.
        max_length: Longer examples are left out: a cut answer would have characters without a loss.

    Returns:
        By BCP-47 tag; a language of which no example is left is absent.
    """
    pairs = ((example, _encode_whole(example, tokenizer, max_length)) for example in examples)
    encoded = [(example, one) for example, one in pairs if one is not None]
    if not encoded:
        return {}
    nats = _nats_per_example(model, [one for _, one in encoded], tokens_per_batch)
    asked = Counter(example.language for example in examples)
    found = {}
    for language in sorted({example.language for example, _ in encoded}):
        rows = [i for i, (example, _) in enumerate(encoded) if example.language == language]
        characters = np.array([_answer_characters(encoded[i][0]) for i in rows], dtype=float)
        found[language] = _ratio(nats[rows] / math.log(2), characters, asked[language] - len(rows))
    return found


def _encode_whole(
    example: Example, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> EncodedExample | None:
    """Return the encoded example, or None where it cannot be measured as a whole."""
    try:
        encoded = encode_example(example, tokenizer, max_length)
    except DataError:
        return None
    return encoded if encoded.truncated_tokens == 0 else None


def _answer_characters(example: Example) -> int:
    return sum(len(message.content) for message in example.messages if message.role == "assistant")


def _nats_per_example(
    model: PreTrainedModel, encoded: Sequence[EncodedExample], tokens_per_batch: int
) -> Floats:
    nats = np.zeros(len(encoded))
    batches = token_budget_batches([len(one.input_ids) for one in encoded], tokens_per_batch, seed=0, epoch=0)
    was_training = model.training
    model.train(False)
    try:
        with torch.inference_mode():
            for batch in batches:
                tensors = collate([encoded[i] for i in batch])
                losses = token_losses(model, {name: one.to(model.device) for name, one in tensors.items()})
                sums = torch.zeros(len(batch), dtype=torch.float64)
                sums.index_add_(0, losses.rows.cpu(), losses.values.double().cpu())
                nats[batch] = sums.numpy()
    finally:
        model.train(was_training)
    return nats


def _ratio(bits: Floats, characters: Floats, left_out: int) -> BitsPerCharacter:
    generator = np.random.default_rng(0)
    n = len(bits)
    counts = generator.multinomial(n, np.full(n, 1 / n), _RESAMPLES)
    low, high = np.percentile((counts @ bits) / (counts @ characters), [2.5, 97.5])
    value = bits.sum() / characters.sum()
    return BitsPerCharacter(float(value), float(low), float(high), n, int(characters.sum()), left_out)
