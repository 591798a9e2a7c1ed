"""Stages are made by Ray as they are in one process, whatever dies meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from lingraft.config.ray_address import check_ray
from lingraft.errors import ConfigError

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed (extra `ray`)")

LINGRAFT = [sys.executable, "-c", "from lingraft.cli.main import main; main()"]


def study_file(folder: Path, model: Path, **changes: Any) -> Path:
    content = {
        "name": "tiny",
        "model": str(model),
        "phases": [
            {"name": "one", "data": {"english": {"source": "worldbook:lookup/en", "limit": 12}}},
            {"name": "two", "data": {"german": {"source": "worldbook:lookup/de", "limit": 12}}},
        ],
        "training": {"learning_rate": 1e-3, "tokens_per_batch": 512, "precision": "float32"},
        "held_out": 2,
        "measures": ["mpd"],
        "evaluate": {
            "task_ability": [{"task": "worldbook", "limit": 2, "max_new_tokens": 2}],
            "language_ability": [{"task": "worldbook", "limit": 2, "max_new_tokens": 2}],
            "precision": "float32",
        },
        **changes,
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def run(path: Path, runs: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LINGRAFT, "run", str(path), "--json", "--runs", str(runs), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
        timeout=600,
    )


def records(runs: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in sorted(runs.glob("tiny/stages/*/record.json"))}


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Path, dict[str, bytes]]:
    """A study file, and the records of its stages as one process makes them."""
    folder = tmp_path_factory.mktemp("serial")
    path = study_file(folder, tiny_model)
    done = run(path, folder / "runs")
    assert done.returncode == 0, done.stderr
    return path, records(folder / "runs")


def test_ray_makes_each_stage_once_with_the_records_of_one_process(
    serial: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    path, expected = serial
    done = run(path, tmp_path, "--ray", "local")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["cells"][0]["status"] == "done"
    assert records(tmp_path) == expected
    assert done.stderr.count("✓ train") == 2, done.stderr
    assert "ray" not in done.stderr.lower().replace("--ray", ""), done.stderr


@pytest.mark.parametrize(
    ("address", "advice"),
    [
        ("ray://head:10001", "ray job submit"),
        ("head", "HOST:PORT"),
        ("head:port", "HOST:PORT"),
        ("", "HOST:PORT"),
    ],
)
def test_what_is_no_address_is_refused_with_what_to_type(address: str, advice: str) -> None:
    with pytest.raises(ConfigError, match=advice):
        check_ray(address)
