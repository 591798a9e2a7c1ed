"""The study of `tiny_study` run many times, each in a forked process, so that the libraries are loaded once."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiny_study import NAME, records

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# By what a cell took, two equal runs differ.
_TIMES = ("cost", "seconds")


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: Its exit code; negative: the signal that ended it.
        output: What it printed on stdout and stderr.
        seconds: It took.
    """

    code: int
    output: str
    seconds: float

    @property
    def last_line(self) -> str:
        """What it said last."""
        return next((line for line in reversed(self.output.splitlines()) if line.strip()), "")


def preload() -> None:
    """Import what the command imports, before it is forked."""
    for name in ("lingraft.cli.app", "lingraft.report.page", "lingraft.study.run", "lm_eval.evaluator"):
        importlib.import_module(name)


def run(study: Path, runs: Path, log: Path) -> Ended:
    """Run `lingraft run` in a process of its own, to its end; `log` takes what it prints."""
    started = time.monotonic()
    process = os.fork()
    if not process:
        code = 70
        try:
            handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            sys.argv = ["lingraft", "run", str(study), "--runs", str(runs)]
            from lingraft.cli.main import main

            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        finally:
            os._exit(code)
    _, status = os.waitpid(process, 0)
    output = log.read_text(encoding="utf-8", errors="replace")
    return Ended(os.waitstatus_to_exitcode(status), output, time.monotonic() - started)


def found(runs: Path) -> dict[str, str | bytes]:
    """Return what a run holds that equal runs share: every record byte for byte, and the result."""
    state: dict[str, str | bytes] = dict(records(runs))
    result = runs / NAME / "result.json"
    if result.is_file():
        content = _without_times(json.loads(result.read_text(encoding="utf-8")))
        state["result"] = json.dumps(content | {"run": ""}, sort_keys=True)
    return state


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(one) for key, one in value.items() if key not in _TIMES}
    return [_without_times(one) for one in value] if isinstance(value, list) else value


def table(rows: Iterable[tuple[str, ...]]) -> str:
    """Return rows, the first of which is the heading, as a table in Markdown."""
    head, *rest = list(rows)
    lines = [head, tuple("---" for _ in head), *rest]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
