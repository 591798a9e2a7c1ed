"""A signal stops a command once, for certain, and after what is under way is saved."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from lingraft import stopping
from lingraft.stopping import Stopped, finish_first, stoppable

FINALISER = """
import os, signal, time
from lingraft.stopping import Stopped, settle, stoppable

class Sends:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)

with stoppable():
    try:
        Sends()
        time.sleep(5)
        print("lost")
    except Stopped:
        settle()
        print("stopped")
"""


def send_and_wait(*numbers: signal.Signals) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)
        time.sleep(0.05)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_raised_with_its_exit_code(number: signal.Signals, code: int) -> None:
    with pytest.raises(Stopped) as stopped, stoppable():
        send_and_wait(number)
    assert stopped.value.exit_code == code


def test_what_must_finish_first_sees_the_signal_and_ends_by_itself() -> None:
    seen = []

    def work() -> None:
        with finish_first():
            send_and_wait(signal.SIGTERM)
            seen.append(stopping.requested())
        seen.append(None)

    with pytest.raises(Stopped), stoppable():
        work()
    assert seen == [signal.SIGTERM]


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_after_a_signal_does_not_wait(first: signal.Signals) -> None:
    seen = []

    def work() -> None:
        with finish_first():
            send_and_wait(first)
            seen.append("noted")
            send_and_wait(signal.SIGINT)
            seen.append("noted again")

    with pytest.raises(Stopped), stoppable():
        work()
    assert seen == ["noted"]


def test_what_a_scheduler_and_a_launcher_both_send_is_one_request() -> None:
    seen = []

    def work() -> None:
        with finish_first():
            send_and_wait(signal.SIGTERM, signal.SIGTERM, signal.SIGHUP)
            seen.append("saved")

    with pytest.raises(Stopped) as stopped, stoppable():
        work()
    assert (seen, stopped.value.number) == (["saved"], signal.SIGTERM)


def test_a_signal_that_a_finaliser_swallows_is_raised_again() -> None:
    done = subprocess.run([sys.executable, "-c", FINALISER], check=True, capture_output=True, text=True)
    assert done.stdout == "stopped\n"


def test_a_signal_that_another_process_got_ends_the_command_with_its_sentence() -> None:
    command = (
        "import signal, sys; from lingraft import stopping\n"
        "stopping.begin(lambda number: print(stopping.sentence(number)))\n"
        "try:\n"
        "    with stopping.finish_first():\n"
        "        stopping.request(signal.SIGTERM)\n"
        "        raise stopping.Stopped(signal.SIGTERM)\n"
        "except stopping.Stopped:\n"
        "    sys.exit(stopping.end(1))"
    )
    done = subprocess.run([sys.executable, "-c", command], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (143, "")
    assert done.stdout.startswith("Stopped by SIGTERM: ")


def test_a_signal_of_another_process_is_nothing_to_a_library() -> None:
    stopping.request(signal.SIGTERM)
    assert stopping.requested() is None


def test_handlers_are_restored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stoppable():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
    assert stopping.requested() is None
