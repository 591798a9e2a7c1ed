"""Constraints on the form of an answer: which kinds there are, and whether a response follows one.

The verifiers know no language: they look at case, marks, counts and given phrases, so that one function judges
every language alike. The kinds are those that IFEval knows. `forms` writes answers that follow them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

QUOTATION_MARKS = (
    ('"', '"'),
    ("“", "”"),
    ("„", "“"),
    ("„", "”"),
    ("«", "»"),
    ("»", "«"),
    ("「", "」"),
    ("”", "”"),
)

_COMMAS = re.compile("[,\u060c\u3001\uff0c]")
_BULLET = re.compile(r"^\s*(?:[*•]|-)\s+\S", re.MULTILINE)
_TITLE = re.compile(r"\A<<[^<>\n]*\w[^<>\n]*>>\s*\S")
_HIGHLIGHT = re.compile(r"(?<!\*)\*[^\s*](?:[^*\n]*[^\s*])?\*(?!\*)")
_FENCE = re.compile(r"\A```(?:json)?\s*(.*?)\s*```\Z", re.DOTALL)
# A stop ends a sentence at the end of the text or before a space, but not after a digit within the text: "5. März".
_SENTENCE_END = re.compile(
    r"(?:(?<!\d)[.!?…][\"”“»*')\]]*(?=\s)|[.!?…][\"”“»*')\]\s]*\Z|[\u3002\uff01\uff1f])"
)


@dataclass(frozen=True, slots=True)
class Constraint:
    """One demand on the form of an answer.

    Attributes:
        kind: A key of VERIFIERS.
        arguments: What the kind needs: a phrase, a key, a word or a number; empty for most kinds.
    """

    kind: str
    arguments: tuple[str | int, ...] = ()


def follows(constraint: Constraint, response: str) -> bool:
    """Return whether a response follows a constraint; an empty response follows none."""
    text = response.strip()
    return bool(text) and VERIFIERS[constraint.kind](text, *constraint.arguments)


def count_sentences(text: str) -> int:
    """Count sentences: ends by . ! ? …, a German ordinal ("5. März") is no end; text without an end is one.

    Text after the last end counts as one sentence more, as "Yes. No" is two.
    """
    ends = list(_SENTENCE_END.finditer(text))
    rest = text[ends[-1].end() :] if ends else text
    return len(ends) + bool(re.search(r"\w", rest))


def parse_json_object(response: str) -> dict[str, Any] | None:
    """Return the JSON object that a response is, also one inside a ``` fence, or None where it is none."""
    text = response.strip()
    fenced = _FENCE.match(text)
    try:
        value = json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _is_upper_case(text: str) -> bool:
    return text.isupper()


def _is_lower_case(text: str) -> bool:
    return text.islower()


def _is_quoted(text: str) -> bool:
    return any(
        len(text) > len(left) + len(right) and text.startswith(left) and text.endswith(right)
        for left, right in QUOTATION_MARKS
    )


def _starts_with(text: str, phrase: str) -> bool:
    return _plain(text).startswith(_plain(phrase))


def _ends_with(text: str, phrase: str) -> bool:
    return _plain(text).endswith(_plain(phrase))


def _plain(text: str) -> str:
    """Case and kinds of spaces do not matter to a given phrase."""
    return " ".join(text.casefold().split())


def _is_json_with_key(text: str, key: str) -> bool:
    value = parse_json_object(text)
    return (
        value is not None
        and list(value) == [key]
        and isinstance(value[key], str)
        and bool(value[key].strip())
    )


def _has_bullets(text: str, count: int) -> bool:
    """Exactly `count` bullets, and nothing but bullets."""
    lines = [line for line in text.splitlines() if line.strip()]
    return len(lines) == count and all(_BULLET.match(line) for line in lines)


def _has_sentences(text: str, count: int) -> bool:
    return count_sentences(text) == count


def _has_no_comma(text: str) -> bool:
    return not _COMMAS.search(text)


def _has_keyword(text: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(_plain(word))}(?!\w)", _plain(text)) is not None


def _has_title(text: str) -> bool:
    return _TITLE.match(text) is not None


def _has_highlight(text: str) -> bool:
    return _HIGHLIGHT.search(text) is not None


VERIFIERS: dict[str, Callable[..., bool]] = {
    "upper_case": _is_upper_case,
    "lower_case": _is_lower_case,
    "quotation_marks": _is_quoted,
    "starts_with": _starts_with,
    "ends_with": _ends_with,
    "json_key": _is_json_with_key,
    "bullets": _has_bullets,
    "sentences": _has_sentences,
    "no_commas": _has_no_comma,
    "keyword": _has_keyword,
    "title": _has_title,
    "highlight": _has_highlight,
}
