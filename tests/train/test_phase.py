"""A phase: the right weights, the same every time, resumed to the last bit, and the model left as found."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from lingraft.config.schema import Training
from lingraft.data.encoded import EncodedExample
from lingraft.errors import DataError, ModelError, StrategyError, VerificationError
from lingraft.models.compute import compute_for
from lingraft.models.loss import collate, supervised_loss
from lingraft.models.shape import shape_of
from lingraft.train.memory_plan import Cut
from lingraft.train.phase import PhaseOutcome, train_phase
from lingraft.train.trainer import PhaseTrainer, _leave_signals, training_arguments
from lingraft.train.watching import Progress

Build = Callable[..., Any]
TRAINING = Training(learning_rate=1e-2, epochs=2, tokens_per_batch=64, warmup_share=0.1, precision="float32")


def names_of(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_same_weights(first: nn.Module, second: nn.Module) -> None:
    expected = weights_of(second)
    for name, value in weights_of(first).items():
        assert torch.equal(value, expected[name]), name


@pytest.fixture
def run(tokenizer: Any, tmp_path: Path) -> Callable[..., PhaseOutcome]:
    def train(
        model: Any,
        encoded: Sequence[EncodedExample],
        training: Training = TRAINING,
        *,
        trainable: Sequence[str] | None = None,
        folder: Path = tmp_path / "stage",
        seed: int = 0,
        on_progress: Callable[[Progress], None] | None = None,
        **options: Any,
    ) -> PhaseOutcome:
        done = train_phase(
            model,
            tokenizer,
            encoded,
            training,
            trainable=names_of(model) if trainable is None else trainable,
            folder=folder,
            seed=seed,
            on_progress=on_progress,
            **options,
        )
        shutil.rmtree(folder / "trainer")
        return done

    return train


@pytest.mark.parametrize("precision", ["float32", "bf16", "bf16_pure"])
def test_training_learns_and_counts(
    tiny_llama: Build, examples: Build, run: Build, precision: str, capfd: pytest.CaptureFixture[str]
) -> None:
    model, rows = tiny_llama(), examples()
    steps: list[Progress] = []
    training = TRAINING.model_copy(update={"epochs": 6, "precision": precision})
    outcome = run(model, rows, training, on_progress=steps.append)
    assert outcome.losses[-1][1] < 0.7 * outcome.losses[0][1]
    assert outcome.steps == len(outcome.losses) == len(steps) == steps[0].steps
    assert [step for step, _ in outcome.losses] == [step.step for step in steps]
    assert outcome.tokens == 6 * sum(len(row.input_ids) for row in rows) <= outcome.padded_tokens
    assert outcome.supervised_tokens == 6 * sum(sum(row.supervised) for row in rows)
    assert (outcome.examples, outcome.resumed_from) == (12, None)
    assert outcome.trainable_parameters == sum(p.numel() for p in model.parameters())
    assert outcome.frozen_parameters == 0
    assert outcome.seconds > 0
    assert outcome.tokens_per_second > 0
    assert outcome.peak_bytes > 1e8
    assert steps[-1].seconds_left == 0
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("checkpointing", [False, True])
def test_utilisation_is_what_real_tokens_need_over_what_the_device_could_do(
    tiny_llama: Build, examples: Build, run: Build, checkpointing: bool
) -> None:
    model, rows = tiny_llama(), examples()
    upper = [name for name in names_of(model) if ".layers.1." in name]
    steps: list[Progress] = []
    training = TRAINING.model_copy(update={"gradient_checkpointing": checkpointing})
    outcome = run(model, rows, training, trainable=upper, on_progress=steps.append)
    lengths = [len(row.input_ids) for row in rows]
    needed = training.epochs * shape_of(model, upper).training_flops(
        sum(lengths), sum(length**2 for length in lengths), sum(sum(row.supervised) for row in rows)
    )
    assert outcome.peak is not None
    assert outcome.mfu == steps[-1].mfu
    assert outcome.mfu == pytest.approx(needed / outcome.seconds / outcome.peak.flops, rel=1e-6)


def test_accumulated_steps_are_one_batch_over_all_their_tokens(
    tiny_llama: Build, examples: Build, run: Build
) -> None:
    rows = examples(16)
    one = TRAINING.model_copy(update={"tokens_per_batch": 1, "epochs": 1, "accumulation": 16})
    model = tiny_llama()
    expected, count = supervised_loss(model, collate(rows))
    outcome = run(model, rows, one)  # 16 micro-batches of one row each
    assert outcome.steps == 1
    assert outcome.losses[0][1] == pytest.approx(expected.item() / count, rel=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bf16", "bf16_pure"])
def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(
    tiny_llama: Build, examples: Build, run: Build, precision: str
) -> None:
    training = TRAINING.model_copy(update={"precision": precision})
    models = [tiny_llama(), tiny_llama(), tiny_llama()]
    outcomes = [
        run(model, examples(), training, seed=seed) for model, seed in zip(models, (0, 0, 1), strict=True)
    ]
    assert outcomes[0].losses == outcomes[1].losses
    assert_same_weights(models[0], models[1])
    with pytest.raises(AssertionError):
        assert_same_weights(models[0], models[2])


class KilledError(Exception):
    pass


def killer(at: int) -> Callable[[Progress], None]:
    def on_progress(progress: Progress) -> None:
        if progress.step == at:
            raise KilledError

    return on_progress


@pytest.mark.parametrize(("precision", "accumulation"), [("float32", 2), ("bf16", 1), ("bf16_pure", 2)])
def test_killed_and_continued_it_ends_with_the_same_bits(
    tiny_llama: Build, examples: Build, run: Build, tmp_path: Path, precision: str, accumulation: int
) -> None:
    training = TRAINING.model_copy(
        update={"precision": precision, "accumulation": accumulation, "save_every": 2, "epochs": 3}
    )
    undisturbed, interrupted, continued = (tiny_llama(attention_dropout=0.1) for _ in range(3))
    expected = run(undisturbed, examples(), training, folder=tmp_path / "one")
    folder = tmp_path / "two"
    with pytest.raises(KilledError):
        run(interrupted, examples(), training, folder=folder, on_progress=killer(5))
    found = run(continued, examples(), training, folder=folder)
    assert found.resumed_from == 4
    assert found.losses == expected.losses
    assert_same_weights(continued, undisturbed)


def send_all(pid: int | None) -> None:
    """Send what ends a command to a process, as a terminal or a scheduler does: not from its parent."""
    subprocess.run(["sh", "-c", f"kill -INT {pid}; kill -TERM {pid}; kill -HUP {pid}"], check=True)


def test_batches_that_other_processes_make_ahead_are_the_same(
    tiny_llama: Build, examples: Build, run: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = TRAINING.model_copy(update={"save_every": 2, "epochs": 3, "accumulation": 2})
    undisturbed, interrupted, continued = (tiny_llama(attention_dropout=0.1) for _ in range(3))
    expected = run(undisturbed, examples(), training, folder=tmp_path / "one")
    workers: set[int] = set()

    def with_workers(*args: Any, **options: Any) -> Any:
        arguments = training_arguments(*args, **options)
        arguments.dataloader_num_workers = 2
        return arguments

    def signalled(progress: Progress) -> None:
        own = multiprocessing.active_children()
        workers.update(one.pid for one in own if one.pid is not None)
        for one in own:
            send_all(one.pid)
        killer(5)(progress)

    monkeypatch.setattr("lingraft.train.phase.training_arguments", with_workers)
    with pytest.raises(KilledError):
        run(interrupted, examples(), training, folder=tmp_path / "two", on_progress=signalled)
    assert len(workers) == 2
    found = run(continued, examples(), training, folder=tmp_path / "two")
    assert (found.resumed_from, found.losses) == (4, expected.losses)
    assert_same_weights(continued, undisturbed)


def test_signals_leave_what_makes_batches_alone_but_the_training_process_can_end_it() -> None:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def work() -> None:
        _leave_signals(0)
        while True:
            theirs.send(theirs.recv())

    worker = context.Process(target=work, daemon=True)
    worker.start()
    ours.send("ready")
    assert ours.recv() == "ready"
    send_all(worker.pid)
    ours.send("still there")
    assert ours.recv() == "still there"
    worker.terminate()  # as Python does when a command is over, before it waits for the worker without end
    worker.join(30)
    assert worker.exitcode == 0  # else torch says that a worker was killed


def test_an_accelerator_gets_its_batches_from_pinned_memory(tmp_path: Path) -> None:
    def arguments_on(device: str) -> Any:
        compute = replace(compute_for("float32"), device=torch.device(device))
        return training_arguments(TRAINING, compute, folder=tmp_path, seed=0)

    for device, is_pinned in (("cpu", False), ("mps", False), ("cuda", True), ("xpu", True)):
        arguments = arguments_on(device)
        assert (arguments.dataloader_num_workers > 0) == is_pinned
        assert arguments.dataloader_pin_memory == is_pinned
        assert arguments.accelerator_config.non_blocking == is_pinned


@pytest.mark.parametrize("tied", [True, False])
def test_a_loss_without_whole_logits_trains_the_same(
    tiny_llama: Build, examples: Build, run: Build, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_logits, without = tiny_llama(tied=tied), tiny_llama(tied=tied)
    # Where a gradient is almost 0, AdamW makes rounding noise a part of the rate.
    training = TRAINING.model_copy(update={"learning_rate": 1e-3})
    expected = run(with_logits, examples(), training)
    monkeypatch.setattr("lingraft.models.fused_loss.MOST_WHOLE", 0)
    monkeypatch.setattr("lingraft.models.fused_loss._AT_ONCE", 48 * 7)
    monkeypatch.delattr("lingraft.models.loss.SupervisedHead")  # what makes all logits
    found = run(without, examples(), training)
    assert [loss for _, loss in found.losses] == pytest.approx(
        [loss for _, loss in expected.losses], rel=1e-5
    )
    own = weights_of(without)
    for name, weight in weights_of(with_logits).items():
        torch.testing.assert_close(own[name], weight, rtol=0, atol=1e-5)


def test_a_model_that_changes_its_logits_trains_with_them(
    tiny_configuration: Build, examples: Build, run: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    def model() -> Any:
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            tiny_configuration("gemma2", 48, final_logit_softcapping=0.5)
        )

    expected = run(model(), examples(), TRAINING)
    monkeypatch.setattr("lingraft.models.fused_loss.MOST_WHOLE", 0)
    assert run(model(), examples(), TRAINING).losses == expected.losses
    # One that does not say so is found out by its first micro-batch.
    monkeypatch.setattr("lingraft.train.trainer.can_be_fused", lambda _: True)
    assert run(model(), examples(), TRAINING).losses == expected.losses


def test_a_half_written_checkpoint_is_skipped_for_the_one_before(
    tiny_llama: Build, examples: Build, run: Build, tmp_path: Path
) -> None:
    training = TRAINING.model_copy(update={"save_every": 2})
    undisturbed, continued = tiny_llama(), tiny_llama()
    run(undisturbed, examples(), training, folder=tmp_path / "one")
    folder = tmp_path / "two"
    with pytest.raises(KilledError):
        run(tiny_llama(), examples(), training, folder=folder, on_progress=killer(5))
    state = folder / "trainer" / "checkpoint-4" / "trainer_state.json"
    state.write_text(state.read_text()[:100])
    assert run(continued, examples(), training, folder=folder).resumed_from == 2
    assert_same_weights(continued, undisturbed)


def test_a_checkpoint_of_other_data_is_not_continued(
    tiny_llama: Build, examples: Build, run: Build, tmp_path: Path
) -> None:
    training = TRAINING.model_copy(update={"save_every": 2})
    with pytest.raises(KilledError):
        run(tiny_llama(), examples(), training, on_progress=killer(5))
    assert run(tiny_llama(), examples(seed=9), training).resumed_from is None


def test_checkpoints_are_read_without_unpickling_objects(
    tiny_llama: Build, examples: Build, run: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = TRAINING.model_copy(update={"save_every": 2})
    with pytest.raises(KilledError):
        run(tiny_llama(), examples(), training, on_progress=killer(3))
    load, calls = torch.load, []

    def watched(*args: Any, **options: Any) -> Any:
        calls.append(options.get("weights_only"))
        return load(*args, **options)

    monkeypatch.setattr(torch, "load", watched)
    assert run(tiny_llama(), examples(), training).resumed_from == 2
    assert calls
    assert all(calls)


@pytest.mark.parametrize("precision", ["float32", "bf16", "bf16_pure"])
def test_frozen_parameters_stay_bit_for_bit_and_the_others_move(
    tiny_llama: Build, examples: Build, run: Build, precision: str
) -> None:
    model = tiny_llama(tied=True)
    before = weights_of(model)
    trainable = [name for name in names_of(model) if name.startswith("model.layers.1.")]
    outcome = run(
        model, examples(), TRAINING.model_copy(update={"precision": precision}), trainable=trainable
    )
    for name, value in weights_of(model).items():
        assert torch.equal(value, before[name]) == (name not in trainable), name
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert outcome.trainable_parameters == sum(before[name].numel() for name in trainable)
    assert (
        outcome.frozen_parameters == sum(p.numel() for p in model.parameters()) - outcome.trainable_parameters
    )


@pytest.mark.parametrize("checkpointing", [True, False])
def test_backward_stops_above_the_frozen_layers(
    tiny_llama: Build, examples: Build, run: Build, checkpointing: bool
) -> None:
    model = tiny_llama(tied=True)
    on_the_graph: dict[int, set[bool]] = {0: set(), 1: set()}
    for number, layer in enumerate(model.model.layers):
        layer.register_forward_hook(
            lambda _layer, _inputs, output, number=number: on_the_graph[number].add(output.requires_grad)
        )
    trainable = [name for name in names_of(model) if name.startswith("model.layers.1.")]
    training = TRAINING.model_copy(update={"gradient_checkpointing": checkpointing, "epochs": 1})
    run(model, examples(), training, trainable=trainable)
    assert on_the_graph == {0: {False}, 1: {True}}


def test_gradient_checkpointing_changes_nothing_but_memory(
    tiny_llama: Build, examples: Build, run: Build
) -> None:
    plain, checkpointed = (tiny_llama(attn_implementation="eager") for _ in range(2))
    recomputed: list[bool] = []
    checkpointed.model.layers[0].mlp.register_forward_pre_hook(lambda *_: recomputed.append(True))
    run(plain, examples(), TRAINING)
    outcome = run(checkpointed, examples(), TRAINING.model_copy(update={"gradient_checkpointing": True}))
    assert_same_weights(checkpointed, plain)
    assert len(recomputed) > outcome.steps
    assert not checkpointed.is_activation_checkpointing


def test_a_frozen_parameter_that_changes_is_found(tiny_llama: Build, examples: Build, run: Build) -> None:
    model = tiny_llama()

    def meddle(progress: Progress) -> None:
        if progress.step == 2:
            with torch.no_grad():
                model.model.embed_tokens.weight[0, 0].add_(1e-6)

    trainable = [name for name in names_of(model) if "layers" in name]
    with pytest.raises(VerificationError, match=r"1 frozen parameters changed.*embed_tokens"):
        run(model, examples(), trainable=trainable, on_progress=meddle)


def test_nothing_to_train_and_unknown_names_are_refused(
    tiny_llama: Build, examples: Build, run: Build
) -> None:
    model = tiny_llama(tied=True)
    with pytest.raises(StrategyError, match="nothing would be trained"):
        run(model, examples(), trainable=[])
    with pytest.raises(StrategyError, match=r"Did you mean 'model.norm.weight'\?"):
        run(model, examples(), trainable=["model.norm.wieght"])
    with pytest.raises(StrategyError, match=r"'lm_head.weight' is tied to 'model.embed_tokens.weight'"):
        run(model, examples(), trainable=["lm_head.weight"])


def test_no_examples_and_steps_without_supervised_tokens_are_refused(tiny_llama: Build, run: Build) -> None:
    silent = EncodedExample("silent", "en", (1, 2, 3), (False, False, False), 0)
    with pytest.raises(DataError, match="at least one example"):
        run(tiny_llama(), [])
    with pytest.raises(DataError, match="optimiser step 1 has no supervised token"):
        run(tiny_llama(), [silent])


def test_a_loss_that_is_no_number_stops_training(tiny_llama: Build, examples: Build, run: Build) -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.model.norm.weight.fill_(float("inf"))
    with pytest.raises(ModelError, match="training diverged: at step 1"):
        run(model, examples())


@pytest.mark.parametrize("precision", ["float32", "bf16", "bf16_pure"])
def test_the_model_is_left_as_it_was_but_for_its_weights(
    tiny_llama: Build, examples: Build, run: Build, precision: str
) -> None:
    model, rows = tiny_llama(), examples()
    attributes, config = set(vars(model)), model.config.to_dict()
    run(model, rows, TRAINING.model_copy(update={"precision": precision}))
    assert set(vars(model)) == attributes
    assert model.config.to_dict() == config
    assert model(torch.tensor([[1, 2, 3]])).logits.dtype == torch.float32
    with pytest.raises(KilledError):
        run(model, rows, TRAINING.model_copy(update={"precision": precision}), on_progress=killer(1))
    assert set(vars(model)) == attributes
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft reads the old name
@pytest.mark.parametrize("precision", ["float32", "bf16_pure"])
def test_lora_trains_adapters_only_and_continues_to_the_same_bits(
    tiny_llama: Build, examples: Build, run: Build, tmp_path: Path, precision: str
) -> None:
    def build() -> Any:
        torch.manual_seed(1)
        return get_peft_model(tiny_llama(), LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))

    training = TRAINING.model_copy(update={"save_every": 2, "precision": precision})
    models = build(), build(), build()
    trainable = [name for name in names_of(models[0]) if "lora_" in name]
    before = weights_of(models[0])
    expected = run(models[0], examples(), training, trainable=trainable, folder=tmp_path / "one")
    assert expected.losses[-1][1] < expected.losses[0][1]
    for name, value in weights_of(models[0]).items():
        assert torch.equal(value, before[name]) == (name not in trainable), name
    with pytest.raises(KilledError):
        run(
            models[1],
            examples(),
            training,
            trainable=trainable,
            folder=tmp_path / "two",
            on_progress=killer(3),
        )
    found = run(models[2], examples(), training, trainable=trainable, folder=tmp_path / "two")
    assert (found.resumed_from, found.losses) == (2, expected.losses)
    assert_same_weights(models[2], models[0])


def test_weight_decay_is_for_matrices_only(tiny_llama: Build, examples: Build, run: Build) -> None:
    groups: list[tuple[float, list[int]]] = []
    model = tiny_llama()
    create = PhaseTrainer.create_optimizer

    def watched(self: PhaseTrainer, *args: Any) -> Any:
        optimizer = create(self, *args)
        groups.extend((g["weight_decay"], [p.ndim for p in g["params"]]) for g in optimizer.param_groups)
        assert optimizer.param_groups[0]["fused"]
        return optimizer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PhaseTrainer, "create_optimizer", watched)
        run(model, examples(), TRAINING.model_copy(update={"weight_decay": 0.1, "epochs": 1}))
    assert {(decay, ndim) for decay, dimensions in groups for ndim in dimensions} == {(0.1, 2), (0.0, 1)}


def test_the_schedule_and_the_clipping_are_those_asked_for(
    tiny_llama: Build, examples: Build, run: Build, tmp_path: Path
) -> None:
    training = TRAINING.model_copy(
        update={
            "warmup_share": 0.5,
            "scheduler": "constant_with_warmup",
            "save_every": 1,
            "max_gradient_norm": 1e-3,
        }
    )
    with pytest.raises(KilledError):
        run(tiny_llama(), examples(), training, folder=tmp_path, on_progress=killer(6))
    state = json.loads((tmp_path / "trainer" / "checkpoint-5" / "trainer_state.json").read_text())
    rates = [entry["learning_rate"] for entry in state["log_history"]]
    half = -(-state["max_steps"] // 2)
    assert rates == pytest.approx([1e-2 * min(1, (step + 1) / (half + 1)) for step in range(len(rates))])


def test_tiny_mixture_of_experts_trains(tiny_mixtral: Build, examples: Build, run: Build) -> None:
    model = tiny_mixtral()
    before = weights_of(model)
    outcome = run(model, examples(), TRAINING)
    assert outcome.losses[-1][1] < outcome.losses[0][1]
    assert not torch.equal(model.model.layers[0].mlp.gate.weight, before["model.layers.0.mlp.gate.weight"])


def test_a_step_in_pieces_learns_what_a_whole_one_does_and_goes_on_in_others(
    tiny_llama: Build, examples: Build, run: Build, tmp_path: Path
) -> None:
    training = TRAINING.model_copy(update={"save_every": 2, "epochs": 3, "weight_decay": 0.1})
    whole, pieces, changed = (tiny_llama() for _ in range(3))
    expected = run(whole, examples(), training, folder=tmp_path / "whole", cut=Cut())
    found = run(pieces, examples(), training, folder=tmp_path / "pieces", cut=Cut(3, checkpointing=True))
    assert found.steps == expected.steps
    assert [loss for _, loss in found.losses] == pytest.approx(
        [loss for _, loss in expected.losses], rel=1e-5
    )
    with pytest.raises(KilledError):
        run(changed, examples(), training, folder=tmp_path / "two", on_progress=killer(5), cut=Cut(2))
    changed = tiny_llama()
    continued = run(changed, examples(), training, folder=tmp_path / "two", cut=Cut(4, checkpointing=True))
    assert continued.resumed_from == 4
    assert [loss for _, loss in continued.losses] == pytest.approx(
        [loss for _, loss in expected.losses], rel=1e-5
    )
    for one in (pieces, changed):
        for name, weight in weights_of(one).items():
            torch.testing.assert_close(weight, weights_of(whole)[name], atol=2e-5, rtol=1e-4)


def test_without_room_a_phase_computes_its_steps_in_pieces(
    tiny_llama: Build, examples: Build, run: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def arguments(*args: Any, **options: Any) -> Any:
        found = training_arguments(*args, **options)
        seen.append(found.gradient_accumulation_steps)
        return found

    monkeypatch.setattr("lingraft.train.phase.training_arguments", arguments)
    run(tiny_llama(), examples())
    monkeypatch.setattr("lingraft.train.phase.free_memory", lambda _: 1)
    run(tiny_llama(), examples())
    run(tiny_llama(), examples(), TRAINING.model_copy(update={"accumulation": 2}))
    assert seen[0] == 1
    assert seen[1] > 1
    assert seen[2] == 2, "what is given is as it is given"


def test_a_parameter_without_a_dimension_cannot_be_divided(
    tiny_llama: Build, examples: Build, run: Build
) -> None:
    model = tiny_llama()
    model.model.register_parameter("scale", nn.Parameter(torch.ones(())))
    with pytest.raises(ModelError, match=r"'model.scale' is a single number .* without sharding"):
        run(model, examples(), sharded=True)
