"""Where output goes: the result to stdout, everything else to stderr, also what libraries print.

All text passes through here. What is not ours (names, data, answers, what servers and libraries say) could hold
escapes that steer the terminal, or a line break after which it forges a line of ours: `shown` makes them visible.
"""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import re
import sys
import traceback
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, TypeVar

from lingraft.errors import ConfigError, LingraftError, did_you_mean, escape_control_characters

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    from lingraft.config.schema import Backend
    from lingraft.models.checkpoints import WeightType
    from lingraft.report.tables import Table
    from lingraft.stage import Json

_LOG_WIDTH = 160
_PAGE_ENDINGS = (".html", ".htm")
_HEAD = 4096  # characters of a page, in which its title stands
_COLUMN_GAP = 3
_ESSENTIAL_GAP = 2  # of the table that has to fit
_NO_TERMINAL = 80  # characters of a line where nothing says how many there are
_NARROWEST = 40
_NAMED = 3
_PRECISIONS: tuple[Literal["auto", "bf16", "float32"], ...] = ("auto", "bf16", "float32")
_MARK = re.compile(
    r"(⟦|⟧|<[^<>\s]*>|\[/?[A-Z_]+\]|\n)"
)  # what chat templates put around turns, and our brackets
_UNINDENTED = re.compile(r"\n(?!  )")
_STEERING = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")  # what JSON leaves as it is
_GONE = (errno.EPIPE, errno.EIO)  # a reader that ended, such as `head`; a terminal that was closed
Result = TypeVar("Result")
_result_stream: IO[str] | None = None
_is_begun = False
_with_stacks = False
_as_json = False


class Shown(str):
    """Text that can be printed as it is."""


def shown(text: str) -> Shown:
    """Return a text with what steers a terminal made visible, also line breaks: it is one line."""
    return text if isinstance(text, Shown) else Shown(escape_control_characters(text, keep=""))


def shown_lines(text: str) -> Shown:
    """Return a text that may have several lines, such as an example or an answer, for printing on lines of its own."""
    return text if isinstance(text, Shown) else Shown(escape_control_characters(text))


def shown_message(text: str) -> Shown:
    """Return a message, whose further lines are indented: a name with a line break in it forges no line of ours."""
    return text if isinstance(text, Shown) else Shown(_UNINDENTED.sub("\n  ", shown_lines(text)))


class _Stdout(io.FileIO):
    """The stdout of a result. Its reader may go away: what is written from then on goes nowhere, and nothing fails."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            _forget(self.fileno())
            if error.errno in _GONE:
                return len(data)
            raise LingraftError(f"the result cannot be written to stdout: {error.strerror}.") from None


def _forget(descriptor: int) -> None:
    """Let what is written to a descriptor go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _stdout_on(descriptor: int) -> IO[str]:
    raw = io.BufferedWriter(_Stdout(descriptor, "w"))
    return io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", line_buffering=True)


@contextmanager
def keep_stdout_clean() -> Iterator[None]:
    """Point file descriptor 1 at stderr, so that a library that prints cannot spoil the result.

    The result goes to the stdout that was there before, through `print_result` and `result_stream`.
    """
    global _result_stream, _is_begun
    _open_missing_streams()
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    _result_stream, _is_begun = _stdout_on(saved), False
    try:
        yield
    finally:
        with suppress(OSError):  # nobody reads what a library left there
            sys.stdout.flush()
        os.dup2(saved, 1)
        _result_stream.close()
        _result_stream = None


@contextmanager
def help_on_stdout() -> Iterator[None]:
    """Let the parser print what it was asked for, to a reader who may go away."""
    global _is_begun
    _open_missing_streams()
    before = sys.stdout
    before.flush()
    _is_begun = True
    sys.stdout = _stdout_on(os.dup(1))
    try:
        yield
    finally:
        sys.stdout.close()
        sys.stdout = before


def _open_missing_streams() -> None:
    """Open what was closed by the caller (`2>&-`): else a file of ours would get its number, and messages."""
    for descriptor, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, "r" if name == "stdin" else "w", closefd=False))


class _LibraryText(io.TextIOBase):
    """Stands for stdout and stderr where libraries print: their text is shown as foreign text, line by line."""

    encoding, errors = "utf-8", "backslashreplace"

    def __init__(self, stream: Any) -> None:
        self.behind = stream
        self._begun = ""

    def write(self, text: str) -> int:
        *whole, self._begun = (self._begun + text).split("\n")
        for line in (one.rstrip("\r") for one in whole):
            if _with_stacks or "\r" not in line:  # a bar goes back to the beginning of its line
                print_message(line.rpartition("\r")[2])
        return len(text)

    def flush(self) -> None:
        """Do nothing: a line is printed when it is whole."""

    def fileno(self) -> int:
        return int(self.behind.fileno())

    @property
    def buffer(self) -> Any:
        return self.behind.buffer

    def writable(self) -> bool:
        return True


