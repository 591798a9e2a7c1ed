"""What `lingraft run` prints and leaves of a study, also of one that is stopped."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from lingraft import stopping
from lingraft.cli.run import _Page
from lingraft.errors import ModelError
from lingraft.evaluate import running
from lingraft.report import page_figures
from lingraft.report.drawing import Drawing, Job
from lingraft.stage import Work, Workplace
from lingraft.study.made import invocations
from lingraft.study.stages import evaluate
from lingraft.study.stages.evaluate import Evaluate

Lingraft = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def study(tmp_path: Path, tiny_model: Path) -> str:
    """The file of a study with a base model, a trained Phase 1 and one cell for each seed."""
    worldbook = [{"task": "worldbook", "limit": 1, "max_new_tokens": 2}]
    content = {
        "name": "tiny",
        "model": str(tiny_model),
        "phases": [
            {"name": "one", "data": {"en": {"source": "worldbook:counting/en", "limit": 4}}},
            {"name": "two", "data": {"de": {"source": "worldbook:counting/de", "limit": 4}}},
        ],
        "held_out": 0,
        "measures": [],
        "contamination": None,
        "evaluate": {"task_ability": worldbook, "language_ability": worldbook},
    }
    (tmp_path / "study.yaml").write_text(json.dumps(content))  # JSON is YAML
    return "study.yaml"


def test_the_plan_says_what_the_run_would_say_before_it_trains(study: str, lingraft: Lingraft) -> None:
    planned = lingraft("plan", study, "limits={task_ability: 0.1}")
    assert planned.returncode == 0, planned.stderr
    assert "! limits: task_ability may lose 0.1: " in planned.stderr
    assert "stages, 0 of them finished." in planned.stdout


def test_a_stopped_study_leaves_a_page_and_a_result_with_what_is_done(
    study: str, lingraft: Lingraft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = lingraft("run", study)
    assert done.returncode == 0, done.stderr
    listed = done.stdout.partition("Checkpoints:\n")[2].splitlines()[:2]
    assert [line.split("  ")[1].strip() for line in listed] == ["phase 1", "de / plain"]
    for line in listed:
        assert (tmp_path / line.split()[-1] / "model.safetensors").is_file()

    work = Evaluate.work

    def stops(stage: Evaluate, place: Workplace) -> Work:
        if "two:" in stage.label and "seed 1" in stage.label:
            raise KeyboardInterrupt
        return work(stage, place)

    monkeypatch.setattr(Evaluate, "work", stops)
    stopped = lingraft("run", study, "seeds=[0, 1]", "--json")
    assert stopped.returncode == 130
    page = (tmp_path / "runs" / "tiny" / "report" / "index.html").read_text(encoding="utf-8")
    assert "1 of 2 cells are pending: de / plain / seed 1" in page
    assert "1 of 2</th>" in page
    result = json.loads((tmp_path / "runs" / "tiny" / "result.json").read_text(encoding="utf-8"))
    assert [cell["status"] for cell in result["cells"]] == ["done", "pending"]
    assert [one["seed"] for one in result["phase_ones"]] == [0, 1]  # Phase 1 of the new seed is done
    for checkpoint in (result["cells"][0]["checkpoint"], result["phase_ones"][0]["checkpoint"]):
        assert f">{checkpoint}</" in page.replace("<wbr>", "")
        assert (tmp_path / "runs" / "tiny" / checkpoint / "model.safetensors").is_file()

    assert lingraft("show", "predictions", "runs/tiny", "--json").returncode == 0  # of what is done

    monkeypatch.undo()
    without = lingraft(
        "run", str(tmp_path / study), "seeds=[1]", "keep=none", "--runs", str(tmp_path / "runs")
    )
    assert without.returncode == 0, without.stderr
    assert "also holds 4 stages" in without.stdout
    assert "de / plain  not kept (`keep` in the study file)" in without.stdout
    made = invocations(tmp_path / "runs" / "tiny")
    assert [one.outcome for one in made] == ["done", "stopped", "done"]


def test_a_stop_is_answered_before_the_page_is_drawn(
    study: str, lingraft: Lingraft, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def stops(*_: object) -> Work:
        raise KeyboardInterrupt

    def draws(jobs: Sequence[Job]) -> list[Drawing]:
        done.append("pictures")
        return [Drawing(None, "-")] * len(jobs)

    monkeypatch.setattr(Evaluate, "work", stops)
    monkeypatch.setattr(_Page, "show", lambda own, result: setattr(own, "_waiting", result))
    monkeypatch.setattr(stopping, "say_now", lambda: done.append("sentence"))
    monkeypatch.setattr(page_figures, "draw", draws)
    assert lingraft("run", study).returncode == 130
    assert done == ["sentence", "pictures"]


def test_a_base_model_that_cannot_be_used_leaves_a_result_that_says_so(
    study: str, lingraft: Lingraft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> Work:
        raise ModelError("its weights are no numbers")

    monkeypatch.setattr(Evaluate, "work", fails)
    done = lingraft("run", study)
    assert done.returncode == 2
    assert done.stderr.count("its weights are no numbers") == 1
    result = json.loads((tmp_path / "runs" / "tiny" / "result.json").read_text(encoding="utf-8"))
    assert result["base_reason"] == "its weights are no numbers"
    assert [cell["status"] for cell in result["cells"]] == ["pending"]
    page = (tmp_path / "runs" / "tiny" / "report" / "index.html").read_text(encoding="utf-8")
    assert "base model: its weights are no numbers" in page


@pytest.mark.slow
def test_a_notice_that_holds_for_every_model_is_printed_once(
    study: str, lingraft: Lingraft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = running.evaluate_model

    def leaves_out(*arguments: object, **options: object) -> object:
        return replace(whole(*arguments, **options), left_out=("ifeval: item 7: needs punkt_tab",))  # type: ignore[arg-type]

    monkeypatch.setattr(evaluate, "evaluate_model", leaves_out)
    done = lingraft("run", study)
    assert (done.stdout + done.stderr).count("punkt_tab") == 1
    assert (
        "! base: 1 item is left out and counts nowhere, such as ifeval: item 7: needs punkt_tab."
        in done.stderr
    )
    page = (tmp_path / "runs" / "tiny" / "report" / "index.html").read_text(encoding="utf-8")
    assert page.count("punkt_tab") == 1
    assert "All models: 1 item is left out" in page
    again = lingraft("run", study)  # nothing is evaluated, but it still holds
    assert (again.stdout + again.stderr).count("punkt_tab") == 1
