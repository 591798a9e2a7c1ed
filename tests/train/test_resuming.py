"""What was trained is kept: by time, at a signal, on a full disk, before the model is saved; and told."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import get_scheduler

from lingraft import stopping
from lingraft.config.schema import StrategyChoice, Training
from lingraft.data.encoded import write_table
from lingraft.errors import DiskError, LingraftError, VerificationError
from lingraft.models.checkpoints import CheckpointReader
from lingraft.records import fingerprint_of, read_json
from lingraft.stopping import Stopped
from lingraft.train import run as run_module
from lingraft.train import saved_state
from lingraft.train.checkpoints import Checkpoints
from lingraft.train.phase import PhaseOutcome, _trained_marks, train_phase
from lingraft.train.run import PhaseTask, train_task
from lingraft.train.trainer import PhaseTrainer, rate_factor
from lingraft.train.watching import Progress

TRAINING = Training(learning_rate=1e-2, epochs=2, tokens_per_batch=64, precision="float32")
Train = Callable[..., tuple[PhaseOutcome, Any, list[str]]]


class KilledError(Exception):
    pass


def at_step(step: int, act: Callable[[], object]) -> Callable[[Progress], None]:
    def on_progress(progress: Progress) -> None:
        if progress.step == step:
            act()

    return on_progress


def kill() -> None:
    raise KilledError


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture
def train(tiny_llama: Any, examples: Any, tmp_path: Path) -> Train:
    def one(folder: Path | str = "stage", **options: Any) -> tuple[PhaseOutcome, Any, list[str]]:
        model, notes = tiny_llama(attention_dropout=0.1), options.pop("notes", [])
        training = TRAINING.model_copy(update=options.pop("training", {}))
        names = options.pop("trainable", [name for name, _ in model.named_parameters()])
        done = train_phase(
            model,
            SimpleNamespace(pad_token_id=0),  # type: ignore[arg-type]  # all that training asks of a tokenizer
            options.pop("rows", examples()),
            training,
            trainable=names,
            folder=tmp_path / folder,
            seed=0,
            on_note=notes.append,
            **options,
        )
        return done, model, notes

    return one


def assert_same_weights(first: Any, second: Any) -> None:
    expected = dict(second.named_parameters())
    for name, value in first.named_parameters():
        assert torch.equal(value, expected[name]), name


def steps_saved(folder: Path) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in (folder / "trainer").glob("checkpoint-*"))


def test_a_phase_is_saved_by_time(train: Train, tmp_path: Path) -> None:
    expected, straight, _ = train("straight")
    always = {"save_minutes": 1e-9}
    with pytest.raises(KilledError):
        train(training=always, on_progress=at_step(5, kill))
    assert steps_saved(tmp_path / "stage") == [3, 4]  # never more than two
    done, model, _ = train(training=always)
    assert (done.resumed_from, done.losses) == (4, expected.losses)
    assert_same_weights(model, straight)


def test_the_clock_begins_again_at_a_save(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def a_minute_later(_: Progress) -> None:
        nonlocal now
        now += 60

    saved: list[int] = []
    monkeypatch.setattr(
        "lingraft.train.watching.time", SimpleNamespace(monotonic=lambda: now, perf_counter=lambda: now)
    )
    seal = Checkpoints.seal

    def sealed(self: Checkpoints, step: int) -> None:
        saved.append(step)
        seal(self, step)

    monkeypatch.setattr(Checkpoints, "seal", sealed)
    done, _, _ = train(training={"save_minutes": 2, "save_every": 5}, on_progress=a_minute_later)
    assert saved == [3, 5, 8, 10]
    assert done.steps == 10


def test_without_saving_nothing_is_written(train: Train, tmp_path: Path) -> None:
    train(training={"save_minutes": 0})
    assert steps_saved(tmp_path / "stage") == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_at_a_signal_the_step_is_finished_saved_and_said(train: Train, tmp_path: Path, number: int) -> None:
    expected, straight, _ = train("straight")
    with pytest.raises(Stopped) as stopped, stopping.stoppable():
        train(on_progress=at_step(4, lambda: send(number)))
    assert stopped.value.exit_code == 128 + number
    assert stopping.was_saved() == f"training stopped after step 5 of {expected.steps}, which is saved"
    assert steps_saved(tmp_path / "stage") == [5]
    done, model, notes = train()
    assert (done.resumed_from, done.losses, notes) == (5, expected.losses, [])
    assert_same_weights(model, straight)


def test_a_signal_in_the_last_step_keeps_it(train: Train) -> None:
    expected, straight, _ = train("straight")
    with pytest.raises(Stopped), stopping.stoppable():
        train(on_progress=at_step(expected.steps - 1, lambda: send(signal.SIGTERM)))
    trained: list[Progress] = []
    done, model, _ = train(on_progress=trained.append)
    assert (done.resumed_from, done.losses, trained) == (expected.steps, expected.losses, [])
    assert_same_weights(model, straight)


def test_an_interrupt_after_a_signal_stops_at_once(train: Train, tmp_path: Path) -> None:
    def twice() -> None:
        send(signal.SIGTERM)
        send(signal.SIGINT)

    with pytest.raises(Stopped), stopping.stoppable():
        train(on_progress=at_step(4, twice))
    assert steps_saved(tmp_path / "stage") == []


def test_where_nothing_is_saved_a_stop_says_so(train: Train) -> None:
    with pytest.raises(Stopped), stopping.stoppable():
        train(training={"save_minutes": 0}, on_progress=at_step(1, lambda: send(signal.SIGINT)))
    assert stopping.was_saved() == "training stopped after step 2 of 10, which is not saved"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        pytest.param(RuntimeError("PytorchStreamWriter failed writing file"), marks=pytest.mark.slow),
    ],
)
def test_a_full_disk_on_the_way_loses_neither_the_phase_nor_what_was_saved(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    _, straight, _ = train("straight")
    seal = Checkpoints.seal

    def full(self: Checkpoints, step: int) -> None:
        if step in (4, 6):
            raise error
        seal(self, step)

    monkeypatch.setattr(Checkpoints, "seal", full)
    notes: list[str] = []
    with pytest.raises(KilledError):
        train(training={"save_every": 2}, on_progress=at_step(7, kill), notes=notes)
    assert [note.partition(" could")[0] for note in notes] == [
        "the checkpoint of step 4",
        "the checkpoint of step 6",
    ]
    assert str(error.args[-1]) in notes[0]
    assert steps_saved(tmp_path / "stage") == [2]
    done, model, _ = train(training={"save_every": 2})
    assert done.resumed_from == 2
    assert_same_weights(model, straight)


@pytest.mark.parametrize(
    ("said", "kind"),
    [("[Errno 28] No space left on device", DiskError), ("a number is none", LingraftError)],
)
def test_a_full_disk_ends_several_processes_and_what_would_come_after_them(
    tmp_path: Path, said: str, kind: type[LingraftError]
) -> None:
    trainer: Any = PhaseTrainer.__new__(PhaseTrainer)
    trainer.args = SimpleNamespace(world_size=2)
    trainer._checkpoints = Checkpoints(tmp_path, {}, print)
    with pytest.raises(LingraftError, match=r"checkpoint of step 4 could not .* Free space there") as raised:
        trainer._not_saved(4, OSError(said))  # as torch's checkpoints say it, without a number
    assert type(raised.value) is kind


def test_training_goes_on_while_a_checkpoint_is_written_which_counts_when_it_is_whole(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, straight, _ = train("straight")
    folder, may_end = tmp_path / "stage" / "trainer", threading.Event()

    def slowly(tensors: Any, path: Path) -> None:
        assert path.parent.name != "checkpoint-4" or may_end.wait(timeout=60)
        save_file(tensors, path)

    found: list[int | None] = []

    def look() -> None:
        other = tmp_path / "copy"
        shutil.copytree(folder, other)  # what a kill would leave now
        found.append(Checkpoints(other, read_json(folder / "phase.json"), lambda _: None).find().step)
        may_end.set()

    monkeypatch.setattr(saved_state, "save_file", slowly)
    with pytest.raises(KilledError):
        train(
            training={"save_every": 2},
            on_progress=lambda now: look() if now.step == 5 else kill() if now.step == 6 else None,
        )
    assert found == [2]
    done, model, _ = train(training={"save_every": 2})
    assert done.resumed_from == 4
    assert_same_weights(model, straight)


def test_a_checkpoint_is_written_at_once_where_memory_has_no_room_for_a_copy(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, straight, _ = train("straight")
    monkeypatch.setattr(saved_state, "_SHARE_OF_FREE", 0.0)
    sealed: list[bool] = []
    manifest = tmp_path / "stage" / "trainer" / "checkpoint-4" / "manifest.json"
    with pytest.raises(KilledError):
        train(
            training={"save_every": 4},
            on_progress=lambda now: kill() if now.step == 6 else sealed.append(manifest.exists()),
        )
    assert sealed == [False] * 4 + [True]
    done, model, _ = train()
    assert done.resumed_from == 4
    assert_same_weights(model, straight)


@pytest.mark.slow
def test_a_checkpoint_of_another_phase_is_told_and_stays_until_this_one_has_saved(
    train: Train, tmp_path: Path
) -> None:
    expected, straight, _ = train("straight")
    with pytest.raises(KilledError):
        train(training={"save_every": 2}, on_progress=at_step(5, kill))
    other = {"save_every": 2, "learning_rate": 2e-2}
    notes: list[str] = []
    with pytest.raises(KilledError):
        train(training=other, on_progress=at_step(2, kill), notes=notes)
    assert len(notes) == 1
    assert (
        "at step 4, which this one cannot continue: learning_rate was 0.01, not 0.02. This one begins"
        in notes[0]
    )
    done, model, notes = train(training={"save_every": 2})  # as it was
    assert (done.resumed_from, done.losses, notes) == (4, expected.losses, [])
    assert_same_weights(model, straight)
    with pytest.raises(KilledError):
        train(training=other, on_progress=at_step(3, kill))
    assert [path.name for path in (tmp_path / "stage" / "trainer").glob("*-*")] == ["checkpoint-2"]


def test_what_another_phase_differs_in_is_told(tmp_path: Path) -> None:
    notes: list[str] = []
    for seed in (2, 1):
        own = Checkpoints(tmp_path / "trainer", {"seed": seed, "data": f"{seed}"}, notes.append)
        assert own.find().step is None
        if seed == 2:
            own.path_of(6).mkdir()
            (own.path_of(6) / "trainer_state.json").write_text('{"global_step": 6}')
            own.seal(6)
    assert len(notes) == 1
    assert "at step 6, which this one cannot continue: other data; seed was 2, not 1." in notes[0]
    again = Checkpoints(tmp_path / "trainer", {"seed": 2, "data": "2"}, notes.append)
    assert (again.find().step, len(notes)) == (6, 1)


def test_what_is_in_the_way_of_checkpoints_is_removed(tmp_path: Path) -> None:
    notes: list[str] = []
    first = Checkpoints(tmp_path, {"seed": 1}, notes.append)
    assert first.find().step is None
    first.path_of(6).mkdir()
    (first.path_of(6) / "trainer_state.json").write_text('{"global_step": 6}')
    first.seal(6)
    (tmp_path / f"other-{fingerprint_of({'seed': 1})}").write_text("a file")
    (tmp_path / "phase.json").unlink()
    os.mkfifo(tmp_path / "phase.json")  # which no reader may wait for
    assert Checkpoints(tmp_path, {"seed": 2}, notes.append).find().step is None
    assert "a stopped training lies here at step 6" in notes[0]
    assert first.find().step == 6


@pytest.mark.parametrize("course", ["linear", "cosine", "constant_with_warmup"])
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (2, 1), (3, 1), (3, 3), (20, 1), (97, 5)])
def test_the_rate_is_never_0_and_after_the_warm_up_that_of_transformers(
    course: str, steps: int, warmup: int
) -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = get_scheduler(course, optimizer, warmup, steps)
    for step in range(steps):
        factor = rate_factor(step, course=course, warmup_steps=warmup, steps=steps)
        assert 0 < factor <= 1
        if step >= warmup:
            assert factor == theirs.get_last_lr()[0]
        else:
            assert factor == (step + 1) / (warmup + 1)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("scheduler", ["linear", "cosine", "constant_with_warmup"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_first_step_trains_however_few_there_are(
    train: Train, tiny_llama: Any, examples: Any, tmp_path: Path, scheduler: str, steps: int
) -> None:
    before = tiny_llama()
    done, model, _ = train(rows=examples(1), training={"epochs": steps, "scheduler": scheduler})
    assert done.steps == steps
    state = json.loads(
        (tmp_path / "stage" / "trainer" / f"checkpoint-{steps}" / "trainer_state.json").read_text()
    )
    rates = [one["learning_rate"] for one in state["log_history"]]
    assert len(rates) == steps
    assert all(0 < rate <= TRAINING.learning_rate for rate in rates)
    assert not torch.equal(model.model.norm.weight, before.model.norm.weight)


def test_a_phase_that_moves_no_weight_is_an_error(train: Train, tiny_llama: Any, examples: Any) -> None:
    with pytest.raises(VerificationError, match=r"trained nothing.*raise training.learning_rate \(1e-12\)"):
        train(training={"learning_rate": 1e-12, "precision": "bf16"})


def test_a_phase_without_gradients_is_an_error(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "lingraft.train.restrained.Restraints.change_gradients",
        lambda self: [one.grad.zero_() for one in self._parameters.values() if one.grad is not None],
    )
    with pytest.raises(VerificationError, match=r"trained nothing.*All gradients were zero"):
        train()


@pytest.mark.parametrize("rows", [48, 47])  # 47 rows of 33 are no whole number of 64-bit words
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_bit_is_a_change(tiny_llama: Any, rows: int, dtype: torch.dtype) -> None:
    model = tiny_llama().to(dtype)
    model.model.embed_tokens.weight = torch.nn.Parameter(torch.randn(rows, 32 + rows % 2).to(dtype))
    before = _trained_marks(model)
    weight = model.model.embed_tokens.weight
    with torch.no_grad():
        weight.view(torch.int32 if dtype == torch.float32 else torch.int16)[17, 13] ^= 1
    assert _trained_marks(model) != before


@pytest.mark.slow
def test_a_model_that_cannot_be_saved_costs_no_step(
    tiny_model: Path, examples: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_table(examples(), tmp_path / "encoded")

    def task(name: str) -> PhaseTask:
        return PhaseTask(
            parent=tiny_model,
            base=None,
            choice=StrategyChoice.model_validate("plain"),
            states={},
            training=TRAINING,
            encoded=tmp_path / "encoded",
            folder=tmp_path / name,
            checkpoint=tmp_path / name / "checkpoint",
            seed=0,
            trust_remote_code=False,
        )

    expected = train_task(task("straight"))

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "save_checkpoint", full)
        with pytest.raises(OSError, match="No space left"):
            train_task(task("stage"))
    steps: list[Progress] = []
    done = train_task(task("stage"), on_progress=steps.append)
    assert steps == []
    assert done.outcome.resumed_from == expected.outcome.steps
    assert done.outcome.losses == expected.outcome.losses
    one, other = (CheckpointReader(tmp_path / name / "checkpoint") for name in ("stage", "straight"))
    assert all(torch.equal(one.tensor(name), other.tensor(name)) for name in one.names)
