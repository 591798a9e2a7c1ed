"""Models evaluated outside of a study: each evaluation is a stage of a store, of the same fingerprint as in a study.

FOLDER/stages/evaluate-<fingerprint>/    as in a run folder
      /cache/                            answers of an interrupted evaluation, verdicts of a judge
      /predictions.parquet               what a reader looks for, copied; of two models in a folder each,
      /manifest.json                     FOLDER/<model>/
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lingraft.config.paths import user_path
from lingraft.config.schema import Evaluation
from lingraft.errors import ConfigError
from lingraft.evaluate.catalogue import data_places
from lingraft.evaluate.common_items import common_items
from lingraft.evaluate.predictions import Prediction, read_predictions
from lingraft.evaluate.results import EvaluationRecord, ModelDifferences, TaskScore
from lingraft.evaluate.scores import task_differences
from lingraft.evaluate.selection import entries
from lingraft.evaluate.task_names import is_task_file
from lingraft.evaluate.task_runs import SEEDS
from lingraft.intervals.changes import DEFAULT_MARGIN, Margins
from lingraft.judge.win_rate import ALPACA_EVAL
from lingraft.models.tensor_files import is_adapter
from lingraft.records import to_json, write_bytes_atomically
from lingraft.stage import RECORD, Json, given_model
from lingraft.study.execute import Executor
from lingraft.study.reach import judge_failure
from lingraft.study.stages.evaluate import (
    MANIFEST,
    PREDICTIONS,
    Evaluate,
    Questions,
    has_missing_verdicts,
    recorded,
)

FORMAT = 2
"""Of what `lingraft evaluate` prints and records of a model; without one it is 1, of earlier versions."""


@dataclass(frozen=True)
class ModelEvaluation:
    """The evaluation of one model.

    Attributes:
        model: As the user names it.
        record: What its stage recorded.
        predictions: One per item.
    """

    model: str
    record: EvaluationRecord
    predictions: tuple[Prediction, ...]

    @property
    def scores(self) -> dict[str, TaskScore]:
        """By task and language, in the order in which they were run."""
        names = dict.fromkeys(one.label for one in self.predictions)
        return {name: self.record.scores.tasks[name] for name in names}

    @property
    def not_run(self) -> dict[str, str]:
        """By task and language, why it was not run."""
        return self.record.not_run | self.record.no_room

    @property
    def unscored_tasks(self) -> set[str]:
        """Tasks that were run in no language."""
        scored, missing = (
            {name.rpartition("/")[0] for name in names} for names in (self.record.scores.tasks, self.not_run)
        )
        return missing - scored

    def to_json(self) -> dict[str, Json]:
        """Return what `lingraft evaluate` prints and records of the model."""
        return {"format": FORMAT, **to_json(self.record), "seeds": SEEDS | {"bootstrap": 0}}


def not_run_lines(asked: Questions, data_dir: str | None) -> list[str]:
    """Return of each task that cannot be run why, and where its data were looked for.

    Args:
        asked: What is asked.
        data_dir: Folder of local copies; None: none.
    """
    lines = []
    for one, reason in asked.not_run.items():
        task, _, language = one.rpartition("/")
        line = f"{one}: not run: {reason.rstrip('.')}."
        is_judge_missing = task == ALPACA_EVAL and asked.evaluation.judge is None
        if not is_judge_missing and not is_task_file(task):  # such a file says itself where its data lie
            line += f" Its data: {data_places(task, language, data_dir)}."
        lines.append(line)
    return lines


def evaluations(
    models: Sequence[str], asked: Questions, *, trust_remote_code: bool = False
) -> list[Evaluate]:
    """Return the evaluation of each model: a folder, hub id, `embedded:NAME`, or the folder of a LoRA adapter.

    Raises:
        ConfigError: vLLM is to generate with an adapter.
        ModelError: A model cannot be had.
    """
    stages = []
    for name in models:
        if asked.evaluation.backend == "vllm" and is_adapter(user_path(name)):
            raise ConfigError(
                f"--backend vllm: {name} is an adapter, and vLLM reads whole models; merge it into its base and save "
                "that, or take --backend transformers."
            )
        model = given_model(name, trust_remote_code=trust_remote_code)
        stages.append(Evaluate(name, model, asked, trust_remote_code))
    return stages


def _check_judge(asked: Evaluation) -> None:
    failure = None
    if any(entry.task == ALPACA_EVAL for _, entry in entries(asked)):
        failure = judge_failure(asked, may_ask=False)
    if failure is not None:
        raise ConfigError(failure.removeprefix("evaluate."))


def evaluate_in(stage: Evaluate, executor: Executor) -> ModelEvaluation:
    """Return an evaluation, found in the store or made now.

    One in which verdicts of a judge are missing is gone on with: the judge is asked for these alone.

    Raises:
        ConfigError: Its judge cannot be reached, does not take the key, or has no such model.
    """
    found = executor.store.find(stage)
    if found is None:
        _check_judge(stage.questions.evaluation)  # before the model answers in vain
    elif has_missing_verdicts(recorded(found).tasks):
        executor.store.reopen(stage)
    done = executor.make(stage)
    return ModelEvaluation(stage.label, recorded(done), read_predictions(done.artefact(PREDICTIONS)))


def evaluate_into(folder: Path, stage: Evaluate, executor: Executor) -> ModelEvaluation:
    """Return an evaluation as `evaluate_in` does, and copy its predictions and manifest into a folder."""
    found = evaluate_in(stage, executor)
    done = executor.make(stage)
    (folder / RECORD).unlink(missing_ok=True)  # of what was there before
    for name in (PREDICTIONS, MANIFEST):
        write_bytes_atomically(folder / name, done.artefact(name).read_bytes())
    return found


def compare(
    before: ModelEvaluation,
    after: ModelEvaluation,
    folders: tuple[str, str],
    margin: float = DEFAULT_MARGIN,
) -> ModelDifferences:
    """Compare two models on the items that both were asked alike.

    Args:
        before: The first model.
        after: The second.
        folders: Where their predictions are, in the folder of results.
        margin: A change up to it counts as none.
    """
    tasks = [one.record.tasks for one in (before, after)]
    common = common_items(
        [
            [one for one in own.predictions if all(one.label in asked for asked in tasks)]
            for own in (before, after)
        ],
        tasks,
    )
    return ModelDifferences(
        compared=(before.model, after.model),
        predictions=(f"{folders[0]}/{PREDICTIONS}", f"{folders[1]}/{PREDICTIONS}"),
        differences=task_differences(*common.models, margins=Margins(default=margin)),
        unpaired=common.unpaired,
        not_paired=common.refused,
    )


def folder_names(models: Sequence[str]) -> list[str]:
    """Return what the models' folders are called: the last part of each name, numbered where two are alike."""
    names = []
    for model in models:
        folder = user_path(model)
        last = (
            folder.resolve().name if folder.is_dir() else model.removeprefix("embedded:").rpartition("/")[2]
        )
        names.append(re.sub(r"[^\w.+-]+", "-", last))
    return names if len(set(names)) == len(names) else [f"{name}-{i}" for i, name in enumerate(names, 1)]
