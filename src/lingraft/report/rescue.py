"""What `lingraft rescue` prints: which parts of a damaged model carry the loss, and what a repair did."""

from __future__ import annotations

from collections.abc import Sequence

from lingraft.adapt.promise import AbilityLoss, ability_name
from lingraft.adapt.repair import Repaired
from lingraft.adapt.rescue import Rescued
from lingraft.report.adaptation_entries import gain_entry, loss_entry
from lingraft.report.signs import LIMIT_WORDS, SIGNS
from lingraft.report.tables import ABSENT, Column, Entry, Table


def damage_table(found: Rescued) -> Table:
    """Return what the damaged model lost, and what with each part given back; the one that carries most comes first."""
    has_gain = any(one.gain is not None for one in found.given_back)
    columns = (
        Column("given back", "part of the damaged model that got the start's weights"),
        *_loss_columns(found.damage),
        Column(
            "English changes", "by giving the part back, paired over the items: above 0 the part carries loss"
        ),
        *([Column("gain", "language ability above the start's that is left")] if has_gain else []),
    )
    rows = [("nothing", *_loss_cells(found.damage), ABSENT, *([ABSENT] if has_gain else []))]
    for one in found.given_back:
        own = one.change
        text = f"{SIGNS[own.answer]} {own.value:+.3f} [{own.low:+.3f}, {own.high:+.3f}]"
        change = Entry(text, own.value, own.low, own.high, own.answer)
        rows.append(
            (_part(one.part), *_loss_cells(one.losses), change, *([gain_entry(one.gain)] if has_gain else []))
        )
    return Table(columns, tuple(rows), 1)


def repair_sentence(repaired: Repaired) -> str:
    """Return what a repair did, in a sentence."""
    tokens = sum(one.tokens for one in repaired.rounds)
    return (
        f"Repaired in {repaired.steps} steps on {tokens:,} tokens of its own answers to {repaired.prompts} prompts, in "
        f"{len(repaired.rounds)} rounds: on {repaired.held_out} other prompts its divergence from M1 went from "
        f"{repaired.before.nats:.4f} to {repaired.after.nats:.4f} nats a token."
    )


def _part(part: str) -> str:
    if not part[0].isdecimal():
        return part
    return f"layers {part}" if "-" in part else f"layer {part}"


def _loss_columns(losses: Sequence[AbilityLoss]) -> list[Column]:
    return [
        column
        for one in losses
        for column in (
            Column(f"{ability_name(one.name)} lost", "1 - retention, with its 95 % interval"),
            Column("limit", "held, broken or undecided"),
        )
    ]


def _loss_cells(losses: Sequence[AbilityLoss]) -> list[str]:
    cells: list[str] = []
    for one in losses:
        cells += [loss_entry(one), Entry(LIMIT_WORDS[one.answer], answer=one.answer)]
    return cells
