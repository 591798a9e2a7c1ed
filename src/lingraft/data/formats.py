"""From one row of a data set to an Example, in the formats that public instruction sets come in.

Pure functions over one row at a time; `data.sources` reads the rows and counts those that are refused here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from lingraft.data.conversations import (
    from_conversation,
    from_messages,
    from_prompt_and_completion,
    from_sharegpt,
    tools_of,
)
from lingraft.data.example import UNDETERMINED_LANGUAGE, Example, Message
from lingraft.data.row_fields import (
    AnswerError,
    Row,
    RowError,
    answer,
    identifier,
    is_nothing,
    kind,
    language_tag,
    objects,
    optional_text,
    shown,
    text,
    whole,
)
from lingraft.errors import DataError

_SHOWN_FIELDS = 12
_SHOWN_NEAR = 2  # formats that the row has a field of
OASST_TREES = "oasst"  # rows are single messages; `data.trees` makes conversations of them


class Reader(Protocol):
    """Reads a row's conversation; unless it must be `answered`, one without an answer is no error."""

    def __call__(self, row: Row, *, answered: bool = True) -> tuple[Message, ...]:
        """Return the turns."""


@dataclass(frozen=True, slots=True)
class SingleTurn:
    """Reads rows of one question and one answer, each a field."""

    question: str  # the field with the instruction
    # Fields of which the first that the row has is the answer, the first one where it has none.
    answers: tuple[str, ...]
    # The field that is joined to the instruction by a blank line; None: there is none.
    context: str | None = None
    system: str | None = None  # the field with the system prompt; None: there is none
    lists: Reader | None = (
        None  # reads the row where question or answer is a list of turns; None: they are text
    )

    def __call__(self, row: Row, *, answered: bool = True) -> tuple[Message, ...]:
        """Return the turns."""
        if self.lists and any(
            isinstance(row.get(one), (list, tuple)) for one in (self.question, *self.answers)
        ):
            return self.lists(row, answered=answered)
        context = optional_text(row, self.context) if self.context else ""
        field = next((one for one in self.answers if one in row), self.answers[0])
        turns = _asked_and_answered(text(row, self.question), context, row, field, answered)
        system = optional_text(row, self.system) if self.system else ""
        return (Message("system", system), *turns) if system.strip() else turns


def _asked_and_answered(
    instruction: str, context: str, row: Row, answer_field: str, answered: bool, place: str = ""
) -> tuple[Message, ...]:
    question = Message("user", f"{instruction}\n\n{context}" if context.strip() else instruction)
    try:
        return question, Message("assistant", answer(row, answer_field, place))
    except AnswerError:
        if answered:
            raise
        return (question,)


_INPUTS_TARGETS = SingleTurn("inputs", ("targets",))


def _from_self_instruct(row: Row, *, answered: bool = True) -> tuple[Message, ...]:
    instances = objects(row, "instances", "'input' and 'output'")
    if len(instances) != 1:
        raise RowError("instances", f"holds {len(instances)} instances; give each one a row of its own")
    instance = instances[0]
    context = optional_text(instance, "input")
    return _asked_and_answered(
        text(row, "instruction"), context, instance, "output", answered, "instances[0]"
    )


@dataclass(frozen=True, slots=True)
class Format:
    """A format: how its rows are read, and which fields show that a row is of it."""

    read: Reader  # from a row to its conversation
    has: Callable[[Row], bool]  # whether a row has the format's fields
    needs: str  # what these are, for messages


def _all_in(*fields: str) -> Callable[[Row], bool]:
    return lambda row: all(field in row for field in fields)


_is_dolly = _all_in("instruction", "context", "response")


def _is_aya(row: Row) -> bool:
    return _all_in("inputs", "targets")(row) and ("language_code" in row or "language" in row)


FORMATS: Mapping[str, Format] = {
    "alpaca": Format(
        SingleTurn("instruction", ("output", "response"), context="input"),
        lambda row: "instruction" in row and ("output" in row or "response" in row) and not _is_dolly(row),
        "'instruction' and 'output' (or 'response'), optionally 'input'",
    ),
    "messages": Format(
        from_messages, _all_in("messages"), "'messages', a list of {'role', 'content'}, optionally 'tools'"
    ),
    "prompt_completion": Format(
        SingleTurn("prompt", ("completion",), lists=from_prompt_and_completion),
        _all_in("prompt", "completion"),
        "'prompt' and 'completion', text or lists of {'role', 'content'}",
    ),
    "sharegpt": Format(
        from_sharegpt, _all_in("conversations"), "'conversations', a list of {'from', 'value'}"
    ),
    "conversation": Format(
        from_conversation, _all_in("conversation"), "'conversation', a list of {'role', 'content'}"
    ),
    "openorca": Format(
        SingleTurn("question", ("response",), system="system_prompt"),
        _all_in("system_prompt", "question", "response"),
        "'question' and 'response', optionally 'system_prompt'",
    ),
    "dolly": Format(
        SingleTurn("instruction", ("response",), context="context"),
        _is_dolly,
        "'instruction', 'context' and 'response'",
    ),
    "aya": Format(_INPUTS_TARGETS, _is_aya, "'inputs', 'targets' and 'language_code' or 'language'"),
    "flan": Format(
        _INPUTS_TARGETS,
        lambda row: _all_in("inputs", "targets")(row) and not _is_aya(row),
        "'inputs' and 'targets'",
    ),
    "self_instruct": Format(
        _from_self_instruct,
        _all_in("instruction", "instances"),
        "'instruction' and 'instances' with one {'input', 'output'}",
    ),
    OASST_TREES: Format(
        from_messages,
        _all_in("message_id", "parent_id", "role", "text"),
        "'message_id', 'parent_id', 'role' and 'text', a message a row",
    ),
}


