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


def asking_clause(judged: JudgeRecord) -> str:
    """Return how many verdicts there are and what they took."""
    asking = judged.asking
    cost = "" if asking.cost is None else f", cost {asking.cost:.4f}"
    return (
        f"{asking.verdicts} verdicts, {asking.new} of them new, {asking.weighted} weighted; "
        f"{asking.tokens.read} tokens read, {asking.tokens.written} written{cost}"
    )
