"""`lingraft adapt`: teach a model languages, and keep a stated share of what it could do."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lingraft import stopping
from lingraft.cli.options import (
    DataDirOption,
    FontsOption,
    GgufOption,
    JsonOption,
    OverwriteOption,
    PrivateOption,
    ProcessesOption,
    PushOption,
    ShardedOption,
)
from lingraft.cli.output import (
    checked_weight_type,
    print_json,
    print_message,
    print_result,
    print_table,
    quieten_loading,
    shown_message,
    tags_of,
)
from lingraft.config.processes import check_processes
from lingraft.errors import ConfigError, FigureError, ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lingraft.adapt.adapt import Expected
    from lingraft.config.adaptation import Adaptation

_YAML = (".yaml", ".yml")


def adapt(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|FILE", help="The model: folder, hub id or embedded:NAME; or a YAML file."
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Further fields, such as training.epochs=2."),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Rows to learn from: file, pattern, folder or hub id. Repeatable."),
    ] = None,
    language: Annotated[
        list[str] | None,
        typer.Option(
            "--language",
            "--languages",
            metavar="TAG,...",
            help="Their language, such as th; one for all, or one for each --data. Repeatable.",
        ),
    ] = None,
    max_loss: Annotated[
        float | None,
        typer.Option(help="What may be lost, as a share of the model's own English score; default: 0.01."),
    ] = None,
    english_data: Annotated[
        str | None, typer.Option(help="English rows such as the model was tuned on; some are replayed.")
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(help="Suite of tasks that measures; default: quick, where no --task is named."),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[TAG=]NAME",
            help="A task that measures, English without a TAG; a harness task or YAML file. Repeatable.",
        ),
    ] = None,
    data_dir: DataDirOption = None,
    limit: Annotated[
        int | None, typer.Option(help="Most items of each task in each half; default: all.")
    ] = None,
    strategy: Annotated[
        str | None, typer.Option(help="Strategies of the training, such as lora or english_replay+ssu.")
    ] = None,
    budget: Annotated[str | None, typer.Option(help="Time for everything, such as 2h or 90m.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the new model; default: adapted/MODEL-LANGUAGES.")
    ] = None,
    runs: Annotated[
        Path, typer.Option(help="Folder of all runs; this one's is RUNS/adapt/<name of OUTPUT>.")
    ] = Path("runs"),
    dtype: Annotated[
        str | None, typer.Option(help="Type of the written weights: bf16, float16 or float32; default: bf16.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything that is drawn; default: 0.")] = None,
    processes: ProcessesOption = None,
    sharded: ShardedOption = False,
    trust_remote_code: Annotated[
        bool | None,
        typer.Option(
            "--trust-remote-code", help="Run Python code that the model brings along; read it first."
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    push: PushOption = None,
    private: PrivateOption = False,
    gguf: GgufOption = None,
    figure: Annotated[
        Path | None, typer.Option(help="Write the trade-off as .svg, .png, .pdf or .html.")
    ] = None,
    fonts: FontsOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Look and say what is expected; train nothing.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Teach MODEL the languages of rows, losing no more English than allowed, and write the new model.

    Run it again to go on after an interruption. Exit code: 0 the limit is held, 1 no model meets it (the nearest is
    written), 3 the items cannot tell, 2 wrong input.
    """
    stopping.keeps(f"what was finished is kept; {stopping.GOES_ON}")
    from lingraft.config.adaptation import name_of_adapted
    from lingraft.report.formats import check_figure

    check_figure(figure, fonts)
    if figure is not None and dry_run:
        raise ConfigError("--figure: goes without --dry-run, which trains nothing; leave one of the two out.")
    check_processes(processes, sharded=sharded)
    options = {
        "max_loss": max_loss,
        "english_data": english_data,
        "suite": suite,
        "tasks": task or None,
        "data_dir": data_dir,
        "limit": limit,
        "strategy": strategy,
        "budget": budget,
        "dtype": checked_weight_type(dtype),
        "seed": seed,
        "trust_remote_code": trust_remote_code,
    }
    adaptation = _asked(model, data or [], tags_of(language), overrides or [], options)
    output = output or Path("adapted") / name_of_adapted(adaptation)
    _check(adaptation)

    from lingraft.adapt import PAGE
    from lingraft.adapt.adapt import LONG_TRAINING, run_adaptation
    from lingraft.adapt.delivery import Delivery
    from lingraft.adapt.promise import EXIT_CODES
    from lingraft.cli.progress import ProgressWatcher
    from lingraft.records import to_json
    from lingraft.report.adaptation import adaptation_table, render_adaptation
    from lingraft.report.adaptation_figure import adaptation_trade_off
    from lingraft.report.files import write_figure
    from lingraft.train.processes import Processes

    quieten_loading()

    def looked(expected: Expected) -> None:
        if dry_run and json:
            print_json(to_json(expected))
        for line in expected.lines if not (dry_run and json) else ():
            if dry_run:  # the result then
                print_result(shown_message(line))
            else:
                print_message(line, "yellow" if line.startswith("!") else None)
        if dry_run:
            raise typer.Exit

    with ProgressWatcher(f"adapt {adaptation.model}") as watcher:
        draw = partial(render_adaptation, reported=watcher.noted)
        delivery = Delivery(
            output, overwrite=overwrite, draw=draw, repository=push, private=private, gguf=gguf
        )
        adapted = run_adaptation(
            adaptation,
            delivery,
            runs=runs,
            watcher=watcher,
            processes=Processes.of(processes, sharded=sharded),
            on_expected=looked,
            measure_from=0 if dry_run else LONG_TRAINING,
        )
    if json:
        print_json(to_json(adapted))
    else:
        print_table(adaptation_table(adapted), f"{adaptation.model}: {', '.join(adapted.learnt)}")
        print_result(adapted.sentence)
        print_result(f"Model: {output}")
        print_result(f"Page: {output / PAGE}")
    for line in delivery.send():
        print_message(line)
    if figure is not None:
        chart = adaptation_trade_off(adapted)
        if chart is None:
            raise FigureError(
                f"{figure}: the figure is not drawn: no model has both a loss and a gain; all else is done."
            )
        for warning in write_figure(chart, figure, fonts):
            print_message(warning, "yellow")
    raise typer.Exit(EXIT_CODES[adapted.answer])


def _asked(
    model: str, data: list[str], languages: list[str], overrides: list[str], options: Mapping[str, object]
) -> Adaptation:
    """Return what is asked, by options or by a file, whose fields options stand before."""
    from lingraft.config.adaptation import adaptation_of, load_adaptation

    if not model.endswith(_YAML):
        if not data:
            raise ConfigError(
                "--data is missing: name the rows to learn from, such as --data rows.jsonl --language th "
                "(`lingraft show data FILE` tells what a file holds)."
            )
        return adaptation_of(model, data, languages, overrides, **options)
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]
    given += ["--data"] * bool(data) + ["--language"] * bool(languages)
    if given:
        raise ConfigError(
            f"{model}: is a YAML file, so {', '.join(given)} stand in it; change a field for one run by KEY=VALUE, "
            "such as max_loss=0.02."
        )
    return load_adaptation(Path(model), overrides)


def _check(adaptation: Adaptation) -> None:
    """Refuse what names alone say, before anything heavy is imported."""
    from lingraft.adapt.as_study import check_adaptation
    from lingraft.models.model_names import model_problem

    if (problem := model_problem(adaptation.model)) is not None:
        raise ModelError(problem)
    check_adaptation(adaptation, Path())