# By which field rows that have only their instruction are read, where answers are not needed.
_ASKED_BY = {
    ("instruction", "context"): "dolly",
    ("instruction",): "alpaca",
    ("prompt",): "prompt_completion",
    ("inputs",): "flan",
    ("question",): "openorca",
}


class UnknownFormatError(DataError):
    """A row has the fields of none of FORMATS."""


def detect_format(row: Row, *, answered: bool = True) -> str:
    """Return which of FORMATS a row has, by the names of its fields; unless `answered`, one of the question is enough.

    Raises:
        DataError: More than one format fits; the message names the row's fields.
        UnknownFormatError: No format fits.
    """
    found = [name for name, one in FORMATS.items() if one.has(row)]
    if not found and not answered:
        found = [name for fields, name in _ASKED_BY.items() if _all_in(*fields)(row)][:1]
    if len(found) == 1:
        return found[0]
    names = [shown(field) for field in row]
    more = [f"and {len(names) - _SHOWN_FIELDS} more"] if len(names) > _SHOWN_FIELDS else []
    fields = ", ".join(names[:_SHOWN_FIELDS] + more) or "none"
    if found:
        raise DataError(
            f"the row has the fields of {' and '.join(found)} (fields: {fields}). Say which: format: {found[0]}"
        )
    if _all_in("chosen", "rejected")(row):
        raise UnknownFormatError(
            f"the row prefers one answer to another (fields: {fields}), and lingraft trains on single answers. To "
            "train on the chosen ones write fields: {completion: chosen} where they are the answers to 'prompt', "
            "fields: {messages: chosen} where they are whole conversations"
        )
    near = [name for name, one in FORMATS.items() if any(f"{field!r}" in one.needs for field in row)]
    needs = [
        f"; {name} needs {FORMATS[name].needs}" for name in dict.fromkeys(["alpaca", *near[:_SHOWN_NEAR]])
    ]
    raise UnknownFormatError(
        f"the row has none of the known formats (fields: {fields}). Say where its question and answer stand, such as "
        "fields: {instruction: question, output: answer} (--field instruction=question --field output=answer)"
        f"{''.join(needs)}. docs/data.md shows a row of each format"
    )


def example_from_row(
    row: Row,
    format_name: str,
    *,
    id: str,  # noqa: A002 - named as in Example
    source: str,
    language: str | None,
    likely_language: str | None = None,
    fold_system: bool = False,
    answered: bool = True,
) -> Example:
    """Return the Example that a row holds.

    An instruction and its input or context are joined by a blank line. The optional fields `id`, `language` (or
    `language_code`, `lang`), `group` and `task_type` (or a `category` or `task` that is text) are honoured; null
    counts as absent in optional fields. Without `group`, a row's group is a hash of its conversation, so that copies
    of a row are never split between training and held-out data.

    Args:
        row: Field names and values.
        format_name: One of FORMATS.
        id: Used where the row has no field `id`.
        source: The data set as the user named it.
        language: BCP-47 tag that overrides the row's own; None: the row's language.
        likely_language: BCP-47 tag of a row that says none; None: "und".
        fold_system: See `Example`.
        answered: Whether the row must have an answer; DES reads instructions alone.

    Raises:
        AnswerError: The row has no answer.
        RowError: A field is missing, empty or of the wrong type.
    """
    messages = FORMATS[format_name].read(row, answered=answered)
    tools = tools_of(row)
    written = language or row_language(row)
    if is_nothing(row.get("task_type")):
        types = (field for field in ("category", "task") if isinstance(row.get(field), str))
        task_type = next((whole(row[field], field) for field in types), "")
    else:
        if not isinstance(row["task_type"], str):
            raise RowError("task_type", f"must be text, not {kind(row['task_type'])}")
        task_type = text(row, "task_type")
    turns = [f"{message.role}\x1f{message.content}{message.details}" for message in messages]
    content = "\x1e".join([*turns, tools] if tools else turns)
    return Example(
        id=identifier(row, "id") or id,
        messages=messages,
        language=likely_language or written if written == UNDETERMINED_LANGUAGE else written,
        group=identifier(row, "group") or "row-" + hashlib.sha256(content.encode("utf-8")).hexdigest()[:16],
        source=source,
        tools=tools,
        task_type=task_type,
        fold_system=fold_system,
    )


_LANGUAGE_FIELDS = ("language_code", "language", "lang")


def row_language(row: Row) -> str:
    """Return a row's language as a BCP-47 tag; "und": it says none.

    Raises:
        RowError: It is no language.
    """
    for field in _LANGUAGE_FIELDS:
        if not is_nothing(row.get(field)):
            return language_tag(text(row, field), field)
    return UNDETERMINED_LANGUAGE
