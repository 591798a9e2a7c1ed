"""What happens in a stage of another process reaches the watcher of the run: all of it, in order, and once."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest

from lingraft.records import read_json
from lingraft.stage import Json, StageProgress, StageSpec, Work, Workplace
from lingraft.strategies.base import FreezePlanRow, ModulePlan
from lingraft.study import event_log
from lingraft.study.event_log import (
    Answered,
    EventFollower,
    EventLog,
    Noted,
    Progressed,
    attempt_so_far,
    event_file,
    event_of,
    log_of,
    output_file,
)
from lingraft.study.events import Watcher
from lingraft.study.failures import FAILURES, failed_attempts, record_failure
from lingraft.study.under_way import LOSSES, UNDER_WAY, UnderWayFile, losses_so_far

ROWS = (FreezePlanRow("layer 0", 1, 2, (ModulePlan("attention", 1, 2),)),)


@dataclass(frozen=True, eq=False)
class Training(StageSpec):
    """A stage that is not made here."""

    kind: ClassVar[str] = "train"

    @property
    def inputs(self) -> dict[str, Json]:
        return {"label": self.label}

    def work(self, place: Workplace) -> Work:
        raise NotImplementedError


STAGE = Training("de / plain")


class Told(Watcher):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.all: list[object] = []

    def stage_started(self, label: str) -> None:
        self.all.append(("started", label))

    def stage_ended(self, label: str) -> None:
        self.all.append(("ended", label))

    def stage_progressed(self, progress: StageProgress) -> None:
        self.all.append((progress.stage, progress.done))

    def answered(self, task: str, prompt: str, answer: str) -> None:
        self.all.append((task, prompt, answer))

    def freeze_plan(self, label: str, plan: Sequence[FreezePlanRow]) -> None:
        self.all.append((label, tuple(plan)))

    def noted(self, message: str) -> None:
        self.all.append(message)


@pytest.fixture
def told() -> Told:
    return Told()


def log_for(run: Path, attempt: int = 1, stage: StageSpec = STAGE, folder: Path | None = None) -> EventLog:
    return EventLog(event_file(run, stage.folder_name, attempt), folder)


def test_all_that_happens_in_a_stage_is_told_once_and_in_order(tmp_path: Path, told: Told) -> None:
    follower = EventFollower(tmp_path, told)
    follower.begin(STAGE)
    follower.read()  # nothing is there yet
    with log_for(tmp_path) as log:
        log.stage_started(STAGE.name)
        log.freeze_plan("de / plain", ROWS)
        log.stage_progressed(StageProgress(1, 8, float("nan")))
        log.answered("lookup/de", "Q\ud800", "A")
        log.noted_of("de / plain", "3 rows dropped")
        log.noted("truncated")
        follower.read()
        seen = list(told.all)
        follower.read()
        assert told.all == seen
        log.stage_progressed(StageProgress(8, 8))
    follower.end(STAGE)
    assert told.all == [
        ("started", "train de / plain"),
        ("de / plain", ROWS),
        ("train de / plain", 1),
        ("lookup/de", "Q?", "A"),
        "de / plain: 3 rows dropped",
        "truncated",
        ("train de / plain", 8),
        ("ended", "train de / plain"),
    ]
    follower.read()
    assert told.all[-1] == ("ended", "train de / plain")


def test_of_quick_progress_the_newest_is_written_and_every_note(
    tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "_SECONDS_BETWEEN_WRITES", 3600.0)
    with log_for(tmp_path) as log:
        log.stage_started(STAGE.name)
        for step in range(1, 10_001):
            log.stage_progressed(StageProgress(step, 10_000))
            if step % 5000 == 0:
                log.noted(f"note of step {step}")
    assert event_file(tmp_path, STAGE.folder_name, 1).read_bytes().count(b"\n") == 5
    follower = EventFollower(tmp_path, told)
    follower.begin(Training("other"))
    follower._followed[STAGE.folder_name] = event_log._Followed()
    follower.read()
    assert told.all[1:] == [
        ("train de / plain", 5000),
        "note of step 5000",
        ("train de / plain", 10_000),
        "note of step 10000",
    ]


def test_the_folders_of_many_stages_are_looked_at_more_rarely(
    tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(event_log, "time", SimpleNamespace(monotonic=lambda: clock.now))
    looked: list[str] = []
    follower = EventFollower(tmp_path, told)
    monkeypatch.setattr(follower, "_read", looked.append)
    for number in range(60):
        follower.begin(Training(f"{number}"))
    for tenth in range(21):
        clock.now = tenth / 10
        follower.read()
    assert len(looked) == 4 * 60  # in two seconds of ten looks each


def test_half_a_line_is_waited_for_and_a_damaged_one_is_left_out_at_last(
    tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    with log_for(tmp_path) as log:
        log.stage_started(STAGE.name)
        log.noted("first")
        log.noted("second")
        log.noted("third")
    path = event_file(tmp_path, STAGE.folder_name, 1)
    lines = path.read_bytes().splitlines(keepends=True)
    path.unlink()
    follower = EventFollower(tmp_path, told)
    follower.begin(STAGE)
    path.write_bytes(lines[0] + lines[1][:20])
    follower.read()
    assert told.all == [("started", "train de / plain")]
    path.write_bytes(lines[0] + lines[1][:20] + bytes(len(lines[1]) - 21) + b"\n")  # a page that has not come
    follower.read()
    assert told.all == [("started", "train de / plain")]
    path.write_bytes(lines[0] + lines[1] + lines[2].replace(b"second", b"sec0nd") + lines[3])
    follower.read()
    assert told.all[1:] == ["first"]
    monkeypatch.setattr(event_log, "_SECONDS_UNTIL_DAMAGED", 0.0)
    follower.read()
    follower.read()
    assert told.all[1] == "first"
    assert "a line is damaged" in str(told.all[2])
    assert told.all[3:] == ["third"]


def test_a_new_attempt_begins_anew_and_the_old_one_is_heard_no_more(tmp_path: Path, told: Told) -> None:
    follower = EventFollower(tmp_path, told)
    follower.begin(STAGE)
    with log_for(tmp_path, 1) as lost, log_for(tmp_path, 2) as log:
        lost.stage_started(STAGE.name)
        lost.noted("of the first")
        follower.read()
        log.stage_started(STAGE.name)
        lost.noted("before the second was seen")
        follower.read()
        lost.noted("of a process that was stopped and goes on")
        log.noted("of the second")
        follower.read()
    assert told.all == [
        ("started", "train de / plain"),
        "of the first",
        "before the second was seen",
        ("started", "train de / plain"),
        "of the second",
    ]


def test_an_attempt_of_an_earlier_run_is_told_only_where_it_goes_on(tmp_path: Path, told: Told) -> None:
    with log_for(tmp_path, 3) as log:
        log.stage_started(STAGE.name)
        log.noted("told by the run before")
        follower = EventFollower(tmp_path, told)
        follower.begin(STAGE)
        follower.read()
        assert told.all == []
        log.noted("new")
        follower.read()
    assert told.all == [("started", "train de / plain"), "new"]


WORKER = """
import sys
from pathlib import Path
from lingraft.stage import StageProgress
from lingraft.study.event_log import EventLog
with EventLog(Path(sys.argv[1])) as log:
    log.stage_started(sys.argv[2])
    log.stage_progressed(StageProgress(3, 8, 2.5))
    log.answered("lookup/de", "Q", "A")
