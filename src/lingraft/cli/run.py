"""`lingraft run`: run a study, or go on with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lingraft.cli.output import print_json, print_result, print_table
from lingraft.errors import EXIT_ANSWER_IS_NO


def run(
    study: Annotated[Path, typer.Argument(help="The study file (YAML).")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, such as training.epochs=2."),
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder of all runs; this one's is RUNS/<name>.")] = Path("runs"),
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.")] = False,
) -> None:
    """Run a study and print its table; run again, it goes on where it was stopped.

    Exit code: 0 all cells are done, 1 a cell failed, 2 the study is wrong.
    """
    from lingraft.config.load import load_study

    loaded = load_study(study, overrides or ())  # wrong input is told before anything heavy is imported

    from transformers.utils import logging as transformers_logging

    from lingraft.cli.progress import ProgressWatcher
    from lingraft.report.page import write_page
    from lingraft.study.run import run_study

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # the study's own bars say more
    with ProgressWatcher() as watcher:
        result = run_study(loaded, runs=runs, watcher=watcher)
    if json:
        print_json(result)
    else:
        _print(result, loaded.name)
    page = write_page(result, loaded)  # after the result: what took hours is told first
    if not json:
        print_result(f"Report: {page}")
    if any(cell["status"] == "failed" for cell in result["cells"]):
        raise typer.Exit(EXIT_ANSWER_IS_NO)


def _print(result: dict[str, Any], name: str) -> None:
    from lingraft.report.tables import smallest_visible, study_table

    print_table(study_table(result), name)
    for cell in result["cells"]:
        if cell["status"] == "failed":
            print_result(
                f"failed: {cell['data']} / {cell['strategy']} / seed {cell['seed']}: {cell['reason']}"
            )
    print_result(smallest_visible(result))
