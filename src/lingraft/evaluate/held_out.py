"""The loss of held-out answers in bits per character: the measure that moves first.

Comparable between tokenizers, because it is divided by characters and not by tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from lingraft.data.batching import token_budget_batches
from lingraft.data.chat import encode_examples
from lingraft.data.example import Example
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
    """

    value: float
    low: float
    high: float
    n: int
    characters: int


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
        By BCP-47 tag; empty where there are no examples.
    """
    if not examples:
        return {}
    encoded = [
        (example, one)
        for example in examples
        for one in encode_examples([example], tokenizer, max_length).examples
        if one.truncated_tokens == 0
    ]
    nats = _nats_per_example(model, [one for _, one in encoded], tokens_per_batch)
    found = {}
    for language in sorted({example.language for example, _ in encoded}):
        rows = [i for i, (example, _) in enumerate(encoded) if example.language == language]
        characters = np.array([_answer_characters(encoded[i][0]) for i in rows], dtype=float)
        found[language] = _ratio(nats[rows] / math.log(2), characters)
    return found


def _answer_characters(example: Example) -> int:
    return sum(len(message.content) for message in example.messages if message.role == "assistant")


def _nats_per_example(
    model: PreTrainedModel, encoded: Sequence[EncodedExample], tokens_per_batch: int
) -> Floats:
    nats = np.zeros(len(encoded))
    batches = token_budget_batches([len(one.input_ids) for one in encoded], tokens_per_batch, seed=0, epoch=0)
    was_training = model.training
    model.train(False)
    with torch.inference_mode():
        for batch in batches:
            losses = token_losses(model, collate([encoded[i] for i in batch]))
            sums = torch.zeros(len(batch), dtype=torch.float64)
            sums.index_add_(0, losses.rows.cpu(), losses.values.double().cpu())
            nats[batch] = sums.numpy()
    model.train(was_training)
    return nats


def _ratio(bits: Floats, characters: Floats) -> BitsPerCharacter:
    generator = np.random.default_rng(0)
    n = len(bits)
    counts = generator.multinomial(n, np.full(n, 1 / n), _RESAMPLES)
    low, high = np.percentile((counts @ bits) / (counts @ characters), [2.5, 97.5])
    value = bits.sum() / characters.sum()
    return BitsPerCharacter(float(value), float(low), float(high), n, int(characters.sum()))
