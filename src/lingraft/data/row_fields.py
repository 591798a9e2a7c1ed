"""Take one field of a row, or say which field is wrong, with its value; used by every format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lingraft.errors import DataError

_SHOWN_CHARACTERS = 60

Row = Mapping[str, Any]


class RowError(DataError):
    """One row cannot be used: which field, and what is wrong with it."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"field {field!r} {problem}")
        self.field = field
        self.problem = problem


def present(row: Row, field: str, place: str = "") -> Any:
    """Return a field's value, which may be anything but null."""
    name = f"{place}.{field}" if place else field
    if field not in row:
        raise RowError(name, "is missing")
    if row[field] is None:
        raise RowError(name, "is null")
    return row[field]


def text(row: Row, field: str, place: str = "", *, may_be_empty: bool = False) -> str:
    """Return a field that must be text."""
    name = f"{place}.{field}" if place else field
    value = present(row, field, place)
    if not isinstance(value, str):
        raise RowError(name, f"must be text, not {kind(value)}")
    if not may_be_empty and not value.strip():
        raise RowError(name, "is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON's "\ud800" parses, but no tokenizer takes it
        raise RowError(name, f"holds half a surrogate pair at character {error.start}") from None
    return value


def optional_text(row: Row, field: str) -> str:
    """Return a field that must be text where it is there; null, empty and absent are the same: ""."""
    return "" if row.get(field) is None else text(row, field, may_be_empty=True)


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
    """Return a field that is text or a whole number as text; None where it is null or absent."""
    value = row.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise RowError(field, f"must be text or a whole number, not {kind(value)}")
    return text({field: str(value)}, field)


def kind(value: Any) -> str:
    """Return what a value is and, shortened, the value."""
    names: dict[type, str] = {dict: "an object", list: "a list", bool: "true or false", str: "text"}
    return f"{names.get(type(value), type(value).__name__)} ({shown(value)})"


def shown(value: Any) -> str:
    """Return a value as it would be written, shortened."""
    written = repr(value)
    return written if len(written) <= _SHOWN_CHARACTERS else written[:_SHOWN_CHARACTERS] + "…"
