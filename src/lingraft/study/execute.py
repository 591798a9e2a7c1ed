"""Make the stages of a plan, each once, and report what happens.

One loop for all engines: what may begin is submitted, what is settled is read from the store, reported and discarded.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import disk_usage
from types import TracebackType
from typing import Any, Literal

from lingraft import stopping
from lingraft.errors import LingraftError, disk_error
from lingraft.stage import FinishedStage, Shelf, StageSpec, Work
from lingraft.study.engines import Engine, Settled
from lingraft.study.event_log import EventFollower
from lingraft.study.events import Watcher
from lingraft.study.failures import record_failure
from lingraft.study.plan import Plan, consumers_of
from lingraft.study.schedule import (
    Node,
    Share,
    cards_for,
    estimated_seconds,
    fits_beside,
    is_held_back,
    order,
    share_of,
)
from lingraft.study.stage_worker import may_pass, work_on
from lingraft.study.store import Store
from lingraft.study.under_way import LOSSES, Heard, StageAtWork, UnderWayFile

_SECONDS_BETWEEN_LOOKS = 0.2  # at what other processes say of their stages


@dataclass(frozen=True)
class _HeldBack:
    """A stage that could begin, but for what others use."""

    stage: StageSpec
    share: Share
    waits_for: Literal["disk", "memory", "cards"]


class Executor:
    """Makes stages in one store, or finds them finished.

    Attributes:
        store: Where they are.
        done: By fingerprint, the stages that are done.
        failed: By fingerprint, why others are not; what depends on a failed stage fails with its error.

    Args:
        store: Where the stages are made.
        watcher: Receives what happens.
        said: What of it is written into the run folder, for those who look at it; None: nothing is.
    """

    def __init__(
        self, store: Store, watcher: Watcher | None = None, said: UnderWayFile | None = None
    ) -> None:
        self.store = store
        self.done: dict[str, FinishedStage] = {}
        self.failed: dict[str, Exception] = {}
        self._watcher = watcher or Watcher()
        self._said = said
        store.noted = self._watcher.noted
        self._shelf: Shelf[Any] = Shelf()
        self._reported: set[str] = set()
        self._over: set[str] = set()  # finished, or wanted by nothing
        self._on_disk: dict[str, StageSpec] = {}  # those with artefacts that may be discarded
        self._at_work: dict[str, StageSpec] = {}
        self._follower: EventFollower | None = None  # of what other processes make
        self._retries: Counter[str] = Counter()
        self._answers: dict[str, bool] = {}  # by fingerprint, whether a stage may take several cards or one
        self._shares: dict[str, Share] = {}  # by fingerprint, what a stage was submitted with
        self._unmakeable: dict[
            str, Exception
        ] = {}  # of those that are done, why discarded artefacts stay away
        self._said_short: set[str] = set()  # of what it was said that stages wait for it
        self._looked: Plan | None = None

    def look(self, plan: Plan) -> None:
        """Take over which stages of a plan an earlier run has finished; `run` does it where it was not done."""
        for number, stage in enumerate(plan.stages):
            self._watcher.preparing("looking for finished stages", number, len(plan.stages))
            if (found := self.store.find(stage)) is not None:
                self.done[stage.fingerprint] = found
                self._over.add(stage.fingerprint)
                if stage.is_discardable and self.store.find(stage, with_artefacts=True) is not None:
                    self._on_disk[stage.fingerprint] = stage
        self._looked = plan

    def ahead(self, plan: Plan) -> list[StageSpec]:
        """Return the stages of a plan that are not done."""
        return [one for one in plan.stages if one.fingerprint not in self.done]

    def run(self, plan: Plan, engine: Engine | None = None, *, retries: int = 0) -> Iterator[StageSpec]:
        """Make the stages of a plan, and yield each when it is done or has failed.

        One process makes them in the plan's order, several those first that most depends on. An artefact is discarded
        when no stage of the plan reads it any more, unless the plan keeps it; that of a stage which has failed stays,
        for the next run. What is discarded already is made again where a stage needs it.

        Args:
            plan: The plan.
            engine: Makes them, and has begun; None: this process does.
            retries: How often a stage is made again that failed by something that may pass.

        Raises:
            DiskError: The disk is full, or the like: every later stage would fail by it as well.
            Stopped: A signal asked for it; what was at work is saved.
            ClaimLostError: Another process took the run over.
        """
        consumers = consumers_of(plan.stages)
        if self._looked is not plan:
            self.look(plan)
        # What serves others alone, such as a state, is not made anew for stages that are finished.
        unwanted = {
            stage.fingerprint
            for stage in plan.stages
            if stage.fingerprint not in plan.results | self._over and not self._is_needed(stage, consumers)
        }
        self._over |= unwanted
        if self._said is not None:
            self._said.not_needed([one.folder_name for one in plan.stages if one.fingerprint in unwanted])
        self._watcher.stages_ahead([one.name for one in plan.stages if one.fingerprint not in self._over])
        self._watcher.study_started(len(plan.stages) - len(unwanted))
        in_order: Sequence[StageSpec] = plan.stages
        if engine is None:
            engine = InThisProcess(self)
        else:
            seconds = {fingerprint: one.seconds for fingerprint, one in self.done.items()}
            in_order = order(plan.stages, estimated_seconds(plan.stages, seconds))
            self._follower = EventFollower(self.store.folder, self._watcher, self._said)
        reads = {one.name: [parent.name for parent in one.parents] for one in plan.stages}
        self._watcher.stages_read(reads, engine.room or 1)
        waiting = {stage.fingerprint: stage for stage in in_order}
        settled: list[StageSpec] = []
        while True:
            self.store.check_held()  # who was stopped for long finds the run another's, and discards nothing of it
            self._tidy(plan, waiting, consumers)  # first: what begins may need the room
            settled += self._begin(engine, waiting, consumers)
            yield from settled  # while others are at work: who sums up takes seconds
            settled = []
            if not waiting:
                return
            ended: list[Settled] = []
            while self._at_work and not (ended := engine.wait(_SECONDS_BETWEEN_LOOKS)):
                if self._follower is not None:
                    self._follower.read()
            for one in ended:
                if self._settle(one, retries):
                    settled.append(waiting.pop(one.stage.fingerprint))

    def make(self, stage: StageSpec, *, with_artefacts: bool = False) -> FinishedStage:
        """Return the stage finished: found, or made now after those whose artefacts it reads.

        Args:
            stage: The stage.
            with_artefacts: Make artefacts that `keep` discarded again.

        Raises:
            Exception: What the work raised; asked for again, the stage fails with the same error at once.
        """
        worked = False

        def watched(folder: Path) -> Work:
            nonlocal worked
            worked = True
            self._watcher.stage_started(stage.name)
            at_work = StageAtWork(stage.folder_name, time.time(), label=stage.name)
            watcher = Heard(self._watcher, at_work, self._said, folder / LOSSES)
            done = work_on(stage, folder, self.store, watcher, self._shelf)
            if self._said is not None:
                self._said.worked(stage.folder_name)
            return done

        if self.store.find(stage, with_artefacts=with_artefacts) is None:
            for parent in stage.parents:  # before this stage begins, not inside of it
                self.make(parent, with_artefacts=True)
        done = self.store.run(stage, watched, with_artefacts=with_artefacts)
        if worked and self._said is not None:
            self._said.finished(stage.folder_name)
        self._report(stage, done, worked=worked)
        return done

    def _report(self, stage: StageSpec, done: FinishedStage, *, worked: bool) -> None:
        """Keep a stage that is done, and say so once."""
        self.done[stage.fingerprint] = done
        if stage.is_discardable and self.store.find(stage, with_artefacts=True) is not None:
            self._on_disk[stage.fingerprint] = stage
        if worked or done.fingerprint not in self._reported:
            self._reported.add(done.fingerprint)
            self._watcher.stage_finished(stage.name, done.seconds, done.reused)
        if worked and "remade_otherwise" in done.timing:
            self._watcher.noted(
                f"{stage.name}: made again because `keep` had discarded it, and not equal bit for bit to what was "
                f"measured then ({', '.join(done.timing['remade_otherwise'])}): other threads, device or processes. "
                "For exact figures run the study anew in another folder, or with `keep: all`."
            )

    def is_settled(self, stage: StageSpec) -> bool:
        """Return whether a stage is done or has failed."""
        return stage.fingerprint in self.done or stage.fingerprint in self.failed

    def _begin(
        self, engine: Engine, waiting: dict[str, StageSpec], consumers: Mapping[str, Sequence[StageSpec]]
    ) -> list[StageSpec]:
        """Submit what can begin, as long as there is room, and return what needs no work or cannot be made."""
        settled = []

        def submit(stage: StageSpec, share: Share) -> None:
            try:
                self._submit(stage, share, engine, consumers)
            except Exception as error:  # whatever it is, the other stages go on
                settled.append(waiting.pop(stage.fingerprint))
                self._fail(stage, error)

        free_disk = self._free_disk()
        held_back: list[_HeldBack] = []
        for stage in list(waiting.values()):
            if engine.room == 0:
                break
            if stage.fingerprint in self._at_work:
                continue
            try:
                if self._is_over(stage, consumers):
                    if stage.fingerprint in self.done:
                        self.make(stage)
                    settled.append(waiting.pop(stage.fingerprint))
                    continue
                if not self._can_begin(stage, waiting):
                    continue
                share = share_on(engine, stage, self._answering(waiting))
                short = self._short_of(stage, share, engine, held_back, free_disk)
            except Exception as error:  # of what it reads
                settled.append(waiting.pop(stage.fingerprint))
                self._fail(stage, error)
                continue
            if short is None:
                submit(stage, share)
            else:
                held_back.append(_HeldBack(stage, share, short))
        if self._at_work:
            self._note_waits(held_back)
        elif held_back:  # nothing would make room: the first one goes ahead, whatever it needs
            submit(held_back[0].stage, held_back[0].share)
        return settled

    def _short_of(
        self,
        stage: StageSpec,
        share: Share,
        engine: Engine,
        held_back: Sequence[_HeldBack],
        free_disk: int | None,
    ) -> Literal["disk", "memory", "cards"] | None:
        """Return what a stage waits for because others use it; None: for nothing."""
        disk = [one.needs.disk_bytes for one in self._at_work.values()]
        if not fits_beside(stage.needs.disk_bytes, disk, free_disk):
            return "disk"
        # Memory is kept for those before it: others would take it as often as some is free.
        shares = [self._shares[one] for one in self._at_work]
        shares += [one.share for one in held_back if one.waits_for == "memory"]
        if not fits_beside(share.memory_bytes, [one.memory_bytes for one in shares], engine.memory_bytes):
            return "memory"
        if engine.room is None and is_held_back(share.cards, self._queued_cards(engine.cards)):
            return "cards"
        return None

    def _free_disk(self) -> int | None:
        """Return the free bytes of the run folder's disk; None: one process has it alone, or it does not say."""
        if self._follower is None:
            return None
        with suppress(OSError):
            disk = disk_usage(self.store.folder)
            return disk.free if disk.total else None  # what buckets are mounted by may say 0 of both
        return None

    def _note_waits(self, held_back: Sequence[_HeldBack]) -> None:
        """Say once for the run that stages wait for disk or memory that others use; cards are what all wait for."""
        for one in held_back:
            if one.waits_for != "cards" and one.waits_for not in self._said_short:
                self._said_short.add(one.waits_for)
                self._watcher.noted(
                    f"{one.stage.name} waits until others have ended, and so may more: there is too little "
                    f"{one.waits_for} for all that could be made at a time."
                )

    def _submit(
        self, stage: StageSpec, share: Share, engine: Engine, consumers: Mapping[str, Sequence[StageSpec]]
    ) -> None:
        """Let the engine make a stage."""
        if self._follower is not None:
            self._follower.begin(stage)
            self.store.note_if_owned(stage)
        engine.submit(stage, share, with_artefacts=self._is_needed(stage, consumers))
        self._at_work[stage.fingerprint] = stage
        self._shares[stage.fingerprint] = share

    def _answering(self, waiting: Mapping[str, StageSpec]) -> int:
        """Return how many stages of this run may take several cards or one, those that are done by now as well."""
        if self._follower is None:
            return 1
        for fingerprint, stage in waiting.items():
            if fingerprint not in self._answers:
                self._answers[fingerprint] = stage.needs.most_processes > stage.needs.processes
        return sum(self._answers.values())

    def _queued_cards(self, cards: int) -> list[int]:
        """Return the cards of each submitted stage that waits, as those before it have so many."""
        taken, queued = 0, []
        for fingerprint in self._at_work:
            taken += self._shares[fingerprint].cards
            if taken > cards:
                queued.append(self._shares[fingerprint].cards)
        return queued

    def _settle(self, attempt: Settled, retries: int) -> bool:
        """Take over how an attempt ended, and return whether its stage is done or has failed: else it is made again."""
        stage = self._at_work.pop(attempt.stage.fingerprint)
        if self._follower is not None:
            self._follower.end(stage)
        error = attempt.error
        try:
            if self._follower is not None and (error is None or self._is_published(stage)):
                self._report(stage, self.store.take_over(stage), worked=True)
                error = None
        except (LingraftError, OSError) as missing:
            # Also where the file system does not answer just now: the other stages go on.
            error = error or missing
        if error is None:
            self._over.add(stage.fingerprint)
            return True
        is_made_again = attempt.may_pass and self._retries[stage.fingerprint] < retries
        record_failure(
            self.store.folder, stage.folder_name, error, where=attempt.where, is_made_again=is_made_again
        )
        if not is_made_again:
            self._fail(stage, error)
            return True
        self._retries[stage.fingerprint] += 1
        why, line_break, printed = str(error).partition("\n")
        self._watcher.noted(
            f"{stage.name}: {why.rstrip('.:')}; it is made again (retry {self._retries[stage.fingerprint]} of "
            f"{retries}).{line_break}{printed}"
        )
        return False

    def _is_published(self, stage: StageSpec) -> bool:
        """Return whether a stage is there whole though its process did not live to say so."""
        return self.store.find(stage, with_artefacts=True) is not None

    def _is_over(self, stage: StageSpec, consumers: Mapping[str, Sequence[StageSpec]]) -> bool:
        """Return whether nothing is to be made of a stage; one that was damaged meanwhile is to be made."""
        fingerprint = stage.fingerprint
        if fingerprint in self.done and self.store.find(stage) is None:
            self._over.discard(fingerprint)
            del self.done[fingerprint]
        if fingerprint not in self._over:
            return False
        if (
            fingerprint not in self.done  # wanted by nothing
            or not self._is_needed(stage, consumers)
            or self.store.find(stage, with_artefacts=True) is not None
        ):
            return True
        self._over.discard(fingerprint)  # so that what it reads is made again for it
        return False

    def _can_begin(self, stage: StageSpec, waiting: dict[str, StageSpec]) -> bool:
        """Return whether all that a stage reads is there; what is not, and nobody will make, is added to `waiting`.

        Raises:
            Exception: What the stage reads cannot be made.
        """
        for parent in stage.parents:
            error = self.failed.get(parent.fingerprint) or self._unmakeable.get(parent.fingerprint)
            if error is not None:
                raise error
        can = True
        for parent in stage.parents:
            if parent.fingerprint in waiting:
                can = False
            elif self.store.find(parent, with_artefacts=True) is None:  # it was removed or damaged meanwhile
                if parent.fingerprint not in self.done:
                    self._over.discard(parent.fingerprint)
                waiting[parent.fingerprint] = parent
                can = False
        return can

    def _fail(self, stage: StageSpec, error: Exception) -> None:
        """Keep why a stage is not made.

        Raises:
            DiskError, Stopped: The error is one of these: nothing goes on.
        """
        self._watcher.stage_ended(stage.name)
        stopping.check()  # a library made an error of a stop
        if (full := disk_error(error, self.store.folder)) is not None:
            raise full from error
        if stage.fingerprint in self.done:  # its artefacts cannot be made again: what needs them fails
            self._unmakeable[stage.fingerprint] = error
            return
        self.failed[stage.fingerprint] = error
        if self._said is not None:
            self._said.failed(stage.folder_name, error)

    def _tidy(
        self, plan: Plan, waiting: Mapping[str, StageSpec], consumers: Mapping[str, Sequence[StageSpec]]
    ) -> None:
        """Discard the artefacts, and let go of what is held in memory, that no stage of the plan reads any more."""
        for fingerprint, own in list(self._on_disk.items()):
            if fingerprint not in plan.kept and not self._is_needed(own, consumers):
                self.store.discard(self._on_disk.pop(fingerprint))
        self._shelf.clear_but([one.holds for one in waiting.values() if one.holds is not None])

    def _is_needed(self, stage: StageSpec, consumers: Mapping[str, Sequence[StageSpec]]) -> bool:
        """Return whether a stage that reads the artefacts is not done, or has to be made again for one that is not."""
        return any(
            one.fingerprint not in self._over
            or one.fingerprint in self._at_work
            or (
                one.is_discardable
                and one.fingerprint not in self._on_disk
                and self._is_needed(one, consumers)
            )
            for one in consumers[stage.fingerprint]
        )


