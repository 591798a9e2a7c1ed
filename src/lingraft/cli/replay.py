"""`lingraft replay`: let a model make replay rows, as a data set of its own."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lingraft.cli.output import (
    check_folder,
    checked_precision,
    print_json,
    print_result,
    quieten_loading,
    readable,
    write_record,
)
from lingraft.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lingraft.data.example import Example
    from lingraft.models.compute import Compute
    from lingraft.strategies.replay_rows import ReplayRows

_BACKENDS = ("transformers", "vllm")


def replay(
    model: Annotated[str, typer.Argument(help="Who answers: a folder, hub id or embedded:NAME.")],
    n: Annotated[int, typer.Option("--n", min=1, help="Rows to make.")],
    output: Annotated[Path, typer.Option(help="The data set to write, FILE.jsonl.")],
    prompts: Annotated[
        str,
        typer.Option(
            metavar="SOURCE|self",
            help="What is answered, in this order: .txt, MT-Bench, or any data set; self: the model's own prompts.",
        ),
    ] = "self",
    temperature: Annotated[float, typer.Option(min=0.0, help="Of the answers; 0: greedy.")] = 0.0,
    top_p: Annotated[
        float, typer.Option(help="Draw from the tokens that together have this probability.")
    ] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longer answers are dropped.")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="Of all draws.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Answers generated together.")] = 16,
    backend: Annotated[
        str, typer.Option(help="transformers, or vllm (the extra of this name).")
    ] = "transformers",
    precision: Annotated[
        str, typer.Option(help="auto, bf16 or float32; auto: bf16 where it is clearly faster here.")
    ] = "auto",
    show: Annotated[int, typer.Option(min=0, help="Rows to print.")] = 3,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write prompts with a model's answers as rows to train on, and beside them a record of how they were made.

    Stopped and run again, it goes on where it was; with a larger --n it adds to the rows that are there.
    """
    from lingraft.models.compute import compute_for

    quieten_loading()
    _check(output, temperature, top_p, backend)
    compute = compute_for(checked_precision(precision))
    pool = None if prompts == "self" else _pool(prompts)
    asked = {
        "model": model,
        "prompts": prompts,
        "n": n,
        "temperature": temperature,
        "top_p": top_p,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
        "batch_size": batch_size,
        "backend": backend,
        "precision": compute.precision,
    }
    _check_existing(output, asked)
    made = _make(asked, compute, pool, output)
    result = _result(made, n, output)
    _write(output, made, asked, result)
    if json:
        print_json(result | {"examples": [_row(example) for example in made.examples[:show]]})
        return
    _print(made, result, show)


def _check(output: Path, temperature: float, top_p: float, backend: str) -> None:
    if not math.isfinite(temperature):
        raise ConfigError(f"--temperature is {temperature}: give a number from 0 on.")
    if not 0 < top_p <= 1:
        raise ConfigError(f"--top-p is {top_p}: give a probability above 0 and up to 1.")
    if backend not in _BACKENDS:
        raise ConfigError(f"--backend {backend!r}: there are {' and '.join(_BACKENDS)}.")
    if backend == "vllm":
        from lingraft.models.vllm import check_vllm

        check_vllm()
    if output.suffix != ".jsonl":
        raise ConfigError(f"--output {output}: the name must end in .jsonl.")
    check_folder(output)


