"""A repair brings a damaged model back towards its start: by the exact divergence, on its own answers, resumable."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from lingraft import stopping
from lingraft.adapt.repair import (
    ANSWERS,
    OwnAnswers,
    Repair,
    ReverseDivergence,
    _encoded,
    mean_divergence,
)
from lingraft.config.schema import Training
from lingraft.data.example import Message
from lingraft.errors import DataError
from lingraft.models.checkpoints import CheckpointReader
from lingraft.models.compute import compute_for
from lingraft.models.generation import Sampling, answer_ending
from lingraft.models.loading import load_model, load_tokenizer
from lingraft.models.loss import collate, reverse_divergence, supervised_loss
from lingraft.representation.prompts import Prompt
from lingraft.stage import CHECKPOINT, FinishedStage, StageProgress, given_model
from lingraft.stopping import Stopped
from lingraft.strategies.replay_rows import ReplaySettings
from lingraft.study.events import Watcher
from lingraft.study.execute import Executor
from lingraft.study.stages.replay import ROWS, Replay
from lingraft.study.store import Store
from lingraft.train.on_policy import OnPolicy
from lingraft.train.phase import train_phase

TRAINING = Training(
    learning_rate=3e-3, epochs=3, tokens_per_batch=256, precision="float32", save_every=1, save_minutes=0
)
PROMPTS = tuple(
    Prompt((Message("user", f"What is {number} and {number + 3}?"),), "en") for number in range(24)
)


class KilledError(Exception):
    pass


class KillingWatcher(Watcher):
    """Kills a repair after a step."""

    def __init__(self, step: int) -> None:
        self._step = step

    def stage_progressed(self, progress: StageProgress) -> None:
        if progress.loss is not None and progress.done == self._step:
            raise KilledError


@pytest.fixture(scope="module")
def damaged_model(talkative_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The talkative model with noise on its weights."""
    model = load_model(talkative_model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    folder = tmp_path_factory.mktemp("damaged") / "model"
    shutil.copytree(talkative_model, folder)
    model.save_pretrained(folder)
    return folder


def repair_of(start: Path, damaged: Path, **changes: Any) -> Repair:
    options: dict[str, Any] = {"prompts": PROMPTS, "training": TRAINING, "max_new_tokens": 12}
    return Repair("m", given_model(str(start)), given_model(str(damaged)), **(options | changes))


def made(folder: Path, stage: Repair, watcher: Watcher | None = None) -> FinishedStage:
    with Store(folder) as store:
        return Executor(store, watcher).make(stage)


def test_a_repair_brings_the_model_back_towards_its_start(
    talkative_model: Path, damaged_model: Path, tmp_path: Path
) -> None:
    stage = repair_of(talkative_model, damaged_model)
    done = made(tmp_path, stage)
    found = done.result
    assert found["after"]["nats"] < 0.5 * found["before"]["nats"]
    assert found["losses"][-1][1] < found["losses"][0][1]
    assert (found["prompts"], found["held_out"], found["refused"]) == (21, 3, {})
    assert [one["answers"] for one in found["rounds"]] == [21, 21, 21]
    assert all(0 < one["ended"] < 21 < one["tokens"] <= 21 * 12 for one in found["rounds"])
    assert found["steps"] == len(found["losses"]) > 6
    # What the record says of the repaired model is true of what lies in the folder.
    model, tokenizer = load_model(done.folder / CHECKPOINT), load_tokenizer(done.folder / CHECKPOINT)
    assert not (done.folder / ANSWERS).exists()
    assert not (done.folder / "trainer").exists()
    compute = compute_for("float32")
    answers = OwnAnswers(
        model,
        tokenizer,
        answer_ending(done.folder / CHECKPOINT, tokenizer),
        tmp_path / "again.jsonl",
        compute=compute,
        max_new_tokens=12,
        seed=0,
        load_copy=lambda: model,
    )
    rows = answers.to([(5, 6, 7)] * 40, 0)
    assert len({row.input_ids for row in rows}) > 20  # each draws by itself
    teacher, before = load_model(talkative_model), load_model(damaged_model)
    assert (
        mean_divergence(model, teacher, rows, compute).nats
        < mean_divergence(before, teacher, rows, compute).nats
    )
    assert mean_divergence(teacher, teacher, rows, compute).nats == pytest.approx(0, abs=1e-6)


def test_the_rounds_answers_are_the_models_own_at_that_time(
    talkative_model: Path, damaged_model: Path, tmp_path: Path
) -> None:
    stage = repair_of(talkative_model, damaged_model)
    one_round = TRAINING.model_copy(update={"epochs": 1})
    first_steps = made(
        tmp_path / "one", repair_of(talkative_model, damaged_model, training=one_round)
    ).result["steps"]
    with pytest.raises(KilledError):
        made(tmp_path / "run", stage, KillingWatcher(first_steps + 1))
    (folder,) = (tmp_path / "run" / "work").glob(f"repair-{stage.fingerprint}.*")
    lines = [json.loads(line) for line in (folder / ANSWERS).read_text().splitlines()]
    of_round = {number: [one for one in lines if one["round"] == number] for number in (0, 1)}
    assert [one["tokens"] for one in of_round[0]] != [one["tokens"] for one in of_round[1]]
    # The weights after the last step of the first round draw the second one's answers.
    model = load_model(damaged_model)
    (saved,) = (folder / "trainer" / f"checkpoint-{first_steps}").glob("*.safetensors")
    trained = {
        name.removeprefix("weights."): one for name, one in load_file(saved).items() if "weights." in name
    }
    model.load_state_dict(trained, strict=False)  # a tied head has no name of its own
    tokenizer = load_tokenizer(damaged_model)
    prompts = _encoded(PROMPTS, tokenizer, None)[0]
    random.Random("prompts of seed 0").shuffle(prompts)
    prompts = prompts[3:]  # which are held out
    again = OwnAnswers(
        model,
        tokenizer,
        answer_ending(damaged_model, tokenizer),
        tmp_path / "again.jsonl",
        compute=compute_for("float32"),
        max_new_tokens=12,
        seed=0,
        load_copy=lambda: model,
    ).to(prompts, 1)
    drawn = {one["row"]: tuple(one["tokens"]) for one in of_round[1]}
    assert {row: one.input_ids[len(prompts[row]) :] for row, one in enumerate(again)} == drawn


@pytest.mark.parametrize("step", [2, 9])
def test_an_interrupted_repair_ends_as_a_straight_one(
    talkative_model: Path, damaged_model: Path, tmp_path: Path, step: int
) -> None:
    straight = made(tmp_path / "straight", repair_of(talkative_model, damaged_model))
    with pytest.raises(KilledError):
        made(tmp_path / "killed", repair_of(talkative_model, damaged_model), KillingWatcher(step))
    again = made(tmp_path / "killed", repair_of(talkative_model, damaged_model))
    assert again.timing["resumed_from"] == step - 1
    assert again.result == straight.result
    first, second = (CheckpointReader(one.folder / CHECKPOINT) for one in (straight, again))
    assert all(torch.equal(first.tensor(name), second.tensor(name)) for name in first.names)


def test_a_signal_stops_a_repair_while_a_round_is_sampled(
    talkative_model: Path, damaged_model: Path, tmp_path: Path
) -> None:
    class Stopping(Watcher):
        """Sends a signal after the first batch of the second round."""

        trained = False

        def stage_progressed(self, progress: StageProgress) -> None:
            self.trained |= progress.loss is not None
            if self.trained and progress.unit == "answers":
                os.kill(os.getpid(), signal.SIGTERM)

    rare = TRAINING.model_copy(update={"save_every": 0, "save_minutes": 60})
    stage = repair_of(talkative_model, damaged_model, training=rare)
    straight = made(tmp_path / "straight", stage)
    with pytest.raises(Stopped), stopping.stoppable():
        made(tmp_path / "stopped", stage, Stopping())
    (folder,) = (tmp_path / "stopped" / "work").glob(f"repair-{stage.fingerprint}.*")
    rounds = [json.loads(line)["round"] for line in (folder / ANSWERS).read_text().splitlines()]
    assert [rounds.count(number) for number in (0, 1, 2)] == [21, 16, 0]
    again = made(tmp_path / "stopped", stage)
    assert again.timing["resumed_from"] is not None  # saved before the round, not by time
    assert again.result == straight.result


def test_prompts_can_come_from_the_start_itself(
    talkative_model: Path, damaged_model: Path, tmp_path: Path
) -> None:
    compute = compute_for("float32")
    settings = ReplaySettings(Sampling(), 0, compute, batch_size=8)
    prompts = Replay("m1", given_model(str(talkative_model)), 20, settings, answered=False)
    stage = repair_of(talkative_model, damaged_model, prompts=prompts)
    done = made(tmp_path, stage)
    rows = (tmp_path / "stages" / f"replay-{prompts.fingerprint}" / ROWS).read_text().splitlines()
    assert len(rows) == 20
    assert all([turn["role"] for turn in json.loads(row)["messages"]] == ["user"] for row in rows)
    assert done.result["prompts"] + done.result["held_out"] + sum(done.result["refused"].values()) == 20
    answered = Replay("m1", given_model(str(talkative_model)), 20, settings)
    assert answered.fingerprint != prompts.fingerprint
    assert "answered" not in answered.inputs  # as before there was a choice


@pytest.mark.parametrize("precision", ["bf16", "bf16_pure"])
def test_a_repair_answers_with_the_weights_in_the_type_that_they_are_deployed_in(
    talkative_model: Path, damaged_model: Path, tmp_path: Path, precision: str
) -> None:
    training = TRAINING.model_copy(update={"precision": precision, "gradient_checkpointing": True})
    found = made(tmp_path, repair_of(talkative_model, damaged_model, training=training)).result
    assert found["after"]["nats"] < 0.6 * found["before"]["nats"]


def test_too_few_prompts_are_refused_and_say_what_was_left_out(
    talkative_model: Path, damaged_model: Path, tmp_path: Path
) -> None:
    stage = repair_of(talkative_model, damaged_model, prompts=(PROMPTS[0],) * 5 + PROMPTS[:9])
    with pytest.raises(
        DataError, match=r"9 prompts are left to repair with \(5 repeated\); give at least 16"
    ):
        made(tmp_path, stage)


# ------------------------------------------------------------------------------------------------ the gradient


def slow_divergence(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """The sum over positions and vocabulary, written out."""
    p, q = functional.softmax(student, dim=1), functional.softmax(teacher, dim=1)
    return (p * (p.log() - q.log())).sum(dim=1)


@pytest.mark.parametrize("rows", [0, 1, 130])  # none, one, and more than are computed at once
def test_the_divergence_and_its_gradient_are_those_of_the_sum_written_out(rows: int) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, rows, 50, dtype=torch.float64) * 3
    upstream = torch.rand(rows, dtype=torch.float64)
    own = student.float().requires_grad_()
    values = reverse_divergence(own, teacher.float())
    (values * upstream.float()).sum().backward()  # type: ignore[no-untyped-call]
    exact = student.clone().requires_grad_()
    expected = slow_divergence(exact, teacher)
    (expected * upstream).sum().backward()  # type: ignore[no-untyped-call]
    assert own.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(values.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(own.grad.double(), exact.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_every_weights_gradient_is_that_of_the_sum_written_out(
    tied: bool, tiny_llama: Any, examples: Any
) -> None:
    student, teacher = tiny_llama(tied=tied), tiny_llama(tied=tied, seed=1)
    rows = examples(5)
    batch = collate(rows)
    total, tokens = supervised_loss(
        student, batch, penalties=[ReverseDivergence(teacher)], has_likelihood=False
    )
    total.backward()  # type: ignore[no-untyped-call]
    gradients = {name: one.grad.clone() for name, one in student.named_parameters()}
    student.zero_grad()
    slow = torch.zeros(())
    count = 0
    for row in rows:
        ids = torch.tensor([row.input_ids])
        keep = torch.tensor(row.supervised[1:])
        with torch.no_grad():
            wanted = teacher(input_ids=ids).logits[0, :-1][keep]
        own = student(input_ids=ids).logits[0, :-1][keep]
        slow, count = slow + slow_divergence(own, wanted).sum(), count + len(own)
    slow.backward()  # type: ignore[no-untyped-call]
    assert tokens == count
    torch.testing.assert_close(total, slow, rtol=1e-5, atol=1e-5)
    for name, one in student.named_parameters():
        torch.testing.assert_close(gradients[name], one.grad, rtol=1e-3, atol=2e-5, msg=name)


def test_frozen_weights_keep_their_bits_and_a_tied_head_goes_with_the_embedding(
    tiny_llama: Any, examples: Any, tmp_path: Path
) -> None:
    model, teacher = tiny_llama(), tiny_llama(seed=1)
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    trained = {name for name in before if "layers.1" in name or "embed" in name}
    rounds: list[int] = []

    def rows(number: int) -> Any:
        rounds.append(number)
        return examples(seed=number)

    outcome = train_phase(
        model,
        SimpleNamespace(pad_token_id=0),  # type: ignore[arg-type]
        examples(),
        TRAINING.model_copy(update={"epochs": 2, "tokens_per_batch": 64, "accumulation": 2}),
        trainable=trained,
        folder=tmp_path,
        seed=0,
        on_policy=OnPolicy(rows, ReverseDivergence(teacher)),
    )
    assert rounds == [0, 1]
    assert outcome.losses[-1][1] < outcome.losses[0][1]
    for name, one in model.named_parameters():
        assert torch.equal(one, before[name]) == (name not in trained), name
    assert model.lm_head.weight is model.model.embed_tokens.weight
