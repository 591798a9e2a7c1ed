"""`lingraft run`: run a study, or continue it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lingraft import stopping
from lingraft.cli.output import print_json, print_result, print_table, quieten_loading
from lingraft.errors import EXIT_ANSWER_IS_NO

if TYPE_CHECKING:
    from lingraft.report.tables import Matrix

_MANY_PHASES = 2  # with more, the forgetting matrix is printed as well; it always stands on the page
_MATRICES: tuple[tuple[Matrix, str], ...] = (
    ("ability", "Forgetting: ability in what each phase taught"),
    (
        "bits_per_character",
        "Forgetting: bits per character of each phase's held-out answers (lower is better)",
    ),
)


def run(
    study: Annotated[Path, typer.Argument(help="The study file (YAML).")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, such as training.epochs=2."),
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder of all runs; this one's is RUNS/<name>.")] = Path("runs"),
    processes: Annotated[
        int, typer.Option(help="Processes that train a phase together, on this machine.")
    ] = 1,
    sharded: Annotated[
        bool, typer.Option("--sharded", help="Shard the model over the processes (FSDP2).")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.")] = False,
) -> None:
    """Run a study and print its table; run it again to continue after an interruption.

    Exit code: 0 all cells are done, 1 a cell or the base's evaluation failed, 2 the study is wrong.
    """
    from lingraft.study.checks import load_study

    # Wrong input is reported before anything heavy is imported.
    loaded = load_study(study, overrides or (), Path())

    from lingraft.cli.log_lines import log_lines
    from lingraft.cli.progress import GOES_ON, ProgressWatcher
    from lingraft.records import to_json
    from lingraft.report.notes import failures, notes
    from lingraft.report.page import write_page
    from lingraft.report.tables import forgetting_table, study_table
    from lingraft.study.run import run_study
    from lingraft.train.processes import Processes

    quieten_loading()
    stopping.keeps(f"no stage was begun, those of earlier runs are kept; {GOES_ON}")
    with ProgressWatcher(loaded.name) as watcher:
        result = run_study(loaded, runs=runs, watcher=watcher, processes=Processes(processes, sharded))
    if json:
        print_json(to_json(result))
    else:
        print_table(study_table(result), loaded.name)
        if len(loaded.phases) > _MANY_PHASES:
            for kind, title in _MATRICES:
                matrix = forgetting_table(result, kind, with_intervals=False)
                if matrix is not None:
                    print_table(matrix, title)
        for failure in failures(result):
            print_result(f"failed: {failure}")
        for note in notes(result):
            print_result(note)
    log_lines().at("writing the report")
    page = write_page(result, loaded)  # after the result: what took hours is printed first
    if not json:
        print_result(f"Report: {page}")
    if failures(result):
        raise typer.Exit(EXIT_ANSWER_IS_NO)
