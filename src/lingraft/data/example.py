"""The one form that every data set takes inside lingraft."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]
OriginKind = Literal["original", "english_replay", "generative_replay"]

UNDETERMINED_LANGUAGE = "und"  # BCP-47's own tag for it


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: Who speaks; `tool` gives the result of a call.
        content: What is said; may be empty where the turn calls tools.
        details: JSON object of what chat templates read besides, such as `tool_calls` and `tool_call_id`; "": nothing.
        supervised: Whether the loss sees it, if it is the assistant's.
    """

    role: Role
    content: str
    details: str = ""
    supervised: bool = True

    def to_template(self) -> dict[str, Any]:
        """Return the turn as chat templates take it."""
        extra: dict[str, Any] = json.loads(self.details) if self.details else {}
        return {"role": self.role, "content": self.content, **extra}


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an example came from: `original` data, or replay and, if generated, by which model and settings."""

    kind: OriginKind = "original"
    model: str | None = None
    settings: dict[str, str | int | float | bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Example:
    """One instruction with its answer.

    Attributes:
        id: Unique inside its source.
        messages: The conversation; at least one user turn, and the last turn is the assistant's, but where a source was
            read for its instructions alone.
        language: BCP-47 tag, or "und" where nothing said.
        group: Equal for parallel examples (the same content in several languages).
        source: The data set as the user named it.
        origin: Original, or replayed.
        tools: JSON list of the tools that the assistant may call, as chat templates take it; "": none.
        task_type: What kind of task it is, such as `closed_qa`, where the row says so; "": it does not.
        fold_system: Whether a system prompt goes before the user's text where the chat template has no place for it.
    """

    id: str
    messages: tuple[Message, ...]
    language: str
    group: str
    source: str
    origin: Origin = field(default_factory=Origin)
    tools: str = ""
    task_type: str = ""
    fold_system: bool = False

    @property
    def instruction(self) -> str:
        """The user's part (instruction and input), which DES encodes; turns joined by a line break."""
        return "\n".join(message.content for message in self.messages if message.role == "user")

    @property
    def answer(self) -> str:
        """The last assistant turn."""
        return self.messages[-1].content
