"""What does each strategy cost beside plain training, and what does its preparation cost beside bare passes?

    python benchmarks/strategy_cost.py [--strategies ewc,ssu] [--threads 1]

The embedded model trains a few steps of worldbook rows, in a process for each strategy: once with it (its peak of
resident memory), then plain and with it in turn. Times are the CPU seconds of all threads, so that other work on the
machine disturbs them little; a step's is taken from the second step on. Preparation is compared with a bare forward
pass (ssu), or bare forward and backward passes of one example at a time (ewc), over the same rows. Writes
benchmarks/results/strategy_cost.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "strategy_cost.json"
MODEL = "embedded:smollm2-135m"
STRATEGIES: dict[str, Any] = {
    "plain": "plain",
    "freeze_random": "freeze_random",
    "freeze_modules": {"freeze_modules": {"layers": "0-19", "embeddings": True}},
    "half": "half",
    "spectrum": "spectrum",
    "ssu": {"ssu": {"tokens": 4096}},
    "english_replay": {"english_replay": {"share": 0.1, "from": "phase_one"}},
    "distill": {"distill": {"share": 0.1, "from": "phase_one"}},
    "lora": "lora",
    "l2_anchor": "l2_anchor",
    "ewc": {"ewc": {"tokens": 2048}},
    "layerwise_rates": "layerwise_rates",
}
ROWS, ROUNDS = 24, 3
TRAINING: dict[str, Any] = {
    "learning_rate": 2e-4,
    "tokens_per_batch": 512,
    "precision": "bf16",
    "save_minutes": 0,
}


def measured(name: str, threads: int) -> dict[str, Any]:
    """Return what one strategy cost; run in a process of its own."""
    import torch

    from lingraft.config.schema import StrategyChoice, Training
    from lingraft.data.worldbook.sources import load_examples
    from lingraft.models.loading import load_model, load_tokenizer, model_folder
    from lingraft.strategies.base import Context
    from lingraft.strategies.composition import build

    torch.set_num_threads(threads)
    folder = model_folder(MODEL)
    tokenizer = load_tokenizer(folder)
    with tempfile.TemporaryDirectory() as place:
        context = Context(
            base=None,
            previous=folder,
            previous_data=load_examples("worldbook:lookup/en"),
            english=(),
            seed=0,
            folder=Path(place),
            cache=Path(place) / "cache",
        )
        composition = build(StrategyChoice.model_validate(STRATEGIES[name]))
        found: dict[str, Any] = {}
        for part in composition.parts:
            if part.preparation is not None:
                loaded = load_model(folder)
                seconds = cpu_seconds(part.prepare, lambda loaded=loaded: loaded, tokenizer, context)
                context = replace(context, states={part.kind: Path(place)})
                found["preparation"] = seconds
                if part.kind in BARE_PASSES:
                    bare = cpu_seconds(BARE_PASSES[part.kind], part, load_model(folder), tokenizer, context)
                    found["preparation_over_bare_passes"] = seconds / bare
        rows = load_examples("worldbook:counting/de")[:ROWS]
        training = Training(**TRAINING)
        plain = build(StrategyChoice.model_validate("plain"))
        own = [train(composition, rows, context, tokenizer, training)]
        beside: list[dict[str, float]] = []
        for _ in range(ROUNDS):
            beside.append(train(plain, rows, context, tokenizer, training))
            own.append(train(composition, rows, context, tokenizer, training))
    pairs = list(zip(own[1:], beside, strict=True))
    return found | {
        "peak_bytes": own[0]["peak_bytes"],
        "step": [one["step"] / other["step"] for one, other in pairs],
        "phase": [one["phase"] / other["phase"] for one, other in pairs],
        "preparation_over_phase": found.get("preparation", 0.0)
        / statistics.median(one["phase"] for one in beside),
    }


def cpu_seconds(work: Callable[..., Any], *arguments: Any) -> float:
    """Return the CPU seconds of all threads that work took."""
    started = time.process_time()
    work(*arguments)
    return time.process_time() - started


def train(
    composition: Any, rows: Sequence[Any], context: Any, tokenizer: Any, training: Any
) -> dict[str, float]:
    """Train a phase as a study does; return CPU seconds a step and in all, and the peak of resident memory."""
    from lingraft.data.chat import encode_examples
    from lingraft.models.loading import load_model
    from lingraft.train.phase import train_phase

    mix = composition.mix(rows, context)
    encoded = encode_examples(mix.examples, tokenizer, training.max_length).examples
    model = composition.wrap(load_model(context.previous), context)
    ends: list[float] = []
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        outcome = train_phase(
            model,
            tokenizer,
            encoded,
            training,
            trainable=composition.trainable(model, context),
            folder=Path(folder),
            seed=0,
            on_progress=lambda _: ends.append(time.process_time()),
            rules=composition.rules(model, context),
        )
    return {
        "step": statistics.median(end - start for start, end in pairwise(ends)),
        "phase": time.process_time() - started,
        "peak_bytes": outcome.peak_bytes,
    }


def forward_passes(part: Any, model: Any, tokenizer: Any, context: Any) -> None:
    """Run the decoder once over the rows that `part` calibrates on, in batches of the size that it takes."""
    import torch

    from lingraft.data.batching import token_budget_batches
    from lingraft.strategies.calibration import calibration_of
    from lingraft.strategies.ssu import TOKENS_PER_BATCH

    rows = [row.input_ids for row in calibration_of(part.kind, tokenizer, context, part.tokens).rows]
    with torch.inference_mode(), context.compute.autocast():
        for batch in token_budget_batches([len(row) for row in rows], TOKENS_PER_BATCH, seed=0, epoch=0):
            longest = max(len(rows[row]) for row in batch)
            ids = torch.zeros((len(batch), longest), dtype=torch.long)
            for place, row in enumerate(batch):
                ids[place, : len(rows[row])] = torch.tensor(rows[row])
            model.base_model(input_ids=ids, use_cache=False)


def gradient_passes(part: Any, model: Any, tokenizer: Any, context: Any) -> None:
    """Run forward and backward once for each row that `part` calibrates on."""
    from lingraft.models.loss import collate, supervised_loss
    from lingraft.strategies.calibration import calibration_of

    for parameter in model.parameters():
        parameter.requires_grad_(True)
    for row in calibration_of(part.kind, tokenizer, context, part.tokens).rows:
        loss, _ = supervised_loss(model, collate([row]), arithmetic=context.compute.autocast())
        loss.backward()  # type: ignore[no-untyped-call]
        model.zero_grad()


BARE_PASSES = {"ssu": forward_passes, "ewc": gradient_passes}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--strategies", default=",".join(STRATEGIES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(measured(options.part, options.threads)))
        return
    found = {}
    for name in ["plain", *(one for one in options.strategies.split(",") if one != "plain")]:
        command = [sys.executable, __file__, "--part", name, "--threads", str(options.threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{name}:\n{done.stderr[-3000:]}")
        found[name] = json.loads(done.stdout.splitlines()[-1])
        print(name, found[name], file=sys.stderr, flush=True)
    result = {
        "question": "what each strategy costs beside plain training, in CPU seconds and peak resident memory",
        "model": MODEL,
        "rows": ROWS,
        "training": TRAINING,
        "threads": options.threads,
        "strategies": {name: summary(one, found["plain"]) for name, one in found.items()},
        "rounds": ROUNDS,
        "versions": {name: version(name) for name in ("lingraft", "torch", "transformers", "peft")},
        "python": platform.python_version(),
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


def summary(one: dict[str, Any], plain: dict[str, Any]) -> dict[str, Any]:
    """Return ratios to plain: of a step, of the phase, of preparing to plain's phase, of peak memory."""
    found = {
        "step": {
            "median": statistics.median(one["step"]),
            "lowest": min(one["step"]),
            "highest": max(one["step"]),
        },
        "phase": statistics.median(one["phase"]),
        "preparation_over_phase": one["preparation_over_phase"],
        "peak_memory": one["peak_bytes"] / plain["peak_bytes"],
    }
    if "preparation_over_bare_passes" in one:
        found["preparation_over_bare_passes"] = one["preparation_over_bare_passes"]
    return found


if __name__ == "__main__":
    main()
