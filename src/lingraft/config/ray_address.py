"""What `--ray` may say, known before anything heavy is imported."""

from __future__ import annotations

import re
from importlib.util import find_spec

from lingraft.errors import ConfigError

RAY_LOCAL, RAY_AUTO = "local", "auto"
_ADDRESS = re.compile(r"(?:\[[0-9a-fA-F:]+\]|[^\s:/]+):[0-9]{1,5}")


def check_ray(address: str) -> None:
    """Refuse what is no address of a Ray cluster.

    Args:
        address: `local`, `auto` or HOST:PORT.

    Raises:
        ConfigError: It is something else, or Ray is not installed.
    """
    if "://" in address:
        raise ConfigError(
            f"--ray {address}: Ray Client is not supported, as its driver may be where the run folder is not. Start "
            "the command on a node of the cluster with `--ray auto`, or by `ray job submit --address http://HOST:8265 "
            "-- lingraft run STUDY --ray auto`."
        )
    if address not in (RAY_LOCAL, RAY_AUTO) and _ADDRESS.fullmatch(address) is None:
        raise ConfigError(
            f"--ray {address}: is no address. Give `local` (this machine), `auto` (the cluster that this machine is a "
            "node of) or HOST:PORT, as `ray start --head` prints it."
        )
    if find_spec("ray") is None:
        raise ConfigError(f"--ray {address}: Ray is not installed: pip install 'lingraft[ray]'")
