"""`lingraft report`: the page of a study, or of several that are compared. Models are never needed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lingraft import stopping
from lingraft.cli.options import JsonOption
from lingraft.cli.output import check_page, print_json, print_message, print_result, shown_message

SEVERAL = Path("report.html")  # in the working directory: several runs have no folder of their own


def report(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="[NAME=]RUN...", help="Run folders, such as runs/tiny; several are compared."),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="PAGE.html",
            help="The page; default: report/index.html in the run folder, of several runs report.html here.",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write one page about one or more runs: tables, figures, what went wrong and how it was made.

    Reads what a study left in its folder, also of one that is at work, was stopped, or lost its models.
    """
    stopping.keeps("the page before this one is as it was")
    # Wrong input is refused before anything heavy is imported.
    from lingraft.config.named import named
    from lingraft.config.paths import user_path
    from lingraft.records import to_json
    from lingraft.report.notes import failures
    from lingraft.report.page import PAGE, write_page
    from lingraft.report.runs import read_report

    place = output or (user_path(named(runs[0]).value) / PAGE if len(runs) == 1 else SEVERAL)
    check_page(place, "--output", is_given=output is not None)
    found = read_report(runs)
    path = write_page(found, place, reported=print_message)
    if json:
        of_runs = [
            {"name": one.name, "folder": str(one.folder), "remarks": one.remarks} for one in found.runs
        ]
        print_json(
            {
                "format": 1,
                "page": str(path),
                "runs": of_runs,
                "remarks": found.remarks,
                "result": to_json(found.result),
            }
        )
        return
    for remark in found.remarks:
        print_result(shown_message(remark))
    for one in found.runs:
        for remark in one.remarks:
            print_result(shown_message(f"{one.name}: {remark}"))
    for failure in failures(found.result):
        print_result(shown_message(f"failed: {failure}"))
    print_result(f"Report: {path}")
