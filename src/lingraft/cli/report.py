"""`lingraft report`: the page of a study, or of several that are compared. Models are never needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lingraft import stopping
from lingraft.cli.options import JsonOption
from lingraft.cli.output import check_page, print_json, print_message, print_result, shown_message

if TYPE_CHECKING:
    from lingraft.config.named import Named

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
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Serve the page of a run while it is under way, on this machine alone, until Ctrl-C.",
        ),
    ] = False,
    port: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, max=65535, help="The port of --watch; default: a free one."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write one page about one or more runs: tables, figures, what went wrong and how it was made.

    Reads what a study left in its folder, also of one that is at work, was stopped, or lost its models.
    """
    stopping.keeps("the page before this one is as it was")
    # Wrong input is refused before anything heavy is imported.
    from lingraft.config.named import all_named
    from lingraft.errors import ConfigError
    from lingraft.records import to_json
    from lingraft.report.notes import failures, pending_notes
    from lingraft.report.page import PAGE, write_page
    from lingraft.report.runs import read_report

    named = all_named(runs)
    if port is not None and not watch:
        raise ConfigError(
            "--port: goes with --watch, which serves the page; add --watch, or leave --port out."
        )
    if watch:
        if len(named) > 1:
            raise ConfigError(f"--watch: follows one run, and {len(named)} are named; name one.")
        if output is not None or json:
            option = "--json" if json else "--output"
            raise ConfigError(
                f"{option}: goes without --watch, which writes nothing; leave one of the two out."
            )
        _watch(named[0], port or 0)
        return
    place = output or (Path(named[0].value) / PAGE if len(named) == 1 else SEVERAL)
    check_page(place, "--output", is_given=output is not None)
    found = read_report(named)
    path = write_page(found, place, reported=print_message)
    if json:
        of_runs = [
            {"name": one.name, "folder": str(one.folder), "remarks": one.remarks} for one in found.runs
        ]
        print_json({"format": 1, "page": str(path), "runs": of_runs, "result": to_json(found.result)})
        return
    for one in found.runs:
        for remark in one.remarks:
            print_result(shown_message(f"{one.name}: {remark}"))
    for failure in failures(found.result):
        print_result(shown_message(f"failed: {failure}"))
    for note in pending_notes(found.result):
        print_result(note)
    print_result(f"Report: {path}")


def _watch(run: Named, port: int) -> None:
    """Serve the page of a run until a signal ends it."""
    import threading

    from lingraft.cli.log_lines import log_lines
    from lingraft.report.watch import serving

    stopping.keeps("the page is not served any more; the run does not need it")
    with serving(run, port) as address:
        print_result(address)
        print_message("Open it in a browser of this machine. Ctrl-C ends it; the run goes on.")
        log_lines().at(f"serving {address}")
        threading.Event().wait()
