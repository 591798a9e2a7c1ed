"""A result is read back by the version that wrote it, and by no other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lingraft.config.load import load_study
from lingraft.errors import ConfigError, EvaluationError
from lingraft.evaluate.predictions import Prediction
from lingraft.evaluate.results import EvaluationRecord
from lingraft.evaluate.scores import score_summary
from lingraft.evaluate.task_records import DataRevision, EvaluationSettings, ScoreSettings, TaskRecord
from lingraft.records import to_json
from lingraft.report.page import render_page
from lingraft.stage import FinishedStage
from lingraft.study.result import FailedCell, Precision, StudyResult, read_result, write_result
from lingraft.study.run import run_study
from lingraft.study.stages.evaluate import recorded
from lingraft.study.summary import Summary

ASKED = ScoreSettings(EvaluationSettings("e 1", "1", "bf16", "x"), {})


@pytest.fixture
def failed(tmp_path: Path) -> StudyResult:
    """Return the result of a study of which nothing is done."""
    return StudyResult(
        run=str(tmp_path),
        base=None,
        base_reason="no memory",
        base_predictions=None,
        phase_ones=(),
        cells=(
            FailedCell(data="d", strategy="lora", seed=0, options={"rank": [1, None]}, reason="no memory"),
        ),
        over_seeds=(),
        limits={},
        precision=Precision(training=(), evaluation="float32", device="cpu"),
        tokenizer_cost={},
        contamination=None,
        language_notes=("a note",),
    )


def test_a_result_is_written_and_read_back(failed: StudyResult, tmp_path: Path) -> None:
    write_result(failed)
    assert read_result(tmp_path) == failed
    assert (failed.done, failed.has_seeds) == ((), False)
    assert to_json(failed)["cells"][0]["status"] == "failed"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 0}, "run the study anew"),
        ({"format": None}, "run the study anew"),
        ({"cells": [{"status": "failed"}]}, r"cells\.0.*run the study anew"),
        ({"base_reason": 5}, "base_reason: .*string"),
        ({"more": 1}, "fields that StudyResult does not have"),
    ],
)
def test_another_format_is_refused_with_what_to_do(
    failed: StudyResult, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    (tmp_path / "result.json").write_text(json.dumps(to_json(failed) | change), encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as caught:
        read_result(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{}", "[]", "{", '{"cells": []}'])
def test_what_is_no_result_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "result.json").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"result\.json: is not of this version's format"):
        read_result(tmp_path)


def test_an_evaluation_is_read_as_it_was_recorded_and_another_form_is_refused(tmp_path: Path) -> None:
    record = EvaluationRecord(
        scores=score_summary([Prediction("task_ability", "t", "en", "c", "i", 1.0, "p", "r", "r")], {}),
        tasks={
            "t/en": TaskRecord(
                "1", "m", "none", 1, "", "", (DataRevision(files={"a.jsonl": "0" * 64}),), None, ASKED
            )
        },
        precision="float32",
        not_run={},
        no_room={"u/en": "too long"},
    )
    stage = FinishedStage("evaluate", "0" * 16, tmp_path, to_json(record), {}, reused=False)
    assert recorded(stage) == record
    del stage.result["tasks"]["t/en"]["settings"]
    with pytest.raises(EvaluationError, match=r"another version of lingraft .*; evaluate the model anew"):
        recorded(stage)


def test_a_folder_without_a_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a study that ran to its end"):
        read_result(tmp_path)


def test_a_cell_that_fails_when_it_is_summed_up_is_in_no_mean_over_seeds(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise OSError("disk is gone")

    monkeypatch.setattr(Summary, "_cost", fails)
    worldbook = [{"task": "worldbook", "limit": 1, "max_new_tokens": 2}]
    content = {
        "name": "tiny",
        "phases": [
            {"name": "one", "checkpoint": str(tiny_model)},
            {
                "name": "two",
                "data": {"de": {"source": "worldbook:counting/de", "limit": 4}},
                "strategies": ["plain"],
            },
        ],
        "seeds": [0, 1],
        "held_out": 0,
        "measures": [],
        "contamination": None,
        "evaluate": {"task_ability": worldbook, "language_ability": worldbook},
    }
    path = tmp_path / "study.yaml"
    path.write_text(json.dumps(content))  # JSON is YAML
    study = load_study(path)
    result = run_study(study, runs=tmp_path)
    assert [cell.status for cell in result.cells] == ["failed", "failed"]
    assert result.over_seeds == ()
    assert "disk is gone" in render_page(result, study)
