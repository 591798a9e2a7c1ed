"""Examples that may be millions: where they are kept, and what is asked of them without reading them again.

`data.sources` fills a collector while it reads; splitting works on the columns, which are numpy arrays.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np

from lingraft.data.example import Example, Message, Origin
from lingraft.data.row_sequence import RowSequence
from lingraft.data.spool import NamelessFile, Spool, SpooledRows

_HELD_OUT_SALT = "lingraft held-out groups 1"  # changing it changes which rows every study is measured on
_DIGEST_BYTES = 16
_ORIGINAL = Origin()

Rows = np.ndarray[tuple[int], np.dtype[np.int64]]
Codes = np.ndarray[tuple[int], np.dtype[np.int32]]
_Hashes = np.ndarray[tuple[int, ...], np.dtype[np.uint64]]


@dataclass(frozen=True)
class Columns:
    """What of every example is known without reading it.

    Attributes:
        languages: BCP-47 tags, sorted.
        language: [rows] place of the example's tag in `languages`.
        group: [rows] rank of the example's group when the groups are sorted by a salted SHA-256 of their names;
            equal for equal groups. Of the SHA-256 128 bits count: among 10 million groups two have the same ones
            with a probability of 2e-25.
        digests: [groups, 2] the first 128 bits of each group's SHA-256, by rank: what tells groups of two data sets
            apart without reading either.
    """

    languages: tuple[str, ...]
    language: Codes
    group: Codes
    digests: _Hashes

    @property
    def groups(self) -> int:
        """How many groups there are."""
        return len(self.digests)

    def of(self, rows: Rows) -> Columns:
        """Return the columns of some rows; languages and groups of the others are no longer counted."""
        tags, language = np.unique(self.language[rows], return_inverse=True)
        present, group = np.unique(self.group[rows], return_inverse=True)
        names = tuple(self.languages[tag] for tag in tags)
        return Columns(names, language.astype(np.int32), group.astype(np.int32), self.digests[present])


class ExampleTable(SpooledRows[Example]):
    """All examples of a large data set, in a file, with their columns in memory."""

    def __init__(
        self, file: NamelessFile, offsets: array[int], columns: Columns, renamed: Mapping[int, str]
    ) -> None:
        """Use `ExampleCollector`."""
        super().__init__(file, offsets, _example_from_json)
        self.columns = columns
        self._renamed = renamed  # rows whose id is another than the file's

    def row(self, number: int) -> Example:
        """Read an example."""
        return self._named(number, super().row(number))

    def __iter__(self) -> Iterator[Example]:
        rows = super().__iter__()
        return rows if not self._renamed else (self._named(*row) for row in enumerate(rows))

    def _named(self, number: int, example: Example) -> Example:
        return example if number not in self._renamed else replace(example, id=self._renamed[number])


class ExampleView(RowSequence[Example]):
    """Some rows of a longer sequence, in any order; an example is read when it is asked for."""

    def __init__(self, base: Sequence[Example], rows: Rows, columns: Columns | None = None) -> None:
        self._base = base
        self._rows = rows
        self._columns = columns

    @property
    def columns(self) -> Columns:
        """The columns of its rows."""
        if self._columns is None:
            self._columns = columns_of(self._base).of(self._rows)
        return self._columns

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, number: int) -> Example:
        """Read an example."""
        return self._base[int(self._rows[number])]

    def __iter__(self) -> Iterator[Example]:
        if len(self._rows) == len(self._base) and bool((np.diff(self._rows) == 1).all()):
            return iter(self._base)
        return (self._base[int(row)] for row in self._rows)


class JoinedExamples(RowSequence[Example]):
    """Several sequences one after the other, none of them copied."""

    def __init__(self, parts: Sequence[Sequence[Example]]) -> None:
        self._parts = tuple(parts)
        self._ends = np.cumsum([len(part) for part in self._parts])

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._parts else 0

    def row(self, number: int) -> Example:
        """Return an example of the part that holds it."""
        part = int(np.searchsorted(self._ends, number, side="right"))
        return self._parts[part][number - int(self._ends[part])]

    def __iter__(self) -> Iterator[Example]:
        return chain.from_iterable(self._parts)


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A row (by its number among those collected, from 0, and its place) whose id that of an earlier place is."""

    row: int
    place: str
    id: str
    first_place: str


