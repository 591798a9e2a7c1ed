"""Conversations of several turns, as messages, ShareGPT, OpenAssistant and function-calling sets write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lingraft.data.example import Message, Role
from lingraft.data.row_fields import (
    AnswerError,
    Row,
    RowError,
    answer,
    as_json,
    from_json,
    is_nothing,
    kind,
    objects,
    optional_text,
    shown,
    text,
)
from lingraft.errors import escape_control_characters

# As written in public sets, in lower case. UTILISATEUR is Vigogne's; observation and function_call are Agent sets'.
_ROLES: dict[str, Role] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter", "utilisateur", "instruction"), "user"),
    **dict.fromkeys(
        ("assistant", "gpt", "chatgpt", "bot", "model", "bing", "bard", "claude", "function_call"),
        "assistant",
    ),
    **dict.fromkeys(("tool", "function", "ipython", "observation", "function_response"), "tool"),
}
_KEY_CHARACTERS = 60
_TEXT_PARTS = ("text", "input_text", "output_text")  # of OpenAI's two interfaces
_DETAILS = ("tool_calls", "tool_call_id", "name", "reasoning_content")
# OpenAI's, axolotl's and others' word for it: 0 or false masks an answer
_SUPERVISED = ("weight", "train", "loss")
_READ = {*_DETAILS, *_SUPERVISED, "from", "role", "value", "content", "text"}


def from_messages(row: Row, *, answered: bool = True) -> tuple[Message, ...]:
    """Read `messages`, a list of {role, content}; assistant turns may hold `tool_calls`."""
    return _conversation(_turns(row, "messages"), "messages", answered)


def from_sharegpt(row: Row, *, answered: bool = True) -> tuple[Message, ...]:
    """Read `conversations`, a list of {from, value} or {role, content}; `system` on the row comes first."""
    names = (("from", "role"), ("value", "content"))
    turns = _conversation(_turns(row, "conversations", *names), "conversations", answered, *names)
    system = optional_text(row, "system")
    return (Message("system", system), *turns) if system.strip() and turns[0].role != "system" else turns


def from_conversation(row: Row, *, answered: bool = True) -> tuple[Message, ...]:
    """Read `conversation`, a list of {role, content}, as OpenAssistant sets are passed on."""
    names = (("role", "from"), ("content", "value", "text"))
    return _conversation(_turns(row, "conversation", *names), "conversation", answered, *names)


def from_prompt_and_completion(row: Row, *, answered: bool = True) -> tuple[Message, ...]:
    """Read `prompt` and `completion` where one or both are lists of {role, content}, as TRL has them.

    As in TRL, the completion alone is learned: answers inside the prompt get the weight 0.
    """
    asked = [
        (place, {"weight": 0, **turn} if turn.get("role") == "assistant" else turn)
        for place, turn in _turns_or_text(row, "prompt", "user")
    ]
    said = []
    try:
        said = _turns_or_text(row, "completion", "assistant")
    except AnswerError:
        if answered:
            raise
    return _conversation([*asked, *said], "completion", answered)


def tools_of(row: Row) -> str:
    """Return the tools that a row offers as JSON, "" for none; a set may hold them as a list or as JSON text.

    Raises:
        RowError: They are neither.
    """
    tools = row.get("tools")
    if is_nothing(tools):
        return ""
    if isinstance(tools, str) and tools.strip():
        tools = from_json(tools, "tools")
    if not tools:
        return ""
    if not isinstance(tools, (list, tuple)):
        raise RowError("tools", f"must be a list of tools, not {kind(tools)}")
    for index, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            raise RowError(f"tools[{index}]", f"must be an object that describes a tool, not {kind(tool)}")
    return as_json(tools, "tools")


def unknown_keys(row: Row) -> set[str]:
    """Return the keys of a row's messages that nothing reads, of long ones the beginning; null counts as absent."""
    names = ("messages", "conversations", "conversation", "prompt", "completion")
    fields = (row.get(name) for name in names)
    turns = (turn for turns in fields if isinstance(turns, (list, tuple)) for turn in turns)
    return {
        escape_control_characters(str(key)[:_KEY_CHARACTERS])
        for turn in turns
        if isinstance(turn, Mapping)
        for key in turn
        if key not in _READ and not is_nothing(turn[key])
    }


_Turn = tuple[str, Row]  # where it stands in the row, and its fields


def _turns(
    row: Row, field: str, roles: tuple[str, ...] = ("role",), contents: tuple[str, ...] = ("content",)
) -> list[_Turn]:
    needs = f"{{{roles[0]!r}, {contents[0]!r}}}"
    return [(f"{field}[{index}]", turn) for index, turn in enumerate(objects(row, field, needs))]


