"""An evaluation by several processes writes the files of one by a single process, also where one of them is killed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml

from lingraft.config.schema import Evaluation, EvaluationTask
from lingraft.data.worldbook import load_items
from lingraft.models.loading import load_model, load_tokenizer
from lingraft.records import read_json
from lingraft.stage import RECORD, FinishedStage, StageProgress, given_model
from lingraft.study.events import Watcher
from lingraft.study.execute import Executor
from lingraft.study.stages.evaluate import HELD_OUT, PREDICTIONS, Evaluate, questions
from lingraft.study.store import Store


class Killing(Watcher):
    """Kills a process that answers when the first item is answered."""

    def __init__(self, number: int | None) -> None:
        self.notes: list[str] = []
        self._number = number

    def stage_progressed(self, progress: StageProgress) -> None:  # noqa: ARG002
        if self._number is not None:
            workers = [
                one for one in psutil.Process().children() if "lingraft.models.worker" in one.cmdline()
            ]
            os.kill(workers[0].pid, self._number)
            self._number = None

    def noted(self, message: str) -> None:
        self.notes.append(message)


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, moved so that answers differ and some of them end."""
    folder = tmp_path_factory.mktemp("moved") / "model"
    loaded = load_model(tiny_model)
    with torch.no_grad():
        torch.manual_seed(1)
        for parameter in loaded.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    loaded.save_pretrained(folder)
    load_tokenizer(tiny_model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def evaluate(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., FinishedStage]:
    """Evaluates by generation, by likelihoods, by beams, which go the harness's own way, and on held-out rows."""
    base = tmp_path_factory.mktemp("tasks")
    rows = [{"q": f"what is {i}", "a": str(i % 4)} for i in range(12)]
    (base / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}},
        "test_split": "test",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{a}}",
    }
    choices = {"output_type": "multiple_choice", "doc_to_choice": ["0", "1", "2", "3 and 4"]}
    beams = {
        "output_type": "generate_until",
        "generation_kwargs": {"num_beams": 2, "max_gen_toks": 6, "until": []},
        "metric_list": [{"metric": "exact_match"}],
    }
    for name, own in (("choices", choices | {"metric_list": [{"metric": "acc"}]}), ("beams", beams)):
        (base / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **common, **own}))
    lookup = EvaluationTask(task="worldbook:lookup", limit=12, max_new_tokens=24)
    held_out = [item.example for item in load_items("lookup", "de", "train")[:12]]

    def run(precision: Any, workers: int, watcher: Watcher) -> FinishedStage:
        asked = questions(
            Evaluation(
                task_ability=(
                    lookup,
                    EvaluationTask(task="choices.yaml", limit=12),
                    EvaluationTask(task="beams.yaml", limit=3),
                ),
                language_ability=(lookup,),
                batch_size=4,
                tokens_per_batch=1024,
                precision=precision,
            ),
            ["de"],
            held_out,
            base_folder=base,
        )
        with Store(tmp_path_factory.mktemp("run")) as store:
            stage = Evaluate("model", given_model(str(model)), replace(asked, workers=workers))
            return Executor(store, watcher).make(stage)

    return run


@pytest.mark.parametrize(
    ("precision", "workers", "number"),
    [("float32", 2, signal.SIGKILL), pytest.param("bf16", 3, None, marks=pytest.mark.slow)],
)
def test_predictions_and_losses_do_not_depend_on_the_number_of_processes(
    evaluate: Callable[..., FinishedStage], precision: str, workers: int, number: int | None
) -> None:
    one = evaluate(precision, 1, Watcher())
    killing = Killing(number)
    several = evaluate(precision, workers, killing)
    for name in (PREDICTIONS, HELD_OUT):
        assert several.artefact(name).read_bytes() == one.artefact(name).read_bytes()
    assert read_json(several.folder / RECORD) == read_json(one.folder / RECORD)
    died = [note for note in killing.notes if "its batch is asked again" in note or "had no batch" in note]
    assert len(died) == (0 if number is None else 1)
    assert not [
        child for child in psutil.Process().children() if child.is_running() and "worker" in child.name()
    ]
