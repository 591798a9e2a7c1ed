"""Train one phase in this process or on several: torchrun starts `train.worker` once a process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter

from lingraft import errors
from lingraft.errors import ConfigError, LingraftError
from lingraft.records import read_json, write_json_atomically
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
_SHOWN_LINES = 20

_PLANS, _PROGRESS, _TRAINED = TypeAdapter(PhasePlan), TypeAdapter(Progress), TypeAdapter(TrainedPhase)


@dataclass(frozen=True)
class Processes:
    """How many processes train a phase, and whether they share its weights between them.

    Attributes:
        count: 1: the phase is trained in this process.
        sharded: FSDP2 in place of DistributedDataParallel.
    """

    count: int = 1
    sharded: bool = False

    def check(self) -> None:
        """Refuse what cannot run.

        Raises:
            ConfigError: More processes than accelerators, none, or one that is to share with nobody.
        """
        if self.count < 1:
            raise ConfigError(f"--processes {self.count}: give at least 1.")
        if self.sharded and self.count == 1:
            raise ConfigError(
                "--sharded divides a model between processes; give --processes 2 or more with it."
            )
        devices = torch.accelerator.device_count() if torch.accelerator.is_available() else None
        if devices is not None and self.count > devices:
            raise ConfigError(
                f"--processes {self.count}: there are {devices} accelerators, and each trains one."
            )


def train_on(
    processes: Processes,
    task: PhaseTask,
    *,
    on_plan: Callable[[PhasePlan], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> TrainedPhase:
    """Train a phase and write its checkpoint, in this process or on several of this machine.

    Args:
        processes: How many; whatever happens, those that this function starts end with it.
        task: The phase.
        on_plan: Called once, before training.
        on_progress: Called after every optimiser step.

    Raises:
        LingraftError: What `train_task` raises here or in a worker, or the last lines that the workers printed where
            they died.
    """
    if processes.count == 1:
        return train_task(task, on_plan=on_plan, on_progress=on_progress)
    task.folder.mkdir(parents=True, exist_ok=True)
    for left in (OUTCOME, FAILURE):
        (task.folder / left).unlink(missing_ok=True)
    write_json_atomically(task.folder / TASK, task.model_dump(mode="json"))
    # Safe paths: a file of the user's folder must not stand in for a library, nor be run.
    torchrun = (sys.executable, "-P", "-m", "torch.distributed.run", "--standalone")
    worker = ("-m", "lingraft.train.worker", str(task.folder / TASK), str(os.getpid()))
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS")
        or str(max(1, torch.get_num_threads() // processes.count)),
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "PYTHONSAFEPATH": "1",
    }
    log = task.folder / LOG
    with (
        log.open("wb") as errors_go_here,
        subprocess.Popen(
            [*torchrun, f"--nproc-per-node={processes.count}", *worker, *([SHARDED] * processes.sharded)],
            stdout=subprocess.PIPE,
            stderr=errors_go_here,
            text=True,
            env=environment,
        ) as running,
    ):
        assert running.stdout is not None
        try:
            for line in running.stdout:
                if line.startswith(PLAN) and on_plan is not None:
                    on_plan(_PLANS.validate_json(line.removeprefix(PLAN)))
                if line.startswith(PROGRESS) and on_progress is not None:
                    on_progress(_PROGRESS.validate_json(line.removeprefix(PROGRESS)))
        except BaseException:
            running.terminate()  # torchrun hands it on to the workers
            running.wait()  # leaving the block after an interrupt would not
            raise
    if not (task.folder / OUTCOME).exists():
        if not (task.folder / FAILURE).exists():
            last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_SHOWN_LINES:]
            raise LingraftError("the training processes ended without a result:\n" + "\n".join(last))
        failure = read_json(task.folder / FAILURE)
        error: LingraftError = getattr(errors, failure["kind"], LingraftError)(failure["message"])
        raise error
    trained = _TRAINED.validate_python(read_json(task.folder / OUTCOME))
    for done in (OUTCOME, TASK, FAILURE, LOG):
        (task.folder / done).unlink(missing_ok=True)
    return trained


def print_plan(plan: PhasePlan) -> None:
    """Send the launcher what trains."""
    print(PLAN + _PLANS.dump_json(plan).decode(), flush=True)


def print_progress(progress: Progress) -> None:
    """Send the launcher where the phase stands."""
    print(PROGRESS + _PROGRESS.dump_json(progress).decode(), flush=True)


def write_outcome(folder: Path, trained: TrainedPhase) -> None:
    """Leave the launcher what the phase did; written last."""
    write_json_atomically(folder / OUTCOME, _TRAINED.dump_python(trained, mode="json"))


def write_failure(folder: Path, error: Exception) -> None:
    """Leave the launcher why a worker gave up; the first one knows, the others lost their connection to it."""
    if (folder / FAILURE).exists():
        return
    is_ours = isinstance(error, LingraftError)
    message = str(error) if is_ours else f"a training process failed with {type(error).__name__}: {error}"
    write_json_atomically(folder / FAILURE, {"kind": type(error).__name__, "message": message})
