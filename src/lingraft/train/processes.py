"""Train one phase in this process or on several: torchrun starts `train.worker` once a process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import disk_usage

import torch
from pydantic import TypeAdapter

from lingraft import errors, stopping
from lingraft.errors import ConfigError, DiskError, LingraftError, disk_error
from lingraft.models.workers import worker_count, worker_environment
from lingraft.records import read_json, remove, write_json_atomically
from lingraft.stopping import Stopped
from lingraft.train.checkpoints import FOLDER, make_folder
from lingraft.train.phase import Progress
from lingraft.train.run import PhasePlan, PhaseTask, TrainedPhase, train_task

TASK = "task.json"
OUTCOME = "outcome.json"
FAILURE = "failure.json"
LOG = "workers.log"
SHARDED = "--sharded"
# What marks the workers' lines; libraries print others.
PLAN = "lingraft-plan "
PROGRESS = "lingraft-progress "
NOTE = "lingraft-note "
SAVED = "lingraft-saved "
READY = "lingraft-ready "
TORCHRUN = "LINGRAFT_TORCHRUN"  # the variable in which workers find its id
# A scheduler signals every process. torchrun would kill the workers 30 seconds later, while they save: it hears no
# signal. Its workers inherit that, until they listen themselves.
_TORCHRUN = (
    f"import os, signal; os.environ[{TORCHRUN!r}] = str(os.getpid()); "
    f"signal.pthread_sigmask(signal.SIG_BLOCK, {[int(one) for one in stopping.SIGNALS]}); "
    "from torch.distributed.run import main; main()"
)
_NO_ROOM = 1 << 14  # bytes
_SHOWN_LINES = 20
_SECONDS_BETWEEN_LOOKS = 0.1

_PLANS, _PROGRESS, _TRAINED = TypeAdapter(PhasePlan), TypeAdapter(Progress), TypeAdapter(TrainedPhase)


@dataclass(frozen=True)
class Processes:
    """How many processes train a phase and whether they share its weights between them; how many answer.

    Attributes:
        count: 1: the phase is trained in this process.
        sharded: FSDP2 in place of DistributedDataParallel.
        answering: Processes that evaluate and generate replay, each with a whole model; None: `count`, where that is
            more than 1, else one an accelerator, one without any.
    """

    count: int = 1
    sharded: bool = False
    answering: int | None = None

    @classmethod
    def of(cls, processes: int | None, *, sharded: bool = False) -> Processes:
        """Return what the options `--processes` and `--sharded` mean; None: the first was not given."""
        return cls(1 if processes is None else processes, sharded, processes)

    @property
    def workers(self) -> int:
        """How many processes answer.

        Raises:
            ConfigError: See `worker_count`.
        """
        return worker_count(self.answering or (self.count if self.count > 1 else None))

    def check_each_other(self) -> None:
        """Refuse what cannot run on any machine.

        Raises:
            ConfigError: No process, or one that is to share with nobody.
        """
        if self.count < 1:
            raise ConfigError(f"--processes {self.count}: give at least 1.")
        if self.sharded and self.count == 1:
            raise ConfigError(
                "--sharded divides a model between processes; give --processes 2 or more with it."
            )

    def check(self) -> None:
        """Refuse what cannot run on this machine.

        Raises:
            ConfigError: More processes than accelerators, none, or one that is to share with nobody.
        """
        self.check_each_other()
        devices = torch.accelerator.device_count() if torch.accelerator.is_available() else None
        if devices is not None and self.count > devices:
            raise ConfigError(
                f"--processes {self.count}: there are {devices} accelerators, and each trains one."
            )
        worker_count(self.answering)


def train_on(
    processes: Processes,
    task: PhaseTask,
    *,
    on_plan: Callable[[PhasePlan], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> TrainedPhase:
    """Train a phase and write its checkpoint, in this process or on several of this machine.

    A signal is handed on to several: they finish the step, save it together and end.

    Args:
        processes: How many; whatever happens, those that this function starts end with it.
        task: The phase.
        on_plan: Called once, before training.
        on_progress: Called after every optimiser step.
        on_note: Called with a sentence about resumable checkpoints.

    Raises:
        Stopped: A signal asked for it.
        LingraftError: What `train_task` raises here or in a worker, or the last lines that the workers printed where
            they died.
    """
    if processes.count == 1:
        return train_task(task, on_plan=on_plan, on_progress=on_progress, on_note=on_note)
    folder = task.folder / FOLDER
    make_folder(folder)
    for left in (TASK, LOG, OUTCOME, FAILURE):  # whatever they are: a pipe would be waited for
        remove(folder / left)
    write_json_atomically(folder / TASK, task.model_dump(mode="json"))
    # Safe paths: a file of the user's folder must not stand in for a library, nor be run.
    torchrun = (sys.executable, "-P", "-c", _TORCHRUN, "--standalone")
    worker = ("-m", "lingraft.train.worker", str(folder / TASK), str(os.getpid()))
    environment = {**worker_environment(processes.count), "TORCH_CPP_LOG_LEVEL": "ERROR"}
    log = folder / LOG
    workers: list[int] = []
    with (
        stopping.finish_first(),
        log.open("wb") as errors_go_here,
        subprocess.Popen(
            [*torchrun, f"--nproc-per-node={processes.count}", *worker, *([SHARDED] * processes.sharded)],
            stdout=subprocess.PIPE,
            stderr=errors_go_here,
            text=True,
            env=environment,
            start_new_session=True,  # a terminal's Ctrl-C reaches this process alone, which hands it on
        ) as running,
        _signals_handed_on(running, workers),
    ):
        assert running.stdout is not None
        for line in running.stdout:
            if line.startswith(READY):
                workers.append(int(line.removeprefix(READY)))
            if line.startswith(PLAN) and on_plan is not None:
                on_plan(_PLANS.validate_json(line.removeprefix(PLAN)))
            if line.startswith(PROGRESS) and on_progress is not None:
                on_progress(_PROGRESS.validate_json(line.removeprefix(PROGRESS)))
            if line.startswith(NOTE) and on_note is not None:
                on_note(json.loads(line.removeprefix(NOTE)))
            if line.startswith(SAVED):
                what, number = json.loads(line.removeprefix(SAVED))
                stopping.saved(what)
                stopping.request(number)  # it may have come to a worker alone
                raise Stopped(number)  # the workers have nothing more to do, and need not take their time
    if not (folder / OUTCOME).exists():
        if not (folder / FAILURE).exists():
            if disk_usage(folder).free < _NO_ROOM:  # for the file that would say so
                raise DiskError(
                    f"{folder}: the disk is full: free some space, and run the same command again."
                )
            last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_SHOWN_LINES:]
            raise LingraftError("the training processes ended without a result:\n" + "\n".join(last))
        failure = read_json(folder / FAILURE)
        error: LingraftError = getattr(errors, failure["kind"], LingraftError)(failure["message"])
        raise error
    trained: TrainedPhase = _TRAINED.validate_python(read_json(folder / OUTCOME))
    return trained


@contextmanager
def _signals_handed_on(torchrun: subprocess.Popen[str], workers: list[int]) -> Iterator[None]:
    """Send a signal that this process gets to the workers that are there, once; leave no process behind on an error.

    Args:
        torchrun: Leads a process group of its own, and so does each worker.
        workers: The ids of those that can be asked to stop; it grows. While there are none, nothing is to be saved.
    """

    def send(number: int) -> None:
        for process in workers:
            with suppress(ProcessLookupError):
                os.kill(process, number)

    def end() -> None:
        with suppress(ProcessLookupError):
            os.killpg(torchrun.pid, signal.SIGKILL)  # workers that have not reported yet end with it
        send(signal.SIGKILL)

    def hand_on() -> None:
        while not done.wait(_SECONDS_BETWEEN_LOOKS):
            number = stopping.requested()
            if number is not None:
                send(number) if workers else end()
                return

    done = threading.Event()
    waiting = threading.Thread(target=hand_on, daemon=True)
    waiting.start()
    try:
        yield
    except BaseException:  # a second signal, or what a callback raised
        end()
        raise
    finally:
        done.set()
        waiting.join()


def print_ready() -> None:
    """Send the launcher the id of a process that it may ask to stop."""
    print(f"{READY}{os.getpid()}", flush=True)


def print_saved(number: int) -> None:
    """Send the launcher what all processes have saved together, and the number of the signal that stopped them."""
    print(SAVED + json.dumps([stopping.was_saved(), number]), flush=True)


def print_note(sentence: str) -> None:
    """Send the launcher what happened to resumable checkpoints."""
    print(NOTE + json.dumps(sentence), flush=True)


def print_plan(plan: PhasePlan) -> None:
    """Send the launcher what trains."""
    print(PLAN + _PLANS.dump_json(plan).decode(), flush=True)


def print_progress(progress: Progress) -> None:
    """Send the launcher where the phase stands."""
    print(PROGRESS + _PROGRESS.dump_json(progress).decode(), flush=True)


def write_outcome(folder: Path, trained: TrainedPhase) -> None:
    """Leave the launcher what the phase did; written last."""
    write_json_atomically(folder / FOLDER / OUTCOME, _TRAINED.dump_python(trained, mode="json"))


def write_failure(folder: Path, error: Exception) -> None:
    """Leave the launcher why a worker gave up; the first one knows, the others lost their connection to it."""
    path = folder / FOLDER / FAILURE
    if path.exists():
        return
    error = disk_error(error, folder) or error  # which stops the study, not this cell alone
    is_ours = isinstance(error, LingraftError)
    message = str(error) if is_ours else f"a training process failed with {type(error).__name__}: {error}"
    write_json_atomically(path, {"kind": type(error).__name__, "message": message})
