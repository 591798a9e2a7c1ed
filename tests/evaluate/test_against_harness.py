"""Our numbers are the harness's own: its command line on the same checkpoint, items and settings, item by item.

Tasks of our own run from its command line as well, by `--include_path`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import torch
import yaml

from lingraft.config.schema import Evaluation, EvaluationTask
from lingraft.evaluate.running import Evaluated, evaluate_model
from lingraft.evaluate.task_names import OWN_TASKS, TASKS_FOLDER
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
OWN_ROWS = [  # for three tasks of our own at once
    {
        "id": f"q{i}",
        "context": f"Es gab {i} Bälle.",
        "question": "Wie viele Bälle gab es?",
        "answers": {"text": [str(i)], "answer_start": [7]},
        "text": f"Gestern fielen im Spiel {i} Tore.",
        "summary": f"Es fielen {i} Tore.",
    }
    for i in range(8)
]
ENGLISH_ROWS = [  # for the two of our own that are asked in English alone
    {
        "key": i,
        "prompt": f"Name {i} towns without a comma.",
        "instruction_id_list": ["punctuation:no_comma"],
        "kwargs": [{}],
        "instruction": f"Count to {i}.",
        "output": " ".join(map(str, range(i + 1))),
    }
    for i in range(8)
]
METRICS = {
    "hellaswag": "acc_norm",
    "xcopa_id": "acc",
    "mgsm_direct_de": "exact_match",
    "xquad": "f1",
    "mlqa": "f1",
    "xlsum": "rougeL",
    "worldbook_lookup": "headline",
}
FILES = {
    "hellaswag": "hellaswag/hellaswag.yaml",
    "xcopa_id": "xcopa/default_id.yaml",
    "mgsm_direct_de": "mgsm/direct/mgsm_direct_de.yaml",
}
OWN = {
    "xquad": "xquad",
    "mlqa": "mlqa",
    "xlsum": "xlsum",
    "worldbook_lookup": "worldbook:lookup",
}  # what a study file calls them
NEW_TOKENS = 12
COMMANDS = """
import json, sys
from functools import cache
from lm_eval.__main__ import cli_evaluate
from lm_eval.tasks._index import TaskIndex

build = cache(TaskIndex.build)
TaskIndex.build = staticmethod(lambda paths: build(tuple(paths)))
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["lm_eval", *arguments]
    cli_evaluate()
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("data")
    written = ROWS | {"own": OWN_ROWS, "english": ENGLISH_ROWS}
    for name, rows in written.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return {name: folder / f"{name}.jsonl" for name in written}


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
        if name in FILES
    )
    own = tuple(
        EvaluationTask(
            task=name,
            language="de",
            data=None if name.startswith("worldbook") else str(files["own"]),
            limit=8,
            max_new_tokens=NEW_TOKENS,
        )
        for name in OWN.values()
    )
    evaluation = Evaluation(task_ability=tasks, language_ability=own, batch_size=4, apply_chat_template=chat)
    return evaluate_model(
        load_model(model, dtype=torch.float32), load_tokenizer(model), evaluation, languages=["de"]
    )


@dataclass(frozen=True)
class Theirs:
    """What the harness's command line wrote: its results, and its samples by task."""

    results: dict[str, dict[str, float]]
    samples: dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def theirs(
    varied_model: Path, files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Theirs]:
    """Run the harness's command line in one process, so that it builds its index once; results by kind of run."""
    folder = tmp_path_factory.mktemp("harness")
    tasks = Path(lm_eval.__file__).parent / "tasks"
    for name, file in FILES.items():
        split = "validation" if name == "hellaswag" else "test"
        changes = {
            "include": str(tasks / file),
            "task": f"local_{name}",
            "tag": None,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {split: str(files[name])}},
            "training_split": None,
            "validation_split": "validation" if split == "validation" else None,
        }
        (folder / f"local_{name}.yaml").write_text(yaml.safe_dump(changes))

    def command(kind: str, tasks: Sequence[str], language: str, data: Path, *more: str) -> list[str]:
        return [
            "--model", "hf", "--model_args", f"pretrained={varied_model},dtype=float32",
            "--tasks", ",".join(tasks), "--include_path", str(TASKS_FOLDER),
            "--metadata", json.dumps({"language": language, "data": str(data), "limit": 8}),
            "--batch_size", "4", "--device", "cpu", "--gen_kwargs", f"max_gen_toks={NEW_TOKENS}",
            "--log_samples", "--output_path", str(folder / kind), *more,
        ]  # fmt: skip

    both = [*(str(folder / f"local_{name}.yaml") for name in FILES), *OWN]
    chat = "--apply_chat_template"
    commands = [
        command("chat", both, "de", files["own"], chat),
        command("plain", both, "de", files["own"]),
        command("english", ["instructions", "alpaca_eval"], "en", files["english"], chat),
    ]
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(commands)],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_DATASETS_CACHE": str(folder / "cache")},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {kind: read_output(folder / kind) for kind in ("chat", "plain", "english")}


