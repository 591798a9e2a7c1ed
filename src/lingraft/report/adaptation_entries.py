"""What an adaptation or a rescue lost and gained, as tables and figures write it."""

from __future__ import annotations

from lingraft.adapt.promise import AbilityLoss, Gain
from lingraft.report.signs import SIGNS
from lingraft.report.tables import ABSENT, Entry


def loss_entry(loss: AbilityLoss) -> Entry:
    """Return what was lost of an ability, in per cent of the start's score, with its interval."""
    if loss.loss is None or loss.low is None or loss.high is None:
        return Entry(ABSENT)
    text = f"{100 * loss.loss:.1f} % [{100 * loss.low:.1f}, {100 * loss.high:.1f}]"
    return Entry(text, loss.loss, loss.low, loss.high)


def gain_entry(gain: Gain | None) -> Entry:
    """Return what was gained, with its interval and its sign."""
    if gain is None:
        return Entry(ABSENT)
    interval = "" if gain.low is None or gain.high is None else f" [{gain.low:+.2f}, {gain.high:+.2f}]"
    return Entry(
        f"{gain.value:+.3f}{interval} {SIGNS[gain.answer]}", gain.value, gain.low, gain.high, gain.answer
    )
