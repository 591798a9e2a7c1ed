"""Strategies: what holds forgetting back. One small file each; they compose."""

from __future__ import annotations

from lingraft.strategies.composition import REGISTRY

__all__ = ["REGISTRY"]
