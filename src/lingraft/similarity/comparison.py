"""Several data sets compared by DES, encoding only as many rows as the asked-for precision needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import numpy as np

from lingraft.data.example import Example
from lingraft.data.example_table import select
from lingraft.data.sources import data_source_of, examples_of
from lingraft.errors import ConfigError, DataError
from lingraft.notebook import InNotebook
from lingraft.records import to_json
from lingraft.similarity.block_sums import BlockSums, EncodedRows, encode_rows
from lingraft.similarity.embedding_similarity import (
    DataSet,
    EmbeddingSimilarity,
    check_languages,
    similarity_of_sums,
)
from lingraft.similarity.encoders import EMBEDDED, Encoder, Vectors, encoder_of

FIRST_SAMPLE = 500  # rows of each set; doubled until the intervals are narrow enough
NEIGHBOURS_AMONG = 2000  # rows of each set
FEWEST_ROWS = 20  # of a language or task type, to be compared by itself

OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class LanguageSimilarity:
    """DES of one language of one set and one language of another; languages as BCP-47 tags."""

    first: str
    first_language: str
    second: str
    second_language: str
    similarity: EmbeddingSimilarity


@dataclass(frozen=True, slots=True)
class TaskTypeSimilarity:
    """DES of one task type of one set and the whole of another."""

    first: str
    task_type: str
    second: str
    similarity: EmbeddingSimilarity


@dataclass(frozen=True, slots=True)
class Overlap:
    """Nearest neighbours between two sets, which means cannot show.

    Attributes:
        share: Of the first set's sampled instructions, those with a counterpart in the second's sample whose cosine
            is at least `closeness`; in [0, 1]. Grows with the second sample.
        n: Sampled instructions of each.
    """

    first: str
    second: str
    share: float
    n: tuple[int, int]


@dataclass(frozen=True)
class Comparison(InNotebook):
    """Several data sets, compared in pairs.

    Attributes:
        names: The sets.
        rows: Rows of each set.
        encoded: Rows of each set that were encoded.
        pairs: DES by the positions (i, j) of two sets, i < j.
        by_language: DES of the languages of two sets where one of them has several.
        by_task_type: DES of each task type of a set, where its rows say theirs, and another whole set.
        too_many_task_types: The sets whose task types are too many to be compared one by one.
        overlaps: Nearest neighbours of every ordered pair.
        closeness: Cosine from which a neighbour is close.
        precision: Half-width that was asked for; None: every row was encoded.
        encoder: Its name.
    """

    names: tuple[str, ...]
    rows: tuple[int, ...]
    encoded: tuple[int, ...]
    pairs: Mapping[tuple[int, int], EmbeddingSimilarity]
    by_language: tuple[LanguageSimilarity, ...]
    by_task_type: tuple[TaskTypeSimilarity, ...]
    too_many_task_types: tuple[str, ...]
    overlaps: tuple[Overlap, ...]
    closeness: float
    precision: float | None
    encoder: str

    def to_json(self, broken: Sequence[int] = ()) -> dict[str, Any]:
        """Return everything as JSON values; the top-level figures are those of the first two sets.

        Args:
            broken: Rows of each set that could not be read; empty: none.
        """
        size = range(len(self.names))
        matrix = {
            key: [
                [1.0 if i == j else getattr(self.pairs[min(i, j), max(i, j)], key) for j in size]
                for i in size
            ]
            for key in ("des", "corrected", "low", "high")
        }
        return {
            **to_json(self.pairs[0, 1]),
            "sets": [
                {"name": name, "rows": rows, "encoded": encoded, "broken": unread}
                for name, rows, encoded, unread in zip(
                    self.names, self.rows, self.encoded, broken or [0] * len(size), strict=True
                )
            ],
            "matrix": matrix,
            "by_language": [own | own.pop("similarity") for own in map(to_json, self.by_language)],
            "by_task_type": [own | own.pop("similarity") for own in map(to_json, self.by_task_type)],
            "too_many_task_types": list(self.too_many_task_types),
            "overlaps": [to_json(one) for one in self.overlaps],
            "closeness": self.closeness,
            "precision": self.precision,
        }


def compare_sets(
    sets: Mapping[str, DataSet] | Sequence[str | Path],
    encoder: Encoder | str = EMBEDDED,
    *,
    precision: float | None = 0.005,
    closeness: float = 0.8,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> Comparison:
    """Compare data sets by DES, in pairs.

    Rows are drawn without replacement, 500 of each set at first and then twice as many each time, until the 95 %
    interval of every pair's corrected value is narrow enough; a set that all of its pairs are content with is left
    alone. Looking several times makes intervals a little too narrow, by less than their steps from look to look.

    Args:
        sets: By name, two or more: examples, or what `load_data` returns or takes; rows need no answer. Or a list of
            sources, which are their names.
        encoder: Sentence encoder, or its name: `embedded`, `labse`, a sentence-transformers id or folder.
        precision: Half-width of the intervals to stop at; None: encode every row.
        closeness: Cosine from which a nearest neighbour counts as a close counterpart.
        seed: Of the draw.
        on_progress: Called with the set's name, rows encoded and rows it has.

    Raises:
        DataError: Fewer than two sets, one that cannot be read, an empty one, or one in a language that the encoder
            does not know.
        ConfigError: There is no such encoder, or a figure is out of its range.
    """
    if precision is not None and not 0 < precision < 1:
        raise ConfigError(f"precision {precision}: must lie between 0 and 1; None encodes every row.")
    if not -1 <= closeness <= 1:
        raise ConfigError(f"closeness {closeness}: is a cosine, from -1 to 1.")
    if isinstance(sets, str) or not isinstance(sets, (Mapping, Sequence)):
        raise DataError(f"sets {sets!r:.80}: give two data sets or more, by name or in a list.")
    named = sets if isinstance(sets, Mapping) else {str(one): one for one in sets}
    if len(named) < 2:
        raise DataError(f"{len(named)} data set cannot be compared; name two or more.")
    if not isinstance(sets, Mapping):
        for source in sets:
            data_source_of(source, str(source))
    encoder = encoder_of(encoder)
    read = {name: examples_of(given, name, answered=False) for name, given in named.items()}
    samples = [_Sample(name, rows, encoder, seed) for name, rows in read.items()]
    positions = list(combinations(range(len(samples)), 2))
    growing = set(range(len(samples)))
    pairs: dict[tuple[int, int], EmbeddingSimilarity] = {}
    while growing:
        for i in sorted(growing):
            samples[i].grow(whole=precision is None, on_progress=on_progress)
        for i, j in positions:
            if growing & {i, j}:
                pairs[i, j] = similarity_of_sums(
                    samples[i].encoded.whole, samples[j].encoded.whole, encoder.name
                )
        widths = {pair: pairs[pair].half_width for pair in positions}
        vague = {
            i
            for pair, width in widths.items()
            if precision is None or width is None or width > precision
            for i in pair
        }
        growing = {i for i in vague if samples[i].left}
    by_language = []
    for one, other in combinations(samples, 2):
        parts = [_large(sample.encoded.by_language) for sample in (one, other)]
        if max(map(len, parts)) >= 2:
            by_language += [
                LanguageSimilarity(
                    one.name, first, other.name, second, similarity_of_sums(a, b, encoder.name)
                )
                for first, a in parts[0].items()
                for second, b in parts[1].items()
            ]
    return Comparison(
        names=tuple(read),
        rows=tuple(len(rows) for rows in read.values()),
        encoded=tuple(sample.done for sample in samples),
        pairs=pairs,
        by_language=tuple(by_language),
        by_task_type=tuple(
            TaskTypeSimilarity(
                one.name, task_type, other.name, similarity_of_sums(own, other.encoded.whole, encoder.name)
            )
            for one, other in permutations(samples, 2)
            for task_type, own in sorted(_large(one.encoded.by_task_type or {}).items())
        ),
        too_many_task_types=tuple(one.name for one in samples if one.encoded.by_task_type is None),
        overlaps=tuple(_overlap(one, other, closeness) for one, other in permutations(samples, 2)),
        closeness=closeness,
        precision=precision,
        encoder=encoder.name,
    )


class _Sample:
    """The rows of one set that were encoded so far, in a random order."""

    def __init__(self, name: str, examples: Sequence[Example], encoder: Encoder, seed: int) -> None:
        if not examples:
            raise DataError(f"{name}: a data set without instructions has no embedding.")
        check_languages(examples, encoder)
        self.name = name
        self.done = 0
        self._examples = examples
        self._encoder = encoder
        self._order = np.random.default_rng(seed).permutation(len(examples))
        self._encoded: EncodedRows | None = None

    @property
    def left(self) -> int:
        return len(self._examples) - self.done

    @property
    def encoded(self) -> EncodedRows:
        assert self._encoded is not None
        return self._encoded

    def grow(self, *, whole: bool, on_progress: OnProgress | None) -> None:
        """Encode as many rows again as are encoded already, or all that are left."""
        count = self.left if whole else min(max(FIRST_SAMPLE, self.done), self.left)
        rows = select(self._examples, np.sort(self._order[self.done : self.done + count]))
        kept = 0 if self._encoded is None else len(self._encoded.kept)
        before = self.done

        def report(done: int) -> None:
            if on_progress is not None:
                on_progress(f"encode {self.name}", before + done, len(self._examples))

        more = encode_rows(rows, self._encoder, keep=NEIGHBOURS_AMONG - kept, on_progress=report)
        self.done += count
        self._encoded = more if self._encoded is None else self._encoded + more


def _large(sums: Mapping[str, BlockSums]) -> dict[str, BlockSums]:
    return {key: own for key, own in sums.items() if own.n >= FEWEST_ROWS}


def _overlap(first: _Sample, second: _Sample, closeness: float) -> Overlap:
    one, other = _unit(first.encoded.kept), _unit(second.encoded.kept)
    nearest = np.concatenate(
        [(part @ other.T).max(axis=1) for part in np.array_split(one, 1 + len(one) // 500)]
    )
    return Overlap(first.name, second.name, float((nearest >= closeness).mean()), (len(one), len(other)))


def _unit(vectors: Vectors) -> Vectors:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, np.finfo(np.float32).tiny), dtype=np.float32)
