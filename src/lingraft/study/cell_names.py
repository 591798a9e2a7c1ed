"""What a stage of a run is called where its folder is given as a model: the cell, in place of a fingerprint."""

from __future__ import annotations

import re
from pathlib import Path

from lingraft.config.named import Named, all_named
from lingraft.config.paths import user_path
from lingraft.errors import ConfigError
from lingraft.study.unused import read_plan

_SEED = re.compile(r" / seed \d+$")


def named_models(written: list[str]) -> tuple[Named, ...]:
    """Return models as `all_named` does; one that lies in a run folder is called by its cell.

    Raises:
        ConfigError: As `all_named`.
    """
    return all_named(written, _cells)


def _cells(value: str) -> tuple[str, ...]:
    """Return the names of a cell, the shorter first; none: it is no stage of a run, or the run's plan is missing."""
    place = user_path(value)
    stage = next((one for one in (place, place.parent) if one.parent.name == "stages"), None)
    if stage is None:
        return ()
    run: Path = stage.parent.parent
    try:
        plan = read_plan(run)
    except ConfigError:
        return ()
    listed = plan.stages.get(stage.name)
    name = listed.name if listed is not None else plan.former.get(stage.name)
    if name is None:
        return ()
    seeds = {found[0] for one in plan.stages.values() if (found := _SEED.search(one.name))}
    short = (_SEED.sub("", name),) if len(seeds) == 1 else ()
    return (*short, name, f"{run.absolute().name}: {name}")
