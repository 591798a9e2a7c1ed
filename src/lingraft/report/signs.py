"""The signs of tables and figures, and what they mean. What a difference says is decided in `intervals.changes`."""

from __future__ import annotations

from typing import Final

from lingraft.intervals.changes import Answer, LimitAnswer

SIGNS: Final[dict[Answer, str]] = {
    "rose": "▲",
    "fell": "▼",
    "unchanged": "=",
    "undecided": "?",
    "seeds_disagree": "seeds disagree",
}
LIMIT_WORDS: Final[dict[LimitAnswer, str]] = {
    "held": "held",
    "broken": "broken",
    "undecided": "undecided",
    "seeds_disagree": "seeds disagree",
}


def legend(subject: str, margin: float, *, has_seeds: bool = False) -> str:
    """Return what the signs mean.

    Args:
        subject: What they stand beside.
        margin: A change up to it counts as none.
        has_seeds: Whether rows stand for several seeds.
    """
    seeds = (
        "; seeds disagree: they say different things, and their intervals have no value in common"
        if has_seeds
        else ""
    )
    return (
        f"{subject}: ▲ rose, ▼ fell (the 95 % interval of the paired difference excludes 0); = unchanged (the interval "
        f"lies within ±{margin:g}); ? undecided (these items do not show which){seeds}."
    )
