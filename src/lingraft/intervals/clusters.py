"""Values of items arranged in clusters: their macro mean, what each cluster adds to it, and the bootstrap over them.

The macro mean is over columns, of the mean over languages, of that over tasks. A column is a group of items that is
averaged by itself: an ability, or what one phase of a study taught. Items of one cluster (one content in several
languages, or in several columns) are drawn together, so that parallel items are never taken for independent evidence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np

from lingraft.errors import EvaluationError

RESAMPLES = 2000
CONFIDENCE = 0.95
_COUNTS_AT_A_TIME = 1 << 21  # 16 MB

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Chosen = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]


@dataclass(frozen=True, slots=True)
class Value:
    """One item's value in one column.

    Attributes:
        task: Items of one task are averaged together, and tasks are resampled apart.
        language: BCP-47 tag.
        cluster: Items of one task in the same cluster are drawn together.
        total: What is summed: a score, a difference of scores, a loss.
        weight: What the sum is divided by: 1 for a score; the characters, where `total` is a loss in bits.
    """

    task: str
    language: str
    cluster: str
    total: float
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Clusters:
    """What the clusters of all tasks add to a macro mean; every attribute is an array [clusters].

    Attributes:
        shares: How much each weighs; they sum to 1.
        gains: What each adds by values above 0; the macro mean is the sum of gains less that of losses.
        losses: What each takes away by values below 0, as a number above 0.
        gain_errors: How far each moves the sum of gains from what its slots' means make expect: its linearised
            influence. They sum to 0 in every task.
        loss_errors: The same of losses.
        leverages: The largest part that each is of one of its slots (a column's items in one language), in (0, 1].
        kinds: Numbers; clusters of one task that stand in the same slots have the same one.
    """

    shares: Floats
    gains: Floats
    losses: Floats
    gain_errors: Floats
    loss_errors: Floats
    leverages: Floats
    kinds: Floats

    @property
    def means(self) -> Floats:
        """Each cluster's own mean."""
        found: Floats = (self.gains - self.losses) / self.shares
        return found

    @property
    def effective(self) -> float:
        """Their number where they weigh alike, less where they do not."""
        return 1 / float(self.shares @ self.shares)

    def part(self, chosen: Chosen) -> Clusters:
        """Return the clusters where `chosen` is true, by themselves: their shares sum to 1."""
        whole = self.shares[chosen].sum()
        added = (self.shares, self.gains, self.losses, self.gain_errors, self.loss_errors)
        parts = [own[chosen] / whole for own in added]
        return Clusters(*parts, *(own[chosen] for own in (self.leverages, self.kinds)))


class ClusteredValues:
    """The values of one or more columns, by task, cluster and slot (a column's items in one language).

    Args:
        columns: The values of each column; none may be empty.

    Raises:
        EvaluationError: There is no column, or one has no items.
    """

    def __init__(self, columns: Sequence[Sequence[Value]]) -> None:
        if not columns or not all(columns):
            raise EvaluationError("there are no items to take a mean of.")
        slots = sorted({(c, one.language) for c, values in enumerate(columns) for one in values})
        slot_numbers = {slot: number for number, slot in enumerate(slots)}
        self._columns = np.zeros((len(slots), len(columns)))  # 1 where the slot belongs to the column
        for (column, _), number in slot_numbers.items():
            self._columns[number, column] = 1.0
        tasks: dict[str, list[tuple[int, Value]]] = {}
        for column, values in enumerate(columns):
            for one in values:
                tasks.setdefault(one.task, []).append((column, one))
        self._tables: dict[str, Floats] = {}  # by task: sums of totals and of weights, [2, clusters, slots]
        for task, entries in tasks.items():
            clusters = {name: i for i, name in enumerate(sorted({one.cluster for _, one in entries}))}
            table = self._tables[task] = np.zeros((2, len(clusters), len(slots)))
            for column, one in entries:
                place = (clusters[one.cluster], slot_numbers[column, one.language])
                table[0][place] += one.total
                table[1][place] += one.weight

    def combined(self, factor: float, other: ClusteredValues, of_other: float) -> ClusteredValues:
        """Return `factor` times these + `of_other` times other values, of the same items in the same order."""
        found = copy(self)
        found._tables = {
            task: np.stack([factor * table[0] + of_other * other._tables[task][0], table[1]])
            for task, table in self._tables.items()
        }
        return found

    def fewest_clusters(self) -> int:
        """Return how many clusters the smallest slot has."""
        filled = sum((table[1] > 0).sum(axis=0) for table in self._tables.values())  # [slots]
        return int(np.min(filled))

    def clusters(self) -> Clusters:
        """Return what each cluster adds to the macro mean: more where its task, language or column has fewer."""
        languages = self._columns.sum(axis=0)  # [columns]
        weight = (self._columns @ (1 / languages)) / len(languages)  # [slots]
        tasks = sum((table[1].sum(axis=0) > 0).astype(float) for table in self._tables.values())  # [slots]
        kinds: dict[tuple[int, ...], int] = {}
        found = []
        for number, (totals, weights) in enumerate(self._tables.values()):
            whole = weights.sum(axis=0)  # [slots]
            parts = np.divide(weights, whole, out=np.zeros_like(weights), where=whole > 0)
            factor = np.divide(weight / tasks, whole, out=np.zeros(len(whole)), where=whole > 0)
            added: list[Floats] = []
            for signed in (totals.clip(min=0), (-totals).clip(min=0)):
                values = signed * factor
                added += [values.sum(axis=1), (values - parts * values.sum(axis=0)).sum(axis=1)]
            gains, gain_errors, losses, loss_errors = added
            own = [(number, *map(int, np.flatnonzero(row))) for row in weights]
            numbers = np.array([kinds.setdefault(kind, len(kinds)) for kind in own], dtype=float)
            leverages = parts.max(axis=1)
            found.append((weights @ factor, gains, losses, gain_errors, loss_errors, leverages, numbers))
        return Clusters(*(np.concatenate(arrays) for arrays in zip(*found, strict=True)))

    def value(self) -> float:
        """Return the macro mean of the items as they are."""
        once = {task: np.ones((1, table.shape[1])) for task, table in self._tables.items()}
        return float(self._means(once)[0])

    def replicates(self, seed: int) -> Floats:
        """Return the macro means of `RESAMPLES` draws of as many clusters, with replacement.

        Draws without any cluster of some column are left out: their mean would be one of other columns. A language
        that is missing from a draw is left out of that draw's mean alone.
        """
        generator = np.random.default_rng(seed)
        most = max(table.shape[1] for table in self._tables.values())
        rows = max(1, _COUNTS_AT_A_TIME // most)
        parts = []
        for start in range(0, RESAMPLES, rows):
            counts = {
                task: draw_counts(generator, min(rows, RESAMPLES - start), self._tables[task].shape[1])
                for task in sorted(self._tables)
            }
            parts.append(self._means(counts))
        means = np.concatenate(parts)
        return means[~np.isnan(means)]

    def _means(self, counts: Mapping[str, Floats]) -> Floats:
        """Macro means [replicates] where cluster c of task t counts `counts[t][replicate, c]` times; NaN: no column."""
        shape = (next(iter(counts.values())).shape[0], len(self._columns))
        totals, drawn = np.zeros(shape), np.zeros(shape)  # [replicates, slots]; over tasks
        for task, table in self._tables.items():
            sums, weights = counts[task] @ table[0], counts[task] @ table[1]
            totals += np.divide(sums, weights, out=np.zeros(shape), where=weights > 0)
            drawn += weights > 0
        slots = totals / np.maximum(drawn, 1)
        languages = (drawn > 0) @ self._columns  # [replicates, columns]: languages drawn
        columns = (slots @ self._columns) / np.maximum(languages, 1)
        means: Floats = np.where((languages > 0).all(axis=1), columns.mean(axis=1), np.nan)
        return means


def draw_counts(generator: np.random.Generator, draws: int, clusters: int) -> Floats:
    """Return how often each cluster stands in each draw of as many, with replacement; [draws, clusters]."""
    drawn = generator.integers(clusters, size=(draws, clusters)) + np.arange(draws)[:, None] * clusters
    return np.bincount(drawn.ravel(), minlength=draws * clusters).reshape(draws, clusters).astype(float)


def percentiles(replicates: Floats) -> tuple[float, float]:
    """Return the ends of the 95 % percentile interval."""
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(replicates, [tail, 100 - tail])
    return float(low), float(high)
