"""Our numbers are the harness's own: its command line on the same checkpoint, items and settings, item by item."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import torch
import yaml

from lingraft.config.schema import Evaluation, EvaluationTask
from lingraft.evaluate.harness import Evaluated, evaluate_model
from lingraft.models.loading import load_model, load_tokenizer

ROWS: dict[str, list[dict[str, Any]]] = {
    "hellaswag": [  # multiple choice, normalised by length
        {
            "activity_label": f"Task {i}",
            "ctx_a": f"She takes {i} apples.",
            "ctx_b": "then she",
            "endings": [
                f"eats {i} of them",
                "goes home [title] at once",
                "sings",
                "counts all the others again",
            ],
            "label": str(i % 4),
            "source_id": f"activitynet~{i}",
        }
        for i in range(8)
    ],
    "xcopa_id": [  # likelihood of two continuations
        {
            "premise": f"Anak itu punya {i} apel.",
            "choice1": f"Dia makan {i} apel.",
            "choice2": "Dia pulang ke rumah.",
            "question": ("cause", "effect")[i % 2],
            "label": i % 2,
            "idx": i,
        }
        for i in range(8)
    ],
    "mgsm_direct_de": [  # generation, with two filters
        {"question": f"Wie viel ist {i} und {i}?", "answer": None, "answer_number": 2 * i} for i in range(8)
    ],
}
METRICS = {"hellaswag": "acc_norm", "xcopa_id": "acc", "mgsm_direct_de": "exact_match"}
FILES = {
    "hellaswag": "hellaswag/hellaswag.yaml",
    "xcopa_id": "xcopa/default_id.yaml",
    "mgsm_direct_de": "mgsm/direct/mgsm_direct_de.yaml",
}
NEW_TOKENS = 12


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("data")
    for name, rows in ROWS.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return {name: folder / f"{name}.jsonl" for name in ROWS}


@pytest.fixture(scope="module")
def varied_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with weights so large that its greedy answers differ from prompt to prompt."""
    folder = tmp_path_factory.mktemp("varied") / "model"
    model = load_model(tiny_model)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(folder)
    load_tokenizer(tiny_model).save_pretrained(folder)
    return folder


def ours(model: Path, files: dict[str, Path], *, chat: bool) -> Evaluated:
    tasks = tuple(
        EvaluationTask(
            task=name,
            data=str(path),
            metric=METRICS[name],
            filter="flexible-extract" if name.startswith("mgsm") else None,
            max_new_tokens=NEW_TOKENS,
        )
        for name, path in files.items()
    )
    evaluation = Evaluation(task_ability=tasks, language_ability=(), batch_size=4, apply_chat_template=chat)
    return evaluate_model(
        load_model(model, dtype=torch.float32), load_tokenizer(model), evaluation, languages=["de"]
    )


def theirs(model: Path, files: dict[str, Path], folder: Path, *, chat: bool) -> tuple[Any, dict[str, Any]]:
    """Run the harness's command line; return its results, and its samples by task."""
    tasks = Path(lm_eval.__file__).parent / "tasks"
    for name, path in files.items():
        split = "validation" if name == "hellaswag" else "test"
        changes = {
            "include": str(tasks / FILES[name]),
            "task": f"local_{name}",
            "tag": None,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {split: str(path)}},
            "training_split": None,
            "validation_split": "validation" if split == "validation" else None,
        }
        (folder / f"local_{name}.yaml").write_text(yaml.safe_dump(changes))
    command = [
        sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", f"pretrained={model},dtype=float32",
        "--tasks", ",".join(f"local_{name}" for name in files), "--include_path", str(folder),
        "--batch_size", "4", "--device", "cpu", "--gen_kwargs", f"max_gen_toks={NEW_TOKENS}",
        "--output_path", str(folder / "out"), "--log_samples", *(["--apply_chat_template"] if chat else []),
    ]  # fmt: skip
    environment = {**os.environ, "HF_DATASETS_CACHE": str(folder / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = (folder / "out").rglob("results_*.json")
    samples = {
        name: [
            json.loads(line)
            for line in next((folder / "out").rglob(f"samples_local_{name}_*.jsonl")).read_text().split("\n")
            if line
        ]
        for name in files
    }
    return json.loads(results.read_text())["results"], samples


@pytest.mark.parametrize("chat", [True, False])
def test_scores_and_answers_are_those_of_the_harness_command_line(
    chat: bool, varied_model: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    found = ours(varied_model, files, chat=chat)
    results, samples = theirs(varied_model, files, tmp_path, chat=chat)
    for name, metric in METRICS.items():
        own = [one for one in found.predictions if one.task == name]
        scored_by = "flexible-extract" if name.startswith("mgsm") else "none"
        logged = [one for one in samples[name] if one["filter"] == scored_by]
        assert len(own) == len(logged) == 8
        assert sum(one.score for one in own) / 8 == pytest.approx(
            results[f"local_{name}"][f"{metric},{scored_by}"]
        )
        assert [one.score for one in own] == [float(one[metric]) for one in logged]
        assert [one.prompt for one in own] == [one["arguments"]["gen_args_0"]["arg_0"] for one in logged]
    generated = [one for one in found.predictions if one.task == "mgsm_direct_de"]
    logged = [one for one in samples["mgsm_direct_de"] if one["filter"] == "flexible-extract"]
    assert [one.response for one in generated] == [one["resps"][0][0] for one in logged]
    assert len({one.response for one in generated}) > 1
    likelihoods = [one.response for one in found.predictions if one.task == "xcopa_id"]
    assert len(set(likelihoods)) == 8
