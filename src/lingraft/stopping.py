"""Stopping on a signal: once, for certain, with one sentence, at once or after what is under way is saved.

SIGINT (Ctrl-C), SIGTERM and SIGHUP raise `Stopped` in the main thread. What must not be torn apart runs inside
`finish_first`, where a first signal is only noted: it polls `requested`, saves, and ends; Ctrl-C after it stops it. A
further SIGTERM or SIGHUP says nothing new: a scheduler signals every process of a job, and launchers among these hand
it on.

Python and libraries swallow exceptions: in finalisers, callbacks, bare `except` clauses, C code. A thread sees to it
that none is lost: it raises again what no frame handles any more, and ends the process where it does not unwind. The
sentence is written by whoever ends the command, but once. Nothing is lost by ending at once: whatever is written can
be killed at any instant.

Only the standard library's small modules are imported here: `main` begins with this one, before all others.
"""

from __future__ import annotations

import _thread
import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

EXIT_OF_SIGNAL = 128  # exit codes of what a signal stopped: 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP

GOES_ON = "the same command goes on"  # what a sentence about kept work ends with

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SECONDS_BETWEEN_LOOKS = 0.05
_SECONDS_BETWEEN_LOOKS_AT_PARENT = 1.0
_LOOKS_UNTIL_LOST = 2  # in which nothing handles the exception: it may be between two frames at one of them
_SECONDS_TO_UNWIND = 5.0  # less than the 10 that container engines wait before they kill
_SECONDS_TO_EXIT = 3.0
# Also while the command starts, when nobody knows yet what an earlier run of it has kept.
_NOTHING_KEPT = "nothing new is kept; run the same command again"


class Stopped(KeyboardInterrupt):
    """A signal stopped the command."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def exit_code(self) -> int:
        """128 and the signal's number, as shells have it."""
        return EXIT_OF_SIGNAL + self.number


class _State:
    """What was asked for, and how far the end is. It belongs to the main thread, which alone receives signals."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.say: Callable[[int], None] | None = None
        self.requested: int | None = None
        self.settled = False
        self.finishing = 0
        self.is_raised = False  # not only noted
        self.raises_again = False
        self.hears_once = False
        self.is_saying = False
        self.exit_code: int | None = None  # of a command that is over
        self.kept, self.saved = _NOTHING_KEPT, ""


_state = _State()
_state.settled = True  # until `begin`, signals are not ours
_sentence_is_due = threading.Lock()


def begin(say: Callable[[int], None]) -> None:
    """Let signals raise `Stopped` from now on until the process ends; called first by a command, in its main thread.

    Args:
        say: Writes the one sentence about a signal; called once, in the main thread or another one.
    """
    if threading.current_thread() is not threading.main_thread():
        return  # which receives no signal
    _begin(say)
    hooks = sys.excepthook, sys.unraisablehook, threading.excepthook

    def uncaught(kind: type[BaseException], error: BaseException, stack: Any) -> None:
        if _state.requested is not None:
            _end_now()
        hooks[0](kind, error, stack)

    def silent_when_stopped(hook: Callable[[Any], Any]) -> Callable[[Any], None]:
        def call(problem: Any) -> None:
            if _state.requested is None:
                hook(problem)

        return call

    sys.excepthook = uncaught
    sys.unraisablehook = silent_when_stopped(hooks[1])
    threading.excepthook = silent_when_stopped(hooks[2])
    # Registered first, called last: what comes after it runs no handler of ours.
    atexit.register(lambda: [signal.signal(number, signal.SIG_IGN) for number in SIGNALS])


def end(exit_code: int) -> int:
    """Return the exit code of a command that is over; of one that a signal stopped, after the sentence about it.

    From now on a signal ends the process with that code, whatever still holds it up.
    """
    if _state.requested is not None:
        _say()
        exit_code = EXIT_OF_SIGNAL + _state.requested
    _state.exit_code = exit_code
    _state.settled = True
    return exit_code


def say_now() -> None:
    """Write the sentence, where a signal asked to stop: what the command still does may take seconds.

    From now on a further signal ends the process at once.
    """
    if _state.requested is not None:
        _say()
        _state.exit_code = EXIT_OF_SIGNAL + _state.requested


@contextmanager
def stoppable(*, hears_once: bool = False) -> Iterator[None]:
    """Let signals raise `Stopped` inside, until `settle` is called; restore the handlers at the end.

    Outside of the main thread, which receives no signal, nothing is done.

    Args:
        hears_once: A second signal changes nothing. It comes to a process of several, from whoever signals all of them
            and from the one that hands it on, which alone decides, by killing, that nothing is saved any more.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = _begin(None)
    _state.hears_once = hears_once
    try:
        yield
    finally:
        _state.requested, _state.settled = None, True
        for number, handler in before.items():
            signal.signal(number, handler)


def end_with(parent: int) -> None:
    """End this process when its parent ends, which cannot send word when it is killed.

    Args:
        parent: Its id, as the parent gave it: it may be gone already.
    """

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(_SECONDS_BETWEEN_LOOKS_AT_PARENT)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()


def settle() -> None:
    """Say that the stop has reached those who end the command: no further signal is raised."""
    _state.settled = True


