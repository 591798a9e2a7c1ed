"""One phase over the union of all phases' data."""

from __future__ import annotations

from typing import ClassVar

from lingraft.strategies.base import Strategy


class Mixed(Strategy):
    """One phase over the union of all phases' data, from the base: the paper's baseline at the same steps.

    Composes with nothing, and is refused where Phase 1's data are unknown. The study makes the union; no hook is
    needed. The paper finds two phases better (overall 0.355 against 0.325 for Mistral-7B).
    """

    kind: ClassVar[str] = "mixed"
