"""`lingraft show`: look at a study file or a data set before anything runs, and at what models answered after it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lingraft.cli.output import (
    print_json,
    print_result,
    print_side_by_side,
    print_table,
    readable,
    shown,
    shown_lines,
)
from lingraft.cli.plan import plan
from lingraft.cli.show_run import show_run
from lingraft.errors import ConfigError

if TYPE_CHECKING:
    from lingraft.data.summary import DataSummary

app = typer.Typer(
    help="Show a study, its plan, a run, a data set or what models answered.", no_args_is_help=True
)
app.command("plan")(plan)  # under the name by which it is looked for beside the others
app.command("run")(show_run)


@app.command("study")
def show_study(
    study: Annotated[Path, typer.Argument(help="The study file (YAML).")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print a study with every default resolved, and the cells of its grid."""
    from lingraft.config.load import dump_study
    from lingraft.study.checks import load_study
    from lingraft.study.grid import cells_of

    loaded = load_study(study, overrides or (), Path())
    cells = cells_of(loaded)
    if json:
        listed = [
            {
                "data": cell.data,
                "strategy": cell.strategy,
                "seed": cell.seed,
                "steps": [[step.phase, step.data, step.strategy.label] for step in cell.steps],
            }
            for cell in cells
        ]
        print_json({"study": loaded.model_dump(mode="json"), "cells": listed})
        return
    print_result(shown_lines(dump_study(loaded)))
    print_result(f"# {len(cells)} cells:")
    for cell in cells:
        print_result(f"#   {cell.label}")


@app.command("data")
def show_data(
    source: Annotated[str, typer.Argument(help="A file, a hub id, or worldbook:FAMILY/LANGUAGES.")],
    model: Annotated[
        str, typer.Option(help="Whose tokenizer and chat template to use.")
    ] = "embedded:smollm2-135m",
    data_format: Annotated[
        str | None, typer.Option("--format", help="Format of the rows, such as alpaca; default: detected.")
    ] = None,
    field: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH", help="A field of the format, and where it is in the rows."),
    ] = None,
    language: Annotated[str | None, typer.Option(help="BCP-47 tag of rows that do not state theirs.")] = None,
    near_duplicates: Annotated[
        float | None, typer.Option(help="Drop rows at least this similar to an earlier one, such as 0.8.")
    ] = None,
    language_filter: Annotated[
        bool, typer.Option("--language-filter", help="Drop rows in another language than they state.")
    ] = False,
    no_answer_filter: Annotated[
        bool, typer.Option("--no-answer-filter", help="Drop rows without an answer.")
    ] = False,
    special_tokens: Annotated[
        str | None,
        typer.Option(help="Answers that spell special tokens: strip the tokens, or drop the rows."),
    ] = None,
    parallel: Annotated[str | None, typer.Option(help="What makes rows one group: id or rows.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Read only the first rows of each file.")] = None,
    system: Annotated[
        str,
        typer.Option(help="System prompts, where the chat template has no place for them: refuse or fold."),
    ] = "refuse",
    max_length: Annotated[
        int, typer.Option(min=8, help="Most tokens of an example; longer ones count as truncated.")
    ] = 1024,
    max_broken_share: Annotated[float, typer.Option(help="Accept up to this share of broken rows.")] = 0.99,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print counts, languages, token lengths, each language's tokens against English, and one example.

    The example's supervised part, which the loss sees, is marked. Of files that hold test items or prompts, what they
    are and where they go.
    """
    from lingraft.cli.progress import StepBars
    from lingraft.config.load import data_source
    from lingraft.data.formats import UnknownFormatError
    from lingraft.evaluate.items_files import holds_test_items

    for one in field or []:
        if "=" not in one:
            raise ConfigError(f"--field {one!r}: write NAME=PATH, such as --field instruction=question.")
    spec = data_source(
        source,
        format=data_format,
        fields=dict(one.split("=", 1) for one in field or []),
        language=language,
        filters={
            "near_duplicates": near_duplicates,
            "language": language_filter,
            "no_answer": no_answer_filter,
            "special_tokens": special_tokens,
        },
        parallel=parallel,
        system=system,
        max_broken_share=max_broken_share,
    )
    if data_format is None and not field and holds_test_items(source):
        _show_items(source, json)
        return

    # A wrong name and test items are found before anything heavy is imported.
    from lingraft.data.summary import summarise_data
    from lingraft.models.loading import load_tokenizer

    try:
        with StepBars() as bars:
            summary = summarise_data(
                spec,
                load_tokenizer(model),
                max_length=max_length,
                on_progress=bars.progressed,
                first_rows=limit,
            )
    except UnknownFormatError:
        if not _show_items(source, json):
            raise
        return
    if json:
        print_json(summary.to_json())
        return
    _print_summary(summary)


def _show_items(source: str, json: bool) -> bool:
    """Say what a source of test items or prompts is and where it goes; False: it is none."""
    from dataclasses import asdict

    from lingraft.evaluate.items_files import hub_tasks, items_files

    files, tasks = items_files(source), hub_tasks(source)
    if json and (files or tasks):
        print_json({"source": source, "hub_tasks": tasks, "test_items": [asdict(one) for one in files]})
        return True
    for one in files:
        name = shown(one.name)
        tag = one.language or one.likely_language
        guessed = "" if one.likely_language is None else f" (by the identifier it is {one.likely_language})"
        fields = ", ".join(one.fields)
        what = f"{name}: {one.rows} row{'s' if one.rows != 1 else ''} ({fields})"
        if one.are_prompts:
            print_result(
                f"{what}: prompts, no training data{guessed}. "
                f"Use: lingraft drift M1 M2 --prompts {f'{tag}={name}' if tag else name}, or `prompts:` in a study."
            )
            continue
        places = [f"DIR/{place.replace('{language}', tag or 'TAG')}" for place in one.places.values()]
        endings = {Path(place).suffix for place in places}
        if one.data_dir:
            go = "It lies where suites look: "
        else:
            convert = (
                "" if Path(one.name).suffix in endings else f"Convert it to {' or '.join(endings)}, put it"
            )
            go = f"{convert or 'Put it'} as {' or '.join(places)}, then: "
        print_result(
            f"{what}: test items of {' or '.join(one.places)}, no training data{guessed}. {go}"
            f"lingraft evaluate MODEL --data-dir {one.data_dir or 'DIR'} "
            f"--task {next(iter(one.places))} --languages {tag or 'TAG'}"
        )
    for task in tasks:
        print_result(
            f"{source}: what {task} takes its test items from, no training data. Use: lingraft evaluate MODEL --task "
            f"{task} --languages TAG"
        )
    return bool(files or tasks)


@app.command("predictions")
def show_predictions(
    run: Annotated[Path, typer.Argument(help="A run's folder, or that of an evaluation.")],
    language: Annotated[str | None, typer.Option(help="BCP-47 tag; default: all.")] = None,
    task: Annotated[
        str | None, typer.Option(help="Such as worldbook:lookup or worldbook:lookup/de; default: all.")
    ] = None,
    cell: Annotated[
        str | None, typer.Option(help="The model, as tables name it; default: the first cell that is done.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="The model that it is compared with; default: its Phase 1.")
    ] = None,
    worst: Annotated[int, typer.Option(min=1, help="Most items to print.")] = 10,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print the answers whose score fell most, beside those of the model before; of one model, the worst.

    Models are named like `similar / plain`, `phase 1` or `base model`.
    """
    from lingraft.evaluate.shown_names import renamed
    from lingraft.report.answers import read_answers, worst_answers

    after, before = read_answers(run, cell, against)
    found = worst_answers(after, before, language=language, task=task, count=worst)
    if json:
        labels = {"model": after.label, "before": None if before is None else before.label}
        print_json({"run": str(run), **labels, "items": [one.to_json() for one in found]})
        return
    names = after.task_names
    for one in found:
        item = one.after
        print_result(f"{renamed(item.label, names)}  {item.item}")
        print_result(readable(item.prompt))
        print_result(readable(f"=> {item.reference}"))
        columns = [(after, item)]
        if one.before is not None and before is not None:
            columns.insert(0, (before, one.before))
        print_side_by_side(
            [(f"{model.label}: {own.score:.2f}", own.response or "(empty)") for model, own in columns]
        )


