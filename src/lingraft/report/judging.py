"""Sentences about judged answers: what the order of the outputs did, and what the verdicts took."""

from __future__ import annotations

from lingraft.judge.win_rate import JudgeRecord


def order_clause(judged: JudgeRecord) -> str:
    """Return what the order of the outputs did."""
    effect = judged.order_effect
    if effect is None:
        return "each pair was shown one way only: what the order does is not known"
    return (
        f"shown first, an answer gains {effect.value:+.3f} ({effect.low:+.3f} to {effect.high:+.3f}); on "
        f"{judged.contradictory} items the order decides"
    )


def usage_clause(judged: JudgeRecord) -> str:
    """Return how many verdicts there are and what they took."""
    usage = judged.usage
    cost = "" if usage.cost is None else f", cost {usage.cost:.4f}"
    return (
        f"{usage.verdicts} verdicts, {usage.new} of them new, {usage.weighted} weighted; "
        f"{usage.tokens.read} tokens read, {usage.tokens.written} written{cost}"
    )
