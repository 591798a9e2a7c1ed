"""How much faster does lingraft train than TRL's SFTTrainer, at the same loss, and how near to the machine's peak?

    python benchmarks/training.py [--data worldbook:lookup/de,es,fr] [--rows 96] [--rounds 3] [--quick] [--no-bf16]
    python benchmarks/training.py --shape llama-3-8b      # on a card: see benchmarks/training_on_card.py

Every competitor trains SmolLM2-135M for one epoch on the same tokens with the same labels, learning rate and about
the same number of optimiser steps, in a process of its own. Rounds alternate, so that a busy machine slows all of
them, and the peak of a bf16 matrix product is measured in every round: quote ratios, never single rates. All run with
the settings of the threads that the command line makes, which help TRL as well. --no-bf16 stands for a processor
without bf16 instructions (ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2), on which both train in float32. --quick
runs TRL's defaults, its best and ours, plain and compiled: with 64 rows and one round less than 9 minutes on two cores.
Writes benchmarks/results/training-NAME.json and its table in docs/performance.md; `--table FILE` writes the table
alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Any

THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "3000", "THP_MEM_ALLOC_ENABLE": "1"}
RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
MODEL = "embedded:smollm2-135m"
LEARNING_RATE = 2e-5
ROWS_PER_STEP = 8  # TRL's default
WARM_UP = 5  # optimiser steps
PACKED_LENGTH = 1024  # TRL's default max_length: one packed row holds about as many tokens as eight others
MAX_LENGTH = 512

# What is set besides TRL's defaults. Gradient checkpointing is one of these defaults.
TRL: dict[str, dict[str, Any]] = {
    "trl, defaults": {},
    "trl, no checkpointing": {"gradient_checkpointing": False},
    "trl, grouped by length": {
        "gradient_checkpointing": False,
        "train_sampling_strategy": "group_by_length",
    },
    "trl, rebalanced": {"gradient_checkpointing": False, "train_sampling_strategy": "batch_rebalance"},
    "trl, packed": {
        "gradient_checkpointing": False,
        "packing": True,
        "per_device_train_batch_size": 1,
        "max_length": PACKED_LENGTH,
    },
    "trl, packed and compiled": {
        "gradient_checkpointing": False,
        "packing": True,
        "per_device_train_batch_size": 1,
        "max_length": PACKED_LENGTH,
        "torch_compile": True,
    },
}
OURS: dict[str, dict[str, Any]] = {
    "lingraft": {"compile": False},
    "lingraft, compiled": {"compile": True},
    "lingraft, pure bf16": {"precision": "bf16_pure", "compile": False},
    "lingraft, lower two thirds frozen": {"compile": False},
}
FROZEN = "lingraft, lower two thirds frozen"
PURE = "lingraft, pure bf16"
QUICK = ("trl, defaults", "trl, packed", "lingraft", "lingraft, compiled")
NO_BF16 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}


class Clock:
    """Seconds and tokens after each optimiser step; the first `WARM_UP` are a rate of their own.

    In them memory is touched for the first time and kernels are made for the shapes of the batches.
    """

    def start(self) -> None:
        """Begin."""
        self._begin = time.perf_counter()
        self._after: list[tuple[float, int]] = []

    def after_step(self, tokens: int) -> None:
        """Note how many tokens have been trained on so far."""
        self._after.append((time.perf_counter() - self._begin, tokens))

    def rates(self) -> dict[str, float]:
        """Return the seconds of the epoch, and tokens per second after the warm-up."""
        (warm, warm_tokens), (end, end_tokens) = self._after[WARM_UP - 1], self._after[-1]
        return {"seconds": end, "warm_rate": (end_tokens - warm_tokens) / (end - warm)}


def encoded_rows(data: str, count: int) -> list[Any]:
    """Return the first `count` rows of a data set that have at most MAX_LENGTH tokens."""
    from lingraft.config.schema import DataSource
    from lingraft.data.chat import encode_examples
    from lingraft.data.sources import load_data
    from lingraft.models.loading import load_tokenizer, model_folder

    loaded = load_data(DataSource(source=data))
    whole = encode_examples(loaded.examples[: 2 * count], load_tokenizer(model_folder(MODEL)), MAX_LENGTH)
    rows = [row for row in whole.examples if row.truncated_tokens == 0][:count]
    if len(rows) < count:
        raise SystemExit(
            f"{data}: only {len(rows)} rows of at most {MAX_LENGTH} tokens; give --rows {len(rows)}"
        )
    return rows


def train_with_trl(
    rows: Sequence[Any], options: dict[str, Any], folder: Path, *, bf16: bool
) -> dict[str, Any]:
    """Train with SFTTrainer; tokens and labels are given, so that both learn exactly the same."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from lingraft.models.loading import load_model, load_tokenizer, model_folder
    from lingraft.train.memory import forget_peak, peak_bytes

    counts: list[int] = []
    tokens = [0]
    clock = Clock()

    class CountingTrainer(SFTTrainer):  # type: ignore[misc]
        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            mask = inputs.get("attention_mask")  # a packed batch has none, and no padding
            tokens[0] += int(inputs["input_ids"].numel() if mask is None else mask.sum())
            return super().training_step(model, inputs, *args, **kwargs)

        def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
            batches, count = super().get_batch_samples(*args, **kwargs)
            counts.append(int(count))
            return batches, count

    class Watch(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            forget_peak()
            clock.start()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.after_step(tokens[0])

    model = load_model(model_folder(MODEL))
    settings = {"max_length": MAX_LENGTH, "per_device_train_batch_size": ROWS_PER_STEP, **options}
    trainer = CountingTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(folder),
            num_train_epochs=1,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            bf16=bf16,
            **settings,
        ),
        train_dataset=Dataset.from_list([_labelled(row) for row in rows]),
        processing_class=load_tokenizer(model_folder(MODEL)),
        callbacks=[Watch()],
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        **clock.rates(),
        "loss": sum(loss * count for loss, count in zip(losses, counts, strict=True)) / sum(counts),
        "steps": len(losses),
        "peak_bytes": peak_bytes(),
        "loss_after": loss_of(model, rows),
    }


