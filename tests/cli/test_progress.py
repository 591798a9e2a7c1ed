"""Bars in a terminal, now and then a line elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from lingraft.cli import progress
from lingraft.cli.progress import ProgressWatcher, StepBars
from lingraft.study.events import StageProgress


@pytest.mark.parametrize("terminal", [True, False])
def test_steps_are_shown_with_how_far_they_are(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=100)
    monkeypatch.setattr(progress, "standard_error", lambda: console)
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", -1.0)
    with StepBars() as bars:
        bars.progressed("read", 30, 0)
        bars.progressed("tokenise", 10, 40)
        shown = stream.getvalue()
    assert ("tokenise 10/40" in shown) is not terminal
    if terminal:
        assert "10/40" in stream.getvalue()


def test_the_data_of_a_study_are_a_bar_that_goes_when_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=False, width=100)
    monkeypatch.setattr(progress, "standard_error", lambda: console)
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", -1.0)
    with ProgressWatcher() as watcher:
        watcher.preparing("read a.jsonl", 10_000, 30_000)
        watcher.preparing("read a.jsonl", 30_000, 30_000)
        watcher.preparing("read b.jsonl", 7, 7)
        watcher.study_started(2)
    assert "10000/30000" in stream.getvalue()
    assert stream.getvalue().count("read a.jsonl ...") == 1
    assert "read b.jsonl ..." in stream.getvalue()


def test_what_only_counts_has_a_time_left_too(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=False, width=100)
    now = [100.0]
    monkeypatch.setattr(progress, "standard_error", lambda: console)
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", -1.0)
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with ProgressWatcher() as watcher:
        watcher.stage_started("evaluate base")
        watcher.stage_progressed(StageProgress(40, 100))  # answered before an interruption
        now[0] += 30
        watcher.stage_progressed(StageProgress(50, 100))
        watcher.stage_progressed(StageProgress(1, 10, unit="verdicts"))  # another count of the stage
        now[0] += 1
        watcher.stage_progressed(StageProgress(2, 10, seconds_left=61.0))
    assert [line.strip() for line in stream.getvalue().splitlines() if " left" in line or "/" in line] == [
        "40/100",
        "50/100  2:30 left",
        "1/10  verdicts",
        "2/10  1:01 left",
    ]
    with StepBars() as bars:
        bars.progressed("model", 0, 0)
        bars.progressed("model", 1, 5)
        now[0] += 2
        bars.progressed("model", 2, 5)
    assert "  model 2/5  0:06 left" in stream.getvalue().splitlines()
