"""The table of what a study will take, and the lines below it."""

from __future__ import annotations

from collections.abc import Iterator

from lingraft.report.tables import ABSENT, Column, Entry, Table, counted
from lingraft.stage import mfu_text
from lingraft.study.cards import CardPlan
from lingraft.study.forecast import Forecast, StageForecast, time_text, work_text
from lingraft.study.unused import size_text


def plan_table(forecast: Forecast) -> Table:
    """Return one row for each stage, in the order in which they run."""
    columns = (
        Column("stage", "what it does"),
        Column("of", "model, data or cell"),
        Column("read by", "stages that read its artefacts"),
        Column("state", "finished, begun (it goes on), or to be done"),
        Column("artefacts", "kept, or discarded when the last stage that reads them is done"),
        Column(
            "work",
            "steps and real tokens of a training; items and generated tokens (at most) of an evaluation",
        ),
        Column("FLOPs", "floating-point operations"),
        Column("memory", "at its peak"),
        Column("disk", "artefacts, with what it keeps there while it works"),
        Column("time", "that it will take, or took"),
        Column(
            "MFU",
            "model FLOPs utilisation of a training: what real tokens need over what the device could compute",
        ),
    )
    return Table(columns, tuple(_row(one) for one in forecast.stages), 2)


def _row(one: StageForecast) -> tuple[str, ...]:
    return (
        one.kind,
        one.label,
        counted(one.consumers),
        one.state,
        "kept" if one.is_kept else "discarded",
        work_text(one) or ABSENT,
        ABSENT if one.flops is None else Entry(f"{one.flops:.2g}", one.flops),
        ABSENT if one.memory_bytes is None else Entry(size_text(one.memory_bytes), one.memory_bytes),
        ABSENT if one.disk_bytes is None else Entry(size_text(one.disk_bytes), one.disk_bytes),
        ABSENT if one.seconds is None else Entry(time_text(one.seconds), one.seconds),
        ABSENT if one.mfu is None else Entry(mfu_text(one.mfu), one.mfu),
    )


def card_table(plan: CardPlan) -> Table:
    """Return one row for each training: what each card holds, by part, and how a step is computed."""
    columns = (
        Column("training", "phase and strategy"),
        Column("memory", "of each card, at its peak"),
        Column("step", "how each process computes its share of the fullest step"),
        Column("weights", "of the model, with autocast's copies"),
        Column("gradients", "of what trains"),
        Column("moments", "of the optimiser"),
        Column("activations", "of the largest micro-batch, with its logits"),
        Column("rest", "the device's context, gathered layers or buckets, and what strategies hold"),
        Column("disk", "the model in float32 and two resumable checkpoints"),
    )
    rows = []
    for one in plan.trainings:
        parts = one.memory
        sizes = (
            parts.weights + parts.copies,
            parts.gradients,
            parts.optimiser,
            parts.activations + parts.logits,
            parts.base + parts.gathered + parts.held,
            one.disk_bytes,
        )
        cut = "whole" if one.pieces == 1 else f"{one.pieces} pieces"
        again = ", checkpointing" if one.gradient_checkpointing else ""
        rows.append(
            (
                f"{one.phase}/{one.strategy}",
                Entry(size_text(one.memory_bytes), one.memory_bytes),
                f"{cut}{again}" if one.fits else "does not fit",
                *(Entry(size_text(size), size) for size in sizes),
            )
        )
    return Table(columns, tuple(rows), 1)


def card_lines(plan: CardPlan) -> Iterator[str]:
    """Yield what is said below `card_table`: how many trainings fit, and what would in place of the others."""
    each = "" if plan.processes == 1 else ", each of which has the whole model"
    if plan.sharded:
        each = ", which divide the model"
    cards = "card" if plan.processes == 1 else "cards"
    fit = sum(one.fits for one in plan.trainings)
    yield (
        f"{fit} of {len(plan.trainings)} trainings fit {plan.processes} {cards} of {size_text(plan.card_bytes)}{each}: "
        "planned by config.json for the fullest steps, not measured."
    )
    for problem in plan.problems:
        yield f"! {problem[0].upper()}{problem[1:]}"


def plan_lines(forecast: Forecast) -> Iterator[str]:
    """Yield what is said below the table: what is done, what the rest takes, and what does not fit."""
    finished = sum(one.is_finished for one in forecast.stages)
    yield f"{len(forecast.stages)} stages, {finished} of them finished."
    if finished < len(forecast.stages):
        yield _time_line(forecast)
        memory = (
            "not known"
            if forecast.memory_bytes is None
            else f"at most {size_text(forecast.memory_bytes)} at a time"
        )
        yield (
            f"Memory: {memory}, of {size_text(forecast.free_memory_bytes)} that are free. Disk: at most "
            f"{size_text(forecast.disk_bytes)} at a time, of {size_text(forecast.free_disk_bytes)}."
        )
        if forecast.host_bytes is not None:
            yield (
                f"Of the machine's own memory, to load, copy and save: at most {size_text(forecast.host_bytes)}, of "
                f"{size_text(forecast.free_host_bytes)} that are free."
            )
    for problem in forecast.problems:
        yield f"! {problem[0].upper()}{problem[1:]}"


def _time_line(forecast: Forecast) -> str:
    if forecast.seconds is None:
        return "Time: not known. --measure times a few real steps and answers on this machine."
    without = forecast.stages_without_time
    rest = f", and {without} stages more whose time is not known" if without else ""
    return f"Time: about {time_text(forecast.seconds)}{rest}."