@contextmanager
def streams_of_libraries() -> Iterator[None]:
    """Show what libraries print as foreign text; drop what they log, their warnings and bars.

    `--traceback` shows all of it. What matters to users is said by lingraft itself, with what to do about it.
    """
    before, level = (sys.stdout, sys.stderr, warnings.showwarning), logging.root.manager.disable
    sys.stdout, sys.stderr = _LibraryText(before[0]), _LibraryText(before[1])
    if not _with_stacks:
        logging.disable(logging.CRITICAL)
        warnings.showwarning = lambda *_, **__: None
    try:
        yield
    finally:
        sys.stdout, sys.stderr, warnings.showwarning = before
        logging.disable(level)


def show_stacks(wanted: bool, *, as_json: bool = False) -> None:
    """Say whether errors are printed with their stack (`--traceback`), and as objects on stdout (`--json`)."""
    global _with_stacks, _as_json
    _with_stacks, _as_json = wanted, as_json


def stack_of(error: BaseException) -> Shown | None:
    """Return an error's stack as text, or None where the user did not ask for it."""
    return shown_lines("".join(traceback.format_exception(error)).rstrip()) if _with_stacks else None


def result_stream() -> IO[str]:
    """Return the stream of the result: the real stdout."""
    return _result_stream or sys.stdout


def _begun_stream() -> IO[str]:
    """Return the stream of the result, of which something is written now."""
    global _is_begun
    _is_begun = True
    return result_stream()


def unused_stdout() -> int | None:
    """Return the file descriptor of the real stdout, or None once something of a result stands there."""
    if _is_begun:
        return None
    return 1 if _result_stream is None else _result_stream.fileno()


def print_result(text: str) -> None:
    """Print a result, or a line of one.

    Raises:
        LingraftError: It cannot be written, as where a file on a full disk stands for stdout.
    """
    print(shown(text), file=_begun_stream(), flush=True)


def result_console() -> Console:
    """Return the console of the result: stdout; what is no terminal is as wide as COLUMNS says, else 80 characters."""
    from rich.console import Console

    stream = _begun_stream()
    asked = os.environ.get("COLUMNS", "")
    width = max(int(asked), _NARROWEST) if asked.isdecimal() else _NO_TERMINAL
    return Console(file=stream, width=None if stream.isatty() else width)


def print_json(value: Any) -> None:
    """Print one JSON object; what steers a terminal is escaped in its strings, and reads back as it was."""
    text = json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False)
    print_result(Shown(_STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)))


def print_error(kind: str, message: str, exit_code: int) -> None:
    """Print why a command failed, on stderr; under `--json` as an object on stdout as well, if nothing stands there."""
    begins = "" if kind in ("Interrupted", "InternalError") else f"{kind}: "
    print_message(begins + message, "yellow" if kind == "Interrupted" else "red")
    if _as_json and not _is_begun:
        with suppress(LingraftError), keep_stdout_clean():  # the message stands on stderr
            print_json({"error": {"type": kind, "message": message, "exit_code": exit_code}})


def check_folder(path: Path | None) -> None:
    """Refuse a file that could not be written, before anything is computed; None: none is to be."""
    if path is not None and not path.parent.is_dir():
        raise ConfigError(f"{path}: there is no folder {path.parent}; create it first.")


def check_page(path: Path, option: str, *, is_given: bool) -> None:
    """Refuse a page that could not be written, or would replace what is no page of lingraft's.

    Args:
        path: Where it goes.
        option: Which option names the place.
        is_given: The user named it; its folder must exist then.

    Raises:
        ConfigError: Name another place.
    """
    begin = f"{option} {path}" if is_given else str(path)
    if path.is_dir():
        raise ConfigError(
            f"{begin}: is a folder; name a file in it, such as {option} {path / 'report.html'}."
        )
    if is_given and path.suffix.lower() not in _PAGE_ENDINGS and not path.exists():
        raise ConfigError(
            f"{begin}: a page is HTML; name {option} {path.with_suffix('.html')}. For PDF print it from a browser; its "
            "figures are written as PDF by --figures FOLDER --format pdf."
        )
    if is_given:
        check_folder(path)
    place = next((one for one in (path.parent, path.parent.parent) if one.is_dir()), None)
    if place is not None and not os.access(path if path.exists() else place, os.W_OK):
        raise ConfigError(f"{begin}: cannot be written; name another place: {option} PAGE.html.")
    if not path.exists():
        return
    try:
        with path.open(encoding="utf-8") as file:
            is_ours = "lingraft</title>" in file.read(_HEAD)
    except (OSError, UnicodeDecodeError):
        is_ours = False
    if not is_ours:
        raise ConfigError(
            f"{begin}: is there, and no page of lingraft's; name another file ({option} PAGE.html)."
        )


