"""`lingraft report`: the page of a study, or of several that are compared. Models are never needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lingraft import stopping
from lingraft.cli.options import FontsOption, JsonOption
from lingraft.cli.output import check_page, print_json, print_message, print_result, shown, shown_message
from lingraft.errors import ConfigError, FigureError

if TYPE_CHECKING:
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
        bool, typer.Option("--wide", help="All columns in LaTeX and Markdown, not the essential ones alone.")
    ] = False,
    fonts: FontsOption = None,
    json: JsonOption = False,
) -> None:
    """Write one page about one or more runs: tables, figures, what went wrong and how it was made.

    Reads what a study left in its folder, also of one that is at work, was stopped, or lost its models.
    """
    stopping.keeps("the page before this one is as it was")
    # Wrong input is refused before anything heavy is imported.
    from lingraft.config.named import all_named
    from lingraft.records import to_json
    from lingraft.report.formats import check_files_folder, check_fonts, checked_formats

    named = all_named(runs)
    chosen = checked_formats(formats)
    check_fonts(fonts)
    for option, is_given in (("--format", formats), ("--wide", wide), ("--fonts", fonts)):
        if is_given and figures is None:
            raise ConfigError(f"{option}: goes with --figures; add --figures FOLDER, or leave {option} out.")

    from lingraft.report.files import WrittenFiles, write_files
    from lingraft.report.page import PAGE, write_page
    from lingraft.report.runs import read_report
    from lingraft.report.sections import contents_of

    place = output or (Path(named[0].value) / PAGE if len(named) == 1 else SEVERAL)
    has_page = figures is None or output is not None
    if has_page:
        check_page(place, "--output", is_given=output is not None)
    if figures is not None:
        check_files_folder(figures)
    found = read_report(named)
    files = WrittenFiles(())
    if figures is not None:
        files = write_files(contents_of(found), figures, chosen, fonts=fonts, wide=wide)
    path = write_page(found, place, reported=print_message) if has_page else None
    for warning in files.warnings:
        print_message(warning, "yellow")
    if json:
        of_runs = [
            {"name": one.name, "folder": str(one.folder), "remarks": one.remarks} for one in found.runs
        ]
        page = None if path is None else str(path)
        of_files = [{"path": str(one.path), "title": one.title} for one in files.files]
        print_json(
            {"format": 1, "page": page, "files": of_files, "runs": of_runs, "result": to_json(found.result)}
        )
    else:
        _print(found, files, path)
    if files.problems:
        raise FigureError(f"{'; '.join(files.problems)}; all else is done.")


def _print(found: Report, files: WrittenFiles, page: Path | None) -> None:
    from lingraft.report.notes import failures, pending_notes

    for one in found.runs:
        for remark in one.remarks:
            print_result(shown_message(f"{one.name}: {remark}"))
    for failure in failures(found.result):
        print_result(shown_message(f"failed: {failure}"))
    for note in pending_notes(found.result):
        print_result(note)
    width = max((len(str(one.path)) for one in files.files), default=0)
    for written in files.files:
        print_result(shown(f"{written.path!s:<{width}}  {written.title}"))
    if page is None:
        print_result(f"{len(files.files)} files written.")
    else:
        print_result(f"Report: {page}")
