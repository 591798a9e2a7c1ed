"""What `--processes` and `--sharded` may say together, known before anything heavy is imported."""

from __future__ import annotations

from lingraft.errors import ConfigError


def check_processes(count: int | None, *, sharded: bool) -> None:
    """Refuse what trains on no machine.

    Args:
        count: Processes that train; None: not given, which is one.
        sharded: Whether they divide the model.

    Raises:
        ConfigError: No process, or one that is to share with nobody.
    """
    if count is not None and count < 1:
        raise ConfigError(f"--processes {count}: give at least 1.")
    if sharded and count in (None, 1):
        raise ConfigError("--sharded divides a model between processes; give --processes 2 or more with it.")
