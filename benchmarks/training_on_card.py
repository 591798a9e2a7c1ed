"""Does a model of 8 billion parameters train in full on one card of 80 GB, how fast, and how much faster than with TRL?

    python benchmarks/training.py --shape llama-3-8b        # on one card; `tiny` tries the code on a processor

Random weights of the shape, made on the card, and random rows of 64 to 1,024 tokens, all parameters, 8-bit moments on
bf16 weights for both. TRL has what it offers for speed: packing, FlashAttention and Liger's kernels, where they are
installed (pip install trl flash-attn liger-kernel). Each trains in a process of its own. Writes
benchmarks/results/training-on-card-SHAPE.json with card and versions, and prints a table: tokens a second and MFU after
the first 5 steps, and the most memory that the card's tensors took.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

RESULTS = Path(__file__).parent / "results"
WARM_UP = 5  # optimiser steps, in which layers are compiled and memory is laid out
COMPETITORS = ("lingraft", "lingraft, not compiled", "trl")
LIBRARIES = (
    "lingraft", "torch", "transformers", "accelerate", "trl", "torchao", "flash-attn", "liger-kernel", "triton"
)  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """A model of random weights, and what it is trained on.

    Attributes:
        config: Of `LlamaConfig`.
        rows: Examples.
        longest: Tokens of the longest.
        tokens_per_batch: Of an optimiser step.
    """

    config: dict[str, int | float | bool]
    rows: int
    longest: int
    tokens_per_batch: int


SHAPES = {
    "llama-3-8b": Shape(
        {
            "vocab_size": 128_256,
            "hidden_size": 4096,
            "intermediate_size": 14_336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
        },
        rows=1200,
        longest=1024,
        tokens_per_batch=16_384,
    ),
    "tiny": Shape(
        {
            "vocab_size": 512,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "tie_word_embeddings": False,
        },
        rows=96,
        longest=96,
        tokens_per_batch=512,
    ),
}


@dataclass(frozen=True)
class Measured:
    """What one competitor did.

    Attributes:
        tokens_per_second: Real tokens, after the warm-up.
        mfu: Model FLOPs utilisation at that rate.
        peak_gigabytes: Most memory of the card's tensors; on a processor of the whole process.
        steps: Optimiser steps.
        first_loss: Of the first step, in nats: the logarithm of the vocabulary's size, about.
        options: What it was given.
    """

    tokens_per_second: float
    mfu: float
    peak_gigabytes: float
    steps: int
    first_loss: float
    options: dict[str, Any]


class Clock:
    """When each optimiser step was done, and how many real tokens had been trained on then."""

    def __init__(self) -> None:
        self._after: list[tuple[float, int]] = []

    def after_step(self, tokens: int) -> None:
        """Note a step; the card may still work on it, which evens out over many."""
        self._after.append((time.perf_counter(), tokens))

    def rate(self) -> float:
        """Return the tokens a second after the warm-up."""
        (begin, before), (end, after) = self._after[WARM_UP - 1], self._after[-1]
        return (after - before) / (end - begin)


def rows_of(shape: Shape) -> list[Any]:
    """Return random rows, of which all but a prompt is learned; the same for all competitors."""
    from lingraft.data.encoded import EncodedExample

    chance = random.Random(0)
    vocabulary = int(shape.config["vocab_size"])
    rows = []
    for number in range(shape.rows):
        length = chance.randint(shape.longest // 16, shape.longest)
        prompt = max(1, length // 4)
        ids = tuple(chance.choices(range(vocabulary), k=length))
        supervised = (False,) * prompt + (True,) * (length - prompt)
        rows.append(EncodedExample(str(number), "und", ids, supervised, 0))
    return rows


def made(shape: Shape, attention: str) -> Any:
    """Return a model of random bf16 weights, laid out without memory and filled where it trains."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from lingraft.models.compute import compute_device

    options: dict[str, Any] = {**shape.config, "attn_implementation": attention}
    torch.manual_seed(0)
    with torch.device("meta"):
        model: Any = LlamaForCausalLM(LlamaConfig(**options))
    model.to(torch.bfloat16)
    model.to_empty(device=compute_device())
    model.init_weights()
    return model


def flops_of(model: Any, rows: list[Any]) -> float:
    """Return the FLOPs that one epoch's real tokens need."""
    from lingraft.models.shape import shape_of

    lengths = [len(row.input_ids) for row in rows]
    learned = sum(sum(row.supervised) for row in rows)
    return shape_of(model).training_flops(sum(lengths), sum(length**2 for length in lengths), learned)


def most_memory() -> float:
    """Return the most memory that was taken, in GB."""
    import torch

    from lingraft.train.memory import peak_bytes

    return (torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_bytes()) / 1e9


