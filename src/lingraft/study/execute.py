"""Make the stages that are described, each once, and report what happens."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch

from lingraft.stage import FinishedStage, Shelf, StageSpec, Work, Workplace
from lingraft.study.events import Watcher
from lingraft.study.store import Store


class Executor:
    """Makes stages in one store, or finds them finished."""

    def __init__(self, store: Store, watcher: Watcher | None = None) -> None:
        self.store = store
        self._watcher = watcher or Watcher()
        self._shelf: Shelf[Any] = Shelf()
        self._reported: set[str] = set()

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
