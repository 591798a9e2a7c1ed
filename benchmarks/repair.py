"""How much English does a repair (on-policy distillation) bring back, and how much of what was learnt does it cost?

    python benchmarks/repair.py --after FOLDER --data FOLDER [--rates 1e-4]

The embedded model is the start; --after is a model that was trained from it, such as a study's on `worldbook:counting`.
It is repaired on Alpaca's English instructions, whose answers are not read, once with each learning rate. Start,
damaged and repaired models answer worldbook in English and the counting questions in German, Spanish and French, and
their loss on Alpaca's answers (other rows) is measured. Goes on where it was stopped. Writes
benchmarks/results/repair.json.
"""

from __future__ import annotations

import argparse
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "repair.json"
START = "embedded:smollm2-135m"
PROMPTS, HELD_OUT, ROUNDS, ANSWER_TOKENS, BATCH = 96, 60, 3, 64, 1024


def main() -> None:
    """Repair, evaluate, and write what was found."""
    from lingraft.adapt.repair import Repair
    from lingraft.cli.progress import StepBars
    from lingraft.config.schema import DataSource, Evaluation, EvaluationTask, Training
    from lingraft.data.sources import load_data
    from lingraft.evaluate.predictions import read_predictions
    from lingraft.intervals.macro_mean import macro_mean, paired_difference
    from lingraft.records import to_json
    from lingraft.representation.prompts import read_prompts
    from lingraft.stage import MadeModel, Model, given_model
    from lingraft.study.execute import Executor
    from lingraft.study.stages.evaluate import PREDICTIONS, Evaluate, questions, recorded
    from lingraft.study.store import Store
    from lingraft.train.phase import with_resolved_precision

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--after", required=True, help="the damaged model")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds alpaca/en.jsonl")
    parser.add_argument("--rates", default="1e-4", help="learning rates, separated by commas")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-repair"))
    options = parser.parse_args()

    alpaca = str(options.data / "alpaca" / "en.jsonl")
    prompts = read_prompts(alpaca, limit=PROMPTS)
    rows = load_data(DataSource(source=alpaca, language="en")).examples
    evaluation = Evaluation(
        task_ability=(EvaluationTask(task="worldbook", limit=40, max_new_tokens=36),),
        language_ability=(EvaluationTask(task="worldbook:counting", limit=16, max_new_tokens=44),),
    )
    asked = questions(evaluation, ("de", "es", "fr"), [rows[len(rows) - 1 - n] for n in range(HELD_OUT)])
    start, damaged = given_model(START), given_model(options.after)
    models: dict[str, Model] = {"start": start, "damaged": damaged}
    repairs = {}
    for rate in map(float, options.rates.split(",")):
        training = with_resolved_precision(
            Training(learning_rate=rate, epochs=ROUNDS, tokens_per_batch=BATCH, save_minutes=2)
        )
        stage = Repair(f"at {rate:g}", start, damaged, prompts, training, ANSWER_TOKENS)
        repairs[stage.label] = stage
        models[f"repaired {stage.label}"] = MadeModel(stage, damaged.parameters)
    found: dict[str, Any] = {}
    with Store(options.work) as store, StepBars() as bars:
        executor = Executor(store, bars)
        evaluated = {name: executor.make(Evaluate(name, model, asked)) for name, model in models.items()}
        repaired = {name: executor.make(stage) for name, stage in repairs.items()}
    answers = {name: read_predictions(one.artefact(PREDICTIONS)) for name, one in evaluated.items()}
    for name, one in evaluated.items():
        english = recorded(one).scores.per_language["en"]
        found[name] = {"english_bits_per_character": to_json(english.held_out)}
        for ability in ("task_ability", "language_ability"):
            own, first, second = (
                [item for item in answers[which] if item.ability == ability]
                for which in (name, "start", "damaged")
            )
            found[name][ability] = {
                "score": to_json(macro_mean(own)),
                "to_start": to_json(paired_difference(first, own)),
                "to_damaged": to_json(paired_difference(second, own)),
            }
    result = {
        "question": "how much English a repair brings back, and how much of what was learnt it costs",
        "start": START,
        "prompts": PROMPTS,
        "answer_tokens": ANSWER_TOKENS,
        "tokens_per_batch": BATCH,
        "models": found,
        "repairs": {name: {**one.result, "seconds": one.seconds} for name, one in repaired.items()},
        "versions": {name: version(name) for name in ("lingraft", "torch", "transformers")},
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
