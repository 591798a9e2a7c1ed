"""How figures draw cells: the same colour, fill and shape for the same cell in all of them.

The colours follow Okabe and Ito (2008), made darker or lighter until each has a contrast of 3 to 1 on white and on dark
paper (WCAG 1.4.11). Who cannot tell colours apart has shapes, fills and dashes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

WIDTH: Final = 620
"""Of a plot, in pixels. On the page a script makes plots narrower where the window is: those with a number as width."""
INK: Final = "#010203"
"""Stands for the page's own text colour, light or dark."""
BLUE: Final = "#0072B2"
VERMILLION: Final = "#BA4900"
COLOURS: Final = (BLUE, VERMILLION, "#009E73", "#CC79A7", "#449AD2", "#C08A00")
SHAPES: Final = ("circle", "square", "triangle-up", "diamond", "triangle-down", "triangle-right")
BASE_MARK: Final = "M-1,-1L1,1M1,-1L-1,1"  # an x, for the base model; Phase 1 is a cross
DASHES: Final = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])
PLAIN: Final = "plain"
MIXED: Final = "mixed"


@dataclass(frozen=True, slots=True)
class Look:
    """How one strategy is drawn.

    Attributes:
        colour: Of its lines and marks.
        is_filled: Whether its marks are.
        dash: Of its lines: lengths of strokes and gaps.
    """

    colour: str
    is_filled: bool
    dash: list[int]

    @property
    def fill(self) -> str:
        """The colour inside of its marks."""
        return self.colour if self.is_filled else "transparent"


def looks_of(strategies: Iterable[str]) -> dict[str, Look]:
    """Return the look of each strategy, in the order given.

    The bounds are drawn in ink: plain filled, mixed hollow. Of the others, the first six have a colour each, the next
    six the same colours, hollow and dashed, and so on: who has more must read the labels.
    """
    names = list(dict.fromkeys(strategies))
    found = {PLAIN: Look(INK, True, DASHES[0]), MIXED: Look(INK, False, DASHES[2])}
    others = [name for name in names if name not in found]
    for number, name in enumerate(others):
        turn, place = divmod(number, len(COLOURS))
        found[name] = Look(COLOURS[place], turn % 2 == 0, DASHES[turn % len(DASHES)])
    return {name: found[name] for name in names}


def shapes_of(data: Iterable[str]) -> dict[str, str]:
    """Return the shape of each data set's marks, in the order given; from the seventh on they come again."""
    return {name: SHAPES[number % len(SHAPES)] for number, name in enumerate(dict.fromkeys(data))}
