"""From one row of a data set to an Example: the formats alpaca, messages and prompt_completion.

Pure functions over one row at a time; `data.sources` reads the rows and counts those that are refused here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any, cast

from lingraft.data.example import UNDETERMINED_LANGUAGE, Example, Message, Role
from lingraft.errors import DataError

FORMATS = ("alpaca", "messages", "prompt_completion")

_NEEDED_FIELDS = {
    "alpaca": "'instruction' and 'output' (or 'response'), optionally 'input'",
    "messages": "'messages', a list of {'role', 'content'}",
    "prompt_completion": "'prompt' and 'completion'",
}
_ROLES = ("system", "user", "assistant")
_BCP47 = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*")
_SHOWN_CHARACTERS = 60


class RowError(DataError):
    """One row cannot be used: which field, and what is wrong with it."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"field {field!r} {problem}")
        self.field = field
        self.problem = problem


def detect_format(row: Mapping[str, Any]) -> str:
    """Return which of FORMATS a row has, by the names of its fields.

    Raises:
        DataError: No format fits, or more than one; the message names the row's fields and what each needs.
    """
    fitting = {
        "alpaca": "instruction" in row and ("output" in row or "response" in row),
        "messages": "messages" in row,
        "prompt_completion": "prompt" in row and "completion" in row,
    }
    found = [name for name, fits in fitting.items() if fits]
    if len(found) == 1:
        return found[0]
    fields = ", ".join(repr(field) for field in row) or "none"
    needs = "; ".join(f"{name} needs {needed}" for name, needed in _NEEDED_FIELDS.items())
    if found:
        raise DataError(
            f"the row has the fields of {' and '.join(found)} (fields: {fields}). Say which: format: {found[0]}"
        )
    raise DataError(f"the row has none of the known formats (fields: {fields}). {needs}.")


def example_from_row(
    row: Mapping[str, Any],
    format_name: str,
    *,
    id: str,  # noqa: A002 - named as in Example
    source: str,
    language: str | None,
) -> Example:
    """Return the Example that a row holds.

    An alpaca row's instruction and input are joined by a blank line. The optional fields `id`, `language`
    and `group` are honoured; null counts as absent in optional fields. Without `group`, a row's group is a
    hash of its conversation, so that copies of a row are never split between training and held-out data.

    Args:
        row: Field names and values.
        format_name: One of FORMATS.
        id: Used where the row has no field `id`.
        source: The data set as the user named it.
        language: BCP-47 tag that overrides the row's own; None: the row's field `language`, else "und".

    Raises:
        RowError: A field is missing, empty or of the wrong type, or the conversation has no answer.
    """
    messages = _READERS[format_name](row)
    return Example(
        id=_identifier(row, "id") or id,
        messages=messages,
        language=language or _language(row),
        group=_identifier(row, "group") or _content_group(messages),
        source=source,
    )


def _from_alpaca(row: Mapping[str, Any]) -> tuple[Message, ...]:
    answer_field = "response" if "response" in row and "output" not in row else "output"
    instruction = _text(row, "instruction")
    extra = "" if row.get("input") is None else _text(row, "input", may_be_empty=True)
    question = f"{instruction}\n\n{extra}" if extra.strip() else instruction
    return Message("user", question), Message("assistant", _text(row, answer_field))


def _from_prompt_completion(row: Mapping[str, Any]) -> tuple[Message, ...]:
    return Message("user", _text(row, "prompt")), Message("assistant", _text(row, "completion"))


def _from_messages(row: Mapping[str, Any]) -> tuple[Message, ...]:
    turns = _present(row, "messages")
    if not isinstance(turns, (list, tuple)):
        raise RowError("messages", f"must be a list of {{'role', 'content'}}, not {_kind(turns)}")
    messages = tuple(_message(turn, f"messages[{index}]") for index, turn in enumerate(turns))
    roles = [message.role for message in messages]
    for needed in ("user", "assistant"):
        if needed not in roles:
            raise RowError("messages", f"has no {needed} turn")
    if roles[-1] != "assistant":
        raise RowError("messages", f"must end with an assistant turn, not with {roles[-1]!r}")
    return messages


def _message(turn: Any, place: str) -> Message:
    if not isinstance(turn, Mapping):
        raise RowError(place, f"must be an object with 'role' and 'content', not {_kind(turn)}")
    role = _text(turn, "role", place)
    if role not in _ROLES:
        raise RowError(f"{place}.role", f"is {_shown(role)}; known are {', '.join(_ROLES)}")
    # An empty system turn means something: several templates put their own one where there is none.
    content = _text(turn, "content", place, may_be_empty=role == "system")
    return Message(cast(Role, role), content)


_READERS: dict[str, Callable[[Mapping[str, Any]], tuple[Message, ...]]] = {
    "alpaca": _from_alpaca,
    "messages": _from_messages,
    "prompt_completion": _from_prompt_completion,
}


def _present(row: Mapping[str, Any], field: str, place: str = "") -> Any:
    name = f"{place}.{field}" if place else field
    if field not in row:
        raise RowError(name, "is missing")
    if row[field] is None:
        raise RowError(name, "is null")
    return row[field]


def _text(row: Mapping[str, Any], field: str, place: str = "", *, may_be_empty: bool = False) -> str:
    name = f"{place}.{field}" if place else field
    value = _present(row, field, place)
    if not isinstance(value, str):
        raise RowError(name, f"must be text, not {_kind(value)}")
    if not may_be_empty and not value.strip():
        raise RowError(name, "is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON's "\ud800" parses, but no tokenizer takes it
        raise RowError(name, f"holds half a surrogate pair at character {error.start}") from None
    return value


def _identifier(row: Mapping[str, Any], field: str) -> str | None:
    value = row.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise RowError(field, f"must be text or a whole number, not {_kind(value)}")
    return _text({field: str(value)}, field)


def _language(row: Mapping[str, Any]) -> str:
    if row.get("language") is None:
        return UNDETERMINED_LANGUAGE
    tag = _text(row, "language")
    if not _BCP47.fullmatch(tag):
        raise RowError(
            "language",
            f"is {_shown(tag)}, not a BCP-47 tag such as es; `language:` in the study overrides it",
        )
    return tag


def _content_group(messages: tuple[Message, ...]) -> str:
    content = "\x1e".join(f"{message.role}\x1f{message.content}" for message in messages)
    return "row-" + hashlib.sha256(content.encode("utf-8")).hexdigest()[:16]


def _kind(value: Any) -> str:
    names: dict[type, str] = {dict: "an object", list: "a list", bool: "true or false", str: "text"}
    return f"{names.get(type(value), type(value).__name__)} ({_shown(value)})"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"