def train_with_lingraft(rows: Sequence[Any], name: str, folder: Path, *, bf16: bool) -> dict[str, Any]:
    """Train with train_phase, its token budget chosen for about as many optimiser steps as TRL makes."""
    from lingraft.config.schema import Training
    from lingraft.models.loading import load_model, load_tokenizer, model_folder
    from lingraft.train.phase import train_phase

    model = load_model(model_folder(MODEL))
    training = Training(
        learning_rate=LEARNING_RATE,
        tokens_per_batch=_token_budget([len(row.input_ids) for row in rows]),
        scheduler="constant_with_warmup",
        warmup_share=0.0,
        save_minutes=0,
        **{"precision": "bf16" if bf16 else "float32", **OURS[name]},
    )
    names = trained_names(model) if name == FROZEN else None
    tokenizer = load_tokenizer(model_folder(MODEL))
    counts = _supervised_per_step(rows, training)
    tokens = _tokens_after(rows, training)
    clock = Clock()

    def watch(progress: Any) -> None:
        clock.after_step(tokens[progress.step])

    clock.start()
    done = train_phase(
        model, tokenizer, rows, training, trainable=names, folder=folder, seed=0, on_progress=watch
    )
    losses = [loss for _, loss in done.losses]
    return {
        **clock.rates(),
        "seconds": done.seconds,
        "loss": sum(loss * count for loss, count in zip(losses, counts, strict=True)) / sum(counts),
        "steps": done.steps,
        "peak_bytes": done.peak_bytes,
        "loss_after": loss_of(model, rows),
    }


def _labelled(row: Any) -> dict[str, list[int]]:
    labels = [token if taught else -100 for token, taught in zip(row.input_ids, row.supervised, strict=True)]
    return {"input_ids": list(row.input_ids), "labels": labels}


