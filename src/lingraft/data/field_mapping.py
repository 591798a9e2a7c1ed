"""Rows whose fields have other names: `fields: {instruction: question, output: answers.0.text}`.

A mapping adds the fields that a format reads to a row, taken from where the row has them; all else stays.
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


def mapped_rows(rows: Iterable[RawRow], fields: Mapping[RowField, str]) -> Iterator[RawRow]:
    """Yield the rows with their mapped fields; one that lacks a named field becomes a broken row.

    Args:
        rows: As read.
        fields: Name that the format reads -> path in the row. A path is a field's name, or names and list positions
            (from 0) joined by dots.
    """
    for row in rows:
        if row.problem is not None:
            yield row
            continue
        try:
            added: dict[str, Any] = {name: _at(row.value, path, name) for name, path in fields.items()}
        except RowError as error:
            yield replace(row, value={}, problem=str(error))
        else:
            yield replace(row, value={**row.value, **({} if "language" not in added else _NO_CODE), **added})


def _at(row: Row, path: str, name: str) -> Any:
    """Return what stands at a path; a field whose own name has dots in it is found first."""
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
            raise RowError(f"fields.{name}", f"is {path!r}, but {_lacking(value, part, walked)}")
        walked.append(part)
    return value


def _lacking(value: Any, part: str, walked: list[str]) -> str:
    where = f"{'.'.join(walked)!r} of the row" if walked else "the row"
    if isinstance(value, Mapping):
        return f"{where} has no {part!r}. {did_you_mean(part, value)}"
    if isinstance(value, (list, tuple)):
        return f"{where} is a list of {len(value)}, which has no {part!r}"
    return f"{where} is no object with fields ({type(value).__name__})"
