"""A plan is run in topological order; what fails or is discarded does not stop the rest."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest

from lingraft.claims import claim
from lingraft.errors import DataError, DiskError
from lingraft.stage import FinishedStage, Json, Needs, StageSpec, Work, Workplace
from lingraft.stage_record import read_record
from lingraft.study import execute
from lingraft.study.engines import LostError, Settled
from lingraft.study.events import Watcher
from lingraft.study.execute import Executor, InThisProcess
from lingraft.study.failures import failed_attempts
from lingraft.study.plan import Plan
from lingraft.study.schedule import Share
from lingraft.study.store import Store


@dataclass
class Log:
    """What the stages of a test did."""

    worked: list[str] = field(default_factory=list)
    failing: set[str] = field(default_factory=set)


@dataclass(frozen=True, eq=False)
class Step(StageSpec):
    """Reads its parents' files and writes one."""

    kind: ClassVar[str] = "train"
    is_discardable: ClassVar[bool] = True

    log: Log
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
        if self.label in self.log.failing:
            raise DataError(f"{self.label} is broken")
        self.log.worked.append(self.label)
        (place.folder / "file").write_text(self.label)
        return Work({"label": self.label}, {})


class Reading(Step):
    """A stage whose artefact stays, such as an evaluation."""

    kind: ClassVar[str] = "evaluate"
    is_discardable: ClassVar[bool] = False


@dataclass
class Graph:
    """Phase 1, a phase with a state, and what reads them."""

    log: Log = field(default_factory=Log)

    def __post_init__(self) -> None:
        self.one = Step("one", self.log)
        self.read_one = Reading("read one", self.log, (self.one,))
        self.state = Step("state", self.log, (self.one,))
        self.two = Step("two", self.log, (self.one, self.state))
        self.read_two = Reading("read two", self.log, (self.two,))
        self.compare = Reading("compare", self.log, (self.one, self.two))
        self.stages: list[StageSpec] = [
            self.one,
            self.read_one,
            self.state,
            self.two,
            self.read_two,
            self.compare,
        ]

    def plan(self, kept: Iterable[StageSpec] = (), stages: Iterable[StageSpec] | None = None) -> Plan:
        every = self.stages if stages is None else list(stages)
        return Plan(
            stages=tuple(every),
            base=None,
            cells=(),
            measures=(),
            results=frozenset(one.fingerprint for one in every if one is not self.state),
            kept=frozenset(one.fingerprint for one in kept),
            limits={},
            notes=(),
        )

    def run(self, folder: Path, plan: Plan, watcher: Watcher | None = None) -> Executor:
        self.log.worked.clear()
        with Store(folder) as store:
            executor = Executor(store, watcher)
            self.settled = [stage.label for stage in executor.run(plan)]
        return executor

    def on_disk(self, folder: Path) -> set[str]:
        return {path.read_text() for path in folder.glob("stages/train-*/file")}


def test_stages_run_in_the_plans_order_and_an_artefact_goes_with_its_last_reader(tmp_path: Path) -> None:
    graph = Graph()
    plan = graph.plan(kept=[graph.two])
    left: dict[str, set[str]] = {}
    with Store(tmp_path) as store:
        for stage in Executor(store).run(plan):
            left[stage.label] = graph.on_disk(tmp_path)
    assert graph.log.worked == list(left) == [stage.label for stage in graph.stages]
    assert left["two"] == {"one", "two"}  # the state served `two` alone
    assert left["read two"] == {"one", "two"}
    assert left["compare"] == {"two"}


def test_a_finished_plan_run_again_makes_nothing_not_even_what_was_discarded(tmp_path: Path) -> None:
    graph = Graph()
    graph.run(tmp_path, graph.plan())
    executor = graph.run(tmp_path, graph.plan())
    assert graph.log.worked == []
    assert all(stage.reused for stage in executor.done.values())
    assert len(executor.done) == len(graph.stages)


def test_what_serves_others_alone_is_not_made_anew_for_finished_stages(tmp_path: Path) -> None:
    graph = Graph()
    graph.run(tmp_path, graph.plan())
    (Store(tmp_path).folder_of(graph.state) / "record.json").unlink()
    graph.run(tmp_path, graph.plan())
    assert graph.log.worked == []


