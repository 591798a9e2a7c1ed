"""What users may import from `lingraft` is a short list, and it changes only on purpose."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import lingraft

ROOT = Path(__file__).resolve().parents[2]
PUBLIC = [
    "Study",
    "load_study",
    "run_study",
    "Example",
    "load_data",
    "compare_sets",
    "dataset_embedding_similarity",
    "parameter_difference",
    "signal_to_noise",
    "layer_states",
    "drift_between",
    "drift_of_models",
    "evaluate_model",
    "train_phase",
    "mixed_rows",
    "apply_strategies",
    "AppliedStrategies",
    "__version__",
]


def test_the_public_names_are_these() -> None:
    assert sorted(lingraft.__all__) == sorted(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_leads_to_something_documented(name: str) -> None:
    value = getattr(lingraft, name)
    if name != "__version__":
        assert callable(value)
        assert value.__doc__


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="run_studi"):
        lingraft.run_studi  # noqa: B018 (reading it is the test)


def test_the_version_is_the_projects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert lingraft.__version__ == project["version"]


def test_importing_the_package_loads_no_heavy_library() -> None:
    code = (
        "import sys, lingraft; print([m for m in ('torch', 'transformers', 'pydantic') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
