"""Stopping on a signal: at once, or after what is under way is saved.

SIGINT and SIGTERM raise `Stopped` in the main thread. What must not be torn apart runs inside `finish_first`, where a
first signal is only noted: it polls `requested`, saves, and ends; a second signal stops it at once.
"""

from __future__ import annotations

import _thread
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

EXIT_OF_SIGNAL = 128  # exit codes of what a signal stopped: 130 for SIGINT, 143 for SIGTERM

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A signal stopped the command.

    Python swallows exceptions that finalisers and callbacks raise. One that is destroyed before `settle` was called
    reached nobody, and is raised again.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def exit_code(self) -> int:
        """128 and the signal's number, as shells have it."""
        return EXIT_OF_SIGNAL + self.number

    def __del__(self) -> None:
        if _state.requested is not None and not _state.settled:
            # Not from here, which is a finaliser as well.
            threading.Timer(0.01, _raise_again, (self.number,)).start()


@dataclass
class _State:
    """What was asked for."""

    requested: int | None = None
    settled: bool = True
    finishing: int = 0


_state = _State()  # of the main thread, which alone receives signals


@contextmanager
def stoppable() -> Iterator[None]:
    """Let signals raise `Stopped` inside, until `settle` is called; restore the handlers at the end.

    Outside of the main thread, which receives no signal, nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _state.requested, _state.settled, _state.finishing = None, False, 0
    before = {number: signal.signal(number, _on_signal) for number in _SIGNALS}
    try:
        yield
    finally:
        _state.requested, _state.settled = None, True
        for number, handler in before.items():
            signal.signal(number, handler)


def settle() -> None:
    """Say that the stop has reached those who end the command: no further signal is raised."""
    _state.settled = True


def requested() -> int | None:
    """Return the number of the signal that asked to stop; None: none did."""
    return _state.requested


@contextmanager
def finish_first() -> Iterator[None]:
    """Only note a first signal inside, and raise it at the end; what is inside polls `requested`."""
    _state.finishing += 1
    try:
        yield
    finally:
        _state.finishing -= 1
    if _state.requested is not None and not _state.finishing and not _state.settled:
        raise Stopped(_state.requested)


def _raise_again(number: int) -> None:
    if not _state.settled:
        _thread.interrupt_main(signal.Signals(number))


def _on_signal(number: int, frame: FrameType | None) -> None:
    del frame
    if _state.settled:
        return
    first = _state.requested is None
    _state.requested = number if _state.requested is None else _state.requested
    if first and _state.finishing:
        return
    raise Stopped(_state.requested)