class InThisProcess:
    """The engine of a run in one process: it makes the one stage that it has while it is waited for."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._next: tuple[StageSpec, bool] | None = None

    @property
    def node(self) -> Node:
        """See Engine."""
        return Node(0, 1)

    @property
    def cards(self) -> int:
        """See Engine."""
        return 0

    @property
    def memory_bytes(self) -> None:
        """See Engine; one stage is made at a time."""

    @property
    def room(self) -> int:
        """See Engine."""
        return int(self._next is None)

    def submit(self, stage: StageSpec, share: Share, *, with_artefacts: bool) -> None:  # noqa: ARG002
        """See Engine; a stage has the whole machine."""
        self._next = stage, with_artefacts

    def wait(self, seconds: float) -> list[Settled]:  # noqa: ARG002
        """See Engine; returns when the stage is settled."""
        assert self._next is not None
        (stage, with_artefacts), self._next = self._next, None
        try:
            self._executor.make(stage, with_artefacts=with_artefacts)
        except Exception as error:
            stopping.check()  # a library made an error of a stop
            self._executor.store.forget_failure(stage)
            passes = disk_error(error, self._executor.store.folder) is None and may_pass(error)
            return [Settled(stage, error, may_pass=passes)]
        return [Settled(stage)]

    def __enter__(self) -> InThisProcess:
        """Return the engine."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        """End nothing: there is no other process."""


def share_on(engine: Engine, stage: StageSpec, answering: int = 1) -> Share:
    """Return what of an engine's machines a stage gets.

    Args:
        engine: The engine.
        stage: The stage.
        answering: Stages of the run that answer, where all of them compete for the cards; see `cards_for`.
    """
    if isinstance(engine, InThisProcess):
        return Share(0, 1, None)
    # A worker of this machine has its cards for itself.
    cards, answering = (engine.cards, answering) if engine.room is None else (engine.node.cards, 1)
    return share_of(stage, engine.node, cards_for(stage.needs, engine.node, cards, answering))
