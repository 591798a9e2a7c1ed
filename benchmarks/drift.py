"""What do the moments of all layers cost beside the bare forward passes, and do they equal the naive ones?

    python benchmarks/drift.py --prompts FILE.jsonl [--rounds 3]

The embedded model over the prompts: `layer_states` against the same batches through the decoder alone, alternating. The
naive figures hold every state of every layer in memory. Writes benchmarks/results/drift.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "drift.json"
MODEL = "embedded:smollm2-135m"


def bare_seconds(model: Any, prompts: Any) -> float:
    """Return the seconds of the forward passes alone."""
    import torch

    from lingraft.data.batching import token_budget_batches
    from lingraft.representation import states

    started = time.perf_counter()
    lengths = [len(ids) for ids in prompts.ids]
    with torch.inference_mode():
        for batch in token_budget_batches(lengths, states._TOKENS_PER_BATCH, seed=0, epoch=0):
            states.run_decoder(model, [prompts.ids[row] for row in sorted(batch)])
    return time.perf_counter() - started


def naive_covariances(model: Any, prompts: Any) -> list[Any]:
    """Return each layer's covariance but the last one's, from all states at once, prompt by prompt."""
    import torch

    kept: list[list[Any]] = [[] for _ in range(model.config.num_hidden_layers - 1)]
    with torch.inference_mode():
        for ids in prompts.ids:
            hidden = model.base_model(
                torch.tensor([ids]), output_hidden_states=True, use_cache=False
            ).hidden_states
            for layer, own in enumerate(kept):
                own.append(hidden[layer + 1][0])
    return [torch.cov(torch.cat(own).double().T) for own in kept]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    from lingraft.models.loading import load_model, load_tokenizer
    from lingraft.representation.prompts import read_prompts
    from lingraft.representation.states import encode_prompts, layer_states
    from lingraft.train.memory import peak_bytes

    model, tokenizer = load_model(MODEL), load_tokenizer(MODEL)
    prompts = encode_prompts(read_prompts(options.prompts, language="en"), tokenizer)
    ratios = []
    for _ in range(options.rounds):
        bare = bare_seconds(model, prompts)
        started = time.perf_counter()
        found = layer_states(model, prompts)
        ratios.append((time.perf_counter() - started) / bare)
    peak = peak_bytes() / 1e9
    errors = [
        float((one.whole.covariance - naive).norm() / naive.norm())
        for one, naive in zip(found, naive_covariances(model, prompts), strict=False)
    ]
    result = {
        "question": "what do all layers' moments cost beside the forward passes, and do they equal the naive ones",
        "prompts": len(prompts.ids),
        "tokens": sum(map(len, prompts.ids)),
        "time_over_bare_forward_passes": {
            "median": statistics.median(ratios),
            "lowest": min(ratios),
            "highest": max(ratios),
        },
        "largest_relative_error_of_a_covariance": max(errors),
        "peak_gigabytes": peak,
        "versions": {name: version(name) for name in ("lingraft", "torch", "transformers")},
        "python": platform.python_version(),
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
