"""A result is read back by the version that wrote it, and by no other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lingraft.config.load import load_study
from lingraft.errors import ConfigError, EvaluationError
from lingraft.evaluate.predictions import Prediction
from lingraft.evaluate.results import EvaluationRecord
from lingraft.evaluate.scores import score_summary
from lingraft.evaluate.task_records import DataRevision, EvaluationSettings, ScoreSettings, TaskRecord
from lingraft.records import from_json, to_json
from lingraft.report.page import render_page
from lingraft.report.runs import report_of
from lingraft.stage import FinishedStage
from lingraft.study.events import Watcher
from lingraft.study.result import (
    CellResult,
    FailedCell,
    PhaseCost,
    Precision,
    StudyResult,
    read_result,
    write_result,
)
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
        unused=(),
    )


def test_a_result_is_written_and_read_back(failed: StudyResult, tmp_path: Path) -> None:
    write_result(failed)
    assert read_result(tmp_path) == failed
    assert (failed.done, failed.has_seeds) == ((), False)
    assert to_json(failed)["cells"][0]["status"] == "failed"


def test_a_cost_that_an_older_version_wrote_has_no_utilisation() -> None:
    cost = PhaseCost(
        prepare_seconds=0.0,
        training_seconds=2.0,
        resumed_from=None,
        combine_seconds=0.0,
        peak_bytes=1,
        mfu=0.4,
    )
    written = to_json(cost)
    assert from_json(PhaseCost, written) == cost
    del written["mfu"]
    assert from_json(PhaseCost, written) == replace(cost, mfu=None)


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
    with pytest.raises(ConfigError, match="holds no result"):
        read_result(tmp_path)


def small_study(folder: Path, model: Path) -> Path:
    """Write a study of one cell for each seed, whose Phase 1 is a checkpoint."""
    worldbook = [{"task": "worldbook", "limit": 1, "max_new_tokens": 2}]
    content = {
        "name": "tiny",
        "phases": [
            {"name": "one", "checkpoint": str(model)},
            {
                "name": "two",
                "data": {"de": {"source": "worldbook:counting/de", "limit": 4}},
                "strategies": ["plain"],
            },
        ],
        "seeds": [0],
        "held_out": 0,
        "measures": [],
        "contamination": None,
        "evaluate": {"task_ability": worldbook, "language_ability": worldbook},
    }
    path = folder / "study.yaml"
    path.write_text(json.dumps(content))  # JSON is YAML
    return path


class StopsAt(Watcher):
    """Stops the study, as Ctrl-C does, where a stage begins."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.notes: list[str] = []

    def stage_started(self, label: str) -> None:
        if label.startswith(self.stage):
            raise KeyboardInterrupt

    def noted(self, message: str) -> None:
        self.notes.append(message)


def statuses(result: StudyResult) -> list[tuple[str, int, str]]:
    return [(cell.strategy, cell.seed, cell.status) for cell in result.cells]


def test_what_is_finished_is_seen_while_other_cells_are_made_or_were_stopped(
    tiny_model: Path, tmp_path: Path
) -> None:
    path, folder = small_study(tmp_path, tiny_model), tmp_path / "tiny"
    first = run_study(load_study(path), runs=tmp_path)
    assert (statuses(first), first.unused) == ([("plain", 0, "done")], ())
    seen: list[StudyResult] = []
    with pytest.raises(KeyboardInterrupt):
        run_study(
            load_study(path, ["seeds=[1, 0]"]),
            runs=tmp_path,
            watcher=StopsAt("evaluate"),
            on_result=seen.append,
        )
    stopped = read_result(folder)
    assert statuses(stopped) == [("plain", 1, "pending"), ("plain", 0, "done")]
    assert stopped.cells[1] == first.cells[0]
    assert seen == [stopped]  # before anything is made
    assert len(stopped.phase_ones) == 1

    lines: list[StudyResult] = []
    whole = run_study(load_study(path, ["seeds=[1, 0]"]), runs=tmp_path, on_result=lines.append)
    assert [statuses(one)[0][2] for one in lines] == ["pending", "done", "done"]
    assert (whole.cells[1], whole.over_seeds[0].seeds, whole.unused) == (first.cells[0], 2, ())


