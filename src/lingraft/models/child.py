"""A process that works for this one, seen from here: what answers (`models.workers`), what makes stages (`study.pool`).

It is started as a module of ours, not by `multiprocessing`: that would run a user's script again in each, and a
terminal's Ctrl-C would reach it. They talk by a pipe; what it prints goes into a log.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing.connection import Connection, Pipe
from typing import Any, BinaryIO

_SHOWN_LINES = 20
_SHOWN_BYTES = 1 << 14
_SECONDS_TO_END = 10.0


class Child:
    """A process that is started when it is needed, and may be started again after its end.

    Attributes:
        connection: Of the process that was started last.
        process: None: there is none.
        log: What it printed, of all times that it was started; who ends it for good closes it.
    """

    connection: Connection

    def __init__(self) -> None:
        self.log: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 - closed by who ends it
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, module: str, environment: Mapping[str, str]) -> None:
        """Start a module, which is given its end of the connection and the id of this process."""
        self.connection, theirs = Pipe()
        with theirs:
            self.process = subprocess.Popen(
                # Safe paths: a file of the user's folder must not stand in for a library, nor be run.
                [sys.executable, "-P", "-m", module, str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=self.log,
                stderr=self.log,
                env={**environment, "PYTHONSAFEPATH": "1"},
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # a terminal's Ctrl-C reaches this process alone
            )

    def send(self, value: object) -> None:
        """Send it a value; of one that has died, `receive` tells."""
        try:
            self.connection.send(value)
        except (BrokenPipeError, ConnectionResetError):
            return

    def receive(self) -> Any | None:
        """Return what it sent; None: it has died."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            return None

    def bury(self) -> str:
        """Return how it died."""
        assert self.process is not None
        try:
            code = self.process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:  # it has closed its connection alone
            self.process.kill()
            code = self.process.wait()
        self.kill()
        if code >= 0:
            return f"ended with exit code {code}"
        try:
            return f"was killed by {signal.Signals(-code).name}"
        except ValueError:  # of real-time signals Python names the first and the last
            return f"was killed by signal {-code}"

    def kill(self) -> None:
        """End it, where it is there."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
            self.connection.close()

    def last_lines(self) -> str:
        """Return the last lines that it printed, after a line break; empty where it printed nothing."""
        return last_lines(self.log)


def last_lines(printed: BinaryIO) -> str:
    """Return the last lines of a file, after a line break; empty where it has none."""
    printed.seek(max(0, printed.seek(0, os.SEEK_END) - _SHOWN_BYTES))
    text = printed.read().decode("utf-8", errors="replace")
    # Of a line that was written over again and again, such as a bar of a library, what stood there last.
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    return "".join(f"\n{line}" for line in [line for line in lines if line.strip()][-_SHOWN_LINES:])
