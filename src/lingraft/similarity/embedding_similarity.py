"""Dataset Embedding Similarity (DES): how alike two data sets' instructions are.

Source: arXiv 2410.16006, Definition 1. The paper reports that it decides whether Phase 2 destroys Phase 1. Beside
the paper's value stands one that is corrected for the size of the sets, with an interval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from scipy import stats

from lingraft.config.schema import DataSource
from lingraft.data.example import UNDETERMINED_LANGUAGE, Example
from lingraft.data.example_table import columns_of
from lingraft.data.sources import LoadedData, examples_of
from lingraft.errors import DataError
from lingraft.notebook import InNotebook
from lingraft.similarity.block_sums import BlockSums, Floats, encode_rows
from lingraft.similarity.encoders import EMBEDDED, Encoder, encoder_of
from lingraft.text.language_tags import primary_subtag

DataSet: TypeAlias = Sequence[Example] | LoadedData | DataSource | str | Path | Mapping[str, Any]
"""What stands for a data set: examples, what `load_data` returns, or what it takes."""

CONFIDENCE = 0.95
FEWEST_BLOCKS = 5  # an interval from fewer says nothing about its own width


@dataclass(frozen=True, slots=True)
class EmbeddingSimilarity(InNotebook):
    """DES of two data sets.

    Attributes:
        des: The paper's value, in [-1, 1]; 1: the mean instructions point the same way. Biased towards 0 for small
            sets, because each mean carries noise.
        corrected: Without that bias, in [-1, 1]; None: the noise is as large as a mean itself, or all rows share
            one group.
        low: Lower end of the 95 % interval of `corrected`; None: too few groups.
        high: Upper end.
        n: Instructions encoded of each set.
        encoder: Its name; values of two encoders are not comparable.
    """

    des: float
    corrected: float | None
    low: float | None
    high: float | None
    n: tuple[int, int]
    encoder: str

    @property
    def half_width(self) -> float | None:
        """Half of the interval's width."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


def dataset_embedding_similarity(
    first: DataSet,
    second: DataSet,
    encoder: Encoder | str = EMBEDDED,
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> EmbeddingSimilarity:
    """Return DES(D1, D2) = <e(D1), e(D2)> over the instructions (the user's turns, never the answers).

    e(D) is the mean embedding divided by its L2 norm. Every row is read and encoded once; memory does not grow with
    the sets. See `similarity_of_sums` for the correction and the interval.

    Args:
        first: A data set: examples, what `load_data` returns or takes; rows need no answer.
        second: Another one.
        encoder: Sentence encoder, or its name: `embedded`, `labse`, a sentence-transformers id or folder.
        on_progress: Called with the instructions encoded so far and their number.

    Raises:
        DataError: A set cannot be read, is empty, or in a language that the encoder does not know, or its embeddings
            cancel to zero.
        ConfigError: There is no such encoder.
    """
    known = encoder_of(encoder)
    sets = [
        examples_of(given, place, answered=False) for place, given in (("first", first), ("second", second))
    ]
    for examples in sets:
        check_languages(examples, known)
    total = sum(map(len, sets))
    report = on_progress or (lambda *_: None)
    one = encode_rows(sets[0], known, on_progress=lambda done: report(done, total)).whole
    other = encode_rows(sets[1], known, on_progress=lambda done: report(len(sets[0]) + done, total)).whole
    return similarity_of_sums(one, other, known.name)


def similarity_of_sums(first: BlockSums, second: BlockSums, encoder: str) -> EmbeddingSimilarity:
    """Return DES of two sets whose embeddings are summed up.

    The mean m of n noisy embeddings has E<m, m> = <mu, mu> + noise / n, so the paper's value is too small for small
    sets: two halves of one set of 500 give about 0.97. Products of rows of *different* groups carry no common noise:
    corrected = c12 / sqrt(c11 c22), where cij is the mean product of a row of set i and a row of set j that lie in
    different blocks (Spearman's correction for attenuation; the U-statistic of a squared mean). Sets that share
    groups, as parallel ones do, are so treated rightly as well, and a set against itself is exactly 1.

    The interval is a jackknife that leaves out one block of both sets at a time, with Student's t. It takes the rows
    as a sample of all instructions of their kind, also where every row of a file is encoded.

    Raises:
        DataError: A set's embeddings cancel to zero.
    """
    means = [one.sums.sum(axis=0) / one.n for one in (first, second)]
    norms = [float(np.linalg.norm(mean)) for mean in means]
    for one, norm in zip((first, second), norms, strict=True):
        if norm == 0.0:
            raise DataError(f"the embeddings of {one.n} instructions by {encoder} cancel to zero.")
    des = float(np.clip(means[0] @ means[1] / norms[0] / norms[1], -1.0, 1.0))
    used = (first.counts > 0) | (second.counts > 0)
    products = _Products(first, second, used)
    corrected = products.corrected(None)
    low = high = None
    if corrected is not None:
        error = products.jackknife_error()
        if error is not None:
            reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, int(used.sum()) - 1)) * error
            low, high = max(-1.0, corrected - reach), min(1.0, corrected + reach)
            low, high = min(low, 1.0), max(high, -1.0)
        corrected = float(np.clip(corrected, -1.0, 1.0))
    return EmbeddingSimilarity(des, corrected, low, high, (first.n, second.n), encoder)


