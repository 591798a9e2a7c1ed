"""How far a run is, from its folder alone: no model, no lock, and nothing is written.

The run may be at work, stopped, killed, done or not begun; what it says of itself is in `under_way.json`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from lingraft.config.paths import check_may_read
from lingraft.errors import ConfigError
from lingraft.records import read_json
from lingraft.stage import StageProgress
from lingraft.stage_record import RECORD
from lingraft.study.result import RESULT, STUDY
from lingraft.study.store import TIMING
from lingraft.study.under_way import (
    UNDER_WAY,
    FirstAnswer,
    Holder,
    StageAtWork,
    UnderWay,
    losses_so_far,
    read_under_way,
)
from lingraft.study.unused import PLAN, ListedStage, read_plan

_OF_A_RUN = (STUDY, PLAN, UNDER_WAY, RESULT, "stages", ".lock")
_MOST_LOSSES = 400  # of a curve; a longer one is thinned out

StageState = Literal["done", "under way", "waiting", "failed", "not needed"]
RunState = Literal["not begun", "under way", "stopped", "done", "failed"]


@dataclass(frozen=True)
class StageStatus:
    """A stage of the study.

    Attributes:
        name: Of its cell, or of what several share.
        kind: What it does.
        path: Its folder in the run folder.
        state: `failed` as of the last run; `not needed`: nothing unfinished reads it.
        seconds: What it took; None: it is not done, or that is lost.
        reason: Why it failed; None: it did not.
    """

    name: str
    kind: str
    path: str
    state: StageState
    seconds: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class AtWork:
    """The stage that is at work; of a stopped run the one that it was stopped in.

    Attributes:
        name: As of its StageStatus.
        kind: As there.
        path: As there.
        seconds: Since it began.
        progress: How far it is, with the seconds left as of now; None: it has not said.
        losses: Of a training, (step, nats per supervised token), at most 400 of them, evenly spaced.
        answers: First answers of an evaluation.
    """

    name: str
    kind: str
    path: str
    seconds: float
    progress: StageProgress | None
    losses: tuple[tuple[int, float], ...]
    answers: tuple[FirstAnswer, ...]


@dataclass(frozen=True)
class RunStatus:
    """How far a run is.

    Attributes:
        run: Its folder.
        state: `failed`: it ended, and not every stage could be made; `stopped`: it ended before, or was killed.
        stages: Those of the study in the order in which they are made; empty where no plan is there.
        at_work: The stage at work.
        seconds_left: What the stages ahead take, without the kinds in `unknown`; None: of no kind is anything known.
        unknown: Kinds of stages ahead of which none is finished yet, so that nobody knows how long they take.
        holder: The process that holds the run; None: none does, or it does not say.
        remarks: What could not be read.
        format: Version of this object as JSON.
    """

    run: str
    state: RunState
    stages: tuple[StageStatus, ...] = ()
    at_work: AtWork | None = None
    seconds_left: float | None = None
    unknown: tuple[str, ...] = ()
    holder: Holder | None = None
    remarks: tuple[str, ...] = ()
    format: Literal[1] = 1

    def count(self, state: StageState) -> int:
        """Return how many stages are in a state."""
        return sum(stage.state == state for stage in self.stages)


def status_of(folder: Path) -> RunStatus:
    """Return how far the run of a folder is; whatever is half-written or damaged in it is left out, with a remark.

    Raises:
        ConfigError: There is no such folder, it is no run folder, or it may not be read.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such run folder; `lingraft run STUDY` makes it.")
    check_may_read(folder)
    if any(folder.iterdir()) and not any((folder / name).exists() for name in _OF_A_RUN):
        raise ConfigError(
            f"{folder}: is no run folder of a study; name the one that `lingraft run` made, such as runs/quickstart."
        )
    now = time.time()
    remarks: list[str] = []
    plan: Mapping[str, ListedStage] = {}
    if (folder / PLAN).exists():
        try:
            found = read_plan(folder)
            plan = {name: found.stages[name] for name in found.order or found.stages}
        except (ConfigError, KeyError, OSError) as error:
            remarks.append(f"the stages are not known: {error}")
    said = read_under_way(folder)
    if said is None and (folder / UNDER_WAY).exists():
        remarks.append(
            f"{folder / UNDER_WAY}: cannot be read; it is damaged, closed to you, or of another version."
        )
    is_held = said is not None and said.is_held(now)
    stages = tuple(_stage(folder, name, listed, said, is_held=is_held) for name, listed in plan.items())
    at_work = None
    if said is not None and said.at_work:
        # A run that was killed stands where it was killed.
        at_work = _at_work(folder, said.at_work[0], plan, now if is_held else said.sign)
    state: RunState
    if is_held:
        state = "under way"
    elif stages and all(one.state in ("done", "not needed") for one in stages):
        state, at_work = "done", None
    elif said is not None and said.ended == "done":
        state = "failed"
    else:
        state = "stopped" if stages else "not begun"
    left, unknown = seconds_left(stages, at_work) if state in ("under way", "stopped") else (None, ())
    return RunStatus(
        run=str(folder),
        state=state,
        stages=stages,
        at_work=at_work,
        seconds_left=left,
        unknown=unknown,
        holder=said.holder if said is not None and is_held else None,
        remarks=tuple(remarks),
    )