def test_what_the_study_file_does_not_list_any_more_is_named_and_comes_back(
    tiny_model: Path, tmp_path: Path
) -> None:
    path, folder = small_study(tmp_path, tiny_model), tmp_path / "tiny"
    whole = run_study(load_study(path, ["seeds=[0, 1]"]), runs=tmp_path)
    one = run_study(load_study(path), runs=tmp_path)
    assert statuses(one) == [("plain", 0, "done")]
    gone = whole.cells[1]
    assert isinstance(gone, CellResult)
    named = {(stage.name, stage.kind, stage.is_finished) for stage in one.unused}
    assert named == {("de / plain / seed 1", kind, True) for kind in ("train", "evaluate")}
    assert {f"{stage.path}/checkpoint" for stage in one.unused if stage.kind == "train"} == {gone.checkpoint}
    assert all(stage.bytes > 1000 and (folder / stage.path).is_dir() for stage in one.unused)
    renamed = ["seeds=[0]", "phases.two.data={german: {source: 'worldbook:counting/de', limit: 4}}"]
    again = run_study(load_study(path, renamed), runs=tmp_path)  # a renamed set is the same model
    assert [(cell.data, cell.status) for cell in again.cells] == [("german", "done")]
    assert again.unused == one.unused  # names of two runs ago are known still
    back = run_study(load_study(path, ["seeds=[0, 1]"]), runs=tmp_path, watcher=StopsAt(""))
    assert (back.cells, back.unused) == (whole.cells, ())


def test_another_study_of_the_same_name_is_noticed_before_anything_is_made(
    tiny_model: Path, tmp_path: Path
) -> None:
    path = small_study(tmp_path, tiny_model)
    run_study(load_study(path), runs=tmp_path)
    watcher = StopsAt("")
    other = ["phases.two.data={de: {source: 'worldbook:lookup/de', limit: 4}}"]
    other.append("evaluate.task_ability=[{task: 'worldbook:lookup', limit: 1, max_new_tokens: 2}]")
    with pytest.raises(KeyboardInterrupt):
        run_study(load_study(path, other), runs=tmp_path, watcher=watcher)
    assert [note for note in watcher.notes if "3 stages, and none of this study" in note]
    assert [cell.status for cell in read_result(tmp_path / "tiny").cells] == ["pending"]


def test_paths_of_a_result_are_in_its_run_folder_wherever_it_is_moved(
    tiny_model: Path, tmp_path: Path
) -> None:
    path = small_study(tmp_path, tiny_model)
    made = run_study(load_study(path), runs=tmp_path / "runs")
    moved = tmp_path / "elsewhere"
    (tmp_path / "runs" / "tiny").rename(moved)
    result = read_result(moved)
    assert result == replace(made, run=str(moved))
    (cell,), (one,) = result.done, result.phase_ones
    assert cell.checkpoint == cell.phases[0].checkpoint
    for inside in (cell.checkpoint, cell.predictions, cell.phase_one_predictions, one.predictions):
        assert inside is not None
        assert (moved / inside).exists()
    assert one.checkpoint is None  # the study names it itself

    without = run_study(load_study(path, ["keep=none"]), runs=tmp_path / "runs")
    assert without.done[0].checkpoint is None
    later = run_study(load_study(path), runs=tmp_path / "runs")
    assert later.done[0].checkpoint is None  # it was discarded, and nothing makes it again


def test_a_cell_that_fails_when_it_is_summed_up_is_in_no_mean_over_seeds(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise OSError("disk is gone")

    monkeypatch.setattr(Summary, "_cost", fails)
    study = load_study(small_study(tmp_path, tiny_model), ["seeds=[0, 1]"])
    result = run_study(study, runs=tmp_path)
    assert [cell.status for cell in result.cells] == ["failed", "failed"]
    assert result.over_seeds == ()
    assert "disk is gone" in render_page(report_of(result, study))
