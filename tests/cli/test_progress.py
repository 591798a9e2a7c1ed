"""Bars in a terminal; elsewhere a line at least every 30 seconds, with what is done, of how many, and the time left."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from lingraft.cli import log_lines, progress
from lingraft.cli.log_lines import LogLines, duration
from lingraft.cli.main import _run
from lingraft.cli.progress import ProgressWatcher, StepBars, cut_in_the_middle
from lingraft.stage import StageProgress


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    monkeypatch.setattr(LogLines, "_watch", lambda _: None)  # time passes by hand, and so do its looks
    return clock


class Log(io.StringIO):
    """A file, and what prints lines of progress into it."""

    def __init__(self) -> None:
        super().__init__()
        self.console = Console(file=self, force_terminal=False, width=160)
        self.lines = LogLines(self.console)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    """What stands on stderr, which is a file."""
    log = Log()
    monkeypatch.setattr(progress, "standard_error", lambda: log.console)
    monkeypatch.setattr(progress, "_lines_of", lambda _: log.lines)
    return log


def passing(clock: Clock, seconds: int, *lines: LogLines) -> None:
    """Let time pass, as the thread sees it: it looks every second."""
    for _ in range(seconds):
        clock.now += 1
        for one in lines:
            one.print_if_due()


def progress_lines(log: Log) -> list[str]:
    return [line for line in log.getvalue().splitlines() if re.search(r"(left|so far)$", line)]


@pytest.mark.parametrize("terminal", [True, False])
def test_steps_are_bars_in_a_terminal_and_lines_elsewhere(
    monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=100)
    monkeypatch.setattr(progress, "standard_error", lambda: console)
    monkeypatch.setattr(log_lines, "SECONDS_BETWEEN_LINES", -1.0)
    monkeypatch.setenv("TERM", "xterm")
    with StepBars() as bars:
        bars.progressed("read", 30, 0)
        bars.progressed("tokenise", 10, 40)
        shown = stream.getvalue()
    assert ("tokenise: 10 of 40" in shown) is not terminal
    if terminal:
        assert "10/40" in stream.getvalue()
    else:
        assert "read: 30 done, 0 s so far" in shown


def test_a_study_in_a_terminal_is_a_bar_of_its_stages_and_one_of_the_stage_at_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100)
    monkeypatch.setattr(progress, "standard_error", lambda: console)
    monkeypatch.setenv("TERM", "xterm")
    with ProgressWatcher("mine") as watcher:
        watcher.study_started(3)
        watcher.stage_finished("evaluate base", 1.0, reused=True)
        watcher.stage_started("train two:german/plain")
        watcher.stage_progressed(StageProgress(7, 50, 1.5, 95.0, mfu=0.406))
        watcher.noted("a row is truncated")
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert re.search(r"study .* 1/3 stages", shown)
    assert re.search(r"train two:german/plain .*7/50 .* loss 1.500  95 tokens/s  MFU 41%", shown)
    assert "! a row is truncated" in shown


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_counters_and_time_left_stay_whatever_the_width_and_the_name(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, width: int
) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=width, color_system=None)
    monkeypatch.setattr(progress, "standard_error", lambda: console)
    monkeypatch.setenv("TERM", "xterm")
    name = (
        "train one:english/plain > two:日本語日本語/english_replay+freeze_random > three:german/interpolate"
    )
    with ProgressWatcher("mine") as watcher:
        watcher.stages_ahead(["train a", name])
        watcher.study_started(2)
        watcher.stage_started("train a")
        watcher.stage_finished("train a", 600.0, reused=False)
        watcher.stage_started(name)
        for step in range(1, 41):
            clock.now += 2
            watcher.stage_progressed(StageProgress(step, 120, 1.5, 95.0, 2.0 * (120 - step)))
        watcher._bars.refresh()
        watcher._study.refresh()
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue()).splitlines()
    stages = [line for line in drawn if "40/120" in line]
    assert stages
    assert all("2 min 40 s left" in line for line in stages)
    assert any("1/2 stages" in line and "about 3 min left" in line for line in drawn)
    assert all(cell_len(line) <= width for line in drawn if "✓" not in line)
    assert all(line.startswith("train") for line in stages)
    if width == 60:
        assert all(re.match(r"train one.*….*polate  40/120", line) for line in stages), stages
    if width == 200:
        assert all(name in line and "95 tokens/s" in line for line in stages)


@given(st.text(), st.integers(1, 30))
@settings(deadline=None, max_examples=100)
def test_a_name_is_cut_in_the_middle_to_what_fits(text: str, width: int) -> None:
    cut = cut_in_the_middle(text, width)
    assert cell_len(cut) <= width
    assert cut == text if cell_len(text) <= width else "…" in cut


def test_a_study_has_a_time_left_once_every_kind_of_its_stages_was_seen(clock: Clock, log: Log) -> None:
    labels = ["evaluate base", "train a", "evaluate a", "train b", "evaluate b"]
    with ProgressWatcher("mine") as watcher:
        watcher.stages_ahead(labels)
        watcher.study_started(6)
        watcher.stage_finished("prepare x", 5.0, reused=True)  # found finished, and not among those ahead
        for label, seconds in zip(labels[:3], (60.0, 600.0, 30.0), strict=True):
            watcher.stage_started(label)
            passing(clock, int(seconds), log.lines)
            watcher.stage_finished(label, seconds, reused=False)
        watcher.stage_started("train b")
        passing(clock, 30, log.lines)
        watcher.stage_progressed(StageProgress(1, 10, seconds_left=900.0))
        passing(clock, 21, log.lines)
    told = progress_lines(log)
    assert told[0] == "mine: stage 2 of 6, evaluate base: 20 s so far"
    after_training = [line for line in told if "evaluate a" in line]
    assert after_training == ["mine, about 12 min left: stage 4 of 6, evaluate a: 20 s so far"]
    assert told[-2:] == [
        "mine, about 11 min left: stage 5 of 6, train b: 30 s so far",
        "mine, about 16 min left: stage 5 of 6, train b: 1 of 10, 14 min 40 s left",
    ]


def test_of_several_stages_at_a_time_one_that_reads_another_waits_for_it(clock: Clock) -> None:
    labels = ["train a", "train b", "evaluate a", "evaluate b"]
    ahead = progress.StudyTime()
    ahead.labels, ahead.at_once = list(labels), 4
    ahead.parents = {"evaluate a": ["train a"], "evaluate b": ["train b", "prepare x"]}
    ahead.finished("train before", 600.0)
    ahead.finished("evaluate before", 60.0)
    ahead.started("train a")
    ahead.progressed("train a", 900.0)
    assert ahead.seconds() == 900.0 + 60.0  # train b begins now, and its evaluation ends before
    ahead.at_once = 1
    assert ahead.seconds() == 900.0 + 600.0 + 60.0 + 60.0


def test_a_terminal_that_draws_nothing_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(log_lines, "SECONDS_BETWEEN_LINES", -1.0)
    stream = io.StringIO()
    LogLines(Console(file=stream, force_terminal=True)).progressed("read", StageProgress(1, 2))
    assert "read: 1 of 2" in stream.getvalue()


def test_the_data_of_a_study_are_a_step_that_ends_when_they_are_read(
    monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    monkeypatch.setattr(log_lines, "SECONDS_BETWEEN_LINES", -1.0)
    monkeypatch.setattr(LogLines, "_watch", lambda _: None)
    with ProgressWatcher("mine") as watcher:
        watcher.preparing("read a.jsonl", 10_000, 30_000)
        watcher.preparing("read a.jsonl", 30_000, 30_000)
        watcher.preparing("read b.jsonl", 7, 7)
        watcher.study_started(2)
    assert "mine: read a.jsonl: 10,000 of 30,000, " in log.getvalue()
    assert log.getvalue().count("read a.jsonl ...") == 1
    assert "read b.jsonl ..." in log.getvalue()


def test_a_study_says_its_stage_its_step_and_the_time_left(clock: Clock, log: Log) -> None:
    with ProgressWatcher("quickstart") as watcher:
        lines = log.lines
        passing(clock, 25, lines)  # libraries are imported, models found
        watcher.preparing("read a.jsonl", 0, 0)
        passing(clock, 20, lines)
        watcher.preparing("read a.jsonl", 50, 50)
        watcher.study_started(20)
        watcher.stage_finished("evaluate base", 1.0, reused=True)
        watcher.stage_started("train dissimilar/plain")
        passing(clock, 20, lines)  # the model is loaded
        for step in range(1, 41):
            watcher.stage_progressed(StageProgress(step, 120, 1.5, 95.0, 2.0 * (120 - step)))
            passing(clock, 2, lines)
        watcher.stage_finished("train dissimilar/plain", 100.0, reused=False)
        passing(clock, 20, lines)  # the difference to Phase 1 is drawn again and again
    told = progress_lines(log)
    assert told[:4] == [
        "quickstart: preparing: 20 s so far",
        "quickstart: read a.jsonl: 0 done, 15 s so far",
        "quickstart: stage 2 of 20, train dissimilar/plain: 15 s so far",
        "quickstart: stage 2 of 20, train dissimilar/plain: step 8 of 120, loss 1.500, 95 tokens/s, 3 min 43 s left",
    ]
    assert told[-1] == "quickstart: 2 of 20 stages are done: 15 s so far"
    assert len(told) == 8


def test_the_log_is_never_silent_for_thirty_seconds_and_never_long(clock: Clock, log: Log) -> None:
    times: list[float] = []
    with ProgressWatcher("x") as watcher:
        lines = log.lines
        begun = clock.now
        watcher.study_started(1)
        watcher.stage_started("evaluate base")
        for seconds, done in [(70, 1), (1, 2), (1, 3), (300, 4), (40, 5)]:
            for _ in range(seconds):
                before = len(progress_lines(log))
                passing(clock, 1, lines)
                times += [clock.now] * (len(progress_lines(log)) - before)
            watcher.stage_progressed(StageProgress(done, 5))
    gaps = [after - before for before, after in zip([begun, *times], [*times, clock.now], strict=True)]
    assert max(gaps) <= 30
    assert min(gaps[:-1]) >= 20


def test_time_left_is_of_the_measured_rate_and_absent_where_there_is_none(
    clock: Clock, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_lines, "SECONDS_BETWEEN_LINES", -1.0)
    with ProgressWatcher("x") as watcher:
        watcher.study_started(1)
        watcher.stage_started("evaluate base")
        clock.now += 7
        watcher.stage_progressed(StageProgress(40, 100))  # answered before an interruption
        clock.now += 30
        watcher.stage_progressed(StageProgress(50, 100))
        clock.now += 100
        log.lines.print_if_due()
        clock.now += 60  # overdue: nothing is known any more
        log.lines.print_if_due()
        watcher.stage_progressed(StageProgress(1, 10, unit="verdicts"))  # another count of the stage
        watcher.stage_progressed(StageProgress(2, 10, seconds_left=float("inf")))
        watcher.stage_progressed(StageProgress(10, 10, seconds_left=0.0))
    assert [line.removeprefix("x: stage 1 of 1, evaluate base: ") for line in progress_lines(log)] == [
        "40 of 100, 7 s so far",
        "50 of 100, 2 min 30 s left",
        "50 of 100, 50 s left",
        "50 of 100, 3 min 17 s so far",
        "1 of 10 verdicts, 3 min 17 s so far",
        "2 of 10, 3 min 17 s so far",
        "10 of 10, 3 min 17 s so far",
    ]


def test_other_commands_say_their_name_their_step_and_the_time_left(clock: Clock, log: Log) -> None:
    lines = log.lines
    with lines.running("evaluate"):
        passing(clock, 21, lines)
        lines.at("loading model")
        passing(clock, 19, lines)
        with StepBars() as bars:
            bars.progressed("model", 1, 5)
            clock.now += 20
            bars.progressed("model", 2, 5)
            passing(clock, 20, lines)
    assert progress_lines(log) == [
        "evaluate: 20 s so far",
        "evaluate: loading model: 19 s so far",
        "evaluate: model: 2 of 5, 1 min 0 s left",
        "evaluate: model: 2 of 5, 40 s left",
    ]
    passing(clock, 100)
    assert len(progress_lines(log)) == 4


def test_a_name_with_control_characters_does_no_harm(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_lines, "SECONDS_BETWEEN_LINES", -1.0)
    log.lines.progressed("a\x1b[2J\rb[bold]", StageProgress(1, 2))
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", log.getvalue())
    assert "[bold]" in log.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (80, "1 min 20 s"),
        (3600, "1 h 0 min"),
        (7500, "2 h 5 min"),
    ],
)
def test_times_are_written_as_one_says_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_thread_speaks_while_the_command_is_busy(monkeypatch: pytest.MonkeyPatch, log: Log) -> None:
    monkeypatch.setattr(log_lines, "SECONDS_BETWEEN_LINES", 0.05)
    lines = log.lines
    with lines.running("busy"):
        until = time.monotonic() + 20
        while not progress_lines(log) and time.monotonic() < until:
            time.sleep(0.01)
    assert progress_lines(log)[0].startswith("busy: ")
    said = log.getvalue()
    time.sleep(0.3)
    assert log.getvalue() == said  # it ends with the command


SHORT = (
    "import sys; from lingraft.cli import log_lines; log_lines.SECONDS_BETWEEN_LINES = 0.2; "
    "from lingraft.cli.main import main; main()"
)


def command(log: Path, *arguments: str) -> tuple[int, str, str]:
    """Run a command with stderr in a file and lines every 0.2 seconds; return its code, stdout and stderr."""
    with log.open("wb") as stderr:
        done = subprocess.run(
            [sys.executable, "-c", SHORT, *arguments],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            cwd=log.parent,
            env={**os.environ, "OMP_NUM_THREADS": "1", "FORCE_COLOR": "1"},
            check=False,
        )
    return done.returncode, done.stdout, log.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_study_whose_stderr_is_a_file_tells_how_far_it_is(
    tmp_path: Path, tiny_model: Path, processes: str
) -> None:
    content: dict[str, Any] = {
        "name": "mine",
        "phases": [
            {"name": "one", "checkpoint": str(tiny_model)},
            {"name": "two", "data": {"german": {"source": "worldbook:lookup/de", "limit": 20}}},
        ],
        "training": {"tokens_per_batch": 128},
        "held_out": 2,
        "measures": [],
        "contamination": None,
        "evaluate": {
            "task_ability": [{"task": "worldbook:lookup", "limit": 10, "max_new_tokens": 8}],
            "language_ability": [{"task": "worldbook:lookup", "limit": 2, "max_new_tokens": 2}],
        },
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    code, out, err = command(tmp_path / "err", "run", "study.yaml", "--json", "--processes", processes)
    assert code == 0, err
    assert json.loads(out)["run"] == "runs/mine"
    assert not re.search(r"[\x1b\r]", err)
    lines = err.splitlines()
    assert re.match(r"run: \d+ s so far$", lines[0])  # while libraries are imported
    assert any(re.match(r"mine: stage 1 of 3, evaluate phase one: ", line) for line in lines)
    assert any(
        re.match(r"mine: stage 2 of 3, train two:german/plain.*: .*(left|so far)$", line) for line in lines
    )
    assert len([line for line in lines if line.startswith("mine: ")]) > 5


@pytest.mark.slow
def test_other_commands_whose_stderr_is_a_file_tell_it_too(tmp_path: Path, tiny_model: Path) -> None:
    model = str(tiny_model)
    code, out, err = command(tmp_path / "err", "difference", model, model, "--json")
    assert code == 0, err
    json.loads(out)
    assert re.search(r"^difference: .*(left|so far)$", err, re.MULTILINE), err
    assert not re.search(r"[\x1b\r]", err)


def test_what_is_interrupted_says_that_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lingraft.study.checks.load_study", interrupt)
    assert _run(["validate", "study.yaml"]) == 130
    assert capfd.readouterr().err.startswith("Interrupted: ")
