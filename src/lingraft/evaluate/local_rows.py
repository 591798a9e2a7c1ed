"""Local copies of a task's data set whose rows have other fields: what a task reads is said by expressions in YAML.

An expression is Jinja's, over a row's fields: `prompts[0].text`, `(label + 1) | string`, `split == 'test'`. It runs
in Jinja's sandbox, and what a row does not have is an error unless the expression asks (`x is defined`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, TemplateError, Undefined
from jinja2.sandbox import SandboxedEnvironment

from lingraft.data.readers import RawRow, read_file
from lingraft.errors import EvaluationError, in_one_line

_ENVIRONMENT = SandboxedEnvironment(undefined=StrictUndefined)


class Expression:
    """A Jinja expression over the fields of a row.

    Beside the fields it knows `row` (the row's number from 0) and `first_row(value)`: the number of the first row for
    which it was called with that value. Rows that share a passage have the same number, in every language of a
    parallel set.

    Args:
        source: The expression.
        place: Where it was written, for errors.

    Raises:
        EvaluationError: It is no Jinja expression.
    """

    def __init__(self, source: str, place: str) -> None:
        self._source, self._place = source, place
        self._first_rows: dict[Any, int] = {}
        try:
            self._compiled = _ENVIRONMENT.compile_expression(source, undefined_to_none=False)
        except TemplateError as error:
            raise EvaluationError(
                f"{place}: {source!r} is no Jinja expression: {in_one_line(error)}."
            ) from None

    def __call__(self, fields: Mapping[str, Any], number: int) -> Any:
        """Return the expression's value for one row.

        Raises:
            EvaluationError: The row lacks what the expression reads, or has it in another form.
        """

        def first_row(value: Any) -> int:
            return self._first_rows.setdefault(value, number)

        try:
            value = self._compiled(**{**fields, "row": number, "first_row": first_row})
        except Exception as error:  # an expression can raise whatever Python's operators do
            raise self._refusal(fields, number, in_one_line(error)) from None
        if isinstance(value, Undefined):
            raise self._refusal(fields, number, "there is no such field")
        return value

    def _refusal(self, fields: Mapping[str, Any], number: int, reason: str) -> EvaluationError:
        return EvaluationError(
            f"{self._place}: {self._source!r} cannot be read from row {number + 1}: {reason}. "
            f"The row has: {', '.join(sorted(fields))}."
        )


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a local json, jsonl, csv or parquet file; a broken one is an error, never left out.

    Raises:
        EvaluationError: A row cannot be read.
        DataError: The file cannot be read.
    """
    for row in sound_rows(path):
        yield dict(row.value)


def sound_rows(path: Path) -> Iterator[RawRow]:
    """Yield the rows of a local file with their places; see `read_rows`."""
    for row in read_file(path, path.name):
        if row.problem is not None:
            raise EvaluationError(f"{row.place}: {row.problem}. An evaluation leaves no row out: mend it.")
        yield row


def mapped_rows(
    rows: list[dict[str, Any]], fields: Mapping[str, str], place: str
) -> Iterator[dict[str, Any]]:
    """Yield the rows with the fields that expressions make of them; all else stays.

    Args:
        rows: As read.
        fields: Name that the task reads -> expression over the row as it was read.
        place: Whose mapping it is, for errors.
    """
    made = {name: Expression(source, f"{place}: fields.{name}") for name, source in fields.items()}
    for number, row in enumerate(rows):
        yield {**row, **{name: expression(row, number) for name, expression in made.items()}}
