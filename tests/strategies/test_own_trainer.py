"""Strategies in a Trainer of one's own: the weights that lingraft's own training ends with, and clear refusals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
)

import lingraft
from lingraft.data.encoded import EncodedExample
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
    supervised = batch.pop("supervised")
    del batch["replayed"]
    return {**batch, "labels": batch["input_ids"].masked_fill(~supervised, IGNORED)}


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
        assert not return_outputs
        batch = {"input_ids": inputs["input_ids"], "supervised": inputs["labels"] != IGNORED}
        return supervised_loss(model, batch)[0] / num_items_in_batch


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
                "seed": 0,
                **options,
            }
        )

    def model(self, **options: Any) -> Any:
        return AutoModelForCausalLM.from_pretrained(self.previous, **{"dtype": torch.float32, **options})

    def trainer(self, written: Any, **options: Any) -> ScriptTrainer:
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


def with_trl(script: Script, rows: Any) -> Trainer:
    from trl import SFTConfig, SFTTrainer

    options = script.arguments(
        SFTConfig,
        per_device_train_batch_size=1,
        train_sampling_strategy="sequential",
        activation_checkpointing=False,
        bf16=False,
    )
    trainer: Trainer = SFTTrainer(
        script.model(), options, train_dataset=rows, processing_class=script.tokenizer
    )
    return trainer


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
