"""Batches of a token budget from length buckets: little padding, and the same number of them every epoch.

Takes lengths, gives row numbers; knows nothing of tensors. `train.trainer` turns the rows into batches.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from lingraft.errors import DataError


def token_budget_batches(
    lengths: Sequence[int], tokens_per_batch: int, seed: int, epoch: int
) -> list[list[int]]:
    """Divide rows into batches in which rows times the longest row is at most `tokens_per_batch`.

    Rows are ordered by length (equal lengths in random order) and cut from the longest on. The first cut
    moves with every epoch and shifts all others, so that a row meets other neighbours; the batches are
    then shuffled. A cut that starts anywhere needs at most one batch more than the best one, so the
    number of batches is made that: it depends on lengths and budget alone, as a trainer that reads the
    length of its loader once needs.

    Args:
        lengths: Tokens of each row, at least 1.
        tokens_per_batch: Padded tokens of a batch; a longer row gets a batch of its own.
        seed: With `epoch`, decides the order; nothing else does.
        epoch: Number of the pass, from 0.

    Returns:
        Row numbers per batch; every row occurs exactly once.

    Raises:
        DataError: a row is empty.
    """
    if not all(length > 0 for length in lengths):
        raise DataError(f"row {next(i for i, n in enumerate(lengths) if n < 1)} has no tokens: leave it out.")
    generator = random.Random(f"batches of seed {seed}, epoch {epoch}")
    rows = list(range(len(lengths)))
    generator.shuffle(rows)
    rows.sort(key=lambda row: -lengths[row])  # stable: equal lengths stay shuffled
    fewest = _cut(rows, lengths, tokens_per_batch)
    if not fewest:
        return []
    first = 1 + (random.Random(seed).randrange(len(rows)) + epoch) % len(fewest[0])
    batches = [rows[:first], *_cut(rows[first:], lengths, tokens_per_batch)]
    while len(batches) < min(len(fewest) + 1, len(rows)):
        _halve_largest(batches)
    generator.shuffle(batches)
    return batches


def padded_tokens(batches: Sequence[Sequence[int]], lengths: Sequence[int]) -> int:
    """Return the tokens that a model computes for `batches`, padding included: rows times longest row."""
    return sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)


def _cut(rows: Sequence[int], lengths: Sequence[int], tokens_per_batch: int) -> list[list[int]]:
    """Cut rows, longest first, into the fewest batches: the first row of each decides how many fit."""
    batches: list[list[int]] = []
    start = 0
    while start < len(rows):
        count = max(1, tokens_per_batch // lengths[rows[start]])
        batches.append(list(rows[start : start + count]))
        start += count
    return batches


def _halve_largest(batches: list[list[int]]) -> None:
    largest = max(range(len(batches)), key=lambda number: len(batches[number]))
    rows = batches[largest]
    batches[largest : largest + 1] = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
