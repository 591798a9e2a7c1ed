"""Rows of the data that must not be forgotten, up to a budget of tokens: what SSU and EWC look at.

Where neither Phase 1's rows nor the set's English are known, the model that the phase starts from writes them itself:
prompts from an empty user turn, and its answers (see `replay_rows`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lingraft.data.chat import encode_examples
from lingraft.data.example_table import select
from lingraft.errors import StrategyError
from lingraft.models.context_length import at_most, context_length
from lingraft.models.token_ids import check_token_ids, embedding_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lingraft.data.encoded import EncodedExample
    from lingraft.data.example import Example
    from lingraft.strategies.base import Context

_ROWS_AT_A_TIME = 64
_MAX_LENGTH = 1024
_OWN_ANSWER = 256  # tokens at most


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a strategy looks at before training.

    Attributes:
        rows: Encoded rows, whole ones: together at least the tokens asked for, where there are as many.
        source: `phase_one`, `english` (of the set) or `self` (written by the model that the phase starts from).
    """

    rows: tuple[EncodedExample, ...]
    source: str

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return sum(len(row.input_ids) for row in self.rows)

    def check(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Refuse tokens that the model has no embedding for.

        Raises:
            ModelError: There is one.
        """
        tokens = (token for row in self.rows for token in row.input_ids)
        check_token_ids(tokens, embedding_rows(model), tokenizer, f"the calibration rows ({self.source})")

    def to_json(self) -> dict[str, object]:
        """Return the counts for the record."""
        return {"source": self.source, "rows": len(self.rows), "tokens": self.tokens}


def calibration_of(
    kind: str, tokenizer: PreTrainedTokenizerBase, context: Context, tokens: int
) -> Calibration:
    """Return rows of the old English, drawn by the seed, until they hold `tokens` tokens or there are no more.

    Raises:
        StrategyError: No row has an answer left, or the model writes none that is fit.
        ModelError: There is no old English, and the model's chat template has no user turn to write prompts from.
    """
    source = "phase_one" if context.previous_data else "english" if context.english else "self"
    max_length = at_most(
        _MAX_LENGTH, context_length(context.previous, trust_remote_code=context.trust_remote_code)
    )
    found: list[EncodedExample] = []
    if source == "self":
        from lingraft.models.generation import Sampling
        from lingraft.strategies.replay_rows import ReplaySettings, make_replay

        settings = ReplaySettings(  # the same for every strategy of a run, so that all take the same rows
            # At temperature 1: Fisher information is an expectation over the model's own distribution.
            Sampling(temperature=1.0, max_new_tokens=_OWN_ANSWER),
            context.seed_of("calibration"),
            context.compute,
            trust_remote_code=context.trust_remote_code,
            workers=context.workers,
        )
        wanted = max(1, tokens // _OWN_ANSWER)
        is_done = False
        while not is_done:
            made = make_replay(
                context.previous,
                wanted,
                settings,
                context.cache,
                on_progress=context.on_progress,
                noted=context.noted,
            )
            found = _up_to(tokens, made.examples, tokenizer, max_length)
            is_done = sum(len(one.input_ids) for one in found) >= tokens or len(made.examples) < wanted
            wanted *= 2  # those that there are already are read, not made again
    else:
        rows = context.old_english
        order = context.generator(f"{kind} calibration").permutation(len(rows))
        chosen = select(tuple(rows) if isinstance(rows, list) else rows, order)
        found = _up_to(tokens, chosen, tokenizer, max_length)
    if not found:
        raise StrategyError(
            f"{kind!r}: no row ({source}) can be looked at: none has an answer that survives the chat template. Give "
            "the data set `english: SOURCE`, or leave the strategy out."
        )
    return Calibration(tuple(found), source)


def _up_to(
    tokens: int, rows: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[EncodedExample]:
    """Return the first rows that together hold `tokens` tokens, cut off at `max_length` tokens."""
    found: list[EncodedExample] = []
    held = 0
    for start in range(0, len(rows), _ROWS_AT_A_TIME):
        for one in encode_examples(rows[start : start + _ROWS_AT_A_TIME], tokenizer, max_length).examples:
            if held < tokens:
                found.append(one)
                held += len(one.input_ids)
        if held >= tokens:
            break
    return found
