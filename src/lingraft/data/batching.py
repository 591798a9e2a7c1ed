"""Batches of a token budget from length buckets: little padding, and the same number of them every epoch.

Takes lengths, gives row numbers; knows nothing of tensors. `train.trainer` turns the rows into batches.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np

from lingraft.errors import DataError

Int64s = np.ndarray[tuple[int], np.dtype[np.int64]]
Lengths = Sequence[int] | np.ndarray[tuple[int], np.dtype[np.integer[Any]]]


class Batches(Sequence[list[int]]):
    """Row numbers per batch, in two flat arrays: 8 bytes for each row and batch, however many there are.

    Attributes:
        rows: [rows] row numbers of all batches, in the order in which they were cut.
        spans: [batches, 2] where each batch begins in `rows`, and where the next one does.
    """

    def __init__(self, rows: Int64s, spans: np.ndarray[tuple[int, int], np.dtype[np.int64]]) -> None:
        self.rows = rows
        self.spans = spans

    def __len__(self) -> int:
        return len(self.spans)

    @overload
    def __getitem__(self, batch: int) -> list[int]: ...
    @overload
    def __getitem__(self, batch: slice) -> list[list[int]]: ...
    def __getitem__(self, batch: int | slice) -> list[int] | list[list[int]]:
        if isinstance(batch, slice):
            return [self[i] for i in range(*batch.indices(len(self)))]
        start, stop = self.spans[batch]
        rows: list[int] = self.rows[start:stop].tolist()
        return rows

    def __iter__(self) -> Iterator[list[int]]:
        return (self[i] for i in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(list.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]

    def padded_tokens(self, lengths: Int64s) -> int:
        """Return rows times the longest row, summed over the batches."""
        starts, stops = self.spans[:, 0], self.spans[:, 1]
        in_order = np.argsort(starts)
        longest = np.maximum.reduceat(lengths[self.rows], starts[in_order])
        return int(longest @ (stops - starts)[in_order])


def token_budget_batches(lengths: Lengths, tokens_per_batch: int, seed: int, epoch: int) -> Batches:
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
    sizes: Int64s = np.asarray(lengths, np.int64)
    if len(sizes) and sizes.min() < 1:
        raise DataError(f"row {int(np.argmax(sizes < 1))} has no tokens: leave it out.")
    generator = random.Random(f"batches of seed {seed}, epoch {epoch}")
    shuffled = array("q", range(len(sizes)))
    generator.shuffle(shuffled)
    rows: Int64s = np.frombuffer(shuffled, np.int64)
    rows = rows[np.argsort(-sizes[rows], kind="stable")]  # stable: equal lengths stay shuffled
    sizes = sizes[rows]
    fewest = _cuts(sizes, tokens_per_batch, 0)
    if len(fewest) == 1:
        return Batches(rows, np.zeros((0, 2), np.int64))
    first = 1 + (random.Random(seed).randrange(len(rows)) + epoch) % fewest[1]
    cuts = [0, *_cuts(sizes, tokens_per_batch, first)]
    while len(cuts) < min(len(fewest) + 1, len(rows) + 1):
        largest = int(np.argmax(np.diff(cuts)))
        cuts.insert(largest + 1, (cuts[largest] + cuts[largest + 1]) // 2)
    order = array("q", range(len(cuts) - 1))
    generator.shuffle(order)
    spans = np.stack([cuts[:-1], cuts[1:]], axis=1)
    return Batches(rows, spans[np.frombuffer(order, np.int64)])


def padded_tokens(batches: Sequence[Sequence[int]], lengths: Lengths) -> int:
    """Return the tokens that a model computes for `batches`, padding included: rows times longest row."""
    sizes: Int64s = np.asarray(lengths, np.int64)
    if isinstance(batches, Batches):
        return batches.padded_tokens(sizes) if batches else 0
    return sum(len(batch) * int(sizes[list(batch)].max()) for batch in batches)


def _cuts(sizes: Int64s, tokens_per_batch: int, start: int) -> list[int]:
    """Return where the fewest batches of the rows from `start` on begin, and the end of the last.

    Rows are longest first, so the first row of each batch decides how many fit.
    """
    cuts = [start]
    while cuts[-1] < len(sizes):
        count = max(1, tokens_per_batch // int(sizes[cuts[-1]]))
        cuts.append(min(cuts[-1] + count, len(sizes)))
    return cuts
