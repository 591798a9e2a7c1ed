"""Sequences whose rows are made when they are asked for: nothing of a large data set stays in memory."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar, overload

S = TypeVar("S")
T = TypeVar("T")


class RowSequence(Sequence[T], Generic[T]):
    """The one home of indices and slices; a slice is a tuple."""

    @abstractmethod
    def row(self, number: int) -> T:
        """Return a row by its number, from 0."""

    @overload
    def __getitem__(self, row: int) -> T: ...
    @overload
    def __getitem__(self, row: slice) -> tuple[T, ...]: ...
    def __getitem__(self, row: int | slice) -> T | tuple[T, ...]:
        if isinstance(row, slice):
            return tuple(self.row(number) for number in range(*row.indices(len(self))))
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return self.row(row % len(self))

    def __iter__(self) -> Iterator[T]:
        return map(self.row, range(len(self)))


class MadeWhenAsked(RowSequence[T], Generic[S, T]):
    """What `make` makes of the number of each of `rows`, from 0, and the row."""

    def __init__(self, rows: Sequence[S], make: Callable[[int, S], T]) -> None:
        self._rows, self._make = rows, make

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, number: int) -> T:
        """Return what is made of a row."""
        return self._make(number, self._rows[number])

    def __iter__(self) -> Iterator[T]:
        return (self._make(number, row) for number, row in enumerate(self._rows))
