"""Does a step on a CUDA device wait for the device before it reads its loss?

    python benchmarks/sync_debug.py [--model embedded:smollm2-135m] [--data FILE.jsonl]

Trains a few steps of four micro-batches with torch's synchronisation debug mode set to "error" from the moment that a
step's batches are there until its optimiser has stepped; the first two steps, which make kernels and place what
strategies hold, are left alone. What waits raises, and is shown with the line that waited. Writes
benchmarks/results/sync_debug.json with the card and the versions; exits with 1 where anything waited.

`tests/train/test_waiting.py` counts the same on any machine by the names of operations.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import traceback
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from training import MODEL, RESULTS, encoded_rows

WARM_STEPS = 2
MODES: dict[str, tuple[str, list[Any]]] = {  # precision and strategies
    "plain, float32": ("float32", []),
    "plain, bf16": ("bf16", []),
    "plain, bf16_pure": ("bf16_pure", []),
    "l2_anchor": ("bf16", [{"l2_anchor": {"strength": 0.1}}]),
    "distill": ("bf16", [{"distill": {"share": 0}}]),
    "layerwise_rates": ("bf16", [{"layerwise_rates": {"decay": 0.9}}]),
    "lora": ("bf16", [{"lora": {"rank": 8}}]),
}


@dataclass(frozen=True)
class Found:
    """What one mode came to: `waited` is the line that waited, None where none did."""

    mode: str
    steps: int
    waited: str | None


def check(mode: str, source: str, rows: list[Any], tokens: int) -> Found:
    """Train in a mode, and return where it waited."""
    import torch
    from transformers import AutoTokenizer, TrainerCallback

    from lingraft.config.schema import StrategyChoice, Training
    from lingraft.models.compute import compute_for
    from lingraft.models.loading import load_model, model_folder
    from lingraft.strategies.base import Context
    from lingraft.strategies.composition import build
    from lingraft.train import phase
    from lingraft.train.trainer import PhaseTrainer

    class Watched(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
            if state.global_step >= WARM_STEPS:
                torch.cuda.set_sync_debug_mode("error")

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
            torch.cuda.set_sync_debug_mode("default")

    class WatchedTrainer(PhaseTrainer):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.add_callback(Watched())

    precision, strategies = MODES[mode]
    start = model_folder(source)
    folder = Path(tempfile.mkdtemp())
    context = Context(
        base=None, previous=start, previous_data=(), english=(), seed=0, folder=folder, cache=folder,
        compute=compute_for(precision),  # type: ignore[arg-type]
    )  # fmt: skip
    composition = build(StrategyChoice.model_validate(strategies or "plain"))
    model: Any = composition.wrap(load_model(start), context)
    training = Training(
        tokens_per_batch=tokens,
        accumulation=4,
        precision=precision,
        save_minutes=0,
    )
    setattr(phase, "PhaseTrainer", WatchedTrainer)  # noqa: B010
    waited, steps = None, 0
    try:
        steps = phase.train_phase(
            model,
            AutoTokenizer.from_pretrained(start),
            rows,
            training,
            trainable=composition.trainable(model, context),
            rules=composition.rules(model, context),
            folder=folder,
        ).steps
    except RuntimeError as error:
        torch.cuda.set_sync_debug_mode("default")
        if "synchroniz" not in str(error):
            raise
        waited = "".join(traceback.format_tb(error.__traceback__)[-3:])
    finally:
        setattr(phase, "PhaseTrainer", PhaseTrainer)  # noqa: B010
        shutil.rmtree(folder)
    if waited is None and steps <= WARM_STEPS:
        raise SystemExit(f"{steps} steps are too few to watch any: give more --rows.")
    return Found(mode, steps, waited)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--data", default="worldbook:lookup/de,es,fr")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=8192, help="tokens of a step")
    options = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        raise SystemExit(
            "torch sees no CUDA device here, and the mode is CUDA's: run it on a machine with a card."
        )
    encoded = encoded_rows(options.data, options.rows)
    rows = [replace(row, replayed=number % 3 == 0) for number, row in enumerate(encoded)]
    found = [check(mode, options.model, rows, options.tokens) for mode in MODES]
    for one in found:
        print(
            f"{one.mode}: {'waits at' + chr(10) + one.waited if one.waited else f'{one.steps} steps, none waits'}"
        )
    result = {
        "question": "does a step wait for the device before it reads its loss",
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "model": options.model,
        "modes": [asdict(one) for one in found],
    }
    (RESULTS / "sync_debug.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sys.exit(any(one.waited for one in found))


if __name__ == "__main__":
    main()
