"""Trackers: a run for each training, called by what is trained, with scalars whose names say what they are."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from transformers import Trainer, TrainerCallback
from transformers.integrations import integration_utils

from lingraft.config.schema import Training
from lingraft.errors import ModelError
from lingraft.train.phase import PhaseOutcome, train_phase
from lingraft.train.trackers import TrackedRun
from lingraft.train.watching import Progress

Build = Callable[..., Any]
RUN = TrackedRun("tiny", "one:english/plain > two:new/lora")
OPTIONS = Training(learning_rate=1e-2, tokens_per_batch=64, precision="float32", save_minutes=0)


class FakeTracker(TrainerCallback):
    """Notes what the Trainer gives a tracker."""

    made: ClassVar[list[FakeTracker]] = []

    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.names: tuple[str, str] | None = None
        self.tb_writer: Any = SimpleNamespace(close=lambda: self.closed.append(True))
        self.closed: list[bool] = []
        self.made.append(self)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self.names = args.project, args.run_name

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self.logged.append((state.global_step, dict(kwargs["logs"])))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[FakeTracker]:
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "fake", FakeTracker)
    monkeypatch.setattr(FakeTracker, "made", [])
    return FakeTracker.made


def trained(
    build: Build, rows: Any, tokenizer: Any, folder: Path, tracker: str, **others: Any
) -> PhaseOutcome:
    training = OPTIONS.model_copy(update={"report_to": (tracker,)})
    return train_phase(build(), tokenizer, rows, training, folder=folder, run=RUN, **others)


def test_a_tracker_gets_the_scalars_of_each_step_by_readable_names(
    fake: list[FakeTracker], tiny_llama: Build, examples: Build, tokenizer: Any, tmp_path: Path
) -> None:
    rows = examples()
    outcome = trained(tiny_llama, rows, tokenizer, tmp_path, "fake")
    (tracker,) = fake
    assert tracker.names == ("tiny", "one:english/plain > two:new/lora")
    *steps, (_, summary) = tracker.logged
    assert [(step, logs["loss_nats_per_supervised_token"]) for step, logs in steps] == list(outcome.losses)
    assert all(logs["learning_rate"] > 0 and logs["gradient_norm"] > 0 for _, logs in steps)
    tokens = [logs["tokens"] for _, logs in steps]
    assert tokens == sorted(set(tokens))
    assert tokens[-1] == outcome.tokens
    assert "mean_loss_nats_per_supervised_token" in summary
    assert not {"loss", "grad_norm"} & set().union(*(logs for _, logs in tracker.logged))
    assert tracker.closed == [True]


def test_a_training_that_fails_closes_its_tracker(
    fake: list[FakeTracker], tiny_llama: Build, examples: Build, tokenizer: Any, tmp_path: Path
) -> None:
    def fail(_: Progress) -> None:
        raise ModelError("enough")

    with pytest.raises(ModelError, match="enough"):
        trained(tiny_llama, examples(), tokenizer, tmp_path, "fake", on_progress=fail)
    assert fake[0].closed == [True]


def test_a_process_that_is_not_the_first_closes_no_tracker(
    fake: list[FakeTracker],
    tiny_llama: Build,
    examples: Build,
    tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Trainer, "is_world_process_zero", lambda _: False)
    trained(tiny_llama, examples(), tokenizer, tmp_path, "fake")
    assert fake[0].closed == []


@pytest.mark.parametrize("is_shared", [False, True])
def test_tensorboard_calls_a_run_by_what_is_trained(
    tiny_llama: Build,
    examples: Build,
    tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_shared: bool,
) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    name, place = "one-english-plain - two-new-lora", tmp_path / "stage" / "trackers"
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    if is_shared:
        monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "shared"))
        place = tmp_path / "shared" / "tiny"
    outcome = trained(tiny_llama, examples(), tokenizer, tmp_path / "stage", "tensorboard")
    found = EventAccumulator(str(place / name))
    found.Reload()
    losses = found.Scalars("train/loss_nats_per_supervised_token")
    assert [one.step for one in losses] == [step for step, _ in outcome.losses]
    assert [one.value for one in losses] == pytest.approx([loss for _, loss in outcome.losses])
    assert found.Scalars("train/tokens")[-1].value == outcome.tokens


def test_trackio_has_a_run_for_each_training(
    tiny_llama: Build, examples: Build, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "trackio" not in sys.modules:  # it reads the place when it is imported
        monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio", reason="trackio is not installed")
    for name in ("a", "b"):
        trained(tiny_llama, examples(), tokenizer, tmp_path / name, "trackio")
    assert {one.name for one in trackio.Api().runs("tiny")} == {RUN.name}


def test_weights_and_biases_has_a_run_for_each_training_in_its_stage(
    tiny_llama: Build, examples: Build, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("a", "b"):
        trained(tiny_llama, examples(), tokenizer, tmp_path / name, "wandb")
        assert wandb.run is None
        assert len(list((tmp_path / name / "trackers").rglob("*.wandb"))) == 1
