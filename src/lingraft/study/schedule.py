"""What a stage gets of the machine that makes it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """What one stage has for itself while it is made.

    Attributes:
        cards: Accelerators; 0: there are none, or it needs none.
        cpus: Processor cores.
        memory_bytes: Memory of the processor; None: not estimated.
    """

    cards: int = 0
    cpus: int = 1
    memory_bytes: int | None = None
