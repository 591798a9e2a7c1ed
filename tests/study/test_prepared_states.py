"""What strategies prepare, in a study: how often it is made, counted, and when it is discarded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lingraft.config.schema import Study
from lingraft.study.events import Watcher
from lingraft.study.run import run_study

SETS = {name: {"source": f"worldbook:lookup/{name}", "limit": 8} for name in ("de", "es")}


def study(model: Path, strategies: list[Any], **changes: Any) -> Study:
    """Return a study from a checkpoint, on two sets without an English parallel."""
    evaluate = {"task": "worldbook:lookup", "limit": 2, "max_new_tokens": 2}
    content = {
        "name": "prepared",
        "phases": [
            {"name": "instruct", "checkpoint": str(model)},
            {"name": "two", "data": SETS, "strategies": strategies},
        ],
        "training": {"learning_rate": 1e-3, "tokens_per_batch": 1024},
        "held_out": 2,
        "measures": [],
        "contamination": None,
        "evaluate": {"task_ability": [evaluate], "language_ability": [evaluate]},
        **changes,
    }
    return Study.model_validate(content)


class Counted(Watcher):
    """Keeps how many stages were announced, and the names of those that were finished."""

    def __init__(self) -> None:
        self.announced = 0
        self.finished: list[str] = []

    def study_started(self, stages: int) -> None:
        self.announced = stages

    def stage_finished(self, label: str, seconds: float, reused: bool) -> None:  # noqa: ARG002
        self.finished.append(label)

    def prepared(self, kind: str) -> int:
        return sum(label.startswith(f"prepare {kind} ") for label in self.finished)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, talkative_model: Path) -> Counted:
    watcher = Counted()
    wanted = study(talkative_model, [{"ewc": {"tokens": 100}}, "spectrum"], seeds=[0, 1])
    result = run_study(wanted, runs=tmp_path_factory.mktemp("runs"), watcher=watcher)
    assert {cell["reason"] for cell in result["cells"]} == {None}
    return watcher


def test_sets_without_english_share_a_state_and_it_is_counted_once(finished: Counted) -> None:
    assert finished.prepared("ewc") == 2  # a seed each: the model writes the rows
    assert finished.announced == len(finished.finished)


def test_seeds_and_sets_share_a_scan_of_the_weights(finished: Counted) -> None:
    assert finished.prepared("spectrum") == 1