"""


def test_the_run_says_where_each_of_several_stages_is_made(tmp_path: Path, told: Told) -> None:
    others = [Training(f"other {number}") for number in range(2)]
    with UnderWayFile(tmp_path) as said:
        follower = EventFollower(tmp_path, told, said)
        for stage in others:
            follower.begin(stage)
        processes = [
            subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    WORKER,
                    str(event_file(tmp_path, stage.folder_name, 1)),
                    stage.name,
                ]
            )
            for stage in others
        ]
        assert [one.wait() for one in processes] == [0, 0]
        follower.read()
        said._write()
        found = {one["label"]: one for one in read_json(tmp_path / UNDER_WAY)["at_work"]}
        assert set(found) == {stage.name for stage in others}
        for stage, process in zip(others, processes, strict=True):
            own = found[stage.name]
            assert (own["host"], own["process"], own["attempt"]) == (platform.node(), process.pid, 1)
            assert (own["progress"]["done"], own["answers"][0]["answer"]) == (3, "A")
        follower.end(others[0])
        said._write()
        (left,) = read_json(tmp_path / UNDER_WAY)["at_work"]
        assert left["label"] == others[1].name


def test_losses_are_written_where_the_stage_works_until_its_record_follows(tmp_path: Path) -> None:
    place = tmp_path / "work"
    place.mkdir()
    with log_for(tmp_path, folder=place) as log:
        log.stage_started(STAGE.name)
        log.stage_progressed(StageProgress(1, 8, 2.5))
        log.noted("all that waits is written with it")
        assert losses_so_far(place) == ((1, 2.5),)
        log.worked()
        (place / LOSSES).unlink()
        log.stage_progressed(StageProgress(2, 8, 2.0))
    assert not (place / LOSSES).exists()


def test_a_note_that_the_disk_refused_is_written_later(tmp_path: Path, told: Told) -> None:
    path = event_file(tmp_path, STAGE.folder_name, 1)
    path.parent.parent.mkdir(parents=True)
    path.parent.touch()  # a file where the folder should be
    with log_for(tmp_path) as log:
        log.stage_started(STAGE.name)
        log.noted("kept")
        path.parent.unlink()
    follower = EventFollower(tmp_path, told)
    follower._followed[STAGE.folder_name] = event_log._Followed()
    follower.read()
    assert told.all == [("started", "train de / plain"), "kept"]


def test_a_long_attempt_is_summed_up_from_its_beginning_and_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert attempt_so_far(tmp_path, STAGE.folder_name, 1) is None
    with log_for(tmp_path) as log:
        log.stage_started(STAGE.name)
        for step in range(200):
            log.stage_progressed(StageProgress(step, 200))
            log.noted("so that each is written")
        log.answered("lookup/de", "Q", "A")
    for tail in (100, 700, 1 << 20):
        monkeypatch.setattr(event_log, "_TAIL_BYTES", tail)
        found = attempt_so_far(tmp_path, STAGE.folder_name, 1)
        assert found is not None
        assert (found.label, found.process) == (STAGE.name, os.getpid())
        if tail > 100:
            assert found.progress is not None
            assert found.progress.done == 199
            assert [one.answer for one in found.answers] == ["A"]


def test_every_event_reads_back_and_no_other_row_does() -> None:
    from lingraft.records import to_json
    from lingraft.study.under_way import FirstAnswer

    for event in (
        Progressed(StageProgress(1, 2, stage="x"), 1.0),
        Answered(FirstAnswer("a", "b", "c")),
        Noted("m"),
        Noted("m", "l"),
    ):
        assert event_of(to_json(event)) == event
    rows: tuple[object, ...] = ({}, {"event": "other"}, [], None, {"event": "noted"})
    for row in rows:
        with pytest.raises(ValueError, match=r"Started|Field|Input|valid"):
            event_of(row)


def test_failed_attempts_name_their_number_and_the_newest_log_is_found(tmp_path: Path) -> None:
    assert failed_attempts(tmp_path) == ()
    assert log_of(tmp_path, STAGE.folder_name) is None
    for attempt in (9, 10):
        with log_for(tmp_path, attempt) as log:
            log.stage_started(STAGE.name)
        output_file(tmp_path, STAGE.folder_name, attempt).write_text("printed")
        record_failure(
            tmp_path,
            STAGE.folder_name,
            OSError("the connection\nis gone"),
            where="node-1",
            is_made_again=attempt == 9,
        )
    with (tmp_path / FAILURES).open("ab") as file:
        file.write(b'{"stage": "tr')
    found = failed_attempts(tmp_path)
    assert [(one.attempt, one.is_made_again, one.where) for one in found] == [
        (9, True, "node-1"),
        (10, False, "node-1"),
    ]
    assert "\n" not in found[0].reason
    assert log_of(tmp_path, STAGE.folder_name) == output_file(tmp_path, STAGE.folder_name, 10)
