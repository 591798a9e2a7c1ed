"""A signal at any instant: one sentence, the right exit code, no traceback, never lost. Real processes, light ones."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
SENTENCES = re.compile(r"^(?:Interrupted|Stopped by SIG\w+): .*\.$", re.MULTILINE)
# The command runs `work()` of the code that a test gives, in place of reading a study file; READY is printed first.
PREFIX = """
import os, signal, sys, time, threading
import lingraft.stopping as stopping
stopping._SECONDS_TO_UNWIND, stopping._SECONDS_TO_EXIT = 1.0, 0.5  # else 5 and 3

def me(number=signal.SIGINT):
    os.kill(os.getpid(), number)

def ready():
    os.write(2, b"READY\\n")
"""
SUFFIX = """
def load_study(*_):
    work()

import lingraft.study.checks
lingraft.study.checks.load_study = load_study
sys.argv = ["lingraft", "validate", "x.yaml", *sys.argv[1:]]
from lingraft.cli.main import main
main()
"""
# Where Python or a library swallows the exception: each loses a Ctrl-C that is sent once.
SWALLOWED = {
    "finaliser": """
class Sends:
    def __del__(self):
        me()
        for _ in range(1000): pass
def work():
    Sends()
    time.sleep(30)
""",
    "weak reference's callback": """
import weakref
class Thing: pass
def called(_):
    me()
    for _ in range(1000): pass
def work():
    thing = Thing()
    reference = weakref.ref(thing, called)
    del thing
    time.sleep(30)
""",
    "callback of the garbage collector": """
import gc
def called(phase, info):
    gc.callbacks.remove(called)
    me()
    for _ in range(1000): pass
def work():
    gc.callbacks.append(called)
    gc.collect()
    time.sleep(30)
""",
    "bare except clause": """
def work():
    try:
        me()
        time.sleep(1)
    except:
        pass
    time.sleep(30)
""",
    "library that makes another error of it": """
def work():
    try:
        me()
        time.sleep(1)
    except BaseException as error:
        raise RuntimeError("native code failed") from error
""",
    "error that is kept": """
def work():
    kept = []
    try:
        me()
        time.sleep(1)
    except BaseException as error:
        kept.append(error)
    time.sleep(30)
""",
    "system exit": """
def work():
    try:
        me()
        time.sleep(1)
    except BaseException:
        sys.exit(7)
""",
    "wait for a thread": """
def work():
    threading.Timer(0.2, me).start()
    thread = threading.Thread(target=time.sleep, args=(30,), daemon=True)
    thread.start()
    thread.join()
""",
    "shutdown of a pool of threads": """
from concurrent.futures import ThreadPoolExecutor
def work():
    with ThreadPoolExecutor(1) as pool:
        pool.submit(time.sleep, 60)
        me()
        time.sleep(30)
""",
    "wait for a process": """
import subprocess
def work():
    threading.Timer(0.2, me).start()
    try:
        subprocess.run([sys.executable, "-c", "import time; time.sleep(2)"])
    except Exception:
        pass
    time.sleep(30)
""",
    "exit that takes long": """
import atexit
def work():
    atexit.register(time.sleep, 60)
    me()
    time.sleep(30)
""",
    "thread that does not end": """
def work():
    threading.Thread(target=time.sleep, args=(60,)).start()
    me()
    time.sleep(30)
""",
    "cleaning up that takes long": """
def work():
    try:
        me()
        time.sleep(30)
    finally:
        time.sleep(60)
""",
}


def command(code: str, *arguments: str, **options: object) -> subprocess.Popen[str]:
    started: subprocess.Popen[str] = subprocess.Popen(
        [sys.executable, "-c", PREFIX + code + SUFFIX, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,  # type: ignore[call-overload]
    )
    return started


def check(process: subprocess.Popen[str], number: signal.Signals = signal.SIGINT) -> tuple[str, str]:
    out, err = process.communicate(timeout=60)
    assert process.returncode == CODES[number], err
    assert len(SENTENCES.findall(err)) == 1, err
    assert SENTENCES.match(err.splitlines()[-1])
    assert "Traceback" not in err
    assert "Exception ignored" not in err
    return out, err


@pytest.mark.parametrize("place", SWALLOWED)
def test_a_signal_is_lost_in_no(place: str) -> None:
    began = time.monotonic()
    check(command(SWALLOWED[place]))
    assert time.monotonic() - began < 25


@pytest.mark.parametrize("number", CODES, ids=lambda one: one.name)
def test_each_signal_has_its_code(number: signal.Signals) -> None:
    process = command("def work():\n    ready()\n    time.sleep(30)\n")
    assert process.stderr is not None
    os.read(process.stderr.fileno(), 10)
    process.send_signal(number)
    _, err = check(process, number)
    assert ("Interrupted" in err) is (number == signal.SIGINT)


def test_what_is_saved_is_saved_and_said() -> None:
    code = """
def work():
    stopping.keeps("3 of 7 stages are finished; the same command goes on")
    with stopping.finish_first():
        me(signal.SIGTERM)
        assert stopping.requested() == signal.SIGTERM
        time.sleep(0.2)
        stopping.saved("train similar / plain is saved at step 12")
    time.sleep(30)
