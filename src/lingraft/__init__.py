"""lingraft: teach a language model new languages and keep what it could do.

The public names below are imported when first used, so that `import lingraft` loads neither torch nor
transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lingraft.config.schema import Study
    from lingraft.data.example import Example
    from lingraft.data.sources import load_data
    from lingraft.evaluate.running import evaluate_model
    from lingraft.representation.drift import drift_between, drift_of_models
    from lingraft.representation.states import layer_states
    from lingraft.similarity.comparison import compare_sets
    from lingraft.similarity.embedding_similarity import dataset_embedding_similarity
    from lingraft.study.checks import load_study
    from lingraft.study.run import run_study
    from lingraft.train.apply import AppliedStrategies, apply_strategies
    from lingraft.train.mixed_rows import mixed_rows
    from lingraft.train.phase import train_phase
    from lingraft.weights.difference import parameter_difference
    from lingraft.weights.signal_to_noise import signal_to_noise

    __version__: str

_HOMES = {
    "AppliedStrategies": "lingraft.train.apply",
    "Example": "lingraft.data.example",
    "Study": "lingraft.config.schema",
    "apply_strategies": "lingraft.train.apply",
    "compare_sets": "lingraft.similarity.comparison",
    "dataset_embedding_similarity": "lingraft.similarity.embedding_similarity",
    "drift_between": "lingraft.representation.drift",
    "drift_of_models": "lingraft.representation.drift",
    "evaluate_model": "lingraft.evaluate.running",
    "layer_states": "lingraft.representation.states",
    "load_data": "lingraft.data.sources",
    "load_study": "lingraft.study.checks",
    "mixed_rows": "lingraft.train.mixed_rows",
    "parameter_difference": "lingraft.weights.difference",
    "run_study": "lingraft.study.run",
    "signal_to_noise": "lingraft.weights.signal_to_noise",
    "train_phase": "lingraft.train.phase",
}

__all__ = [
    "AppliedStrategies",
    "Example",
    "Study",
    "__version__",
    "apply_strategies",
    "compare_sets",
    "dataset_embedding_similarity",
    "drift_between",
    "drift_of_models",
    "evaluate_model",
    "layer_states",
    "load_data",
    "load_study",
    "mixed_rows",
    "parameter_difference",
    "run_study",
    "signal_to_noise",
    "train_phase",
]


def __getattr__(name: str) -> Any:
    # What is not needed is not imported, not even of the standard library: the command line takes signals before that.
    from importlib import import_module
    from importlib.metadata import version

    if name == "__version__":
        return version("lingraft")
    if name not in _HOMES:
        raise AttributeError(f"module 'lingraft' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
