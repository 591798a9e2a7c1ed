"""What models are compared on where a judge gave some of them no verdict."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest

from lingraft.errors import EvaluationError
from lingraft.evaluate.common_items import common_items
from lingraft.evaluate.predictions import Prediction
from lingraft.evaluate.scores import task_differences
from lingraft.evaluate.task_records import EvaluationSettings, ScoreSettings, TaskRecord
from lingraft.judge.win_rate import JudgeRecord

ASKED = ScoreSettings(EvaluationSettings("e 1", "1", "bf16", "x"), {})
PLAIN = TaskRecord("1", "m", "none", 1, "", "", (), None, ASKED)
JUDGED = replace(PLAIN, judged=cast(JudgeRecord, object()))
TASKS = {"judged/en": JUDGED, "judged/de": JUDGED, "plain/en": PLAIN}


def model(**items: str) -> list[Prediction]:
    """Return predictions of items that are named by letters: those of `judged/de` under `judged_de`."""
    return [
        Prediction("task_ability", task, language or "en", item, item, 1.0, "?", "!", "")
        for name, letters in items.items()
        for task, _, language in [name.partition("_")]
        for item in letters
    ]


def test_only_what_all_models_have_a_verdict_on_is_left_of_a_judged_task() -> None:
    models = [
        model(judged="abc", judged_de="xy", plain="pq"),
        model(judged="bcd", judged_de="xy", plain="pq"),
    ]
    found = common_items(models, [TASKS, TASKS])
    assert found.unpaired == {"judged/en": 2}
    assert list(map(list, found.models)) == [model(judged="bc", judged_de="xy", plain="pq")] * 2
    three = common_items([*models, model(judged="b", judged_de="x", plain="pq")], [TASKS] * 3)
    assert three.unpaired == {"judged/de": 1, "judged/en": 3}


def test_a_missing_item_of_any_other_task_is_still_an_error() -> None:
    found = common_items([model(plain="ab"), model(plain="a")], [TASKS, TASKS])
    assert found.unpaired == {}
    with pytest.raises(EvaluationError, match="same items only"):
        task_differences(*found.models)
