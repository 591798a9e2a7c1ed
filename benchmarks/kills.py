"""Do signals at random instants of a small study lose anything?

    python benchmarks/kills.py --kill 100 --int 100 --term 50 --seed 0

A run of the study gets one signal at a random instant, and is started again until it is finished; then the next study
begins. After every signal: the exit code is 137, 130 or 143; SIGINT (sent to the process group, as a terminal does)
and SIGTERM are answered by exactly one sentence, the last line, and by no traceback; no stage that was finished
before is made again. Every finished run folder has the records, byte for byte, of one that was never disturbed.
Prints a table (each signal on stderr), and exits with 1 where any of it does not hold. Instants lie between the
moment at which the command takes signals (of SIGKILL: its start) and the time that an undisturbed run takes.

    python benchmarks/kills.py --workers 2 --kill 100

With `--workers` every signal is a SIGKILL of one process at random: one that makes a stage, another that the command
has started, or (one in seven) the command itself, which is then started again. The records are those of an undisturbed
run without workers; beside what is finished, nothing is made twice but what the killed process had under way.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil
from forked_study import fork_workers, preload
from tiny_study import NAME, make_study, records, start

from lingraft.study.event_log import attempt_so_far, attempts_of
from lingraft.study.failures import failed_attempts

_SENTENCE = re.compile(r"^(Interrupted|Stopped by SIGTERM): .*\.$", re.MULTILINE)
_CODES = {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}  # a shell shows -9 as 137
_LONGEST_SECONDS = 300
_SECONDS_TO_END = 15.0  # of processes whose command was killed
_SHARE_OF_DRIVERS = 0.15
_Begin = Callable[..., "subprocess.Popen[str] | _Forked"]
_LAST_LINE = "Report: "  # of the result


def main() -> int:
    """Return 0 where nothing was lost."""
    asked = _asked()
    if asked.workers:
        begin = _Forked if asked.forked else start
        return _kill_of_workers(asked.workers, asked.kill, random.Random(asked.seed), begin)
    signals = [signal.SIGKILL] * asked.kill + [signal.SIGINT] * asked.int + [signal.SIGTERM] * asked.term
    chance = random.Random(asked.seed)
    chance.shuffle(signals)

    if asked.forked:
        preload()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        study = make_study(folder)
        began = time.monotonic()
        begin = _Forked if asked.forked else start
        with (folder / "stdout").open("w") as stdout:
            straight = begin(study, folder / "straight", stdout=stdout)
        _until_it_takes_signals(straight)
        start_up = time.monotonic() - began
        _, said = straight.communicate(timeout=_LONGEST_SECONDS)
        seconds = time.monotonic() - began
        if straight.returncode != 0:
            sys.exit(f"the undisturbed run fails:\n{said}")
        expected = records(folder / "straight")
        print(
            f"{len(expected)} stages, {seconds:.1f} s undisturbed, {start_up:.2f} s until signals are taken",
            flush=True,  # before it is forked
        )

        sent = dict.fromkeys(_CODES, 0)
        over = dict.fromkeys(_CODES, 0)  # the command was over before the signal came
        waits: dict[int, list[float]] = {number: [] for number in _CODES}
        finished_runs, problems = 0, []
        runs = folder / "runs"
        before: dict[str, tuple[int, int]] = {}
        while signals or before:  # the last study is finished, too
            number = signals[-1] if signals else None
            result = folder / "stdout"
            with result.open("w") as stdout:
                running = begin(study, runs, stdout=stdout)
            if number != signal.SIGKILL:
                _until_it_takes_signals(running)
            if number is not None:
                time.sleep(chance.uniform(0, seconds))
                is_over, sent_at = _send(number, running, result), time.monotonic()
            _, said = running.communicate(timeout=_LONGEST_SECONDS)
            code = running.returncode or 0
            where = f"{'no signal' if number is None else signal.Signals(number).name}, {sum(sent.values())}"
            problems += [
                f"{where}: {name} was made again"
                for name, marks in _marks(runs).items()
                if name in before and before[name] != marks
            ]
            problems += [f"{where}: {name} is gone" for name in before.keys() - _marks(runs).keys()]
            before = _marks(runs)
            print(
                f"{where}: exit code {code}, {len(before)} stages, {len(problems)} problems", file=sys.stderr
            )
            if number is not None and code != 0:
                sent[number] += 1
                signals.pop()
                waits[number].append(time.monotonic() - sent_at)
                problems += [f"{where}: {one}" for one in _problems(number, code, said)]
            elif code != 0:
                sys.exit(f"{where}: the run fails with {running.returncode}:\n{said}")
            else:
                if number is not None:
                    over[number] += 1
                    if not is_over:
                        problems.append(f"{where}: the signal was lost")
                finished_runs += 1
                if records(runs) != expected:
                    problems.append(f"{where}: the records differ from those of an undisturbed run")
                runs, before = folder / f"runs-{finished_runs}", {}

    print("| signal | sent | in time | longest wait, s |\n| --- | ---: | ---: | ---: |")
    for number in _CODES:
        longest = max(waits[number], default=0.0)
        print(
            f"| {signal.Signals(number).name} | {sent[number] + over[number]} | {sent[number]} | {longest:.1f} |"
        )
    print(f"{finished_runs} studies were finished, {len(problems)} problems.")
    for problem in problems:
        print(problem)
    return 1 if problems else 0


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kill", type=int, default=100, help="SIGKILLs to send.")
    parser.add_argument("--int", type=int, default=100, help="SIGINTs to send.")
    parser.add_argument("--term", type=int, default=50, help="SIGTERMs to send.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0, help="Kill processes of a study made by so many.")
    parser.add_argument(
        "--forked",
        action="store_true",
        help="Load the libraries once and fork the command: quicker, but no signal meets an import or Python's exit.",
    )
    return parser.parse_args()


@dataclass
class _Killed:
    """What was killed of one study until it was finished.

    Attributes:
        kinds: How many processes of each kind.
        under_way: By stage, how often whoever made it was killed.
        processes: All that were seen.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    under_way: Counter[str] = field(default_factory=Counter)
    processes: set[psutil.Process] = field(default_factory=set)


