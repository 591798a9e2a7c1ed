"""Jinja expressions over a row's fields: how a task reads a local copy of its data set whose rows have other fields.

In the study file they are a task's `fields`, `rows` and `cluster`: `prompts[0].text`, `(label + 1) | string`,
`split == 'test'`. (A data set's `fields` are paths, another thing: see `data.field_paths`.) They run in a sandbox
within bounds, and what a row does not have is an error unless the expression asks (`x is defined`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jinja2 import TemplateError, Undefined

from lingraft.errors import EvaluationError, in_one_line
from lingraft.text.templates import Sandbox

_ENVIRONMENT = Sandbox()
_LONGEST_SHOWN = 200


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
        self._place = place
        self._shown = repr(source if len(source) <= _LONGEST_SHOWN else source[:_LONGEST_SHOWN] + "...")
        self._first_rows: dict[Any, int] = {}
        try:
            self._compiled = _ENVIRONMENT.compile_expression(source, undefined_to_none=False)
        except (TemplateError, RecursionError, ValueError) as error:  # the last: a number of 5,000 digits
            problem = in_one_line(error).rstrip(".")
            raise EvaluationError(f"{place}: {self._shown} is no Jinja expression: {problem}.") from None

    def __call__(self, fields: Mapping[str, Any], number: int) -> Any:
        """Return the expression's value for one row.

        Raises:
            EvaluationError: What the expression reads is missing in the row, or of another form.
        """

        def first_row(value: Any) -> int:
            return self._first_rows.setdefault(value, number)

        problem = "there is no such field"
        _ENVIRONMENT.begin()
        try:
            value = self._compiled(**{**fields, "row": number, "first_row": first_row})
        except Exception as error:  # an expression can raise whatever Python's operators do
            problem = in_one_line(error).rstrip(".")
        else:
            if not isinstance(value, Undefined):
                return value
        raise EvaluationError(
            f"{self._place}: {self._shown} cannot be read from row {number + 1}: {problem}. "
            f"The row has: {', '.join(sorted(fields))}."
        )


def with_expressions(
    rows: Iterable[Mapping[str, Any]], expressions: Mapping[str, str], place: str
) -> Iterator[dict[str, Any]]:
    """Yield the rows with the fields that expressions make of them; all else stays.

    Args:
        rows: As read.
        expressions: Name that the task reads -> expression over the row as it was read.
        place: Whose they are, for errors.
    """
    made = {name: Expression(source, f"{place}: fields.{name}") for name, source in expressions.items()}
    for number, row in enumerate(rows):
        yield {**row, **{name: expression(row, number) for name, expression in made.items()}}
