"""`lingraft report`: the page of a study, or of several that are compared. Models are never needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lingraft import stopping
from lingraft.cli.options import FontsOption, JsonOption
from lingraft.cli.output import check_page, print_json, print_message, print_result, shown, shown_message
from lingraft.cli.study_table import print_study
from lingraft.errors import ConfigError, FigureError

if TYPE_CHECKING:
    from lingraft.config.named import Named
    from lingraft.report.files import WrittenFiles
    from lingraft.report.folders import OtherFolder
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
    # Wrong input is refused before anything heavy is imported.
    from lingraft.config.named import named
    from lingraft.config.paths import user_path
    from lingraft.records import to_json, write_text_atomically
    from lingraft.report.formats import check_files_folder, check_fonts, checked_formats

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
    if watch:
        if len(runs) > 1:
            raise ConfigError(f"--watch: follows one run, and {len(runs)} are named; name one.")
        if output is not None or figures is not None or json:
            option = "--json" if json else "--output" if output is not None else "--figures"
            raise ConfigError(
                f"{option}: goes without --watch, which writes nothing; leave one of the two out."
            )
        _watch(named(runs[0]), port or 0)
        return
    chosen = checked_formats(formats)
    check_fonts(fonts)
    if output is not None:  # before what takes seconds to import
        check_page(output, "--output", is_given=True)
    if figures is not None:
        check_files_folder(figures)

    from lingraft.report.files import WrittenFiles, write_files
    from lingraft.report.folders import other_folder
    from lingraft.report.page import PAGE, render, write_page
    from lingraft.report.runs import read_report
    from lingraft.report.sections import contents_of

    place = output or (user_path(named(runs[0]).value) / PAGE if len(runs) == 1 else SEVERAL)
    has_page = figures is None or output is not None
    if has_page and output is None:
        check_page(place, "--output", is_given=False)
    other = other_folder(user_path(named(runs[0]).value)) if len(runs) == 1 else None
    if other is not None and other.page is None:
        _show_written(other, output, figures, json=json)
        return
    page = None if other is None else other.page
    found = read_report(runs) if page is None else None
    files, path = WrittenFiles(()), place if has_page else None
    if figures is not None:
        sections = page.sections if page is not None else () if found is None else contents_of(found)
        files = write_files(sections, figures, chosen, fonts=fonts, wide=wide)
    if path is not None and found is not None:
        write_page(found, path, reported=print_message)
    elif path is not None and page is not None:
        path.parent.mkdir(exist_ok=True)
        write_text_atomically(path, render(page, print_message))
    for warning in files.warnings:
        print_message(warning, "yellow")
    if json:
        shown_runs = () if found is None else found.runs
        print_json(
            {
                "format": 1,
                "page": None if path is None else str(path),
                "files": [{"path": str(one.path), "title": one.title} for one in files.files],
                "runs": [
                    {"name": one.name, "folder": str(one.folder), "remarks": one.remarks}
                    for one in shown_runs
                ],
                "remarks": () if found is None else found.remarks,
                "result": to_json(found.result) if found is not None else other and other.result,
            }
        )
    else:
        _print(found, files, path, wide=wide)
    if files.problems:
        raise FigureError(f"{'; '.join(files.problems)}; all else is done.")


def _show_written(other: OtherFolder, output: Path | None, figures: Path | None, *, json: bool) -> None:
    """Say where the page is that the command wrote which made the folder: it has all that is left of it."""
    from lingraft.records import write_text_atomically

    written = other.written
    if written is None:
        return
    if figures is not None:
        raise ConfigError(
            f"--figures: of {written.parent} nothing is left but its page, {written}; leave it out."
        )
    if output is not None:
        write_text_atomically(output, written.read_text(encoding="utf-8"))
    path = str(output or written)
    if json:
        print_json({"format": 1, "page": path, "files": [], "runs": [], "remarks": [], "result": None})
    else:
        print_result(f"Report: {path}")


def _print(found: Report | None, files: WrittenFiles, page: Path | None, *, wide: bool) -> None:
    """Print what must be known of the runs, and what was written; None: it is of no study."""
    from lingraft.report.notes import failures, sign_notes

    if found is not None:
        print_study(found, wide=wide)
        for note in sign_notes(found.result):
            print_result(note)
        for remark in found.remarks:
            print_result(shown_message(remark))
        for one in found.runs:
            for remark in one.remarks:
                print_result(shown_message(f"{one.name}: {remark}"))
        for failure in failures(found.result):
            print_result(shown_message(f"failed: {failure}"))
    width = max((len(str(one.path)) for one in files.files), default=0)
    for written in files.files:
        print_result(shown(f"{written.path!s:<{width}}  {written.title}"))
    if page is None:
        print_result(f"{len(files.files)} files written.")
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
