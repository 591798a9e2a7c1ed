"""The loss of held-out answers in bits per character: the measure that moves first.

Comparable between tokenizers, because it is divided by characters and not by tokens.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from lingraft.data.batching import token_budget_batches
from lingraft.data.chat import encode_answers
from lingraft.data.example import Example
from lingraft.errors import DataError, EvaluationError
from lingraft.evaluate.predictions import read_rows, write_rows
from lingraft.evaluate.results import BitsDifference, BitsPerCharacter, MeanBits
from lingraft.intervals.changes import Answer, answer
from lingraft.intervals.clusters import ClusteredValues, Value, percentiles
from lingraft.models.answering import InThisProcess
from lingraft.models.context_length import context_length_of
from lingraft.models.loaded import in_evaluation_mode
from lingraft.models.loss import collate, token_losses
from lingraft.models.token_ids import check_token_ids, embedding_rows
from lingraft.records import fingerprint_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lingraft.data.encoded import EncodedExample
    from lingraft.intervals.clusters import Floats
    from lingraft.models.answering import Answering, Held

_RESAMPLES = 2000
_UNLIMITED = 4096  # tokens of an example, where the model could read any number: for memory's sake
_FEWEST_GROUPS = 5  # a bootstrap of fewer says nothing about its own width


@dataclass(frozen=True, slots=True)
class AnswerLoss:
    """The loss of one held-out example's answers under one model.

    Attributes:
        item: Identity of the example, by its content (`item_of`).
        language: BCP-47 tag.
        group: Equal for parallel examples of one data set.
        bits: Cross entropy of the supervised tokens, summed.
        characters: Characters (Unicode code points) of the assistant turns.
    """

    item: str
    language: str
    group: str
    bits: float
    characters: int


def item_of(example: Example) -> str:
    """Return what identifies a held-out example, however its data set is named."""
    turns = [[message.role, message.content] for message in example.messages]
    return fingerprint_of([example.language, example.group, turns])


def write_losses(path: Path, losses: Sequence[AnswerLoss]) -> None:
    """Write losses as Parquet, one row per example."""
    write_rows(path, losses, AnswerLoss)


def read_losses(path: Path) -> tuple[AnswerLoss, ...]:
    """Read what `write_losses` wrote.

    Raises:
        EvaluationError: The file is absent or holds something else.
    """
    return read_rows(path, AnswerLoss)


def held_out_losses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    tokens_per_batch: int = 2048,
    max_length: int | None = None,
    answering: Answering | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[AnswerLoss, ...]:
    """Return the loss of the assistant turns of each example, in the order of `examples`.

    The cross entropy of every supervised token (a turn's end token included, so that knowing when to stop
    counts) is summed in nats and divided by ln 2.

    Args:
        model: A causal language model, evaluated as it is.
        tokenizer: The model's own.
        examples: What was never trained on.
        tokens_per_batch: Padded tokens per forward pass.
        max_length: Longer examples are left out, and so are those that the chat template refuses: a cut answer
            would have characters without a loss. None: what the model reads at once (`context_length_of`), 4,096
            tokens where it names no limit.
        answering: Who computes; None: the model itself, in this process. Else the model may be without weights.
        on_progress: Called with the examples done and their number.

    Raises:
        ModelError: An example has a token that the model has no embedding for.
    """
    if max_length is None:
        max_length = context_length_of(model.config) or _UNLIMITED
    encoded: list[tuple[Example, EncodedExample, int]] = []
    for example in examples:
        try:
            one, characters = encode_answers(example, tokenizer, max_length)
        except DataError:  # it cannot be measured as a whole
            continue
        if one.truncated_tokens == 0:
            check_token_ids(one.input_ids, embedding_rows(model), tokenizer, f"the held-out row {example.id}")
            encoded.append((example, one, characters))
    if not encoded:
        return ()
    answering = answering or InThisProcess(model, tokenizer)
    nats = _nats_per_example(answering, [one for _, one, _ in encoded], tokens_per_batch, on_progress)
    return tuple(
        AnswerLoss(
            item_of(example),
            example.language,
            example.group,
            float(loss) / math.log(2),
            characters,
        )
        for (example, _, characters), loss in zip(encoded, nats, strict=True)
    )


def bits_per_character(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    tokens_per_batch: int = 2048,
    max_length: int | None = None,
) -> dict[str, BitsPerCharacter]:
    """Return the loss of the assistant turns by language; `held_out_losses`, summed up by `bits_by_language`."""
    losses = held_out_losses(
        model, tokenizer, examples, tokens_per_batch=tokens_per_batch, max_length=max_length
    )
    return bits_by_language(losses, examples)


def bits_by_language(
    losses: Sequence[AnswerLoss], examples: Sequence[Example]
) -> dict[str, BitsPerCharacter]:
    """Return the loss in bits per character by language: summed bits divided by summed characters.

    Args:
        losses: From `held_out_losses`.
        examples: What was asked for, to count what was left out.

    Returns:
        By BCP-47 tag; a language of which no example is left is absent.
    """
    asked = Counter(example.language for example in examples)
    found = {}
    for language in sorted({one.language for one in losses}):
        own = [one for one in losses if one.language == language]
        bits = np.array([one.bits for one in own])
        characters = np.array([one.characters for one in own], dtype=float)
        n = len(own)
        counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), _RESAMPLES)
        low, high = np.percentile((counts @ bits) / (counts @ characters), [2.5, 97.5])
        found[language] = BitsPerCharacter(
            value=float(bits.sum() / characters.sum()),
            low=float(low),
            high=float(high),
            n=n,
            characters=int(characters.sum()),
            left_out=asked[language] - n,
        )
    return found


def mean_bits(columns: Sequence[Sequence[AnswerLoss]]) -> MeanBits:
    """Return the mean over columns of the mean over languages of summed bits over summed characters.

    Percentile bootstrap over groups, 2,000 resamples, the same draw for all columns; it leans narrow for few groups.

    Raises:
        EvaluationError: A column has no examples.
    """
    resampling = ClusteredValues([[_loss_value(one, one.bits) for one in losses] for losses in columns])
    low, high = _bootstrap(resampling)
    return MeanBits(resampling.value(), low, high, len({one.item for losses in columns for one in losses}))


def bits_difference(pairs: Sequence[tuple[Sequence[AnswerLoss], Sequence[AnswerLoss]]]) -> BitsDifference:
    """Return the mean over columns of after - before, both on the same examples; see `mean_bits`.

    Raises:
        EvaluationError: A column's two models were not measured on the same examples, or there are none.
    """
    columns = []
    for before, after in pairs:
        later = {one.item: one for one in after}
        if {one.item for one in before} != later.keys():
            raise EvaluationError(
                f"two models can be compared on the same held-out examples only: {len(before)} and {len(after)}."
            )
        columns.append([_loss_value(one, later[one.item].bits - one.bits) for one in before])
    resampling = ClusteredValues(columns)
    low, high = _bootstrap(resampling)
    n = len({one.item for before, _ in pairs for one in before})
    said: Answer = "undecided" if low is None or high is None else answer(low, high, margin=None)
    return BitsDifference(resampling.value(), low, high, n, said)


def _loss_value(loss: AnswerLoss, bits: float) -> Value:
    return Value("held out", loss.language, loss.group, bits, float(loss.characters))


def _bootstrap(resampling: ClusteredValues) -> tuple[float | None, float | None]:
    if resampling.fewest_clusters() < _FEWEST_GROUPS:
        return None, None
    return percentiles(resampling.replicates(seed=0))


@dataclass(frozen=True, slots=True)
class LossOf:
    """Encoded examples whose loss is measured together: a `Batch`."""

    examples: tuple[EncodedExample, ...]

    def __call__(self, held: Held) -> list[float]:
        """Return the cross entropy of each example's supervised tokens in nats, summed in float64."""
        tensors = collate(self.examples)
        with in_evaluation_mode(held.model), torch.inference_mode():
            losses = token_losses(
                held.model, {name: one.to(held.model.device) for name, one in tensors.items()}
            )
            sums = torch.zeros(len(self.examples), dtype=torch.float64)  # on the processor, which has it
            sums.index_add_(0, losses.rows.cpu(), losses.values.cpu().double())
        return sums.tolist()


def _nats_per_example(
    answering: Answering,
    encoded: Sequence[EncodedExample],
    tokens_per_batch: int,
    on_progress: Callable[[int, int], None] | None,
) -> Floats:
    nats = np.zeros(len(encoded))
    batches = token_budget_batches([len(one.input_ids) for one in encoded], tokens_per_batch, seed=0, epoch=0)
    asked = [LossOf(tuple(encoded[i] for i in batch)) for batch in batches]
    done = 0
    for number, sums in answering.answers(asked):
        nats[batches[number]] = sums
        done += len(sums)
        if on_progress is not None:
            on_progress(done, len(encoded))
    return nats
