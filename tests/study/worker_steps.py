"""Stages that misbehave in their worker, for tests of engines; workers import it, as their path is the driver's."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from lingraft import stopping
from lingraft.errors import DataError, DiskError
from lingraft.stage import Json, StageSpec, Work, Workplace
from lingraft.study.events import Watcher
from lingraft.study.execute import Executor
from lingraft.study.plan import Plan
from lingraft.study.pool import Pool
from lingraft.study.store import Store


@dataclass(frozen=True, eq=False)
class Step(StageSpec):
    """Reads its parents' files and writes its own, after `action`; `folder` holds what attempts leave."""

    kind: ClassVar[str] = "train"
    is_discardable: ClassVar[bool] = True
    continues: ClassVar[tuple[str, ...]] = ("saved",)

    folder: Path
    action: str = "work"
    before: tuple[StageSpec, ...] = ()

    @property
    def inputs(self) -> dict[str, Json]:
        return {"label": self.label, "before": [one.fingerprint for one in self.before]}

    @property
    def parents(self) -> tuple[StageSpec, ...]:
        return self.before

    def work(self, place: Workplace) -> Work:
        for one in self.before:
            assert (place.folder_of(one) / "file").read_text() == one.label
        with (self.folder / f"attempts of {self.label}").open("a") as attempts:
            attempts.write(f"{os.getpid()}\n")
        is_first = len((self.folder / f"attempts of {self.label}").read_text().splitlines()) == 1
        place.watcher.noted_of(self.label, "begins")
        os.write(1, f"printed by {self.label}\n".encode())
        match self.action:
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "die_once" if is_first:
                os.kill(os.getpid(), signal.SIGKILL)
            case "lose_connection_once" if is_first:
                raise DataError("the server is away") from ConnectionResetError("peer")
            case "refuse":
                raise DataError(f"{self.label} is broken")
            case "fill_the_disk":
                raise DiskError(f"{place.folder}: the disk is full")
            case "meet":
                self._wait_for(lambda: len(list(self.folder.glob("attempts of meet*"))) == 2)
            case "save_when_stopped" if not (saved := place.folder / "saved").exists():
                with stopping.finish_first():
                    (self.folder / f"{self.label} listens").touch()
                    self._wait_for(lambda: stopping.requested() is not None)
                    time.sleep(1.0)  # in which the signal is handed on again
                    saved.write_text("half")
                    stopping.saved(f"{self.label} is saved")
            case "hang":
                time.sleep(300)
        (place.folder / "file").write_text(self.label)
        return Work({"label": self.label}, {})

    def _wait_for(self, condition: Callable[[], bool]) -> None:
        until = time.monotonic() + 300  # on a machine that has other work
        while not condition():
            assert time.monotonic() < until, f"{self.label} waited in vain"
            time.sleep(0.05)


@dataclass
class Seen(Watcher):
    """Keeps what a study reports."""

    lines: list[str] = field(default_factory=list)

    def stage_started(self, label: str) -> None:
        self.lines.append(f"started {label}")

    def stage_finished(self, label: str, seconds: float, reused: bool) -> None:  # noqa: ARG002
        self.lines.append(f"{'reused' if reused else 'finished'} {label}")

    def noted(self, message: str) -> None:
        self.lines.append(message)


def plan_of(*stages: StageSpec) -> Plan:
    """Return a plan of which all results are read and no artefact is kept."""
    return Plan(
        stages=stages,
        base=None,
        cells=(),
        measures=(),
        results=frozenset(one.fingerprint for one in stages),
        kept=frozenset(),
        limits={},
        notes=(),
    )


def make(run: Path, plan: Plan, retries: int = 2) -> tuple[Executor, Seen]:
    """Make a plan in two workers."""
    seen = Seen()
    with Store(run) as store, Pool(run, 2) as pool:
        executor = Executor(store, seen)
        for _ in executor.run(plan, pool, retries=retries):
            pass
    return executor, seen
