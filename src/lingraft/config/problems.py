"""What is wrong with a study, and where: found by several checks, reported in one message."""

from __future__ import annotations

from dataclasses import dataclass

Location = tuple[str | int, ...]
"""Keys and numbers from the file's root to a value: ("phases", 1, "data", "german")."""


@dataclass(frozen=True)
class Problem:
    """Something wrong with a study.

    Attributes:
        location: Where, as exactly as is known; it gives the line of the file, or the override that did it.
        text: One line that begins with the place in words.
    """

    location: Location
    text: str
