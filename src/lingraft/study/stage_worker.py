"""Make one stage in a process that is not the driver's: a worker of `--workers`, or a task of Ray.

Nothing but the run folder is shared with the driver: the store, and the files of events and of what is printed.
"""

from __future__ import annotations

import os
import pickle
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lingraft import errors, stopping
from lingraft.claims import node_name
from lingraft.errors import (
    ClaimLostError,
    ConfigError,
    LingraftError,
    NodeLostError,
    ProcessLostError,
    disk_error,
)
from lingraft.stage import Shelf, StageSpec, StageWatcher, Work, Workplace
from lingraft.stopping import Stopped
from lingraft.study.event_log import EventLog, event_file, output_file
from lingraft.study.schedule import Share
from lingraft.study.store import Store
from lingraft.train.memory import give_back

_NOT_PASSING = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
_shelf: Shelf[Any] = Shelf()  # for the stages that this process makes one after the other


@dataclass(frozen=True)
class Assignment:
    """A stage to be made, as it is sent to another process.

    Attributes:
        run: The run folder, absolute; every node sees it there.
        stage: The stage, pickled.
        name: Of the stage, in sentences.
        fingerprint: Of the stage, where it was planned.
        share: What it has of the machine.
        with_artefacts: Artefacts that `keep` has discarded are made again.
    """

    run: Path
    stage: bytes
    name: str
    fingerprint: str
    share: Share
    with_artefacts: bool

    @classmethod
    def of(cls, run: Path, stage: StageSpec, share: Share, *, with_artefacts: bool) -> Assignment:
        """Return the assignment to make a stage in a run folder."""
        return cls(run.absolute(), pickle.dumps(stage), stage.name, stage.fingerprint, share, with_artefacts)

    def unpacked(self) -> StageSpec:
        """Return the stage.

        Raises:
            ConfigError: It is another one here.
        """
        stage: StageSpec = pickle.loads(self.stage)
        if stage.fingerprint != self.fingerprint:
            raise ConfigError(
                f"{node_name()}: has other versions of lingraft or its libraries than the machine that planned the "
                f"study, so {self.name} would be another stage; install the same versions on all nodes."
            )
        return stage


@dataclass(frozen=True)
class Failure:
    """Why a stage was not made, in a form that travels between processes.

    Attributes:
        kind: The error's class.
        message: What it says.
        stack: Where it came from.
        may_pass: Whether another attempt can end otherwise.
    """

    kind: str
    message: str
    stack: str
    may_pass: bool

    @classmethod
    def of(cls, error: Exception, run: Path) -> Failure:
        """Return what is known of an error that was raised while a stage of a run folder was made."""
        full = disk_error(error, run)
        stack = "".join(traceback.format_exception(error)).rstrip()
        shown = full or error
        # Of lingraft's own errors, the kind that every process knows.
        kind = next((one for one in type(shown).__mro__ if one.__module__ == errors.__name__), type(shown))
        return cls(kind.__name__, str(shown), stack, full is None and may_pass(error))

    @property
    def error(self) -> Exception:
        """The error as the process that makes all stages would have raised it."""
        known: Any = getattr(errors, self.kind, None)
        is_ours = isinstance(known, type) and issubclass(known, LingraftError)
        kind: Any = known if is_ours else type(self.kind, (Exception,), {})
        error: Exception = kind.__new__(kind, self.message)
        error.add_note(self.stack)
        return error


@dataclass(frozen=True)
class Outcome:
    """How an assignment ended.

    Attributes:
        where: Host and process that had it.
        failure: Why the stage is not made; None: it is published, or was stopped.
        stopped: The number of the signal that stopped it; None: none did.
        saved: What was saved then, for the driver's sentence.
    """

    where: str
    failure: Failure | None = None
    stopped: int | None = None
    saved: str = ""


def make_stage(assignment: Assignment) -> Outcome:
    """Make a stage and publish it in the store; never raises but what ends a process.

    Called in the main thread, where a signal stops it after what is under way is saved.
    """
    where = f"{node_name()}, process {os.getpid()}"
    try:
        with stopping.stoppable(hears_once=True):
            try:
                _make(assignment)
            except Exception as error:
                stopping.check()  # a library made an error of a stop
                return Outcome(where, Failure.of(error, assignment.run))
    except Stopped as stopped:
        return Outcome(where, stopped=stopped.number, saved=stopping.was_saved())
    return Outcome(where)


def _make(assignment: Assignment) -> None:
    """Make a stage, with its events and what is printed in files of their own."""
    # What answers takes all cards of its share, each with a model; what trains has its own number of processes.
    stage = assignment.unpacked().answered_by(max(1, assignment.share.cards))
    _shelf.clear_but([] if stage.holds is None else [stage.holds])
    store = Store.shared(assignment.run)

    def work(folder: Path) -> Work:
        attempt = int(folder.suffix[1:])  # the number of its claim
        with (
            _printed_into(output_file(assignment.run, stage.folder_name, attempt)),
            EventLog(event_file(assignment.run, stage.folder_name, attempt), folder) as events,
        ):
            events.stage_started(stage.name)
            done = work_on(stage, folder, store, events, _shelf)
            events.worked()
        return done

    with store:
        store.run(stage, work, with_artefacts=assignment.with_artefacts)


def work_on(stage: StageSpec, folder: Path, store: Store, watcher: StageWatcher, shelf: Shelf[Any]) -> Work:
    """Return a stage's result, made in a folder from what its parents have published.

    Raises:
        Exception: What the work raised.
        LingraftError: What it read was changed meanwhile.
    """
    place = Workplace(folder, store.cache, watcher, store.folder_of, shelf)
    done = stage.work(place)
    place.check_given()
    for parent in stage.parents:
        if store.find(parent, with_artefacts=True) is None:
            raise LingraftError(
                f"{store.folder_of(parent)}: was changed while {stage.name} read it; run the same command again."
            )
    give_back()  # a model per stage: what cycles keep alive would add up
    torch.cuda.empty_cache()  # the next stage may be other processes' work on the same accelerator
    return done


def may_pass(error: BaseException) -> bool:
    """Return whether another attempt may end otherwise: a process died, a connection broke, or a disk gave an error.

    What lingraft itself refuses is wrong input, unless such an error caused it. A claim that was lost is another
    process's to finish, and a node that was lost may be there again.
    """
    seen: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in seen:
        if isinstance(
            one, ClaimLostError | NodeLostError | ProcessLostError | ConnectionError | TimeoutError
        ):
            return True
        # Libraries raise errors of the system without a number for what they refuse, such as an unknown model.
        if isinstance(one, OSError) and one.errno is not None and not isinstance(one, _NOT_PASSING):
            return True
        seen.append(one)
        one = one.__cause__ or (None if isinstance(one, LingraftError) else one.__context__)
    return False


@contextmanager
def _printed_into(log: Path) -> Iterator[None]:
    """Append to a file what this process and its libraries print inside, and where an error was raised."""
    log.parent.mkdir(parents=True, exist_ok=True)
    before = [(number, os.dup(number)) for number in (1, 2)]
    with log.open("ab") as file:
        for number, _ in before:
            os.dup2(file.fileno(), number)
    try:
        yield
    except Exception:
        sys.stderr.flush()
        with suppress(OSError), log.open("a", encoding="utf-8", errors="backslashreplace") as text:
            traceback.print_exc(file=text)  # the driver says the reason alone
        raise
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for number, descriptor in before:
            os.dup2(descriptor, number)
            os.close(descriptor)
