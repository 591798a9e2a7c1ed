"""`lingraft clean` removes what nothing refers to, and nothing else."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lingraft.claims import claim
from lingraft.records import read_json, write_json_atomically
from lingraft.stage_record import Artefact, StageRecord
from lingraft.study.unused import ListedStage, write_plan

Lingraft = Callable[..., subprocess.CompletedProcess[str]]
LISTED, UNLISTED, PENDING, TORN = (
    f"{kind}-{StageRecord(kind, {'of': number}, {}, {}).fingerprint}"
    for number, kind in enumerate(("train", "train", "train", "combine"))
)


def stage(folder: Path, name: str, files: dict[str, str], discarded: tuple[str, ...] = ()) -> None:
    """Write a finished stage."""
    own = folder / "stages" / name
    own.mkdir(parents=True, exist_ok=True)
    for place, text in files.items():
        (own / place).parent.mkdir(exist_ok=True)
        (own / place).write_text(text)
    artefacts = {place: Artefact(1, "", place in discarded) for place in files}
    inputs = {"of": [LISTED, UNLISTED, PENDING, TORN].index(name)}
    StageRecord(name.partition("-")[0], inputs, {}, artefacts).write(own)
    (own / "timing.json").write_text("{}")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder that lists a finished stage, an interrupted training and an interrupted combination."""
    folder = tmp_path / "runs" / "tiny"
    stage(folder, LISTED, {"checkpoint/model": "weights"})
    stage(folder, UNLISTED, {"checkpoint/model": "other weights"})
    for name in (PENDING, TORN):
        (folder / "stages" / name / "trainer").mkdir(parents=True)
        (folder / "stages" / name / "trainer" / "state").write_text("half")
    (folder / "study.yaml").write_text("name: tiny\n")
    write_plan(folder, {UNLISTED: ListedStage("old / plain / seed 0", is_continued=True)})
    listed = {LISTED: True, PENDING: True, TORN: False}
    write_plan(folder, {name: ListedStage(f"{name} / cell", goes_on) for name, goes_on in listed.items()})
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_what_nothing_refers_to_is_shown_and_removed_on_yes_alone(run: Path, lingraft: Lingraft) -> None:
    before = contents(run)
    shown = lingraft("clean", "runs/tiny")
    assert shown.returncode == 0, shown.stderr
    assert f"stages/{UNLISTED}  (stage that the study does not list: old / plain / seed 0)" in shown.stdout
    assert f"stages/{TORN}  (unfinished attempt: {TORN} / cell)" in shown.stdout
    assert "lingraft clean runs/tiny --yes" in shown.stdout
    assert PENDING not in shown.stdout
    assert contents(run) == before | {"claims/run/1": ""}

    assert lingraft("clean", "runs/tiny", "--yes").returncode == 0
    kept = {name: text for name, text in before.items() if UNLISTED not in name and TORN not in name}
    assert contents(run) == kept | {"claims/run/2": ""}
    assert sorted(path.name for path in (run / "stages").iterdir()) == [LISTED, PENDING]
    again = lingraft("clean", "runs/tiny")
    assert again.stdout == "runs/tiny: nothing to remove.\n"


def test_json_lists_paths_in_the_run_folder_and_removes_nothing_without_yes(
    run: Path, lingraft: Lingraft
) -> None:
    (run / "stages" / UNLISTED / "notes.txt").write_text("mine")
    (run / "paper.tex").write_text("mine")
    before = contents(run)
    printed = json.loads(lingraft("clean", "runs/tiny", "--json").stdout)
    assert [one["path"] for one in printed["removable"]] == [f"stages/{TORN}", f"stages/{UNLISTED}"]
    assert printed["bytes"] == sum(one["bytes"] for one in printed["removable"])
    assert printed["foreign"] == ["paper.tex", f"stages/{UNLISTED}/notes.txt"]
    assert (printed["run"], printed["removed"]) == ("runs/tiny", False)
    assert contents(run) == before | {"claims/run/1": ""}
    assert json.loads(lingraft("clean", "runs/tiny", "--json", "--yes").stdout)["removed"]
    left = [name for name in contents(run) if UNLISTED in name]
    assert left == [f"stages/{UNLISTED}/notes.txt"]  # what is not ours stays, whatever lies around it


