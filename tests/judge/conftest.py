"""Fixtures of the judge's tests: its server, and answers judged by it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from judge_server import ANSWERS, REFERENCE, JudgeServer, running_server, settings, write_rows_to

from lingraft.judge.win_rate import Judged, Output, judge_answers


@pytest.fixture
def judge_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeServer]:
    """A judge that prefers the longer output; no key is set, and no proxy stands between."""
    for name in (
        "LINGRAFT_JUDGE_KEY",
        "OPENAI_API_KEY",
        "HTTP_PROXY",
        "http_proxy",
        "ALL_PROXY",
        "all_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    with running_server() as server:
        yield server


@pytest.fixture
def other_server() -> Iterator[JudgeServer]:
    """A second one, at another port."""
    with running_server() as server:
        yield server


@pytest.fixture
def judged(judge_server: JudgeServer, tmp_path: Path) -> Callable[..., Judged]:
    """A function that has answers judged by the server; waits take no time, and are listed in `waits`."""

    def run(
        answers: list[Output] = ANSWERS,
        reference: list[Output] = REFERENCE,
        *,
        cache: Path = tmp_path / "verdicts.jsonl",
        sleep: Callable[[float], object] | None = lambda _: None,
        **changes: Any,
    ) -> Judged:
        return judge_answers(answers, reference, settings(judge_server, **changes), cache=cache, sleep=sleep)

    return run


@pytest.fixture
def command(judge_server: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr("lingraft.endpoint._FIRST_WAIT_SECONDS", 0.01)
    answers = write_rows_to(tmp_path / "answers.jsonl", ANSWERS)
    reference = write_rows_to(tmp_path / "reference.jsonl", REFERENCE)
    judge = ["--judge-url", judge_server.url, "--judge-model", "judge"]
    return ["judge", str(answers), "--reference", str(reference), *judge]
