"""How hard are the 300 instruction prompts for a model, and how much of its score would come unasked?

    python benchmarks/instructions.py [--model embedded:smollm2-135m] [--limit 60] [--answers FILE] [--save]

Greedy answers in bf16 through the chat template, scored by the harness's verifiers. "Unasked" scores, against each
prompt's instructions, the answers that the same model gave to prompts with none of these instruction types: what
plain text follows by chance. "Taken for English": the share of the 300 prompts, themselves English text,
that the verifiers of letter case accept once they are in that case; what is missing to 1 is their error, not a
model's. --save writes benchmarks/results/instructions.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lingraft.evaluate.own_task import own_task
from lingraft.evaluate.predictions import Prediction
from lingraft.evaluate.tasks.instructions.task import (
    NEW_TOKENS,
    Row,
    read_instructions,
    score_response,
)
from lingraft.intervals.macro_mean import macro_mean

RESULTS = Path(__file__).parent / "results" / "instructions.json"
SCORE = "prompt_level_strict_acc"
BY_INSTRUCTION = "inst_level_strict_acc"

TOKENS_PER_BATCH = 32768


def answers_of(model_name: str, rows: Sequence[Row], kept: Path, batch_size: int) -> dict[str, str]:
    """Return the model's answer to each prompt; those that `kept` holds are not asked again, new ones are added."""
    import torch

    from lingraft.models.loading import load_model, load_tokenizer

    known = _read_answers(kept)
    missing = [i for i, row in enumerate(rows) if row["prompt"] not in known]
    if missing:
        model, tokenizer = load_model(model_name, dtype=torch.bfloat16), load_tokenizer(model_name)
    for start in range(0, len(missing), batch_size):
        portion = missing[start : start + batch_size]
        for index, answer in zip(portion, _ask(model, tokenizer, portion, batch_size), strict=True):
            known[rows[index]["prompt"]] = answer
        lines = [json.dumps({"prompt": prompt, "answer": answer}) + "\n" for prompt, answer in known.items()]
        kept.write_text("".join(lines), encoding="utf-8")
        print(f"{start + len(portion)} of {len(missing)} prompts", file=sys.stderr, flush=True)
    return known


def _read_answers(kept: Path) -> dict[str, str]:
    lines = kept.read_text(encoding="utf-8").split("\n") if kept.is_file() else []
    found = [json.loads(line) for line in lines if line]
    return {one["prompt"]: one["answer"] for one in found}


def _ask(model: Any, tokenizer: Any, indices: list[int], batch_size: int) -> list[str]:
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    from lingraft.evaluate.answers import AnswerLog, ItemCount
    from lingraft.evaluate.in_memory import Batching, InMemoryModel

    task = own_task("instructions", "en")
    batching = Batching(batch_size, TOKENS_PER_BATCH)
    results = simple_evaluate(
        model=InMemoryModel(
            model, tokenizer, batching, AnswerLog(), ItemCount(len(indices), None), chat=True
        ),
        tasks=[task],
        samples={task.config.task: indices},
        apply_chat_template=True,
        bootstrap_iters=0,
        log_samples=True,
        task_manager=TaskManager(include_defaults=False),
    )
    samples = {one["doc"]["key"]: one for one in results["samples"][task.config.task]}
    keys = [task.eval_docs[index]["key"] for index in indices]
    return [samples[key]["filtered_resps"][0] for key in keys]


def prompt_level(rows: Sequence[Row], scores: Sequence[float]) -> dict[str, Any]:
    """Return the mean over prompts with its interval."""
    predictions = [
        Prediction(
            "task_ability",
            "instructions",
            "en",
            str(row["key"]),
            str(row["key"]),
            score,
            row["prompt"],
            "",
            "",
        )
        for row, score in zip(rows, scores, strict=True)
    ]
    return asdict(macro_mean(predictions))


