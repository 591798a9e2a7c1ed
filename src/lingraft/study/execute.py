"""Make the stages of a plan, each once, and report what happens."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from graphlib import TopologicalSorter
from heapq import heappop, heappush
from pathlib import Path
from typing import Any

import torch

from lingraft.stage import FinishedStage, Shelf, StageSpec, Work, Workplace
from lingraft.study.events import Watcher
from lingraft.study.plan import Plan, consumers_of
from lingraft.study.store import Store


class Executor:
    """Makes stages in one store, or finds them finished.

    Attributes:
        store: Where they are.
        done: By fingerprint, the stages that are done.
        failed: By fingerprint, why others are not; what depends on a failed stage fails with its error.
    """

    def __init__(self, store: Store, watcher: Watcher | None = None) -> None:
        self.store = store
        self.done: dict[str, FinishedStage] = {}
        self.failed: dict[str, Exception] = {}
        self._watcher = watcher or Watcher()
        self._shelf: Shelf[Any] = Shelf()
        self._reported: set[str] = set()
        self._over: set[str] = set()  # done, or wanted by nothing
        self._on_disk: dict[str, StageSpec] = {}  # those with artefacts that may be discarded

    def run(self, plan: Plan) -> Iterator[StageSpec]:
        """Make the stages of a plan in topological order, and yield each when it is done or has failed.

        An artefact is discarded when the last stage that reads it is done, unless the plan keeps it; that of a stage
        which has failed stays, for the next run. What is discarded already is made again where a stage needs it.
        """
        consumers = consumers_of(plan)
        places = {stage.fingerprint: place for place, stage in enumerate(plan.stages)}
        sorter = TopologicalSorter(
            {stage.fingerprint: [one.fingerprint for one in stage.parents] for stage in plan.stages}
        )
        sorter.prepare()
        ready: list[int] = []
        pending = list(plan.stages)
        while sorter.is_active():
            for fingerprint in sorter.get_ready():
                heappush(ready, places[fingerprint])  # of what is ready, the plan's own order decides
            stage = plan.stages[heappop(ready)]
            readers = consumers[stage.fingerprint]
            error = next((e for one in stage.parents if (e := self.failed.get(one.fingerprint))), None)
            try:
                if error is not None and self.store.find(stage) is None:
                    raise error
                # What serves others alone, such as a state, is not made anew for stages that are finished.
                is_wanted = stage.fingerprint in plan.results or any(
                    self.store.find(one) is None for one in readers
                )
                if is_wanted or self.store.find(stage) is not None:
                    self.done[stage.fingerprint] = self.make(stage)
                self._over.add(stage.fingerprint)
            except Exception as failure:  # whatever it is, the other stages go on
                self.failed[stage.fingerprint] = failure
            sorter.done(stage.fingerprint)
            for fingerprint, own in list(self._on_disk.items()):
                if fingerprint not in plan.kept and not self._is_needed(own, consumers):
                    self.store.discard(self._on_disk.pop(fingerprint))
            pending.remove(stage)
            self._shelf.clear_but([one.holds for one in pending if one.holds is not None])
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
            place = Workplace(folder, self.store.cache, self._watcher, self.store.folder_of, self._shelf)
            done = stage.work(place)
            gc.collect()  # a model per stage: what cycles keep alive would add up
            torch.cuda.empty_cache()  # the next stage may be other processes' work on the same accelerator
            return done

        if self.store.find(stage, with_artefacts=with_artefacts) is None:
            for parent in stage.parents:  # before this stage begins, not inside of it
                self.make(parent, with_artefacts=True)
        done = self.store.run(stage, watched, with_artefacts=with_artefacts)
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
