"""A run folder from elsewhere, or of a failing disk: nothing leads outside, and no damage gives other numbers."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lingraft.append_log import AppendLog
from lingraft.data.encodings import encode_once
from lingraft.data.example import Example, Message
from lingraft.errors import ConfigError, EvaluationError
from lingraft.evaluate.answers import AnswerLog
from lingraft.evaluate.predictions import Prediction, write_predictions
from lingraft.judge.verdict_cache import Verdict, VerdictCache, mend_cache
from lingraft.models.generation import Generated
from lingraft.models.generation_log import GenerationLog
from lingraft.models.loading import load_tokenizer
from lingraft.records import read_kept, write_kept
from lingraft.report.answers import read_answers
from lingraft.stage import Json, StageSpec, Work, Workplace
from lingraft.study.store import Store


@dataclass(frozen=True, eq=False)
class Written(StageSpec):
    """A stage that writes a file."""

    kind: ClassVar[str] = "evaluate"

    @property
    def inputs(self) -> dict[str, Json]:
        return {}

    def work(self, place: Workplace) -> Work:
        raise NotImplementedError


STAGE = Written("stage")


def write(folder: Path) -> Work:
    (folder / "file").write_text("1")
    return Work({"score": 0.5}, {})


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder of the user's, outside of the run folder, that must stay as it is."""
    folder = tmp_path / "victim"
    folder.mkdir()
    (folder / "precious.txt").write_text("precious")
    return folder


@pytest.mark.parametrize("name", ["stages", "cache", "report", "work", "claims", "logs"])
def test_a_run_folder_whose_own_folders_lie_elsewhere_is_refused(
    tmp_path: Path, victim: Path, name: str
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / name).symlink_to(victim)
    with pytest.raises(ConfigError, match=f"{run / name}: is a link"), Store(run):
        pass
    assert [(path.name, path.read_text()) for path in victim.iterdir()] == [("precious.txt", "precious")]


