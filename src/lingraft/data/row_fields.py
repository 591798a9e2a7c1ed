"""Take one field of a row, or say which field is wrong, with its value; used by every format.

Nothing is null or NaN, which is what pandas writes for a value that is missing. A number stands for its text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from lingraft.errors import DataError
from lingraft.text.language_tags import tag_as_written

_SHOWN_CHARACTERS = 60
_DEEPEST = 100  # lists and objects in one another; tools and their schemas have about ten
_LARGEST_WHOLE_FLOAT = 2**53  # beyond it not every whole number is a float

Row = Mapping[str, Any]


class RowError(DataError):
    """One row cannot be used: which field, and what is wrong with it."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"field {field!r} {problem}")
        self.field = field
        self.problem = problem


class AnswerError(RowError):
    """A row has no answer, or an empty one."""


def is_nothing(value: Any) -> bool:
    """Return whether a value is null or NaN."""
    return value is None or (isinstance(value, (float, Decimal)) and math.isnan(value))


def present(row: Row, field: str, place: str = "") -> Any:
    """Return a field's value, which may be anything but null and NaN."""
    name = f"{place}.{field}" if place else field
    if field not in row:
        raise RowError(name, "is missing")
    if is_nothing(row[field]):
        raise RowError(name, "is null" if row[field] is None else "is NaN")
    return row[field]


def text(row: Row, field: str, place: str = "", *, may_be_empty: bool = False) -> str:
    """Return a field that must be text, or a number, which becomes text: 42, and 42.0 as well, becomes "42"."""
    name = f"{place}.{field}" if place else field
    value = present(row, field, place)
    if _is_number(value):
        # 7 for 7.0 too: pandas makes such numbers of whole ones where one of the column is missing.
        is_whole = -_LARGEST_WHOLE_FLOAT < value < _LARGEST_WHOLE_FLOAT and value == int(value)
        return str(int(value) if is_whole else value)
    if not isinstance(value, str):
        raise RowError(name, f"must be text, not {kind(value)}")
    if not may_be_empty and not value.strip():
        raise RowError(name, "is empty")
    return whole(value, name)


def whole(value: str, name: str) -> str:
    """Return a text that can be written: JSON's "\\ud800" parses, but neither files nor tokenizers take it.

    Raises:
        RowError: It holds half a surrogate pair.
    """
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowError(name, f"holds half a surrogate pair at character {error.start}") from None
    return value


def as_json(value: Any, name: str) -> str:
    """Return a value as JSON text without what is null: columnar files give every object the fields of all others.

    Raises:
        RowError: It holds what JSON cannot, such as a time or half a surrogate pair, or is nested too deeply.
    """
    try:
        written = json.dumps(_without_nulls(value, name), ensure_ascii=False, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise RowError(name, f"cannot be written as JSON: {error}") from None
    return whole(written, name)


def from_json(written: str, name: str) -> Any:
    """Return what JSON text says.

    Raises:
        RowError: It is not JSON, or not usable.
    """
    try:
        return json.loads(written)
    except (ValueError, RecursionError) as error:
        raise RowError(name, f"is not JSON: {error}") from None


def _without_nulls(value: Any, name: str, depth: int = 0) -> Any:
    if depth > _DEEPEST:  # what goes through it later would not come back from a thousand
        raise RowError(name, f"is nested more than {_DEEPEST} deep")
    if isinstance(value, dict):
        return {key: _without_nulls(one, name, depth + 1) for key, one in value.items() if one is not None}
    return (
        [_without_nulls(one, name, depth + 1) for one in value] if isinstance(value, (list, tuple)) else value
    )


def answer(row: Row, field: str, place: str = "") -> str:
    """Return the field that holds a row's answer.

    Raises:
        AnswerError: It is missing, null, NaN or empty.
        RowError: It is neither text nor a number.
    """
    try:
        return text(row, field, place)
    except RowError as error:
        value = row.get(field)
        if is_nothing(value) or (isinstance(value, str) and not value.strip()):
            raise AnswerError(error.field, error.problem) from None
        raise


def optional_text(row: Row, field: str) -> str:
    """Return a field that must be text where it is there; null, NaN, empty and absent are the same: ""."""
    return "" if is_nothing(row.get(field)) else text(row, field, may_be_empty=True)


def objects(row: Row, field: str, needs: str) -> list[Row]:
    """Return a field that must be a list of objects; `needs` says what these have."""
    values = present(row, field)
    if not isinstance(values, (list, tuple)):
        raise RowError(field, f"must be a list of {needs}, not {kind(values)}")
    for index, value in enumerate(values):
        if not isinstance(value, Mapping):
            raise RowError(f"{field}[{index}]", f"must be an object with {needs}, not {kind(value)}")
    return list(values)


def identifier(row: Row, field: str) -> str | None:
    """Return a field that is text or a number as text; None where it is null, NaN or absent."""
    value = row.get(field)
    if is_nothing(value):
        return None
    if not isinstance(value, str) and not _is_number(value):
        raise RowError(field, f"must be text or a number, not {kind(value)}")
    return text(row, field)


def _is_number(value: Any) -> bool:
    if isinstance(value, (float, Decimal)):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def kind(value: Any) -> str:
    """Return what a value is and, cut to 60 characters, the value."""
    names: dict[type, str] = {dict: "an object", list: "a list", bool: "true or false", str: "text"}
    return f"{names.get(type(value), type(value).__name__)} ({shown(value)})"


def shown(value: Any) -> str:
    """Return a value as it would be written, cut to 60 characters."""
    written = repr(value)
    return written if len(written) <= _SHOWN_CHARACTERS else written[:_SHOWN_CHARACTERS] + "…"


def language_tag(written: str, field: str = "language") -> str:
    """Return the BCP-47 tag of a language that is written in any way that `text.language_tags` knows.

    Raises:
        RowError: Neither tag nor name; the message names `field`.
    """
    tag = tag_as_written(written)
    if tag is None:
        raise RowError(
            field,
            f"is {shown(written)}, neither a BCP-47 tag such as es nor an English name such as Spanish; `language:` "
            "in the study overrides it",
        )
    return tag