"""
    _, err = check(command(code), signal.SIGTERM)
    assert err.splitlines()[-1] == (
        "Stopped by SIGTERM: train similar / plain is saved at step 12, 3 of 7 stages are finished; the same command "
        "goes on."
    )


@pytest.mark.parametrize("inside", ["with stopping.finish_first():", "if True:"])
def test_a_second_signal_ends_it_at_once(inside: str) -> None:
    code = f"""
def work():
    {inside}
        try:
            me(signal.SIGTERM)
            time.sleep(0.1)
            threading.Timer(0.2, me).start()
            time.sleep(30)
        finally:
            me()
            time.sleep(60)
"""
    began = time.monotonic()
    check(command(code), signal.SIGTERM)
    assert time.monotonic() - began < 20


def test_a_signal_ends_what_is_still_done_after_the_sentence() -> None:
    code = """
def work():
    stopping._SECONDS_TO_UNWIND = 60.0
    try:
        me(signal.SIGTERM)
        time.sleep(30)
    finally:
        stopping.say_now()
        me()
        time.sleep(60)
"""
    began = time.monotonic()
    check(command(code), signal.SIGTERM)
    assert time.monotonic() - began < 20


def test_an_interrupt_under_json_is_an_object() -> None:
    out, err = check(command("def work():\n    me()\n    time.sleep(30)\n", "--json"))
    error = json.loads(out)["error"]
    assert error == {"type": "Interrupted", "message": err.splitlines()[-1], "exit_code": 130}


def test_a_forked_process_says_nothing() -> None:
    code = """
import multiprocessing
def child():
    time.sleep(30)
def work():
    worker = multiprocessing.get_context("fork").Process(target=child)
    worker.start()
    ready()
    worker.join()
"""
    process = command(code, start_new_session=True)
    assert process.stderr is not None
    os.read(process.stderr.fileno(), 10)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    check(process)


def test_a_process_under_nohup_outlives_its_terminal() -> None:
    ignore = "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    process = command(ignore + "def work():\n    me(signal.SIGHUP)\n    me()\n    time.sleep(30)\n")
    check(process)


def test_signals_while_the_command_starts_are_answered(tmp_path: Path) -> None:
    """Modules are being imported: an exception in there comes out in many shapes."""
    starts = [sys.executable, "-c", "from lingraft.cli.main import main; main()", "plan", "no.yaml"]
    for delay in (0.0, 0.01, 0.03, 0.06, 0.1, 0.2):
        process = subprocess.Popen(
            starts, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
        )
        while process.poll() is None:  # until its handlers are there: before, Python itself starts
            status = Path(f"/proc/{process.pid}/status").read_text()
            caught = re.search(r"SigCgt:\s*(\w+)", status)
            if caught and int(caught[1], 16) >> (signal.SIGTERM - 1) & 1:
                break
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        if process.poll() is None:
            _, err = process.communicate(timeout=60)
            assert process.returncode in (130, 2), err
            assert len(err.splitlines()) == 1, err
            assert "begins anew" not in err  # who knows what an earlier run kept?


def test_a_reader_who_went_away_is_no_error() -> None:
    lists = f"{sys.executable} -c 'from lingraft.cli.main import main; main()'"
    for arguments in ("ls", "--help", "schema", "ls --json"):
        done = subprocess.run(
            ["bash", "-c", f"{lists} {arguments} | true; echo ${{PIPESTATUS[0]}}"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == "0\n", arguments
        assert done.stderr == "", arguments


@pytest.mark.slow
def test_a_training_is_saved_before_it_stops(tmp_path: Path, tiny_model: Path) -> None:
    study = {
        "name": "mine",
        "phases": [
            {"name": "one", "checkpoint": str(tiny_model)},
            {"name": "two", "data": {"german": {"source": "worldbook:lookup/de", "limit": 60}}},
        ],
        "training": {"tokens_per_batch": 128, "epochs": 100, "save_every": 0},
        "held_out": 2,
        "measures": [],
        "contamination": None,
        "evaluate": {
            "task_ability": [{"task": "worldbook:lookup", "limit": 2, "max_new_tokens": 2}],
            "language_ability": [{"task": "worldbook:lookup", "limit": 2, "max_new_tokens": 2}],
        },
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    short = "from lingraft.cli import log_lines; log_lines.SECONDS_BETWEEN_LINES = 0.1; "
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"{short}from lingraft.cli.main import main; main()",
            "run",
            "study.yaml",
            "--json",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if re.search(r"train .*: step [1-9]", line):
            break
    process.send_signal(signal.SIGTERM)
    out, err = check(process, signal.SIGTERM)
    step = re.search(
        r"training stopped after step (\d+) of \d+, which is saved, 1 of 3 stages are finished; ", err
    )
    assert step is not None, err
    assert list(tmp_path.glob(f"runs/mine/work/train-*/**/checkpoint-{step[1]}"))
    assert json.loads(out)["error"]["exit_code"] == 143
