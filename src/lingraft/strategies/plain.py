"""No mitigation: every parameter trains on the phase's own data."""

from __future__ import annotations

from typing import ClassVar

from lingraft.strategies.base import Strategy


class Plain(Strategy):
    """Full fine-tuning on the phase's data and nothing else: the lower bound that every table shows.

    Relatives: `mixed`, the other bound.
    """

    kind: ClassVar[str] = "plain"