@pytest.mark.parametrize(
    ("answer", "is_removed"), [("y\n", True), ("yes\n", True), ("n\n", False), ("", False)]
)
def test_in_a_terminal_it_asks(
    run: Path, lingraft: Lingraft, monkeypatch: pytest.MonkeyPatch, answer: str, is_removed: bool
) -> None:
    terminal = io.StringIO(answer)
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    done = lingraft("clean", "runs/tiny")
    assert "[y/N]" in done.stderr
    assert (run / "stages" / UNLISTED).exists() is not is_removed


def test_links_are_neither_followed_nor_removed(run: Path, lingraft: Lingraft, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / f"train-{9:016x}").mkdir(parents=True)
    victim = outside / "victim.txt"
    victim.write_text("mine")
    (run / "stages" / f"train-{9:016x}").symlink_to(outside / f"train-{9:016x}")
    (run / "stages" / UNLISTED / "checkpoint" / "link").symlink_to(victim)
    (run / "stages" / UNLISTED / "far").symlink_to(outside)
    (run / "cache").mkdir()
    (run / "cache" / "encoded").symlink_to(outside)
    (run / ".result.json.abcdefgh.part").symlink_to(victim)
    assert lingraft("clean", "runs/tiny", "--yes").returncode == 0
    assert victim.read_text() == "mine"
    assert len([path for path in run.rglob("*") if path.is_symlink()]) == 5


def test_a_record_that_lists_files_elsewhere_removes_nothing_there(
    run: Path, lingraft: Lingraft, tmp_path: Path
) -> None:
    victim = tmp_path / "victim.txt"
    victim.write_text("mine")
    for name in (LISTED, UNLISTED):
        record = run / "stages" / name / "record.json"
        listed = {
            place: {"bytes": 4, "sha256": "", "discarded": True}
            for place in (str(victim), "../../../../victim.txt", "../../study.yaml")
        }
        write_json_atomically(record, read_json(record) | {"artefacts": listed})
    assert lingraft("clean", "runs/tiny", "--yes").returncode == 0
    assert victim.read_text() == "mine"
    assert (run / "study.yaml").exists()