def requested() -> int | None:
    """Return the number of the signal that asked to stop; None: none did."""
    return _state.requested


def request(number: int) -> None:
    """Take over a signal that another process of this command got; whoever ends the command says its sentence."""
    if _state.requested is None and not _state.settled:
        _state.requested = number


def check() -> None:
    """Raise `Stopped` where a signal asked for it: called by what catches whatever error its work raises.

    Raises:
        Stopped: The error comes from the stop, or hides it.
    """
    if _state.requested is not None and not _state.finishing and not _state.settled:
        raise Stopped(_state.requested)


@contextmanager
def finish_first() -> Iterator[None]:
    """Only note a first signal inside, and raise it at the end; what is inside polls `requested`."""
    _state.finishing += 1
    try:
        yield
    finally:
        _state.finishing -= 1
        if _state.requested is not None and not _state.finishing and not _state.settled:
            _be_raised()
            raise Stopped(_state.requested)


def keeps(what: str) -> None:
    """Set what the sentence says of a stopped command: "3 of 7 stages are finished; the same command goes on"."""
    _state.kept = what


def saved(what: str) -> None:
    """Set what was saved on the way to the end, such as "training stopped after step 40 of 90, which is saved"."""
    _state.saved = what


def was_saved() -> str:
    """Return what `saved` set, in a process that does not say it itself; empty where nothing was."""
    return _state.saved


def sentence(number: int) -> str:
    """Return the one sentence about a signal that stopped the command."""
    name = signal.Signals(number).name
    how = "Interrupted" if number == signal.SIGINT else f"Stopped by {name}"
    return f"{how}: {_state.saved + ', ' if _state.saved else ''}{_state.kept}."


def _begin(say: Callable[[int], None] | None) -> dict[signal.Signals, Any]:
    """Take the signals, and return who had them."""
    global _state
    _state = _State()
    _state.say = say
    if _sentence_is_due.locked():
        _sentence_is_due.release()
    # A command under nohup outlives its terminal. SIGINT is taken even where it is ignored, as it is of a job that a
    # script starts with `&`: who sends it to the process means it.
    taken = [one for one in SIGNALS if one != signal.SIGHUP or signal.getsignal(one) != signal.SIG_IGN]
    return {number: signal.signal(number, _on_signal) for number in taken}


def _on_signal(number: int, frame: FrameType | None) -> None:
    del frame
    if os.getpid() != _state.process:  # a child that was forked: its parent says the sentence
        os._exit(EXIT_OF_SIGNAL + number)
    if _state.exit_code is not None:
        os._exit(_state.exit_code)
    if _state.settled or _state.is_saying:
        return
    if _state.raises_again:
        _state.raises_again = False
    else:
        first = _state.requested is None
        if not first and number != signal.SIGINT:
            return
        _state.requested = number if _state.requested is None else _state.requested
        if (first and _state.finishing) or (not first and _state.hears_once):
            return
        if _state.is_raised and _state.say is not None:
            _end_now()
        _be_raised()
    assert _state.requested is not None
    raise Stopped(_state.requested)


def _be_raised() -> None:
    if not _state.is_raised:
        _state.is_raised = True
        # Not by `threading`, whose locks the interrupted code may hold.
        _thread.start_new_thread(_watch, (_state, threading.main_thread().ident))


def _watch(state: _State, main_thread: int | None) -> None:
    """Raise `Stopped` again where it was lost, and end the process where it takes too long to end by itself."""
    assert main_thread is not None  # it runs
    began = time.monotonic()
    unhandled = 0
    while not state.settled:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
        unhandled = 0 if _is_handled(main_thread) or state.is_saying else unhandled + 1
        if unhandled >= _LOOKS_UNTIL_LOST and not state.settled and state.requested is not None:
            unhandled = 0
            state.raises_again = True
            signal.pthread_kill(main_thread, state.requested)  # wakes it where it waits
        if state.say is not None and time.monotonic() - began > _SECONDS_TO_UNWIND:
            _end_now()
    if state.say is not None and state.requested is not None:
        time.sleep(_SECONDS_TO_EXIT)
        os._exit(EXIT_OF_SIGNAL + state.requested)


def _is_handled(thread: int) -> bool:
    """Return whether a thread is in an `except` or `finally` clause that was reached by `Stopped`."""
    found: Any = sys._current_exceptions().get(thread)
    error = found[1] if isinstance(found, tuple) else found  # a tuple until Python 3.11
    seen = set()
    pending = [error]
    while pending:
        one = pending.pop()
        if isinstance(one, Stopped):
            return True
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            pending += [one.__context__, one.__cause__]
    return False


def _say() -> None:
    """Write the sentence, unless somebody does."""
    _state.is_saying = True
    if _sentence_is_due.acquire(blocking=False) and _state.say is not None and _state.requested is not None:
        _state.say(_state.requested)


def _end_now() -> None:
    """Write the sentence and end the process, from any thread, without unwinding."""
    assert _state.requested is not None
    if _sentence_is_due.locked():
        time.sleep(1.0)  # another thread writes it
    _say()
    os._exit(EXIT_OF_SIGNAL + _state.requested)
