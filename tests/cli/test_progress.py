"""Bars in a terminal, now and then a line elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from lingraft.cli import progress
from lingraft.cli.progress import ProgressWatcher, StepBars


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
