"""`lingraft rescue`: from a damaged model to the best one on the way back to what it was made of."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lingraft import stopping
from lingraft.cli.options import (
    AnsweringOption,
    DataDirOption,
    GgufOption,
    JsonOption,
    MaxNewTokensOption,
    OverwriteOption,
    PrecisionOption,
    PrivateOption,
    PushOption,
    SuiteOption,
    TaskOption,
    TrustOption,
)
from lingraft.cli.output import (
    checked_precision,
    checked_weight_type,
    print_json,
    print_message,
    print_result,
    print_table,
    quieten_loading,
    tags_of,
)
from lingraft.errors import ConfigError, ModelError
from lingraft.models.model_names import model_problem

if TYPE_CHECKING:
    from lingraft.adapt.rescue import RepairOptions


def rescue(
    before: Annotated[
        str,
        typer.Option(
            metavar="[NAME=]M1",
            help="The model before the damage: folder, hub id, embedded:NAME or LoRA adapter.",
        ),
    ],
    after: Annotated[
        str, typer.Option(metavar="M2", help="The damaged model, which was trained from it; likewise.")
    ],
    max_loss: Annotated[
        float, typer.Option(help="What may be lost, as a share of M1's English score.")
    ] = 0.01,
    languages: Annotated[
        list[str] | None,
        typer.Option(
            "--languages",
            "--language",
            metavar="TAG,...",
            help="What M2 has learnt; the model that keeps the most of it is taken. Repeatable.",
        ),
    ] = None,
    suite: SuiteOption = "quick",
    task: TaskOption = None,
    data_dir: DataDirOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most items of each task in each half.")] = None,
    max_new_tokens: MaxNewTokensOption = None,
    steps: Annotated[int, typer.Option(min=1, max=100, help="Points between the two models.")] = 5,
    groups: Annotated[
        int, typer.Option(min=0, max=16, help="Groups of layers that are each tried with M1's weights.")
    ] = 3,
    by_layer: Annotated[
        bool, typer.Option("--by-layer", help="Say of every layer what it carries, not of every group.")
    ] = False,
    train: Annotated[
        bool,
        typer.Option(
            "--train",
            help="Repair M2 first: M1 corrects its own answers to prompts (on-policy distillation).",
        ),
    ] = False,
    prompts: Annotated[
        str | None,
        typer.Option(metavar="SOURCE|self", help="Prompts of the repair; default: self, M1 writes them."),
    ] = None,
    n: Annotated[
        int | None, typer.Option("--n", min=16, help="Most prompts of the repair; default: 256.")
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, max=100, help="Times that every prompt is answered; default: 4.")
    ] = None,
    answer_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most tokens of an answer in the repair; default: 128.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of the repair; default: 2e-5.")] = None,
    tokens_per_batch: Annotated[
        int | None, typer.Option(help="Padded tokens of a step of the repair; default: 4096.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Type of the written weights: bf16, float16 or float32; default: M2's.")
    ] = None,
    precision: PrecisionOption = "auto",
    processes: AnsweringOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the halves of the items, and of the repair.")] = 0,
    output: Annotated[Path | None, typer.Option(help="Folder of the model; default: rescued/M2.")] = None,
    overwrite: OverwriteOption = False,
    push: PushOption = None,
    private: PrivateOption = False,
    gguf: GgufOption = None,
    runs: Annotated[
        Path, typer.Option(help="Folder of all runs; this one's is RUNS/rescue/<name of OUTPUT>.")
    ] = Path("runs"),
    trust_remote_code: TrustOption = False,
    json: JsonOption = False,
) -> None:
    """Say which layers of M2 carry the loss, and write the model between M1 and M2 that lost no more than allowed.

    Run it again to go on after an interruption. Exit code: 0 the limit is held, 1 no model meets it (the nearest is
    written), 3 the items cannot tell, 2 wrong input.
    """
    stopping.keeps(f"what was finished is kept; {stopping.GOES_ON}")
    asked_precision = checked_precision(precision)
    weight_type = checked_weight_type(dtype)
    if not 0 <= max_loss < 1:
        raise ConfigError(f"--max-loss {max_loss}: must be a share from 0 to below 1, such as 0.01 for 1 %.")
    from lingraft.study.cell_names import named_models

    titles = named_models([before, after])
    before, after = (one.value for one in titles)
    if before == after:
        raise ConfigError(f"--after {after}: is the same model as --before; there is nothing to rescue.")
    for name in (before, after):
        if (problem := model_problem(name)) is not None:
            raise ModelError(problem)
    options = {
        "prompts": prompts,
        "n": n,
        "rounds": rounds,
        "answer-tokens": answer_tokens,
        "learning-rate": learning_rate,
        "tokens-per-batch": tokens_per_batch,
    }
    given = [f"--{name}" for name, value in options.items() if value is not None]
    if given and not train:
        raise ConfigError(f"{', '.join(given)}: belong to a repair; add --train.")
    last = (
        titles[1].name
        if titles[1].is_given
        else after.rstrip("/").removeprefix("embedded:").rpartition("/")[2]
    )
    output = output or Path("rescued") / (re.sub(r"[^\w.+-]+", "-", last)[:80] or "model")

    from lingraft.adapt import PAGE
    from lingraft.adapt.delivery import Delivery
    from lingraft.adapt.promise import EXIT_CODES
    from lingraft.adapt.rescue import rescue as run_rescue
    from lingraft.cli.progress import ProgressWatcher
    from lingraft.report.adaptation import adaptation_table, render_adaptation
    from lingraft.report.rescue import damage_table, repair_sentence

    quieten_loading()
    delivery = Delivery(output, overwrite=overwrite, repository=push, private=private, gguf=gguf)
    delivery.check()
    with ProgressWatcher(f"rescue {titles[1].name}") as watcher:
        found = run_rescue(
            before,
            after,
            max_loss,
            output=output,
            languages=tags_of(languages),
            suite=suite,
            tasks=task or [],
            data_dir=data_dir,
            limit=limit,
            max_new_tokens=max_new_tokens,
            steps=steps,
            groups=groups,
            by_layer=by_layer,
            repair=_repair(prompts, n, rounds, answer_tokens, learning_rate, tokens_per_batch)
            if train
            else None,
            dtype=weight_type,
            precision=asked_precision,
            processes=processes,
            seed=seed,
            overwrite=overwrite,
            repository=push,
            runs=runs,
            trust_remote_code=trust_remote_code,
            draw=partial(render_adaptation, reported=watcher.noted),
            watcher=watcher,
        )
    if json:
        print_json(found.to_json())
    else:
        first, second = (one.name for one in titles)
        print_table(
            damage_table(found), f"What {second} loses, and with a part of it given back from {first}"
        )
        if found.repair is not None:
            print_result(repair_sentence(found.repair))
        print_table(adaptation_table(found.adapted), f"Between {first} and {second}")
        print_result(found.adapted.sentence)
        print_result(f"Model: {output}")
        print_result(f"Page: {output / PAGE}")
    for line in delivery.send():
        print_message(line)
    raise typer.Exit(EXIT_CODES[found.adapted.answer])


def _repair(
    prompts: str | None,
    n: int | None,
    rounds: int | None,
    answer_tokens: int | None,
    learning_rate: float | None,
    tokens_per_batch: int | None,
) -> RepairOptions:
    """Return the options of a repair, defaults for those that are not given.

    Raises:
        ConfigError: One is out of its range.
    """
    from lingraft.adapt.rescue import RepairOptions
    from lingraft.config.load import section_from_options
    from lingraft.config.schema import Training

    defaults = RepairOptions()
    options = {"epochs": rounds, "learning_rate": learning_rate, "tokens_per_batch": tokens_per_batch}
    training = section_from_options(
        Training,
        {"epochs": "rounds"},
        **{
            name: getattr(defaults.training, name) if value is None else value
            for name, value in options.items()
        },
    )
    return RepairOptions(
        prompts or defaults.prompts,
        n or defaults.n,
        answer_tokens or defaults.max_new_tokens,
        training,
    )