def _kill_of_workers(workers: int, kills: int, chance: random.Random, begin: _Begin) -> int:
    """Kill processes of studies that several workers make; return 0 where nothing was lost or made twice."""
    if begin is _Forked:
        preload()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        study = make_study(folder)
        _until_finished(begin, study, folder / "straight")
        expected = records(folder / "straight")
        options = ("--workers", str(workers), "--retries", str(kills))
        began = time.monotonic()
        _until_finished(begin, study, folder / "undisturbed", *options)
        seconds = time.monotonic() - began
        problems = [f"undisturbed: {one}" for one in _lost(folder / "undisturbed", expected, _Killed())]
        print(f"{len(expected)} stages, {seconds:.1f} s undisturbed with {workers} workers", flush=True)

        every: Counter[str] = Counter()
        made_again, studies = 0, 0
        while every.total() < kills:
            runs, killed = folder / f"runs-{studies}", _Killed()
            _kill_until_finished(
                begin, study, runs, options, kills - every.total(), seconds, killed, problems, chance
            )
            problems += _lost(runs, expected, killed)
            made_again += sum(len(attempts_of(runs / NAME, name)) - 1 for name in expected)
            every += killed.kinds
            studies += 1
            print(
                f"study {studies}: {every.total()} kills so far, {len(problems)} problems",
                file=sys.stderr,
                flush=True,
            )
    print("| killed | times |\n| --- | ---: |")
    for kind, times in every.most_common():
        print(f"| {kind} | {times} |")
    print(
        f"{studies} studies were finished, {made_again} attempts at stages begun again, {len(problems)} problems."
    )
    for problem in problems:
        print(problem)
    return 1 if problems else 0


def _kill_until_finished(
    begin: _Begin,
    study: Path,
    runs: Path,
    options: tuple[str, ...],
    kills: int,
    seconds: float,
    killed: _Killed,
    problems: list[str],
    chance: random.Random,
) -> None:
    """Run a study until it is finished, and kill a process every now and then, so often at most."""
    while True:
        with (runs.parent / "said").open("w") as output:
            running = begin(study, runs, *options, stdout=output)
        is_driver = False
        while not is_driver and killed.kinds.total() < kills:
            time.sleep(chance.uniform(0, seconds / 4))
            if running.poll() is not None:
                break
            before = _marks(runs)
            driver = psutil.Process(running.pid)
            others = [one for one in driver.children(recursive=True) if one.is_running()]
            killed.processes |= {driver, *others}
            makers = [
                one
                for one in others
                if "lingraft.study.pool_worker" in _command(one)
                or _command(one) == _command(psutil.Process())
            ]
            is_driver = chance.random() < _SHARE_OF_DRIVERS
            if not (is_driver or others):  # it has started none yet
                continue
            victim = driver if is_driver else chance.choice(makers or others)
            kind = "the command" if is_driver else "a worker" if victim in makers else "another process"
            try:
                victim.kill()
            except psutil.NoSuchProcess:
                continue
            killed.kinds[kind] += 1
            run = runs / NAME
            for name in _unfinished(run):
                at_work = attempt_so_far(run, name, max(attempts_of(run, name)))
                if is_driver or at_work is None or at_work.process == victim.pid:
                    killed.under_way[name] += 1
            where = f"{kind}, kill {killed.kinds.total()}"
            after = _marks(runs)
            problems += [f"{where}: {name} is gone" for name in before.keys() - after.keys()]
            problems += [
                f"{where}: {name} was made again"
                for name, mark in before.items()
                if after.get(name, mark) != mark
            ]
        _, said = running.communicate(timeout=_LONGEST_SECONDS)
        if running.returncode == 0:
            return
        if running.returncode != -signal.SIGKILL:
            sys.exit(f"the run fails with {running.returncode}:\n{said}")