def test_what_killed_runs_leave_is_removed(run: Path, lingraft: Lingraft) -> None:
    stage(run, LISTED, {"checkpoint/model": "weights", "held_out.parquet": "x"}, ("checkpoint/model",))
    own = run / "stages" / LISTED
    leftovers = [own / ".record.json.a1b2c3d4.part", run / f".result.json.{1:016x}.part", own / "task.json"]
    leftovers += [
        own / "trainer" / "checkpoint-5" / "optimizer.pt",
        run / "cache" / "encoded" / "e" / "rows.arrow",
    ]
    leftovers += [run / "stages" / PENDING / ".timing.json.a1b2c3d4.part", own / "checkpoint" / "model"]
    kept = [run / "cache" / "verdicts.jsonl", run / "cache" / f"answers-{1:016x}.12.jsonl"]
    kept += [run / "cache" / claims / "1" for claims in ("claims/encoded-e", ".verdicts.jsonl.claims")]
    kept += [own / "trackers" / "events", run / "cache" / f"manifest-{1:016x}.json", own / ".notes.markdown"]
    for path in (*leftovers, *kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    assert lingraft("clean", "runs/tiny", "--yes").returncode == 0
    assert [path for path in leftovers if path.exists()] == []
    assert [
        path for path in kept if not path.exists()
    ] == []  # an interrupted evaluation may go on with answers
    assert (own / "held_out.parquet").exists()

    for name in (PENDING, TORN):
        stage(run, name, {})
    assert lingraft("clean", "runs/tiny", "--yes").returncode == 0
    assert [path.name for path in kept if not path.exists()] == [f"answers-{1:016x}.12.jsonl"]


@pytest.mark.parametrize("text", [None, "", "[]", '{"format": 1}', "[" * 100_000, '{"stages": {"a": 1}}'])
def test_without_a_plan_nothing_is_removed(run: Path, lingraft: Lingraft, text: str | None) -> None:
    (run / "plan.json").unlink()
    if text is not None:
        (run / "plan.json").write_text(text)
    before = contents(run)
    done = lingraft("clean", "runs/tiny", "--yes")
    assert done.returncode == 2
    assert "Run the study once more" in done.stderr
    assert contents(run) == before


def test_what_is_no_run_is_refused_and_left_as_it_is(lingraft: Lingraft, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "stages").mkdir()
    for place in ("data", "nowhere", "data/stages"):
        done = lingraft("clean", place, "--yes")
        assert (done.returncode, done.stdout) == (2, "")
        assert f"{place}: is no run folder of a study" in done.stderr
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["stages"]


def test_a_run_that_is_at_work_is_left_alone(run: Path, lingraft: Lingraft) -> None:
    with claim(run / "claims" / "run"):
        done = lingraft("clean", "runs/tiny", "--yes")
    assert done.returncode == 2
    assert "another lingraft is at work" in done.stderr
    assert (run / "stages" / UNLISTED).exists()


def test_work_claims_and_logs_go_with_their_stages(run: Path, lingraft: Lingraft, tmp_path: Path) -> None:
    def write(*names: str) -> list[Path]:
        for name in names:
            (run / name).parent.mkdir(parents=True, exist_ok=True)
            (run / name).write_text("x")
        return [run / name for name in names]

    gone, elsewhere = f"train-{7:016x}", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("x")
    wanted = write(
        f"work/{PENDING}.2/trainer/state",  # what the next owner goes on with
        f"claims/{PENDING}/2",
        f"logs/{PENDING}/1.log",
        "failures.jsonl",
    )
    removed = write(
        f"work/{PENDING}.1/trainer/state",  # of an owner that was taken over
        f"work/{TORN}.1/half",  # which goes on with nothing
        f"work/{LISTED}.4/trainer/state",  # which is finished
        f"work/{gone}.1/half",
        f"claims/{gone}/1",
        f"logs/{gone}/1.log",
        f"logs/{gone}/1.events.jsonl",
        f"claims/run/.3.{7:08x}.part",
    )
    (run / "claims" / gone / "1").write_text("")
    foreign = write("work/notes.txt", f"work/{gone}.x/notes", f"logs/{PENDING}/notes", "claims/run/notes")
    (run / "work" / f"{PENDING}.9").symlink_to(elsewhere)
    (run / "claims" / f"train-{8:016x}").symlink_to(elsewhere)
    found = json.loads(lingraft("clean", "runs/tiny", "--json", "--yes").stdout)
    assert [path for path in wanted if not path.exists()] == []
    assert [path for path in removed if path.exists()] == []
    assert set(found["foreign"]) >= {
        "work/notes.txt",
        f"work/{gone}.x",
        f"logs/{PENDING}/notes",
        "claims/run/notes",
        f"work/{PENDING}.9",
        f"claims/train-{8:016x}",
    }
    assert [path for path in foreign if not path.exists()] == []
    assert [path.name for path in elsewhere.iterdir()] == ["precious"]


def test_what_another_process_makes_is_left_alone(run: Path, lingraft: Lingraft) -> None:
    (run / "work" / f"{TORN}.1").mkdir(parents=True)
    (run / "work" / f"{TORN}.1" / "half").write_text("x")
    with claim(run / "claims" / TORN):
        assert lingraft("clean", "runs/tiny", "--yes").returncode == 0
        assert (run / "work" / f"{TORN}.1" / "half").exists()
    assert lingraft("clean", "runs/tiny", "--yes").returncode == 0
    assert not (run / "work" / f"{TORN}.1").exists()
