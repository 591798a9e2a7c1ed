"""`lingraft replay`: let a model make replay rows, as a data set of its own."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lingraft import stopping
from lingraft.cli.options import AnsweringOption, BackendOption, JsonOption, PrecisionOption
from lingraft.cli.output import (
    check_folder,
    check_same_options,
    checked_backend,
    checked_precision,
    print_json,
    print_result,
    quieten_loading,
    readable,
    recorded_inputs,
    write_record,
)
from lingraft.errors import ConfigError

if TYPE_CHECKING:
    from lingraft.stage import Json


def replay(
    model: Annotated[str, typer.Argument(help="The model that answers: folder, hub id or embedded:NAME.")],
    n: Annotated[int, typer.Option("--n", min=1, help="Rows to make.")],
    output: Annotated[Path, typer.Option(help="The data set to write, FILE.jsonl.")],
    prompts: Annotated[
        str,
        typer.Option(
            metavar="SOURCE|self",
            help="Prompts: .txt, MT-Bench or any data set; self: the model writes its own.",
        ),
    ] = "self",
    temperature: Annotated[float, typer.Option(min=0.0, help="Sampling temperature; 0: greedy.")] = 0.0,
    top_p: Annotated[
        float, typer.Option(help="Sample from the most probable tokens that together have this probability.")
    ] = 1.0,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Most tokens of an answer; longer ones are dropped.")
    ] = 256,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all sampling.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Answers generated together.")] = 16,
    backend: BackendOption = None,
    precision: PrecisionOption = "auto",
    processes: AnsweringOption = None,
    show: Annotated[int, typer.Option(min=0, help="Rows to print.")] = 3,
    json: JsonOption = False,
) -> None:
    """Write prompts with a model's answers as rows to train on, and beside them a record of how they were made.

    Run again after an interruption, it continues; with a larger --n it adds to the rows that are there.
    """
    stopping.keeps(f"the answers so far are kept; {stopping.GOES_ON}")
    import json as js

    from lingraft.cli.progress import StepBars
    from lingraft.models.compute import compute_for
    from lingraft.models.generation import Sampling
    from lingraft.models.workers import worker_count
    from lingraft.records import from_json, write_text_atomically
    from lingraft.stage import given_model
    from lingraft.strategies.replay_rows import SELF, ReplaySettings
    from lingraft.study.execute import Executor
    from lingraft.study.stages.replay import ROWS, Replay, ReplayResult, rows_to_answer
    from lingraft.study.store import Store

    quieten_loading()
    if not math.isfinite(temperature):
        raise ConfigError(f"--temperature is {temperature}: give a number from 0 on.")
    if not 0 < top_p <= 1:
        raise ConfigError(f"--top-p is {top_p}: give a probability above 0 and up to 1.")
    engine = checked_backend(backend)
    if output.suffix != ".jsonl":
        raise ConfigError(f"--output {output}: the name must end in .jsonl.")
    check_folder(output)
    compute = compute_for(checked_precision(precision))
    settings = ReplaySettings(
        Sampling(temperature, top_p, max_new_tokens),
        seed,
        compute,
        engine,
        batch_size,
        workers=worker_count(processes),
    )
    pool = None if prompts == SELF else rows_to_answer(prompts)
    options: dict[str, Json] = {
        "model": model,
        "prompts": prompts,
        "temperature": temperature,
        "top_p": top_p,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
        "batch_size": batch_size,
        "backend": settings.engine,
        "precision": compute.precision,
    }
    record, work = output.with_suffix(".record.json"), output.with_name(f"{output.name}.work")
    before = recorded_inputs(record)
    if before is not None:
        check_same_options(f"--output {output}", before, options)
    elif output.exists() and not (
        work.is_dir() and not record.exists()
    ):  # else killed between rows and record
        raise ConfigError(
            f"--output {output}: exists already, and no record says that `lingraft replay` made it; name another file."
        )

    stage = Replay(model, given_model(model), n, settings, prompts, pool)
    with Store(work) as store, StepBars() as bars:
        made = Executor(store, bars).make(stage)
    rows = made.artefact(ROWS).read_text(encoding="utf-8")
    record.unlink(missing_ok=True)  # of fewer rows
    write_text_atomically(output, rows)
    found = from_json(ReplayResult, made.result)
    result = {"output": output.name, "record": record.name, **made.result}
    write_record(record, "replay", {**options, "n": n}, result)
    shown = [js.loads(line) for line in rows.split("\n")[:show] if line]
    if json:
        print_json({"folder": str(output.parent)} | result | {"examples": shown})
        return
    for row in shown:
        for message in row["messages"]:
            print_result(readable(f"[{message['role']}] {message['content']}"))
        print_result("")
    print_result(f"{found.rows} rows in {output}, {found.shortfall} fewer than asked for.")
    print_result(f"Dropped: {found.reasons}.")
    print_result(f"Answered in {compute.inference_precision}.")
