"""Where the labels of a scatter plot stand, so that none lies over another or over a mark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final, Literal
from unicodedata import east_asian_width

FONT_SIZE: Final = 11
_HEIGHT: Final = 14.0
_MARK: Final = 6.0  # half the size of a mark and the gap around it
_OVERHANG: Final = (
    30.0  # how far a label may stand outside of the plot: over the axis, whose labels are below and left
)


@dataclass(frozen=True, slots=True)
class Place:
    """A place of a label beside its mark, in pixels; y goes down."""

    align: Literal["left", "right", "center"]
    dx: int
    dy: int


PLACES: Final = (
    Place("left", 9, -9),
    Place("left", 9, 10),
    Place("right", -9, -9),
    Place("right", -9, 10),
    Place("left", 11, 0),
    Place("right", -11, 0),
    Place("center", 0, -15),
    Place("center", 0, 16),
    Place("left", 7, -22),
    Place("left", 7, 23),
    Place("right", -7, -22),
    Place("right", -7, 23),
)


@dataclass(frozen=True, slots=True)
class Spot:
    """A mark: its place in the plot, from 0 to 1 to the right and upwards, and what may stand beside it.

    Attributes:
        x: To the right.
        y: Upwards.
        texts: Its label, then shorter ones that say less, for where the first has no room; empty: it has none.
    """

    x: float
    y: float
    texts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Label:
    """A label that was placed.

    Attributes:
        text: Which of its spot's texts it is.
        place: Number of its place in `PLACES`.
    """

    text: str
    place: int


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in pixels; y goes down."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box) -> bool:
        """Return whether the two have a point in common."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )


def label_box(spot: Spot, text: str, place: Place, width: float, height: float) -> Box:
    """Return where a label stands in a plot of that size; letters are taken for rather too wide."""
    length = sum(FONT_SIZE if east_asian_width(letter) in "WF" else 0.6 * FONT_SIZE for letter in text)
    x, y = spot.x * width + place.dx, (1 - spot.y) * height + place.dy
    left = x - {"left": 0.0, "right": length, "center": length / 2}[place.align]
    return Box(left, y - _HEIGHT / 2, left + length, y + _HEIGHT / 2)


def placed(spots: Sequence[Spot], sizes: Sequence[tuple[float, float]]) -> list[Label | None]:
    """Return each spot's label; None: it has none, or every place is taken.

    Earlier spots choose first. A place is free if no mark and no label that was placed lies there, and the label stays
    in the plot: in each of the sizes, since the page draws the same figure for wide and for narrow windows.
    """
    marks = [
        [
            Box(spot.x * w - _MARK, (1 - spot.y) * h - _MARK, spot.x * w + _MARK, (1 - spot.y) * h + _MARK)
            for spot in spots
        ]
        for w, h in sizes
    ]
    taken: list[list[Box]] = [[] for _ in sizes]

    def is_free(box: Box, number: int) -> bool:
        width, height = sizes[number]
        return (
            box.left >= -_OVERHANG
            and box.right <= width + _OVERHANG
            and box.top >= 0
            and box.bottom <= height
            and not any(map(box.meets, (*marks[number], *taken[number])))
        )

    chosen: list[Label | None] = []
    for spot in spots:
        found = None
        for text, (number, place) in product(spot.texts, enumerate(PLACES)):
            boxes = [label_box(spot, text, place, w, h) for w, h in sizes]
            if all(is_free(box, size) for size, box in enumerate(boxes)):
                found = Label(text, number)
                for own, box in zip(taken, boxes, strict=True):
                    own.append(box)
                break
        chosen.append(found)
    return chosen
