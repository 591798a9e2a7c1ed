"""One process of a gloo group, which `test_sharding.py` starts: trains tasks and writes what it saw of each.

RANK=0 WORLD_SIZE=2 ... python sharded_group.py TASKS.json RESULTS
"""

from __future__ import annotations

import gc
import itertools
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from transformers import modeling_utils

from lingraft.models import fused_loss
from lingraft.records import read_json, write_json_atomically
from lingraft.stopping import Stopped
from lingraft.train.run import PhaseTask, train_task

RANK = int(os.environ["RANK"])


def live_bytes() -> int:
    """Return the bytes of all tensors' memory in this process."""
    found: dict[int, int] = {}
    for one in gc.get_objects():
        if type(one) in (torch.Tensor, torch.nn.Parameter) and one.device.type == "cpu":
            storage = one.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


@contextmanager
def watched(seen: dict[str, Any], *, measured: bool) -> Iterator[None]:
    """Note which files of weights are opened and, where asked, what tensors take whenever one is sent."""
    seen |= {"opened": [], "most": 0}
    gc.collect()
    begin = live_bytes()
    places: list[tuple[Any, str, Any]] = [
        (safetensors, "safe_open", safetensors.safe_open),
        (modeling_utils, "safe_open", safetensors.safe_open),
        (dist, "broadcast", dist.broadcast),
    ]

    def opening(*arguments: Any, **options: Any) -> Any:
        seen["opened"].append(str(arguments[0] if arguments else options["filename"]))
        return places[0][2](*arguments, **options)

    def sending(*arguments: Any, **options: Any) -> Any:
        if measured:
            seen["most"] = max(seen["most"], live_bytes() - begin)
        return places[2][2](*arguments, **options)

    for place, name, own in places:
        setattr(place, name, sending if own is places[2][2] else opening)
    try:
        yield
    finally:
        for place, name, own in places:
            setattr(place, name, own)


def stop_after(steps: int | None) -> Callable[[], int | None]:
    """Return what asks for a stop after so many steps, as a signal does."""
    done = itertools.count(1)
    return lambda: 15 if next(done) == steps else None


def main() -> None:
    """Train the tasks one after the other."""
    torch.set_num_threads(1)
    gc.freeze()  # libraries, which every training and every look at what lives would go through
    usual = fused_loss.MOST_WHOLE, fused_loss._AT_ONCE
    for name, entry in read_json(Path(sys.argv[1])).items():
        AcceleratorState._reset_state()
        task = PhaseTask.model_validate(entry["task"])
        task.folder.mkdir(parents=True, exist_ok=True)
        seen: dict[str, Any] = {}
        # Of logits, those of six tokens are made at a time.
        fused_loss.MOST_WHOLE, fused_loss._AT_ONCE = (0, 4000) if entry["fused"] else usual
        asked = entry["stop_after"] if entry["asked"] == RANK else None
        begin = time.monotonic()
        try:
            with watched(seen, measured=entry["measured"]):
                done = train_task(task, rank=RANK, sharded=entry["sharded"], stop=stop_after(asked))
            seen |= {"losses": done.outcome.losses, "resumed_from": done.outcome.resumed_from}
        except Stopped:
            seen["stopped"] = True
        except Exception:
            sys.stderr.write(f"{name}:\n{traceback.format_exc()}")
            sys.stderr.flush()
            os._exit(1)  # at once: others wait for it
        seen["seconds"] = time.monotonic() - begin
        write_json_atomically(Path(sys.argv[2]) / f"{name}.{RANK}.json", seen)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