def unasked(row: Row, rows: Sequence[Row], answers: Sequence[str]) -> tuple[float, list[float]]:
    """Return how often answers to prompts without any of this row's types follow all, and each, of its instructions."""
    types = set(row["instruction_id_list"])
    others = [
        answer
        for other, answer in zip(rows, answers, strict=True)
        if not types & set(other["instruction_id_list"])
    ]
    found = [score_response(row, answer) for answer in others]
    each = zip(*(one[BY_INSTRUCTION] for one in found), strict=True)
    return sum(one[SCORE] for one in found) / len(found), [sum(followed) / len(found) for followed in each]


def by_type(
    rows: Sequence[Row], followed: Sequence[Sequence[bool]], by_chance: Sequence[Sequence[float]]
) -> dict[str, dict[str, float]]:
    """Return, per instruction type: how many, the share followed, and the share that answers follow unasked."""
    groups: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row, asked, chance in zip(rows, followed, by_chance, strict=True):
        for name, one, other in zip(row["instruction_id_list"], asked, chance, strict=True):
            groups[name].append((float(one), other))
    return {
        name: {
            "n": len(pairs),
            "followed": sum(one for one, _ in pairs) / len(pairs),
            "unasked": round(sum(other for _, other in pairs) / len(pairs), 3),
        }
        for name, pairs in sorted(groups.items())
    }


def taken_for_english(rows: Sequence[Row]) -> dict[str, float]:
    """Return the share of the prompts, put in each letter case, that its verifier takes for English."""
    found = {}
    for case, change in (("capital", str.upper), ("lowercase", str.lower)):
        asked = Row(key=0, prompt="", instruction_id_list=[f"change_case:english_{case}"], kwargs=[{}])
        found[case] = sum(score_response(asked, change(row["prompt"]))[SCORE] for row in rows) / len(rows)
    return found


def summary(rows: Sequence[Row], answers: Sequence[str]) -> dict[str, Any]:
    """Return what is reported of one model's answers."""
    scores = [score_response(row, answer) for row, answer in zip(rows, answers, strict=True)]
    chance = [unasked(row, rows, answers) for row in rows]
    followed = [one[BY_INSTRUCTION] for one in scores]
    single = [i for i, row in enumerate(rows) if len(row["instruction_id_list"]) == 1]
    all_followed = [one for row in followed for one in row]
    return {
        "prompts": f"the first {len(rows)} of {len(read_instructions())}",
        SCORE: prompt_level(rows, [float(one[SCORE]) for one in scores]),
        "of_prompts_with_one_instruction": prompt_level(
            [rows[i] for i in single], [float(scores[i][SCORE]) for i in single]
        ),
        "prompt_level_loose_acc": prompt_level(
            rows, [float(one["prompt_level_loose_acc"]) for one in scores]
        ),
        "instructions": len(all_followed),
        BY_INSTRUCTION: sum(all_followed) / len(all_followed),
        "prompt_level_unasked": sum(one for one, _ in chance) / len(chance),
        "by_type": by_type(rows, followed, [each for _, each in chance]),
        "taken_for_english": taken_for_english(read_instructions()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="embedded:smollm2-135m")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument(
        "--answers", type=Path, help="JSON Lines file: answers there are kept, new ones added"
    )
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    rows = read_instructions()[: options.limit]
    with tempfile.TemporaryDirectory() as folder:
        kept = options.answers or Path(folder) / "answers.jsonl"
        known = answers_of(options.model, rows, kept, options.batch_size)
    answers = [known[row["prompt"]] for row in rows]
    result = {
        "question": "how hard are the instruction prompts for a model, and how much would it follow unasked",
        "model": options.model,
        "data": sha256(json.dumps(rows).encode()).hexdigest()[:16],
        "settings": {
            "decoding": "greedy",
            "precision": "bfloat16",
            "max_new_tokens": NEW_TOKENS,
            "batch_size": options.batch_size,
        },
        **summary(rows, answers),
        "versions": {
            name: version(name) for name in ("lingraft", "lm-eval", "torch", "transformers", "langdetect")
        },
        "python": platform.python_version(),
    }
    if options.save:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
