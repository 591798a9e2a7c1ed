"""Whether a launcher (torchrun, accelerate launch) started this process as one of several.

Only the standard library is imported here: it is asked before anything heavy is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

# What torchrun says to each process that it starts; what such a process starts must not read it.
_OF_TORCHRUN = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE"),
    *("ROLE_RANK", "ROLE_NAME", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
)
_PREFIX_OF_TORCHRUN = "TORCHELASTIC_"
_PREFIXES_OF_ACCELERATE = ("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_")


@dataclass(frozen=True, slots=True)
class Launched:
    """What torchrun or accelerate say to each process that they start.

    Attributes:
        rank: Of this process, from 0.
        processes: Of all nodes, at least 2.
        local_rank: Of this process on its node.
        node: Number of this one, from 0.
        nodes: How many machines, or agents of one.
        variables: What was said, by name.
    """

    rank: int
    processes: int
    local_rank: int
    node: int
    nodes: int
    variables: Mapping[str, str]


_current: Launched | None = None


def current() -> Launched | None:
    """Return what the launcher of this command said; None: it was started by itself."""
    return _current


def take(environment: MutableMapping[str, str] = os.environ) -> Launched | None:
    """Return what torchrun or accelerate said, and take it out of the environment; None: neither started this.

    What torchrun says to a single process is taken out, too: it is the whole command.
    """
    global _current
    if "TORCHELASTIC_RUN_ID" not in environment:
        return None
    said = {
        name: value
        for name, value in environment.items()
        if name in _OF_TORCHRUN or name.startswith((_PREFIX_OF_TORCHRUN, *_PREFIXES_OF_ACCELERATE))
    }
    for name in said:
        del environment[name]
    number = {name: int(said.get(name, "0")) for name in _OF_TORCHRUN if said.get(name, "0").isdecimal()}
    if number.get("WORLD_SIZE", 1) > 1:
        _current = Launched(
            number["RANK"],
            number["WORLD_SIZE"],
            number["LOCAL_RANK"],
            number["GROUP_RANK"],
            number["GROUP_WORLD_SIZE"] or 1,
            said,
        )
    return _current


def without_launcher(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without what torchrun says to the processes that it starts."""
    return {
        name: value
        for name, value in environment.items()
        if name not in _OF_TORCHRUN and not name.startswith(_PREFIX_OF_TORCHRUN)
    }
