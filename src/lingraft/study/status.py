"""How far a run is, from its folder alone: no model, no lock, and nothing is written.

The run may be at work, stopped, killed, done or not begun. What it says of itself is in `under_way.json`; which stages
other processes make, on this machine or on others, also say their claims and events, so that they are seen when the
process that runs the study is gone.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from lingraft.claims import CLAIMS, held_claim
from lingraft.config.paths import check_may_read
from lingraft.errors import ConfigError
from lingraft.records import read_json
from lingraft.stage import FOLDER_NAME, StageProgress
from lingraft.stage_record import RECORD
from lingraft.study.event_log import attempt_so_far, log_of, output_file
from lingraft.study.failures import FailedAttempt, failed_attempts
from lingraft.study.store import RUN, TIMING, seconds_in, unfinished
from lingraft.study.time_left import Ahead, seconds_until_made
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

_OF_A_RUN = ("study.yaml", PLAN, UNDER_WAY, "result.json", "stages", CLAIMS)
_MOST_LOSSES = 400  # of a curve; a longer one is thinned out

StageState = Literal["done", "under way", "lost", "waiting", "failed", "not needed"]
RunState = Literal["not begun", "under way", "stopped", "done", "failed"]


@dataclass(frozen=True)
class StageStatus:
    """A stage of the study.

    Attributes:
        name: Of its cell, or of what several share.
        kind: What it does.
        path: Its folder in the run folder.
        state: `failed` as of the last run; `lost`: who made it gives no sign of life, and it is made again; `not
            needed`: nothing unfinished reads it.
        seconds: What it took; None: it is not done, or that is lost.
        reason: Why it failed, or its last attempt did; None: none has.
        parents: The paths of the stages that it reads.
        failures: How many attempts at it have failed so far, in all runs of this folder.
        log: In the run folder, what its last failed attempt printed, else its newest one; None: there is no such file,
            or it is done.
    """

    name: str
    kind: str
    path: str
    state: StageState
    seconds: float | None = None
    reason: str | None = None
    parents: tuple[str, ...] = ()
    failures: int = 0
    log: str | None = None


@dataclass(frozen=True)
class AtWork:
    """A stage that is at work; of a stopped run one that it was stopped in.

    Attributes:
        name: As of its StageStatus.
        kind: As there.
        path: As there.
        seconds: Since it began.
        progress: How far it is, with the seconds left as of now; None: it has not said.
        losses: Of a training, (step, nats per supervised token), at most 400 of them, evenly spaced.
        answers: First answers of an evaluation.
        host: The name of the machine that makes it; empty: not known.
        process: Its number there; 0: not known.
        attempt: The number of its claim; 0: not known.
        lost_since: When who makes it gave the last sign of life, in seconds since 1970; None: it lives, or the run
            has ended.
    """

    name: str
    kind: str
    path: str
    seconds: float
    progress: StageProgress | None
    losses: tuple[tuple[int, float], ...]
    answers: tuple[FirstAnswer, ...]
    host: str = ""
    process: int = 0
    attempt: int = 0
    lost_since: float | None = None


@dataclass(frozen=True)
class RunStatus:
    """How far a run is.

    Attributes:
        run: Its folder.
        state: `failed`: it ended, and not every stage could be made; `stopped`: it ended before, or was killed.
        stages: Those of the study in the order in which they are made; empty where no plan is there.
        at_work: The stages at work, in the order in which they began.
        seconds_left: Until the stages ahead are made, `at_once` at a time, without the kinds in `unknown`; None: of no
            kind is anything known.
        at_once: How many stages may be at work at one time (`--workers`); else how many were, at most.
        unknown: Kinds of stages ahead of which none is finished yet, so that nobody knows how long they take.
        holder: The process that holds the run; None: none does, or it does not say.
        remarks: What could not be read.
        format: Version of this object as JSON.
    """

    run: str
    state: RunState
    stages: tuple[StageStatus, ...] = ()
    at_work: tuple[AtWork, ...] = ()
    at_once: int = 1
    seconds_left: float | None = None
    unknown: tuple[str, ...] = ()
    holder: Holder | None = None
    remarks: tuple[str, ...] = ()
    format: Literal[2] = 2

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
    begun = _begun(folder, said, now, is_held=is_held)
    failures: dict[str, list[FailedAttempt]] = {}
    for attempt in failed_attempts(folder):
        failures.setdefault(attempt.stage, []).append(attempt)
    is_under_way = is_held or any(one.is_alive for one in begun.values())
    stages = tuple(
        _stage(
            folder,
            name,
            listed,
            said,
            begun.get(name),
            failures.get(name, ()),
            is_under_way=is_under_way,
        )
        for name, listed in plan.items()
    )
    finished = {one.path for one in stages if one.state == "done"}
    # A run that was killed stands where it was killed, and none of its stages is missed.
    at_work = tuple(
        _at_work(
            folder,
            one if is_under_way else replace(one, lost_since=None),
            plan,
            now if is_held or one.is_alive or said is None else said.sign,
        )
        for name, one in begun.items()
        if f"stages/{name}" not in finished
    )
    living = sum(one.is_alive for one in begun.values())
    state: RunState
    if is_under_way:
        state = "under way"
        claim = held_claim(folder / CLAIMS / RUN)
        if not is_held and (claim is None or not claim.is_alive(now)):
            remarks.append(
                f"the process that ran the study is gone, and {living} of its stages "
                f"{'is' if living == 1 else 'are'} still made; the same command (lingraft run) goes on."
            )
    elif stages and all(one.state in ("done", "not needed") for one in stages):
        state, at_work = "done", ()
    elif said is not None and said.ended == "done":
        state = "failed"
    else:
        state = "stopped" if stages else "not begun"
    at_once = max(1, said.at_once if said is not None else 1, living)
    left, unknown = (
        seconds_left(stages, at_work, at_once) if state in ("under way", "stopped") else (None, ())
    )
    return RunStatus(
        run=str(folder),
        state=state,
        stages=stages,
        at_work=at_work,
        at_once=at_once,
        seconds_left=left,
        unknown=unknown,
        holder=said.holder if said is not None and is_held else None,
        remarks=tuple(remarks),
    )


def seconds_left(
    stages: Sequence[StageStatus], at_work: Sequence[AtWork], at_once: int = 1
) -> tuple[float | None, tuple[str, ...]]:
    """Return how long the stages ahead take, from the mean seconds of finished ones of the same kind.

    The stages at work say for themselves what they still take, where they can; where one is the first of its kind,
    others of that kind are taken to be like it. The rest begins in the order of the plan, after what it reads, as soon
    as one of `at_once` places is free.

    Args:
        stages: Those of the study, in its order.
        at_work: Those at work.
        at_once: How many are made at a time.

    Returns:
        The seconds without those of unknown kinds (None: no kind is known), and the unknown kinds.
    """
    took: dict[str, list[float]] = {}
    for stage in stages:
        if stage.state == "done" and stage.seconds:
            took.setdefault(stage.kind, []).append(stage.seconds)
    usual = {kind: sum(seconds) / len(seconds) for kind, seconds in took.items()}
    ahead: list[tuple[str, float | None]] = []
    ends: dict[str, float] = {}  # by path, in seconds from now
    first: dict[str, list[float]] = {}
    for own in at_work:
        left = None if own.progress is None else own.progress.seconds_left
        if left is None and own.kind in usual:
            left = max(0.0, usual[own.kind] - own.seconds)
        if left is not None and own.kind not in usual:
            first.setdefault(own.kind, []).append(own.seconds + left)
        if own.lost_since is not None:  # it waits until it is made again
            continue
        ahead.append((own.kind, left))
        ends[own.path] = left or 0.0
    usual |= {kind: sum(seconds) / len(seconds) for kind, seconds in first.items()}
    waiting = [one for one in stages if one.state in ("waiting", "lost") and one.path not in ends]
    ahead += ((one.kind, usual.get(one.kind)) for one in waiting)
    later = [Ahead(one.path, usual.get(one.kind) or 0.0, one.parents) for one in waiting]
    known = [seconds for _, seconds in ahead if seconds is not None]
    unknown = tuple(dict.fromkeys(kind for kind, own in ahead if own is None))
    return seconds_until_made(ends, later, at_once) if known else None, unknown


@dataclass(frozen=True)
class _Begun:
    """A stage that somebody began, and whether who makes it lives, as far as is known."""

    said: StageAtWork
    is_alive: bool
    lost_since: float | None = None


def _begun(folder: Path, said: UnderWay | None, now: float, *, is_held: bool) -> dict[str, _Begun]:
    """Return the stages that somebody began and has not ended, by the names of their folders, the oldest first.

    What the run says is newest where the process that runs it lives; of a stage that another process claims, and of
    which the run has not heard, its events say how far it is.
    """
    found = {} if said is None else {one.folder: _Begun(one, is_held) for one in said.at_work}
    try:
        names = [path.name for path in (folder / CLAIMS).iterdir() if FOLDER_NAME.fullmatch(path.name)]
    except OSError:  # of an earlier version, or closed to us
        names = []
    for name in names:
        if (claim := held_claim(folder / CLAIMS / name)) is None:
            if is_held and (folder / "stages" / name / RECORD).is_file():
                found.pop(name, None)  # it is done, and what the run says is up to a second old
            continue
        heard = found[name].said if name in found else None
        # What the run heard of an earlier attempt says nothing of this one.
        if heard is not None and is_held and heard.attempt in (0, claim.number):
            own = heard
        else:
            own = attempt_so_far(folder, name, claim.number) or StageAtWork(name, claim.owner.since)
        own = replace(own, host=claim.owner.host, process=claim.owner.process, attempt=claim.number)
        is_alive = claim.is_alive(now)
        found[name] = _Begun(own, is_alive, None if is_alive else claim.sign)
    return dict(sorted(found.items(), key=lambda one: one[1].said.since))


def _stage(
    folder: Path,
    name: str,
    listed: ListedStage,
    said: UnderWay | None,
    begun: _Begun | None,
    failures: Sequence[FailedAttempt],
    *,
    is_under_way: bool,
) -> StageStatus:
    kind, own = name.partition("-")[0], folder / "stages" / name
    state: StageState = "waiting"
    seconds = None
    reason = failures[-1].reason if failures else None
    if begun is not None and begun.is_alive:
        state = "under way"
    elif (own / RECORD).is_file():
        state, seconds, reason = "done", _seconds(own), None
    elif begun is not None and begun.lost_since is not None and is_under_way:  # else the next run makes it
        state = "lost"
    elif said is not None and name in said.failed:
        state, reason = "failed", said.failed[name]
    elif said is not None and name in said.not_needed:
        state = "not needed"
    log = None
    if state != "done" and (failures or state != "waiting"):
        failed = output_file(folder, name, failures[-1].attempt) if failures else None
        log = failed if failed is not None and failed.is_file() else log_of(folder, name)
    return StageStatus(
        listed.name,
        kind,
        f"stages/{name}",
        state,
        seconds,
        reason,
        tuple(f"stages/{parent}" for parent in listed.parents),
        len(failures),
        None if log is None else log.relative_to(folder).as_posix(),
    )


def _seconds(stage: Path) -> float | None:
    try:
        return seconds_in(read_json(stage / TIMING))
    except (OSError, ValueError):
        return None


def _at_work(folder: Path, begun: _Begun, plan: Mapping[str, ListedStage], now: float) -> AtWork:
    said, progress = begun.said, begun.said.progress
    if progress is not None:
        spent = max(0.0, now - said.updated)
        left = progress.seconds_left
        # What is counted in another unit comes before or after most of the work, such as rows that are encoded.
        if left is None and progress.total and progress.done and progress.unit in (None, "items"):
            with suppress(OverflowError):  # whoever wrote it
                left = (said.updated - said.since) / progress.done * (progress.total - progress.done)
        progress = replace(progress, seconds_left=None if left is None else max(0.0, left - spent))
    losses: tuple[tuple[int, float], ...] = ()
    with suppress(OSError):  # it is being renamed
        if (place := unfinished(folder, said.folder)) is not None:
            losses = losses_so_far(place)
    if len(losses) > _MOST_LOSSES:
        step = (len(losses) - 1) / (_MOST_LOSSES - 1)
        losses = tuple(losses[round(place * step)] for place in range(_MOST_LOSSES))
    return AtWork(
        name=plan[said.folder].name if said.folder in plan else said.label.partition(" ")[2],
        kind=said.folder.partition("-")[0],
        path=f"stages/{said.folder}",
        seconds=max(0.0, now - said.since),
        progress=progress,
        losses=losses,
        answers=said.answers,
        host=said.host,
        process=said.process,
        attempt=said.attempt,
        lost_since=begun.lost_since,
    )
