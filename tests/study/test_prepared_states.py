"""What strategies prepare, in a study: how often it is made, counted, and when it is discarded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lingraft.config.schema import Study
from lingraft.records import read_json
from lingraft.study.events import Watcher
from lingraft.study.result import StudyResult
from lingraft.study.run import run_study

SETS = {name: {"source": f"worldbook:lookup/{name}", "limit": 8} for name in ("de", "es")}


def study(model: Path, strategies: list[Any], sets: Sequence[str] = tuple(SETS), **changes: Any) -> Study:
    """Return a study from a checkpoint, on sets without an English parallel."""
    evaluate = {"task": "worldbook:lookup", "limit": 2, "max_new_tokens": 2}
    content = {
        "name": "prepared",
        "phases": [
            {"name": "instruct", "checkpoint": str(model)},
            {"name": "two", "data": {one: SETS[one] for one in sets}, "strategies": strategies},
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
        self.made: list[str] = []
        self.notes: list[str] = []

    def study_started(self, stages: int) -> None:
        self.announced = stages

    def stage_finished(self, label: str, seconds: float, reused: bool) -> None:  # noqa: ARG002
        self.finished.append(label)
        if not reused:
            self.made.append(label)

    def noted(self, message: str) -> None:
        self.notes.append(message)

    def prepared(self, kind: str) -> int:
        return sum(label.startswith(f"prepare {kind} ") for label in self.made)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, talkative_model: Path) -> Counted:
    watcher = Counted()
    wanted = study(talkative_model, [{"ewc": {"tokens": 100}}, "spectrum"], seeds=[0, 1])
    result = run_study(wanted, runs=tmp_path_factory.mktemp("runs"), watcher=watcher)
    assert result.done == result.cells
    return watcher


def test_sets_without_english_share_a_state_and_it_is_counted_once(finished: Counted) -> None:
    assert finished.prepared("ewc") == 2  # a seed each: the model writes the rows
    assert finished.announced == len(finished.finished)


def test_seeds_and_sets_share_a_scan_of_the_weights(finished: Counted) -> None:
    assert finished.prepared("spectrum") == 1


def states(runs: Path) -> dict[str, bool]:
    """Return, by strategy, whether the state that it prepared lies in the run folder; one state each."""
    found = {}
    for path in runs.glob("prepared/stages/prepare-*/record.json"):
        record = read_json(path)
        artefacts = record["artefacts"]
        there = {name: (path.parent / name).is_file() for name in artefacts}
        assert there == {name: not entry["discarded"] for name, entry in artefacts.items()}
        assert there
        assert record["inputs"]["strategy"] not in found
        found[record["inputs"]["strategy"]] = all(there.values())
    return found


@pytest.mark.slow
def test_a_state_is_discarded_after_its_last_cell_and_made_again_for_one_that_is_added(
    tmp_path: Path, talkative_model: Path
) -> None:
    weak, strong, stronger = (
        {"ewc": {"tokens": 100, "strength": one, "name": f"ewc-{one}"}} for one in (0.01, 0.1, 1.0)
    )

    def run(strategies: list[Any]) -> tuple[StudyResult, Counted]:
        watcher = Counted()
        wanted = study(talkative_model, strategies, sets=["de"], keep="none")
        return run_study(wanted, runs=tmp_path, watcher=watcher), watcher

    first, watcher = run([weak, "spectrum", strong])
    assert watcher.prepared("ewc") == 1  # it stays until the second strength is trained
    assert states(tmp_path) == {"ewc": False, "spectrum": False}
    again, watcher = run([weak, "spectrum", strong])
    assert again.cells == first.cells
    assert watcher.prepared("ewc") == watcher.prepared("spectrum") == 0
    grown, watcher = run([weak, "spectrum", strong, stronger])
    assert grown.done == grown.cells
    assert watcher.prepared("ewc") == 1
    assert not [note for note in watcher.notes if "made again" in note], "the state came out otherwise"
    assert states(tmp_path) == {"ewc": False, "spectrum": False}


def test_a_state_stays_with_the_kept_checkpoint_that_it_made(tmp_path: Path, talkative_model: Path) -> None:
    both = [{"ewc": {"tokens": 100}}, {"interpolate": {"alpha": 0.5}}]
    phases = [
        {"name": "instruct", "checkpoint": str(talkative_model)},
        {"name": "two", "data": {"de": SETS["de"]}, "strategies": ["spectrum"]},
        {"name": "three", "data": {"es": SETS["es"]}, "strategies": [both]},
    ]
    result = run_study(study(talkative_model, [], phases=phases), runs=tmp_path)
    assert result.done == result.cells
    assert states(tmp_path) == {"ewc": True, "spectrum": False}  # the second phase's checkpoint is not kept
