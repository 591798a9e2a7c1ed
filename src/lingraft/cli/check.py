"""`lingraft check`: whether a model lost more than it may against an earlier one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from lingraft import stopping
from lingraft.cli.options import (
    AnsweringOption,
    BackendOption,
    BatchSizeOption,
    ChatOption,
    DataDirOption,
    JsonOption,
    LimitOption,
    MaxNewTokensOption,
    PrecisionOption,
    SuiteOption,
    TaskOption,
    TrustOption,
)
from lingraft.cli.output import (
    check_folder,
    checked_backend,
    checked_precision,
    print_json,
    print_message,
    print_result,
    print_table,
    quieten_loading,
    tags_of,
    write_record,
)
from lingraft.errors import ConfigError, did_you_mean

_PARTS: tuple[Literal["all", "selection", "report"], ...] = ("all", "selection", "report")


def check(
    model: Annotated[
        str,
        typer.Argument(
            metavar="[NAME=]MODEL",
            help="Folder, hub id, embedded:NAME or LoRA adapter; NAME is what the answer calls it.",
        ),
    ],
    against: Annotated[str, typer.Option(metavar="[NAME=]M1", help="The model from before, likewise.")],
    max_loss: Annotated[
        list[str],
        typer.Option(
            metavar="[NAME=]SHARE",
            help="What may be lost of each ability, or of one language or task: 0.02 is 2 % of M1's score. Repeatable.",
        ),
    ],
    suite: SuiteOption = "quick",
    task: TaskOption = None,
    languages: Annotated[
        list[str] | None,
        typer.Option(
            "--languages",
            "--language",
            metavar="TAG,...",
            help="Languages besides English, such as de,th; each decides. Repeatable.",
        ),
    ] = None,
    each_task: Annotated[
        bool, typer.Option("--each-task", help="Every task decides as well, not only the abilities.")
    ] = False,
    data_dir: DataDirOption = None,
    limit: LimitOption = None,
    part: Annotated[
        str, typer.Option(help="all items, or the selection or report half of each task's.")
    ] = "all",
    max_new_tokens: MaxNewTokensOption = None,
    batch_size: BatchSizeOption = None,
    precision: PrecisionOption = "auto",
    backend: BackendOption = None,
    processes: AnsweringOption = None,
    chat: ChatOption = True,
    trust_remote_code: TrustOption = False,
    output: Annotated[
        Path, typer.Option(help="Folder in which evaluations are kept: M1 is asked once for all checks.")
    ] = Path("runs/check"),
    junit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a test report as JUnit XML.")
    ] = None,
    markdown: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a summary as Markdown; appended to $GITHUB_STEP_SUMMARY."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Say whether MODEL lost more of its abilities than it may, on items that both models are asked.

    Held: the whole 95 % interval of every loss lies at or below its limit. Exit code: 0 held, 1 broken (a whole
    interval lies above), 3 these items cannot tell, 2 wrong input or no task can run.
    """
    import os
    import time

    from lingraft.adapt.gate import MaxLosses, check_pair

    stopping.keeps(f"the answers so far are kept; {stopping.GOES_ON}")
    started = time.monotonic()
    # Wrong options and names are refused before anything heavy is imported.
    max_losses = MaxLosses.parsed(max_loss)
    asked_precision, engine = checked_precision(precision), checked_backend(backend)
    asked_part = next((one for one in _PARTS if one == part), None)
    if asked_part is None:
        raise ConfigError(f"--part {part!r}: {did_you_mean(part, _PARTS)}")
    from lingraft.study.cell_names import named_models

    named = named_models([against, model])
    check_pair(named[1].value, named[0].value)
    for option, file in (("--junit", junit), ("--markdown", markdown)):
        check_folder(file)
        if file is not None and (file.is_symlink() or (file.exists() and not file.is_file())):
            raise ConfigError(f"{option} {file}: is a folder, a link or a device; name a file.")
    _check_output(output)

    from lingraft.adapt.check import check_models, gate_of
    from lingraft.adapt.checked import ABILITY, TASK
    from lingraft.cli.progress import StepBars
    from lingraft.evaluate.shown_names import renamed
    from lingraft.records import to_json, write_text_atomically
    from lingraft.report.check import check_junit, check_markdown, check_table
    from lingraft.stage_record import RECORD
    from lingraft.study.evaluation import EvaluationOptions

    quieten_loading()
    options = EvaluationOptions(
        suite=suite,
        tasks=tuple(task or ()),
        languages=tuple(tags_of(languages)),
        data_dir=data_dir,
        limit=limit,
        part=asked_part,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        precision=asked_precision,
        backend=engine,
        chat=chat,
    )
    gate = gate_of(
        options, max_losses, each_task=each_task, trust_remote_code=trust_remote_code, processes=processes
    )
    for line in gate.asked.notes:
        print_message(f"! {line}", "yellow")
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    is_summary = markdown is not None and bool(summary) and markdown.resolve() == Path(str(summary)).resolve()
    for file in (junit, None if is_summary else markdown):
        if file is not None:
            file.unlink(missing_ok=True)  # of an earlier check, in case this one fails
    with StepBars() as bars:
        found = check_models(
            named[1].value,
            named[0].value,
            gate,
            names=(named[1].label, named[0].label),
            folder=output,
            trust_remote_code=trust_remote_code,
            watcher=bars,
        )
    whole = to_json(found)  # with the tasks as they were named, unlike what is shown
    found = renamed(found, gate.shown_names)
    if found.folder is not None:
        write_record(output / RECORD, "check", {"model": named[1].value, "against": named[0].value}, whole)
    if junit is not None:
        write_text_atomically(junit, check_junit(found, time.monotonic() - started))
    if markdown is not None and is_summary:
        with markdown.open("a", encoding="utf-8") as lines:
            lines.write(check_markdown(found))
    elif markdown is not None:
        write_text_atomically(markdown, check_markdown(found))
    for line in found.left_out():
        if line not in gate.asked.notes:
            print_message(f"! {line}", "yellow")
    if json:
        print_json(whole)
        raise typer.Exit(found.exit_code)
    if found.abilities:
        print_table(check_table(ABILITY, found.abilities), found.title)
    else:
        print_result(found.title)
    if found.tasks:
        print_table(check_table(TASK, found.tasks), found.task_title)
    for line in found.sentences():
        print_result(line)
    if found.predictions is not None:
        print_result(f"To read answers: lingraft show predictions {output}")
    raise typer.Exit(found.exit_code)


def _check_output(folder: Path) -> None:
    """Refuse a folder that holds the results of something else.

    Raises:
        ConfigError: Naming what it is of.
    """
    from lingraft.records import read_json
    from lingraft.stage_record import RECORD

    if (folder / "study.yaml").exists():
        raise ConfigError(f"--output {folder}: is the run folder of a study; name another folder.")
    try:
        record = read_json(folder / RECORD)
    except (FileNotFoundError, NotADirectoryError):
        return
    except ValueError:
        record = None
    if not isinstance(record, dict) or record.get("measure") != "check":
        raise ConfigError(
            f"--output {folder}: its {RECORD} was not written by `lingraft check`; name another folder."
        )