class _Products:
    """Mean products of rows in different blocks, of all blocks or without one."""

    def __init__(
        self, first: BlockSums, second: BlockSums, used: np.ndarray[Any, np.dtype[np.bool_]]
    ) -> None:
        sums = [one.sums[used] for one in (first, second)]
        self._counts = [one.counts[used] for one in (first, second)]
        self._totals = [part.sum(axis=0) for part in sums]
        self._inside = {(i, j): (sums[i] * sums[j]).sum(axis=1) for i, j in _PAIRS}  # [blocks]
        self._with_total = {(i, j): (sums[i] @ self._totals[j], sums[j] @ self._totals[i]) for i, j in _PAIRS}
        self._blocks = int(used.sum())

    def corrected(self, without: int | None) -> float | None:
        """Return the corrected similarity, of all blocks but one; None where a squared norm is not above 0."""

        def gone(values: Floats) -> float:
            return 0.0 if without is None else float(values[without])

        products = []
        for i, j in _PAIRS:
            inside, pairs_inside = self._inside[i, j], self._counts[i] * self._counts[j]
            toward, backward = self._with_total[i, j]
            total = float(self._totals[i] @ self._totals[j]) + gone(inside - toward - backward)
            rows_i, rows_j = (float(self._counts[k].sum()) - gone(self._counts[k]) for k in (i, j))
            left = rows_i * rows_j - (float(pairs_inside.sum()) - gone(pairs_inside))
            if left <= 0:
                return None
            products.append((total - (float(inside.sum()) - gone(inside))) / left)
        both, one, other = products
        return both / float(np.sqrt(one * other)) if one > 0 and other > 0 else None

    def jackknife_error(self) -> float | None:
        """Return the standard error of the corrected similarity; None where blocks are too few."""
        if self._blocks < FEWEST_BLOCKS:
            return None
        found = [self.corrected(block) for block in range(self._blocks)]
        known = np.array([value for value in found if value is not None])
        if len(known) < self._blocks:
            return None
        return float(np.sqrt((self._blocks - 1) / self._blocks * ((known - known.mean()) ** 2).sum()))


_PAIRS = ((0, 1), (0, 0), (1, 1))


def unknown_languages(languages: Iterable[str], encoder: Encoder) -> tuple[str, ...]:
    """Return those of some BCP-47 tags that the encoder does not know; none, where it does not say what it knows."""
    known = encoder.languages
    if known is None:
        return ()
    return tuple(tag for tag in languages if primary_subtag(tag) not in known)


def check_languages(examples: Sequence[Example], encoder: Encoder) -> None:
    """Refuse examples in a language that the encoder does not know: it would return values all the same.

    Raises:
        DataError: Names the source, the language and the languages known.
    """
    if encoder.languages is None:
        return
    columns = columns_of(examples)
    for code in range(len(columns.languages)):
        example = examples[int(np.argmax(columns.language == code))]
        if example.language == UNDETERMINED_LANGUAGE:
            raise DataError(
                f"{example.source}: row {example.id!r} does not say its language, and the encoder {encoder.name} does "
                "not know all. Give its rows a `language` field (a BCP-47 tag such as es), or say it for all: "
                "`--language SOURCE=TAG`, in a study file `language:`."
            )
        if unknown_languages((example.language,), encoder):
            raise DataError(
                f"{example.source}: its rows are in {example.language!r}, which the encoder {encoder.name} does not "
                f"know (it knows {', '.join(sorted(encoder.languages))}). Take another encoder, such as labse, "
                "or leave these rows out (in a study, or leave des out of `measures`)."
            )
