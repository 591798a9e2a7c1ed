"""Strategies in a Trainer of one's own: the weights that lingraft's own training ends with, and clear refusals."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import lingraft
from lingraft.data.encoded import EncodedExample
from lingraft.errors import VerificationError
from lingraft.models.loss import collate, supervised_loss
from lingraft.train.attention import grouped_attention
from lingraft.train.trainer import BatchPlan

IGNORED = -100


def with_labels(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Collate rows as lingraft does, with labels in the place of marks."""
    batch = collate(
        [
            EncodedExample("", "", tuple(row["input_ids"]), tuple(one != IGNORED for one in row["labels"]), 0)
            for row in rows
        ]
    )
    labels = torch.full_like(batch["input_ids"], IGNORED)
    labels.view(-1)[batch["positions"] + 1] = batch["targets"]
    return {**batch, "labels": labels}


class ScriptTrainer(Trainer):
    """A user's class, with batches and a loss of its own: those of lingraft, so that the arithmetic is the same."""

    def __init__(self, *args: Any, batches: list[list[int]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.batches = batches

    def get_train_dataloader(self) -> DataLoader[Any]:
        rows = self._remove_unused_columns(self.train_dataset, "training")
        loader = DataLoader(rows, batch_sampler=self.batches, collate_fn=self.data_collator)
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss = supervised_loss(model, inputs)[0] / num_items_in_batch
        return (loss, {}) if return_outputs else loss


class Script:
    """A script that trains a phase with a trainer of its own, on the rows and with the options of a phase's job."""

    def __init__(self, phases: Any, folder: Path) -> None:
        self.phases, self.folder = phases, folder
        self.previous = phases.model("llama", 1)
        self.tokenizer = AutoTokenizer.from_pretrained(self.previous)
        self.past = {
            "previous": self.previous,
            "base": phases.model("llama", 0),
            "previous_data": phases.job("plain").previous_data,
            "english": phases.job("plain").english,
            "folder": folder / "lingraft",
        }

    def rows(self, written: Any) -> Any:
        job = self.phases.job(written)
        return lingraft.mixed_rows(
            job.examples, written, self.tokenizer, max_length=job.training.max_length, **self.past
        )

    def arguments(self, kind: type[TrainingArguments] = TrainingArguments, **options: Any) -> Any:
        training = self.phases.job("plain").training
        return kind(
            **{
                "output_dir": str(self.folder),
                "learning_rate": training.learning_rate,
                "weight_decay": training.weight_decay,
                "lr_scheduler_type": training.scheduler,
                "num_train_epochs": 1,  # the plan's batches are of all epochs
                "report_to": "none",
                "use_cpu": True,
                "save_strategy": "no",
                "disable_tqdm": True,
                "logging_steps": 1,
                "seed": 0,
                **options,
            }
        )

    def model(self, **options: Any) -> Any:
        return AutoModelForCausalLM.from_pretrained(self.previous, **{"dtype": torch.float32, **options})

    def trainer(self, written: Any, **options: Any) -> Any:
        rows = self.rows(written)
        accumulation = options.get("gradient_accumulation_steps", 1)
        training = self.phases.job(written, accumulation=accumulation).training
        lengths = [len(ids) for ids in rows["input_ids"]]
        return ScriptTrainer(
            self.model(),
            self.arguments(**options),
            train_dataset=rows,
            data_collator=with_labels,
            processing_class=self.tokenizer,
            batches=list(BatchPlan(lengths, training, seed=0)),
        )

    def apply(self, trainer: Trainer, written: Any, **changes: Any) -> lingraft.AppliedStrategies:
        return lingraft.apply_strategies(trainer, written, **(self.past | changes))


@pytest.fixture
def script(phases: Any, tmp_path: Path) -> Script:
    return Script(phases, tmp_path / "script")


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def distance(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    return math.sqrt(sum(float((first[name] - second[name]).square().sum()) for name in first))


def train(trainer: Any) -> None:
    """Train with the attention that lingraft's own training has on a processor."""
    with grouped_attention(trainer.model):
        trainer.train()


STRATEGIES: dict[str, Any] = {
    "plain": "plain",
    "english_replay": {"english_replay": {"share": 0.25, "from": "phase_one"}},
    "generative_replay": {
        "generative_replay": {"share": 0.25, "prompts": "phase_one", "temperature": 1.0, "max_new_tokens": 96}
    },
    "freeze_random": {"freeze_random": {"share": 0.5, "embeddings": True}},
    "freeze_changed": "freeze_changed",
    "freeze_modules": {"freeze_modules": {"layers": "0", "modules": ["q_proj", "down_proj"]}},
    "half": "half",
    "spectrum": "spectrum",
    "ssu": {"ssu": {"tokens": 300}},
    "ewc": {"ewc": {"strength": 0.1, "tokens": 200}},
    "l2_anchor": {"l2_anchor": {"strength": 0.1}},
    "layerwise_rates": {"layerwise_rates": {"decay": 0.5}},
    "lora": {"lora": {"rank": 2}},
    "interpolate": {"interpolate": {"alpha": 0.25, "layers": {"1": 0.75, "embeddings": 1}}},
    "revert": {"revert": {"layers": "1", "embeddings": True}},
    "all of the weights": [
        {"english_replay": {"share": 0.25}},
        {"ssu": {"tokens": 300}},
        {"l2_anchor": {"strength": 0.1}},
        {"layerwise_rates": {"decay": 0.5}},
        {"interpolate": {"alpha": 0.5}},
    ],
    "adapters and back": [
        {"lora": {"rank": 2}},
        {"english_replay": {"share": 0.25}},
        {"interpolate": {"alpha": 0.5}},
    ],
}


@pytest.mark.filterwarnings("ignore:.*replay examples")  # the model's answers are not all fit to train on
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_script_ends_with_the_bits_of_lingrafts_own_training(
    phases: Any, script: Script, name: str
) -> None:
    written = STRATEGIES[name]
    expected = phases.train(written).tensors()
    trainer = script.trainer(written)
    applied = script.apply(trainer, written)
    train(trainer)
    found = weights(trainer.model)
    assert found.keys() == {one for one in expected if one != "lm_head.weight"}
    different = [one for one in found if not torch.equal(found[one], expected[one])]
    assert not different, f"{different}, by {distance(found, expected)}"
    record = phases.train(written).stage.result
    assert applied.trainable_parameters == record["trainable_parameters"]
    assert applied.masked_parameters == record["masked_parameters"]


def test_pulls_and_masks_act_once_on_steps_of_several_micro_batches(phases: Any, script: Script) -> None:
    written = [{"ssu": {"tokens": 300}}, {"l2_anchor": {"strength": 0.5}}]
    expected = phases.train(written, accumulation=2).tensors()
    trainer = script.trainer(written, gradient_accumulation_steps=2)
    assert len(trainer.batches) > 3
    script.apply(trainer, written)
    train(trainer)
    found = weights(trainer.model)
    assert all(torch.equal(found[one], expected[one]) for one in found)


def test_a_penalty_on_outputs_moves_the_weights_as_lingrafts_own_does(phases: Any, script: Script) -> None:
    """The replayed rows run through the model once more, so sums are rounded otherwise."""
    written = {"distill": {"share": 0.25, "temperature": 2.0, "weight": 20.0}}
    expected, start = phases.train(written).tensors(), phases.train(written).before()
    by_replay_alone = phases.train({"distill": {"share": 0.25, "weight": 0}}).tensors()
    trainer = script.trainer(written)
    script.apply(trainer, written)
    train(trainer)
    found = weights(trainer.model)
    way = distance(found, start)
    assert distance(found, expected) < 1e-3 * way
    assert distance(found, by_replay_alone) > 0.1 * way


ROW_BY_ROW = 16  # tokens of a batch: each has one row, as the plain trainers below
KEPT: list[Any] = [
    STRATEGIES["ssu"],
    [
        {"distill": {"share": 0.25, "weight": 5.0}},
        {"l2_anchor": {"strength": 0.1}},
        {"layerwise_rates": {"decay": 0.5}},
    ],
    STRATEGIES["adapters and back"],
]


def with_stock_trainer(script: Script, rows: Any) -> Trainer:
    return Trainer(
        script.model(),
        script.arguments(per_device_train_batch_size=1, train_sampling_strategy="sequential"),
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(script.tokenizer),
        processing_class=script.tokenizer,
    )


def with_trl(script: Script, rows: Any) -> Any:
    from trl import SFTConfig, SFTTrainer

    options = script.arguments(
        SFTConfig,
        per_device_train_batch_size=1,
        train_sampling_strategy="sequential",
        activation_checkpointing=False,
        bf16=False,
    )
    return SFTTrainer(script.model(), options, train_dataset=rows, processing_class=script.tokenizer)


@pytest.mark.parametrize("written", KEPT, ids=["mask", "penalty", "adapters"])
@pytest.mark.parametrize("make", [with_stock_trainer, with_trl])
def test_trainers_with_a_loss_of_their_own_end_within_rounding(
    phases: Any, script: Script, make: Any, written: Any
) -> None:
    """Their losses sum in another order, and Adam makes a step of every sign: the way differs by a thousandth."""
    done = phases.train(written, tokens_per_batch=ROW_BY_ROW)
    expected, start = done.tensors(), done.before()
    rows = script.rows(written)
    training = phases.job(written, tokens_per_batch=ROW_BY_ROW).training
    plan = [row for (row,) in BatchPlan([len(ids) for ids in rows["input_ids"]], training, seed=0)]
    trainer = make(script, rows.select(plan))
    script.apply(trainer, written)
    train(trainer)
    found = weights(trainer.model)
    assert trainer.state.global_step == done.stage.result["steps"]
    assert distance(found, expected) < 1e-3 * distance(found, start)
    if written is STRATEGIES["ssu"]:
        kept = [torch.equal(found[one], start[one]) for one in found]
        assert not all(kept)
        masked = [float((found[one] == start[one]).float().mean()) for one in found if "proj" in one]
        assert all(0.4 < share < 0.7 for share in masked)


def quantised(trainer: Any) -> None:
    trainer.model.hf_quantizer = object()


def with_adapters(trainer: Any) -> None:
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():  # PEFT reads a name that transformers has renamed
        warnings.simplefilter("ignore", FutureWarning)
        adapted = get_peft_model(trainer.model, LoraConfig(r=2, task_type="CAUSAL_LM"))
    trainer.model = trainer.model_wrapped = adapted


def after_a_step(trainer: Any) -> None:
    trainer.state.global_step = 1


def with_optimizer(trainer: Any) -> None:
    trainer.create_optimizer()


def sharded(trainer: Any) -> None:
    trainer.is_fsdp_enabled = True


def changed(trainer: Any) -> None:
    trainer.model.model.norm.weight.data.mul_(2)


def all_frozen(trainer: Any) -> None:
    trainer.model.requires_grad_(False)


def untouched(trainer: Any) -> None:
    assert trainer.train_dataset


DISTILL = {"distill": {"share": 0.25}}
REFUSED: list[tuple[Any, Callable[[Any], None], dict[str, Any], str]] = [
    ("half", quantised, {}, "quantised"),
    ("half", after_a_step, {}, "trained already"),
    ("half", with_optimizer, {}, "an optimizer or scheduler already"),
    ("half", untouched, {"torch_compile": True}, "compiled"),
    ("half", all_frozen, {}, "was frozen before"),
    ("half", with_adapters, {}, "LoRA already freezes every weight"),
    ("lora", with_adapters, {}, "has adapters already"),
    ("interpolate", with_adapters, {}, "name 'lora' among the strategies"),
    ("ssu", sharded, {}, "'ssu' acts on parameters by name"),
    (["half", "l2_anchor"], sharded, {}, "'l2_anchor' acts on parameters by name"),
    ("lora", sharded, {}, "'lora' needs whole tensors"),
    ("interpolate", changed, {}, "model.norm.weight differs"),
    ("layerwise_rates", sharded, {}, "'layerwise_rates' acts on parameters by name"),
    (DISTILL, untouched, {"label_smoothing_factor": 0.1}, "label_smoothing_factor"),
    ("half", untouched, {"optim": "lomo"}, "lomo"),
    ([], untouched, {}, "name at least one"),
    ("halve", untouched, {}, "Did you mean 'half'"),
    ({"half": {"share": 0.5}}, untouched, {}, "is not an option of 'half'"),
    (["lora", "ssu"], untouched, {}, "cannot be composed"),
    ("mixed", untouched, {}, "rows of both phases"),
    ({"lora": {"training": {"epochs": 2}}}, untouched, {}, "trainer's arguments"),
    ({"interpolate": {"alpha": [0.2, 0.4]}}, untouched, {}, "alpha"),
    ({"freeze_modules": {"layers": "7"}}, untouched, {}, "7"),
]


@pytest.mark.parametrize(("written", "change", "options", "message"), REFUSED)
def test_what_cannot_be_applied_is_refused_and_the_trainer_left_as_it_was(
    script: Script, written: Any, change: Any, options: dict[str, Any], message: str
) -> None:
    trainer = script.trainer(DISTILL, **options)
    change(trainer)
    before = [(name, one.requires_grad, one.clone()) for name, one in trainer.model.named_parameters()]
    with pytest.raises((lingraft.StrategyError, lingraft.ConfigError), match=re.escape(message)) as refusal:
        script.apply(trainer, written)
    assert "\n" not in str(refusal.value)
    kind = type(trainer)
    assert kind is ScriptTrainer
    for (name, trains, value), (now, one) in zip(before, trainer.model.named_parameters(), strict=True):
        assert (name, trains) == (now, one.requires_grad)
        assert torch.equal(value, one)
    assert not (script.folder / "lingraft").exists()


def test_rows_that_a_strategy_mixes_in_must_be_there_before_the_trainer(script: Script) -> None:
    rows = script.rows("plain").remove_columns("replayed")
    with pytest.raises(lingraft.StrategyError, match=r"'english_replay' mixes rows in before.*mixed_rows"):
        script.apply(with_stock_trainer(script, rows), "english_replay")
    packed = with_trl(script, script.rows(DISTILL))
    packed.args.packing = True
    with pytest.raises(lingraft.StrategyError, match="'distill' acts on replayed rows, which packing"):
        script.apply(packed, DISTILL)


@pytest.mark.parametrize("given", [None, "a string", 3, torch.nn.Linear(2, 2)])
def test_what_is_no_trainer_is_refused(script: Script, given: Any) -> None:
    with pytest.raises(lingraft.StrategyError, match=r"takes a transformers\.Trainer"):
        script.apply(given, "half")


def test_strategies_that_read_the_start_ask_for_it(script: Script) -> None:
    trainer = script.trainer("plain")
    trainer.model.config._name_or_path = ""
    trainer.model.name_or_path = ""
    with pytest.raises(lingraft.StrategyError, match="give previous=FOLDER"):
        script.apply(trainer, "interpolate", previous=None)
    with pytest.raises(
        lingraft.StrategyError, match="'freeze_changed' needs the base model: give base=FOLDER"
    ):
        script.apply(trainer, "freeze_changed", base=None)
    other = script.phases.model("gpt2", 1)
    with pytest.raises(lingraft.StrategyError, match="so it is not the model that the trainer starts from"):
        script.apply(trainer, "interpolate", previous=other)


def test_strategies_are_applied_once_and_to_one_training(script: Script) -> None:
    trainer = script.trainer("half")
    script.apply(trainer, "half")
    with pytest.raises(lingraft.StrategyError, match="applied to this trainer already"):
        script.apply(trainer, "l2_anchor")
    trainer.train()
    with pytest.raises(lingraft.StrategyError, match="make a new trainer"):
        trainer.train()


def test_a_frozen_bit_that_a_callback_changes_is_found(script: Script) -> None:
    class Careless(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
            for parameter in kwargs["model"].parameters():
                parameter.data[0].add_(1e-3)

    trainer = script.trainer("half")
    script.apply(trainer, "half")
    trainer.add_callback(Careless())
    with pytest.raises(VerificationError, match="frozen parameters changed in training"):
        trainer.train()


def test_what_was_frozen_before_stays_frozen(script: Script) -> None:
    trainer = script.trainer("plain")
    trainer.model.get_input_embeddings().requires_grad_(False)
    script.apply(trainer, "l2_anchor")
    trained = {name for name, one in trainer.model.named_parameters() if one.requires_grad}
    assert len(trained) > 10
    assert not [name for name in trained if "embed" in name]


def test_the_trainer_saves_the_final_model_and_what_is_kept(script: Script) -> None:
    written = [{"lora": {"rank": 2, "keep_adapter": True}}, {"interpolate": {"alpha": 0.5}}]
    trainer = script.trainer(written)
    applied = script.apply(trainer, written)
    trainer.train()
    trainer.save_model(str(script.folder / "final"))
    saved = AutoModelForCausalLM.from_pretrained(script.folder / "final", dtype=torch.float32)
    expected = weights(trainer.model)
    assert all(torch.equal(own, expected[name]) for name, own in weights(saved).items())
    config = json.loads((applied.folder / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == str(script.previous)
    assert (applied.folder / "adapter" / "adapter_model.safetensors").is_file()
    assert trainer.evaluate(trainer.train_dataset.select(range(2)))["eval_loss"] > 0


def test_a_state_is_prepared_once_for_equal_rows_and_options(script: Script) -> None:
    written = {"ewc": {"tokens": 200}}
    states = []
    for changes in ({}, {}, {"previous_data": ()}, {"seed": 1}):
        script.apply(script.trainer(written), written, **changes)
        states.append({path.name for path in (script.folder / "lingraft").iterdir()})
    assert [len(one) for one in states] == [1, 1, 2, 3]


def test_rows_come_as_a_script_has_them(script: Script, tmp_path: Path) -> None:
    rows = [{"instruction": f"question {number}", "output": "an answer"} for number in range(9)]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    written = {"english_replay": {"share": 0.25}}
    found = [
        lingraft.mixed_rows(given, written, english=[{"instruction": "an old one", "output": "kept"}, *rows])
        for given in (rows, Dataset.from_list(rows), str(tmp_path / "rows.jsonl"), tmp_path / "rows.jsonl")
    ]
    assert all(one.to_list() == found[0].to_list() for one in found)
    assert len(found[0]) == 12
    assert sum(found[0]["replayed"]) == 3
    turns = [turn["role"] for turn in found[0]["messages"][0]]
    assert turns == ["user", "assistant"]
    limited = lingraft.mixed_rows(
        {"source": str(tmp_path / "rows.jsonl"), "limit": 4}, "plain", script.tokenizer
    )
    assert len(limited) == 4
    assert set(limited.column_names) == {"input_ids", "labels", "replayed"}
    answer = [token for token in limited["labels"][0] if token != IGNORED]
    assert "an answer" in script.tokenizer.decode(answer)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (None, "NoneType is no set of rows"),
        (3, "int is no set of rows"),
        (["text"], "a row is a dict"),
        ({"sauce": "x.jsonl"}, "sauce"),
        ("missing.jsonl", "missing.jsonl"),
        ([{"question": "who?"}], "rows:1"),
        ([], "empty|no rows|no example"),
    ],
)
def test_rows_that_are_none_are_refused(script: Script, rows: Any, message: str) -> None:
    with pytest.raises(lingraft.LingraftError, match=message):
        lingraft.mixed_rows(rows, "plain", script.tokenizer)
    with pytest.raises(lingraft.LingraftError, match=message):
        lingraft.mixed_rows(rows, "plain")


def test_what_a_strategy_draws_from_is_asked_for(script: Script) -> None:
    for written, needed in (
        ("english_replay", "english"),
        ({"english_replay": {"from": "phase_one"}}, "previous_data"),
        ("generative_replay", "previous"),
    ):
        with pytest.raises(lingraft.StrategyError, match=f"call mixed_rows with {needed}="):
            lingraft.mixed_rows([{"instruction": "a", "output": "b"}] * 20, written, script.tokenizer)


def test_what_is_short_cut_or_broken_is_warned_of(script: Script) -> None:
    rows = [{"instruction": f"question {number}", "output": "an answer " * 40} for number in range(120)]
    rows.append({"instruction": "without an answer"})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lingraft.mixed_rows(
            rows, {"english_replay": {"share": 0.5}}, script.tokenizer, english=rows[:5], max_length=64
        )
    said = " ".join(str(one.message) for one in caught)
    assert "rows: 1 of 121 rows are broken" in said
    assert "115 replay examples fewer than asked for" in said
    assert "125 examples truncated to 64 tokens" in said


def test_a_penalty_is_the_same_however_rows_are_padded(script: Script) -> None:
    trainer = script.trainer(DISTILL)
    script.apply(trainer, DISTILL)
    ids = [[5, 6, 7, 8, 9], [10, 11, 12]]
    found = []
    for side in ("right", "left"):
        script.tokenizer.padding_side = side
        collator = DataCollatorForSeq2Seq(script.tokenizer)
        batch = collator([{"input_ids": one, "labels": [IGNORED, *one[1:]]} for one in ids])
        trainer.model.model.norm.weight.data.fill_(1.5)
        penalty = trainer._penalty(trainer.model, batch, torch.tensor([True, True]))
        found.append(penalty.item())
    assert found[0] > 0
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_a_models_own_adapters_keep_the_outputs_too_and_stay_its_own(script: Script) -> None:
    trainer = script.trainer(DISTILL)
    with_adapters(trainer)
    before = weights(trainer.model)
    applied = script.apply(trainer, DISTILL)
    train(trainer)
    after = weights(trainer.model)
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed
    assert all("lora_" in name for name in changed)
    assert applied.trainable_parameters == sum(own.numel() for name, own in before.items() if "lora_" in name)
    assert f"distill: {applied.trainable_parameters:,} parameters train" in str(applied)


def test_trl_encodes_the_conversations_and_the_replayed_rows_are_still_known(script: Script) -> None:
    losses = []
    for weight in (0.0, 5.0):
        written = {"distill": {"share": 0.25, "weight": weight, "temperature": 2.0}}
        rows = lingraft.mixed_rows(
            script.phases.job("plain").examples, written, english=script.past["english"]
        )
        trainer = with_trl(script, rows)
        script.apply(trainer, written)
        trainer.train()
        losses.append([one["loss"] for one in trainer.state.log_history if "loss" in one])
        moved = distance(weights(trainer.model), weights(script.model()))
        assert moved > 0
    assert len(rows) == 16
    assert losses[1] != losses[0]


@pytest.mark.parametrize(
    "written",
    [[STRATEGIES["ssu"], STRATEGIES["l2_anchor"]], STRATEGIES["adapters and back"]],
    ids=["all", "adapters"],
)
def test_a_training_that_is_resumed_ends_with_the_same_bits(script: Script, written: Any) -> None:
    found = []
    for place in (None, "checkpoint-2"):
        trainer = script.trainer(written, save_strategy="steps", save_steps=2)
        script.apply(trainer, written)
        trainer.train(resume_from_checkpoint=None if place is None else str(script.folder / place))
        assert trainer.state.global_step > 3
        found.append(weights(trainer.model))
    assert all(torch.equal(own, found[1][name]) for name, own in found[0].items())
