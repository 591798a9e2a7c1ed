"""What an OpenAI-compatible endpoint sends back: answers, counts, complaints, in the forms that servers use."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from lingraft.judge.budget import Tokens

if TYPE_CHECKING:
    from requests import Response


@dataclass(frozen=True, slots=True)
class WrittenToken:
    """One token of an answer, and the likeliest ones in its place with their log probabilities (nats)."""

    token: str
    likeliest: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model answered.

    Attributes:
        text: The answer.
        model: Which model answered, as the endpoint says.
        written: The answer's tokens with their alternatives; empty where the endpoint gives none.
        tokens: As the endpoint counted them; None: it did not.
    """

    text: str
    model: str
    written: tuple[WrittenToken, ...]
    tokens: Tokens | None


def told_reason(response: Response) -> str:
    """Return what a failure says for itself, in any of the usual forms."""
    try:
        content = response.json()
    except ValueError:
        return response.text or response.reason or "no reason given"
    if isinstance(content, dict):
        told = content.get("error", content.get("message", content.get("detail", content)))
        if isinstance(told, dict):
            told = told.get("message", told)
        return str(told)
    return str(content)


def retry_after(value: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks for, given as a number or as a date."""
    if value is None:
        return None
    with suppress(ValueError):  # then it is a date
        return max(0.0, float(value))
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def written_tokens(logprobs: Any) -> tuple[WrittenToken, ...]:
    """Return the answer's tokens with their alternatives; nothing where an endpoint gives none, or in another form."""
    try:
        return tuple(
            WrittenToken(
                str(one["token"]),
                tuple((str(other["token"]), float(other["logprob"])) for other in one["top_logprobs"]),
            )
            for one in logprobs["content"]
        )
    except (KeyError, TypeError, ValueError):
        return ()


def tokens_of(usage: Any) -> Tokens | None:
    """Return the tokens that an answer's `usage` counts, or None where it does not."""
    try:
        return Tokens(int(usage["prompt_tokens"]), int(usage["completion_tokens"]))
    except (KeyError, TypeError, ValueError):
        return None
