"""`lingraft snr`: which weight matrices hold structure, and which look like noise."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lingraft.cli.options import FontsOption
from lingraft.cli.output import (
    check_folder,
    print_json,
    print_message,
    print_result,
    print_table,
    write_record,
)
from lingraft.errors import ConfigError


def snr(
    model: Annotated[
        str,
        typer.Argument(
            metavar="[NAME=]M", help="Folder, hub id or embedded:NAME; NAME is what the figure says."
        ),
    ],
    estimator: Annotated[
        str, typer.Option(help="median (sound), or reference (as the public Spectrum scanner).")
    ] = "median",
    share: Annotated[float, typer.Option(help="Share of each module type to select.")] = 0.5,
    plan: Annotated[
        Path | None, typer.Option(help="Write the parameters to train as YAML, as axolotl takes them.")
    ] = None,
    outside: Annotated[
        bool, typer.Option("--outside/--no-outside", help="Train embeddings and head in the plan.")
    ] = True,
    figure: Annotated[
        Path | None, typer.Option(help="Write a map of the layers as .svg, .png, .pdf or .html.")
    ] = None,
    fonts: FontsOption = None,
    record: Annotated[Path | None, typer.Option(help="Write the result and its inputs as JSON.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Rank a model's weight matrices by signal-to-noise ratio within each module type (Spectrum)."""
    from lingraft.report.formats import check_figure

    check_figure(figure, fonts)
    for path in (record, plan):
        check_folder(path)

    import yaml

    from lingraft.cli.progress import StepBars
    from lingraft.models.adapters import open_weights
    from lingraft.records import write_text_atomically
    from lingraft.report.diagnostics import signal_figure, signal_table
    from lingraft.report.files import write_figure
    from lingraft.study.cell_names import named_models
    from lingraft.weights.signal_to_noise import ESTIMATORS, signal_to_noise

    chosen = next((known for known in ESTIMATORS if known == estimator), None)
    if chosen is None:
        raise ConfigError(f"--estimator {estimator!r}: choose {' or '.join(ESTIMATORS)}.")
    if not 0 <= share <= 1:
        raise ConfigError(f"--share is {share}: it must lie between 0 and 1.")
    (named,) = named_models([model])
    with StepBars() as bars:
        scan = signal_to_noise(
            open_weights(named.value),
            estimator=chosen,
            share=share,
            on_progress=lambda done, total: bars.progressed("scan", done, total),
        )
    if record is not None:
        write_record(
            record, "snr", {"model": named.value, "estimator": estimator, "share": share}, scan.to_json()
        )
    if plan is not None:
        patterns = scan.unfrozen_parameters(with_outside=outside)
        content = {
            "model": named.value,
            "estimator": estimator,
            "share": share,
            "unfrozen_parameters": patterns,
        }
        write_text_atomically(plan, yaml.safe_dump(content, sort_keys=False))
    if json:
        print_json(scan.to_json())
    else:
        print_table(signal_table(scan))
        if scan.skipped:
            print_result(
                f"{len(scan.skipped)} tensors of the layers are no matrices and have no ratio, such as "
                f"{scan.skipped[0]}"
            )
    if figure is not None:
        for warning in write_figure(signal_figure(scan).properties(title=named.name), figure, fonts):
            print_message(warning, "yellow")