def read_output(folder: Path) -> Theirs:
    (results,) = folder.rglob("results_*.json")
    samples = {}
    for path in folder.rglob("samples_*.jsonl"):
        name = path.name.removeprefix("samples_").rpartition("_")[0]
        samples[name] = [json.loads(line) for line in path.read_text().split("\n") if line]
    return Theirs(json.loads(results.read_text())["results"], samples)


@pytest.mark.parametrize("chat", [True, False])
def test_scores_and_answers_are_those_of_the_harness_command_line(
    chat: bool, varied_model: Path, files: dict[str, Path], theirs: dict[str, Theirs]
) -> None:
    found = ours(varied_model, files, chat=chat)
    run = theirs["chat" if chat else "plain"]
    for name, metric in METRICS.items():
        key = name if name in OWN else f"local_{name}"
        own = [one for one in found.predictions if one.task == OWN.get(name, name)]
        scored_by = "flexible-extract" if name.startswith("mgsm") else "none"
        logged = [one for one in run.samples[key] if one["filter"] == scored_by]
        results = run.results[key]
        assert len(own) == len(logged) == 8
        assert sum(one.score for one in own) / 8 == pytest.approx(results[f"{metric},{scored_by}"])
        assert [one.score for one in own] == [float(one[metric]) for one in logged]
        assert [one.prompt for one in own] == [one["arguments"]["gen_args_0"]["arg_0"] for one in logged]
        if name == "mgsm_direct_de" or name in OWN:
            assert [one.response for one in own] == [one["resps"][0][0] for one in logged]
            assert len({one.response for one in own}) > 1
    likelihoods = [one.response for one in found.predictions if one.task == "xcopa_id"]
    assert len(set(likelihoods)) == 8


def test_tasks_in_english_alone_run_from_the_harness_command_line(
    varied_model: Path, files: dict[str, Path], theirs: dict[str, Theirs]
) -> None:
    task = EvaluationTask(task="instructions", data=str(files["english"]), max_new_tokens=NEW_TOKENS)
    evaluation = Evaluation(task_ability=(task,), language_ability=(), batch_size=4)
    found = evaluate_model(
        load_model(varied_model, dtype=torch.float32), load_tokenizer(varied_model), evaluation, languages=[]
    )
    logged = theirs["english"].samples["instructions"]
    assert [one.prompt for one in found.predictions] == [
        one["arguments"]["gen_args_0"]["arg_0"] for one in logged
    ]
    assert [one.response for one in found.predictions] == [one["resps"][0][0] for one in logged]
    assert [one.score for one in found.predictions] == [
        float(one["prompt_level_strict_acc"]) for one in logged
    ]
    answers = theirs["english"].samples["alpaca_eval"]
    assert [one["doc"]["output"] for one in answers] == [row["output"] for row in ENGLISH_ROWS]
    assert [one["answered"] for one in answers] == [
        float(bool(one["resps"][0][0].strip())) for one in answers
    ]


def test_every_task_of_our_own_was_run(theirs: dict[str, Theirs]) -> None:
    assert {*OWN_TASKS, "worldbook_lookup"} <= {name for run in theirs.values() for name in run.samples}
