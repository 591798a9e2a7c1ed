"""Generative replay inside a study: true records, shared answers, and a stopped study goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lingraft.config.schema import Study
from lingraft.models.generation import TransformersGenerator
from lingraft.records import read_json
from lingraft.study.run import run_study

DRAWN = {"temperature": 1.0, "max_new_tokens": 16, "batch_size": 4}


def study(model: Path, prompts: str, **changes: Any) -> Study:
    source = {"source": "worldbook:lookup/de", "limit": 16, "english": "worldbook:lookup/en"}
    tasks = [{"task": "worldbook:lookup", "limit": 2, "max_new_tokens": 2}]
    strategies = [
        {"generative_replay": {"share": share, "prompts": prompts, "name": name, **DRAWN}}
        for share, name in ((0.1, "GR_10"), (0.2, "GR_20"))
    ]
    content = {
        "name": "small",
        "phases": [
            {"name": "one", "checkpoint": str(model)},
            {"name": "two", "data": {"german": source}, "strategies": strategies},
        ],
        "training": {"epochs": 1, "tokens_per_batch": 512, "max_length": 256},
        "measures": [],
        "held_out": 2,
        "evaluate": {"task_ability": tasks, "language_ability": tasks},
    }
    return Study.model_validate(content | changes)


def records(folder: Path) -> dict[str, Any]:
    return {path.parent.name: read_json(path) for path in sorted(folder.glob("stages/*/record.json"))}


@pytest.mark.parametrize(
    ("prompts", "taken"), [("auto", "parallel"), pytest.param("self", "self", marks=pytest.mark.slow)]
)
def test_a_study_replays_what_its_record_says_and_goes_on_where_it_was_stopped(
    talkative_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompts: str, taken: str
) -> None:
    result = run_study(study(talkative_model, prompts), runs=tmp_path / "whole")
    assert len(result.done) == len(result.cells), result.cells
    for cell, wanted in zip(result.done, (2, 4), strict=True):  # share / (1 - share) * 16
        told = cell.training
        assert (told.replayed, told.replay_shortfall, told.examples) == (wanted, 0, 16 + wanted)
        assert told.replay_share == wanted / (16 + wanted)
        assert told.replay_dropped.keys() <= {
            f"{prefix}{reason}" for prefix in ("", "prompt_") for reason in ("empty", "looping", "truncated")
        } | {"repeated"}
        (origin,) = told.replay_origins
        assert (origin.kind, origin.rows) == ("generative_replay", wanted)
        assert origin.settings["prompts"] == taken
        assert origin.settings["temperature"] == 1.0
    folders = list((tmp_path / "whole" / "small" / "cache").glob("replay-*"))
    assert len(folders) == 1
    settings = json.loads((folders[0] / "settings.json").read_text())["settings"]
    assert settings == result.done[0].training.replay_origins[0].settings

    whole, batches = TransformersGenerator.continue_batch, 0

    def stopped(self: Any, *rest: Any) -> Any:
        nonlocal batches
        batches += 1
        if batches == 2:
            raise KeyboardInterrupt
        return whole(self, *rest)

    monkeypatch.setattr(TransformersGenerator, "continue_batch", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_study(study(talkative_model, prompts), runs=tmp_path / "stopped")
    run_study(study(talkative_model, prompts), runs=tmp_path / "stopped")
    assert records(tmp_path / "stopped" / "small") == records(tmp_path / "whole" / "small")


@pytest.mark.slow
def test_other_parallels_or_settings_make_another_training_stage(
    talkative_model: Path, tmp_path: Path
) -> None:
    def fingerprints(**changes: Any) -> set[str]:
        run_study(study(talkative_model, "auto", **changes), runs=tmp_path)
        return {path.name for path in (tmp_path / "small" / "stages").glob("train-*")}

    before = fingerprints()
    other = study(talkative_model, "auto").model_dump(mode="json")["phases"]
    other[1]["data"]["german"]["english"] = "worldbook:counting/en"
    after = fingerprints(phases=other)
    assert len(before) == 2
    assert len(after - before) == 2
