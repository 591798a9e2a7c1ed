"""Constraints on the form of an answer: which kinds there are, and whether a response follows one.

The verifiers know no language: they look at case, marks, counts and given phrases, so that one function judges
every language alike. The kinds are those that IFEval knows, and three that stand for others where a script has no
case (`exclamations`, `ellipses`) or sentences have no end marks (`lines`): see `writing`. `forms` writes answers that
follow them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from lingraft.data.worldbook.writing import phrase_pattern
from lingraft.text.folding import fold_for_worldbook

QUOTATION_MARKS = (
    ('"', '"'),
    ("“", "”"),
    ("„", "“"),
    ("„", "”"),
    ("«", "»"),
    ("»", "«"),
    ("「", "」"),
    ("『", "』"),
    ("”", "”"),
)

_COMMAS = re.compile("[,\u060c\u3001\uff0c]")
_BULLET = re.compile(r"^\s*(?:[*•]|-)\s+\S", re.MULTILINE)
_TITLE = re.compile(r"\A<<[^<>\n]*\w[^<>\n]*>>\s*\S")
_HIGHLIGHT = re.compile(r"(?<!\*)\*[^\s*](?:[^*\n]*[^\s*])?\*(?!\*)")
_FENCE = re.compile(r"\A```(?:json)?\s*(.*?)\s*```\Z", re.DOTALL)
_LEADING_TITLE = re.compile(r"\A<<[^<>\n]*>>")
# A stop ends a sentence at the end of the text or before a space; before Japanese, which has no spaces, any mark does.
_CLOSERS = r"[\"”“»«*')\]」』\uff09】]*"
_SENTENCE_END = re.compile(
    rf"(?:[.!?…\u061f]{_CLOSERS}(?=\s)|[.!?…\u061f]{_CLOSERS}\s*\Z"
    rf"|[\u3002\uff01\uff1f]{_CLOSERS}|[!?…]{_CLOSERS}(?=[\u3041-\u30ff\u3400-\u9fff]))"
)
# The stop of a German ordinal ("der 5. März", "am 5. Tag") and of a numbered line ends none.
_ORDINAL = re.compile(
    r"(?:^\s*\d{1,2}|\b(?:der|die|das|dem|den|des|am|vom|zum|beim)\s+\d{1,2})\.(?=\s+\w)"
    r"|\d{1,2}\.(?=\s+(?:Januar|Februar|März|April|Mai|Juni|Juli|August|September|Oktober|November|Dezember)\b)",
    re.IGNORECASE | re.MULTILINE,
)
_ELLIPSIS = re.compile(r"\.{3,}|…+|・{3,}|。{3,}")

COUNTED = ("bullets", "sentences", "lines")
"""Kinds whose argument is a number."""


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
    """Count sentences: ends by . ! ? … and their like; a German ordinal ("5. März") is none; text without is one.

    Text after the last end counts as one sentence more, as "Yes. No" is two.
    """
    ends = _sentence_ends(text)
    rest = text[ends[-1].end() :] if ends else text
    return len(ends) + bool(re.search(r"\w", rest))


def _sentence_ends(text: str) -> list[re.Match[str]]:
    return list(_SENTENCE_END.finditer(_ORDINAL.sub(lambda match: f"{match[0][:-1]},", text)))


def parse_json_object(response: str) -> dict[str, object] | None:
    """Return the JSON object that a response is, also one inside a ``` fence, or None where it is none."""
    text = response.strip()
    fenced = _FENCE.match(text)
    try:
        value = json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _is_quoted(text: str) -> bool:
    return any(
        len(text) > len(left) + len(right) and text.startswith(left) and text.endswith(right)
        for left, right in QUOTATION_MARKS
    )


def _is_json_with_key(text: str, key: str) -> bool:
    value = parse_json_object(text) or {}
    said = value.get(key)
    return list(value) == [key] and isinstance(said, str) and bool(said.strip())


def _has_bullets(text: str, count: int) -> bool:
    """Exactly `count` bullets, and nothing but bullets."""
    lines = [line for line in text.splitlines() if line.strip()]
    return len(lines) == count and all(_BULLET.match(line) for line in lines)


def _has_lines(text: str, count: int) -> bool:
    """Exactly `count` lines that hold text, a title not counted."""
    lines = _LEADING_TITLE.sub("", text).splitlines()
    return sum(re.search(r"\w", line) is not None for line in lines) == count


def _all_end_with(text: str, marks: str) -> bool:
    """Every sentence, and so every line but a title, ends with one of the marks, and none with another."""
    body = _ELLIPSIS.sub("…", _LEADING_TITLE.sub("", text))
    lines = [line.strip() for line in body.splitlines() if line.strip()]
    found = [(line, _sentence_ends(line)) for line in lines]
    return bool(lines) and all(
        ends and ends[-1].end() == len(line) and all(end[0][0] in marks for end in ends)
        for line, ends in found
    )


VERIFIERS: dict[str, Callable[..., bool]] = {
    "upper_case": str.isupper,
    "lower_case": str.islower,
    "quotation_marks": _is_quoted,
    "starts_with": lambda text, phrase: fold_for_worldbook(text).startswith(fold_for_worldbook(phrase)),
    "ends_with": lambda text, phrase: fold_for_worldbook(text).endswith(fold_for_worldbook(phrase)),
    "json_key": _is_json_with_key,
    "bullets": _has_bullets,
    "sentences": lambda text, count: count_sentences(text) == count,
    "lines": _has_lines,
    "exclamations": lambda text: _all_end_with(text, "!\uff01"),
    "ellipses": lambda text: _all_end_with(text, "…"),
    "no_commas": lambda text: not _COMMAS.search(text),
    "keyword": lambda text, word: (
        re.search(phrase_pattern(fold_for_worldbook(word)), fold_for_worldbook(text)) is not None
    ),
    "title": lambda text: _TITLE.match(text) is not None,
    "highlight": lambda text: _HIGHLIGHT.search(text) is not None,
}
