"""`lingraft drift`: where on the way through the layers a model's states moved."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lingraft.cli.options import FontsOption
from lingraft.cli.output import (
    check_folder,
    checked_precision,
    print_json,
    print_message,
    print_result,
    print_table,
    quieten_loading,
    write_record,
)
from lingraft.errors import ConfigError

if TYPE_CHECKING:
    from lingraft.representation.prompts import Prompt

_TAG = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*")


def drift(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]M1 [NAME=]M2 ...",
            help="Folders, hub ids or embedded:NAME; all against M1. NAME is what tables and figures call it.",
        ),
    ],
    prompts: Annotated[
        list[str],
        typer.Option(
            metavar="[TAG=]SOURCE", help="Prompts, once or per language: .txt, MT-Bench, or any data set."
        ),
    ],
    positions: Annotated[
        str,
        typer.Option("--tokens", help="prompt: every token of a prompt; last: the last one."),
    ] = "prompt",
    limit: Annotated[int | None, typer.Option(min=1, help="Most prompts of each source.")] = None,
    max_length: Annotated[
        int, typer.Option(min=2, help="Most tokens of a prompt; longer ones lose their beginning.")
    ] = 1024,
    precision: Annotated[
        str,
        typer.Option(help="auto, bf16 or float32; bf16 rounds small shifts away."),
    ] = "float32",
    figure: Annotated[
        Path | None, typer.Option(help="Write the curves as .svg, .png, .pdf or .html.")
    ] = None,
    fonts: FontsOption = None,
    record: Annotated[Path | None, typer.Option(help="Write the result and its inputs as JSON.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print, layer by layer, how far models' hidden states moved from those of M1 for the same prompts."""
    from dataclasses import replace

    from lingraft.report.formats import check_figure

    check_figure(figure, fonts)
    check_folder(record)

    from lingraft.cli.progress import StepBars
    from lingraft.models.compute import compute_for
    from lingraft.report.diagnostics import (
        drift_figure,
        drift_table,
        language_drift_table,
    )
    from lingraft.report.files import write_figure
    from lingraft.representation.drift import drift_of_models
    from lingraft.representation.prompts import read_prompts
    from lingraft.representation.states import POSITIONS
    from lingraft.study.cell_names import named_models

    quieten_loading()
    chosen = next((known for known in POSITIONS if known == positions), None)
    if chosen is None:
        raise ConfigError(f"--tokens {positions!r}: choose {' or '.join(POSITIONS)}.")
    asked = checked_precision(precision)
    if len(models) < 2:
        raise ConfigError(f"{models[0]}: is the only model; name two or more to compare.")
    named = named_models(models)
    said: list[Prompt] = []
    for one in prompts:
        tag, separator, source = one.partition("=")
        if separator and _TAG.fullmatch(tag):
            said += read_prompts(source, language=tag, limit=limit)
        else:  # a source may hold an equal sign of its own
            said += read_prompts(one, limit=limit)
    compute = compute_for(asked)
    with StepBars() as bars:
        found = drift_of_models(
            [one.value for one in named],
            said,
            positions=chosen,
            max_length=max_length,
            compute=compute,
            on_progress=bars.progressed,
        )
    drifts = tuple(replace(one, model=own.name) for one, own in zip(found.drifts, named[1:], strict=True))
    found = replace(found, drifts=drifts)
    result = found.to_json() | {"first": {"model": named[0].name, "path": named[0].value}}
    for one, own in zip(result["models"], named[1:], strict=True):
        one["path"] = own.value
    if record is not None:
        inputs = {
            "models": [one.value for one in named],
            "prompts": prompts,
            "limit": limit,
            "max_length": max_length,
            "precision": compute.precision,
        }
        write_record(record, "drift", inputs, result)
    if json:
        print_json(result | {"precision": compute.precision})
    else:
        for drifted in found.drifts:
            print_table(drift_table(drifted), drifted.model)
            if drifted.by_language:
                print_table(language_drift_table(drifted), "By language: mean over the layers")
            if drifted.most_changed:
                ratio = "-" if drifted.upper_to_lower is None else f"{drifted.upper_to_lower:.2f}"
                layers = ", ".join(map(str, drifted.most_changed))
                print_result(
                    f"Covariance changed most in layers {layers}; upper third over lower third of the layers: {ratio}"
                )
            else:
                print_result("The covariance changed in no layer.")
        whole = "every token" if found.positions == "prompt" else "the last token"
        print_result(
            f"{found.prompts} prompts, {whole} of each, {found.tokens} in all ({found.drifts[0].cka_tokens} for CKA); "
            f"{found.truncated} prompts cut at their beginning."
        )
        print_result(f"Computed in {compute.precision}.")
    if figure is not None:
        for warning in write_figure(drift_figure(found.drifts), figure, fonts):
            print_message(warning, "yellow")
