"""`lingraft plan`: a table with what it takes below, or one JSON object; wrong input before anything long."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from lingraft.report.plan import plan_lines
from lingraft.study.forecast import Forecast, StageForecast, TrainingWork, time_text, work_text
from lingraft.train.memory_plan import HostMemory

Lingraft = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def study(tiny_model: Path, tmp_path: Path) -> str:
    asked = [{"task": "worldbook:lookup", "limit": 2, "max_new_tokens": 2}]
    written = {
        "name": "looked-at",
        "phases": [
            {"name": "one", "checkpoint": str(tiny_model)},
            {"name": "two", "data": {"german": {"source": "worldbook:lookup/de", "limit": 8}}},
        ],
        "held_out": 1,
        "measures": [],
        "contamination": None,
        "evaluate": {"task_ability": asked, "language_ability": asked},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(written), encoding="utf-8")
    return "study.yaml"


def test_a_plan_is_a_table_with_what_it_takes_below(lingraft: Lingraft, study: str, tmp_path: Path) -> None:
    done = lingraft("plan", study)
    assert done.returncode == 0
    assert "two:german/plain" in done.stdout
    assert "Time: not known. --measure times a few real steps and answers on this machine." in done.stdout
    assert "3 stages, 0 of them finished." in done.stdout
    assert not (tmp_path / "runs").exists()


def test_a_plan_for_a_card_needs_a_config_alone(lingraft: Lingraft, study: str) -> None:
    asked = ("plan", study, "--card", "0.5")
    done = lingraft(*asked)
    assert done.returncode == 2
    assert "two/plain" in done.stdout
    assert "does not fit" in done.stdout
    assert "0 of 1 trainings fit 1 card of 500 MB" in done.stdout
    found = json.loads(lingraft(*asked, "--processes", "2", "--json").stdout)
    page = (Path(__file__).parents[2] / "docs" / "plan.md").read_text(encoding="utf-8")
    for key in (*found, *found["trainings"][0]):
        assert f"`{key}`" in page, key
    done = lingraft(*asked, "--measure")
    assert done.returncode == 2
    assert "--card plans for other devices" in done.stderr


def test_a_plan_as_json_has_the_documented_fields(lingraft: Lingraft, study: str) -> None:
    done = lingraft("plan", study, "--json", "training.tokens_per_batch=256")
    found = json.loads(done.stdout)
    page = (Path(__file__).parents[2] / "docs" / "plan.md").read_text(encoding="utf-8")
    documented = page.partition("## `--json`")[2]
    train = next(one for one in found["stages"] if one["kind"] == "train")
    evaluated = next(one for one in found["stages"] if one["kind"] == "evaluate")
    for key in (*found, *train, *train["training"], *train["memory"], *evaluated["answers"]):
        assert f"`{key}`" in documented, key
    assert found["format"] == 1
    assert train["training"]["steps"] > 1
    assert evaluated["training"] is None


def test_show_plan_prints_it_too_and_a_wrong_study_is_refused(lingraft: Lingraft, study: str) -> None:
    shown = lingraft("show", "plan", study)
    assert shown.returncode == 0
    assert "Memory: at most" in shown.stdout
    refused = lingraft("plan", study, "training.epocs=2")
    assert refused.returncode == 2
    assert "epochs" in refused.stderr


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (599, "599 s"), (601, "10 min"), (3 * 3600 + 120, "3 h 2 min"), (50 * 3600, "2 days 2 h")],
)
def test_times_are_short(seconds: float, text: str) -> None:
    assert time_text(seconds) == text


def test_what_is_estimated_or_not_known_is_said() -> None:
    work = TrainingWork(10, 2, 1000, 1100, 500, 7, 5, is_exact=False, pieces=1, gradient_checkpointing=False)
    stage = StageForecast("train", "a", "f", 0, "to do", True, "accelerator", training=work, seconds=90)
    assert work_text(stage) == "about 7 steps, 1,000 tokens, 2 rows replayed"
    cut = replace(stage, training=replace(work, pieces=3, gradient_checkpointing=True))
    assert work_text(cut) == "about 7 steps, each in 3 pieces, 1,000 tokens, 2 rows replayed, checkpointing"
    lines = list(plan_lines(Forecast((stage,), 90, 2, 1e9, 2 * 10**9, 10**9, 5, 10)))
    assert lines[1] == "Time: about 90 s, and 2 stages more whose time is not known."
    assert lines[-1].startswith("! About 2.0 GB of memory are needed, and 1.0 GB are free")
    host = HostMemory(loading=3 * 10**9, copy=9 * 10**9, saved=4 * 10**9)
    plan = Forecast((replace(stage, host=host),), 90, 0, 1e9, 1, 2, 5, 10, 9 * 10**9, 2 * 10**9)
    lines = list(plan_lines(plan))
    assert lines[-2].endswith("load, copy and save: at most 9.0 GB, of 2.0 GB that are free.")
    assert lines[-1].startswith(
        "! About 4.0 GB of the machine's own memory are needed to load and save the model"
    )
