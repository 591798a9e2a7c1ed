"""Find generated text that must not be trained on: empty, looping, or cut off before its end."""

from __future__ import annotations

import re
from typing import Literal

Degeneration = Literal["empty", "looping", "truncated"]

# A unit of up to 200 characters, again and again. Laughter and choruses repeat three or four times.
_RUN = re.compile(r"(.{1,200}?)\1{4,}", re.DOTALL)
_SHORTEST_RUN = 20
_PIECE = 8
_SHORTEST_JUDGED = 48
_LEAST_DISTINCT = 0.4


def degeneration(text: str, *, ended: bool) -> Degeneration | None:
    """Return why a generated text must not be trained on, or None.

    A text that loops and was cut off counts as looping: more tokens would not have ended it.

    Args:
        text: What the model wrote.
        ended: Whether the model ended it by itself.
    """
    if not text.strip():
        return "empty"
    if is_looping(text):
        return "looping"
    return None if ended else "truncated"


def is_looping(text: str) -> bool:
    """Return whether a text says the same again and again.

    It does where something with a letter in it stands five times or more in a row, over 20 characters or more, or
    where the whole is so repetitive that of all its pieces of 8 characters less than 40 % differ (natural text: 80 %
    and more). Both count characters, so that scripts without spaces are judged alike; white space counts as one
    space. Whole-text repetition is judged from 48 characters on. Verse with a long refrain and tables of figures that
    hardly differ can be taken for loops; a loop of sentences that each differ a little is missed.
    """
    flat = " ".join(text.split())
    if len(flat) >= _SHORTEST_JUDGED:
        pieces = [flat[start : start + _PIECE] for start in range(len(flat) - _PIECE + 1)]
        if len(set(pieces)) < _LEAST_DISTINCT * len(pieces):
            return True
    return any(
        len(run[0]) >= _SHORTEST_RUN and any(character.isalpha() for character in run[1])
        for run in _RUN.finditer(flat)
    )
