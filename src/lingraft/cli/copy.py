"""`lingraft copy`: take a ready-made study file, or a file for a cluster, to change it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lingraft.cli.output import print_result
from lingraft.errors import ConfigError


def copy(
    name: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE",
            help="Name of a recipe or of a file for clusters: `lingraft ls recipes`, `lingraft ls clusters`.",
        ),
    ],
    destination: Annotated[
        Path | None, typer.Argument(help="File to write; default: its own name, here.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Copy a recipe, or what hands a study to a cluster."""
    from lingraft.config.recipes import recipe
    from lingraft.records import write_text_atomically

    source = recipe(name)
    target = destination or Path(source.name)
    target = target / source.name if target.is_dir() else target
    if target.exists() and not force:
        raise ConfigError(f"{target}: exists; give another name, or --force to replace it.")
    if not target.parent.is_dir():
        raise ConfigError(f"{target}: there is no folder {target.parent}; create it first.")
    write_text_atomically(target, source.read_text(encoding="utf-8"))
    print_result(str(target))
