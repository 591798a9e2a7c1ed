"""What `--workers`, `--ray`, `--retries` and `--nodes` may say together, known before anything heavy is imported."""

from __future__ import annotations

from lingraft import launched
from lingraft.config.ray_address import check_ray
from lingraft.errors import ConfigError

RETRIES = 2  # of a stage, where nothing else is said


def check_engines(workers: int | None, ray: str | None, retries: int, nodes: int = 1) -> None:
    """Refuse what makes no stages.

    Args:
        workers: Processes of this machine that make stages; None: this one does.
        ray: The address of a cluster; None: none is asked for.
        retries: How often a stage is made again.
        nodes: Machines that train a phase together.

    Raises:
        ConfigError: A number is too small, two of them exclude each other, or Ray cannot be used.
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"--workers {workers}: give at least 1.")
    if retries < 0:
        raise ConfigError(f"--retries {retries}: give 0 or more.")
    if workers is not None and ray is not None:
        raise ConfigError(
            f"--workers {workers} --ray {ray}: Ray decides how many stages are made at a time; leave one of them out."
        )
    if launched.current() is not None and (workers is not None or ray is not None):
        name, option = ("--workers", f"--workers {workers}") if ray is None else ("--ray", f"--ray {ray}")
        raise ConfigError(
            f"{option}: a launcher started this command as one of several processes that train a phase together; start "
            f"it without torchrun, or leave {name} out."
        )
    if nodes > 1 and ray is None and launched.current() is None:
        with_workers = "" if workers is None else " --workers are processes of this machine."
        raise ConfigError(
            f"--nodes {nodes}: nothing says how to reach other machines; give --ray ADDRESS as well, or start the "
            f"command on each of them by torchrun.{with_workers}"
        )
    if ray is not None:
        check_ray(ray)
