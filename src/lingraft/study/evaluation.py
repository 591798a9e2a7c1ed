"""Models evaluated outside of a study: each evaluation is a stage of a store, of the same fingerprint as in a study.

FOLDER/stages/evaluate-<fingerprint>/    as in a run folder
      /cache/                            answers of an interrupted evaluation, verdicts of a judge
      /predictions.parquet               what a reader looks for, copied; of two models in a folder each,
      /manifest.json                     FOLDER/<model>/
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lingraft.errors import ConfigError
from lingraft.evaluate.common_items import common_items
from lingraft.evaluate.predictions import Prediction, read_predictions
from lingraft.evaluate.scores import task_differences, task_scores
from lingraft.evaluate.task_records import read_task_records
from lingraft.evaluate.task_runs import SEEDS
from lingraft.models.adapters import ADAPTER_CONFIG
from lingraft.stage import FinishedStage, given_model
from lingraft.study.execute import Executor
from lingraft.study.stages.evaluate import MANIFEST, PREDICTIONS, Evaluate, Questions, has_missing_verdicts
from lingraft.study.store import RECORD


@dataclass(frozen=True)
class ModelEvaluation:
    """The evaluation of one model.

    Attributes:
        model: As the user names it.
        stage: The finished stage.
        predictions: One per item.
    """

    model: str
    stage: FinishedStage
    predictions: tuple[Prediction, ...]

    @cached_property
    def scores(self) -> dict[str, dict[str, Any]]:
        """By task and language."""
        return task_scores(self.predictions)

    @property
    def tasks(self) -> dict[str, dict[str, Any]]:
        """By task and language, what it is and how it was run."""
        return self.stage.result["tasks"]  # type: ignore[no-any-return]

    @property
    def no_room(self) -> dict[str, str]:
        """By task and language, why its answers do not fit into the model."""
        return self.stage.result["no_room"]  # type: ignore[no-any-return]

    @property
    def not_run(self) -> dict[str, str]:
        """By task and language, why it was not run."""
        return self.stage.result["not_run"] | self.no_room  # type: ignore[no-any-return]

    @property
    def left_out(self) -> list[str]:
        """Items that could not be scored, each with its reason."""
        return self.stage.result["scores"]["left_out"]  # type: ignore[no-any-return]

    @property
    def truncated_prompts(self) -> dict[str, int]:
        """Items whose prompts lost their beginning, by task and language."""
        return self.stage.result["scores"]["truncated_prompts"]  # type: ignore[no-any-return]

    @property
    def noise(self) -> dict[str, Any] | None:
        """What repeating the generating tasks changed; None: they ran once."""
        return self.stage.result["scores"]["noise"]  # type: ignore[no-any-return]

    def to_json(self) -> dict[str, Any]:
        """Return what `lingraft evaluate` prints and records of the model."""
        return {
            "scores": self.scores,
            "tasks": self.tasks,
            "left_out": self.left_out,
            "truncated": self.stage.result["scores"]["truncated"],
            "truncated_prompts": self.truncated_prompts,
            "not_run": self.not_run,
            "noise": self.noise,
            "seeds": SEEDS | {"bootstrap": 0},
        }


@dataclass(frozen=True)
class ModelDifferences:
    """The second of two models against the first, on the items that both were asked alike.

    Attributes:
        differences: By task and language, paired.
        unpaired: By task and language, items that only one of the two has a score of.
        not_paired: By task and language, why the two are not compared.
    """

    differences: dict[str, dict[str, Any]]
    unpaired: dict[str, int]
    not_paired: dict[str, str]


def evaluations(models: Sequence[str], asked: Questions) -> list[Evaluate]:
    """Return the evaluation of each model: a folder, hub id, `embedded:NAME`, or the folder of a LoRA adapter.

    Raises:
        ConfigError: vLLM is to generate with an adapter.
        ModelError: A model cannot be had.
    """
    stages = []
    for name in models:
        if asked.evaluation.backend == "vllm" and (Path(name).expanduser() / ADAPTER_CONFIG).is_file():
            raise ConfigError(
                f"--backend vllm: {name} is an adapter, and vLLM reads whole models; merge it into its base and save "
                "that, or take --backend transformers."
            )
        stages.append(Evaluate(name, given_model(name), asked))
    return stages


def evaluate_into(folder: Path, stage: Evaluate, executor: Executor) -> ModelEvaluation:
    """Return an evaluation, found in the store or made now, and copy its predictions and manifest into a folder.

    One in which verdicts of a judge are missing is gone on with: the judge is asked for these alone.
    """
    found = executor.store.find(stage)
    if found is not None and has_missing_verdicts(read_task_records(found.result["tasks"])):
        executor.store.reopen(stage)
    done = executor.make(stage)
    (folder / RECORD).unlink(missing_ok=True)  # of what was there before
    for name in (PREDICTIONS, MANIFEST):
        shutil.copyfile(done.folder / name, folder / name)
    return ModelEvaluation(stage.label, done, read_predictions(done.folder / PREDICTIONS))


def compare(before: ModelEvaluation, after: ModelEvaluation) -> ModelDifferences:
    """Compare two models on the items that both were asked alike."""
    tasks: list[Mapping[str, Any]] = [one.stage.result["tasks"] for one in (before, after)]
    common = common_items(
        [
            [one for one in own.predictions if all(f"{one.task}/{one.language}" in asked for asked in tasks)]
            for own in (before, after)
        ],
        tasks,
    )
    return ModelDifferences(task_differences(*common.models), common.unpaired, common.refused)


def folder_names(models: Sequence[str]) -> list[str]:
    """Return what the models' folders are called: the last part of each name, numbered where two are alike."""
    names = []
    for model in models:
        folder = Path(model).expanduser()
        last = (
            folder.resolve().name if folder.is_dir() else model.removeprefix("embedded:").rpartition("/")[2]
        )
        names.append(re.sub(r"[^\w.+-]+", "-", last))
    return names if len(set(names)) == len(names) else [f"{name}-{i}" for i, name in enumerate(names, 1)]