def _lost(runs: Path, expected: dict[str, bytes], killed: _Killed) -> list[str]:
    """Return what is wrong with a study that was finished."""
    run = runs / NAME
    found = []
    if records(runs) != expected:
        found.append("the records differ from those of an undisturbed run without workers")
    for name in expected:
        attempts = len(attempts_of(run, name))
        if attempts > 1 + killed.under_way[name]:
            found.append(f"{name}: {attempts} attempts, though {killed.under_way[name]} were killed")
    found += [f"{one} is left" for one in sorted((run / "work").glob("*"))]
    found += [f"{one} is left" for one in sorted(run.rglob("*.part"))]
    found += [
        f"{one.stage}: failed: {one.reason}" for one in failed_attempts(run) if "SIGKILL" not in one.reason
    ]
    _, alive = psutil.wait_procs(killed.processes, timeout=_SECONDS_TO_END)
    found += [f"process {one.pid} is left: {' '.join(_command(one))}" for one in alive]
    return found


def _unfinished(run: Path) -> list[str]:
    """Return the stages that somebody has begun to make and nobody has finished."""
    begun = [path.name for path in (run / "logs").glob("*") if attempts_of(run, path.name)]
    return [name for name in begun if not (run / "stages" / name / "record.json").exists()]


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def _until_finished(begin: _Begin, study: Path, runs: Path, *options: str) -> None:
    with (runs.parent / "said").open("w") as output:
        running = begin(study, runs, *options, stdout=output)
    _, said = running.communicate(timeout=_LONGEST_SECONDS)
    if running.returncode != 0:
        sys.exit(f"the undisturbed run fails:\n{said}")


def _send(number: int, running: subprocess.Popen[str] | _Forked, result: Path) -> bool:
    """Send a signal, and return whether the command had printed its result by then: it only has to leave."""
    if running.poll() is not None:
        return True
    send = os.killpg if number == signal.SIGINT else os.kill
    send(running.pid, number)  # not waited for yet: the process is there
    return _LAST_LINE in result.read_text()


class _Forked:
    """A command in a process that was forked from this one; as much of `subprocess.Popen` as is used here."""

    def __init__(self, study: Path, runs: Path, *options: str, stdout: IO[str]) -> None:
        self.returncode: int | None = None
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with this object)
        self.pid = os.fork()
        if self.pid:
            return
        code = 70
        try:
            os.setsid()
            os.dup2(stdout.fileno(), 1)
            os.dup2(self._said.fileno(), 2)
            sys.argv = ["lingraft", "run", str(study), "--runs", str(runs), *options]
            if "--workers" in options:
                fork_workers()
            from lingraft.cli.main import main as run

            run()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 70
        finally:
            os._exit(code)

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        if self.returncode is None:
            process, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if process else None
        return self.returncode

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Wait for its end, and return what it wrote on stdout (nothing: it is in a file) and stderr."""
        until = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > until:
                os.killpg(self.pid, signal.SIGKILL)
                raise TimeoutError(f"the command went on for {timeout} s")
            time.sleep(0.005)
        self._said.seek(0)
        return "", self._said.read()


def _problems(number: int, code: int, said: str) -> list[str]:
    """Return what is wrong with the end of a command that got a signal."""
    found = [] if code == _CODES[signal.Signals(number)] else [f"exit code {code}"]
    if number == signal.SIGKILL:
        return found
    sentences = len(_SENTENCE.findall(said))
    if sentences != 1:
        found.append(f"{sentences} sentences: {said[-2000:]!r}")
    elif not _SENTENCE.match(said.rstrip("\n").rpartition("\n")[2]):
        found.append(f"the sentence is not the last line: {said[-500:]!r}")
    if "Traceback" in said or "Exception ignored" in said:
        found.append(f"a traceback: {said[-2000:]!r}")
    return found


def _marks(runs: Path) -> dict[str, tuple[int, int]]:
    """Return of every finished stage what changes when it is made again: the place and time of a file on the disk.

    It is that of its times: the record is written once more when artefacts are discarded.
    """
    found = {}
    for path in (runs / NAME / "stages").glob("*/record.json"):
        about = path.with_name("timing.json").stat()
        found[path.parent.name] = (about.st_ino, about.st_mtime_ns)
    return found


def _until_it_takes_signals(running: subprocess.Popen[str] | _Forked) -> None:
    """Wait until the command's handlers are in place: before, Python itself starts, and answers as it does."""
    bit = 1 << (signal.SIGTERM - 1)
    while running.poll() is None:
        caught = re.search(r"^SigCgt:\s*(\w+)", Path(f"/proc/{running.pid}/status").read_text(), re.MULTILINE)
        if caught and int(caught[1], 16) & bit:
            return
        time.sleep(0.002)


if __name__ == "__main__":
    sys.exit(main())
