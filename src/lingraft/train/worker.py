"""One of several training processes: `torchrun ... -m lingraft.train.worker TASK.json LAUNCHER [--sharded]`.

Every process loads the model and trains its share of each batch; the first writes the checkpoint and the outcome.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

from lingraft import stopping
from lingraft.errors import LingraftError
from lingraft.records import read_json
from lingraft.stopping import Stopped
from lingraft.train.nodes import SHARDED, TORCHRUN
from lingraft.train.processes import (
    print_note,
    print_plan,
    print_progress,
    print_ready,
    print_saved,
    write_failure,
    write_outcome,
)
from lingraft.train.run import PhaseTask, train_task

_SECONDS_BETWEEN_LOOKS = 1.0


def main() -> None:
    """Read the task named on the command line and train it."""
    path, launcher, *sharded = sys.argv[1:]
    task = PhaseTask.model_validate(read_json(Path(path)))

    torchrun = int(os.environ[TORCHRUN])  # it may be gone already, and another process be the parent

    def end_with_the_launcher() -> None:  # which cannot send word when it is killed; nor can torchrun
        while os.getppid() == torchrun and (
            Path(f"/proc/{launcher}").exists() or not Path("/proc/self").exists()
        ):
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        os._exit(1)

    threading.Thread(target=end_with_the_launcher, daemon=True).start()
    # A signal may come twice, from whoever signals a whole group and from the launcher: only the launcher, by killing,
    # decides that nothing is saved any more.
    asked: list[int] = []
    for number in stopping.SIGNALS:
        signal.signal(number, lambda number, _: asked.append(number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, stopping.SIGNALS)  # blocked in torchrun
    print_ready()
    rank = int(os.environ["RANK"])
    try:
        trained = train_task(
            task,
            rank=rank,
            sharded=sharded == [SHARDED],
            on_plan=print_plan,
            on_progress=print_progress,
            on_note=print_note,
            stop=lambda: asked[0] if asked else None,
        )
    except Stopped as stopped:
        if rank == 0:
            print_saved(stopped.number)
        return
    except LingraftError as error:
        write_failure(task.folder, error)
        sys.exit(1)
    except Exception as error:  # its stack goes into the log
        write_failure(task.folder, error)
        raise
    if rank == 0:
        write_outcome(task.folder, trained)


if __name__ == "__main__":
    main()
