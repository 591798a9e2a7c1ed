"""How far a run is, as its folder alone says it."""

from __future__ import annotations

import errno
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest

from lingraft.append_log import AppendLog
from lingraft.claims import Owner, claim
from lingraft.errors import ConfigError, DataError, LingraftError
from lingraft.records import fingerprint_of, read_json, to_json, write_json_atomically
from lingraft.report.runs import read_report
from lingraft.stage import Json, StageProgress, StageSpec, Work, Workplace
from lingraft.study import under_way
from lingraft.study.event_log import EventLog, attempt_so_far, event_file, output_file
from lingraft.study.execute import Executor
from lingraft.study.failures import FailedAttempt, record_failure
from lingraft.study.plan import Plan, listed_stages
from lingraft.study.status import RunStatus, status_of
from lingraft.study.store import Store
from lingraft.study.under_way import (
    LOSSES,
    UNDER_WAY,
    FirstAnswer,
    Holder,
    StageAtWork,
    UnderWay,
    UnderWayFile,
    losses_so_far,
    read_under_way,
)
from lingraft.study.unused import PLAN, ListedStage, leftovers, write_plan

Act = Callable[[Workplace], None]


@dataclass(frozen=True, eq=False)
class Step(StageSpec):
    """Does what a test says, and records its label."""

    kind: ClassVar[str] = "evaluate"

    act: Act = field(default=lambda _: None)
    before: tuple[StageSpec, ...] = ()

    @property
    def inputs(self) -> dict[str, Json]:
        return {"label": self.label}

    @property
    def parents(self) -> tuple[StageSpec, ...]:
        return self.before

    def work(self, place: Workplace) -> Work:
        self.act(place)
        return Work({"label": self.label}, {})


@dataclass(frozen=True, eq=False)
class Training(Step):
    """A training, which goes on from what an interrupted one left."""

    kind: ClassVar[str] = "train"
    continues: ClassVar[tuple[str, ...]] = (LOSSES,)


def plan_of(*stages: StageSpec) -> Plan:
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


def run(folder: Path, *stages: StageSpec) -> None:
    """Make stages as `run_study` does."""
    plan = plan_of(*stages)
    with Store(folder) as store, UnderWayFile(folder) as said:
        (folder / "study.yaml").touch()
        write_plan(folder, listed_stages(plan))
        for _ in Executor(store, said=said).run(plan):
            pass


def until(folder: Path, holds: Callable[[RunStatus], bool]) -> RunStatus:
    """Return the status when it says something, which another thread writes within a second."""
    for _ in range(100):
        if holds(found := status_of(folder)):
            return found
        time.sleep(0.05)
    raise AssertionError(f"it never came: {found}")


def failing(_: Workplace) -> None:
    raise DataError("the rows\nare broken")


@pytest.fixture(autouse=True)
def quick_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_way, "_SECONDS_BETWEEN_WRITES", 0.05)


def test_a_run_tells_the_stage_at_work_its_losses_and_what_is_ahead(tmp_path: Path) -> None:
    seen: list[RunStatus] = []

    def train(place: Workplace) -> None:
        for step in (1, 2, 3):
            place.watcher.stage_progressed(StageProgress(step, 8, 3.0 - step / 4, 50.0, 40.0))
        seen.append(
            until(tmp_path, lambda one: [len(own.losses) for own in one.at_work if own.progress] == [3])
        )

    first, later = Training("one"), Training("two", train)
    run(tmp_path, first, later, Step("score"))
    (found,) = seen
    assert found.state == "under way"
    assert [(one.name, one.kind, one.state) for one in found.stages] == [
        ("one", "train", "done"),
        ("two", "train", "under way"),
        ("score", "evaluate", "waiting"),
    ]
    (own,) = found.at_work
    assert own.losses == ((1, 2.75), (2, 2.5), (3, 2.25))
    assert own.progress is not None
    assert (own.progress.done, own.progress.total) == (3, 8)
    assert found.holder is not None
    assert found.holder.process == os.getpid()
    assert found.seconds_left is not None
    assert 35.0 < found.seconds_left <= 40.0  # as the training says, and a second passed
    assert found.unknown == ("evaluate",)


