"""Embeddings of a data set summed up in blocks: all that DES, its correction and its interval need, in constant memory.

Every row goes to a block by its group, so that parallel rows share one, and rows of different blocks are
independent. The block of a group is the same in every data set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import islice
from operator import add

import numpy as np

from lingraft.data.example import Example
from lingraft.errors import DataError
from lingraft.similarity.encoders import Encoder, Vectors

BLOCKS = 200
MOST_TASK_TYPES = 100  # of a set; each takes BLOCKS x d values
_ROWS_AT_A_TIME = 1024

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


@dataclass(frozen=True)
class BlockSums:
    """Sums of the embeddings of some rows, by block.

    Attributes:
        sums: [BLOCKS, d] float64.
        counts: [BLOCKS] rows.
    """

    sums: Floats
    counts: Floats

    def __add__(self, other: BlockSums) -> BlockSums:
        """Return the sums of both sets of rows together."""
        return BlockSums(self.sums + other.sums, self.counts + other.counts)

    @property
    def n(self) -> int:
        """Rows."""
        return int(self.counts.sum())


@dataclass(frozen=True)
class EncodedRows:
    """What is kept of a set's encoded rows.

    Attributes:
        by_language: Sums of each language's rows, by BCP-47 tag.
        by_task_type: Sums of each task type's rows, where rows say theirs; None: more than MOST_TASK_TYPES of them.
        kept: [at most as many as asked for, d] float32, the first rows' embeddings.
    """

    by_language: dict[str, BlockSums]
    by_task_type: dict[str, BlockSums] | None
    kept: Vectors

    def __add__(self, other: EncodedRows) -> EncodedRows:
        """Return what is kept of both sets of rows together."""
        task_types = None
        if self.by_task_type is not None and other.by_task_type is not None:
            task_types = _few(_merged(self.by_task_type, other.by_task_type))
        kept = np.concatenate([self.kept, other.kept])
        return EncodedRows(_merged(self.by_language, other.by_language), task_types, kept)

    @property
    def whole(self) -> BlockSums:
        """The sums of all rows."""
        return reduce(add, self.by_language.values())


def encode_rows(
    examples: Sequence[Example],
    encoder: Encoder,
    *,
    keep: int = 0,
    on_progress: Callable[[int], None] | None = None,
) -> EncodedRows:
    """Encode the instructions of `examples`, a thousand at a time, and sum them up.

    Args:
        examples: Read once, in their order.
        encoder: Sentence encoder.
        keep: How many embeddings to keep, for nearest neighbours.
        on_progress: Called with the rows encoded so far.

    Raises:
        DataError: There are no examples, or the encoder returns values that are not finite.
    """
    found: EncodedRows | None = None
    done = 0
    left = iter(examples)
    while rows := list(islice(left, _ROWS_AT_A_TIME)):
        vectors = encoder.encode([row.instruction for row in rows])
        if not np.isfinite(vectors).all():
            raise DataError(
                f"the encoder {encoder.name} returns values that are not finite for {rows[0].source}."
            )
        part = EncodedRows(
            _sums_by([row.language for row in rows], rows, vectors),
            _few(_sums_by([row.task_type for row in rows], rows, vectors)),
            vectors[: max(0, keep - done)],
        )
        found = part if found is None else found + part
        done += len(rows)
        if on_progress is not None:
            on_progress(done)
    if found is None:
        raise DataError("a data set without instructions has no embedding.")
    return found


def _sums_by(keys: Sequence[str], rows: Sequence[Example], vectors: Vectors) -> dict[str, BlockSums]:
    """Return the sums of the rows of each key; "" is none."""
    places: dict[str, list[int]] = {}
    for place, key in enumerate(keys):
        places.setdefault(key, []).append(place)
    found = {}
    for key, own in places.items():
        if key:
            blocks = np.array([block_of(rows[place].group) for place in own])
            sums = np.zeros((BLOCKS, vectors.shape[1]))
            np.add.at(sums, blocks, vectors[own].astype(np.float64))
            found[key] = BlockSums(sums, np.bincount(blocks, minlength=BLOCKS).astype(np.float64))
    return found


def _merged(one: Mapping[str, BlockSums], other: Mapping[str, BlockSums]) -> dict[str, BlockSums]:
    merged = dict(one)
    for key, own in other.items():
        merged[key] = merged[key] + own if key in merged else own
    return merged


def _few(sums: dict[str, BlockSums]) -> dict[str, BlockSums] | None:
    return sums if len(sums) <= MOST_TASK_TYPES else None


def block_of(group: str) -> int:
    """Return a group's block, 0 to BLOCKS - 1."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") % BLOCKS
