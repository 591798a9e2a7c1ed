"""The parts of the `lingraft` command. `cli.main` runs them."""

from __future__ import annotations

import os

import typer

from lingraft.cli import (
    adapt,
    check,
    clean,
    copy,
    difference,
    drift,
    evaluate,
    export,
    judge,
    ls,
    plan,
    replay,
    report,
    rescue,
    run,
    schema,
    show,
    similarity,
    snr,
    validate,
)
from lingraft.cli.output import print_result

app = typer.Typer(
    name="lingraft",
    help="Teach a language model new languages; measure, limit and report what it forgets.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("adapt")(adapt.adapt)
app.command("run")(run.run)
app.command("report")(report.report)
app.command("plan")(plan.plan)
app.command("validate")(validate.validate)
app.add_typer(show.app, name="show")
app.command("similarity")(similarity.similarity)
app.command("difference")(difference.difference)
app.command("snr")(snr.snr)
app.command("drift")(drift.drift)
app.command("replay")(replay.replay)
app.command("rescue")(rescue.rescue)
app.command("evaluate")(evaluate.evaluate)
app.command("check")(check.check)
app.command("judge")(judge.judge)
app.command("schema")(schema.schema)
app.command("copy")(copy.copy)
app.command("ls")(ls.ls)
app.command("export")(export.export)
app.command("clean")(clean.clean)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        import platform
        from importlib.metadata import PackageNotFoundError, version

        try:
            torch = version("torch")
        except PackageNotFoundError:
            torch = "is not installed"
        print_result(f"lingraft {version('lingraft')}, Python {platform.python_version()}, torch {torch}")
        raise typer.Exit


@app.callback()
def _options(
    show_traceback: bool = typer.Option(
        False, "--traceback", help="Print the stack of an error, and all that libraries say."
    ),
    show_version: bool = typer.Option(
        False,
        "--version",
        is_eager=True,
        callback=_print_version,
        help="Print the versions of lingraft, Python and torch.",
    ),
) -> None:
    """Take the options that come before the command; `main` reads them, for errors before they are parsed."""
    del show_traceback, show_version


# Read by libraries when torch is loaded; what the user has set stays. docs/performance.md has the measurements.
# Threads that wait for each other by spinning stand still when another process has their core, and threads that
# sleep at once are woken ten thousand times a step: they spin for some microseconds only.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
# Large tensors in large pages, where the system allows it: a sixth of the page faults.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# Native code writes past Python's streams; its warnings are no user's business.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