def _check_existing(output: Path, asked: dict[str, Any]) -> None:
    """Refuse to write over what is not the same data set, longer or shorter."""
    from lingraft.records import read_json

    if not output.exists() or (_work(output).exists() and not _record(output).exists()):
        return
    try:
        before = read_json(_record(output))["inputs"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        raise ConfigError(
            f"--output {output}: exists already, and no record says that `lingraft replay` made it; name another file."
        ) from None
    changed = [key for key in asked if key != "n" and before.get(key) != asked[key]]
    if changed:
        told = ", ".join(f"{key} {before.get(key)!r}, not {asked[key]!r}" for key in changed)
        raise ConfigError(f"--output {output}: was made with {told}; name another file, or delete it.")


def _pool(source: str) -> Sequence[Example]:
    """Return the prompts of a source as rows whose answers are to be made; of a large source they stay on disk."""
    from lingraft.data.example import Example, Message
    from lingraft.data.row_sequence import MadeWhenAsked
    from lingraft.representation.prompts import Prompt, read_prompts

    def row(place: int, prompt: Prompt) -> Example:
        number = place + 1
        messages = (*prompt.messages, Message("assistant", ""))
        return Example(str(number), messages, prompt.language, prompt.group or f"prompt-{number}", source)

    return MadeWhenAsked(read_prompts(source), row)


def _make(
    asked: dict[str, Any], compute: Compute, pool: Sequence[Example] | None, output: Path
) -> ReplayRows:
    from functools import partial

    from lingraft.cli.progress import StepBars
    from lingraft.models.generation import Sampling
    from lingraft.models.loading import check_model, model_folder
    from lingraft.strategies.replay_rows import ReplaySettings, make_replay

    folder = model_folder(asked["model"])
    check_model(asked["model"], folder)
    sampling = Sampling(asked["temperature"], asked["top_p"], asked["max_new_tokens"])
    with StepBars() as bars:
        made = make_replay(
            folder,
            asked["n"],
            ReplaySettings(sampling, asked["seed"], compute, asked["backend"], asked["batch_size"]),
            _work(output),
            source=asked["prompts"],
            pool=pool,
            name=asked["model"],
            on_progress=partial(bars.progressed, "rows"),
        )
    if not made.examples:
        raise DataError(
            f"{asked['prompts']}: none of the answers of {asked['model']} is fit to train on ({_listed(made)}); "
            "raise --max-new-tokens, or give other prompts."
        )
    return made


def _write(output: Path, made: ReplayRows, asked: dict[str, Any], result: dict[str, Any]) -> None:
    """Write the rows, then the record."""
    import json as js

    from lingraft.records import write_text_atomically

    lines = (js.dumps(_row(example), ensure_ascii=False) for example in made.examples)
    _record(output).unlink(missing_ok=True)  # of fewer rows
    write_text_atomically(output, "".join(f"{line}\n" for line in lines))
    write_record(_record(output), "replay", asked, result)


def _row(example: Example) -> dict[str, Any]:
    """Return an example as a row in the format `messages`, with where it came from."""
    from lingraft.data.example import UNDETERMINED_LANGUAGE

    language = {} if example.language == UNDETERMINED_LANGUAGE else {"language": example.language}
    return {
        "id": example.id,
        "messages": [
            one.to_template() | ({} if one.supervised else {"weight": 0}) for one in example.messages
        ],
        **language,
        "group": example.group,
        "origin": {
            "kind": example.origin.kind,
            "model": example.origin.model,
            "settings": example.origin.settings,
        },
    }


def _result(made: ReplayRows, wanted: int, output: Path) -> dict[str, Any]:
    rows = len(made.examples)
    return {
        "output": str(output),
        "record": str(_record(output)),
        "asked": wanted,
        "rows": rows,
        "shortfall": wanted - rows,
        "dropped": dict(sorted(made.dropped.items())),
        "origin": {
            "kind": made.origin.kind,
            "model": made.origin.model,
            "settings": made.origin.settings,
        },
    }


def _print(made: ReplayRows, result: dict[str, Any], show: int) -> None:
    for example in made.examples[:show]:
        for message in example.messages:
            print_result(readable(f"[{message.role}] {message.content}"))
        print_result("")
    print_result(f"{result['rows']} rows in {result['output']}, {result['shortfall']} fewer than asked for.")
    print_result(f"Dropped: {_listed(made)}.")
    print_result(f"Answered in {made.origin.settings['precision']}.")


def _listed(made: ReplayRows) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in sorted(made.dropped.items())) or "nothing"


def _record(output: Path) -> Path:
    return output.with_suffix(".record.json")


def _work(output: Path) -> Path:
    """Return the folder of the answers, from which an interrupted run goes on; it may be deleted after the last one."""
    return output.with_name(f"{output.name}.work")
