"""`lingraft validate`: check a study file without downloading or training anything."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lingraft.cli.output import print_json, print_result


def validate(
    study: Annotated[Path, typer.Argument(help="The study file (YAML).")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check a study file: fields, rules, and the names of strategies, their options, measures, tasks and trackers.

    Exit code 0 it is right, 2 it is wrong.
    """
    from lingraft.study.checks import load_study
    from lingraft.study.grid import cells_of

    loaded = load_study(study, overrides or (), Path())
    cells = cells_of(loaded)
    if json:
        print_json({"study": loaded.name, "phases": len(loaded.phases), "cells": len(cells), "valid": True})
        return
    print_result(
        f"{study}: valid. {len(loaded.phases)} phases, {len(cells)} cells, seeds {list(loaded.seeds)}."
    )
