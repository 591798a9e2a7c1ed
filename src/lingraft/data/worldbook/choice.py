"""Seeded choices that are the same in every process, on every machine and in every order of calls."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TypeVar

_SEED = "worldbook"

_Value = TypeVar("_Value")


def number_from(*parts: object) -> int:
    """Return a number of 64 bits that depends on nothing but the text of `parts` and the corpus's seed."""
    text = "|".join([_SEED, *map(str, parts)])
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big")


def choose(options: Sequence[_Value], *parts: object) -> _Value:
    """Return one of `options`, uniformly over `parts`."""
    return options[number_from(*parts) % len(options)]


def shuffle(values: Iterable[_Value], *parts: object) -> list[_Value]:
    """Return `values` in an order that depends on each value's own text, not on where it stood."""
    return sorted(values, key=lambda value: (number_from(*parts, value), str(value)))
