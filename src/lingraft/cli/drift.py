"""`lingraft drift`: where on the way through the layers a model's states moved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lingraft.cli.output import (
    check_folder,
    print_json,
    print_result,
    print_table,
    quieten_loading,
    write_record,
)
from lingraft.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from lingraft.representation.drift import Drift
    from lingraft.representation.prompts import Prompt
    from lingraft.representation.states import EncodedPrompts, LayerStates, Positions


def drift(
    models: Annotated[
        list[str],
        typer.Argument(metavar="M1 M2 [M3]...", help="Folders, hub ids or embedded:NAME; all against M1."),
    ],
    prompts: Annotated[
        list[str],
        typer.Option(
            metavar="[TAG=]SOURCE", help="Prompts, once or per language: .txt, MT-Bench, or any data set."
        ),
    ],
    positions: Annotated[
        str,
        typer.Option("--tokens", help="prompt: every token of the prompts; last: the one before the answer."),
    ] = "prompt",
    limit: Annotated[int | None, typer.Option(min=1, help="Prompts of each source.")] = None,
    max_length: Annotated[
        int, typer.Option(min=2, help="Tokens of a prompt; longer ones lose their beginning.")
    ] = 1024,
    bf16: Annotated[
        bool, typer.Option("--bf16", help="Hold the models in bfloat16 instead of float32.")
    ] = False,
    figure: Annotated[Path | None, typer.Option(help="Write the curves as .svg, .png or .html.")] = None,
    record: Annotated[Path | None, typer.Option(help="Write the result and what it is of as JSON.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print, layer by layer, how far models' hidden states moved from those of M1 for the same prompts."""
    from lingraft.cli.progress import StepBars
    from lingraft.report.diagnostics import check_figure, drift_figure, write_figure
    from lingraft.representation.drift import drift_between
    from lingraft.representation.prompts import read_prompts
    from lingraft.representation.states import POSITIONS

    quieten_loading()
    chosen = next((known for known in POSITIONS if known == positions), None)
    if chosen is None:
        raise ConfigError(f"--tokens {positions!r}: there are {' and '.join(POSITIONS)}.")
    if len(models) < 2:
        raise ConfigError(f"{models[0]}: is alone; name two or more models to compare.")
    check_figure(figure)
    check_folder(record)
    said: list[Prompt] = []
    for one in prompts:
        tag, source = _source(one)
        said += read_prompts(source, language=tag, limit=limit)
    with StepBars() as bars:
        encoded, states = _states(models, said, chosen, max_length, bf16=bf16, on_progress=bars.progressed)
    found = [drift_between(name, states[0], own) for name, own in zip(models[1:], states[1:], strict=True)]
    result = _result(found, encoded, positions)
    if figure is not None:
        write_figure(drift_figure(found), figure)
    if record is not None:
        write_record(record, "drift", {"models": models, "prompts": prompts}, result)
    if json:
        print_json(result)
        return
    _print(found, encoded, positions)


def _source(given: str) -> tuple[str | None, str]:
    """Split TAG=SOURCE; a source may hold an equal sign of its own."""
    import re

    tag, separator, source = given.partition("=")
    is_tag = bool(separator) and re.fullmatch(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*", tag) is not None
    return (tag, source) if is_tag else (None, given)


def _states(
    models: list[str],
    prompts: list[Prompt],
    positions: Positions,
    max_length: int,
    *,
    bf16: bool,
    on_progress: Callable[[str, int, int], None],
) -> tuple[EncodedPrompts, list[list[LayerStates]]]:
    """Run the models one after the other; one is in memory at a time."""
    from functools import partial

    import torch

    from lingraft.representation.states import ModelStates, encode_alike, model_states

    encoded = encode_alike(models, prompts, max_length=max_length)
    states: list[ModelStates] = []
    for name in models:
        one = model_states(
            name,
            encoded,
            like=states[0].architecture if states else None,
            positions=positions,
            dtype=torch.bfloat16 if bf16 else torch.float32,
            on_progress=partial(on_progress, name),
        )
        states.append(one)
    return encoded, [one.layers for one in states]


def _result(found: list[Drift], encoded: EncodedPrompts, positions: str) -> dict[str, Any]:
    return {
        "layers": found[0].to_json()["layers"],  # of the second model; all are in `models`
        "models": [one.to_json() for one in found],
        "prompts": len(encoded.ids),
        "tokens": sum(map(len, encoded.ids)) if positions == "prompt" else len(encoded.ids),
        "positions": positions,
        "truncated": encoded.truncated,
    }


def _print(found: list[Drift], encoded: EncodedPrompts, positions: str) -> None:
    from lingraft.report.diagnostics import drift_table, language_drift_table

    for one in found:
        print_table(drift_table(one), one.model)
        if one.by_language:
            print_table(language_drift_table(one), "By language: mean over the layers")
        ratio = "-" if one.upper_to_lower is None else f"{one.upper_to_lower:.2f}"
        listed = ", ".join(map(str, one.most_changed))
        print_result(
            f"Covariance changed most in layers {listed}; upper third over lower third of the layers: {ratio}"
        )
    whole = "every token of the prompts" if positions == "prompt" else "the last token of each prompt"
    print_result(f"{len(encoded.ids)} prompts, {whole}, {encoded.truncated} prompts cut at their beginning.")