def _print_summary(summary: DataSummary) -> None:
    from lingraft.data.chat import handled_sentences
    from lingraft.report.tables import cost_table

    lengths = summary.lengths
    looked_at = f" (the first {summary.first_rows} of each file)" if summary.first_rows is not None else ""
    print_result(
        f"{summary.source}: {summary.rows} rows{looked_at}, format {summary.format}, {summary.broken} broken"
    )
    for row in (*summary.first_broken, *summary.first_refused):
        print_result(f"  {row.place}: {row.problem}")
    if summary.filtered:
        print_result("Filters: " + ", ".join(f"{name} {count}" for name, count in summary.filtered.items()))
    if summary.incomplete_groups is not None:
        print_result(f"Parallel groups in which a language is missing: {summary.incomplete_groups}")
    print_table(cost_table(summary.languages))
    print_result(
        f"Tokens per example: median {lengths.median:.0f}, 95 % up to {lengths.p95:.0f}, longest {lengths.longest}; "
        f"{lengths.total} in all, {lengths.supervised} supervised."
    )
    print_result(
        f"At {summary.max_length} tokens {summary.truncated} are truncated, {summary.unanswered} keep no answer, "
        f"{summary.refused} are refused by the chat template."
    )
    for number, what in handled_sentences(summary.handled):
        print_result(f"{number} {what}.")
    if summary.unknown_keys:
        keys = ", ".join(f"{key!r} ({rows} rows)" for key, rows in summary.unknown_keys.items())
        print_result(f"Messages have keys that nothing reads: {keys}.")
    for warning in summary.warnings:
        print_result(f"Warning: {warning}")
    if summary.fallback_template:
        print_result("The tokenizer has no chat template: lingraft's own is used.")
    print_result("The first example, its supervised part between ⟦ and ⟧:")
    print_result(readable(summary.example))
