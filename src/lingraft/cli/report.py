"""`lingraft report`: the page of a study, or of several that are compared. Models are never needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lingraft import stopping
from lingraft.cli.options import FontsOption, JsonOption
from lingraft.cli.output import check_page, print_json, print_message, print_result, shown, shown_message
from lingraft.cli.study_table import print_study
from lingraft.errors import ConfigError, FigureError

if TYPE_CHECKING:
    from lingraft.config.named import Named
    from lingraft.report.files import WrittenFiles
    from lingraft.report.runs import Report


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
    figures: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Write every figure and table as a file of its own, in place of the page."
        ),
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            metavar="FORMAT,...",
            help="Figures as pdf, svg, png; tables as csv, latex, markdown; default: pdf,latex,csv. Repeatable.",
        ),
    ] = None,
    wide: Annotated[
        bool,
        typer.Option(
            "--wide", help="All columns, printed and in LaTeX and Markdown, not the essential ones."
        ),
    ] = False,
    fonts: FontsOption = None,
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
    # What is asked: wrong input is refused before anything heavy is imported.
    from lingraft.config.named import named
    from lingraft.config.paths import user_path
    from lingraft.report.formats import PAGE, check_files_folder, check_fonts, checked_formats

    for option, is_given in (("--format", formats), ("--fonts", fonts)):
        if is_given and figures is None:
            raise ConfigError(f"{option}: goes with --figures; add --figures FOLDER, or leave {option} out.")
    if wide and (watch or (json and figures is None)):
        option = "--watch" if watch else "--json"
        raise ConfigError(f"--wide: goes without {option}, which prints no table; leave one of the two out.")
    if port is not None and not watch:
        raise ConfigError(
            "--port: goes with --watch, which serves the page; add --watch, or leave --port out."
        )
    if watch and len(runs) > 1:
        raise ConfigError(f"--watch: follows one run, and {len(runs)} are named; name one.")
    if watch and (output is not None or figures is not None or json):
        option = "--json" if json else "--output" if output is not None else "--figures"
        raise ConfigError(f"{option}: goes without --watch, which writes nothing; leave one of the two out.")
    if watch:
        _watch(named(runs[0]), port or 0)
        return
    chosen = checked_formats(formats)
    check_fonts(fonts)
    if output is not None:  # before what takes seconds to import
        check_page(output, "--output", is_given=True)
    if figures is not None:
        check_files_folder(figures)
    folder = user_path(named(runs[0]).value) if len(runs) == 1 else None
    place = output
    if place is None and figures is None:
        place = SEVERAL if folder is None else folder / PAGE

    from lingraft.report.folders import adaptation_page, read_reported

    written = None if folder is None else adaptation_page(folder)
    if written is not None:
        _name_or_copy(written, output, figures, json=json)
        return
    if place is not None and output is None:
        check_page(place, "--output", is_given=False)

    # What is read.
    found = read_reported(runs)

    # What is written.
    from lingraft.records import write_text_atomically
    from lingraft.report.files import WrittenFiles, write_files
    from lingraft.report.page import render

    files = WrittenFiles(())
    if figures is not None:
        files = write_files(found.page.sections, figures, chosen, fonts=fonts, wide=wide)
    if place is not None:
        place.parent.mkdir(exist_ok=True)
        write_text_atomically(place, render(found.page, print_message))

    # What is printed.
    for warning in files.warnings:
        print_message(warning, "yellow")
    if json:
        _print_json(place, files, found.report, found.result)
    else:
        _print(place, files, found.report, wide=wide)
    if files.problems:
        raise FigureError(f"{'; '.join(files.problems)}; all else is done.")


def _name_or_copy(written: Path, output: Path | None, figures: Path | None, *, json: bool) -> None:
    """Say where the page is that `adapt` or `rescue` wrote: it has all that is left; with an output, copy it there."""
    from lingraft.records import write_text_atomically
    from lingraft.report.files import WrittenFiles

    if figures is not None:
        raise ConfigError(
            f"--figures: of {written.parent} nothing is left but its page, {written}; leave it out."
        )
    if output is not None:
        write_text_atomically(output, written.read_text(encoding="utf-8"))
    if json:
        _print_json(output or written, WrittenFiles(()), None, None)
    else:
        _print(output or written, WrittenFiles(()), None, wide=False)


def _print_json(page: Path | None, files: WrittenFiles, report: Report | None, result: Any) -> None:
    """Print what was written and what was found; None of a report: it is of no study."""
    runs = () if report is None else report.runs
    print_json(
        {
            "format": 1,
            "page": None if page is None else str(page),
            "files": [{"path": str(one.path), "title": one.title} for one in files.files],
            "runs": [{"name": one.name, "folder": str(one.folder), "remarks": one.remarks} for one in runs],
            "remarks": () if report is None else report.remarks,
            "result": result,
        }
    )


def _print(page: Path | None, files: WrittenFiles, report: Report | None, *, wide: bool) -> None:
    """Print what must be known of the runs, and what was written; None: it is of no study."""
    from lingraft.report.notes import failures, sign_notes

    if report is not None:
        print_study(report, wide=wide)
        for note in sign_notes(report.result):
            print_result(note)
        for remark in report.remarks:
            print_result(shown_message(remark))
        for one in report.runs:
            for remark in one.remarks:
                print_result(shown_message(f"{one.name}: {remark}"))
        for failure in failures(report.result):
            print_result(shown_message(f"failed: {failure}"))
    width = max((len(str(one.path)) for one in files.files), default=0)
    for written in files.files:
        print_result(shown(f"{written.path!s:<{width}}  {written.title}"))
    if page is None:
        replaced = f", {files.replaced} of them in place of earlier ones" if files.replaced else ""
        count = "1 file" if len(files.files) == 1 else f"{len(files.files)} files"
        print_result(f"{count} written{replaced}.")
    else:
        print_result(f"Report: {page}")


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
