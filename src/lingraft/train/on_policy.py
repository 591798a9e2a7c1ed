"""What training on the model's own answers is given: the answers are sampled anew in every round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lingraft.data.encoded import EncodedExample
    from lingraft.models.loss import OutputPenalty


@dataclass(frozen=True)
class OnPolicy:
    """Training on answers that the model gives while it trains, by a loss on its outputs in place of the cross entropy.

    A round is an epoch: one pass over the prompts. The rows that `train_phase` is given stand for the answers, each as
    long as the longest that it may get, so that batches are cut before any answer is known.

    Attributes:
        rows: Returns a round's rows, from 0, in the order of the prompts, as the model answers when it is called; asked
            for once a round, and after an interruption again.
        loss: A sum over the answers' tokens in nats.
        saves_rounds: Whether a checkpoint is written before a round's answers are sampled.
    """

    rows: Callable[[int], Sequence[EncodedExample]]
    loss: OutputPenalty
    saves_rounds: bool = False
