"""The `lingraft` command: its parts, its exit codes, and a stdout that carries nothing but the result."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext

import typer

from lingraft.cli import (
    clean,
    copy,
    difference,
    drift,
    evaluate,
    judge,
    ls,
    replay,
    run,
    schema,
    show,
    similarity,
    snr,
    validate,
)
from lingraft.cli.log_lines import log_lines
from lingraft.cli.output import keep_stdout_clean, print_message, show_stacks, stack_of
from lingraft.errors import (
    EXIT_DONE,
    EXIT_INTERNAL,
    EXIT_INTERRUPTED,
    EXIT_WRONG_INPUT,
    LingraftError,
    disk_error,
)

app = typer.Typer(
    name="lingraft",
    help="Teach a language model new languages; measure, limit and report what it forgets.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("run")(run.run)
app.command("validate")(validate.validate)
app.add_typer(show.app, name="show")
app.command("similarity")(similarity.similarity)
app.command("difference")(difference.difference)
app.command("snr")(snr.snr)
app.command("drift")(drift.drift)
app.command("replay")(replay.replay)
app.command("evaluate")(evaluate.evaluate)
app.command("judge")(judge.judge)
app.command("schema")(schema.schema)
app.command("copy")(copy.copy)
app.command("ls")(ls.ls)
app.command("clean")(clean.clean)


@app.callback()
def _options(
    show_traceback: bool = typer.Option(False, "--traceback", help="Print the stack of an error."),
) -> None:
    """Take the options that come before the command; `main` reads them, for errors before they are parsed."""
    del show_traceback


# Read by libraries when torch is loaded; what the user has set stays. docs/performance.md has the measurements.
# Threads that wait for each other by spinning stand still when another process has their core, and threads that
# sleep at once are woken ten thousand times a step: they spin for some microseconds only.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
# Large tensors in large pages, where the system allows it: a sixth of the page faults.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def main() -> None:
    """Run the command line and exit with the code that DESIGN promises.

    0 done, 1 the answer is no, 2 wrong input, 3 cannot tell, 4 internal error, 130 interrupted.
    """
    sys.exit(_run(sys.argv[1:]))


def _run(arguments: list[str]) -> int:
    show_stacks("--traceback" in arguments)
    # Accepted anywhere, so that it can be put at the end of the line that just failed.
    arguments = [argument for argument in arguments if argument != "--traceback"]
    asks_for_help = not arguments or "--help" in arguments  # help is the result then
    try:
        quiet = nullcontext() if asks_for_help else log_lines().running(arguments[0])
        with quiet, nullcontext() if asks_for_help else keep_stdout_clean():
            code = app(args=arguments, prog_name="lingraft", standalone_mode=False)
        # As which typer hands on a KeyboardInterrupt inside of a command.
        return _interrupted() if code == EXIT_INTERRUPTED else int(code or EXIT_DONE)
    except LingraftError as error:
        return _report(f"{type(error).__name__}: {error}", error, error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except BrokenPipeError:
        return EXIT_DONE
    except typer.Exit as stop:
        return int(stop.exit_code)
    except Exception as error:
        if (full := disk_error(error)) is not None:
            return _report(f"{type(full).__name__}: {full}", error, full.exit_code)
        format_message = getattr(error, "format_message", None)
        if format_message is None:
            return _report(
                f"internal error: {type(error).__name__}: {error}\n"
                "This is a bug in lingraft; --traceback shows where.",
                error,
                EXIT_INTERNAL,
            )
        # The parser's own: a wrong option, a missing argument. It leaves out the value.
        message = " ".join(format_message().split()).rstrip(".")
        context, invalid = getattr(error, "ctx", None), getattr(error.__cause__, "errors", None)
        value = "" if invalid is None else f" ({invalid()[0]['input']!r})"
        end = "" if message.endswith("?") else "."
        hint = "" if context is None else f" Try `{context.command_path} --help`."
        return _report(f"UsageError: {message}{value}{end}{hint}", error, EXIT_WRONG_INPUT)


def _interrupted() -> int:
    print_message("Interrupted. Run the same command again to continue.", "yellow")
    return EXIT_INTERRUPTED


def _report(message: str, error: Exception, code: int) -> int:
    stack = stack_of(error)
    if stack is not None:
        print_message(stack)
    print_message(message, "red")
    return code
