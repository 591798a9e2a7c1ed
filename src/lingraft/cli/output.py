"""Where output goes: the result to stdout, everything else to stderr, also what libraries print."""

from __future__ import annotations

import json
import os
import re
import sys
import traceback
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from lingraft.errors import ConfigError, did_you_mean, escape_control_characters

if TYPE_CHECKING:
    from rich.console import Console

    from lingraft.report.tables import Table
    from lingraft.stage import Json

_LOG_WIDTH = 160
_COLUMN_GAP = 3
_PRECISIONS: tuple[Literal["auto", "bf16", "float32"], ...] = ("auto", "bf16", "float32")
_BACKENDS: tuple[Literal["transformers", "vllm"], ...] = ("transformers", "vllm")
_MARK = re.compile(
    r"(⟦|⟧|<[^<>\s]*>|\[/?[A-Z_]+\]|\n)"
)  # what chat templates put around turns, and our brackets
_result_stream: IO[str] | None = None
_with_stacks = False


@contextmanager
def keep_stdout_clean() -> Iterator[None]:
    """Point file descriptor 1 at stderr, so that a library that prints cannot spoil the result.

    The result goes to the stdout that was there before, through `print_result` and `result_console`.
    """
    global _result_stream
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    _result_stream = os.fdopen(saved, "w", encoding="utf-8")
    try:
        yield
    finally:
        try:
            sys.stdout.flush()
            _result_stream.flush()
        finally:
            os.dup2(_result_stream.fileno(), 1)
            _result_stream.close()
            _result_stream = None


def show_stacks(wanted: bool) -> None:
    """Say whether errors are printed with their stack (`--traceback`)."""
    global _with_stacks
    _with_stacks = wanted


def stack_of(error: BaseException) -> str | None:
    """Return an error's stack as text, or None where the user did not ask for it."""
    return "".join(traceback.format_exception(error)) if _with_stacks else None


def result_stream() -> IO[str]:
    """Return the stream of the result: the real stdout."""
    return _result_stream or sys.stdout


def print_result(text: str) -> None:
    """Print a result."""
    print(text, file=result_stream(), flush=True)


def print_json(value: Any) -> None:
    """Print one JSON object."""
    print_result(json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False))


def check_folder(path: Path | None) -> None:
    """Refuse a file that could not be written, before anything is computed; None: none is to be."""
    if path is not None and not path.parent.is_dir():
        raise ConfigError(f"{path}: there is no folder {path.parent}; create it first.")


def checked_precision(asked: str) -> Literal["auto", "bf16", "float32"]:
    """Return what `--precision` names, before anything heavy is imported.

    Raises:
        ConfigError: It names nothing that a model is held in.
    """
    known = next((one for one in _PRECISIONS if one == asked), None)
    if known is None:
        raise ConfigError(f"--precision {asked!r}: {did_you_mean(asked, _PRECISIONS)}")
    return known


def checked_backend(asked: str) -> Literal["transformers", "vllm"]:
    """Return what `--backend` names, and which is installed.

    Raises:
        ConfigError: It names no engine, or one that is absent.
    """
    known = next((one for one in _BACKENDS if one == asked), None)
    if known is None:
        raise ConfigError(f"--backend {asked!r}: choose {' or '.join(_BACKENDS)}.")
    if known == "vllm":
        from lingraft.models.vllm import check_vllm

        check_vllm()
    return known


