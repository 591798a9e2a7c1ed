"""A server that is started for a model by the user's command, and ended with all that it started."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from lingraft.config.schema import ServerChoice
from lingraft.endpoint import Retry, UnreachableError
from lingraft.errors import EvaluationError
from lingraft.models.completions import ask_for_models, connection_to, endpoint_of

_END_SECONDS = 20.0
_STEP_SECONDS = 0.5


class StartedServer:
    """A process that serves a model; it ends by `stop`, and when this process is killed.

    Args:
        choice: Of a server with a `command`.
        folder: Of the model.

    Attributes:
        url: What stands before /completions.

    Raises:
        EvaluationError: It cannot be started.
    """

    def __init__(self, choice: ServerChoice, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://localhost:{port}/v1"
        self._choice = choice
        words = [
            one.replace("{model}", str(folder)).replace("{port}", str(port))
            for one in shlex.split(choice.command or "")
        ]
        self._line = shlex.join(words)
        file, name = tempfile.mkstemp(prefix="lingraft-server-", suffix=".log")
        self._log = Path(name)
        try:
            self._process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )
        except OSError as error:
            self._log.unlink()
            raise EvaluationError(f"{self._line}: cannot be started ({error.strerror}).") from None
        finally:
            os.close(file)
        self._guard = subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "lingraft.models.guard"),
                *(str(os.getpid()), str(self._process.pid)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def wait_until_ready(self) -> None:
        """Wait until it answers; it may say meanwhile that it is still loading.

        Raises:
            EvaluationError: It ends, does not answer in time, or answers with what no server of models says.
        """
        ends = time.monotonic() + self._choice.start_timeout
        connection = connection_to(endpoint_of(self._choice, self.url))
        try:
            while not self.has_ended and time.monotonic() < ends:
                with suppress(UnreachableError):
                    if not isinstance(ask_for_models(connection), Retry):
                        return
                time.sleep(_STEP_SECONDS)
        finally:
            connection.close()
        code = self._process.poll()
        problem = (
            f"it did not answer within {self._choice.start_timeout:g} s (its `start_timeout`)"
            if code is None
            else f"it ended with code {code}"
        )
        raise EvaluationError(f"the server {self._line!r}: {problem}. {self.last_words}")

    @property
    def has_ended(self) -> bool:
        """Whether it runs no more."""
        return self._process.poll() is not None

    @property
    def last_words(self) -> str:
        """The last line that it wrote, as a sentence."""
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return f"Its last line: {lines[-1].strip()[-300:]}" if lines else "It wrote nothing."

    def stop(self) -> None:
        """End it, and wait for its end."""
        for sign, seconds in ((signal.SIGTERM, _END_SECONDS), (signal.SIGKILL, None)):
            with suppress(ProcessLookupError):  # with all that it started
                os.killpg(self._process.pid, sign)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
                break
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._guard.kill()
        self._guard.wait()
        self._log.unlink(missing_ok=True)
