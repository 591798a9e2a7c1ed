"""`lingraft plan`: what a study will do, and what it takes of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lingraft.cli.options import JsonOption, ProcessesOption, ShardedOption
from lingraft.cli.output import print_json, print_result, print_table, quieten_loading


def plan(
    study: Annotated[Path, typer.Argument(help="The study file (YAML).")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, such as training.tokens_per_batch=2048."),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Time a few real steps and answers on this machine.")
    ] = False,
    runs: Annotated[Path, typer.Option(help="Folder of all runs, for what is finished.")] = Path("runs"),
    processes: ProcessesOption = None,
    sharded: ShardedOption = False,
    json: JsonOption = False,
) -> None:
    """Print every stage of a study, its tokens, steps, FLOPs, memory, disk and time, and what of it is finished.

    The data are read and encoded, and the models are found, but nothing is trained. Without --measure, time is known
    where an earlier plan measured it or a finished stage of the run folder is alike. `lingraft plan adapt ...` plans an
    adaptation: it takes what `lingraft adapt` takes, and is its --dry-run.
    """
    from lingraft.study.checks import load_study

    # Wrong input is reported before anything heavy is imported.
    loaded = load_study(study, overrides or (), Path())

    from lingraft.cli.progress import ProgressWatcher
    from lingraft.records import to_json
    from lingraft.report.plan import plan_lines, plan_table
    from lingraft.study.run import forecast_study
    from lingraft.train.processes import Processes

    quieten_loading()
    with ProgressWatcher(loaded.name) as watcher:
        found = forecast_study(
            loaded,
            runs=runs,
            watcher=watcher,
            processes=Processes.of(processes, sharded=sharded),
            measure=measure,
        )
    if json:
        print_json({"study": loaded.name, **to_json(found)})
        return
    print_table(plan_table(found), loaded.name)
    for line in plan_lines(found):
        print_result(line)
