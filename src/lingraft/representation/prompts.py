"""Prompts to look at a model's states with: text files, MT-Bench files, and whatever data sets lingraft reads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lingraft.config.paths import user_path
from lingraft.config.schema import DataSource
from lingraft.data.example import UNDETERMINED_LANGUAGE, Example, Message
from lingraft.data.example_table import select
from lingraft.data.formats import row_language
from lingraft.data.readers import PROMPT_FIELD, data_suffix
from lingraft.data.row_fields import Row, RowError
from lingraft.data.row_sequence import MadeWhenAsked
from lingraft.data.rows import open_rows
from lingraft.data.sources import LoadedData, load_data
from lingraft.errors import DataError

_PROMPT_FILES = (".txt", ".jsonl", ".json")


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is said to the model before it answers."""

    messages: tuple[Message, ...]  # the turns; the last is the user's
    language: str  # BCP-47 tag, or und
    group: str = ""  # of the row that it is of, equal for parallel rows; "": it is of no row of a data set
    fold_system: bool = False  # see `Example`


def read_prompts(
    source: str, *, language: str | None = None, limit: int | None = None, base_folder: Path = Path()
) -> Sequence[Prompt]:
    """Read prompts; those of a large data set stay on disk.

    Args:
        source: A .txt file of one prompt a line; a .json or .jsonl file whose rows have `prompt` alone, or `turns` as
            MT-Bench has them, of which the first counts; or any data source, of which the turns before the last answer
            count.
        language: BCP-47 tag of all; None: as the rows say.
        limit: The first so many; None: all.
        base_folder: Folder that relative names start from.

    Raises:
        DataError: There is no such file, a row has no prompt, or there are none.
    """
    spec = DataSource(source=source, language=language)
    prompts = _from_prompt_file(spec, base_folder)
    if prompts is None:
        examples = load_data(spec, base_folder=base_folder, answered=False).examples
        used = examples if limit is None else select(examples, np.arange(min(limit, len(examples))))
        return MadeWhenAsked(used, lambda _, example: prompt_of(example))
    return prompts[:limit]


def _from_prompt_file(spec: DataSource, base_folder: Path) -> list[Prompt] | None:
    """Return the prompts of a file that holds nothing but prompts; None: the source is no such file."""
    path = base_folder / user_path(spec.source)
    is_named_so = data_suffix(path) in _PROMPT_FILES
    if path.suffix != ".txt" and not (is_named_so and os.path.isfile(path)):  # noqa: PTH113 - never raises
        return None
    rows = open_rows(spec, base_folder=base_folder, with_text=True)
    first = next(iter(rows), None)
    if first is not None and not holds_prompts(first.value):
        return None
    prompts = []
    for row in rows.sound():
        value: Any = row.value.get("turns", row.value.get(PROMPT_FIELD))
        said = value[0] if isinstance(value, Sequence) and not isinstance(value, str) and value else value
        if not isinstance(said, str) or not said.strip():
            raise DataError(f"{row.place}: has no text in 'turns' or 'prompt', but {said!r}.")
        try:
            tag = spec.language or row_language(row.value)
        except RowError as error:
            raise DataError(f"{row.place}: {error}.") from None
        prompts.append(Prompt((Message("user", said),), tag))
    return prompts


def prompts_of(given: object) -> Sequence[Prompt]:
    """Return prompts, of what a user gives: a source as `read_prompts` takes it, a list of texts, or examples.

    Raises:
        DataError: It is none of these, or there are none.
    """
    if isinstance(given, (str, Path)):
        try:
            return read_prompts(str(given))
        except DataError as error:
            raise DataError(f'{error} A prompt itself stands in a list: ["{str(given)[:40]}"].') from None
    rows = given.examples if isinstance(given, LoadedData) else given
    if not isinstance(rows, Sequence):
        raise DataError(
            f"prompts: {'None' if given is None else f'a {type(given).__name__}'} holds none; give a list of texts, "
            "or a .txt file or a data set by its name."
        )
    if not rows:
        raise DataError("there are no prompts to look at the model's states with.")
    if isinstance(rows[0], Prompt):
        return rows
    if isinstance(rows[0], Example):
        return MadeWhenAsked(rows, lambda _, example: prompt_of(example))
    for number, text in enumerate(rows):
        if not isinstance(text, str) or not text.strip():
            raise DataError(
                f"prompts[{number}] is {text!r:.80}: give texts, lingraft.Prompt or lingraft.Example."
            )
    return [Prompt((Message("user", text),), UNDETERMINED_LANGUAGE) for text in rows]


def prompt_of(example: Example) -> Prompt:
    """Return what is said before the last answer, all of it where the last turn is no answer."""
    turns = example.messages
    asked = turns[:-1] if turns[-1].role == "assistant" else turns
    return Prompt(asked, example.language, example.group, example.fold_system)


def holds_prompts(row: Row) -> bool:
    """Return whether a row has prompts as MT-Bench's has its `turns`, or `prompt` alone, and no answer."""
    return "turns" in row or ("prompt" in row and not row.keys() & {"completion", "messages", "output"})
