"""`lingraft clean`: remove from a run folder what nothing refers to, after showing it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lingraft import stopping
from lingraft.cli.output import print_json, print_message, print_result
from lingraft.errors import ConfigError

if TYPE_CHECKING:
    from lingraft.study.unused import Leftovers


def clean(
    run: Annotated[Path, typer.Argument(help="The run folder of a study, such as runs/tiny.")],
    yes: Annotated[bool, typer.Option("--yes", help="Remove without asking.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object; asks nothing.")] = False,
) -> None:
    """Show what in a run folder nothing refers to, with sizes, ask, and remove it.

    That is: stages that the study, as it was last run, does not list, with their claims and logs; unfinished attempts;
    what a killed run left. What the study goes on with stays, and so do what another process makes and what lingraft
    did not make. Where there is no terminal to ask in, nothing
    is removed without --yes.
    """
    from lingraft.study.store import Store
    from lingraft.study.unused import leftovers, read_plan, remove, size_text

    read_plan(run)  # before the claim, which would make files in a folder that is no run's
    with Store(run).held():
        found = leftovers(run)
        size = size_text(found.bytes)
        if not json:
            _show(run, found)
            if found.removable and not yes and sys.stdin.isatty():
                print_message(f"Remove it ({size})? [y/N]")
                yes = sys.stdin.readline().strip().lower() in ("y", "yes")
        if yes:
            stopping.keeps("what is removed by now is gone; the same command goes on")
            for one in found.removable:
                remove(run, one)
            _update_result(run)
    if json:
        listed = [{"path": one.path, "what": one.what, "bytes": one.bytes} for one in found.removable]
        print_json(
            {
                "run": str(run),
                "removable": listed,
                "foreign": found.foreign,
                "bytes": found.bytes,
                "removed": yes,
            }
        )
    elif yes and found.removable:
        print_result(f"Removed {size}.")
    elif found.removable:
        print_result(f"Nothing was removed. To remove it: lingraft clean {run} --yes")


def _show(run: Path, found: Leftovers) -> None:
    from lingraft.study.unused import size_text

    if not found.removable:
        print_result(f"{run}: nothing to remove.")
    else:
        print_result(f"{run}: nothing refers to this ({size_text(found.bytes)}):")
        for one in found.removable:
            print_result(f"  {size_text(one.bytes):>8}  {one.path}  ({one.what})")
    if found.foreign:
        print_result("Not made by lingraft, or a link, and left alone:")
        for path in found.foreign:
            print_result(f"            {path}")


def _update_result(run: Path) -> None:
    """Take what was removed out of result and page, where there are any."""
    from dataclasses import replace

    from lingraft.config.load import load_study
    from lingraft.report.page import write_page
    from lingraft.report.runs import report_of
    from lingraft.study.result import STUDY, read_result, write_result
    from lingraft.study.unused import unused_stages

    try:
        before = read_result(run)
        if not before.unused:
            return
        study = load_study(run / STUDY)
    except ConfigError:  # of another version, or stopped before there was one: the next run writes them
        return
    result = replace(before, unused=unused_stages(run))
    write_result(result)
    write_page(report_of(result, study))
