"""One process of a group: trains tasks one after the other and leaves their losses: `TASKS.json [--sharded]`."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

from accelerate.state import AcceleratorState

from lingraft.records import read_json, write_json_atomically
from lingraft.train.run import PhaseTask, train_task

path, *sharded = sys.argv[1:]
rank = int(os.environ["RANK"])
for name, written in read_json(Path(path)).items():
    AcceleratorState._reset_state()
    task = PhaseTask.model_validate(written)
    task.folder.mkdir(parents=True, exist_ok=True)
    try:
        trained = train_task(task, rank=rank, sharded=bool(sharded))
    except Exception:
        sys.stderr.write(f"{name}:\n{traceback.format_exc()}")
        sys.stderr.flush()
        os._exit(1)  # at once: others wait for it
    if rank == 0:
        write_json_atomically(task.folder / "losses.json", trained.outcome.losses)
