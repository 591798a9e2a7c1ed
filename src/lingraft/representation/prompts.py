"""Prompts to look at a model's states with: text files, MT-Bench files, and whatever data sets lingraft reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lingraft.config.schema import DataSource
from lingraft.data.example import UNDETERMINED_LANGUAGE, Example, Message
from lingraft.data.example_table import select
from lingraft.data.formats import row_language
from lingraft.data.readers import RawRow, read_file
from lingraft.data.row_fields import Row, RowError
from lingraft.data.row_sequence import MadeWhenAsked
from lingraft.data.sources import load_data
from lingraft.errors import DataError

_SUFFIXES = (".jsonl", ".json")


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is said to the model before it answers.

    Attributes:
        messages: The turns; the last is the user's.
        language: BCP-47 tag, or und.
        group: Of the row that it is of, equal for parallel rows; "": it is of no row of a data set.
        fold_system: See `Example`.
    """

    messages: tuple[Message, ...]
    language: str
    group: str = ""
    fold_system: bool = False


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
        base_folder: Folder that relative file names start from.

    Raises:
        DataError: There is no such file, a row has no prompt, or there are none.
    """
    path = base_folder / source
    prompts: Sequence[Prompt]
    if path.suffix == ".txt":
        prompts = _from_lines(path, language)
    elif path.suffix in _SUFFIXES and path.is_file() and _holds_prompts(path):
        prompts = [_from_row(row, language) for row in read_file(path, source)]
    else:
        spec = DataSource(source=source, language=language)
        examples = load_data(spec, base_folder=base_folder, answered=False).examples
        used = examples if limit is None else select(examples, np.arange(min(limit, len(examples))))
        prompts = MadeWhenAsked(used, lambda _, example: _prompt_of(example))
    if not prompts:
        raise DataError(f"{source}: there are no prompts in it.")
    return prompts if limit is None or limit >= len(prompts) else prompts[:limit]


def prompts_of(examples: Iterable[Example]) -> list[Prompt]:
    """Return what is said before the last answer of each example, all of it where the last turn is no answer."""
    return [_prompt_of(example) for example in examples]


def _prompt_of(example: Example) -> Prompt:
    turns = example.messages
    asked = turns[:-1] if turns[-1].role == "assistant" else turns
    return Prompt(asked, example.language, example.group, example.fold_system)


def _from_lines(path: Path, language: str | None) -> list[Prompt]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error}).") from None
    lines = [line.strip() for line in text.split("\n")]
    return [_said(line, language) for line in lines if line]


def holds_prompts(row: Row) -> bool:
    """Return whether a row has prompts as MT-Bench's has its `turns`, or `prompt` alone, and no answer."""
    return "turns" in row or ("prompt" in row and not row.keys() & {"completion", "messages", "output"})


def _holds_prompts(path: Path) -> bool:
    first = next(read_file(path, str(path)), None)
    return first is not None and holds_prompts(first.value)


def _from_row(row: RawRow, language: str | None) -> Prompt:
    if row.problem is not None:
        raise DataError(f"{row.place}: {row.problem}.")
    value: Any = row.value.get("turns", row.value.get("prompt"))
    first = value[0] if isinstance(value, Sequence) and not isinstance(value, str) and value else value
    if not isinstance(first, str) or not first.strip():
        raise DataError(f"{row.place}: has no text in 'turns' or 'prompt', but {first!r}.")
    try:
        return _said(first, language or row_language(row.value))
    except RowError as error:
        raise DataError(f"{row.place}: {error}.") from None


def _said(text: str, language: str | None) -> Prompt:
    return Prompt((Message("user", text),), language or UNDETERMINED_LANGUAGE)
