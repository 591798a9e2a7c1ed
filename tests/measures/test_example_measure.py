"""A new measure is one class and one line: its stages stand in the plan, its column in table, page and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from lingraft.config.schema import Study
from lingraft.errors import ConfigError
from lingraft.measures import REGISTRY
from lingraft.measures.base import (
    FROM_PREVIOUS,
    Column,
    Figure,
    Found,
    Measure,
    Measured,
    MeasuredCell,
    Taken,
)
from lingraft.models.checkpoints import CheckpointReader
from lingraft.records import read_json
from lingraft.report.page import render_page
from lingraft.report.plan import plan_table
from lingraft.report.runs import report_of
from lingraft.report.tables import study_table, training_table
from lingraft.stage import FinishedStage, Json, Model, StageSpec, Work, Workplace, stages_of
from lingraft.study.run import forecast_study, run_study


class LargestChange(Measure):
    """The largest absolute change of any weight."""

    name: ClassVar[str] = "largest_change"
    title: ClassVar[str] = "the largest change"
    meaning: ClassVar[str] = "Largest change: of any weight from Phase 1."
    columns: ClassVar[tuple[Column, ...]] = (Column("largest change", "of any weight", "change"),)
    phase_columns: ClassVar[tuple[Column, ...]] = (
        Column("largest step", "of any weight from the phase before", "change", FROM_PREVIOUS),
    )

    def stages(self, cell: MeasuredCell) -> Sequence[Taken]:
        return [
            Taken(
                {
                    place: Largest(f"{place} to {phase.label}", start.model, phase.model)
                    for place, start in phase.starts.items()
                }
            )
            for phase in cell.phases
        ]

    def found(self, stage: FinishedStage) -> Found:
        return Found({"change": Figure(stage.result["change"])})

    def legend(self, measured: Sequence[Measured]) -> str:
        return f"{self.meaning} In {len(measured)} cells."


@dataclass(frozen=True, eq=False)
class Names(StageSpec):
    """The names of a model's weights: a stage that only the measure's own stage knows."""

    kind: ClassVar[str] = "names"

    model: Model

    @property
    def inputs(self) -> Mapping[str, Json]:
        return {"model": self.model.identity}

    @property
    def parents(self) -> tuple[StageSpec, ...]:
        return stages_of(self.model)

    def work(self, place: Workplace) -> Work:
        (place.folder / "names").write_text("\n".join(CheckpointReader(place.model(self.model)).names))
        return Work({}, {})


@dataclass(frozen=True, eq=False)
class Largest(StageSpec):
    """The largest absolute difference of two models' weights."""

    kind: ClassVar[str] = "largest"

    first: Model
    second: Model

    @property
    def inputs(self) -> Mapping[str, Json]:
        return {"first": self.first.identity, "second": self.second.identity}

    @property
    def parents(self) -> tuple[StageSpec, ...]:
        return (*stages_of(self.first, self.second), Names("before", self.first))

    def work(self, place: Workplace) -> Work:
        one, other = (CheckpointReader(place.model(model)) for model in (self.first, self.second))
        names = (place.folder_of(Names("before", self.first)) / "names").read_text().splitlines()
        changes = (one.tensor(name).sub(other.tensor(name)).abs().max() for name in names)
        return Work({"change": float(max(changes))}, {})


def study(model: Path) -> Study:
    task = {"task": "worldbook:lookup", "limit": 2, "max_new_tokens": 2}
    return Study.model_validate(
        {
            "name": "example",
            "phases": [
                {"name": "one", "checkpoint": str(model)},
                {"name": "two", "data": {"german": {"source": "worldbook:lookup/de", "limit": 8}}},
            ],
            "training": {"learning_rate": 1e-3, "tokens_per_batch": 1024},
            "held_out": 1,
            "contamination": None,
            "measures": ["largest_change"],
            "evaluate": {"task_ability": [task], "language_ability": [task]},
        }
    )


def test_a_registered_measure_stands_in_plan_table_page_and_json(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = study(tiny_model)
    with pytest.raises(ConfigError, match="'largest_change' is not a measure"):
        run_study(asked, runs=tmp_path / "refused")
    monkeypatch.setitem(REGISTRY._entries, "largest_change", f"{__name__}:LargestChange")
    forecast = forecast_study(asked, runs=tmp_path)
    planned = [row for row in forecast.stages if row.kind == "largest"]
    assert [(row.is_finished, row.label) for row in planned] == [
        (False, "from_previous to german / plain / seed 0")
    ]
    shown = plan_table(forecast)
    assert [(row[0], row[3], row[4]) for row in shown.rows] == [
        ("evaluate", "to do", "kept"),
        ("train", "to do", "kept"),
        ("evaluate", "to do", "kept"),
        ("names", "to do", "kept"),
        ("largest", "to do", "kept"),
    ]
    training = shown.rows[1]
    assert training[2] == "2", "the evaluation and the measure read the trained model"
    assert training[7].endswith(("MB", "GB")), "of the whole process"
    assert not (tmp_path / "example").exists(), "showing the plan writes nothing"
    result = run_study(asked, runs=tmp_path)
    assert all(row.is_finished for row in forecast_study(asked, runs=tmp_path).stages)

    (path,) = (tmp_path / "example").glob("stages/largest-*/record.json")
    change = read_json(path)["result"]["change"]
    assert change > 0
    table, trained = study_table(result), training_table(result)
    place = [column.title for column in table.columns].index("largest change")
    assert table.rows[-1][place] == f"{change:.3f}"
    assert trained is not None
    assert "largest step" in [column.title for column in trained.columns]
    page = render_page(report_of(result, asked))
    assert "Largest change: of any weight from Phase 1. In 1 cells." in page
    stored = read_json(tmp_path / "example" / "result.json")["cells"][0]["phases"][-1]["measures"]
    assert stored["largest_change"]["found"]["from_phase_one"]["figures"]["change"]["value"] == change
