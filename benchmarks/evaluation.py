"""How long does an evaluation take beside the harness's own batches, at the same answers?

    python benchmarks/evaluation.py [--suite quick] [--languages de,th] [--limit 12] [--rounds 3] [--precision float32]

The embedded model on a suite's tasks, in one process: lingraft's engine, and the harness's own Hugging Face class with
each fixed batch size. Everything else, the harness's loop over tasks, prompts and scores included, is shared, so this
leaves out what the harness's command line spends on starting. Rounds alternate, the order turned around in every second
one; quote ratios, never single times. Times are CPU seconds, by default of one thread, so that other work on the
machine disturbs them little. In float32 the predictions must be equal, up to answers that tip between two tokens of
equal score, which are counted. Writes benchmarks/results/evaluation.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "evaluation.json"
MODEL = "embedded:smollm2-135m"
BATCH_SIZES = (1, 4, 8, 16, 32, 64)
OURS = "lingraft"


def engine(name: str, model: Any, tokenizer: Any, evaluation: Any) -> Any:
    """Return lingraft's engine, or the harness's with the batch size that its name ends in."""
    from lm_eval.models.huggingface import HFLM

    from lingraft.evaluate.answers import AnswerLog, ItemCount
    from lingraft.evaluate.in_memory import Batching, InMemoryModel

    if name == OURS:
        batching = Batching(evaluation.batch_size, evaluation.tokens_per_batch)
        return InMemoryModel(model, tokenizer, batching, AnswerLog(), ItemCount(0, None), chat=True)
    size = int(name.rpartition(" ")[2])
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size, backend="causal", add_bos_token=False)


def answers(lm: Any, tokenizer: Any, evaluation: Any, runs: Sequence[Any]) -> tuple[float, dict[str, str]]:
    """Return the CPU seconds of an evaluation, and every answer; likelihoods are rounded."""
    from lingraft.evaluate import running

    started = time.process_time()
    samples = running.samples_of(lm, tokenizer, evaluation, runs)
    seconds = time.process_time() - started
    said = {}
    for task, own in samples.items():
        for sample in own:
            first = [one[0] for one in sample.responses]
            said[f"{task}/{sample.number}"] = str(
                [one if isinstance(one, str) else (round(float(one[0]), 2), bool(one[1])) for one in first]
            )
    return seconds, said


def chosen_tasks(options: argparse.Namespace, *, warm_up: bool) -> Any:
    """Return a suite's tasks with so many items each; for the warm-up one item and two tokens."""
    from lingraft.evaluate.selection import choose_tasks

    chosen = choose_tasks(
        options.suite,
        options.tasks.split(",") if options.tasks else [],
        languages=["en", *options.languages.split(",")],
        data_dir=None,
        limit=1 if warm_up else options.limit,
    ).evaluation
    if not warm_up:
        return chosen
    short = {
        ability: tuple(one.model_copy(update={"max_new_tokens": 2}) for one in getattr(chosen, ability))
        for ability in ("task_ability", "language_ability")
    }
    return chosen.model_copy(update=short)


def measured(options: argparse.Namespace, names: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the seconds of every round and the peaks, and the answers of the last round, by engine."""
    import torch

    from lingraft.evaluate import task_runs
    from lingraft.models.loading import load_model, load_tokenizer
    from lingraft.train.memory import forget_peak, peak_bytes

    model = load_model(options.model, dtype=getattr(torch, options.precision))
    tokenizer = load_tokenizer(options.model)
    tags = options.languages.split(",")
    figures: dict[str, Any] = {name: {"seconds": [], "peak_gigabytes": 0.0} for name in names}
    said: dict[str, Any] = {}
    for number in range(options.rounds + 1):
        is_warm_up = number == 0
        tasks = chosen_tasks(options, warm_up=is_warm_up)
        for name in names if number % 2 == 0 else names[::-1]:
            runs, _ = task_runs.build_runs(tasks, tags, Path(), skip_missing=True)
            forget_peak()
            seconds, found = answers(engine(name, model, tokenizer, tasks), tokenizer, tasks, runs)
            if not is_warm_up:
                said[name] = found
                figures[name]["seconds"].append(seconds)
                figures[name]["peak_gigabytes"] = max(figures[name]["peak_gigabytes"], peak_bytes() / 1e9)
    return figures, said


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", default="quick")
    parser.add_argument("--tasks", default="", help="only these of the suite, separated by commas")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--languages", default="de,th")
    parser.add_argument("--limit", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-sizes", default=",".join(map(str, BATCH_SIZES)))
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.threads)
    names = [OURS, *(f"harness, batch size {size}" for size in options.batch_sizes.split(","))]
    figures, said = measured(options, names)
    best = min(names[1:], key=lambda name: statistics.median(figures[name]["seconds"]))
    pairs = zip(figures[OURS]["seconds"], figures[best]["seconds"], strict=True)
    ratios = [own / other for own, other in pairs]
    result = {
        "question": "how long does an evaluation take beside the harness's own batches, at the same answers",
        **{
            key: getattr(options, key)
            for key in ("model", "suite", "tasks", "languages", "limit", "precision", "rounds")
        },
        "items": len(said[OURS]),
        "engines": figures,
        "best_of_the_harness": best,
        "time_over_best_of_the_harness": {
            "median": statistics.median(ratios),
            "lowest": min(ratios),
            "highest": max(ratios),
        },
        "items_answered_otherwise": {
            name: sum(said[name][item] != answer for item, answer in said[OURS].items()) for name in names[1:]
        },
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("lingraft", "torch", "transformers", "lm_eval")},
        "python": platform.python_version(),
    }
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