def test_discarded_artefacts_are_made_again_for_a_stage_that_is_added_and_then_discarded(
    tmp_path: Path,
) -> None:
    graph = Graph()
    graph.run(tmp_path, graph.plan())
    added = Reading("added", graph.log, (graph.two,))
    graph.run(tmp_path, graph.plan(stages=[*graph.stages, added]))
    assert graph.log.worked == ["one", "state", "two", "added"]
    assert graph.on_disk(tmp_path) == set()


class Counting(Watcher):
    """Counts what is announced and what is reported."""

    def __init__(self) -> None:
        self.announced = 0
        self.finished: list[str] = []

    def study_started(self, stages: int) -> None:
        self.announced = stages

    def stage_finished(self, label: str, seconds: float, reused: bool) -> None:  # noqa: ARG002
        self.finished.append(label)


def test_as_many_stages_are_reported_as_were_announced_whatever_was_discarded(tmp_path: Path) -> None:
    graph = Graph()
    graph.run(tmp_path, graph.plan())
    added = Reading("added", graph.log, (graph.two,))
    remade = Counting()
    graph.run(tmp_path, graph.plan(stages=[*graph.stages, added]), remade)
    assert remade.announced == len(remade.finished) == len(graph.stages) + 1
    (Store(tmp_path).folder_of(graph.state) / "record.json").unlink()
    unwanted = Counting()
    graph.run(tmp_path, graph.plan(), unwanted)
    assert unwanted.announced == len(unwanted.finished) == len(graph.stages) - 1


def test_what_cannot_be_made_again_fails_its_new_reader_alone(tmp_path: Path) -> None:
    graph = Graph()
    graph.run(tmp_path, graph.plan())
    graph.log.failing = {"two"}
    added = Reading("added", graph.log, (graph.two,))
    executor = graph.run(tmp_path, graph.plan(stages=[*graph.stages, added]))
    assert set(executor.failed) == {added.fingerprint}
    assert len(executor.done) == len(graph.stages)


def test_a_failure_fails_what_depends_on_it_and_nothing_else(tmp_path: Path) -> None:
    graph = Graph()
    graph.log.failing = {"two"}
    executor = graph.run(tmp_path, graph.plan())
    assert graph.log.worked == ["one", "read one", "state"]
    assert {str(executor.failed[one.fingerprint]) for one in (graph.two, graph.read_two, graph.compare)} == {
        "two is broken"
    }
    assert all(executor.is_settled(stage) for stage in graph.stages)
    assert graph.on_disk(tmp_path) == {"one", "state"}, "what the failed stage reads stays for the next run"
    graph.log.failing = set()
    graph.run(tmp_path, graph.plan())
    assert graph.log.worked == ["two", "read two", "compare"]
    assert graph.on_disk(tmp_path) == set()


def test_what_is_held_in_memory_is_let_go_when_no_stage_will_read_it(tmp_path: Path) -> None:
    class Held(Reading):
        kind: ClassVar[str] = "drift"

        @property
        def holds(self) -> str:
            return self.label[0]

        def work(self, place: Workplace) -> Work:
            made = place.shelf.get(self.holds, lambda: self.label)
            return Work({"made": made}, {})

    log = Log()
    stages = [Held(label, log) for label in ("a1", "a2", "b1")]
    graph = Graph()
    with Store(tmp_path) as store:
        executor = Executor(store)
        kept = [executor._shelf._held for _ in executor.run(graph.plan(stages=stages))]
    assert [executor.done[one.fingerprint].result["made"] for one in stages] == ["a1", "a1", "b1"]
    assert kept == [("a", "a1"), None, None]


