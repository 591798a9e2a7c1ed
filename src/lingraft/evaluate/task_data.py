"""What the tasks of our own share: their rows from a local file or the hub, a fixed sample, the room for an answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from lingraft.config.schema import DataSource
from lingraft.data.files import SourceFile
from lingraft.data.readers import RawRow
from lingraft.data.rows import open_rows
from lingraft.errors import EvaluationError

# The hub's own conversion of data sets whose loading script the datasets library no longer runs.
CONVERTED = "refs/convert/parquet"

_Item = TypeVar("_Item", bound=Mapping[str, Any])


@dataclass(frozen=True)
class TaskRows:
    """Rows as they were read."""

    rows: tuple[RawRow, ...]  # in the order of the source
    source: str  # the file's name, or the hub id and configuration
    revision: str | None  # the hub's commit; None for a file, or where the cache does not say it


def read_rows(data: Path | None, hub: DataSource | None, *, absent: str) -> TaskRows:
    """Return all rows of a task: of a local file where one is given, else of what the hub has for the task's language.

    Raises:
        EvaluationError: There is neither (the message is `absent`), or a row cannot be read.
        DataError: The file or the hub's data set cannot be read as a whole.
    """
    if data is not None:
        return TaskRows(tuple(open_rows(SourceFile(data, data.name)).sound(EvaluationError)), data.name, None)
    if hub is None:
        raise EvaluationError(absent)
    found = open_rows(hub)
    return TaskRows(tuple(found.sound(EvaluationError)), f"{hub.source}:{hub.config}", found.revision)


def fixed_sample(items: Sequence[_Item], limit: int | None) -> list[_Item]:
    """Return `limit` items, those whose ids hash lowest, in the order of the source; all where there are no more.

    Spread over the whole set, where its first rows would be one article; the same items in every language whose ids
    are parallel; a smaller sample is part of a larger one.
    """
    if limit is None or limit >= len(items):
        return list(items)
    by_hash = sorted(range(len(items)), key=lambda place: sha256(items[place]["id"].encode()).digest())
    return [items[place] for place in sorted(by_hash[:limit])]


def room_for(references: Iterable[str], fewest: int) -> int:
    """Return a number of tokens that every reference fits in: its bytes, which no byte-level tokenizer exceeds.

    At least `fewest`; the end token is counted. A limit that is fair to English cuts Thai off: of 100 reference
    summaries each, the longest has 635 tokens of SmolLM2 in Thai and 94 in Indonesian.
    """
    return max([fewest, *(len(reference.encode()) + 1 for reference in references)])
