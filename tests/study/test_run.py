"""A study from end to end through the command line, killed in the middle, and resumed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lingraft.records import read_json, to_json
from lingraft.study.result import read_result, write_result

LINGRAFT = [sys.executable, "-c", "from lingraft.cli.main import main; main()"]


def study_file(folder: Path, model: Path, **changes: Any) -> Path:
    content = {
        "name": "tiny",
        "model": str(model),
        "phases": [
            {"name": "one", "data": {"english": {"source": "worldbook:lookup/en", "limit": 24}}},
            {
                "name": "two",
                "data": {
                    "similar": {"source": "worldbook:lookup/de,es", "limit": 24},
                    "dissimilar": {
                        "source": "worldbook:counting/de,es",
                        "limit": 24,
                        "strategies": [
                            {"freeze_random": {"share": 0.5}},
                            {"english_replay": {"share": 0.2, "from": "phase_one"}},
                            {"lora": {"rank": 2, "training": {"learning_rate": 1e-2}}},
                            "mixed",
                        ],
                    },
                },
                "strategies": ["plain"],
            },
        ],
        "training": {"learning_rate": 1e-3, "tokens_per_batch": 1024, "save_every": 2},
        "held_out": 2,
        "measures": ["des", "mpd", "drift"],
        "evaluate": {
            "task_ability": [{"task": "worldbook", "limit": 3, "max_new_tokens": 4}],
            "language_ability": [{"task": "worldbook", "limit": 3, "max_new_tokens": 4}],
        },
        **changes,
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def run(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LINGRAFT, "run", str(path), "--json", "--runs", str(path.parent / "runs"), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )


def records(folder: Path) -> dict[str, Any]:
    return {path.parent.name: read_json(path) for path in sorted(folder.glob("stages/*/record.json"))}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Path, dict[str, Any]]:
    """A study that ran undisturbed: its run folder and its result."""
    folder = tmp_path_factory.mktemp("study")
    done = run(study_file(folder, tiny_model))
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "tiny", json.loads(done.stdout)


def test_the_result_says_what_precision_was_resolved_to(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, result = finished
    used: dict[str, set[str]] = {"train": set(), "evaluate": set()}
    for name, record in records(folder).items():
        kind = name.partition("-")[0]
        if kind in used:
            used[kind].add(record["result"]["precision"])
    assert [*used["evaluate"]] == [result["precision"]["evaluation"]]
    assert sorted(used["train"]) == result["precision"]["training"]
    assert used["train"] | used["evaluate"] <= {"bf16", "float32"}


def measured(cell: dict[str, Any], measure: str, figure: str) -> float:
    found = cell["phases"][-1]["measures"][measure]["found"]["from_phase_one"]
    value: float = found["figures"][figure]["value"]
    return value


def test_stdout_is_one_object_with_every_cell(finished: tuple[Path, dict[str, Any]]) -> None:
    _, result = finished
    assert [(cell["data"], cell["strategy"], cell["status"]) for cell in result["cells"]] == [
        ("similar", "plain", "done"),
        ("dissimilar", "plain", "done"),
        ("dissimilar", "freeze_random", "done"),
        ("dissimilar", "english_replay", "done"),
        ("dissimilar", "lora", "done"),
        ("dissimilar", "mixed", "done"),
    ]
    for scores in (result["base"], *(one["scores"] for one in (*result["phase_ones"], *result["cells"]))):
        assert 0 <= scores["task_ability"]["low"] <= scores["task_ability"]["value"] <= 1
        assert set(scores["per_language"]) >= {"de", "es"}
        assert scores["per_language"]["de"]["held_out"]["value"] > 0
    similar, dissimilar = result["cells"][:2]
    assert measured(similar, "des", "des") > measured(dissimilar, "des", "des")
    assert measured(similar, "mpd", "mpd") > 0
    assert measured(similar, "des", "corrected") > measured(similar, "des", "des")  # the sets are small
    for cell in result["cells"]:
        drift = cell["phases"][-1]["measures"]["drift"]["found"]["from_phase_one"]["details"]
        assert [one["layer"] for one in drift["layers"]] == [0, 1]
        assert all(one["covariance_change"] > 0 for one in drift["layers"])
        assert sorted(drift["by_language"]) == ["de", "en", "es"]
    assert similar["difference"]["task_ability"]["minimum_detectable_effect"] > 0


def test_the_run_folder_holds_the_resolved_study_the_result_and_the_page(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    folder, result = finished
    assert yaml.safe_load((folder / "study.yaml").read_text())["training"]["epochs"] == 1
    assert read_json(folder / "result.json") == result
    assert "<svg" in (folder / "report" / "index.html").read_text(encoding="utf-8")


def test_the_result_is_read_back_as_it_was_written(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, printed = finished
    result = read_result(folder)
    assert to_json(result) == printed
    assert len(result.done) == len(printed["cells"])
    write_result(result)
    assert read_result(folder) == result


def test_shared_stages_run_once(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = finished
    kinds = [name.partition("-")[0] for name in records(folder)]
    assert kinds.count("train") == 7  # Phase 1 once, then six cells
    assert kinds.count("evaluate") == 8  # and the base
    assert kinds.count("similarity") == 2
    assert kinds.count("drift") == 6
    assert not (folder / "cache" / "encoded").exists()  # shared while the run lasts


def test_what_a_strategy_promises_stands_in_its_record(finished: tuple[Path, dict[str, Any]]) -> None:
    _, result = finished
    by_strategy = {cell["strategy"]: cell["training"] for cell in result["cells"]}
    assert by_strategy["english_replay"]["replayed"] == 6  # 0.2 / 0.8 * 24
    assert by_strategy["english_replay"]["replay_share"] == 0.2
    assert by_strategy["mixed"]["examples"] == 48
    assert [counts["train"] for counts in by_strategy["mixed"]["data"]] == [24, 24]
    assert {counts["broken"] for counts in by_strategy["mixed"]["data"]} == {0}
    assert by_strategy["freeze_random"]["frozen_parameters"] > 0


def test_a_finished_study_run_again_repeats_nothing(
    finished: tuple[Path, dict[str, Any]], lingraft: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    folder, result = finished
    before = {path: path.stat().st_mtime_ns for path in folder.glob("stages/*/*")}
    again = lingraft("run", str(folder.parent.parent / "study.yaml"), "--json", "--runs", str(folder.parent))
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout) == result
    assert {path: path.stat().st_mtime_ns for path in folder.glob("stages/*/*")} == before


@pytest.mark.slow
def test_where_the_base_alone_is_evaluated_again_it_stands_in_every_matrix(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path, tiny_model: Path
) -> None:
    folder, result = finished
    shutil.copytree(folder, tmp_path / "runs" / "tiny")
    for name, record in records(folder).items():
        if name.startswith("evaluate-") and "weights" in record["inputs"]["model"]:
            (tmp_path / "runs" / "tiny" / "stages" / name / "manifest.json").unlink()
    done = run(study_file(tmp_path, tiny_model))
    assert "is missing; the stage is made again" in done.stderr
    expected = [cell["forgetting"] for cell in result["cells"]]
    assert '"after": "base"' in json.dumps(expected)
    assert [cell["forgetting"] for cell in json.loads(done.stdout)["cells"]] == expected


def _killed_runs(
    tmp_path: Path, model: Path, moments: list[float], *overrides: str, finished: int = 0
) -> Path:
    """Kill a study after so many seconds each, and when at least so many stages are finished; then let it end."""
    path = study_file(tmp_path, model)
    for moment in moments:
        process = subprocess.Popen(
            [*LINGRAFT, "run", str(path), "--runs", str(tmp_path / "runs"), *overrides],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        time.sleep(moment)
        while process.poll() is None and len(records(tmp_path / "runs" / "tiny")) < finished:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    finished_before = set(records(tmp_path / "runs" / "tiny"))
    times = {
        name: (tmp_path / "runs" / "tiny" / "stages" / name / "timing.json").stat().st_mtime_ns
        for name in finished_before
    }
    done = run(path, *overrides)
    assert done.returncode == 0, done.stderr
    for name, when in times.items():
        timing = tmp_path / "runs" / "tiny" / "stages" / name / "timing.json"
        assert timing.stat().st_mtime_ns == when, f"{name} was finished and ran again"
    return tmp_path / "runs" / "tiny"


def test_a_killed_study_goes_on_and_ends_with_the_same_records(
    tmp_path: Path, tiny_model: Path, finished: tuple[Path, dict[str, Any]]
) -> None:
    two = "phases.two.data.dissimilar.strategies=[{english_replay: {share: 0.2, from: phase_one}}]"
    found = records(_killed_runs(tmp_path, tiny_model, [0.0], two, finished=6))
    assert found.items() <= records(finished[0]).items()  # those of three cells
    assert [name.partition("-")[0] for name in found].count("evaluate") == 5


@pytest.mark.slow
def test_a_study_killed_at_five_random_moments_ends_with_the_same_records(
    tmp_path: Path, tiny_model: Path, finished: tuple[Path, dict[str, Any]]
) -> None:
    moments = [random.uniform(6, 25) for _ in range(5)]
    print("killed after", moments)
    folder = _killed_runs(tmp_path, tiny_model, moments)
    assert records(folder) == records(finished[0])


@pytest.mark.slow
def test_a_failed_cell_does_not_stop_the_others(tmp_path: Path, tiny_model: Path) -> None:
    path = study_file(tmp_path, tiny_model)
    content = yaml.safe_load(path.read_text())
    content["phases"][1]["data"] = {
        "similar": {
            "source": "worldbook:lookup/de",
            "limit": 8,
            "strategies": ["plain", {"lora": {"target_modules": "no_such_module"}}],
        }
    }
    content["phases"][1]["strategies"] = []
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    done = run(path, "measures=[mpd, mpd_pair]", "keep=none")
    assert done.returncode == 1, done.stderr
    plain, lora = json.loads(done.stdout)["cells"]
    assert (plain["status"], lora["status"]) == ("done", "failed")
    assert "no_such_module" in lora["reason"]
    pair = plain["phases"][-1]["measures"]["mpd_pair"]["found"]["pair"]
    assert pair["figures"]["mpd"]["value"] > 0
    assert plain["checkpoint"] is None
    assert list((tmp_path / "runs").rglob("*.safetensors")), (
        "the failed cell's Phase 1 is there for the next run"
    )
    without = run(path, "measures=[mpd]", "keep=none", "phases.two.data.similar.strategies=[plain]")
    assert without.returncode == 0, without.stderr
    assert json.loads(without.stdout)["cells"][0]["status"] == "done"


@pytest.mark.slow
def test_a_study_on_two_processes_has_the_losses_of_one(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    losses = []
    for arguments in ((), ("--processes", "2"), ("--processes", "2", "--sharded")):
        folder = tmp_path_factory.mktemp("processes")
        training = {"learning_rate": 1e-3, "tokens_per_batch": 1024, "precision": "float32"}
        done = run(study_file(folder, tiny_model, training=training), *arguments)
        assert done.returncode == 0, done.stderr
        cells = json.loads(done.stdout)["cells"]
        losses.append([loss for cell in cells for phase in cell["phases"] for _, loss in phase["losses"]])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[2] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.slow
def test_strategies_that_prepare_and_combine_share_their_stages(tmp_path: Path, tiny_model: Path) -> None:
    path = study_file(tmp_path, tiny_model, measures=["mpd"], seeds=[0])
    content = yaml.safe_load(path.read_text())
    two = content["phases"][1]
    two["data"] = {"similar": two["data"]["similar"]}
    two["strategies"] = [
        "plain",
        {"interpolate": {"alpha": [0.25, 0.75]}},
        {"revert": {"layers": "1"}},
        {"ssu": {"tokens": 200}},
        [{"ssu": {"tokens": 200, "share": 0.25}}, {"interpolate": {"alpha": 0.5}}],
        {"ewc": {"tokens": 200}},
    ]
    path.write_text(yaml.safe_dump(content))
    done = run(path, "keep=none")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [cell["strategy"] for cell in result["cells"]] == [
        *("plain", "interpolate-0.25", "interpolate-0.75", "revert", "ssu", "ssu+interpolate", "ewc")
    ]
    folder = tmp_path / "runs" / "tiny"
    kinds = [name.partition("-")[0] for name in records(folder)]
    # Phase 1, plain (which the sweep and the reversion share), ssu twice, ewc
    assert (kinds.count("train"), kinds.count("combine"), kinds.count("prepare")) == (5, 4, 2)
    assert "stage 1 of" not in done.stderr or f"of {len(kinds)}" in done.stderr
    far, near = (measured(result["cells"][place], "mpd", "mpd") for place in (0, 1))
    assert near == pytest.approx(0.25 * far, rel=1e-4)
    assert not list(folder.glob("stages/*/checkpoint/*.safetensors"))
    again = run(path, "keep=none")
    assert json.loads(again.stdout)["cells"] == result["cells"]