def _turns_or_text(row: Row, field: str, role: Role) -> list[_Turn]:
    if isinstance(row.get(field), (list, tuple)):
        return _turns(row, field)
    read = answer if role == "assistant" else text
    return [(field, {"role": role, "content": read(row, field)})]


def _conversation(
    turns: list[_Turn],
    field: str,
    answered: bool,
    roles: tuple[str, ...] = ("role",),
    contents: tuple[str, ...] = ("content",),
) -> tuple[Message, ...]:
    """Return the turns as messages; where they need not be `answered`, empty answers are left out."""
    messages = []
    for number, (place, turn) in enumerate(turns, start=1):
        try:
            messages.append(_message(turn, place, _first(turn, roles), _first(turn, contents)))
        except AnswerError as error:
            if not answered:
                continue
            if number < len(turns):  # a row that has an answer, but a broken turn before it
                raise RowError(error.field, error.problem) from None
            raise
    spoken = [message.role for message in messages]
    if "user" not in spoken:
        raise RowError(field, "has no user turn")
    if answered and "assistant" not in spoken:
        raise AnswerError(field, "has no assistant turn")
    if answered and spoken[-1] != "assistant":
        raise AnswerError(field, f"must end with an assistant turn, not with {spoken[-1]!r}")
    return tuple(messages)


def _message(turn: Row, place: str, role_field: str, content_field: str) -> Message:
    said = text(turn, role_field, place)
    role = _ROLES.get(said.strip().lower())
    if role is None:
        raise RowError(f"{place}.{role_field}", f"is {shown(said)}; known are {', '.join(_ROLES)}")
    details = {name: turn[name] for name in _DETAILS if turn.get(name) and not is_nothing(turn[name])}
    if "tool_calls" in details:
        calls = details["tool_calls"]
        if not isinstance(calls, (list, tuple)):
            raise RowError(f"{place}.tool_calls", f"must be a list of calls, not {kind(calls)}")
        details["tool_calls"] = [_call(call, f"{place}.tool_calls") for call in calls]
    for name in details.keys() - {"tool_calls"}:
        text(turn, name, place, may_be_empty=True)  # a number stays one, as templates always saw it
    given = turn.get(content_field)
    if isinstance(given, (list, tuple)):
        turn = {**turn, content_field: _joined_parts(given, f"{place}.{content_field}")}
    # An empty system turn means something: several templates put their own one where there is none.
    may_be_empty = role in ("system", "tool") or "tool_calls" in details
    if given is None and "tool_calls" in details:
        content = ""
    elif role == "assistant" and not may_be_empty:
        content = answer(turn, content_field, place)
    else:
        content = text(turn, content_field, place, may_be_empty=may_be_empty)
    masks = {key: turn[key] for key in _SUPERVISED if not is_nothing(turn.get(key))}
    for key, mask in masks.items():
        if mask not in (0, 1):
            raise RowError(f"{place}.{key}", f"must be 0 or 1 (or false, true), not {kind(mask)}")
    written = as_json(details, place) if details else ""
    return Message(role, content, written, supervised=all(masks.values()))


def _joined_parts(parts: Sequence[Any], place: str) -> str:
    """Return parts of text joined by line breaks."""
    found = []
    for index, part in enumerate(parts):
        name = f"{place}[{index}]"
        if isinstance(part, str):
            found.append(part)
            continue
        if not isinstance(part, Mapping):
            raise RowError(name, f"must be a part with 'type' and 'text', not {kind(part)}")
        if (part.get("type") or "text") not in _TEXT_PARTS:
            raise RowError(name, f"is of type {shown(part['type'])}; only text can be trained on")
        found.append(text(part, "text", name, may_be_empty=True))
    return "\n".join(found)


def _call(call: Any, place: str) -> Row:
    """Return a tool call with its arguments as an object: OpenAI writes JSON text, templates take an object."""
    if not isinstance(call, dict) or not isinstance(call.get("function", call), dict):
        raise RowError(place, f"must hold objects with 'function', not {kind(call)}")
    function = dict(call.get("function", call))
    text(function, "name", f"{place}.function")
    if isinstance(function.get("arguments"), str):
        function["arguments"] = from_json(function["arguments"] or "{}", f"{place}.function.arguments")
    return {**{key: call[key] for key in ("id", "type") if key in call}, "function": function}


def _first(turn: Row, names: tuple[str, ...]) -> str:
    return next((name for name in names if name in turn), names[0])
