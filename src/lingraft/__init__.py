"""lingraft: teach a language model new languages and keep what it could do.

The public names below are imported when first used, so that `import lingraft` loads neither torch nor
transformers.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lingraft.adapt.checked import Checked
    from lingraft.adapt.rescue import RepairOptions
    from lingraft.api.adaptation import AdaptationResult, RescueResult, adapt, check, rescue
    from lingraft.api.evaluation import ComparisonResult, EvaluationResult, compare, evaluate
    from lingraft.api.report import write_report
    from lingraft.config.schema import DataSource, JudgeChoice, ServerChoice, Study, Training
    from lingraft.data.example import Example, Message
    from lingraft.data.sources import LoadedData, load_data
    from lingraft.errors import (
        ConfigError,
        DataError,
        DiskError,
        EvaluationError,
        LingraftError,
        ModelError,
        StrategyError,
        VerificationError,
    )
    from lingraft.models.loading import model_folder
    from lingraft.representation.drift import Drift, DriftOfModels, drift_between, drift_of_models
    from lingraft.representation.prompts import Prompt
    from lingraft.representation.states import EncodedPrompts, LayerStates, layer_states
    from lingraft.similarity.comparison import Comparison, compare_sets
    from lingraft.similarity.embedding_similarity import EmbeddingSimilarity, dataset_embedding_similarity
    from lingraft.study.checks import load_study
    from lingraft.study.events import Watcher
    from lingraft.study.result import StudyResult
    from lingraft.study.run import run_study
    from lingraft.train.apply import AppliedStrategies, apply_strategies
    from lingraft.train.mixed_rows import mixed_rows
    from lingraft.train.phase import PhaseOutcome, train_phase
    from lingraft.train.processes import Processes
    from lingraft.weights.difference import ParameterDifference, parameter_difference
    from lingraft.weights.signal_to_noise import SignalScan, signal_to_noise

    __version__: str

_HOMES = {
    "AdaptationResult": "lingraft.api.adaptation",
    "AppliedStrategies": "lingraft.train.apply",
    "Checked": "lingraft.adapt.checked",
    "Comparison": "lingraft.similarity.comparison",
    "ComparisonResult": "lingraft.api.evaluation",
    "ConfigError": "lingraft.errors",
    "DataError": "lingraft.errors",
    "DataSource": "lingraft.config.schema",
    "DiskError": "lingraft.errors",
    "Drift": "lingraft.representation.drift",
    "DriftOfModels": "lingraft.representation.drift",
    "EmbeddingSimilarity": "lingraft.similarity.embedding_similarity",
    "EncodedPrompts": "lingraft.representation.states",
    "EvaluationError": "lingraft.errors",
    "EvaluationResult": "lingraft.api.evaluation",
    "Example": "lingraft.data.example",
    "JudgeChoice": "lingraft.config.schema",
    "LayerStates": "lingraft.representation.states",
    "LingraftError": "lingraft.errors",
    "LoadedData": "lingraft.data.sources",
    "Message": "lingraft.data.example",
    "ModelError": "lingraft.errors",
    "ParameterDifference": "lingraft.weights.difference",
    "PhaseOutcome": "lingraft.train.phase",
    "Processes": "lingraft.train.processes",
    "Prompt": "lingraft.representation.prompts",
    "RepairOptions": "lingraft.adapt.rescue",
    "RescueResult": "lingraft.api.adaptation",
    "ServerChoice": "lingraft.config.schema",
    "SignalScan": "lingraft.weights.signal_to_noise",
    "StrategyError": "lingraft.errors",
    "Study": "lingraft.config.schema",
    "StudyResult": "lingraft.study.result",
    "Training": "lingraft.config.schema",
    "VerificationError": "lingraft.errors",
    "Watcher": "lingraft.study.events",
    "adapt": "lingraft.api.adaptation",
    "apply_strategies": "lingraft.train.apply",
    "check": "lingraft.api.adaptation",
    "compare": "lingraft.api.evaluation",
    "compare_sets": "lingraft.similarity.comparison",
    "dataset_embedding_similarity": "lingraft.similarity.embedding_similarity",
    "drift_between": "lingraft.representation.drift",
    "drift_of_models": "lingraft.representation.drift",
    "evaluate": "lingraft.api.evaluation",
    "layer_states": "lingraft.representation.states",
    "load_data": "lingraft.data.sources",
    "load_study": "lingraft.study.checks",
    "mixed_rows": "lingraft.train.mixed_rows",
    "model_folder": "lingraft.models.loading",
    "parameter_difference": "lingraft.weights.difference",
    "rescue": "lingraft.api.adaptation",
    "run_study": "lingraft.study.run",
    "signal_to_noise": "lingraft.weights.signal_to_noise",
    "train_phase": "lingraft.train.phase",
    "write_report": "lingraft.api.report",
}

__all__ = [
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
    "__version__",
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


def __getattr__(name: str) -> Any:
    # What is not needed is not imported, not even of the standard library: the command line takes signals before that.
    from importlib import import_module
    from importlib.metadata import version

    if name == "__version__":
        return version("lingraft")
    if name not in _HOMES:
        raise AttributeError(f"module 'lingraft' has no attribute {name!r}")
    if name in _SUBPACKAGES:
        return import_module(f"lingraft.{name}")
    return getattr(import_module(_HOMES[name]), name)


def _html_of(result: object) -> str:
    """Return a result as a notebook shows it."""
    from importlib import import_module

    html: str = import_module("lingraft.api.notebook").html_of(result)
    return html


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_SUBPACKAGES = frozenset({"adapt", "evaluate"})
"""Public functions that share their name with a subpackage. Whoever imports that, Python puts it in the function's
place; so it is made to be called, and `lingraft.evaluate` is both."""


class _Called(ModuleType):
    """A subpackage that, called, is the public function of its name."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self.__wrapped__(*arguments, **options)

    @property
    def __wrapped__(self) -> Any:
        """The function."""
        from importlib import import_module

        name = self.__name__.rpartition(".")[2]
        return getattr(import_module(_HOMES[name]), name)

    @property
    def __signature__(self) -> Any:
        from inspect import signature

        return signature(self.__wrapped__)


class _Package(ModuleType):
    def __setattr__(
        self, name: str, value: Any
    ) -> None:  # so Python puts an imported subpackage in its place
        if name in _SUBPACKAGES and isinstance(value, ModuleType):
            value.__class__ = _Called
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
