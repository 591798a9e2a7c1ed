"""Messages as a chat template takes them, with marks by which they are found again in what it writes."""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Any

from lingraft.data.chat_template import Turn
from lingraft.data.control_tokens import ANSWER_END, ANSWER_START, ControlTokens, Span
from lingraft.data.example import Message
from lingraft.errors import DataError

THINKING = (("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>"))
"""What models write before and after their thoughts."""

_THOUGHTS_FIRST = re.compile(
    "|".join(rf"\s*{re.escape(opened)}(?=(?s:.*?)({re.escape(closed)}))" for opened, closed in THINKING)
)
_CLOSER_OF_LINE = re.compile(
    rf"^[ \t]*({'|'.join(re.escape(closed) for _, closed in THINKING)})", re.MULTILINE
)
_ANSWER_PAIR = re.compile(f"{ANSWER_START}([^{ANSWER_START}{ANSWER_END}]*){ANSWER_END}")
_ANSWER_MARK = re.compile(f"[{ANSWER_START}{ANSWER_END}]")


def marked_turns(messages: Sequence[Message], control: ControlTokens, *, as_parts: bool) -> list[Turn]:
    """Return messages as the template takes them, with marks around answers and around spelled control tokens.

    Args:
        messages: The conversation.
        control: Which tokens steer the model.
        as_parts: Whether content is a list of parts.
    """
    turns: list[Turn] = []
    for message in messages:
        if has_marks(message):
            # What the template trims stays outside of the marks, and so do thoughts, which it may take out.
            opened, thought, closed, said = split_thoughts(message.content)
            core = said.strip()
            before, after = said[: said.index(core)], said[said.index(core) + len(core) :]
            answer = f"{ANSWER_START}{control.protected(core)}{ANSWER_END}"
            content = f"{opened}{control.protected(thought)}{closed}{before}{answer}{after}"
        else:
            content = control.protected(message.content)
        details = json.loads(message.details) if message.details else {}
        shown = [{"type": "text", "text": content}] if as_parts else content
        turns.append({"role": message.role, "content": shown, **control.protected_value(details)})
    return turns


def has_marks(message: Message) -> bool:
    """Return whether a message is an answer with a place of its own: an empty one has none beside tool calls."""
    return message.role == "assistant" and (bool(message.content.strip()) or not calls([message]))


def without_answer_marks(marked: str) -> tuple[str, list[Span]]:
    """Return a text without the marks of answers, and the places between them; a mark without its fellow is none."""
    answers = [one.span(1) for one in _ANSWER_PAIR.finditer(marked)]
    return without_marks_of_answers(marked, answers)


def without_marks_of_answers(marked: str, spans: Sequence[Span]) -> tuple[str, list[Span]]:
    """Return a text without the marks of answers, and places in it from places in the marked one."""
    marks = [one.start() for one in _ANSWER_MARK.finditer(marked)]
    moved = [(start - bisect_left(marks, start), end - bisect_left(marks, end)) for start, end in spans]
    return _ANSWER_MARK.sub("", marked), moved


def common_beginning(one: str, other: str) -> str:
    """Return what two texts begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return one[: next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))]


def calls(messages: Sequence[Message]) -> bool:
    """Return whether tools are called."""
    return any('"tool_calls"' in message.details for message in messages)


def check_tools(tools: Any, text: str) -> None:
    """Refuse a rendering that leaves a tool out.

    Raises:
        DataError: With what is lost.
    """
    missing = next((name for name in _names(tools) if name not in text), None)
    if missing is not None:
        raise DataError(f"the chat template leaves out the tool {missing}, which would be lost")


def check_calls(turns: Sequence[Turn], text: str, spans: Sequence[Span]) -> None:
    """Refuse a rendering that leaves a call out; `spans` are those of the assistant's turns.

    Raises:
        DataError: With what is lost.
    """
    said = (one for one in turns if one["role"] == "assistant")
    for turn, (start, end) in zip(said, spans, strict=True):
        missing = next((name for name in _names(turn.get("tool_calls")) if name not in text[start:end]), None)
        if missing is not None:
            raise DataError(f"the chat template leaves out the call of {missing}, which would be lost")


def _names(functions: Any) -> Iterator[str]:
    """Yield the names in tools, or in calls of them."""
    for one in functions if isinstance(functions, list) else ():
        function = one.get("function", one) if isinstance(one, dict) else {}
        if isinstance(function, dict) and isinstance(function.get("name"), str):
            yield function["name"]


def split_thoughts(content: str) -> tuple[str, str, str, str]:
    """Return what opens the thoughts before an answer, the thoughts, what closes them, and the answer.

    An answer with thoughts begins with the tag that opens them, or a line of it with the tag that closes them; tags
    elsewhere are text like any other. "" three times, and all of it: there are none.
    """
    opener = _THOUGHTS_FIRST.match(content)
    closer = opener or _CLOSER_OF_LINE.search(content)
    if closer is None:
        return "", "", "", content
    opened = opener[0] if opener else ""
    start, end = closer.span(closer.lastindex or 0)
    return opened, content[len(opened) : start], content[start:end], content[end:]


def thinks(message: Message) -> bool:
    """Return whether an answer comes with the thoughts before it."""
    return '"reasoning_content"' in message.details or bool(split_thoughts(message.content)[2])
