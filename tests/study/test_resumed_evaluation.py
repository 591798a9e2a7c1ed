"""An evaluation stage that was interrupted goes on from the answers that it has, and ends as one that was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lingraft.config.schema import Evaluation, EvaluationTask
from lingraft.models.generation import Generated, TransformersGenerator
from lingraft.records import read_json
from lingraft.stage import RECORD, FinishedStage, GivenModel, StageProgress
from lingraft.study.events import Watcher
from lingraft.study.execute import Executor
from lingraft.study.stages.evaluate import Evaluate, questions
from lingraft.study.store import Store

TASK = EvaluationTask(task="worldbook:lookup", limit=4, max_new_tokens=4)
EVALUATION = Evaluation(task_ability=(TASK,), language_ability=(TASK,), batch_size=2, repeats=2)


class Interrupting(Watcher):
    """Stops the stage when this many items are answered."""

    def __init__(self, at: int) -> None:
        self._at = at

    def stage_progressed(self, progress: StageProgress) -> None:
        if progress.done == self._at:
            raise KeyboardInterrupt


def evaluated(model: Path, folder: Path, watcher: Watcher) -> FinishedStage:
    with Store(folder) as store:
        evaluate = Evaluate("model", GivenModel({"weights": "x"}, model), questions(EVALUATION, ["de"]))
        return Executor(store, watcher).make(evaluate)


def test_a_killed_evaluation_stage_is_resumed(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generated: list[int] = []
    inner = TransformersGenerator.continue_batch

    def watched(self: TransformersGenerator, prompts: Any, *others: Any) -> list[Generated]:
        generated.append(len(prompts))
        return inner(self, prompts, *others)

    monkeypatch.setattr(TransformersGenerator, "continue_batch", watched)
    undisturbed = evaluated(tiny_model, tmp_path / "undisturbed", Watcher())
    assert generated == [2] * 8
    generated.clear()
    with pytest.raises(KeyboardInterrupt):
        evaluated(tiny_model, tmp_path / "killed", Interrupting(10))  # in the second round
    assert generated == [2] * 5
    resumed = evaluated(tiny_model, tmp_path / "killed", Watcher())
    assert generated == [2] * 8
    assert read_json(resumed.folder / RECORD) == read_json(undisturbed.folder / RECORD)
    assert not list(tmp_path.rglob("answers-*.jsonl"))
    noise = resumed.result["scores"]["noise"]
    assert noise["repeats"] == 2
    assert len(noise["language_ability"]["scores"]) == 2
    assert resumed.result["scores"]["answers"]["n"] == 8
