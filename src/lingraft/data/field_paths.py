"""Field paths: where rows whose fields have other names hold what a format reads.

In the study file they are a data set's `fields: {instruction: question, output: answers.0.text}`. (A task's `fields`
are expressions, another thing: see `evaluate.expressions`.) A path adds a field to the row; all else stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from lingraft.config.schema import RowField
from lingraft.data.readers import RawRow
from lingraft.data.row_fields import Row, RowError
from lingraft.errors import did_you_mean

_NO_CODE = {"language_code": None, "lang": None}  # what is mapped to `language` stands before these


def with_field_paths(rows: Iterable[RawRow], paths: Mapping[RowField, str]) -> Iterator[RawRow]:
    """Yield the rows with the fields at the paths; one that has nothing at a path becomes a broken row.

    Args:
        rows: As read.
        paths: Name that the format reads -> path in the row. A path is a field's name, or names and list positions
            (from 0) joined by dots.
    """
    for row in rows:
        if row.problem is not None:
            yield row
            continue
        try:
            added = {str(name): at_path(row.value, path, f"fields.{name}") for name, path in paths.items()}
        except RowError as error:
            yield replace(row, value={}, problem=str(error))
        else:
            yield replace(row, value={**row.value, **({} if "language" not in added else _NO_CODE), **added})


def at_path(row: Row, path: str, name: str) -> Any:
    """Return what stands at a path; a field whose own name has dots in it is found first.

    Raises:
        RowError: Nothing stands there; the message says of `name` how far the path leads.
    """
    if path in row:
        return row[path]
    value: Any = row
    walked: list[str] = []
    for part in path.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, (list, tuple)) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            where = f"{'.'.join(walked)!r} of the row" if walked else "the row"
            if isinstance(value, Mapping):
                problem = f"{where} has no {part!r}. {did_you_mean(part, value)}"
            elif isinstance(value, (list, tuple)):
                problem = f"{where} is a list of {len(value)}, which has no {part!r}"
            else:
                problem = f"{where} is no object with fields ({type(value).__name__})"
            raise RowError(name, f"is {path!r}, but {problem}")
        walked.append(part)
    return value