def with_lingraft(shape: Shape, *, compiles: bool) -> Measured:
    """Train with train_phase."""
    from itertools import accumulate

    from lingraft.config.schema import Training
    from lingraft.models.compute import compute_for
    from lingraft.models.peak import peak_of
    from lingraft.train.phase import train_phase
    from lingraft.train.trainer import BatchPlan

    rows = rows_of(shape)
    options: dict[str, Any] = {
        "optimizer": "adamw_8bit",
        "precision": "bf16_pure",
        "compile": compiles,
        "tokens_per_batch": shape.tokens_per_batch,
        "gradient_checkpointing": True,
    }
    training = Training(**options, save_minutes=0, max_length=shape.longest)
    model = made(shape, "sdpa")
    flops = flops_of(model, rows)
    lengths = [len(row.input_ids) for row in rows]
    tokens = [0, *accumulate(BatchPlan(lengths, training, 0).tokens_per_step())]
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        outcome = train_phase(
            model,
            SimpleNamespace(pad_token_id=0),  # type: ignore[arg-type]
            rows,
            training,
            folder=folder,
            on_progress=lambda now: clock.after_step(tokens[now.step]),
        )
    needed = flops / sum(lengths) * clock.rate()
    return Measured(
        clock.rate(),
        needed / peak_of(compute_for("bf16")).flops,
        most_memory(),
        outcome.steps,
        outcome.losses[0][1],
        {**options, "packed": outcome.packed},
    )


def with_trl(shape: Shape) -> Measured:
    """Train with SFTTrainer, with what it offers for speed."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from lingraft.models.compute import compute_for
    from lingraft.models.loading import load_tokenizer, model_folder
    from lingraft.models.peak import peak_of

    on_card = torch.cuda.is_available()
    options: dict[str, Any] = {
        "packing": True,
        "per_device_train_batch_size": 1,
        "max_length": shape.tokens_per_batch,
        "gradient_checkpointing": True,
        "optim": "adamw_torch_8bit" if on_card else "adamw_torch",  # on a processor it takes minutes
        "use_liger_kernel": on_card and find_spec("liger_kernel") is not None,
    }
    attention = "flash_attention_2" if on_card and find_spec("flash_attn") is not None else "sdpa"
    rows = rows_of(shape)
    lengths = [len(row.input_ids) for row in rows]
    clock, tokens = Clock(), [0]

    class Counting(SFTTrainer):  # type: ignore[misc]
        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            tokens[0] += int(inputs["input_ids"].numel())  # packed: there is hardly any padding
            return super().training_step(model, inputs, *args, **kwargs)

    class Watch(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.after_step(tokens[0])

    def labelled(row: Any) -> dict[str, list[int]]:
        labels = [
            token if taught else -100 for token, taught in zip(row.input_ids, row.supervised, strict=True)
        ]
        return {"input_ids": list(row.input_ids), "labels": labels}

    model = made(shape, attention)
    flops = flops_of(model, rows)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Counting(
            model=model,
            args=SFTConfig(
                output_dir=folder,
                num_train_epochs=1,
                bf16=True,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=not on_card,
                **options,
            ),
            train_dataset=Dataset.from_list([labelled(row) for row in rows]),
            processing_class=load_tokenizer(model_folder("embedded:smollm2-135m")),
            callbacks=[Watch()],
        )
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    needed = flops / sum(lengths) * clock.rate()
    return Measured(
        clock.rate(),
        needed / peak_of(compute_for("bf16")).flops,
        most_memory(),
        len(losses),
        losses[0],
        {**options, "attention": attention},
    )


def run_shape(name: str) -> None:
    """Let all competitors train a shape, each in a process of its own; one that fails is named with its last line."""
    if name not in SHAPES:
        raise SystemExit(f"--shape {name}: give one of {', '.join(SHAPES)}")
    found: dict[str, Any] = {}
    for competitor in COMPETITORS:
        command = [sys.executable, __file__, "--shape", name, "--competitor", competitor]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
        if done.returncode:
            last = (done.stderr.strip() or "no message").splitlines()[-1]
            found[competitor] = {"failed": last}
            print(f"{competitor}: failed: {last}", file=sys.stderr)
        else:
            found[competitor] = json.loads(done.stdout.splitlines()[-1])
    result = {
        "question": "how fast does one card train a model in full, beside TRL, and with how much memory",
        "shape": name,
        "device": device(),
        "machine": platform.machine(),
        "versions": {one: known for one in LIBRARIES if (known := version_of(one)) is not None},
        "competitors": found,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"training-on-card-{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(markdown(result))


def device() -> str:
    """Return what trains."""
    from lingraft.models.compute import compute_device, device_name

    return device_name(compute_device())


def version_of(library: str) -> str | None:
    """Return the version of a library; None: it is not installed."""
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def markdown(result: dict[str, Any]) -> str:
    """Return the result as a table."""
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    trl = result["competitors"]["trl"].get("tokens_per_second")
    lines = [
        f"{result['shape']} on {result['device']}; {versions}.",
        "",
        "| | tokens a second | times TRL | MFU | memory (GB) | steps | first loss |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, one in result["competitors"].items():
        if "failed" in one:
            lines.append(f"| {name} | failed: {one['failed']} | | | | | |")
            continue
        times = "-" if trl is None else f"{one['tokens_per_second'] / trl:.2f}"
        lines.append(
            f"| {name} | {one['tokens_per_second']:,.0f} | {times} | {one['mfu']:.1%} | {one['peak_gigabytes']:.1f} | "
            f"{one['steps']} | {one['first_loss']:.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="llama-3-8b")
    parser.add_argument("--competitor", choices=COMPETITORS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.competitor is None:
        run_shape(options.shape)
        return
    shape = SHAPES[options.shape]
    measured = (
        with_trl(shape)
        if options.competitor == "trl"
        else with_lingraft(shape, compiles=options.competitor == "lingraft")
    )
    print(json.dumps(asdict(measured)))


if __name__ == "__main__":
    main()
