"""The `lingraft` command: exit codes, one sentence about a signal, and a stdout that carries nothing but the result."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

# And no more at this place: what is imported before `begin` can be torn by a signal.
from lingraft import stopping


def main() -> None:
    """Run the command line and exit with the code that DESIGN promises.

    0 done, 1 the answer is no, 2 wrong input, 3 cannot tell, 4 internal error, 130 interrupted by Ctrl-C, 143 stopped
    by SIGTERM, 129 by SIGHUP. A reader of the result who went away, as `head` does, is no error.
    """
    stopping.begin(_say_stopped)  # before anything else is imported
    try:
        code = _run(sys.argv[1:])
    except stopping.Stopped:
        code = stopping.EXIT_OF_SIGNAL  # `end` adds the signal's number
    code = stopping.end(code)
    from lingraft.cli import launcher

    launcher.end(code)
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    """Return the exit code of a command, after its result or one message about its error."""
    from contextlib import ExitStack

    from lingraft.cli.output import help_on_stdout, keep_stdout_clean, show_stacks, streams_of_libraries
    from lingraft.errors import EXIT_DONE, EXIT_INTERRUPTED

    show_stacks("--traceback" in arguments, as_json="--json" in arguments)
    # Accepted anywhere, so that it can be put at the end of the line that just failed.
    arguments = [argument for argument in arguments if argument != "--traceback"] or ["--help"]
    if arguments[:2] == ["plan", "adapt"]:  # what it will take is measured by its own look ahead
        arguments = ["adapt", *(one for one in arguments[2:] if one != "--measure"), "--dry-run"]
    # What is asked for is the result then.
    asks_for_help = not {"--help", "-h", "--version"}.isdisjoint(arguments)
    try:
        from lingraft.cli import launcher
        from lingraft.cli.app import app  # sets what torch reads, which a launcher's processes load
        from lingraft.cli.log_lines import log_lines

        with ExitStack() as around:
            code = launcher.begin(arguments, around, asks_for_help=asks_for_help)
            if code is not None:
                return code
            if asks_for_help:
                around.enter_context(help_on_stdout())
            else:
                around.enter_context(keep_stdout_clean())
                around.enter_context(streams_of_libraries())
                around.enter_context(log_lines().running(arguments[0]))
            code = app(args=arguments, prog_name="lingraft", standalone_mode=False)
        stopping.check()  # typer makes an exit code of it
        if code == EXIT_INTERRUPTED:
            raise KeyboardInterrupt
        return int(code or EXIT_DONE)
    except BaseException as error:
        stopping.check()  # whatever a library made of it
        return _report(error)


def _report(error: BaseException) -> int:
    """Print what was wrong, under `--json` as an object as well, and return the exit code of that kind of error."""
    import signal

    import typer

    from lingraft.cli.output import print_error, print_message, stack_of
    from lingraft.errors import (
        EXIT_DONE,
        EXIT_INTERNAL,
        EXIT_WRONG_INPUT,
        LingraftError,
        disk_error,
        in_one_line,
    )

    if isinstance(error, typer.Exit):
        return int(error.exit_code)
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):  # where `main` did not take the signals
        number = signal.SIGINT
        print_error("Interrupted", stopping.sentence(number), stopping.EXIT_OF_SIGNAL + number)
        return stopping.EXIT_OF_SIGNAL + number
    if isinstance(error, BrokenPipeError):
        return EXIT_DONE
    stack = stack_of(error)
    if stack is not None:
        print_message(stack)
    name = type(error).__name__
    format_message = getattr(error, "format_message", None)
    if not isinstance(error, LingraftError) and isinstance(error, Exception):
        error = disk_error(error) or error
        name = type(error).__name__
    if isinstance(error, LingraftError):
        # Scripts know the kinds of `errors`; what is derived of them elsewhere is one of these.
        name = next(
            kind.__name__ for kind in type(error).__mro__ if kind.__module__ == LingraftError.__module__
        )
        print_error(name, error.args[0] if error.args else name, error.exit_code)
        return error.exit_code
    if format_message is None:
        message = f"internal error: {name}: {in_one_line(error)}"
        print_error(
            "InternalError", f"{message}\nThis is a bug in lingraft; --traceback shows where.", EXIT_INTERNAL
        )
        return EXIT_INTERNAL
    if name == "NoArgsIsHelpError":  # a group of commands, none of which was named: its message is its help
        print_error("UsageError", f"name one of these commands.\n{format_message()}", EXIT_WRONG_INPUT)
        return EXIT_WRONG_INPUT
    # The parser's own: a wrong option, a missing argument. It leaves out the value.
    message = " ".join(format_message().split()).rstrip(".")
    context, invalid = getattr(error, "ctx", None), getattr(error.__cause__, "errors", None)
    value = "" if invalid is None else f" ({invalid()[0]['input']!r})"
    end = "" if message.endswith("?") else "."
    hint = "" if context is None else f" Try `{context.command_path} --help`."
    print_error("UsageError", f"{message}{value}{end}{hint}", EXIT_WRONG_INPUT)
    return EXIT_WRONG_INPUT


def _say_stopped(number: int) -> None:
    """Write the sentence about a signal, whatever state the process is in; libraries can print nothing after it."""
    sentence, code = stopping.sentence(number), stopping.EXIT_OF_SIGNAL + number
    output: Any = sys.modules.get("lingraft.cli.output")  # it may be half imported
    try:
        stdout = getattr(output, "unused_stdout", lambda: 1)()
        if "--json" in sys.argv and stdout is not None:
            error = {"type": "Interrupted", "message": sentence, "exit_code": code}
            os.write(stdout, f"{json.dumps({'error': error}, indent=1)}\n".encode())
    except (OSError, ValueError):  # nobody reads it, or it is closed by now
        pass
    # A bar may stand there, and hide the cursor.
    clear = "\r\x1b[K\x1b[?25h" if os.isatty(2) and os.environ.get("TERM") != "dumb" else ""
    try:
        os.write(2, f"{clear}{sentence}\n".encode(errors="backslashreplace"))
        if "--traceback" not in sys.argv:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    except OSError:  # nobody reads it
        pass
