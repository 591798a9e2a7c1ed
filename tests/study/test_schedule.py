from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest

from lingraft.errors import LingraftError
from lingraft.stage import Json, Needs, StageSpec, Work, Workplace
from lingraft.study import execute
from lingraft.study.engines import Settled
from lingraft.study.events import Watcher
from lingraft.study.execute import Executor
from lingraft.study.plan import Plan
from lingraft.study.schedule import (
    Node,
    Share,
    cards_for,
    estimated_seconds,
    is_held_back,
    order,
    ranks,
    share_of,
)
from lingraft.study.store import Store

EIGHT_CARDS = Node(cards=8, cpus=64, memory_bytes=10**12)
NO_CARDS = Node(cards=0, cpus=16, memory_bytes=10**10, threads=4)


@dataclass(frozen=True, eq=False)
class Step(StageSpec):
    kind: ClassVar[str] = "step"
    reads: tuple[StageSpec, ...] = ()
    own_needs: Needs = field(default_factory=Needs)

    @property
    def inputs(self) -> Mapping[str, Json]:
        return {"label": self.label}

    @property
    def parents(self) -> tuple[StageSpec, ...]:
        return self.reads

    @property
    def needs(self) -> Needs:
        return self.own_needs

    def work(self, place: Workplace) -> Work:
        raise NotImplementedError


ANSWERS = Needs("accelerator", 16, host_bytes=16, most_processes=6)
TRAINS = Needs("accelerator", 60, processes=8, most_processes=8, host_bytes=32)


def test_the_longest_way_to_the_end_begins_first() -> None:
    first = Step("first")
    short, long = Step("short", (first,)), Step("long", (first,))
    last = Step("last", (long,))
    stages = [first, short, long, last]
    seconds = {one.fingerprint: own for one, own in zip(stages, (1.0, 5.0, 2.0, 4.0), strict=True)}
    assert [ranks(stages, seconds)[one.fingerprint] for one in stages] == [7.0, 5.0, 6.0, 4.0]
    assert order(stages, seconds) == [first, long, short, last]


def test_what_leads_to_many_cards_at_once_begins_before_a_longer_way_on_single_ones() -> None:
    long = Step("long", own_needs=ANSWERS)
    state = Step("state", own_needs=ANSWERS)
    train = Step("train", (state,), TRAINS)
    last = Step("last", (train,), ANSWERS)
    seconds = {one.fingerprint: 1.0 for one in (state, train, last)} | {long.fingerprint: 100.0}
    assert order([long, state, train, last], seconds) == [state, train, long, last]


def test_a_stage_stands_after_those_that_it_reads_also_where_no_time_is_known() -> None:
    first = Step("first")
    second = Step("second", (first,))
    assert order([first, second], {}) == [first, second]


def test_each_process_gets_a_card_and_a_core() -> None:
    assert share_of(Step("train", own_needs=TRAINS), EIGHT_CARDS) == Share(8, 8, 32)
    assert share_of(Step("evaluate", own_needs=ANSWERS), EIGHT_CARDS) == Share(1, 1, 16)
    assert share_of(Step("compare"), EIGHT_CARDS) == Share(0, 1, None)


def test_processes_that_answer_on_more_cards_each_load_a_model() -> None:
    assert share_of(Step("evaluate", own_needs=ANSWERS), EIGHT_CARDS, cards=4) == Share(4, 4, 64)


def test_without_cards_a_process_gets_as_many_cores_as_it_has_threads() -> None:
    assert share_of(Step("evaluate", own_needs=ANSWERS), NO_CARDS) == Share(0, 4, 16)
    assert share_of(Step("train", own_needs=TRAINS), NO_CARDS).cpus == 16, "at most all"


def test_answering_takes_one_card_in_a_large_study_and_more_in_a_small_one() -> None:
    def cards(answering: int, cards: int = 8) -> int:
        return cards_for(replace(ANSWERS, most_processes=100), EIGHT_CARDS, cards, answering)

    assert [cards(answering) for answering in (200, 64, 63, 30, 10, 1)] == [1, 1, 2, 4, 8, 8]
    assert cards(90, cards=64) == 8, "on eight such nodes it takes one of them"
    assert cards_for(replace(ANSWERS, most_processes=6), EIGHT_CARDS, 8, 1) == 4, "batches for six"
    assert cards_for(ANSWERS, NO_CARDS, 0, 1) == 0


def test_a_small_stage_does_not_take_the_cards_that_a_larger_one_before_it_waits_for() -> None:
    assert is_held_back(1, [8])
    assert not is_held_back(8, [8, 1]), "as many on another node"
    assert not is_held_back(1, [])
    assert not is_held_back(0, [8]), "it needs none"


