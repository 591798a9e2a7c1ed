"""Tasks of lingraft's own: folders of `tasks/`, which the harness loads by `include_path` as any other.

A folder NAME holds NAME.yaml, a task as the harness knows it, and the Python module that it names. With
`class: !function lingraft.evaluate.own_task.OwnTask` such a task knows its language, may read local data, and lets
answers be as long as its references; `custom_dataset` then names a function of `Options` that returns `Documents`.
A folder name goes before a harness task of that name.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager

from lingraft.errors import EvaluationError
from lingraft.evaluate.task_names import TASKS_FOLDER
from lingraft.text.language_tags import ENGLISH

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FEWEST_NEW_TOKENS = 96
ROOM_OF_LONGEST = 2  # so many times as long as the longest right answer may an answer be
_KNOWS_LANGUAGE = ("doc_to_text", "doc_to_target", "process_results")


@dataclass(frozen=True)
class Options:
    """How a task is asked for: in a study file, or by `lm_eval --metadata '{"language": "th"}'`.

    Attributes:
        language: BCP-47 tag.
        data: A local file in the place of the hub's data set; None: the hub's.
        limit: Documents; None: all.
        family: worldbook's.
        split: worldbook's.
    """

    language: str = ENGLISH
    data: Path | None = None
    limit: int | None = None
    family: str = ""
    split: str = "report"


@dataclass(frozen=True)
class Documents:
    """What a task asks.

    Attributes:
        rows: The harness's documents, all with the same fields. Those that share a passage have the same `cluster`, in
            every language of a parallel set.
        longest_answer: Tokens that every right answer fits in, whatever the tokenizer.
        source: The file's name, or the hub's data set.
        revision: The hub's commit; None for a file, or where the cache does not say it.
        version: Of the documents, where it is not that of the YAML file.
        references: Right answers, by whose tokens a model's answers are bounded (`answer_room`); empty: none are known.
    """

    rows: Sequence[Mapping[str, Any]]
    longest_answer: int
    source: str | None = None
    revision: str | None = None
    version: str | None = None
    references: tuple[str, ...] = ()


class OwnTask(ConfigurableTask):  # type: ignore[misc]
    """A task whose documents come from a function of `Options`; of its functions, those with `language` get it.

    Args:
        config: The YAML file, with `Options` and `max_new_tokens`, the longest answer, in its `metadata`.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        given = config.get("metadata", {}) | (config.get("dataset_kwargs") or {})
        self._options = Options(
            language=given.get("language") or ENGLISH,
            data=None if given.get("data") is None else Path(given["data"]),
            limit=given.get("limit"),
            family=given.get("family", ""),
            split=given.get("split", "report"),
        )
        bound = {
            field: partial(function, language=self._options.language)
            for field in _KNOWS_LANGUAGE
            if callable(function := config.get(field))
            and "language" in inspect.signature(function).parameters
        }
        plain = {field: value for field, value in config.items() if field != "class"}
        super().__init__(config=plain | bound)

    def download(self, dataset_kwargs: Mapping[str, Any] | None = None, **_: Any) -> None:  # noqa: ARG002
        """Make the documents, and the longest answer where none was named; see ConfigurableTask."""
        import datasets

        config = self.config
        found: Documents = config.custom_dataset(self._options)
        if not found.rows:
            name = config.metadata["items"].format(**vars(self._options))
            raise EvaluationError(f"{name}: there are no rows in {found.source}.")
        self.dataset = {"test": datasets.Dataset.from_list([dict(row) for row in found.rows])}
        self.references = () if config.metadata.get("max_new_tokens") else found.references
        longest = config.metadata.get("max_new_tokens") or found.longest_answer
        config.generation_kwargs = config.generation_kwargs | {"max_gen_toks": longest}
        if found.version is not None:
            self.VERSION = found.version
        config.metadata = config.metadata | {"source": found.source, "revision": found.revision}


def answer_room(task: ConfigurableTask, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return how many tokens an answer of a model may have, from the lengths of right answers in its own tokens.

    Twice the longest, as a right answer may be worded otherwise, and the end token; at least 96, and at most what fits
    whatever the tokenizer: a text has no more tokens than bytes, of which other scripts than Latin have three times as
    many. None: the task names a length, or knows no right answers.
    """
    references: Sequence[str] = getattr(task, "references", ())
    if not references:
        return None
    ids: Any = tokenizer(list(references), add_special_tokens=False)["input_ids"]
    room = max(FEWEST_NEW_TOKENS, ROOM_OF_LONGEST * max(map(len, ids)) + 1)
    return min(room, int(task.config.generation_kwargs["max_gen_toks"]))


def own_task(
    name: str,
    language: str,
    *,
    data: Path | None = None,
    limit: int | None = None,
    max_new_tokens: int | None = None,
    family: str | None = None,
    split: str = "report",
) -> ConfigurableTask:
    """Return the harness task of a folder; for the options see `Options`, and `max_new_tokens` is the longest answer.

    Raises:
        EvaluationError: The task has nothing in this language, reads no local data, or a row cannot be read.
        DataError: The data cannot be read.
    """
    options = {
        "language": language,
        "data": None if data is None else str(data),
        "limit": limit,
        "max_new_tokens": max_new_tokens,
        "split": split,
    }
    manager = TaskManager(include_path=TASKS_FOLDER, include_defaults=False, metadata=options)
    (task,) = manager.load([name if family is None else f"{name}_{family}"])["tasks"].values()
    if data is not None and not isinstance(task, OwnTask):
        raise EvaluationError(f"{name}: reads no local file; leave out its `data`.")
    called = (task.config.metadata or {}).get("items")
    if called is not None:
        task.set_config("task", called.format(language=language, family=family))
    return task
