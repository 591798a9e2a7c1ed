"""Every touch of lm-evaluation-harness's private names, and every patch of it and of what it loads.

The harness has no public way to do these things. No other module may do them (a test holds that), so that another
version of the harness is met here alone. Nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypedDict
from unittest.mock import patch

from lingraft.text.templates import Sandbox

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lingraft.evaluate.task_names import HarnessName

DataFiles = str | list[str] | dict[str, str | list[str]]  # a name, a list, or either by split


class DatasetOptions(TypedDict, total=False):
    """What the harness passes to `datasets.load_dataset`; tasks may have others."""

    data_files: DataFiles


class TaskConfig(TypedDict, total=False):
    """A YAML task as the harness reads it; of its fields those that decide where its items come from."""

    task: Any  # a name; of a group, its members
    include: str | list[str]
    dataset_path: str
    dataset_name: str | None
    dataset_kwargs: DatasetOptions | None
    custom_dataset: Callable[..., Mapping[str, Any]]
    training_split: str | None
    validation_split: str | None
    test_split: str | None
    fewshot_split: str | None


_LOGGERS = ("lm_eval", "huggingface_hub", "transformers.tokenization_utils_base")


@dataclass(frozen=True)
class Sample:
    """One item as the harness has asked and scored it, under one filter.

    Attributes:
        document: The item.
        number: Of the document.
        filter: Name of the filter.
        requests: Prompt and settings, or context and continuation, of each request.
        responses: The answers to each request: texts, or a likelihood with whether it is the greedy answer.
        filtered_response: What the filter left; of likelihoods the numbers as text.
        target: The expected answer.
        metrics: By name.
    """

    document: Mapping[str, Any]
    number: int
    filter: str
    requests: Sequence[Sequence[Any]]
    responses: Sequence[Sequence[Any]]
    filtered_response: str
    target: str
    metrics: Mapping[str, object]

    @property
    def response(self) -> str:
        """The first answer as it was given; a filter may leave a number of it, or nothing."""
        return _text(self.responses[0])


class Verifiers(Protocol):
    """The harness's IFEval module."""

    instructions_registry: Any

    def process_results(self, doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
        """Return the four metrics of an answer."""

    def agg_inst_level_acc(self, items: Sequence[Sequence[bool]]) -> float:
        """Return the share of all instructions that are followed."""


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the harness's log lines, bars and prints, and keep its IFEval module from the network.

    That module downloads NLTK's sentence data when it is imported, and prints that it did where it could not. The
    hub's client logs its attempts, and tokenizers log long prompts; we report both in the end. Errors still come
    through. From here on tasks' templates are rendered in the sandbox.
    """
    import datasets

    _sandbox_templates()
    with redirect_stdout(io.StringIO()):
        import lm_eval.api.task as task_module

        levels = {name: logging.getLogger(name).level for name in _LOGGERS}
        bars_off = datasets.utils.are_progress_bars_disabled()
        for name in _LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)
        datasets.disable_progress_bars()
        try:
            with (
                patch.object(task_module, "tqdm", lambda iterable, **_: iterable),
                patch("nltk.download", lambda *_, **__: False),
            ):
                yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
            if not bars_off:
                datasets.enable_progress_bars()


@cache
def _sandbox_templates() -> None:
    """Have the harness render templates in the sandbox, for good: it does so in many places, by one environment."""
    import lm_eval.utils

    lm_eval.utils.env = Sandbox()


@contextmanager
def hub_cache_only() -> Iterator[None]:
    """Do as HF_HUB_OFFLINE=1 does, which is read only once, when the libraries are imported."""
    with (
        patch("datasets.config.HF_HUB_OFFLINE", True),
        patch("huggingface_hub.constants.HF_HUB_OFFLINE", True),
    ):
        yield


def load_config(path: Path, *, resolve_functions: bool = True) -> TaskConfig:
    """Return the configuration in a YAML task, with what it includes.

    Args:
        path: The YAML file.
        resolve_functions: Import what `!function` names; false: leave the names, and do not read what is included.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    config: TaskConfig = load_yaml(path, resolve_func=resolve_functions, recursive=resolve_functions)
    return config


def task_manager(names: Mapping[str, HarnessName]) -> Any:
    """Return the harness's TaskManager over an index that is known already: making it parses 14,000 files."""
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._index import Entry, Kind

    manager = TaskManager(include_defaults=False)
    manager._index.update(
        {
            name: Entry(
                name, Kind[one.kind], None if one.path is None else Path(one.path), tags=set(one.tags)
            )
            for name, one in names.items()
        }
    )
    return manager


def filter_names(task: ConfigurableTask) -> list[str]:
    """Return the names of the filters through which a task puts answers, in its order."""
    return [str(one.name) for one in task._filters]


def run_tasks(**options: Any) -> dict[str, list[Sample]]:
    """Return samples by task; for the options see `lm_eval.simple_evaluate`.

    Of what surrounds them nothing is made: it asks git for the commit of whatever folder this is, and pip for all
    packages, which takes seconds.
    """
    from lm_eval import evaluator

    with (
        quiet(),
        patch.object(evaluator, "get_git_commit_hash", return_value=None),
        patch.object(evaluator, "add_env_info"),
    ):
        found = evaluator.simple_evaluate(**options)["samples"]
    samples: dict[str, list[Sample]] = {}
    for task, rows in found.items():
        samples[task] = []
        for row in rows:
            given = row["arguments"]  # the harness names them in what it gives out
            requests = given.values() if isinstance(given, dict) else given
            samples[task].append(
                Sample(
                    document=row["doc"],
                    number=row["doc_id"],
                    filter=row["filter"],
                    requests=[list(one.values() if isinstance(one, dict) else one) for one in requests],
                    responses=row["resps"],
                    filtered_response=_text(row["filtered_resps"]),
                    target=str(row["target"]),
                    metrics=row,
                )
            )
    return samples


def _text(responses: Any) -> str:
    first = responses[0] if isinstance(responses, list) and responses else responses
    return first if isinstance(first, str) else str(responses)


def longest_input(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many tokens the harness lets a model read at once."""
    from lm_eval.models.huggingface import HFLM, resolve_max_length

    return int(resolve_max_length(model.config, tokenizer, default=HFLM._DEFAULT_MAX_LENGTH))


@cache
def model_class() -> Any:
    """Return the harness's Hugging Face model, HFLM, with public names for two private methods.

    `encode_pair` splits a context and its continuation into tokens. `score_tokens` is overridden: it gets the pairs of
    token ids that HFLM's perplexities consist of.
    """
    from lm_eval.models.huggingface import HFLM

    class HarnessModel(HFLM):  # type: ignore[misc]
        def encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
            pair: tuple[list[int], list[int]] = self._encode_pair(context, continuation)
            return pair

        def score_tokens(
            self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
        ) -> list[tuple[float, bool]]:
            raise NotImplementedError

        def _loglikelihood_tokens(
            self, requests: Sequence[tuple[object, list[int], list[int]]], **_: object
        ) -> list[tuple[float, bool]]:
            return self.score_tokens([(context, continuation) for _, context, continuation in requests])

    return HarnessModel


@cache
def ifeval_verifiers() -> Verifiers:
    """Return the harness's IFEval module, imported without the download and the print that it begins with."""
    with redirect_stdout(io.StringIO()), patch("nltk.download", return_value=False):
        from lm_eval.tasks.ifeval import utils
    verifiers: Verifiers = utils
    return verifiers