class ExampleCollector:
    """Takes examples as they are read, and finds the ids that occur twice without holding them in memory."""

    def __init__(self) -> None:
        self._spool: Spool[tuple[Example, str]] = Spool(
            _to_json, lambda row: (_example_from_json(row), row[0])
        )
        self._id_hashes = array("q")
        self._has_own_id = bytearray()
        self._languages: dict[str, int] = {}
        self._language = array("i")
        self._group_digests = bytearray()
        self._last_group: tuple[str, bytes] = ("", _group_digest(""))

    def __len__(self) -> int:
        return len(self._id_hashes)

    def add(self, example: Example, place: str, *, has_own_id: bool = True) -> None:
        """Take an example that stands at `place`; an id that is not its own gives way to one that another row has."""
        self._spool.append((example, place))
        self._id_hashes.append(hash(example.id))  # 64 bits, the same for equal ids within this process
        self._has_own_id.append(has_own_id)
        self._language.append(self._languages.setdefault(example.language, len(self._languages)))
        if example.group != self._last_group[0]:
            self._last_group = (example.group, _group_digest(example.group))
        self._group_digests += self._last_group[1]

    def finish(self) -> tuple[Sequence[Example], list[Duplicate]]:
        """Return the examples whose id is their own, in order, and the other rows."""
        duplicates, renamed = self._duplicates()
        self._id_hashes = array("q")
        repeated = {duplicate.row for duplicate in duplicates}
        placed = self._spool.in_memory
        if placed is None:
            table = ExampleTable(*self._spool.written(), self._columns(), renamed)
            rows: Rows = np.delete(np.arange(len(table)), sorted(repeated)) if repeated else np.arange(0)
            examples: Sequence[Example] = ExampleView(table, rows) if repeated else table
        else:
            examples = tuple(
                example if row not in renamed else replace(example, id=renamed[row])
                for row, (example, _) in enumerate(placed)
                if row not in repeated
            )
        return examples, duplicates

    def _columns(self) -> Columns:
        tags = sorted(self._languages)
        codes = np.array([tags.index(tag) for tag in self._languages], np.int32)
        language = codes[np.frombuffer(self._language, np.int32)]
        digests = _halves(self._group_digests)
        self._group_digests = bytearray()  # sorting takes as much again
        return Columns(tuple(tags), language, *_ranks(digests))

    def _duplicates(self) -> tuple[list[Duplicate], dict[int, str]]:
        """Compare the ids of those rows alone whose hashes are equal: equal hashes do not make equal ids.

        Returns:
            The rows whose id is that of an earlier one; and new ids (their places) for rows that were given a number in
            place of an id, which is another row's own.
        """
        hashes = np.frombuffer(self._id_hashes, np.int64)
        ordered = np.sort(hashes)
        suspects = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        if not len(suspects):
            return [], {}
        first_places: dict[str, str] = {}
        found, renamed = [], {}
        placed = self._spool.spooled()
        rows = [int(row) for row in np.flatnonzero(np.isin(hashes, suspects))]
        own = {placed[row][0].id for row in rows if self._has_own_id[row]}
        for row in rows:
            example, place = placed[row]
            if not self._has_own_id[row] and example.id in own and example.id != place:
                renamed[row] = place
            elif example.id in first_places:
                found.append(Duplicate(row, place, example.id, first_places[example.id]))
            else:
                first_places[example.id] = place
        return found, renamed