def checked_precision(asked: str) -> Literal["auto", "bf16", "float32"]:
    """Return what `--precision` names, before anything heavy is imported.

    Raises:
        ConfigError: It names nothing that a model is held in.
    """
    known = next((one for one in _PRECISIONS if one == asked), None)
    if known is None:
        raise ConfigError(f"--precision {asked!r}: {did_you_mean(asked, _PRECISIONS)}")
    return known


def tags_of(asked: Sequence[str] | None) -> list[str]:
    """Return the language tags of an option that takes several at once (`de,th`) and may be repeated."""
    return [tag.strip() for one in asked or () for tag in one.split(",") if tag.strip()]


def checked_weight_type(asked: str | None) -> WeightType | None:
    """Return what `--dtype` names, before anything heavy is imported; None: it was not given.

    Raises:
        ConfigError: It names no type that weights are written in.
    """
    if asked is None:
        return None
    names: dict[str, WeightType] = {
        "bf16": "bf16", "bfloat16": "bf16", "fp16": "float16", "float16": "float16", "fp32": "float32",
        "float32": "float32",
    }  # fmt: skip
    if asked.lower() not in names:
        raise ConfigError(f"--dtype {asked!r}: take one of bf16, float16, float32.")
    return names[asked.lower()]


def checked_backend(asked: Sequence[str] | None) -> Backend:
    """Return what `--backend` names, once for each field of a server; a server is not asked.

    Raises:
        ConfigError: It names no engine, a field is wrong, or a program is not installed.
    """
    from lingraft.config.load import backend_of, section_from_options
    from lingraft.config.schema import ServerChoice

    fields = dict(one.partition("=")[::2] for one in asked or () if "=" in one)
    names = [one for one in asked or () if "=" not in one]
    for name in fields:
        if name not in ServerChoice.model_fields:
            raise ConfigError(f"--backend {name}=...: {did_you_mean(name, ServerChoice.model_fields)}")
    if len(names) > 1 or (names and fields) or len(fields) + len(names) < len(asked or ()):
        raise ConfigError(
            f"--backend {' --backend '.join(asked or ())}: give one engine, or each field of a server once."
        )
    if not fields:
        return backend_of(names[0] if names else "transformers", "--backend")
    from lingraft.models.server_engine import check_server

    choice = section_from_options(
        ServerChoice, {name: f"backend {name}=" for name in ServerChoice.model_fields}, **fields
    )
    check_server(choice)
    return choice


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


class _Messages(io.TextIOBase):
    """The stderr of the moment, behind what stands for it; it may go away."""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._stream(), "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        return self._try(lambda stream: stream.write(text), len(text))

    def flush(self) -> None:
        self._try(lambda stream: stream.flush(), None)

    def isatty(self) -> bool:
        return self._try(lambda stream: stream.isatty(), False)

    def fileno(self) -> int:
        return int(self._stream().fileno())

    def _stream(self) -> Any:
        stream: Any = sys.stderr
        while isinstance(stream, _LibraryText):
            stream = stream.behind
        return stream

    def _try(self, act: Callable[[Any], Result], otherwise: Result) -> Result:
        try:
            return act(self._stream())
        except OSError:  # nobody reads it
            _forget(2)
        except (AttributeError, ValueError):  # closed, or a script's that has none
            pass
        return otherwise


@cache
def standard_error() -> Console:
    """Return the console of progress and messages."""
    from rich.console import Console

    stream: Any = _Messages()
    if stream.isatty():
        return Console(file=stream)
    # A log file is not narrow: tables are not cut there. It gets no control characters, whatever FORCE_COLOR says.
    return Console(file=stream, width=_LOG_WIDTH, force_terminal=False)


def print_message(text: str, style: str | None = None, console: Console | None = None) -> None:
    """Print a note or an error on stderr, or on `console`, with what steers a terminal made visible."""
    (console or standard_error()).print(
        shown_message(text), markup=False, highlight=False, emoji=False, style=style, soft_wrap=True
    )


def print_drawn(drawn: RichTable | Text, console: Console) -> None:
    """Print a table, or lines that are as long as they are, of which every text was `shown`."""
    from rich.text import Text

    console.print(drawn, soft_wrap=isinstance(drawn, Text))