def _token_budget(lengths: Sequence[int]) -> int:
    """Return the smallest budget that needs no more steps than ROWS_PER_STEP rows a step do."""
    from lingraft.data.batching import token_budget_batches

    steps = -(-len(lengths) // ROWS_PER_STEP)
    budget = max(*lengths, sum(lengths) // steps)
    while len(token_budget_batches(lengths, budget, 0, 0)) > steps:
        budget += 8
    return budget


def _tokens_after(rows: Sequence[Any], training: Any) -> list[int]:
    from lingraft.train.trainer import BatchPlan

    return [0, *accumulate(BatchPlan([len(row.input_ids) for row in rows], training, 0).tokens_per_step())]


def _supervised_per_step(rows: Sequence[Any], training: Any) -> list[int]:
    from lingraft.train.trainer import BatchPlan

    plan = BatchPlan([len(row.input_ids) for row in rows], training, 0)
    return [sum(sum(rows[number].supervised[1:]) for number in batch) for batch in plan]


def loss_of(model: Any, rows: Sequence[Any]) -> float:
    """Return the mean loss over all supervised tokens of `rows` in float32, nats per token."""
    import torch

    from lingraft.models.loss import collate, supervised_loss

    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(rows), ROWS_PER_STEP):
            summed, tokens = supervised_loss(model, collate(rows[start : start + ROWS_PER_STEP]))
            total, count = total + float(summed), count + tokens
    return total / count


def matrix_product_peak(*, bf16: bool) -> float:
    """Return the best rate of a matrix product in TFLOP/s, in the type that is trained in, of a few of two sizes."""
    import torch

    best = 0.0
    for size in (1024, 2048):
        left = torch.randn(size, size).to(torch.bfloat16 if bf16 else torch.float32)
        for _ in range(8):
            started = time.perf_counter()
            torch.mm(left, left)
            best = max(best, 2 * size**3 / (time.perf_counter() - started) / 1e12)
    return best


def flops_of(rows: Sequence[Any], frozen: bool) -> float:
    """Return the FLOPs that one epoch needs: of real tokens, recomputed activations not counted.

    What MFU counts (`lingraft.models.shape`), the same for all competitors.
    """
    from lingraft.models.loading import load_model, model_folder
    from lingraft.models.shape import shape_of

    model = load_model(model_folder(MODEL))
    lengths = [len(row.input_ids) for row in rows]
    supervised = sum(sum(row.supervised[1:]) for row in rows)
    trained = trained_names(model) if frozen else None
    pairs = sum(length**2 for length in lengths)
    return shape_of(model, trained).training_flops(sum(lengths), pairs, supervised)


def trained_names(model: Any) -> list[str]:
    """Return the names of the parameters of the upper third of the layers, and of what is above them."""
    from lingraft.models.layers import layer_of

    first = model.config.num_hidden_layers * 2 // 3
    return [key for key, _ in model.named_parameters() if (layer_of(key) or 0) >= first]


def run_child(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run one competitor in a process of its own."""
    command = [
        sys.executable,
        __file__,
        "--competitor",
        name,
        "--data",
        options.data,
        "--rows",
        str(options.rows),
        *(["--no-bf16"] if options.no_bf16 else []),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **THREADS})
    if done.returncode:
        raise SystemExit(f"{name}:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def compete(name: str, options: argparse.Namespace) -> None:
    """Train as one competitor and print what came of it as one line of JSON."""
    rows = encoded_rows(options.data, options.rows)
    with tempfile.TemporaryDirectory() as folder:
        train: Callable[[], dict[str, Any]] = (
            (lambda: train_with_trl(rows, TRL[name], Path(folder), bf16=not options.no_bf16))
            if name in TRL
            else (lambda: train_with_lingraft(rows, name, Path(folder), bf16=not options.no_bf16))
        )
        result = train()
    print(json.dumps(result))


def summarise(
    rounds: list[dict[str, dict[str, Any]]], peaks: list[float], rows: Sequence[Any]
) -> dict[str, Any]:
    """Return per competitor its rate against each of the others, and what it reached of the peak."""
    tokens = sum(len(row.input_ids) for row in rows)
    entries: dict[str, Any] = {}
    for name in rounds[0]:
        seconds = [one[name]["seconds"] for one in rounds]
        defaults = [one["trl, defaults"]["seconds"] for one in rounds]
        peers = [peer for peer in TRL if peer in rounds[0]]
        best = [min(one[peer]["seconds"] for peer in peers) for one in rounds]
        warm = [one[name]["warm_rate"] for one in rounds]
        warm_defaults = [one["trl, defaults"]["warm_rate"] for one in rounds]
        warm_best = [max(one[peer]["warm_rate"] for peer in peers) for one in rounds]
        needed = flops_of(rows, name == FROZEN) / 1e12
        entries[name] = {
            "times_as_fast_as_trl_defaults": _spread(_ratios(defaults, seconds)),
            "times_as_fast_as_trl_best": _spread(_ratios(best, seconds)),
            "times_as_fast_as_trl_defaults_after_warm_up": _spread(_ratios(warm, warm_defaults)),
            "times_as_fast_as_trl_best_after_warm_up": _spread(_ratios(warm, warm_best)),
            "tokens_per_second": _spread([tokens / took for took in seconds]),
            "mfu": _spread([needed / took / peak for took, peak in zip(seconds, peaks, strict=True)]),
            "mfu_after_warm_up": _spread(
                [needed / tokens * rate / peak for rate, peak in zip(warm, peaks, strict=True)]
            ),
            "steps": rounds[0][name]["steps"],
            "training_loss": rounds[0][name]["loss"],
            "loss_after": rounds[0][name]["loss_after"],
            "peak_gigabytes": max(one[name]["peak_bytes"] for one in rounds) / 1e9,
        }
    return entries


def _ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    return [one / other for one, other in zip(above, below, strict=True)]


def _name_of(data: str) -> str:
    """Return a file's folder and stem, or the prefix of a source such as worldbook:lookup/de."""
    return f"{Path(data).parent.name}-{Path(data).stem}" if Path(data).suffix else data.partition(":")[0]


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def write_table(result: dict[str, Any]) -> None:
    """Put the result's table between its marks in docs/performance.md, at the end where these are not there yet."""
    start, end = f"<!-- training {result['data']} -->", f"<!-- end of training {result['data']} -->"
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(start)
    after = rest.partition(end)[2]
    block = f"{start}\n\n{markdown(result)}\n\n{end}"
    PAGE.write_text(f"{before}{block}{after}" if start in text else f"{text}\n{block}\n", encoding="utf-8")


def markdown(result: dict[str, Any]) -> str:
    """Return the result as a Markdown table with a caption that says what was run where."""
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    peak = result["matrix_product_peak_tflops"]["median"]
    lines = [
        f"{result['data']}: {result['rows']} rows, {result['tokens']:,} tokens ({result['supervised_tokens']:,} "
        f"learned), {result['rounds']} alternating rounds, {result['cores']} cores, {result['arithmetic']} matrix "
        f"product {peak:.2f} TFLOP/s; {versions}. Median over the rounds (lowest to highest); then the median without "
        f"the first {WARM_UP} steps.",
        "",
        "| | times TRL's defaults | times TRL's best | MFU | memory (GB) | steps | training loss "
        "| loss after |",
        "| --- | --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for name, one in result["competitors"].items():
        cells = [
            *(
                f"{_written(one[key])}; {one[f'{key}_after_warm_up']['median']:.2f}"
                for key in ("times_as_fast_as_trl_defaults", "times_as_fast_as_trl_best", "mfu")
            ),
            f"{one['peak_gigabytes']:.1f}",
            str(one["steps"]),
            f"{one['training_loss']:.3f}",
            f"{one['loss_after']:.3f}",
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _written(spread: dict[str, float]) -> str:
    return f"{spread['median']:.2f} ({spread['lowest']:.2f} to {spread['highest']:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="worldbook:lookup/de,es,fr")
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--table", type=Path, help="write the table of this result file, run nothing")
    parser.add_argument(
        "--quick", action="store_true", help="TRL's defaults, its best, ours plain and compiled"
    )
    parser.add_argument("--no-bf16", action="store_true", help="as on a processor without bf16 instructions")
    parser.add_argument("--competitor", help=argparse.SUPPRESS)
    parser.add_argument("--shape", help="llama-3-8b, on a card; tiny, to try it")
    options = parser.parse_args()
    if options.shape:
        from training_on_card import run_shape

        run_shape(options.shape)
        return
    if options.no_bf16:
        os.environ.update(NO_BF16)  # before torch is imported
    if options.competitor:
        compete(options.competitor, options)
        return
    if options.table:
        write_table(json.loads(options.table.read_text(encoding="utf-8")))
        return
    os.environ.update(THREADS)
    rows = encoded_rows(options.data, options.rows)
    rounds: list[dict[str, dict[str, Any]]] = []
    peaks: list[float] = []
    for number in range(options.rounds):
        peaks.append(matrix_product_peak(bf16=not options.no_bf16))
        rounds.append({})
        for name in QUICK if options.quick else (*TRL, *OURS):
            if options.no_bf16 and name == PURE:
                continue
            rounds[-1][name] = run_child(name, options)
            print(f"round {number + 1}, {name}: {rounds[-1][name]}", file=sys.stderr, flush=True)
    label = _name_of(options.data) + ("-no-bf16" if options.no_bf16 else "")
    result = {
        "question": "how much faster does lingraft train than TRL's SFTTrainer, at the same loss",
        "data": label,
        "rows": len(rows),
        "tokens": sum(len(row.input_ids) for row in rows),
        "supervised_tokens": sum(sum(row.supervised[1:]) for row in rows),
        "rounds": options.rounds,
        "matrix_product_peak_tflops": _spread(peaks),
        "competitors": summarise(rounds, peaks, rows),
        "arithmetic": "float32" if options.no_bf16 else "bf16",
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "versions": {
            name: version(name) for name in ("lingraft", "torch", "transformers", "accelerate", "trl")
        },
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"training-{label}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    write_table(result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
