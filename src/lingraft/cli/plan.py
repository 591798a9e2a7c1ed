"""`lingraft plan`: what a study will do, and what it takes of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lingraft.cli.options import JsonOption, ProcessesOption, ShardedOption
from lingraft.cli.output import print_json, print_result, print_table, quieten_loading
from lingraft.errors import ConfigError


def plan(
    study: Annotated[Path, typer.Argument(help="The study file (YAML).")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, such as training.tokens_per_batch=2048."),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Time a few real steps and answers on this machine.")
    ] = False,
    card: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            metavar="GB",
            help="Plan trainings for cards of so much memory, here or not, by the model's config.json alone.",
        ),
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder of all runs, for what is finished.")] = Path("runs"),
    processes: ProcessesOption = None,
    sharded: ShardedOption = False,
    json: JsonOption = False,
) -> None:
    """Print every stage of a study, its tokens, steps, FLOPs, memory, disk and time, and what of it is finished.

    The data are read and encoded, and the models are found, but nothing is trained. Without --measure, time is known
    where an earlier plan measured it or a finished stage of the run folder is alike. `lingraft plan adapt ...` plans an
    adaptation: it takes what `lingraft adapt` takes, and is its --dry-run.

    With --card, trainings alone are planned, for cards that need not be here, and of the model only its config.json is
    read. Exit code 2: something does not fit.
    """
    from lingraft.study.checks import load_study

    # Wrong input is reported before anything heavy is imported.
    if card is not None and measure:
        raise ConfigError(
            "--card plans for other devices, and --measure times this machine: give one of them."
        )
    loaded = load_study(study, overrides or (), Path())

    from lingraft.cli.progress import ProgressWatcher
    from lingraft.records import to_json
    from lingraft.report.plan import card_lines, card_table, plan_lines, plan_table
    from lingraft.study.cards import plan_for_cards
    from lingraft.study.run import forecast_study
    from lingraft.train.processes import Processes

    quieten_loading()
    asked = Processes.of(processes, sharded=sharded)
    if card is not None:
        asked.check_each_other()
        cards = plan_for_cards(loaded, round(card * 1e9), asked)
        if json:
            print_json({"study": loaded.name, **to_json(cards)})
        else:
            print_table(card_table(cards), loaded.name)
            for line in card_lines(cards):
                print_result(line)
        raise typer.Exit(2 if cards.problems else 0)
    with ProgressWatcher(loaded.name) as watcher:
        found = forecast_study(
            loaded,
            runs=runs,
            watcher=watcher,
            processes=asked,
            measure=measure,
        )
    if json:
        print_json({"study": loaded.name, **to_json(found)})
        return
    print_table(plan_table(found), loaded.name)
    for line in plan_lines(found):
        print_result(line)
