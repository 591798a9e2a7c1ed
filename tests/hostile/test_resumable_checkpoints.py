"""A damaged resumable checkpoint is refused, told and counted; training ends with the weights of a straight run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lingraft.config.schema import Training
from lingraft.train.checkpoints import Checkpoints
from lingraft.train.phase import PhaseOutcome, train_phase
from lingraft.train.watching import Progress

FILES = (
    "manifest.json",
    "optimizer.json",
    "rng_state.pth",
    "shard-00001-model-00001-of-00001.safetensors",
    "trainer_state.json",
)
TRAINING = Training(learning_rate=1e-2, epochs=2, tokens_per_batch=64, precision="float32", save_every=2)


class KilledError(Exception):
    pass


@dataclass
class Stopped:
    """A training of which steps 2 and 4 are saved, and what it gives when nothing stops it."""

    folder: Path
    weights: dict[str, torch.Tensor]
    losses: tuple[tuple[int, float], ...]
    build: Callable[[], Any]
    rows: Any

    def train(self, folder: Path, **options: Any) -> tuple[PhaseOutcome, Any, list[str]]:
        model = self.build()
        notes: list[str] = []
        done = train_phase(
            model,
            SimpleNamespace(pad_token_id=0),  # type: ignore[arg-type]  # all that training asks of a tokenizer
            self.rows,
            TRAINING,
            trainable=[name for name, _ in model.named_parameters()],
            folder=folder,
            seed=0,
            on_note=notes.append,
            **options,
        )
        return done, model, notes


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Any, examples: Any) -> Stopped:
    torch.set_num_threads(1)
    one = Stopped(
        tmp_path_factory.mktemp("stopped"), {}, (), lambda: tiny_llama(attention_dropout=0.1), examples()
    )
    straight, model, _ = one.train(tmp_path_factory.mktemp("straight"))
    one.losses = straight.losses
    one.weights = {name: value.detach().clone() for name, value in model.named_parameters()}

    def kill(progress: Progress) -> None:
        if progress.step == 5:
            raise KilledError

    with pytest.raises(KilledError):
        one.train(one.folder, on_progress=kill)
    for step in (2, 4):
        checkpoint = one.folder / "trainer" / f"checkpoint-{step}"
        assert sorted(path.name for path in checkpoint.iterdir()) == sorted(FILES)
    return one


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path, place: int | None = None) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 1
    path.write_bytes(content)


def become_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def become_a_link(path: Path) -> None:
    elsewhere = path.parent.parent / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


DAMAGES: dict[str, Callable[[Path], None]] = {
    "truncated": truncate,
    "emptied": empty,
    "missing": Path.unlink,
    "bit flipped": flip,
    "a folder": become_a_folder,
    "a link": become_a_link,
}
# Whole files that are not what was saved.
FORGERIES: dict[str, Callable[[Path], object]] = {
    "an edited step": lambda one: edit(one / "trainer_state.json", global_step=3),
    "an edited loss": lambda one: edit(one / "trainer_state.json", log_history=[]),
    "the step of another": lambda one: edit(one / "manifest.json", step=6),
    "another phase": lambda one: edit(one / "manifest.json", phase="0" * 16),
    "a path as phase": lambda one: edit(one / "manifest.json", phase="../../../x"),
    "another format": lambda one: edit(one / "manifest.json", format=3),
    "no list of files": lambda one: edit(one / "manifest.json", files=None),
    "no file": lambda one: edit(one / "manifest.json", files={}),
    "a file elsewhere": lambda one: edit(
        one / "manifest.json", files={"../../../x": {"bytes": 1, "sha256": "0" * 64}}
    ),
    "deep nesting": lambda one: write(one / "manifest.json", b"[" * 100_000),
    "a list": lambda one: write(one / "manifest.json", b"[]"),
    "no UTF-8": lambda one: write(one / "manifest.json", b"\xff\xfe{}"),
    "a file more": lambda one: write(one / "training_args.bin", b"pickle"),
    "renamed": lambda one: shutil.move(one, one.with_name("checkpoint-5")),
}


def damaged_copy(stopped: Stopped, folder: Path) -> Path:
    shutil.copytree(stopped.folder, folder, symlinks=True)
    return folder / "trainer" / "checkpoint-4"


def assert_ends_as_a_straight_run(
    stopped: Stopped, folder: Path, resumed_from: int | None, refused: int, *said: str
) -> None:
    done, model, notes = stopped.train(folder)
    assert (done.resumed_from, done.refused_checkpoints) == (resumed_from, refused)
    assert done.losses == stopped.losses
    for name, value in model.named_parameters():
        assert torch.equal(value, stopped.weights[name]), name
    assert len(notes) == (1 if said else 0)
    for text in said:
        assert text in notes[0]


def found_in(stopped: Stopped, folder: Path) -> tuple[int | None, int, list[str]]:
    """The step from which training would go on, how many checkpoints are refused, and what is said of it."""
    phase, notes = json.loads((stopped.folder / "trainer" / "phase.json").read_text()), list[str]()
    found = Checkpoints(folder / "trainer", phase, notes.append).find()
    return found.step, found.refused, notes


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_makes_the_checkpoint_before_it_count(
    stopped: Stopped, tmp_path: Path, file: str, damage: str
) -> None:
    checkpoint = damaged_copy(stopped, tmp_path / "run")
    DAMAGES[damage](checkpoint / file)
    step, refused, (note,) = found_in(stopped, tmp_path / "run")
    assert (step, refused) == (2, 1)
    assert "that of step 4 " in note
    assert "goes on from step 2" in note


@pytest.mark.parametrize("file", FILES)
def test_training_goes_on_from_the_checkpoint_before_a_damaged_one(
    stopped: Stopped, tmp_path: Path, file: str
) -> None:
    flip(damaged_copy(stopped, tmp_path / "run") / file)
    assert_ends_as_a_straight_run(stopped, tmp_path / "run", 2, 1, "that of step 4 ", "goes on from step 2")


@pytest.mark.parametrize("forgery", FORGERIES)
def test_what_is_not_what_was_saved_is_refused(stopped: Stopped, tmp_path: Path, forgery: str) -> None:
    checkpoint = damaged_copy(stopped, tmp_path / "run")
    FORGERIES[forgery](checkpoint)
    step, refused, (note,) = found_in(stopped, tmp_path / "run")
    assert (step, refused) == (2, 1)
    assert "refused and removed" in note
    assert "from step 2" in note


def test_without_a_whole_one_training_begins_anew_and_says_so(stopped: Stopped, tmp_path: Path) -> None:
    damaged_copy(stopped, tmp_path / "run")
    for step in (2, 4):
        truncate(tmp_path / "run" / "trainer" / f"checkpoint-{step}" / "optimizer.json")
    assert_ends_as_a_straight_run(stopped, tmp_path / "run", None, 2, "step 4", "step 2", "begins anew")


def test_a_checkpoint_of_an_older_format_is_refused_and_told(stopped: Stopped, tmp_path: Path) -> None:
    damaged_copy(stopped, tmp_path / "run")
    for step in (2, 4):
        edit(tmp_path / "run" / "trainer" / f"checkpoint-{step}" / "manifest.json", format=1)
    assert_ends_as_a_straight_run(stopped, tmp_path / "run", None, 2, "by an older lingraft", "begins anew")


@pytest.mark.parametrize("damage", ["truncated", "emptied", "missing", "bit flipped", "a folder"])
def test_what_describes_the_phase_is_not_needed_to_continue_it(
    stopped: Stopped, tmp_path: Path, damage: str
) -> None:
    damaged_copy(stopped, tmp_path / "run")
    DAMAGES[damage](tmp_path / "run" / "trainer" / "phase.json")
    assert found_in(stopped, tmp_path / "run") == (4, 0, [])


def test_a_link_in_place_of_the_folder_is_neither_followed_nor_emptied(
    stopped: Stopped, tmp_path: Path
) -> None:
    damaged_copy(stopped, tmp_path / "elsewhere")
    before = sorted((tmp_path / "elsewhere").rglob("*"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "trainer").symlink_to(tmp_path / "elsewhere" / "trainer")
    assert_ends_as_a_straight_run(stopped, tmp_path / "run", None, 0)
    assert sorted((tmp_path / "elsewhere").rglob("*")) == before


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_bit_of_any_file_is_noticed(
    stopped: Stopped, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Of the manifest, any bit that changes its meaning."""
    folder = tmp_path_factory.mktemp("bits") / "run"
    checkpoint = damaged_copy(stopped, folder)
    file = checkpoint / data.draw(st.sampled_from(FILES))
    before = json.loads((checkpoint / "manifest.json").read_text())
    content = bytearray(file.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(content)
    phase = json.loads((folder / "trainer" / "phase.json").read_text())
    found = Checkpoints(folder / "trainer", phase, lambda _: None).find()
    if found.step == 4:
        assert file.name == "manifest.json"
        assert json.loads(file.read_text()) == before
    else:
        assert found.step == 2
    shutil.rmtree(folder.parent)


@pytest.mark.parametrize("name", ["checkpoint-6", "runs", "other-0123456789abcdef", "phase.json"])
def test_links_inside_the_folder_are_not_followed(stopped: Stopped, tmp_path: Path, name: str) -> None:
    damaged_copy(stopped, tmp_path / "run")
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(stopped.folder / "trainer", elsewhere)
    before = {path: path.stat().st_mtime_ns for path in elsewhere.rglob("*")}
    link = tmp_path / "run" / "trainer" / name
    link.unlink(missing_ok=True)
    link.symlink_to(elsewhere / "phase.json" if name == "phase.json" else elsewhere)
    assert_ends_as_a_straight_run(stopped, tmp_path / "run", 4, 0)
    assert {path: path.stat().st_mtime_ns for path in elsewhere.rglob("*")} == before


def test_of_what_trackers_left_files_alone_are_kept(stopped: Stopped, tmp_path: Path) -> None:
    damaged_copy(stopped, tmp_path / "run")
    (tmp_path / "secret").write_text("precious")
    tracked = tmp_path / "run" / "trainer" / "runs" / "now"
    tracked.mkdir(parents=True)
    (tracked / "events").write_text("loss 1.0")
    (tracked / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(tracked / "pipe")
    assert_ends_as_a_straight_run(stopped, tmp_path / "run", 4, 0)
    assert [path.name for path in (tmp_path / "run" / "trackers").rglob("*")] == ["now", "events"]
