"""Text that is not ours steers no terminal: escapes, overrides and forged lines are visible wherever it is printed."""

from __future__ import annotations

import io
import json
import logging
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from lingraft.cli import output, progress
from lingraft.cli.output import shown, shown_lines, shown_message
from lingraft.cli.progress import ProgressWatcher
from lingraft.report.tables import Column, Table
from lingraft.stage import StageProgress

Command = Callable[..., "subprocess.CompletedProcess[str]"]
ESCAPES = "\x1b[31m\x1b]8;;http://x\x07\u202e\x9b2J\x08[red]x[/red][link=http://x]y[/link]\ud800"
STEERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066\u2067\ud800-\udfff]")


def check(done: subprocess.CompletedProcess[str]) -> None:
    assert not STEERS.search(done.stdout), done.stdout
    assert not STEERS.search(done.stderr), done.stderr


@given(st.text(st.characters(codec=None)))
@settings(max_examples=200, deadline=None)
def test_any_text_is_shown_without_what_steers(text: str) -> None:
    assert not STEERS.search(shown_lines(text))
    assert not re.search(r"[\n\t]", shown(text))
    assert shown(shown(text)) == shown(text)
    lines = shown_message(text).split("\n")
    assert all(line.startswith("  ") for line in lines[1:])


@given(st.recursive(st.text(st.characters(codec=None)) | st.none(), st.lists, max_leaves=5))
@settings(max_examples=100, deadline=None)
def test_any_json_reads_back_and_steers_nothing(value: object) -> None:
    stream = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(output, "_result_stream", stream)
        output.print_json({"value": value})
    assert not STEERS.search(stream.getvalue())
    assert stream.getvalue().encode("utf-8")
    assert json.loads(stream.getvalue()) == {"value": value}


def test_the_example_and_the_name_of_a_file_of_data(
    lingraft: Command, tmp_path: Path, tiny_model: Path
) -> None:
    hostile = ESCAPES[:-1]
    name = f"n\x1b[2J{hostile.replace('/', '')}.jsonl"
    rows = [{"instruction": f"a {hostile}", "output": f"one {hostile}\ntwo"}] * 3
    (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = lingraft("show", "data", name, "--model", str(tiny_model), "--language", "en")
    assert done.returncode == 0, done.stderr
    check(done)
    assert "[red]x[/red]" in done.stdout
    assert "\ntwo" in done.stdout  # an example has its lines


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", "data", "{}.jsonl"),
        ("validate", "{}.yaml"),
        ("show", "predictions", "{}"),
        ("ls", "{}"),
        ("difference", "{}", "b"),
        ("evaluate", "a", "--precision", "{}"),
        ("snr", "{}"),
        ("{}",),
        ("run", "--{}"),
        ("clean", "{}"),
    ],
    ids=lambda one: "-".join(one[:2]),
)
@pytest.mark.parametrize("as_json", [False, True])
def test_what_a_user_pasted_stands_in_a_message_as_text(
    lingraft: Command, arguments: tuple[str, ...], as_json: bool
) -> None:
    done = lingraft(*(one.format(ESCAPES[:-1]) for one in arguments), *["--json"] * as_json)
    assert done.returncode == 2
    check(done)
    assert "\\x1b[31m" in done.stderr
    assert done.stderr.count("\n") == 1, "one message is one line"
    if as_json:
        error = json.loads(done.stdout)["error"]
        assert error["exit_code"] == 2
        assert error["type"].endswith("Error")
    else:
        assert done.stdout == ""


def test_a_name_with_a_line_break_forges_no_line(lingraft: Command) -> None:
    done = lingraft("ls", "x\nReport: all is well")
    assert "\nReport" not in done.stderr


def test_what_libraries_print_is_text_and_what_they_log_is_dropped(
    lingraft: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    # pytest keeps what is logged, and sends it from process to process as UTF-8.
    logged = ESCAPES.encode(errors="ignore").decode()

    def noisy(*_: object) -> None:
        print(f"printed {ESCAPES}")
        sys.stderr.write(f"written {ESCAPES}\n")
        sys.stderr.write("\rMap:   0%\rMap: 100%\n")
        logging.getLogger("lm_eval").error("Unable to detect language for text %s", logged)
        logging.getLogger().error("Unable to detect language for text %s", logged)
        warnings.showwarning("old", UserWarning, "x.py", 1)
        raise typer.Exit(3)

    monkeypatch.setattr("lingraft.study.checks.load_study", noisy)
    done = lingraft("validate", "x.yaml")
    assert done.returncode == 3
    check(done)
    assert done.stdout == ""
    printed, written = done.stderr.splitlines()
    assert printed.startswith("printed \\x1b[31m")
    assert written.startswith("written \\x1b[31m")

    told = lingraft("validate", "x.yaml", "--traceback")
    assert "Map: 100%" in told.stderr
    assert "Map:   0%" not in told.stderr
    check(told)


def test_an_error_of_a_library_is_one_line(lingraft: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError(f"tensor {ESCAPES}\n\nC++ CapturedTraceback:\n#4 c10::Error")

    monkeypatch.setattr("lingraft.study.checks.load_study", fails)
    done = lingraft("validate", "x.yaml", "--json")
    assert done.returncode == 4
    check(done)
    assert json.loads(done.stdout)["error"]["type"] == "InternalError"
    assert done.stderr.splitlines()[0].endswith("C++ CapturedTraceback: #4 c10::Error")


@pytest.mark.parametrize("is_terminal", [False, True])
def test_labels_notes_and_reasons_of_a_study(monkeypatch: pytest.MonkeyPatch, is_terminal: bool) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=is_terminal, width=100, color_system=None)
    monkeypatch.setattr(progress, "standard_error", lambda: console)
    monkeypatch.setenv("TERM", "xterm")
    streams = sys.stdout, sys.stderr
    with ProgressWatcher("x") as watcher:
        assert (sys.stdout, sys.stderr) == streams  # rich would obey the escapes of what is printed there
        watcher.study_started(2)
        watcher.stage_started(f"train {ESCAPES}")
        watcher.stage_progressed(StageProgress(1, 2))
        watcher.noted(f"note {ESCAPES}\nforged")
        watcher.stage_finished(f"train {ESCAPES}", 1.0, reused=False)
        watcher.cell_failed(f"cell {ESCAPES}", f"reason {ESCAPES}\nforged", RuntimeError())
    said = re.sub(r"\x1b\[[0-9;?]*[A-Zhlm]|\r", "", stream.getvalue())  # rich's own, of the bars
    assert not STEERS.search(said.replace("\x1b", "")), said
    assert "\x1b" not in said
    assert "\nforged" not in said
    assert "[red]x[/red]" in said


def test_tables_are_of_text_and_wide_letters_keep_their_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(output, "_result_stream", stream)
    columns = (Column(f"name {ESCAPES}", "a word"), Column("rows", "a number"))
    cells = (f"a {ESCAPES}\nb", "日本語", "né", "مرحبا")
    output.print_table(Table(columns, tuple((cell, "123") for cell in cells), 1), f"title {ESCAPES}\nforged")
    said = stream.getvalue()
    assert not STEERS.search(said)
    lines = [line for line in said.splitlines() if "123" in line]
    assert len(lines) == len(cells)
    assert len({cell_len(line[: line.index("123")]) for line in lines}) == 1
