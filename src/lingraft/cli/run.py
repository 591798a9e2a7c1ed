"""`lingraft run`: run a study, or continue it."""

from __future__ import annotations

import gc
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lingraft import stopping
from lingraft.cli.options import JsonOption, ProcessesOption, ShardedOption
from lingraft.cli.output import (
    print_json,
    print_message,
    print_result,
    print_table,
    quieten_loading,
    shown_message,
)
from lingraft.cli.study_table import print_study
from lingraft.config.engines import RETRIES, check_engines
from lingraft.config.processes import check_processes
from lingraft.errors import EXIT_ANSWER_IS_NO, ConfigError, DiskError

if TYPE_CHECKING:
    from lingraft.config.schema import Study
    from lingraft.report.tables import Matrix
    from lingraft.study.result import StudyResult

_PAGE_SHARE = 0.05  # of the time, at most, pages are drawn while a study runs
_MANY_PHASES = 2  # with more, the forgetting matrix is printed as well; it always stands on the page
_MATRICES: tuple[tuple[Matrix, str], ...] = (
    ("ability", "Forgetting: ability in what each phase taught"),
    (
        "bits_per_character",
        "Forgetting: bits per character of each phase's held-out answers (lower is better)",
    ),
)


class _Page:
    """The page of a study that is under way: written as often as its drawing takes little of the time."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._waiting: StudyResult | None = None  # not on the page yet
        self._next = 0.0

    def show(self, result: StudyResult) -> None:
        """Take over a result, and write the page unless it was written just before, or is about to be."""
        self._waiting = result
        is_whole = all(cell.status != "pending" for cell in result.cells)
        if time.monotonic() >= self._next and not is_whole:
            self.write()

    def write(self) -> None:
        """Write the page, where there is something new for it."""
        from lingraft.report.page import write_page
        from lingraft.report.runs import report_of

        if self._waiting is None:
            return
        result, self._waiting = self._waiting, None
        started = time.monotonic()
        try:
            write_page(report_of(result, self._study))
        except Exception as error:  # the study goes on, and its result is in result.json
            print_message(f"! The page could not be written ({type(error).__name__}: {error}).", "yellow")
        self._next = started + (time.monotonic() - started) / _PAGE_SHARE


def run(
    study: Annotated[Path, typer.Argument(help="The study file (YAML).")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, such as training.epochs=2."),
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder of all runs; this one's is RUNS/<name>.")] = Path("runs"),
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Make so many stages at a time, each in a process of this machine with its share of the GPUs. "
            "Default: one after the other.",
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Make the stages as tasks of Ray (extra `ray`): `local` on this machine, `auto` on the cluster that "
            "it is a node of, or HOST:PORT.",
        ),
    ] = None,
    retries: Annotated[
        int,
        typer.Option(
            min=0,
            help="How often a stage is made again whose process or node died, or that lost a connection.",
        ),
    ] = RETRIES,
    processes: ProcessesOption = None,
    sharded: ShardedOption = False,
    nodes: Annotated[
        int,
        typer.Option(
            min=1,
            help="Machines that the --processes of a training are on, alike many on each: with --ray, or under "
            "torchrun, which says it.",
        ),
    ] = 1,
    wide: Annotated[
        bool,
        typer.Option("--wide", help="Print every column of the table, not only those that fit the terminal."),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Run a study and print its table; run it again to continue after an interruption.

    Exit code: 0 all cells are done, 1 a cell or the base's evaluation failed, 2 the study is wrong, 128 and its number
    where a signal stopped it (130, 143, 129).
    """
    stopping.keeps(f"no stage was begun, those of earlier runs are kept; {stopping.GOES_ON}")
    from lingraft.study.checks import load_study

    if wide and json:
        raise ConfigError("--wide: goes without --json, which has everything; leave one of the two out.")
    # Wrong input is reported before anything heavy is imported.
    check_processes(processes, sharded=sharded, nodes=nodes)
    check_engines(workers, ray, retries, nodes)
    loaded = load_study(study, overrides or (), Path())

    from lingraft.cli.log_lines import log_lines
    from lingraft.cli.progress import ProgressWatcher
    from lingraft.records import to_json
    from lingraft.report.notes import checkpoint_lines, failures, model_notes, notes, summed_up, unused_notes
    from lingraft.report.page import write_page
    from lingraft.report.runs import report_of
    from lingraft.report.tables import forgetting_table
    from lingraft.study.run import run_study
    from lingraft.train.processes import Processes

    gc.freeze()  # libraries, a million objects: each stage collects garbage, and would go through them
    quieten_loading()
    page = _Page(loaded)
    with ProgressWatcher(loaded.name) as watcher:
        try:
            result = run_study(
                loaded,
                runs=runs,
                watcher=watcher,
                processes=Processes.of(processes, sharded=sharded, nodes=nodes),
                workers=workers,
                ray=ray,
                retries=retries,
                on_result=page.show,
                command=["lingraft", *sys.argv[1:]],
            )
        except DiskError:  # nor could the page be written
            raise
        except BaseException:  # stopped, or failed as a whole: what is done stands on the page all the same
            stopping.say_now()
            page.write()
            raise
    report = report_of(result, loaded)
    if json:
        print_json(to_json(result))
    else:
        print_study(report, wide=wide)
        if len(loaded.phases) > _MANY_PHASES:
            for kind, title in _MATRICES:
                matrix = forgetting_table(result, kind, with_intervals=False)
                if matrix is not None:
                    print_table(matrix, title)
        for failure in failures(result):
            print_result(shown_message(f"failed: {failure}"))
        for note in notes(report.result):
            print_result(note)
        unsaid = {
            note: names for note, names in model_notes(report.result).items() if note not in watcher.said
        }
        for line in summed_up(unsaid, report.result):
            print_result(shown_message(line))
        for line in (*unused_notes(result), *checkpoint_lines(result)):
            print_result(line)
    log_lines().at("writing the report")
    path = write_page(report, reported=print_message)  # after the result: what took hours is printed first
    if not json:
        print_result(f"Report: {path}")
    if failures(result):
        raise typer.Exit(EXIT_ANSWER_IS_NO)