def print_table(
    table: Table, title: str | None = None, console: Console | None = None, *, essential: bool = False
) -> None:
    """Draw a table on stdout, or on `console`.

    Args:
        table: The table.
        title: Stands above it.
        console: None: stdout.
        essential: Only its essential columns, made to fit, and a line that says what is not shown; else all of them, in
            parts where the terminal is too narrow.
    """
    from rich.console import Console
    from rich.text import Text

    from lingraft.report.narrow import narrow
    from lingraft.report.tables import BEST, Entry

    table = _drawable(table)
    is_file, is_ours = False, console is None
    if console is None:
        stream = _begun_stream()
        asked = os.environ.get("COLUMNS", "")
        is_file = not stream.isatty() and not asked.isdecimal()
        width = int(asked) if asked.isdecimal() else _NO_TERMINAL
        width = max(width, _NARROWEST) if essential else _width(table)
        console = Console(file=stream, width=None if stream.isatty() else width)
    lines = []
    if essential:
        # Nothing cuts a file's lines, so names stand there as they are.
        found = narrow(table, console.width, _ESSENTIAL_GAP, names_whole=is_file)
        parts = [found.table]
        if found.left_out:
            lines.append(f"Not shown (`--wide` shows all): {', '.join(found.left_out)}")
        if found.cut:
            names = ", ".join(found.cut[:_NAMED]) + (" ..." if len(found.cut) > _NAMED else "")
            are, them = ("name is", "it") if len(found.cut) == 1 else ("names are", "them")
            lines.append(f"{len(found.cut)} {are} cut in the middle (`--wide` shows {them} whole): {names}")
    else:
        parts = list(_parts(table, console.width))
    if any(isinstance(cell, Entry) and cell.is_best for part in parts for row in part.rows for cell in row):
        lines.insert(0, f"{BEST} the best of its column, and what is not distinguishable from it")
    if is_ours:  # where a name alone is wider, the terminal breaks the lines: no entry is cut
        console.width = max(console.width, *map(_width, parts))
    for part in parts:
        _draw(part, title, console, is_close=essential)
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def _drawable(table: Table) -> Table:
    """Return a table with what steers a terminal made visible, and its best entries marked."""
    from lingraft.report.tables import BEST, Entry

    def mark(cell: str) -> str:
        if not isinstance(cell, Entry):
            return shown(cell)
        sign = BEST if cell.is_best else ""
        shorter = tuple(sign + shown(one) for one in cell.shorter)
        return cell.with_text(sign + shown(cell), shorter)

    return replace(
        table,
        columns=tuple(replace(column, title=shown(column.title)) for column in table.columns),
        rows=tuple(tuple(mark(cell) for cell in row) for row in table.rows),
    )


def _draw(table: Table, title: str | None, console: Console, *, is_close: bool) -> None:
    from rich import box
    from rich.table import Table as Drawn
    from rich.text import Text

    from lingraft.report.tables import Entry

    # As text, not markup: a model's path may hold brackets.
    heading = None if title is None else Text(shown(title), "table.title")
    # The essential table has to do with little room: one character between columns less, and none at the edges.
    drawn = Drawn(
        title=heading,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        pad_edge=False,
        show_edge=not is_close,
        padding=(0, 1, 0, 0) if is_close else (0, 1),
    )
    for index, column in enumerate(table.columns):
        side: Literal["left", "right"] = "left" if index < table.n_keys else "right"
        drawn.add_column(Text(column.title), justify=side, no_wrap=True, vertical="bottom")
    for row in table.rows:
        drawn.add_row(
            *(
                Text(_isolated(cell), "bold" if isinstance(cell, Entry) and cell.is_best else "")
                for cell in row
            )
        )
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
    from rich.table import Table as Drawn
    from rich.text import Text

    stream = _begun_stream()
    console = Console(file=stream, width=None if stream.isatty() else _LOG_WIDTH)
    drawn = Drawn(box=box.SIMPLE_HEAD, pad_edge=False, expand=True)
    for title, _ in columns:
        drawn.add_column(Text(shown(title)), overflow="fold", ratio=1)
    drawn.add_row(*(Text(readable(text)) for _, text in columns))
    console.print(drawn)


def readable(text: str) -> Shown:
    """Return a foreign text of several lines to be printed as it is: visible escapes, and right-to-left text isolated.

    Each right-to-left stretch between a chat template's marks is kept from pulling the marks into its direction.
    """
    parts = _MARK.split(shown_lines(text))
    return Shown("".join(part if _MARK.fullmatch(part) else _isolated(part) for part in parts))
