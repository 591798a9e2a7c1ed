"""Train one phase on several processes: torchrun starts `train.worker` once a process, this module watches them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from lingraft import errors
from lingraft.config.schema import StrategyChoice, Training
from lingraft.errors import ConfigError, LingraftError
from lingraft.records import read_json, write_json_atomically
from lingraft.train.phase import PhaseOutcome, Progress

TASK = "task.json"
OUTCOME = "outcome.json"
FAILURE = "failure.json"
PROGRESS = "lingraft-progress "  # marks the workers' lines; libraries print others
_SHOWN_LINES = 20


class PhaseTask(BaseModel):
    """What the processes need to train a phase; paths are absolute."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    parent: Path
    """Checkpoint folder that training starts from."""
    base: Path | None
    """Checkpoint folder of the base, if a strategy needs it."""
    choice: StrategyChoice
    """The strategies; a worker calls their `wrap` and asks for their rules."""
    states: dict[str, Path]
    """Folders that strategies prepared, by kind."""
    trainable: tuple[str, ...]
    """Names of the parameters that train, of the wrapped model."""
    training: Training
    """Resolved options, the precision included: every process must compute in the same."""
    encoded: Path
    """Folder of the table of encoded examples."""
    folder: Path
    """The stage's folder."""
    checkpoint: Path
    """Where the trained model goes."""
    seed: int
    """The cell's seed."""
    sharded: bool
    """Whether parameters, gradients and optimiser states are divided between the processes (FSDP2)."""
    trust_remote_code: bool
    """As in the study."""
    launcher: int
    """Id of the process that waits for the workers; they end when it is gone."""


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


def train_on_processes(
    task: PhaseTask, processes: int, on_progress: Callable[[Progress], None] | None = None
) -> PhaseOutcome:
    """Train a phase on this machine's processes and write its checkpoint.

    Args:
        task: The phase.
        processes: How many.
        on_progress: Called after every optimiser step.

    Raises:
        LingraftError: What a worker raised, or the last lines that the workers printed where they died.
    """
    task.folder.mkdir(parents=True, exist_ok=True)
    for left in (OUTCOME, FAILURE):
        (task.folder / left).unlink(missing_ok=True)
    write_json_atomically(task.folder / TASK, task.model_dump(mode="json"))
    log = task.folder / "workers.log"
    with log.open("wb") as errors_go_here, _torchrun(task, processes, errors_go_here) as lines:
        for line in lines:
            if line.startswith(PROGRESS) and on_progress is not None:
                on_progress(Progress(**json.loads(line.removeprefix(PROGRESS))))
    outcome = task.folder / OUTCOME
    if not outcome.exists():
        raise _failure(task.folder, log)
    found = read_json(outcome)
    for done in (OUTCOME, TASK, FAILURE, log.name):
        (task.folder / done).unlink(missing_ok=True)
    return PhaseOutcome(**{**found, "losses": tuple((step, loss) for step, loss in found["losses"])})


def write_outcome(folder: Path, outcome: PhaseOutcome) -> None:
    """Tell the launcher what the phase did; written last."""
    write_json_atomically(folder / OUTCOME, asdict(outcome))


def write_failure(folder: Path, error: Exception) -> None:
    """Tell the launcher why a worker gave up; the first one knows, the others lost their connection to it."""
    if (folder / FAILURE).exists():
        return
    is_ours = isinstance(error, LingraftError)
    message = str(error) if is_ours else f"a training process failed with {type(error).__name__}: {error}"
    write_json_atomically(folder / FAILURE, {"kind": type(error).__name__, "message": message})


@contextmanager
def _torchrun(task: PhaseTask, processes: int, log: Any) -> Iterator[Iterator[str]]:
    """Run the workers and yield the lines that they print; whatever happens inside, they end with the block."""
    # Safe paths: a file of the user's folder must not stand in for a library, nor be run.
    command = [
        sys.executable,
        "-P",
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
    ]
    command += ["-m", "lingraft.train.worker", str(task.folder / TASK)]
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, torch.get_num_threads() // processes))
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": threads,
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "PYTHONSAFEPATH": "1",
    }
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
    assert running.stdout is not None
    try:
        yield iter(running.stdout)
        running.wait()
    finally:
        if running.poll() is None:
            running.terminate()  # torchrun hands it on to the workers
            running.wait()
        running.stdout.close()


def _failure(folder: Path, log: Path) -> LingraftError:
    try:
        found = read_json(folder / FAILURE)
    except FileNotFoundError:
        last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_SHOWN_LINES:]
        return LingraftError("the training processes ended without a result:\n" + "\n".join(last))
    kind = getattr(errors, found["kind"], LingraftError)
    error: LingraftError = kind(found["message"])
    return error