def test_a_finished_run_is_done_and_keeps_no_losses(tmp_path: Path) -> None:
    def train(place: Workplace) -> None:
        place.watcher.stage_progressed(StageProgress(1, 2, 3.0))

    stage = Training("one", train)
    run(tmp_path, stage)
    found = status_of(tmp_path)
    assert (found.state, found.at_work, found.holder, found.seconds_left) == ("done", (), None, None)
    assert {one.name for one in (tmp_path / "stages" / stage.folder_name).iterdir()} == {
        "record.json",
        "timing.json",
    }
    assert read_json(tmp_path / "stages" / stage.folder_name / "record.json")["artefacts"] == {}
    with Store(tmp_path):
        assert leftovers(tmp_path).removable == ()
        assert leftovers(tmp_path).foreign == ()


def test_a_stage_that_failed_has_its_reason_and_so_has_what_depends_on_it(tmp_path: Path) -> None:
    bad = Training("one", failing)
    run(tmp_path, bad, Step("score", before=(bad,)), Step("other"))
    found = status_of(tmp_path)
    assert found.state == "failed"
    assert [(one.state, one.reason) for one in found.stages] == [
        ("failed", "the rows are broken"),
        ("failed", "the rows are broken"),
        ("done", None),
    ]
    run(tmp_path, Training("one"), Step("score"), Step("other"))
    assert status_of(tmp_path).state == "done"


def test_first_answers_are_told_and_long_ones_cut(tmp_path: Path) -> None:
    seen: list[RunStatus] = []

    def ask(place: Workplace) -> None:
        place.watcher.answered("lookup (de)", "Was?", "<b>\x1b[31m" + "x" * 5000)
        place.progressed(2, 4, "items")
        seen.append(until(tmp_path, lambda one: bool(one.at_work) and one.at_work[0].progress is not None))

    run(tmp_path, Step("score", ask), Step("other"))
    (at_work,) = seen[0].at_work
    (answer,) = at_work.answers
    assert (answer.task, answer.prompt) == ("lookup (de)", "Was?")
    assert answer.answer.startswith("<b>\x1b[31mxxx")
    assert len(answer.answer) == 2001
    own = at_work.progress
    assert own is not None
    assert own.seconds_left is not None
    assert seen[0].seconds_left is not None
    assert seen[0].unknown == ()
    assert seen[0].seconds_left > 2 * own.seconds_left  # the other one is taken to be like it


def test_what_utf8_does_not_have_is_told_without_it(tmp_path: Path) -> None:
    def ask(place: Workplace) -> None:
        place.watcher.answered("lookup\udcff", "\ud83d", "\ude00")
        found = until(tmp_path, lambda one: bool(one.at_work) and bool(one.at_work[0].answers))
        (answer,) = found.at_work[0].answers
        assert (answer.task, answer.prompt, answer.answer) == ("lookup?", "?", "?")
        raise DataError("rows\udcff.jsonl: is broken")

    run(tmp_path, Step("score", ask))
    assert status_of(tmp_path).stages[0].reason == "rows?.jsonl: is broken"


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS])
def test_a_run_that_cannot_say_where_it_is_goes_on_and_leaves_no_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    tried: list[object] = []

    def refuse(*_: object) -> None:
        tried.append(None)
        raise OSError(error, os.strerror(error))

    def train(place: Workplace) -> None:
        place.watcher.stage_progressed(StageProgress(1, 2, 3.0))
        before = len(tried)
        while len(tried) < before + 2:  # the thread lives, and tries
            place.watcher.stage_progressed(StageProgress(2, 2, 2.0))
            time.sleep(0.01)

    monkeypatch.setattr(under_way, "write_json_atomically", refuse)
    monkeypatch.setattr(AppendLog, "append", refuse)
    threads = threading.active_count()
    run(tmp_path, Training("one", train))
    assert threading.active_count() == threads
    found = status_of(tmp_path)
    assert (found.state, found.remarks) == ("done", ())


def test_training_does_not_wait_for_a_slow_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_disk = threading.Event()
    append = AppendLog.append

    def slow(log: Any, values: Any) -> None:
        at_disk.set()
        time.sleep(1.0)
        append(log, values)

    def train(place: Workplace) -> None:
        place.watcher.stage_progressed(StageProgress(1, 2, 3.0))
        assert at_disk.wait(10)
        began = time.monotonic()
        place.watcher.stage_progressed(StageProgress(2, 2, 2.0))
        assert time.monotonic() - began < 0.5

    monkeypatch.setattr(AppendLog, "append", slow)
    stage = Training("one", train)
    run(tmp_path, stage)
    assert read_json(tmp_path / "stages" / stage.folder_name / "record.json")["artefacts"] == {}
    assert not (tmp_path / "stages" / stage.folder_name / LOSSES).exists()


