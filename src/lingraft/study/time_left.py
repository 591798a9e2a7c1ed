"""How long stages take that are made several at a time, each after what it reads: for whoever shows the time left."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush


@dataclass(frozen=True)
class Ahead:
    """A stage that waits.

    Attributes:
        name: Unique.
        seconds: What it will take.
        parents: The names of what it reads; those that neither wait nor are at work are taken to be done.
    """

    name: str
    seconds: float
    parents: Collection[str] = ()


def seconds_until_made(at_work: Mapping[str, float], waiting: Sequence[Ahead], at_once: int) -> float:
    """Return in how many seconds all stages are made.

    Args:
        at_work: The seconds that each stage at work still takes, by its name.
        waiting: The others; of those that can begin, the first does as soon as a place is free.
        at_once: How many are made at a time.
    """
    running = [(seconds, name) for name, seconds in at_work.items()]
    unmade = {*at_work, *(one.name for one in waiting)}
    missing = [len(unmade.intersection(one.parents)) for one in waiting]
    ready = [place for place, count in enumerate(missing) if not count]
    readers: dict[str, list[int]] = {}
    for place, one in enumerate(waiting):
        for parent in unmade.intersection(one.parents):
            readers.setdefault(parent, []).append(place)
    heapify(running)
    heapify(ready)
    now = 0.0
    while running or ready:
        while ready and len(running) < max(1, at_once):
            stage = waiting[heappop(ready)]
            heappush(running, (now + stage.seconds, stage.name))
        now, name = heappop(running)
        for place in readers.get(name, ()):
            missing[place] -= 1
            if not missing[place]:
                heappush(ready, place)
    return now