def seconds_left(
    stages: Sequence[StageStatus], at_work: AtWork | None
) -> tuple[float | None, tuple[str, ...]]:
    """Return what the stages ahead take, from the mean seconds of finished ones of the same kind.

    The stage at work says for itself what it still takes, where it can; where it is the first of its kind, others of
    that kind are taken to be like it.

    Returns:
        The seconds without those of unknown kinds (None: no kind is known), and the unknown kinds.
    """
    took: dict[str, list[float]] = {}
    for stage in stages:
        if stage.state == "done" and stage.seconds:
            took.setdefault(stage.kind, []).append(stage.seconds)
    usual = {kind: sum(seconds) / len(seconds) for kind, seconds in took.items()}
    ahead: list[tuple[str, float | None]] = []
    if at_work is not None:
        own = None if at_work.progress is None else at_work.progress.seconds_left
        if own is None and at_work.kind in usual:
            own = max(0.0, usual[at_work.kind] - at_work.seconds)
        if own is not None:
            usual.setdefault(at_work.kind, at_work.seconds + own)
        ahead.append((at_work.kind, own))
    ahead += ((stage.kind, usual.get(stage.kind)) for stage in stages if stage.state == "waiting")
    known = [seconds for _, seconds in ahead if seconds is not None]
    return sum(known) if known else None, tuple(dict.fromkeys(kind for kind, own in ahead if own is None))


def _stage(
    folder: Path, name: str, listed: ListedStage, said: UnderWay | None, *, is_held: bool
) -> StageStatus:
    kind, own = name.partition("-")[0], folder / "stages" / name
    state: StageState = "waiting"
    reason = seconds = None
    if said is not None and is_held and any(one.folder == name for one in said.at_work):
        state = "under way"
    elif (own / RECORD).is_file():
        state, seconds = "done", _seconds(own)
    elif said is not None and name in said.failed:
        state, reason = "failed", said.failed[name]
    elif said is not None and name in said.not_needed:
        state = "not needed"
    return StageStatus(listed.name, kind, f"stages/{name}", state, seconds, reason)


def _seconds(stage: Path) -> float | None:
    try:
        found = read_json(stage / TIMING)["seconds"]
        return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _at_work(folder: Path, said: StageAtWork, plan: Mapping[str, ListedStage], now: float) -> AtWork:
    progress = said.progress
    if progress is not None:
        spent = max(0.0, now - said.updated)
        left = progress.seconds_left
        # What is counted in another unit comes before or after most of the work, such as rows that are encoded.
        if left is None and progress.total and progress.done and progress.unit in (None, "items"):
            left = (said.updated - said.since) / progress.done * (progress.total - progress.done)
        progress = replace(progress, seconds_left=None if left is None else max(0.0, left - spent))
    losses = losses_so_far(folder / "stages" / said.folder)
    if len(losses) > _MOST_LOSSES:
        step = (len(losses) - 1) / (_MOST_LOSSES - 1)
        losses = tuple(losses[round(place * step)] for place in range(_MOST_LOSSES))
    return AtWork(
        name=plan[said.folder].name if said.folder in plan else "",
        kind=said.folder.partition("-")[0],
        path=f"stages/{said.folder}",
        seconds=max(0.0, now - said.since),
        progress=progress,
        losses=losses,
        answers=said.answers,
    )
