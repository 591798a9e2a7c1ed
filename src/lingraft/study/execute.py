"""Make the stages of a plan, each once, and report what happens."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lingraft import stopping
from lingraft.errors import LingraftError, disk_error
from lingraft.stage import FinishedStage, Shelf, StageSpec, Work, Workplace
from lingraft.study.events import Watcher
from lingraft.study.plan import Plan, consumers_of
from lingraft.study.store import Store
from lingraft.study.under_way import LOSSES, Heard, StageAtWork, UnderWayFile
from lingraft.train.memory import give_back


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

    def run(self, plan: Plan) -> Iterator[StageSpec]:
        """Make the stages of a plan in its order, and yield each when it is done or has failed.

        An artefact is discarded when the last stage that reads it is done, unless the plan keeps it; that of a stage
        which has failed stays, for the next run. What is discarded already is made again where a stage needs it.

        Raises:
            DiskError: The disk is full, or the like: every later stage would fail by it as well.
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
        for number, stage in enumerate(plan.stages, start=1):
            found = self.store.find(stage)
            error = next((e for one in stage.parents if (e := self.failed.get(one.fingerprint))), None)
            try:
                if error is not None and found is None:
                    raise error
                if stage.fingerprint not in unwanted:
                    needed = self._is_needed(stage, consumers)
                    self.done[stage.fingerprint] = self.make(stage, with_artefacts=needed)
                self._over.add(stage.fingerprint)
            except Exception as failure:  # whatever else it is, the other stages go on
                self._watcher.stage_ended(stage.name)
                stopping.check()  # a library made an error of a stop
                if (full := disk_error(failure, self.store.folder)) is not None:
                    raise full from failure
                if found is None:
                    self.failed[stage.fingerprint] = failure
                    if self._said is not None:
                        self._said.failed(stage.folder_name, failure)
                else:  # its artefacts cannot be made again: what needs them fails
                    self.done[stage.fingerprint] = found
            for fingerprint, own in list(self._on_disk.items()):
                if fingerprint not in plan.kept and not self._is_needed(own, consumers):
                    self.store.discard(self._on_disk.pop(fingerprint))
            self._shelf.clear_but([one.holds for one in plan.stages[number:] if one.holds is not None])
            yield stage

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
            place = Workplace(folder, self.store.cache, watcher, self.store.folder_of, self._shelf)
            done = stage.work(place)
            place.check_given()
            for parent in stage.parents:
                if self.store.find(parent, with_artefacts=True) is None:
                    raise LingraftError(
                        f"{self.store.folder_of(parent)}: was changed while {stage.name} read it; run the same command "
                        "again."
                    )
            give_back()  # a model per stage: what cycles keep alive would add up
            torch.cuda.empty_cache()  # the next stage may be other processes' work on the same accelerator
            if self._said is not None:
                self._said.worked(stage.folder_name)
            return done

        if self.store.find(stage, with_artefacts=with_artefacts) is None:
            for parent in stage.parents:  # before this stage begins, not inside of it
                self.make(parent, with_artefacts=True)
        done = self.store.run(stage, watched, with_artefacts=with_artefacts)
        if worked and self._said is not None:
            self._said.finished(stage.folder_name)
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
        return done

    def is_settled(self, stage: StageSpec) -> bool:
        """Return whether a stage is done or has failed."""
        return stage.fingerprint in self.done or stage.fingerprint in self.failed

    def _is_needed(self, stage: StageSpec, consumers: dict[str, list[StageSpec]]) -> bool:
        """Return whether a stage that reads the artefacts is not done, or has to be made again for one that is not."""
        return any(
            one.fingerprint not in self._over
            or (
                one.is_discardable
                and one.fingerprint not in self._on_disk
                and self._is_needed(one, consumers)
            )
            for one in consumers[stage.fingerprint]
        )