@contextmanager
def killed_run(folder: Path) -> Iterator[int]:
    """A process that holds a run, and is killed in its second stage when the block ends; yields its number."""
    code = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_status import Training, run
from lingraft.stage import StageProgress
def train(place):
    place.watcher.stage_progressed(StageProgress(3, 8, 2.25, 50.0, 40.0))
    time.sleep(60)
run(Path(sys.argv[1]), Training("one"), Training("two", train))
"""
    started = subprocess.Popen([sys.executable, "-c", code, str(folder), str(Path(__file__).parent)])
    try:
        yield started.pid
        started.kill()
        until(folder, lambda one: one.state == "stopped")  # while it is a zombie as well
    finally:
        started.kill()
        started.wait()


def test_a_killed_run_is_stopped_where_it_was_and_another_process_takes_it_up(tmp_path: Path) -> None:
    tmp_path = tmp_path / "run"
    tmp_path.mkdir()
    with killed_run(tmp_path) as process:
        while True:
            found = status_of(tmp_path)
            if found.at_work and found.at_work[0].losses:
                break
            time.sleep(0.05)
        assert found.holder is not None
        assert found.holder.process == process
    found = status_of(tmp_path)
    assert (found.state, found.holder) == ("stopped", None)
    assert [one.state for one in found.stages] == ["done", "waiting"]
    (own,) = found.at_work
    assert (own.name, own.losses) == ("two", ((3, 2.25),))

    def train(place: Workplace) -> None:  # from a checkpoint two steps earlier
        for step in (2, 3, 4):
            place.watcher.stage_progressed(StageProgress(step, 8, float(step)))
        until(tmp_path, lambda _: losses_so_far(place.folder) == ((2, 2.0), (3, 3.0), (4, 4.0)))

    run(tmp_path, Training("one"), Training("two", train))
    assert status_of(tmp_path).state == "done"


def said_by(folder: Path, **changes: object) -> None:
    said = UnderWay(Holder.this(), time.time() - 100, time.time())
    write_json_atomically(folder / UNDER_WAY, to_json(replace(said, **changes)))  # type: ignore[arg-type]


def test_a_process_of_another_machine_tells_by_its_sign_of_life(tmp_path: Path) -> None:
    elsewhere = Holder(1, "another machine", 0.0)
    said_by(tmp_path, holder=elsewhere)
    assert status_of(tmp_path).state == "under way"
    said_by(tmp_path, holder=elsewhere, sign=time.time() - 1000)
    assert status_of(tmp_path).state == "not begun"


def test_a_process_that_got_the_number_of_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    said_by(tmp_path, holder=replace(Holder.this(), started=1.0), sign=time.time() - 1000)
    assert status_of(tmp_path).holder is None


@pytest.mark.parametrize("name", [PLAN, UNDER_WAY, "stages"])
@pytest.mark.parametrize("content", [b"", b'{"content": {"sta', b"\xff\x00", b"[]", b"null"])
def test_half_written_files_are_no_error(tmp_path: Path, name: str, content: bytes) -> None:
    run(tmp_path, Training("one"), Step("score"))
    if name == "stages":
        for path in tmp_path.glob("stages/*/timing.json"):
            path.write_bytes(content)
    else:
        (tmp_path / name).write_bytes(content)
    found = status_of(tmp_path)
    assert found.state == ("not begun" if name == PLAN else "done") or found.remarks
    assert len(found.remarks) == (name != "stages")


def test_a_torn_line_of_losses_is_left_to_its_writer(tmp_path: Path) -> None:
    AppendLog(tmp_path / LOSSES, dict).append({"step": one, "loss": 1.0 / one} for one in (1, 2))
    with (tmp_path / LOSSES).open("ab") as file:
        file.write(b'{"step": 3, "lo')
    size = (tmp_path / LOSSES).stat().st_size
    assert losses_so_far(tmp_path) == ((1, 1.0), (2, 0.5))
    assert (tmp_path / LOSSES).stat().st_size == size


def test_a_plan_of_an_earlier_version_has_no_order_and_is_read(tmp_path: Path) -> None:
    run(tmp_path, Training("one"), Step("score"))
    kept = read_json(tmp_path / PLAN)
    del kept["content"]["order"]
    kept["fingerprint"] = fingerprint_of(kept["content"])
    (tmp_path / PLAN).write_text(json.dumps(kept))
    (tmp_path / UNDER_WAY).unlink()
    found = status_of(tmp_path)
    assert (found.state, found.remarks) == ("done", ())
    assert {one.name for one in found.stages} == {"one", "score"}


def test_a_folder_whose_run_has_not_begun_and_one_that_is_no_run(tmp_path: Path) -> None:
    assert status_of(tmp_path).state == "not begun"
    (tmp_path / "study.yaml").touch()
    assert status_of(tmp_path).state == "not begun"
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes").touch()
    with pytest.raises(ConfigError, match="is no run folder of a study"):
        status_of(other)
    with pytest.raises(ConfigError, match="there is no such run folder; `lingraft run STUDY` makes it"):
        status_of(tmp_path / "nothing")


def test_a_long_curve_is_thinned_out_evenly_from_the_first_to_the_last_step(tmp_path: Path) -> None:
    stage = tmp_path / "stages" / "train-0123456789abcdef"
    stage.mkdir(parents=True)
    AppendLog(stage / LOSSES, dict).append({"step": step, "loss": 1.0} for step in range(1, 5001))
    said_by(tmp_path, at_work=(StageAtWork(stage.name, time.time()),))
    (at_work,) = status_of(tmp_path).at_work
    steps = [step for step, _ in at_work.losses]
    assert (len(steps), steps[0], steps[-1]) == (400, 1, 5000)
    gaps = [after - before for before, after in pairwise(steps)]
    assert max(gaps) - min(gaps) <= 1


def test_a_folder_that_may_not_be_read_is_refused_by_status_and_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, Training("one"))
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may read all
    for read in (status_of, lambda folder: read_report([str(folder)])):
        with pytest.raises(ConfigError, match="you may not read it; ask its owner"):
            read(tmp_path)


NAMES = [f"{kind}-{number:016x}" for number in range(3) for kind in ("train", "evaluate")]


def parallel_run(folder: Path) -> None:
    """A run of three trainings, each with an evaluation of its model; the first of both kinds is done."""
    (folder / "study.yaml").touch()
    listed = {
        name: ListedStage(name[-1], True, () if place % 2 == 0 else (NAMES[place - 1],))
        for place, name in enumerate(NAMES)
    }
    write_plan(folder, listed)
    for name, seconds in zip(NAMES[:2], (100.0, 40.0), strict=True):
        (folder / "stages" / name).mkdir(parents=True)
        write_json_atomically(folder / "stages" / name / "record.json", {})
        write_json_atomically(folder / "stages" / name / "timing.json", {"seconds": seconds})


def test_of_several_stages_at_work_each_says_where_and_the_time_left_is_that_of_all(tmp_path: Path) -> None:
    parallel_run(tmp_path)
    now = time.time()
    trainings = tuple(
        StageAtWork(
            name, now - 10, StageProgress(1, 8, 2.0, seconds_left=left), now, (), f"node-{left}", 7, 1
        )
        for name, left in ((NAMES[2], 30.0), (NAMES[4], 90.0))
    )
    said_by(tmp_path, at_work=trainings, at_once=2)
    found = status_of(tmp_path)
    assert [one.state for one in found.stages] == [
        *("done", "done"),
        *("under way", "waiting"),
        *("under way", "waiting"),
    ]
    assert [(one.host, one.process, one.lost_since) for one in found.at_work] == [
        ("node-30.0", 7, None),
        ("node-90.0", 7, None),
    ]
    assert found.stages[3].parents == (f"stages/{NAMES[2]}",)
    # The first evaluation follows after 30 s, the second after 90: each takes 40.
    assert found.seconds_left == pytest.approx(130, abs=5)
    assert to_json(found)["format"] == 2
    said_by(tmp_path, at_work=trainings[1:], at_once=1)
    found = status_of(tmp_path)
    assert found.seconds_left == pytest.approx(90 + 100 + 40 + 40, abs=5)


def test_what_an_earlier_version_says_of_its_one_stage_is_read(tmp_path: Path) -> None:
    parallel_run(tmp_path)
    said_by(tmp_path, at_work=(StageAtWork(NAMES[2], time.time(), StageProgress(1, 8), time.time()),))
    said = read_json(tmp_path / UNDER_WAY)
    (own,) = said["at_work"]
    for new in ("host", "process", "attempt", "label"):
        del own[new]
    del own["progress"]["stage"], said["at_once"]
    write_json_atomically(tmp_path / UNDER_WAY, said | {"format": 1, "at_work": own})
    (at_work,) = status_of(tmp_path).at_work
    assert at_work.progress is not None
    assert (at_work.name, at_work.progress.total, at_work.host) == ("1", 8, "")
    write_json_atomically(tmp_path / UNDER_WAY, said | {"format": 1, "at_work": None})
    assert status_of(tmp_path).at_work == ()


def test_stages_of_a_driver_that_died_are_seen_by_their_claims_and_events(tmp_path: Path) -> None:
    parallel_run(tmp_path)
    said_by(tmp_path, holder=replace(Holder.this(), process=2**22 + 1), ended="no")
    with (
        claim(tmp_path / "claims" / NAMES[2]) as held,
        EventLog(event_file(tmp_path, NAMES[2], held.number)) as log,
    ):
        log.stage_started("train 1")
        log.stage_progressed(StageProgress(3, 8, 2.5))
        log.noted("written at once")
        work = tmp_path / "work" / f"{NAMES[2]}.{held.number}"
        work.mkdir(parents=True)
        AppendLog(work / LOSSES, dict).append([{"step": 3, "loss": 2.5}])
        found = status_of(tmp_path)
        assert (found.state, found.holder) == ("under way", None)
        assert "the process that ran the study is gone, and 1 of its stages is still made" in found.remarks[0]
        (own,) = found.at_work
        assert (own.path, own.process, own.attempt) == (f"stages/{NAMES[2]}", os.getpid(), held.number)
        assert own.progress is not None
        assert (own.progress.done, own.losses, own.lost_since) == (3, ((3, 2.5),), None)
    assert status_of(tmp_path).state == "stopped"  # it gave its claim back


def test_a_stage_whose_owner_gives_no_sign_of_life_is_lost(tmp_path: Path) -> None:
    parallel_run(tmp_path)
    said_by(tmp_path)  # the run goes on
    folder = tmp_path / "claims" / NAMES[2]
    folder.mkdir(parents=True)
    elsewhere = replace(Owner.this(), host="node-9", machine="another machine")
    (folder / "4").write_text(json.dumps(to_json(elsewhere)))
    assert status_of(tmp_path).stages[2].state == "under way"
    quiet = time.time() - 1000
    os.utime(folder / "4", (quiet, quiet))
    found = status_of(tmp_path)
    assert found.stages[2].state == "lost"
    (own,) = found.at_work
    assert (own.host, own.attempt) == ("node-9", 4)
    assert own.lost_since == pytest.approx(quiet)
    # It is made again, from its beginning as far as is known: with the other, one at a time, and their evaluations.
    assert found.seconds_left == pytest.approx(100 + 100 + 40 + 40)
    said_by(tmp_path, ended="stopped")
    found = status_of(tmp_path)
    assert (found.state, [one.lost_since for one in found.at_work]) == ("stopped", [None])


def test_losses_that_were_read_are_not_read_again(tmp_path: Path) -> None:
    path = tmp_path / LOSSES
    log = AppendLog(path, dict)
    log.append([{"step": step, "loss": 3.0} for step in (1, 2, 3)])
    assert losses_so_far(tmp_path) == ((1, 3.0), (2, 3.0), (3, 3.0))
    log.append([{"step": 3, "loss": 2.5}])
    content = path.read_bytes()
    path.write_bytes(b"x" * content.rindex(b'{"step": 3') + content[content.rindex(b'{"step": 3') :])
    assert losses_so_far(tmp_path) == ((1, 3.0), (2, 3.0), (3, 2.5))  # the beginning was not looked at
    path.unlink()
    assert losses_so_far(tmp_path) == ()
    AppendLog(path, dict).append([{"step": 1, "loss": 1.0}])
    assert losses_so_far(tmp_path) == ((1, 1.0),)


def test_of_many_stages_at_work_fewer_answers_each_are_written(tmp_path: Path) -> None:
    answers = tuple(FirstAnswer("task", "prompt", str(number)) for number in range(60))
    with UnderWayFile(tmp_path, at_once=8) as said:
        for number in range(16):
            said.started(StageAtWork(f"evaluate-{number:016x}", time.time(), answers=answers))
        said._write()
        found = read_under_way(tmp_path)
        assert found is not None
        assert (found.at_once, {one.answers for one in found.at_work}) == (16, {answers[:15]})


def test_failed_attempts_are_counted_with_their_reason_and_log(tmp_path: Path) -> None:
    parallel_run(tmp_path)
    with EventLog(event_file(tmp_path, NAMES[2], 1)) as log:
        log.stage_started("train 1")
    output_file(tmp_path, NAMES[2], 1).write_text("Killed\n")
    for _ in range(2):
        record_failure(tmp_path, NAMES[2], LingraftError("the process was killed"), is_made_again=True)
    with EventLog(event_file(tmp_path, NAMES[2], 2)) as log:
        log.stage_started("train 1")
    output_file(tmp_path, NAMES[2], 2).write_text("the attempt that follows\n")
    record_failure(tmp_path, NAMES[0], LingraftError("and made since"))
    said_by(tmp_path, failed={NAMES[4]: "out of memory"})
    found = status_of(tmp_path)
    assert (found.stages[0].state, found.stages[0].reason, found.stages[0].failures) == ("done", None, 1)
    again, failed = found.stages[2], found.stages[4]
    assert (again.state, again.failures, again.reason) == ("waiting", 2, "the process was killed")
    assert again.log == f"logs/{NAMES[2]}/1.log"
    assert (failed.state, failed.reason, failed.log) == ("failed", "out of memory", None)


@pytest.mark.parametrize("name", ["/etc/x", "**", "../../etc", ""])
def test_a_stage_at_work_that_is_named_like_a_path_is_left_out(tmp_path: Path, name: str) -> None:
    said_by(tmp_path, at_work=(StageAtWork(name, 0.0),))
    found = status_of(tmp_path)
    assert found.at_work == ()
    assert "cannot be read; it is damaged" in found.remarks[0]


@pytest.mark.parametrize("seconds", ["1e999", "NaN", "-1", "1" + "0" * 400, '"1"', "true"])
def test_figures_that_no_run_wrote_are_left_out(tmp_path: Path, seconds: str) -> None:
    parallel_run(tmp_path)
    (tmp_path / "stages" / NAMES[0] / "timing.json").write_text(f'{{"seconds": {seconds}}}')
    huge = 10**400
    AppendLog(tmp_path / "failures.jsonl", dict).append(
        [to_json(FailedAttempt(NAMES[3], attempt, "", 0.0, "why")) for attempt in (1, huge)]
    )
    with claim(tmp_path / "claims" / NAMES[2]) as held:
        path = event_file(tmp_path, NAMES[2], held.number)
        with EventLog(path) as log:
            log.stage_started("train 1")
            log.stage_progressed(StageProgress(huge, huge + 1))
        found = status_of(tmp_path)
        assert found.stages[0].seconds is None
        assert found.stages[3].failures == 1
        assert (
            json.loads(json.dumps(to_json(found), allow_nan=False))["at_work"][0]["progress"]["done"] == huge
        )
        path.unlink()
        os.mkfifo(path)  # which would be waited for
        assert status_of(tmp_path).at_work[0].progress is None


def test_a_stage_that_has_just_been_published_is_done_whatever_the_run_said_last(tmp_path: Path) -> None:
    parallel_run(tmp_path)
    said_by(tmp_path, at_work=tuple(StageAtWork(name, time.time()) for name in NAMES[:3]), at_once=2)
    with (
        claim(tmp_path / "claims" / NAMES[1]),
        claim(tmp_path / "claims" / NAMES[2]),
    ):  # the second is made anew
        claim(tmp_path / "claims" / NAMES[0]).release()
        found = status_of(tmp_path)
    assert [one.state for one in found.stages[:3]] == ["done", "under way", "under way"]
    assert len(found.at_work) == 2


def test_a_machine_whose_name_is_no_text_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "node", lambda: "n\udcffde")
    with UnderWayFile(tmp_path), EventLog(event_file(tmp_path, NAMES[0], 1)) as log:
        log.stage_started("train 1")
        found = status_of(tmp_path)
        assert found.holder is not None
        assert found.holder.machine.startswith("n?de")
        begun = attempt_so_far(tmp_path, NAMES[0], 1)
        assert begun is not None
        assert begun.host == "n?de"
