"""How much faster is lingraft's training step than a plain loop over full logits, and is its loss the same?

    python benchmarks/training.py [--rows 48] [--rounds 3]

Both train SmolLM2-135M in bf16 arithmetic on float32 weights with fused AdamW on the same worldbook rows and about
the same padded tokens per step. The rounds alternate, so that a busy machine slows both; quote the ratio, never a
single rate. Writes benchmarks/results/training.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

import torch

from lingraft.config.schema import Training
from lingraft.data.chat import EncodedExample, encode_examples
from lingraft.data.worldbook import load_examples
from lingraft.models.loading import load_model, load_tokenizer, model_folder
from lingraft.train.loss import collate
from lingraft.train.phase import train_phase

RESULTS = Path(__file__).parent / "results" / "training.json"
TOKENS_PER_BATCH = 512
ROWS_PER_BATCH = 6


def plain_loop(folder: Path, rows: Sequence[EncodedExample]) -> tuple[float, float]:
    """Train once over the rows in their order with full logits; return tokens per second and the first loss."""
    model = load_model(folder)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    losses = []
    started = time.monotonic()
    for start in range(0, len(rows), ROWS_PER_BATCH):
        batch = collate(rows[start : start + ROWS_PER_BATCH])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"].long()).logits
        kept = batch["supervised"][:, 1:]
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1][kept].float(), batch["input_ids"][:, 1:][kept]
        )
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return _tokens(rows) / (time.monotonic() - started), statistics.mean(losses)


def lingraft(folder: Path, rows: Sequence[EncodedExample]) -> tuple[float, float]:
    """Train the same rows through train_phase; return tokens per second and the mean loss."""
    model = load_model(folder)
    names = {name for name, _ in model.named_parameters()}
    training = Training.model_validate(
        {"learning_rate": 1e-5, "tokens_per_batch": TOKENS_PER_BATCH, "scheduler": "constant_with_warmup"}
        | {"warmup_share": 0.0}
    )
    with tempfile.TemporaryDirectory() as where:
        started = time.monotonic()
        done = train_phase(
            model, load_tokenizer(folder), rows, training, trainable=names, folder=Path(where), seed=0
        )
        seconds = time.monotonic() - started
    return _tokens(rows) / seconds, statistics.mean(loss for _, loss in done.losses)


def _tokens(rows: Sequence[EncodedExample]) -> int:
    return sum(len(row.input_ids) for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    folder = model_folder("embedded:smollm2-135m")
    examples = load_examples("worldbook:lookup/de,es,fr")[: options.rows]
    rows = encode_examples(examples, load_tokenizer(folder), 1024).examples
    plain_loop(folder, rows[:ROWS_PER_BATCH])  # warm up
    rounds = [(plain_loop(folder, rows), lingraft(folder, rows)) for _ in range(options.rounds)]
    ratios = [ours[0] / plain[0] for plain, ours in rounds]
    result = {
        "question": "tokens per second of lingraft's training over a plain loop with full logits",
        "ratio": {"median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)},
        "mean_loss": {"plain": rounds[0][0][1], "lingraft": rounds[0][1][1]},
        "rows": len(rows),
        "tokens": _tokens(rows),
        "rounds": options.rounds,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("lingraft", "torch", "transformers")},
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