@pytest.mark.parametrize("name", ["stages", "cache", "report", "work", "claims", "logs"])
def test_what_is_in_the_way_is_told(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    with pytest.raises(ConfigError, match=f"{tmp_path / name}: is in the way"), Store(tmp_path):
        pass


def test_a_run_folder_may_itself_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "large disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "large disk")
    for reused in (False, True):
        with Store(tmp_path / "run") as store:
            assert store.run(STAGE, write).reused is reused


def test_a_stage_that_is_a_link_is_made_anew_and_what_it_leads_to_is_left(
    tmp_path: Path, victim: Path
) -> None:
    run = tmp_path / "run"
    with Store(run) as store:
        folder = store.run(STAGE, write).folder
    shutil.copytree(folder, victim / folder.name)
    shutil.rmtree(folder)
    folder.symlink_to(victim / folder.name)
    with Store(run) as store:
        assert not store.run(STAGE, write).reused
    assert not folder.is_symlink()
    assert sorted(path.name for path in (victim / folder.name).iterdir()) == [
        "file",
        "record.json",
        "timing.json",
    ]


def test_links_in_the_cache_are_removed_and_what_they_lead_to_is_left(tmp_path: Path, victim: Path) -> None:
    cache = tmp_path / "run" / "cache"
    (cache / "replay-0").mkdir(parents=True)
    for name in ("answers-0.jsonl", "verdicts.jsonl", "replay-0/answers.jsonl", "manifest-0.json"):
        (cache / name).symlink_to(victim / "precious.txt")
    (cache / "encoded").symlink_to(victim)
    with Store(tmp_path / "run"):
        assert [path.name for path in cache.rglob("*")] == ["replay-0"]
    assert (victim / "precious.txt").read_text() == "precious"


def test_what_a_killed_write_left_is_removed(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        folder = store.run(STAGE, write).folder
    (tmp_path / "cache").mkdir()
    places = {
        tmp_path: ".study.yaml.ab12cd34.part",
        folder: ".record.json.x.part",
        tmp_path / "cache": ".a.y.part",
    }
    left = [place / name for place, name in places.items()]
    for path in left:
        path.write_text("{")
    with Store(tmp_path) as store:
        assert store.run(STAGE, write).reused
    assert not any(path.exists() for path in left)


NOTHING_KEPT = (b"", b"{", b"null", b"[]", b"[" * 100_000, b"\xff", b'{"content": 1, "fingerprint": 1}')


@pytest.mark.parametrize("content", NOTHING_KEPT)
def test_a_kept_file_is_read_whole_or_not_at_all(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "kept.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"."):
        read_kept(path)
    path.unlink()
    path.mkdir()
    write_kept(path, {"a": [1, 0.1]})
    assert read_kept(path) == {"a": [1, 0.1]}
    for position in range(path.stat().st_size):
        flipped = bytearray(path.read_bytes())
        flipped[position] ^= 1
        (tmp_path / "flipped.json").write_bytes(flipped)
        try:
            assert read_kept(tmp_path / "flipped.json") == {"a": [1, 0.1]}
        except ValueError:
            continue


ANSWERS = {f"key-{number}": ["yes", -1.5 * number] for number in range(4)}


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_damage_to_a_log_gives_another_answer(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("log") / "answers.jsonl"
    AnswerLog(path).append(ANSWERS)
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[position] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del content[position : position + data.draw(st.integers(1, 40))]
    path.write_bytes(content)
    log = AnswerLog(path)
    found = {key: log[key] for key in ANSWERS if key in log}
    assert found == {key: ANSWERS[key] for key in found}
    log.append(ANSWERS)  # what is missing is answered again
    assert AnswerLog(path).damage is None
    assert all(AnswerLog(path)[key] == answer for key, answer in ANSWERS.items())


def test_a_damaged_log_says_where_and_a_torn_end_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    AnswerLog(path).append(ANSWERS)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    assert AnswerLog(path).damage is None
    path.write_bytes(whole.replace(b"-1.5", b"-2.5"))
    assert AnswerLog(path).damage == f"{path}: line 2 is damaged; it and what follows are made again."
    path.write_bytes(b'{"asked": "key-0", "answer": ["no", 0.0]}\n')  # without a checksum
    assert "key-0" not in AnswerLog(path)


@pytest.mark.parametrize(
    "make", [lambda path: path.mkdir(), lambda path: path.symlink_to(path.parent / "victim"), os.mkfifo]
)
def test_a_log_that_is_no_file_begins_anew(tmp_path: Path, make: Callable[[Path], None]) -> None:
    (tmp_path / "victim").write_text("precious")
    path = tmp_path / "answers.jsonl"
    make(path)
    log = GenerationLog(path)
    assert log.damage == f"{path}: is no file; it begins anew."
    log.append({3: Generated("text", 2, ended=True)})
    assert GenerationLog(path)[3] == Generated("text", 2, ended=True)
    assert (tmp_path / "victim").read_text() == "precious"


def test_half_of_a_surrogate_pair_is_kept_in_a_log(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = AppendLog(path, lambda row: str(row["text"]))
    log.append([{"text": "a\udc80"}, {"text": "ü"}])
    assert AppendLog(path, lambda row: str(row["text"])).rows == ["a\udc80", "ü"]
    path.read_text(encoding="utf-8")


def test_a_damaged_verdict_costs_only_itself_in_a_run_and_is_refused_in_a_file_of_the_user_s(
    tmp_path: Path,
) -> None:
    path = tmp_path / "verdicts.jsonl"
    cache = VerdictCache(path)
    for key in "abc":
        cache.append(key, Verdict(0.25, weighted=True, text="m", model="judge", read=3, written=1))
    path.write_bytes(path.read_bytes().replace(b"0.25", b"0.75", 2).replace(b"0.75", b"0.25", 1))
    with pytest.raises(EvaluationError, match=r"verdicts.jsonl:2: is no verdict.*checksum"):
        VerdictCache(path)
    assert mend_cache(path) == f"{path}: 1 damaged lines are left out; these verdicts are asked for again."
    assert [key for key in "abc" if key in VerdictCache(path)] == ["a", "c"]
    assert mend_cache(path) is None
    path.write_bytes(b"\0" * 100)
    assert mend_cache(path) is not None
    assert "a" not in VerdictCache(path)


@pytest.mark.parametrize("name", ["rows.arrow", "index.json", "dropped.jsonl", "handled.json", "hashes.json"])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "emptied", "removed", "a folder"])
def test_encodings_that_were_damaged_are_made_again(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, name: str, damage: str
) -> None:
    tokenizer = load_tokenizer(tiny_model)
    turns = (Message("user", "say one"), Message("assistant", "one two three"))
    rows = [Example(str(number), turns, "en", str(number), "rows") for number in range(3)]
    long = (Message("user", "say one " * 200), Message("assistant", "one"))  # its answer is cut off
    rows.append(Example("long", long, "en", "long", "rows"))
    expected = encode_once(rows, tokenizer, 64, tmp_path)
    assert (len(expected.examples), len(expected.dropped)) == (3, 1)
    monkeypatch.setattr("lingraft.data.encodings._whole", {})  # as another process
    whole = list(expected.examples)
    (folder,) = (tmp_path / "encoded").iterdir()
    path = folder / name
    content = bytearray(path.read_bytes())
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    elif damage != "removed":
        if content:
            content[len(content) // 2] ^= 1
        keep = {"flipped": len(content), "truncated": len(content) // 2, "emptied": 0}[damage]
        path.write_bytes(content[:keep])
    notes: list[str] = []
    again = encode_once(rows, tokenizer, 64, tmp_path, noted=notes.append)
    assert list(again.examples) == whole
    assert notes == [f"{folder}: is damaged; its rows are encoded again."]


@pytest.mark.parametrize("name", ["../../victim/precious.txt", "/etc/hostname", "link/precious.txt"])
def test_answers_are_read_inside_of_the_folder_alone(tmp_path: Path, victim: Path, name: str) -> None:
    folder = tmp_path / "evaluation"
    folder.mkdir()
    (folder / "link").symlink_to(victim)
    result = {
        "compared": ["a", "b"],
        "predictions": [name, name],
        "differences": {},
        "unpaired": {},
        "not_paired": {},
    }
    (folder / "record.json").write_text(json.dumps({"result": result}))
    with pytest.raises(ConfigError) as caught:
        read_answers(folder, None, None)
    assert "names answers outside of it" in str(caught.value)


def test_answers_that_are_not_those_that_were_scored_are_not_shown(tmp_path: Path) -> None:
    def answer(score: float) -> Prediction:
        return Prediction("task_ability", "task", "en", "1", "1", score, "asked", "said", "right")

    def work(folder: Path) -> Work:
        write_predictions(folder / "predictions.parquet", [answer(0.0)])
        return Work({}, {})

    with Store(tmp_path) as store:
        folder = store.run(STAGE, work).folder
    name = f"stages/{folder.name}/predictions.parquet"
    result = {
        "compared": ["a", "b"],
        "predictions": [name, name],
        "differences": {},
        "unpaired": {},
        "not_paired": {},
    }
    (tmp_path / "record.json").write_text(json.dumps({"result": result}))
    assert read_answers(tmp_path, None, None)[0].predictions == (answer(0.0),)
    write_predictions(folder / "predictions.parquet", [answer(1.0)])
    with pytest.raises(ConfigError, match="not those that were scored"):
        read_answers(tmp_path, None, None)
