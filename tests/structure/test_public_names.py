"""What users may import from `lingraft` is a short list, and it changes only on purpose."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import lingraft

ROOT = Path(__file__).resolve().parents[2]
FUNCTIONS = [
    "adapt",
    "apply_strategies",
    "check",
    "compare",
    "compare_sets",
    "dataset_embedding_similarity",
    "drift_between",
    "drift_of_models",
    "evaluate",
    "layer_states",
    "load_data",
    "load_study",
    "mixed_rows",
    "model_folder",
    "parameter_difference",
    "rescue",
    "run_study",
    "signal_to_noise",
    "train_phase",
    "write_report",
]
TYPES = [  # what they take and return, and raise
    "AdaptationResult",
    "AppliedStrategies",
    "Checked",
    "Comparison",
    "ComparisonResult",
    "ConfigError",
    "DataError",
    "DataSource",
    "DiskError",
    "Drift",
    "DriftOfModels",
    "EmbeddingSimilarity",
    "EncodedPrompts",
    "EvaluationError",
    "EvaluationResult",
    "Example",
    "JudgeChoice",
    "LayerStates",
    "LingraftError",
    "LoadedData",
    "Message",
    "ModelError",
    "ParameterDifference",
    "PhaseOutcome",
    "Processes",
    "Prompt",
    "RepairOptions",
    "RescueResult",
    "ServerChoice",
    "SignalScan",
    "StrategyError",
    "Study",
    "StudyResult",
    "Training",
    "VerificationError",
    "Watcher",
]
PUBLIC = [*FUNCTIONS, *TYPES, "__version__"]
INTERNAL = {  # what parts of lingraft hand to each other; nobody has to make one
    "Compute",
    "Cut",
    "EncodedExample",
    "EvaluateOptions",
    "Encoder",
    "Expected",
    "OnPolicy",
    "Progress",
    "Rescued",
    "Stopped",
    "TrackedRun",
    "TrainingRules",
    "WeightReader",
}


def test_the_public_names_are_these() -> None:
    assert sorted(lingraft.__all__) == sorted(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_leads_to_something_documented(name: str) -> None:
    value = getattr(lingraft, name)
    if name != "__version__":
        assert callable(value)
        assert value.__doc__


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_a_public_function_takes_returns_and_raises_is_public(name: str) -> None:
    function = inspect.unwrap(getattr(lingraft, name))
    module = sys.modules[function.__module__]
    shape = inspect.signature(function)
    annotations = [
        str(one.annotation) for one in (*shape.parameters.values(), shape) if hasattr(one, "annotation")
    ]
    raised = inspect.getdoc(function).partition("Raises:")[2]  # type: ignore[union-attr]
    words = set(re.findall(r"\w+", " ".join([*annotations, str(shape.return_annotation), raised])))
    classes = {one for one in words if is_class_of_ours(module, one)}
    assert classes <= {*lingraft.__all__, *INTERNAL}


def test_the_page_of_the_api_has_every_public_name() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    listed = {one.rpartition(".")[2] for one in re.findall(r"^::: (\S+)$", page, re.MULTILINE)}
    assert listed == {*lingraft.__all__} - {"__version__"}


def is_class_of_ours(module: ModuleType, name: str) -> bool:
    """Return whether a name in a module's annotations is a class of lingraft, also one that only types import."""
    value = getattr(module, name, None)
    if value is None:
        tree = ast.parse(inspect.getsource(module))
        homes = {
            alias.name: node.module
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        home = homes.get(name) or ("lingraft.errors" if name.endswith("Error") else "")
        value = getattr(importlib.import_module(home), name, None) if home.startswith("lingraft") else None
    return isinstance(value, type) and value.__module__.startswith("lingraft")


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
