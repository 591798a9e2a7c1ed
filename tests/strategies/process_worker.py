"""What one process of a group does: train tasks one after the other, then what a script of its own would."""

from __future__ import annotations

import gc
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import lingraft
from lingraft.data.example import Example, Message
from lingraft.models.loading import load_model
from lingraft.records import read_json, write_json_atomically
from lingraft.train.run import PhaseTask, train_task
from lingraft.train.sharding import own_piece, whole
from lingraft.train.teacher import load_divided

STRATEGIES = [
    {"ssu": {"tokens": 300}},
    {"ewc": {"strength": 0.1, "tokens": 200}},
    {"layerwise_rates": {"decay": 0.5}},
    {"interpolate": {"alpha": 0.5}},
]
TRAINED = "trained.safetensors"


class DividingTrainer(Trainer):
    """A user's trainer on accelerators, which divides its model by FSDP2; on processors it would only copy it."""

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        state: Any = self.accelerator.state
        if self.args.fsdp:
            state.distributed_type = DistributedType.FSDP
            state.fsdp_plugin = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)
            self.is_fsdp_enabled = True


def train_in_a_script(start: Path, folder: Path, processes: int) -> None:
    """Train with a trainer of one's own, and write the weights that it ends with, in parameters' names."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 500, (16, 12), generator=generator).tolist()
    old = [
        Example(
            f"old{one}", (Message("user", f"say {one}"), Message("assistant", f"{one * 7}")), "en", "", ""
        )
        for one in range(20)
    ]
    trainer = DividingTrainer(
        AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32),
        TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=4 // processes,
            learning_rate=1e-3,
            weight_decay=0.1,
            seed=0,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            fsdp=processes > 1 or None,  # type: ignore[arg-type]  # the type is older than what it means  # type: ignore[arg-type]  # the type is older than its meaning
            fsdp_config={"version": 2} if processes > 1 else None,
        ),
        train_dataset=[{"input_ids": row, "labels": row} for row in ids],
    )
    lingraft.apply_strategies(trainer, STRATEGIES, previous=start, previous_data=old)
    trainer.train()
    model: Any = trainer.model
    weights = {name: whole(own).contiguous() for name, own in model.named_parameters()}
    if trainer.args.process_index == 0:
        save_file({name: one.clone() for name, one in weights.items()}, folder / TRAINED)


def answer_together(start: Path, folder: Path) -> None:
    """Note what a model that only answers holds in this process, and how far it is from the whole one's logits."""
    ids = torch.arange(5, 25).view(2, 10)
    divided = load_divided(start, torch.device("cpu"), torch.float32)
    with torch.no_grad():
        away = divided(input_ids=ids).logits - load_model(start)(input_ids=ids).logits
    held = sum(own_piece(one).numel() for one in divided.parameters())
    found = {
        "held": held,
        "all": sum(one.numel() for one in divided.parameters()),
        "away": float(away.abs().max()),
    }
    write_json_atomically(folder / "answers.json", found)


def main() -> None:
    path, *sharded = sys.argv[1:]
    gc.freeze()  # libraries, which every training would go through
    rank = int(os.environ["RANK"])
    name = ""
    try:
        for name, written in read_json(Path(path)).items():  # noqa: B007  # read where it fails
            AcceleratorState._reset_state()
            task = PhaseTask.model_validate(written)
            task.folder.mkdir(parents=True, exist_ok=True)
            trained = train_task(task, rank=rank, sharded=bool(sharded))
            if rank == 0:
                write_json_atomically(task.folder / "losses.json", trained.outcome.losses)
        if sharded:
            AcceleratorState._reset_state()
            PartialState(cpu=True)
            name = "a model that answers"
            answer_together(task.parent, Path(path).parent if rank == 0 else task.folder)
            name = "a script"
            train_in_a_script(task.parent, Path(path).parent, 2)
    except Exception:
        sys.stderr.write(f"{name}:\n{traceback.format_exc()}")
        sys.stderr.flush()
        os._exit(1)  # at once: others wait for it


if __name__ == "__main__":
    main()