def test_a_training_takes_what_processes_say_and_a_comparison_no_card() -> None:
    assert cards_for(TRAINS, EIGHT_CARDS, 64, 1) == 8
    assert cards_for(Needs(), EIGHT_CARDS, 64, 1) == 0


def test_what_is_finished_says_how_long_the_like_takes() -> None:
    small = Step("small", own_needs=Needs(disk_bytes=10**9))
    large = Step("large", own_needs=Needs(disk_bytes=3 * 10**9))
    found = estimated_seconds([small, large], {small.fingerprint: 20.0})
    assert found == {small.fingerprint: 20.0, large.fingerprint: pytest.approx(60.0)}


class Queue:
    """An engine of one node that queues by itself; every stage fails, the one that was submitted first is the next."""

    room, cards = None, 8

    def __init__(self, node: Node = EIGHT_CARDS, memory_bytes: int | None = None) -> None:
        self.node, self.memory_bytes = node, memory_bytes
        self.queued: list[StageSpec] = []
        self.happened: list[str] = []

    def submit(self, stage: StageSpec, share: Share, *, with_artefacts: bool) -> None:  # noqa: ARG002
        self.queued.append(stage)
        self.happened.append(f"{stage.label} on {share.cards}" if share.cards else stage.label)

    def wait(self, seconds: float) -> list[Settled]:  # noqa: ARG002
        stage = self.queued.pop(0)
        self.happened.append(f"{stage.label} ends")
        return [Settled(stage, LingraftError("no"))]

    def __enter__(self) -> Queue:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def run(folder: Path, queue: Queue, *steps: Step) -> list[str]:
    """Run independent steps, and return what was noted."""
    plan = Plan(
        stages=steps,
        base=None,
        cells=(),
        measures=(),
        results=frozenset(one.fingerprint for one in steps),
        kept=frozenset(),
        limits={},
        notes=(),
    )
    said = Noted()
    with Store(folder) as store:
        assert len(list(Executor(store, said).run(plan, queue))) == len(steps)
    return said.lines


class Noted(Watcher):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def noted(self, message: str) -> None:
        self.lines.append(message)


def test_a_run_submits_no_single_card_while_a_training_waits_for_the_node(tmp_path: Path) -> None:
    queue = Queue()
    run(
        tmp_path / "run",
        queue,
        Step("evaluate", own_needs=ANSWERS),
        Step("one", own_needs=TRAINS),
        Step("two", own_needs=TRAINS),
    )
    assert queue.happened == [
        "one on 8", "two on 8", "one ends", "evaluate on 4", "two ends", "evaluate ends",
    ]  # fmt: skip


def test_stages_at_work_together_fit_the_memory_and_none_takes_what_one_before_it_waits_for(
    tmp_path: Path,
) -> None:
    queue = Queue(NO_CARDS, memory_bytes=100)
    sizes = {"larger than all": 1000, "first": 60, "second": 50, "third": 30}
    steps = [Step(label, own_needs=Needs("accelerator", size)) for label, size in sizes.items()]
    noted = run(tmp_path / "run", queue, *steps, Step("not estimated"))
    assert queue.happened == [
        "not estimated", "not estimated ends",
        "larger than all", "larger than all ends",
        "first", "first ends",
        "second", "third", "second ends", "third ends",
    ]  # fmt: skip
    assert len(noted) == 1
    assert "step larger than all waits until others have ended" in noted[0]
    assert "too little memory" in noted[0]


def test_what_is_short_of_disk_waits_for_what_may_free_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execute, "disk_usage", lambda _: SimpleNamespace(free=100, total=100))
    queue = Queue(NO_CARDS)
    trainings = [Step(label, own_needs=Needs(disk_bytes=size)) for label, size in (("one", 70), ("two", 60))]
    noted = run(tmp_path / "run", queue, *trainings, Step("evaluate"))
    assert queue.happened == ["one", "evaluate", "one ends", "two", "evaluate ends", "two ends"]
    assert len(noted) == 1
    assert "too little disk" in noted[0]


def test_what_frees_disk_goes_before_what_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execute, "disk_usage", lambda _: SimpleNamespace(free=10, total=100))
    queue = Queue(NO_CARDS)
    run(tmp_path / "run", queue, Step("train", own_needs=Needs(disk_bytes=60)), Step("evaluate"))
    assert queue.happened == ["evaluate", "evaluate ends", "train", "train ends"]
