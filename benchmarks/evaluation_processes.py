"""Do two processes of one thread answer an evaluation sooner than one process of two threads, and alike?

    python benchmarks/evaluation_processes.py [--limit 5] [--rounds 3]

The embedded model on worldbook in English and German, float32, in the ways that `lingraft evaluate --processes` has.
Rounds alternate, the order turned around in every second one. Prints the seconds of the evaluation itself, and apart
from them those of the start: loading, a few answers, and of processes importing torch. Quote the ratio of one run. The
predictions must be equal, but for answers that tip between two tokens because threads add up in another order.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

MODEL = "embedded:smollm2-135m"
WAYS = {"one process, two threads": 1, "two processes, one thread each": 2}


def evaluated(workers: int, limit: int) -> tuple[float, float, list[Any]]:
    """Return the seconds until the model was ready, those of the answers, and the predictions."""
    import torch

    from lingraft.config.schema import Evaluation, EvaluationTask
    from lingraft.evaluate.running import evaluate_model
    from lingraft.models.answering import Continue
    from lingraft.models.engine import Engine, ModelFiles
    from lingraft.models.generation import Ending, Sampling, TokenPrompt
    from lingraft.models.loading import model_folder
    from lingraft.models.workers import answered_by

    torch.set_num_threads(2)
    task = (EvaluationTask(task="worldbook", limit=limit),)
    evaluation = Evaluation(task_ability=task, language_ability=task, tokens_per_batch=4096)
    files = ModelFiles(model_folder(MODEL), torch.float32)
    began = time.perf_counter()
    with answered_by(workers, files, torch.device("cpu")) as answering:
        prompts = tuple(TokenPrompt((1, 2, 3), 0, 16) for _ in range(16))
        warm = Continue(Engine(batch_size=16), prompts, Sampling(), Ending(frozenset({0})))
        list(answering.answers([warm] * 12))  # the last process is there before they are answered
        ready = time.perf_counter()
        found = evaluate_model(
            answering.model,
            answering.tokenizer,
            evaluation,
            languages=["de"],
            precision="float32",
            answering=answering,
        )
        return ready - began, time.perf_counter() - ready, list(found.predictions)


def main() -> None:
    """Time both ways in turn, and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--limit", type=int, default=5, help="items of each task and language")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    starts: dict[str, list[float]] = {way: [] for way in WAYS}
    said: dict[str, list[str]] = {}
    for number in range(options.rounds):
        for way in list(WAYS)[:: 1 if number % 2 == 0 else -1]:
            start, took, predictions = evaluated(WAYS[way], options.limit)
            starts[way].append(start)
            seconds[way].append(took)
            said[way] = [f"{one.item} {one.response}" for one in predictions]
    one, two = (statistics.median(seconds[way]) for way in WAYS)
    differ = sum(a != b for a, b in zip(*said.values(), strict=True))
    print(
        json.dumps(
            {
                "items": len(said[next(iter(WAYS))]),
                "seconds": seconds,
                "starts": starts,
                "two over one": two / one,
                "predictions that differ": differ,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