class Notes(Watcher):
    """Keeps what is noted."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def noted(self, message: str) -> None:
        self.said.append(message)


class Large(Step):
    """A stage that writes much."""

    @property
    def needs(self) -> Needs:
        return Needs(disk_bytes=60)


class Full(Step):
    """A stage that meets a full disk."""

    def work(self, place: Workplace) -> Work:
        self.log.worked.append(self.label)
        raise OSError(errno.ENOSPC, "No space left on device", str(place.folder / "file"))


def test_a_full_disk_ends_a_run_in_one_process_without_another_attempt(tmp_path: Path) -> None:
    graph = Graph()
    with Store(tmp_path) as store, pytest.raises(DiskError, match="the disk is full"):
        list(Executor(store).run(graph.plan(stages=[Full("full", graph.log)]), retries=2))
    assert graph.log.worked == ["full"]


class Dying(InThisProcess):
    """An engine whose processes die when they have published a stage, before they say so."""

    def wait(self, seconds: float) -> list[Settled]:
        return [
            Settled(one.stage, LostError("killed"), "worker 1", may_pass=True)
            for one in super().wait(seconds)
        ]


def test_a_stage_is_done_whose_process_died_when_it_had_published_it(tmp_path: Path) -> None:
    graph = Graph()
    with Store(tmp_path) as store:
        executor = Executor(store)
        list(executor.run(graph.plan(), Dying(executor), retries=0))
    assert executor.failed == {}
    assert len(executor.done) == len(graph.log.worked) == len(graph.stages)
    assert failed_attempts(tmp_path) == ()


def test_who_waits_for_a_process_of_an_earlier_run_says_so(tmp_path: Path) -> None:
    graph, notes = Graph(), Notes()
    with Store(tmp_path) as store, claim(store.claims / graph.one.folder_name) as held:
        executor = Executor(store, notes)

        class Waiting(InThisProcess):
            def wait(self, seconds: float) -> list[Settled]:
                held.release()
                return super().wait(seconds)

        list(executor.run(graph.plan(), Waiting(executor)))
    assert len(notes.said) == 1
    assert notes.said[0].startswith(f"train one: is being made by process {os.getpid()} on ")


def test_what_is_discarded_makes_room_before_the_next_stage_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = Graph()
    large = Large("large", graph.log, (graph.read_one,))

    def usage(folder: Path) -> SimpleNamespace:
        return SimpleNamespace(free=100 - 60 * len(graph.on_disk(folder)), total=100)

    monkeypatch.setattr(execute, "disk_usage", usage)
    notes, beside = Notes(), []

    class Looking(InThisProcess):
        def submit(self, stage: StageSpec, share: Share, *, with_artefacts: bool) -> None:
            beside.append((stage.label, graph.on_disk(tmp_path)))
            super().submit(stage, share, with_artefacts=with_artefacts)

    with Store(tmp_path) as store:
        executor = Executor(store, notes)
        list(executor.run(graph.plan(stages=[graph.one, graph.read_one, large]), Looking(executor)))
    assert beside == [("one", set()), ("read one", {"one"}), ("large", set())]
    assert notes.said == []


def test_a_stage_that_nothing_is_in_the_way_of_is_not_said_to_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, notes = Graph(), Notes()
    monkeypatch.setattr(execute, "disk_usage", lambda _: SimpleNamespace(free=10, total=100))
    with Store(tmp_path) as store:
        executor = Executor(store, notes)
        list(executor.run(graph.plan(stages=[Large("large", graph.log)]), InThisProcess(executor)))
    assert notes.said == []


def test_a_file_system_that_answers_with_an_error_ends_no_run_when_a_process_has_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = Graph()
    with Store(tmp_path) as store:
        executor, find = Executor(store), store.find

        class Broken(InThisProcess):
            def wait(self, seconds: float) -> list[Settled]:
                (settled,) = super().wait(seconds)
                if graph.log.worked == ["one"]:
                    graph.log.worked.append("lost")
                    monkeypatch.setattr(store, "find", fails_once)
                    return [Settled(settled.stage, LostError("killed"), "worker 1", may_pass=True)]
                return [settled]

        def fails_once(stage: StageSpec, *, with_artefacts: bool = False) -> FinishedStage | None:
            monkeypatch.setattr(store, "find", find)
            raise OSError(errno.EIO, "Input/output error")

        list(executor.run(graph.plan(), Broken(executor), retries=1))
    assert executor.failed == {}
    assert [one.reason for one in failed_attempts(tmp_path)] == ["killed"]


def test_what_a_stage_reads_is_made_again_whatever_its_record_calls_discarded(tmp_path: Path) -> None:
    graph = Graph()
    after = Reading("after", graph.log, (graph.read_one,))
    plan = graph.plan(stages=[graph.one, graph.read_one, after])
    graph.run(tmp_path, plan)
    folder = Store(tmp_path).folder_of(graph.read_one)
    read_record(folder).discarded().write(folder)
    (Store(tmp_path).folder_of(after) / "record.json").unlink()
    graph.run(tmp_path, plan)
    assert graph.log.worked == ["one", "read one", "after"]
