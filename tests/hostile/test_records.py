"""A record is exactly what its stage made, and is believed only where it fits; a damaged one is a stage made again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lingraft.records import fingerprint_of, path_inside, read_json, write_json_atomically
from lingraft.stage import CHECKPOINT, FinishedStage, Json, StageSpec, Work, Workplace, given_model
from lingraft.stage_record import Artefact, DamagedRecordError, StageRecord, read_record
from lingraft.study.store import Store

RESULT = {"accuracy": 0.25, "of": [1, 2.5, None], "name": "ä"}


@dataclass(frozen=True, eq=False)
class Written(StageSpec):
    """A stage that writes two files, and goes on from what lies in `trainer`."""

    kind: ClassVar[str] = "train"
    continues: ClassVar[tuple[str, ...]] = ("trainer",)
    is_discardable: ClassVar[bool] = True

    seed: int = 0

    @property
    def inputs(self) -> dict[str, Json]:
        return {"seed": self.seed, "share": 0.1}

    def work(self, place: Workplace) -> Work:
        raise NotImplementedError


STAGE = Written("stage")


def write(folder: Path) -> Work:
    (folder / "weights").mkdir(exist_ok=True)
    (folder / "weights" / "a.bin").write_bytes(b"12345")
    (folder / "b.json").write_text("{}")
    return Work(dict(RESULT), {"threads": 2})


def finished(
    folder: Path, notes: list[str] | None = None, work: Callable[[Path], Work] = write
) -> FinishedStage:
    with Store(folder, (notes if notes is not None else []).append) as store:
        return store.run(STAGE, work)


def signed(folder: Path, **changes: Any) -> None:
    """Change a record and give it the digest that fits, as whoever can write the folder can."""
    content = read_json(folder / "record.json") | changes
    del content["digest"]
    from lingraft.stage_record import _digest

    write_json_atomically(folder / "record.json", content | {"digest": _digest(content)})


def test_the_record_lists_what_the_work_made_and_nothing_that_was_left(tmp_path: Path) -> None:
    straight = finished(tmp_path / "straight").folder / "record.json"
    tries = []

    def killed_once(folder: Path) -> Work:
        tries.append(sorted(path.name for path in folder.iterdir()))
        (folder / "trainer").mkdir(exist_ok=True)
        (folder / "trainer" / "state").write_text("step 3")
        (folder / ".DS_Store").write_text("x")
        (folder / "Thumbs.db").write_text("x")
        if len(tries) == 1:
            for name in ("task.json", ".record.json.k3jd92a1", "workers.log", "b.json~", "half.safetensors"):
                (folder / name).write_text("x")
            (folder / "outside").symlink_to(tmp_path)
            raise KeyboardInterrupt
        (folder / "weights").mkdir()
        (folder / "weights" / ".DS_Store").write_text("x")
        return write(folder)

    with pytest.raises(KeyboardInterrupt):
        finished(tmp_path / "killed", work=killed_once)
    folder = finished(tmp_path / "killed", work=killed_once).folder
    assert tries == [[], ["trainer"]]
    assert (folder / "record.json").read_bytes() == straight.read_bytes()
    assert set(read_json(straight)["artefacts"]) == {"weights/a.bin", "b.json"}
    assert not (folder / "trainer").exists()  # what the work could go on from is over


def test_a_kill_between_the_record_and_clearing_up_leaves_a_finished_stage(tmp_path: Path) -> None:
    folder = finished(tmp_path).folder
    before = (folder / "record.json").read_bytes()
    (folder / "trainer").mkdir()
    (folder / ".record.json.abcdefgh.part").write_text("{")
    assert finished(tmp_path).reused
    assert (folder / "record.json").read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == [
        "b.json",
        "record.json",
        "timing.json",
        "weights",
    ]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda old: old[: len(old) // 2],
    "emptied": lambda _: b"",
    "without its last byte but one": lambda old: old[:-2],
    "null": lambda _: b"null",
    "a list": lambda _: b"[1, 2]",
    "a number of 5,000 digits": lambda _: b'{"format": ' + b"9" * 5000 + b"}",
    "nested": lambda _: b"[" * 100_000,
    "nested inside": lambda old: old.replace(b"0.25", b"[" * 50_000 + b"]" * 50_000),
    "no UTF-8": lambda old: old.replace("ä".encode(), b"\xff"),
    "zeros": lambda old: bytes(len(old)),
    "an edited score": lambda old: old.replace(b"0.25", b"0.99"),
    "another seed": lambda old: old.replace(b'"seed": 0', b'"seed": 1'),
    "another size": lambda old: old.replace(b'"bytes": 5', b'"bytes": 6'),
    "discarded": lambda old: old.replace(b"false", b"true"),
    "another format": lambda old: old.replace(b'"format": 3', b'"format": 2'),
    "another digest": lambda old: old.replace(b'"digest": "', b'"digest": "0'),
    "infinity": lambda old: old.replace(b"0.25", b"1e999"),
    "not a number": lambda old: old.replace(b"0.25", b"NaN"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_stage_whose_record_does_not_fit_is_made_again_and_told_in_one_line(
    tmp_path: Path, damage: str
) -> None:
    record = finished(tmp_path).folder / "record.json"
    whole = record.read_bytes()
    damaged = DAMAGES[damage](whole)
    assert damaged != whole
    record.write_bytes(damaged)
    notes: list[str] = []
    again = finished(tmp_path, notes)
    assert (again.reused, again.result) == (False, RESULT)
    assert record.read_bytes() == whole
    assert len(notes) == 1
    assert notes[0].startswith(f"{record}: ")
    assert "made again" in notes[0]
    assert "\n" not in notes[0]


@pytest.mark.parametrize("place", ["record.json", "b.json", "weights/a.bin", "weights", "."])
@pytest.mark.parametrize("by", ["a folder", "a link", "a file", "nothing"])
def test_what_is_replaced_is_made_again_and_what_a_link_leads_to_is_left_alone(
    tmp_path: Path, place: str, by: str
) -> None:
    folder = finished(tmp_path / "run").folder
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(folder, elsewhere)  # the very bytes, so that a link that is followed would pass
    path = folder / place
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    if by == "a folder":
        path.mkdir()
    elif by == "a link":
        path.symlink_to(elsewhere / place)
    elif by == "a file":
        path.write_text("x")
    before = {one: one.read_bytes() for one in elsewhere.rglob("*") if one.is_file()}
    again = finished(tmp_path / "run")
    assert (again.reused, again.result) == (False, RESULT)
    assert not any(one.is_symlink() for one in (folder, *folder.rglob("*")))
    assert (folder / "weights" / "a.bin").read_bytes() == b"12345"
    assert {one: one.read_bytes() for one in elsewhere.rglob("*") if one.is_file()} == before


@pytest.mark.parametrize("name", ["record.json", "timing.json", "b.json", "weights/a.bin"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path: Path, name: str) -> None:
    path = finished(tmp_path).folder / name
    path.unlink()
    os.mkfifo(path)
    again = finished(tmp_path)
    assert (again.reused, again.result) == (name == "timing.json", RESULT)
    assert path.is_file() != again.reused


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_flipped_bit_gives_another_result(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("run")
    record = finished(folder).folder / "record.json"
    content = bytearray(record.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    record.write_bytes(bytes(content))
    with Store(folder) as store:
        found = store.find(STAGE)
        assert found is None or found.result == RESULT  # as where white space became another
        assert store.run(STAGE, write).result == RESULT


OUTSIDE = (
    "../../../victim.txt",
    "/victim",
    "C:\\victim.txt",
    "weights/../../../victim.txt",
    "..",
    "link/victim.txt",
)
NO_ARTEFACTS = (
    "weights//a.bin",
    "./b.json",
    "",
    "record.json",
    ".hidden",
    "weights/.hidden",
    "b.json\0",
    "a\\b",
)


@pytest.mark.parametrize("name", [*OUTSIDE, *NO_ARTEFACTS])
def test_nothing_outside_of_a_stage_is_read_or_deleted_by_its_record(tmp_path: Path, name: str) -> None:
    (tmp_path / "victim.txt").write_text("precious")
    folder = finished(tmp_path / "run").folder
    (folder / "link").symlink_to(tmp_path)
    name = str(tmp_path / "victim.txt") if name == "/victim" else name
    listed = read_json(folder / "record.json")["artefacts"]
    signed(folder, artefacts={**listed, name: {"bytes": 8, "sha256": "0" * 64, "discarded": True}})
    with pytest.raises(DamagedRecordError):
        read_record(folder)
    Store(tmp_path / "run").discard(STAGE)
    notes: list[str] = []
    assert not finished(tmp_path / "run", notes).reused
    assert len(notes) == 1
    assert (tmp_path / "victim.txt").read_text() == "precious"


def test_names_that_are_one_on_some_disks_are_refused(tmp_path: Path) -> None:
    one = Artefact(1, "0" * 64)
    record = StageRecord("train", {}, {}, {"a.bin": one, "A.bin": one})
    with pytest.raises(DamagedRecordError, match="stands twice"):
        record.write(tmp_path)


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("ab./\\:\0~"), max_size=12))
def test_a_name_leads_into_the_folder_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    folder = tmp_path_factory.getbasetemp().resolve()
    try:
        found = path_inside(folder, name)
    except ValueError:
        return
    assert found.resolve().is_relative_to(folder)
    assert found.resolve() != folder


def test_discarding_deletes_no_file_behind_a_link_that_came_since(tmp_path: Path) -> None:
    folder = finished(tmp_path / "run").folder
    shutil.move(folder / "weights", tmp_path / "weights")
    with Store(tmp_path / "run") as store:
        (folder / "weights").symlink_to(tmp_path / "weights")
        store.discard(STAGE)
    assert (tmp_path / "weights" / "a.bin").exists()


def test_the_record_of_another_stage_is_not_believed(tmp_path: Path) -> None:
    folder = finished(tmp_path).folder
    other = Written("other", 1)
    shutil.copytree(folder, Store(tmp_path).folder_of(other))
    with Store(tmp_path) as store:
        assert store.find(other) is None
        assert not store.run(other, write).reused
    signed(folder, inputs={"seed": 1, "share": 0.1})  # the inputs are not those of the fingerprint
    with Store(tmp_path) as store:
        assert store.find(STAGE) is None


NO_TIMES = (b'{"seconds": NaN}', b'{"seconds": 1e999}', b'{"seconds": 1, "of": [NaN]}', b'{"seconds": -1}')


@pytest.mark.parametrize(
    "content",
    [None, b"", b"{", b"null", b"[]", b"{}", b'{"seconds": "x"}', b"\xff", b"[" * 100_000, *NO_TIMES],
)
def test_work_is_not_repeated_for_a_broken_timing_file(tmp_path: Path, content: bytes | None) -> None:
    timing = finished(tmp_path).folder / "timing.json"
    timing.unlink() if content is None else timing.write_bytes(content)
    notes: list[str] = []
    again = finished(tmp_path, notes)
    assert (again.reused, again.result, again.timing) == (True, RESULT, {})
    assert again.seconds == 0
    assert len(notes) == 1
    assert str(timing) in notes[0]


def test_a_stage_made_again_after_it_was_discarded_has_its_old_record(tmp_path: Path) -> None:
    folder = finished(tmp_path).folder
    before = (folder / "record.json").read_bytes()
    with Store(tmp_path) as store:
        store.discard(STAGE)
        assert read_record(folder).has_discarded
        assert sorted(path.name for path in folder.iterdir() if path.is_file()) == [
            "record.json",
            "timing.json",
        ]
        (folder / "task.json").write_text("{}")
        store.run(STAGE, write, with_artefacts=True)
    assert (folder / "record.json").read_bytes() == before


def test_a_checkpoint_is_its_stage_only_where_record_and_files_agree(
    tmp_path: Path, tiny_model: Path
) -> None:
    def model(folder: Path) -> Work:
        shutil.copytree(tiny_model, folder / CHECKPOINT)
        return Work(dict(RESULT), {})

    stage = finished(tmp_path / "run", work=model)
    checkpoint = stage.folder / CHECKPOINT
    assert given_model(str(checkpoint)).identity == {"stage": STAGE.fingerprint}
    (checkpoint / ".DS_Store").write_text("x")
    assert given_model(str(checkpoint)).identity == {"stage": STAGE.fingerprint}
    weights = {"weights": given_model(str(tiny_model)).identity["weights"]}
    record = (stage.folder / "record.json").read_text()
    for edited in (
        record.replace("0.25", "0.99"),
        record.replace('"seed": 0', '"seed": 1'),
        json.dumps({"fingerprint": "0" * 16, "artefacts": json.loads(record)["artefacts"]}),
    ):
        (stage.folder / "record.json").write_text(edited)
        assert given_model(str(checkpoint)).identity == weights
    (stage.folder / "record.json").write_text(record)
    (checkpoint / "extra.txt").write_text("x")  # a file that no record lists
    assert "weights" in given_model(str(checkpoint)).identity


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    record = StageRecord(
        "train", {"b": 1, "a": [1.5, None]}, {"z": 0.1, "a": "ü"}, {"f": Artefact(0, "0" * 64)}
    )
    folder = tmp_path / f"train-{record.fingerprint}"
    folder.mkdir()
    record.write(folder)
    assert read_record(folder) == record
    assert record.fingerprint == fingerprint_of({"kind": "train", "a": [1.5, None], "b": 1})
    assert record.discarded() == replace(record, artefacts={"f": Artefact(0, "0" * 64, discarded=True)})


def test_a_record_that_is_damaged_while_the_study_runs_is_made_again_and_deletes_nothing(
    tmp_path: Path,
) -> None:
    notes: list[str] = []
    with Store(tmp_path, notes.append) as store:
        folder = store.run(STAGE, write).folder
        (folder / "record.json").write_text("{")
        store.discard(STAGE)
        assert (folder / "weights" / "a.bin").exists()
        assert store.find(STAGE) is None
        assert not store.run(STAGE, write).reused
        store.discard(STAGE)
        assert not (folder / "weights" / "a.bin").exists()
    assert len(notes) == 1
