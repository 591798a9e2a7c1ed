"""`lingraft export`: write a cell of a study as a model's folder, to deploy or to upload."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lingraft import stopping
from lingraft.cli.options import GgufOption, JsonOption, OverwriteOption, PrivateOption, PushOption
from lingraft.cli.output import checked_weight_type, print_json, print_result, quieten_loading, shown_message
from lingraft.errors import ConfigError

if TYPE_CHECKING:
    from lingraft.adapt.cells import ExportedCell
    from lingraft.evaluate.results import Scores


def export(
    run: Annotated[Path, typer.Argument(help="The run folder of a study, such as runs/tiny.")],
    folder: Annotated[Path, typer.Argument(metavar="DEST", help="Where the model's folder goes.")],
    cell: Annotated[
        str | None,
        typer.Option(
            help="The cell as the table shows it, such as 'th / english_replay'; default: recommended."
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Type of the written weights: bf16, float16 or float32; default: that of the study's start."
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    train: Annotated[
        bool, typer.Option("--train", help="Train the cell again where `keep` discarded its checkpoint.")
    ] = False,
    no_evaluate: Annotated[
        bool, typer.Option("--no-evaluate", help="Do not evaluate what differs from what the study scored.")
    ] = False,
    adapter: Annotated[
        bool,
        typer.Option("--adapter", help="Write the LoRA adapter that `keep_adapter` kept, not the model."),
    ] = False,
    gguf: GgufOption = None,
    push: PushOption = None,
    private: PrivateOption = False,
    json: JsonOption = False,
) -> None:
    """Write a cell of a study as an ordinary Hugging Face folder, with its model card.

    Without --cell the cell with the most language ability is taken among those that are shown to have kept English.
    Weights are stored in the type of the model that the study starts from. What is stored is evaluated where it is
    another model than the one that the study scored.
    """
    # Wrong input is reported before anything heavy is imported.
    weight_type = checked_weight_type(dtype)
    if gguf is not None and adapter:
        raise ConfigError("--gguf: the converter takes whole models; leave --adapter out.")
    from lingraft.adapt.choice import choose_cell
    from lingraft.adapt.delivery import Delivery
    from lingraft.adapt.folder import check_place
    from lingraft.study.result import read_result
    from lingraft.study.unused import read_plan

    if not run.is_dir():
        raise ConfigError(f"{run}: there is no such run folder.")
    read_plan(run)
    choose_cell(read_result(run), cell)
    check_place(folder, overwrite=overwrite)
    Delivery(folder, repository=push, private=private, gguf=gguf).check()
    stopping.keeps("nothing is left of an unfinished folder; run the same command again")
    quieten_loading()
    from lingraft.adapt.cells import export_cell
    from lingraft.cli.progress import ProgressWatcher
    from lingraft.records import to_json

    with ProgressWatcher(run.name) as watcher:
        done = export_cell(
            run,
            cell,
            folder,
            dtype=weight_type,
            overwrite=overwrite,
            evaluate=not no_evaluate,
            train=train,
            adapter=adapter,
            repository=push,
            watcher=watcher,
        )
    if not json:
        _show(done)
    converted = address = None
    if gguf is not None:
        from lingraft.adapt.gguf import convert

        converted = convert(folder, gguf)
        if not json:
            print_result(f"For llama.cpp: {converted}")
    if push is not None:
        from lingraft.adapt import push as hub

        address = hub.push(folder, push, private=private)
        if not json:
            print_result(f"Uploaded: {address}")
    if json:
        print_json(
            {**to_json(done), "gguf": None if converted is None else str(converted), "repository": address}
        )


def _show(done: ExportedCell) -> None:
    from lingraft.study.unused import size_text

    chosen = f"recommended: {done.reason}" if done.reason else "as asked"
    print_result(shown_message(f"Cell {done.cell!r}, {chosen}."))
    print_result(f"Scored by the study in {done.scored_in}: {_abilities(done.scores)}.")
    if done.exported_scores is not None:
        print_result(f"Scored as it is stored, in {done.dtype}: {_abilities(done.exported_scores)}.")
    elif not done.is_scored:
        print_result(f"What is stored is rounded to {done.dtype} and was not scored (--no-evaluate).")
    print_result(
        shown_message(f"Written: {done.folder} ({size_text(done.bytes)}, {done.dtype}); its card: README.md")
    )


def _abilities(scores: Scores) -> str:
    found = (("task ability", scores.task_ability), ("language ability", scores.language_ability))
    return ", ".join(
        f"{name} {one.value:.3f} [{one.low:.3f}, {one.high:.3f}]" for name, one in found if one is not None
    )
