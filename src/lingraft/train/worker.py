"""One of several training processes: `torchrun --nproc-per-node=N -m lingraft.train.worker TASK.json`.

Every process loads the model and trains its share of each batch; the first writes the checkpoint and the outcome.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

from lingraft.data.encoded import EncodedTable
from lingraft.errors import LingraftError
from lingraft.models.checkpoints import save_checkpoint
from lingraft.models.compute import compute_for
from lingraft.models.loading import load_model, load_tokenizer
from lingraft.records import read_json
from lingraft.strategies.base import Context
from lingraft.strategies.composition import build
from lingraft.train.phase import Progress, train_phase
from lingraft.train.processes import PROGRESS, PhaseTask, write_failure, write_outcome
from lingraft.train.sharding import set_weights, whole_weights

_SECONDS_BETWEEN_LOOKS = 1.0


def train(task: PhaseTask) -> None:
    """Train the task's phase as one of torchrun's processes."""
    composition = build(task.choice)
    context = Context(
        base=task.base,
        previous=task.parent,
        previous_data=(),
        english=(),
        seed=task.seed,
        folder=task.folder,
        cache=task.folder,
        states=task.states,
        trust_remote_code=task.trust_remote_code,
        compute=compute_for(task.training.precision),
    )
    tokenizer = load_tokenizer(task.parent, trust_remote_code=task.trust_remote_code)
    model = composition.wrap(load_model(task.parent, trust_remote_code=task.trust_remote_code), context)
    outcome = train_phase(
        model,
        tokenizer,
        EncodedTable.open(task.encoded),
        task.training,
        trainable=task.trainable,
        folder=task.folder,
        seed=task.seed,
        on_progress=_print,
        sharded=task.sharded,
        rules=composition.rules(model, context),
    )
    weights = whole_weights(model, task.trainable) if task.sharded else None
    if int(os.environ["RANK"]) != 0:
        return
    if weights is not None:  # the sharded model is in pieces: its weights go into a whole one
        model = composition.wrap(load_model(task.parent, trust_remote_code=task.trust_remote_code), context)
        set_weights(model, weights)
    save_checkpoint(composition.finish(model, task.folder), tokenizer, task.checkpoint)
    write_outcome(task.folder, outcome)


def _print(progress: Progress) -> None:
    print(PROGRESS + json.dumps(asdict(progress)), flush=True)


def _end_with(launcher: int) -> None:
    """End this process soon after the launcher is gone, which cannot tell us when it is killed."""
    while Path(f"/proc/{launcher}").exists() or not Path("/proc/self").exists():
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    os._exit(1)


def main() -> None:
    """Read the task named on the command line and train it."""
    task = PhaseTask.model_validate(read_json(Path(sys.argv[1])))
    threading.Thread(target=_end_with, args=(task.launcher,), daemon=True).start()
    try:
        train(task)
    except LingraftError as error:
        write_failure(task.folder, error)
        sys.exit(1)
    except Exception as error:  # its stack goes into the log
        write_failure(task.folder, error)
        raise


if __name__ == "__main__":
    main()
