"""How the results were made, so that they can be made again."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from lingraft.config.load import dump_study
from lingraft.report.contents import Block, Lines, PlacedTable, Section
from lingraft.report.runs import Report, Run
from lingraft.report.tables import ABSENT, Column, Entry, Table, checkpoint_table, models_of
from lingraft.study.made import Invocation, without_secrets
from lingraft.study.result import STUDY
from lingraft.study.unused import size_text


def section(report: Report) -> Section:
    """Return who made what when, on which machine, with which versions, and the resolved study."""
    several = len(report.runs) > 1
    blocks: list[Block] = []
    made = _made_table(report)
    if made is not None:
        caption = "Each call that worked on the run, in UTC. Details: the machine and the versions."
        blocks.append(PlacedTable("calls", "", caption, made))
    for run in report.runs:
        blocks.append(Lines(f"To make it again: {run.name}" if several else "To make it again", _again(run)))
    checkpoints = checkpoint_table(report.result)
    if checkpoints is not None:
        places = {model.checkpoint for model in models_of(report.result)} - {None}
        gone = [place for place in places if place is not None and not _has_weights(report.path_of(place))]
        caption = "Folders in the run folder, which may be moved."
        if gone:
            caption += (
                f" The weights of {len(gone)} of {len(places)} are gone; the report needs none of them."
            )
        blocks.append(PlacedTable("checkpoints", "Checkpoints", caption, checkpoints, is_folded=True))
    for run in report.runs:
        text, title = _study_text(run)
        if text:
            lines = tuple(without_secrets(text).splitlines())
            blocks.append(Lines(f"{title}: {run.name}" if several else title, lines, "text", is_folded=True))
    return Section("made", "How it was made", tuple(blocks))


def _made_table(report: Report) -> Table | None:
    """Return a row for each call that worked on a run; None: no run says."""
    columns = [
        Column("began", "date and time, UTC"),
        Column("took", "until it ended; not the sum of the stages, which earlier calls may have made"),
        Column(
            "ended",
            "done: nothing was left to be made; stopped: by a signal; failed: by an error, or a cell did",
        ),
        Column("command", "what was typed; keys and home folders are taken out"),
        Column("lingraft", "version"),
        Column("device", "what computed"),
        Column("processor", "its model", is_detail=True),
        Column("cores", "that the process could use", is_detail=True),
        Column("threads", "that torch computed with", is_detail=True),
        Column("processes", "that trained a phase together", is_detail=True),
        Column("engine", "what made the stages", is_detail=True),
        Column("memory", "of the machine", is_detail=True),
        Column("system", "operating system", is_detail=True),
        Column("Python", "version", is_detail=True),
        Column("libraries", "versions", is_detail=True),
    ]
    several = len(report.runs) > 1
    rows = [(*((run.name,) if several else ()), *_row(one)) for run in report.runs for one in run.invocations]
    if several:
        columns.insert(0, Column("run", "as this report calls it"))
    return Table(tuple(columns), tuple(rows), 2 if several else 1) if rows else None


def _row(one: Invocation) -> tuple[str, ...]:
    took: str = ABSENT
    if one.ended is not None:
        seconds = (datetime.fromisoformat(one.ended) - datetime.fromisoformat(one.began)).total_seconds()
        hours, rest = divmod(round(seconds), 3600)
        minutes, left = divmod(rest, 60)
        took = Entry(f"{hours} h {minutes} min" if hours else f"{minutes} min {left} s", seconds)
    memory = ABSENT if one.memory_bytes is None else Entry(size_text(one.memory_bytes), one.memory_bytes)
    return (
        *(
            one.day_and_minute,
            took,
            one.outcome or "killed, or at work",
            one.command,
            one.lingraft,
            one.device,
        ),
        one.processor or ABSENT,
        *(Entry(str(number), number) for number in (one.cores, one.threads, one.processes)),
        one.engine or "this process",
        *(memory, one.system, one.python, ", ".join(f"{name} {own}" for name, own in one.libraries.items())),
    )


def _again(run: Run) -> tuple[str, ...]:
    """Return what to type, with what."""
    if not run.invocations:
        made_by = (
            f" ({', '.join(f'{name} {own}' for name, own in run.versions.items())})" if run.versions else ""
        )
        begin = f"The version that made it{made_by} did not write down when, and by which command."
    else:
        last = run.invocations[-1]
        libraries = ", ".join(f"{name} {own}" for name, own in last.libraries.items())
        begin = f"Install lingraft {last.lingraft} with Python {last.python}, and {libraries}."
    used = run.result.precision
    return (
        begin,
        f"Save the study file below as {run.name}.yaml beside the data that it names, and type: lingraft run "
        f"{run.name}.yaml",
        f"Its seeds: {', '.join(str(seed) for seed in sorted({cell.seed for cell in run.result.cells}))}. It was "
        f"evaluated in {used.evaluation} on {used.device}; on another kind of machine results differ by rounding, and "
        "`precision: auto` may stand for another precision.",
    )


def _study_text(run: Run) -> tuple[str, str]:
    """Return the study file, and what it is; of one that cannot be read the text as it is."""
    if run.study is not None:
        return dump_study(run.study), "Study file, as it was run, with every default"
    try:
        return (run.folder / STUDY).read_text(
            encoding="utf-8", errors="replace"
        ), "Study file, which this version cannot read"
    except OSError:
        return "", ""


def _has_weights(folder: Path | None) -> bool:
    return folder is not None and any(folder.glob("*.safetensors"))
