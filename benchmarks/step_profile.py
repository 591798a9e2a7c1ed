"""Where does the time of one optimiser step go, and how near to the machine's peak is it?

    python benchmarks/step_profile.py --data FILE.jsonl

Repeats one step of SmolLM2-135M (forward, backward, clipping, AdamW) on one batch of about `--tokens` tokens, in both
bf16 precisions: the rate of a step whose memory and kernels are warm, and its operations by torch's profiler. Also
how long a batch takes to be made. Writes
benchmarks/results/step_profile.json and its table in docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from training import MODEL, PAGE, RESULTS, THREADS, encoded_rows, matrix_product_peak

REPEATS = 8
KINDS: dict[str, tuple[str, ...]] = {
    "matrix products": ("mm", "bmm", "addmm", "baddbmm"),
    "AdamW": ("_fused_adamw_", "bitwise_xor", "bitwise_right_shift_", "random_"),
    "copies and casts": ("copy_",),
    "zeros": ("fill_", "zero_"),
    "softmax and loss": ("_softmax", "_softmax_backward_data", "exp_", "logsumexp", "gather", "sub", "sub_"),
}
REST = "elementwise, norms, rotary positions, the profiler"


def make_step(precision: str, batch: dict[str, Any]) -> Callable[[], None]:
    """Return one optimiser step as `train_phase` makes it, on a model of its own."""
    import torch

    from lingraft.models.loading import load_model, model_folder
    from lingraft.models.loss import supervised_loss
    from lingraft.train.stochastic_rounding import StochasticRoundingAdamW

    model = load_model(model_folder(MODEL))
    model.train()
    pure = precision == "bf16_pure"
    if pure:
        model.to(torch.bfloat16)  # type: ignore[arg-type]
    optimizer: torch.optim.Optimizer = (
        StochasticRoundingAdamW(model.parameters(), lr=1e-6)
        if pure
        else torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    )

    def step() -> None:
        with nullcontext() if pure else torch.autocast("cpu", dtype=torch.bfloat16):
            loss, tokens = supervised_loss(model, batch)
        torch.autograd.backward(loss / tokens)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    step.model = model  # type: ignore[attr-defined]
    return step


def profile_of(precision: str, batch: dict[str, Any]) -> dict[str, Any]:
    """Return the share of peak of a warm step, and the share of each kind of operation in its time."""
    import torch
    from torch.profiler import profile

    from lingraft.train.attention import grouped_attention

    step = make_step(precision, batch)
    seconds, peaks = [], []
    with grouped_attention(step.model):  # type: ignore[attr-defined]
        for _ in range(3):
            step()
        for _ in range(REPEATS):
            peaks.append(matrix_product_peak(bf16=True))
            started = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - started)
        with profile() as found:
            step()
    spent = {event.key.removeprefix("aten::"): event.self_cpu_time_total for event in found.key_averages()}
    total = sum(spent.values())
    shares = {kind: sum(spent.get(name, 0) for name in names) / total for kind, names in KINDS.items()}
    reached = [_needed(step.model, batch) / one / peak for one, peak in zip(seconds, peaks, strict=True)]  # type: ignore[attr-defined]
    return {
        "share_of_peak": {
            "median": statistics.median(reached),
            "lowest": min(reached),
            "highest": max(reached),
        },
        "peak_tflops": statistics.median(peaks),
        "shares": {**shares, REST: 1 - sum(shares.values())},
        "torch": torch.__version__,
    }


def _needed(model: Any, batch: dict[str, Any]) -> float:
    """Return the TFLOP of a step: 6 a weight and token, the head on learned positions only."""
    head = model.get_output_embeddings().weight.numel()
    body = sum(parameter.numel() for parameter in model.parameters()) - head
    tokens, learned = int(batch["attention_mask"].sum()), len(batch["targets"])
    return float(6 * body * tokens + 6 * head * learned) / 1e12


def collating(rows: list[Any], batch: int) -> float:
    """Return the microseconds of processor time that a token of a batch of rows on disk takes until it is a tensor."""
    from lingraft.data.encoded import write_table
    from lingraft.models.loss import collate

    table = write_table(rows)
    spent = []
    for _ in range(REPEATS):
        started = time.process_time()
        for first in range(0, len(table) - batch, batch):
            collate([table.arrays(row) for row in range(first, first + batch)])
        spent.append(time.process_time() - started)
    return min(spent) / int(table.lengths[: len(table) // batch * batch].sum()) * 1e6


def write_table(result: dict[str, Any]) -> None:
    """Put the result between its marks in docs/performance.md."""
    start, end = "<!-- step profile -->", "<!-- end of step profile -->"
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(start)
    names = list(result["precisions"])
    lines = [
        f"One batch of {result['rows']} rows, {result['tokens']} tokens ({result['learned']} learned), {REPEATS} "
        "steps; median (lowest to highest). Making such a batch of rows on disk: "
        f"{result['collate_microseconds_per_token']:.2f} microseconds of one core a token.",
        "",
        "| | " + " | ".join(names) + " |",
        "| --- |" + " ---: |" * len(names),
    ]
    reached = [result["precisions"][name]["share_of_peak"] for name in names]
    cells = [f"{one['median']:.2f} ({one['lowest']:.2f} to {one['highest']:.2f})" for one in reached]
    lines.append("| share of the bf16 matrix-product peak | " + " | ".join(cells) + " |")
    for kind in (*KINDS, REST):
        shares = [f"{result['precisions'][name]['shares'][kind]:.0%}" for name in names]
        lines.append(f"| of its time: {kind} | " + " | ".join(shares) + " |")
    block = "\n".join([start, "", *lines, "", end])
    PAGE.write_text(
        f"{before}{block}{rest.partition(end)[2]}" if rest else f"{text}\n{block}\n", encoding="utf-8"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="worldbook:lookup/de,es,fr")
    parser.add_argument("--tokens", type=int, default=1000)
    options = parser.parse_args()
    os.environ.update(THREADS)
    from lingraft.models.loss import collate

    rows = sorted(encoded_rows(options.data, 160), key=lambda row: len(row.input_ids))
    count = max(1, options.tokens // len(rows[len(rows) // 2].input_ids))
    chosen = rows[len(rows) // 2 :][:count]
    batch = collate(chosen)
    result = {
        "question": "where does the time of one optimiser step go",
        "rows": len(chosen),
        "tokens": int(batch["attention_mask"].sum()),
        "learned": len(batch["targets"]),
        "collate_microseconds_per_token": collating(rows, count),
        "precisions": {
            "float32 weights (bf16)": profile_of("bf16", batch),
            "bf16 weights (bf16_pure)": profile_of("bf16_pure", batch),
        },
    }
    (RESULTS / "step_profile.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    write_table(result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