def columns_of(examples: Sequence[Example]) -> Columns:
    """Return the columns of examples; those that are in memory are gone through for it."""
    if isinstance(examples, (ExampleTable, ExampleView)):
        return examples.columns
    tags = sorted({example.language for example in examples})
    number = {tag: code for code, tag in enumerate(tags)}
    language = np.fromiter((number[example.language] for example in examples), np.int32, len(examples))
    digests = bytearray().join(_group_digest(example.group) for example in examples)
    return Columns(tuple(tags), language, *_ranks(_halves(digests)))


def share_a_group(
    examples: Sequence[Example], others: Sequence[Example]
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Return of each of `examples` whether one of `others` has its group; large data sets are not read for it."""
    own, other = columns_of(examples), columns_of(others)
    ranks, different = _ranks(np.concatenate([own.digests, other.digests]))
    is_shared = np.zeros(len(different), bool)
    is_shared[ranks[own.groups :]] = True
    found: np.ndarray[tuple[int], np.dtype[np.bool_]] = is_shared[ranks[: own.groups]][own.group]
    return found


def select(examples: Sequence[Example], rows: Rows) -> Sequence[Example]:
    """Return some rows in the order given: a tuple where all are in memory, else a view."""
    if isinstance(examples, tuple):
        return tuple(examples[row] for row in rows)
    return ExampleView(examples, rows)


def joined(parts: Sequence[Sequence[Example]]) -> Sequence[Example]:
    """Return all parts as one sequence: a tuple where all are tuples, else a view that copies nothing."""
    if len(parts) == 1:
        return parts[0]
    if all(isinstance(part, tuple) for part in parts):
        return tuple(chain.from_iterable(parts))
    return JoinedExamples(parts)


def sorted_by_digest(
    examples: Iterable[Example], prefix: Sequence[object], parts: Callable[[Example], tuple[str, ...]]
) -> Rows:
    """Return the order of examples by the SHA-256 of `prefix` and `parts(example)`, joined by a separator."""
    start = hashlib.sha256("".join(f"{part}\x1f" for part in prefix).encode("utf-8"))
    digests = bytearray()
    for example in examples:
        digest = start.copy()
        digest.update("\x1f".join(parts(example)).encode("utf-8"))
        digests += digest.digest()[:_DIGEST_BYTES]
    halves = _halves(digests)
    del digests  # sorting takes as much again
    return _order(halves)


def _halves(digests: bytearray) -> _Hashes:
    """Return [n, 2] the high and the low half of each digest."""
    return np.frombuffer(digests, ">u8").reshape(-1, 2).astype(np.uint64)


def _order(digests: _Hashes) -> Rows:
    order: Rows = np.lexsort((digests[:, 1], digests[:, 0]))
    return order


def _ranks(digests: _Hashes) -> tuple[Codes, _Hashes]:
    """Return each digest's rank among the different ones, and these by rank."""
    order = _order(digests)
    is_new = np.ones(len(order), bool)
    is_new[1:] = (digests[order[1:]] != digests[order[:-1]]).any(axis=1)
    ranks: Codes = np.empty(len(order), np.int32)
    ranks[order] = np.cumsum(is_new, dtype=np.int32) - 1
    return ranks, digests[order[is_new]]


def _group_digest(group: str) -> bytes:
    return hashlib.sha256(f"{_HELD_OUT_SALT}\x1f{group}".encode()).digest()[:_DIGEST_BYTES]


def _to_json(placed: tuple[Example, str]) -> list[Any]:
    example, place = placed
    origin = example.origin
    return [
        place,
        example.id,
        [[one.role, one.content, one.details, one.supervised] for one in example.messages],
        example.language,
        example.group,
        example.source,
        None if origin == _ORIGINAL else [origin.kind, origin.model, origin.settings],
        example.tools,
        example.task_type,
        example.fold_system,
    ]


def _example_from_json(row: list[Any]) -> Example:
    _, name, messages, language, group, source, origin, tools, task_type, fold_system = row
    turns = tuple(Message(*message) for message in messages)
    came_from = Origin(*origin) if origin else _ORIGINAL
    return Example(name, turns, language, group, source, came_from, tools, task_type, fold_system)
