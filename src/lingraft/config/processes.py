"""What `--processes`, `--sharded` and `--nodes` may say together, known before anything heavy is imported."""

from __future__ import annotations

from lingraft import launched
from lingraft.errors import ConfigError


def asked_processes(count: int | None, nodes: int = 1) -> tuple[int | None, int]:
    """Return how many processes train and on how many nodes: where torchrun started this command, as it says.

    Args:
        count: None: `--processes` was not given.
        nodes: As asked for; 1 where nothing was.

    Raises:
        ConfigError: torchrun says something else.
    """
    started = launched.current()
    if started is None:
        return count, nodes
    if count not in (None, started.processes):
        raise ConfigError(
            f"--processes {count}: the launcher started {started.processes} processes, which are those that train; "
            "leave --processes out."
        )
    if nodes not in (1, started.nodes):
        raise ConfigError(
            f"--nodes {nodes}: the launcher started processes on {started.nodes} nodes; leave --nodes out."
        )
    return started.processes, started.nodes


def check_processes(count: int | None, *, sharded: bool, nodes: int = 1) -> None:
    """Refuse what trains on no machine.

    Args:
        count: Processes that train, on all nodes; None: not given, which is one.
        sharded: Whether they divide the model.
        nodes: How many machines.

    Raises:
        ConfigError: No process, one that is to share with nobody, or a number that the nodes cannot share.
    """
    count, nodes = asked_processes(count, nodes)
    if count is not None and count < 1:
        raise ConfigError(f"--processes {count}: give at least 1.")
    if sharded and count in (None, 1):
        raise ConfigError("--sharded divides a model between processes; give --processes 2 or more with it.")
    if nodes < 1:
        raise ConfigError(f"--nodes {nodes}: give at least 1.")
    if (count or 1) % nodes:
        asked = f"--nodes {nodes}" if count is None else f"--processes {count} --nodes {nodes}"
        raise ConfigError(
            f"{asked}: --processes counts those of all nodes, alike many on each; give a multiple of {nodes}, such as "
            f"--processes {8 * nodes} for nodes of 8 cards."
        )
