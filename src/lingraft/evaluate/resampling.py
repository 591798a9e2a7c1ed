"""Bootstrap over clusters of a macro mean: over columns, of the mean over languages, of the mean over tasks.

A column is a group of items that is averaged by itself: an ability, or what one phase of a study taught. Items of
one cluster (one content in several languages, or in several columns) are drawn together, so that what is parallel
is never taken for independent evidence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lingraft.errors import EvaluationError

RESAMPLES = 2000
CONFIDENCE = 0.95

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


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


class Resampling:
    """The values of one or more columns, arranged for resampling.

    Args:
        columns: The values of each column; none may be empty.

    Raises:
        EvaluationError: There is no column, or one has no items.
    """

    def __init__(self, columns: Sequence[Sequence[Value]]) -> None:
        if not columns or not all(columns):
            raise EvaluationError("there are no items to take a mean of.")
        slots = sorted({(c, one.language) for c, values in enumerate(columns) for one in values})
        self._slots = {slot: number for number, slot in enumerate(slots)}
        self._columns = np.zeros((len(slots), len(columns)))  # 1 where the slot belongs to the column
        for (column, _), number in self._slots.items():
            self._columns[number, column] = 1.0
        tasks: dict[str, list[tuple[int, Value]]] = {}
        for column, values in enumerate(columns):
            for one in values:
                tasks.setdefault(one.task, []).append((column, one))
        self._tables = {task: self._table(entries) for task, entries in tasks.items()}

    def _table(self, entries: Sequence[tuple[int, Value]]) -> Floats:
        """Return the sums of totals and of weights [2, clusters, slots] of one task."""
        clusters = {name: i for i, name in enumerate(sorted({one.cluster for _, one in entries}))}
        table = np.zeros((2, len(clusters), len(self._slots)))
        for column, one in entries:
            place = (clusters[one.cluster], self._slots[column, one.language])
            table[0][place] += one.total
            table[1][place] += one.weight
        return table

    @property
    def n_clusters(self) -> int:
        """Clusters of all tasks."""
        return sum(table.shape[1] for table in self._tables.values())

    def cluster_means(self) -> Floats:
        """Return the mean of each cluster, over all of its items; [clusters of all tasks]."""
        return np.concatenate(
            [table[0].sum(axis=1) / table[1].sum(axis=1) for table in self._tables.values()]
        )

    def value(self) -> float:
        """Return the macro mean of the items as they are."""
        once = {task: np.ones((1, table.shape[1])) for task, table in self._tables.items()}
        return float(self._means(once)[0])

    def replicates(self, seed: int) -> Floats:
        """Return the macro means of `RESAMPLES` draws of as many clusters, with replacement."""
        generator = np.random.default_rng(seed)
        counts = {}
        for task in sorted(self._tables):
            clusters = self._tables[task].shape[1]
            shares = np.full(clusters, 1 / clusters)
            counts[task] = generator.multinomial(clusters, shares, RESAMPLES).astype(float)
        return self._means(counts)

    def _means(self, counts: Mapping[str, Floats]) -> Floats:
        """Macro means [replicates] where cluster c of task t counts `counts[t][replicate, c]` times.

        A language that a replicate did not draw is left out of that replicate's mean, and so is a column.
        """
        shape = (next(iter(counts.values())).shape[0], len(self._slots))
        totals, drawn = np.zeros(shape), np.zeros(shape)  # [replicates, slots]; over tasks
        for task, table in self._tables.items():
            sums, weights = counts[task] @ table[0], counts[task] @ table[1]
            totals += np.divide(sums, weights, out=np.zeros(shape), where=weights > 0)
            drawn += weights > 0
        slots = totals / np.maximum(drawn, 1)
        languages = (drawn > 0) @ self._columns  # [replicates, columns]: languages drawn
        columns = (slots @ self._columns) / np.maximum(languages, 1)
        means: Floats = columns.sum(axis=1) / (languages > 0).sum(axis=1)
        return means


def percentiles(replicates: Floats) -> tuple[float, float]:
    """Return the ends of the 95 % percentile interval."""
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(replicates, [tail, 100 - tail])
    return float(low), float(high)
