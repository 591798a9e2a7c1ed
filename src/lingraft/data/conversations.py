"""Conversations of several turns, as messages, ShareGPT, OpenAssistant and function-calling sets write them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lingraft.data.example import Message, Role
from lingraft.data.row_fields import Row, RowError, kind, objects, present, shown, text

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
_DETAILS = ("tool_calls", "tool_call_id", "name", "reasoning_content")
_SUPERVISED = (
    "weight",
    "train",
    "loss",
)  # OpenAI's, axolotl's and others' word for it: 0 or false masks an answer
_READ = {*_DETAILS, *_SUPERVISED, "from", "role", "value", "content", "text"}


def from_messages(row: Row) -> tuple[Message, ...]:
    """Read `messages`, a list of {role, content}; assistant turns may hold `tool_calls`."""
    return _conversation(row, "messages", ("role",), ("content",))


def from_sharegpt(row: Row) -> tuple[Message, ...]:
    """Read `conversations`, a list of {from, value} or {role, content}; `system` on the row comes first."""
    turns = _conversation(row, "conversations", ("from", "role"), ("value", "content"))
    if row.get("system") and turns[0].role != "system":
        return Message("system", text(row, "system")), *turns
    return turns


def from_conversation(row: Row) -> tuple[Message, ...]:
    """Read `conversation`, a list of {role, content}, as OpenAssistant sets are passed on."""
    return _conversation(row, "conversation", ("role", "from"), ("content", "value", "text"))


def tools_of(row: Row) -> str:
    """Return the tools that a row offers as JSON, "" for none; a set may hold them as a list or as JSON text.

    Raises:
        RowError: They are neither.
    """
    tools = row.get("tools")
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except ValueError as error:
            raise RowError("tools", f"is not JSON: {error}") from None
    if not tools:
        return ""
    if not isinstance(tools, (list, tuple)):
        raise RowError("tools", f"must be a list of tools, not {kind(tools)}")
    return json.dumps(_without_nulls(tools), ensure_ascii=False, sort_keys=True)


def unknown_keys(row: Row) -> set[str]:
    """Return the keys of a row's messages that nothing reads; what is null counts as absent."""
    fields = (row.get(field) for field in ("messages", "conversations", "conversation"))
    turns = (turn for turns in fields if isinstance(turns, (list, tuple)) for turn in turns)
    return {
        str(key)
        for turn in turns
        if isinstance(turn, Mapping)
        for key in turn
        if key not in _READ and turn[key] is not None
    }


def _conversation(
    row: Row, field: str, roles: tuple[str, ...], contents: tuple[str, ...]
) -> tuple[Message, ...]:
    needs = f"{{{roles[0]!r}, {contents[0]!r}}}"
    turns = objects(row, field, needs)
    messages = tuple(
        _message(turn, f"{field}[{index}]", _first(turn, roles), _first(turn, contents))
        for index, turn in enumerate(turns)
    )
    spoken = [message.role for message in messages]
    for needed in ("user", "assistant"):
        if needed not in spoken:
            raise RowError(field, f"has no {needed} turn")
    if spoken[-1] != "assistant":
        raise RowError(field, f"must end with an assistant turn, not with {spoken[-1]!r}")
    return messages


def _message(turn: Row, place: str, role_field: str, content_field: str) -> Message:
    written = text(turn, role_field, place)
    role = _ROLES.get(written.strip().lower())
    if role is None:
        raise RowError(f"{place}.{role_field}", f"is {shown(written)}; known are {', '.join(_ROLES)}")
    details = {name: turn[name] for name in _DETAILS if turn.get(name)}
    if "tool_calls" in details:
        details["tool_calls"] = [_call(call, f"{place}.tool_calls") for call in details["tool_calls"]]
    # An empty system turn means something: several templates put their own one where there is none.
    may_be_empty = role in ("system", "tool") or "tool_calls" in details
    if "tool_calls" in details and turn.get(content_field) is None:
        content = ""
    else:
        content = text(turn, content_field, place, may_be_empty=may_be_empty)
    written_details = json.dumps(_without_nulls(details), ensure_ascii=False, sort_keys=True)
    return Message(role, content, written_details if details else "", _is_supervised(turn, place))


def _is_supervised(turn: Row, place: str) -> bool:
    """Return whether the loss sees a message, as it says itself."""
    for key in _SUPERVISED:
        if turn.get(key) is not None and turn[key] not in (0, 1):
            raise RowError(f"{place}.{key}", f"must be 0 or 1 (or false, true), not {kind(turn[key])}")
    return all(turn.get(key) is None or turn[key] == 1 for key in _SUPERVISED)


def _call(call: Any, place: str) -> dict[str, Any]:
    """Return a tool call with its arguments as an object: OpenAI writes JSON text, templates take an object."""
    if not isinstance(call, dict) or not isinstance(call.get("function", call), dict):
        raise RowError(place, f"must hold objects with 'function', not {kind(call)}")
    function = dict(call.get("function", call))
    present(function, "name", f"{place}.function")
    if isinstance(function.get("arguments"), str):
        try:
            function["arguments"] = json.loads(function["arguments"] or "{}")
        except ValueError as error:
            raise RowError(f"{place}.function.arguments", f"is not JSON: {error}") from None
    return {**{key: call[key] for key in ("id", "type") if key in call}, "function": function}


def _first(turn: Row, names: tuple[str, ...]) -> str:
    return next((name for name in names if name in turn), names[0])


def _without_nulls(value: Any) -> Any:
    """Drop what is null: columnar files give every object the fields of all others."""
    if isinstance(value, dict):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, (list, tuple)) else value