def quieten_loading() -> None:
    """Keep transformers from drawing a bar for every model that is loaded: our own bars say more."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def write_record(path: Path, measure: str, inputs: Mapping[str, Json], result: Mapping[str, Json]) -> None:
    """Write what a command found, and of what, as one JSON file."""
    from importlib.metadata import version

    from lingraft.records import write_json_atomically

    content = {"measure": measure, "lingraft": version("lingraft"), "inputs": inputs, "result": result}
    write_json_atomically(path, content)


def recorded_inputs(path: Path) -> Mapping[str, Json] | None:
    """Return the inputs that `write_record` wrote; None: there is no file, or another one."""
    from lingraft.records import read_json

    try:
        inputs = read_json(path)["inputs"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return inputs if isinstance(inputs, dict) else None


def check_same_options(place: str, before: Mapping[str, Json], options: Mapping[str, Json]) -> None:
    """Refuse to write over what was made with other options.

    Raises:
        ConfigError: An option has another value than before.
    """
    changed = [
        f"{key} {before.get(key)!r}, not {value!r}"
        for key, value in options.items()
        if before.get(key) != value
    ]
    if changed:
        raise ConfigError(f"{place}: was made with {', '.join(changed)}; name another, or delete it.")


@cache
def standard_error() -> Console:
    """Return the console of progress and messages."""
    from rich.console import Console

    if sys.stderr.isatty():
        return Console(stderr=True)
    # A log file is not narrow: tables are not cut there. It gets no control characters, whatever FORCE_COLOR says.
    return Console(stderr=True, width=_LOG_WIDTH, force_terminal=False)


def print_message(text: str, style: str | None = None) -> None:
    """Print a note or an error on stderr, with what steers a terminal made visible."""
    standard_error().print(
        escape_control_characters(text), markup=False, highlight=False, style=style, soft_wrap=True
    )


def print_table(table: Table, title: str | None = None, console: Console | None = None) -> None:
    """Draw a table on stdout, or on `console`; in parts where the terminal is too narrow for all columns."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    if console is None:
        stream = result_stream()
        console = Console(file=stream, width=None if stream.isatty() else _width(table))
    # As text, not markup: a model's path may hold brackets.
    shown = None if title is None else Text(title, "table.title")
    for part in _parts(table, console.width):
        drawn = RichTable(title=shown, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
        for index, column in enumerate(part.columns):
            drawn.add_column(column.title, justify="left" if index < part.n_keys else "right", no_wrap=True)
        for row in part.rows:
            drawn.add_row(*(Text(_isolated(cell)) for cell in row))
        console.print(drawn)


def _parts(table: Table, width: int) -> Iterator[Table]:
    """Cut the table into parts that fit; each repeats the key columns, and has at least one other."""
    keys = list(range(table.n_keys))
    chosen = list(keys)
    for index in range(table.n_keys, len(table.columns)):
        if len(chosen) > len(keys) and _width(table.part([*chosen, index])) > width:
            yield table.part(chosen)
            chosen = list(keys)
        chosen.append(index)
    yield table.part(chosen)


def _width(table: Table) -> int:
    """Return the width of the table with no cell cut or wrapped."""
    from rich.cells import cell_len

    columns = [[column.title, *(row[i] for row in table.rows)] for i, column in enumerate(table.columns)]
    return sum(max(cell_len(text) for text in column) + _COLUMN_GAP for column in columns)


def _isolated(cell: str) -> str:
    """Keep a cell with right-to-left text from pulling the numbers beside it into its own direction.

    First strong isolate and pop directional isolate (Unicode's UAX 9): invisible, of no width.
    """
    is_right_to_left = any(unicodedata.bidirectional(character) in ("R", "AL") for character in cell)
    return f"\u2068{cell}\u2069" if is_right_to_left else cell


def print_side_by_side(columns: Sequence[tuple[str, str]]) -> None:
    """Print texts beside each other, each under its title and wrapped; titles and texts are taken literally."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    stream = result_stream()
    console = Console(file=stream, width=None if stream.isatty() else _LOG_WIDTH)
    drawn = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, expand=True)
    for title, _ in columns:
        drawn.add_column(Text(title), overflow="fold", ratio=1)
    drawn.add_row(*(Text(readable(text)) for _, text in columns))
    console.print(drawn)


def readable(text: str) -> str:
    """Keep each right-to-left stretch between a chat template's marks from pulling the marks into its direction."""
    return "".join(part if _MARK.fullmatch(part) else _isolated(part) for part in _MARK.split(text))
