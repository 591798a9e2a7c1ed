"""A command that a launcher started once a process: the first process is the command, the others work for it or wait.

torchrun and accelerate launch are understood, of commands that train; srun and mpirun with several tasks are refused.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from lingraft import launched
from lingraft.errors import EXIT_DONE, ConfigError

if TYPE_CHECKING:
    from lingraft.train.outer_nodes import OuterNodes

_TRAIN = ("run", "adapt", "rescue")
_MPI = (("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"), ("PMI_SIZE", "PMI_RANK"))
_ONCE_A_NODE = (
    "by torchrun: `torchrun --nnodes=NODES --nproc-per-node=GPUS --rdzv-backend=c10d "
    "--rdzv-endpoint=FIRST_NODE:29500 --rdzv-id=ID -m lingraft"
)

_outer: OuterNodes | None = None


def begin(arguments: Sequence[str], around: ExitStack, *, asks_for_help: bool) -> int | None:
    """Find out what a launcher makes of this process.

    Args:
        arguments: Of the command line.
        around: The other nodes are joined until it ends.
        asks_for_help: Help needs one process.

    Returns:
        The exit code of a process that is not the command, when the command is over; None: run the command. Where the
        first process refuses, that of the others is 0: a launcher ends all by the first failure, and only the first
        process says why.

    Raises:
        ConfigError: In the first process: the command cannot be started so.
    """
    started = launched.take()
    command = next((one for one in arguments if not one.startswith("-")), "")
    trains = command in _TRAIN and "--dry-run" not in arguments
    if started is None:
        rank, problem = _copies(os.environ)
        if rank == 0 and problem is not None and not asks_for_help:
            once = f"Start `lingraft {command}` once"
            if trains:
                ray = ", or once in all with --ray" * (command == "run")
                once = f"{once} a node, {_ONCE_A_NODE} {command} ...`{ray}"
            raise ConfigError(f"{problem} {once}.")
        return EXIT_DONE if rank else None
    if asks_for_help or (started.rank and not trains):
        return EXIT_DONE if started.rank else None
    if not trains:
        raise ConfigError(
            f"`lingraft {command}` trains nothing, and a launcher started it {started.processes} times: start it once, "
            "without torchrun."
        )
    from lingraft.stage import versions
    from lingraft.train import outer_nodes

    alike = {"command": f"`lingraft {' '.join(arguments)}`", **versions()}
    if started.rank:
        return outer_nodes.wait_for_first(started, alike)
    from lingraft.train.nodes import joined

    global _outer
    _outer = outer_nodes.OuterNodes(started, alike)
    around.enter_context(joined(_outer))
    return None


def end(exit_code: int) -> None:
    """Let the processes that wait for this one end with its exit code."""
    if _outer is not None:
        _outer.leave(exit_code)


def _copies(environment: Mapping[str, str]) -> tuple[int, str | None]:
    """Return which of several copies of the command this is, and what is wrong with them; None: there is one."""
    tasks = environment.get("SLURM_STEP_NUM_TASKS")
    if tasks is None and "SLURM_STEP_ID" in environment:
        tasks = environment.get("SLURM_NTASKS")
    if "SLURM_PROCID" in environment and _number(tasks) > 1:
        return _number(environment["SLURM_PROCID"]), f"srun started lingraft {tasks} times."
    for size, rank in _MPI:
        if _number(environment.get(size)) > 1:
            sentence = f"mpirun started lingraft {environment[size]} times."
            return _number(environment.get(rank)), sentence
    return 0, None


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isdecimal() else 0
