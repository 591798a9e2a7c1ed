"""The study of `tiny_study` run many times, each in a forked process, so that the libraries are loaded once."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

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


def fork_workers() -> None:
    """Let the workers of `--workers` be forked from the process that starts them."""
    from lingraft.models import child

    def begun(command: list[str], **options: Any) -> Any:
        makes_stages = "lingraft.study.pool_worker" in command
        return (_ForkedWorker if makes_stages else subprocess.Popen)(command, **options)

    vars(child)["subprocess"] = SimpleNamespace(**vars(subprocess) | {"Popen": begun})


class _ForkedWorker:
    """As much of `subprocess.Popen` as is used of a worker that makes stages."""

    def __init__(self, command: list[str], *, stdout: IO[bytes], env: Mapping[str, str], **_: object) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid:
            return
        try:
            from lingraft import stopping

            os.setsid()
            os.dup2(stdout.fileno(), 1)
            os.dup2(stdout.fileno(), 2)
            os.environ.update(env)
            stopping._state = stopping._State()
            stopping._state.settled = True
            sys.argv = ["pool_worker", *command[-2:]]
            from lingraft.study.pool_worker import main

            main()
        finally:
            os._exit(0)

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        if self.returncode is None:
            process, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if process else None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code when it has ended."""
        until = time.monotonic() + (timeout or 60)
        while (code := self.poll()) is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired("worker", timeout or 60)
            time.sleep(0.005)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal to it while it runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)


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
