"""A stage is complete exactly when its record and its artefacts exist."""

from __future__ import annotations

import gc
import traceback
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from lingraft.errors import ConfigError, DataError, LingraftError
from lingraft.records import read_json, write_json_atomically
from lingraft.stage import Json, StageSpec, Work, Workplace
from lingraft.study.store import Store


@dataclass(frozen=True, eq=False)
class Described(StageSpec):
    """A stage whose work the test brings."""

    kind: ClassVar[str] = "train"

    seed: int = 0

    @property
    def inputs(self) -> dict[str, Json]:
        return {"data": "abc", "seed": self.seed}

    def work(self, place: Workplace) -> Work:
        raise NotImplementedError


class Resumable(Described):
    """Goes on from what was left."""

    continues: ClassVar[tuple[str, ...]] = ("left",)


STAGE = Described("stage")


class Counted:
    """Work that writes one file and counts how often it was done."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, folder: Path) -> Work:
        self.times += 1
        (folder / "weights").mkdir(exist_ok=True)
        (folder / "weights" / "a.bin").write_bytes(b"12345")
        (folder / "trackers").mkdir(exist_ok=True)
        (folder / "trackers" / "events").write_text(f"run {self.times}")
        return Work({"answer": 42}, {"threads": 2})


def test_a_finished_stage_is_not_done_again(tmp_path: Path) -> None:
    work = Counted()
    with Store(tmp_path) as store:
        first = store.run(STAGE, work)
    with Store(tmp_path) as store:
        second = store.run(STAGE, work)
    assert work.times == 1
    assert (first.reused, second.reused) == (False, True)
    assert second.result == {"answer": 42}


def test_other_inputs_are_another_stage(tmp_path: Path) -> None:
    work = Counted()
    with Store(tmp_path) as store:
        one = store.run(STAGE, work)
        two = store.run(Described("stage", seed=1), work)
    assert work.times == 2
    assert one.fingerprint != two.fingerprint


@pytest.mark.parametrize("damage", ["record", "artefact gone", "artefact changed", "artefact cut"])
def test_a_damaged_stage_is_made_again(tmp_path: Path, damage: str) -> None:
    work = Counted()
    with Store(tmp_path) as store:
        folder = store.run(STAGE, work).folder
    artefact = folder / "weights" / "a.bin"
    if damage == "record":
        (folder / "record.json").write_text("{")
    elif damage == "artefact gone":
        artefact.unlink()
    else:
        artefact.write_bytes(b"12346" if damage == "artefact changed" else b"123")
    with Store(tmp_path) as store:
        assert store.run(STAGE, work).reused is False
    assert work.times == 2
    assert artefact.read_bytes() == b"12345"


def test_unfinished_work_is_thrown_away_unless_it_can_resume(tmp_path: Path) -> None:
    seen = []

    def look(folder: Path) -> Work:
        seen.append((folder / "left").exists())
        (folder / "left").write_text("x")
        (folder / "task.json").write_text("x")
        if len(seen) in (1, 3):
            raise KeyboardInterrupt
        return Work({}, {})

    for resumable in (False, True):
        stage = Resumable("stage", 1) if resumable else Described("stage")
        with Store(tmp_path) as store:
            with pytest.raises(KeyboardInterrupt):
                store.run(stage, look)
            store.run(stage, look)
    assert seen == [False, False, False, True]


def test_a_stage_that_failed_is_not_tried_again_in_the_same_run(tmp_path: Path) -> None:
    tries = []

    def fail(_: Path) -> Work:
        tries.append(1)
        raise DataError("broken")

    with Store(tmp_path) as store:
        for _ in range(2):
            with pytest.raises(DataError, match="broken"):
                store.run(STAGE, fail)
    assert len(tries) == 1


def test_discarded_artefacts_are_marked_and_made_again_on_demand(tmp_path: Path) -> None:
    work = Counted()
    with Store(tmp_path) as store:
        stage = store.run(STAGE, work)
        store.discard(STAGE)
        assert not (stage.folder / "weights" / "a.bin").exists()
    with Store(tmp_path) as store:
        assert store.run(STAGE, work).reused
        assert work.times == 1
        again = store.run(STAGE, work, with_artefacts=True)
    assert work.times == 2
    assert (again.folder / "weights" / "a.bin").read_bytes() == b"12345"
    assert read_json(again.folder / "record.json")["artefacts"]["weights/a.bin"]["discarded"] is False


def test_a_discarded_stage_keeps_its_record_while_it_is_made_again(tmp_path: Path) -> None:
    def stopped(_: Path) -> Work:
        raise KeyboardInterrupt

    with Store(tmp_path) as store:
        store.run(STAGE, Counted())
        store.discard(STAGE)
    with Store(tmp_path) as store, pytest.raises(KeyboardInterrupt):
        store.run(Resumable("stage"), stopped, with_artefacts=True)
    with Store(tmp_path) as store:
        assert store.run(STAGE, Counted()).reused


def test_what_is_made_again_otherwise_than_it_was_is_told(tmp_path: Path) -> None:
    def otherwise(folder: Path) -> Work:
        (folder / "weights").mkdir(exist_ok=True)
        (folder / "weights" / "a.bin").write_bytes(b"54321")
        return Work({"loss": 0.5}, {})

    with Store(tmp_path) as store:
        store.run(STAGE, Counted())
        store.discard(STAGE)
        same = store.run(STAGE, Counted(), with_artefacts=True)
        assert "remade_otherwise" not in same.timing
        store.discard(STAGE)
        other = store.run(STAGE, otherwise, with_artefacts=True)
    assert other.timing["remade_otherwise"] == ["weights/a.bin"]


def test_times_are_kept_outside_the_compared_record(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        stage = store.run(STAGE, Counted())
    record = read_json(stage.folder / "record.json")
    assert set(record) == {"format", "stage", "fingerprint", "inputs", "result", "artefacts", "digest"}
    assert set(record["artefacts"]) == {"weights/a.bin"}
    assert read_json(stage.folder / "timing.json")["threads"] == 2


def test_two_runs_of_one_study_at_once_are_refused(tmp_path: Path) -> None:
    with Store(tmp_path), pytest.raises(LingraftError, match="another lingraft"), Store(tmp_path):
        pass


def test_a_failed_stage_lets_go_of_what_its_frames_held(tmp_path: Path) -> None:
    class Weights:
        """Stands for a model of many gigabytes."""

    held: list[weakref.ref[Weights]] = []

    def fail(_: Path) -> Work:
        weights = Weights()
        held.append(weakref.ref(weights))
        try:
            raise ValueError("inner")
        except ValueError as error:
            raise DataError("broken") from error

    with Store(tmp_path) as store:
        with pytest.raises(DataError) as raised:
            store.run(STAGE, fail)
        gc.collect()
        assert held[0]() is None
        assert "in fail" in "".join(traceback.format_exception(raised.value))


def test_discarding_again_leaves_the_record_alone(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        stage = store.run(STAGE, Counted())
        store.discard(STAGE)
        before = (stage.folder / "record.json").stat().st_mtime_ns
        store.discard(STAGE)
        assert (stage.folder / "record.json").stat().st_mtime_ns == before


def test_what_a_process_was_killed_over_is_discarded_and_removed_by_the_next_run(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        stage = store.run(STAGE, Counted())
        store.discard(STAGE)
        (stage.folder / "weights" / "a.bin").write_bytes(b"12345")
        (stage.folder / "mine").write_text("x")
        for place in (store.stages, store.work):  # of a look whether folders can be renamed
            (place / ".0123456789abcdef.part").mkdir()
    with Store(tmp_path):
        assert not (stage.folder / "weights" / "a.bin").exists()
        assert (stage.folder / "mine").exists()
        assert [path.name for path in (tmp_path / "stages").iterdir()] == [STAGE.folder_name]
        assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize("found", [{}, {"format": 1}])
def test_stages_of_another_version_are_refused_and_are_not_finished(
    tmp_path: Path, found: dict[str, int]
) -> None:
    with Store(tmp_path) as store:
        record = store.run(STAGE, Counted()).folder / "record.json"
    written = read_json(record)
    del written["format"], written["digest"]  # earlier versions wrote none
    write_json_atomically(record, written | found)
    assert Store(tmp_path).find(STAGE) is None  # as a plan shows it
    for _ in range(2):  # the lock is free again
        with (
            pytest.raises(ConfigError, match=f"another version.*{record.parent.name}.*delete"),
            Store(tmp_path),
        ):
            pass
