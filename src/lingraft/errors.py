"""The errors that lingraft raises for its users, and the exit code of each.

Lowest layer: everything else may import this module, it imports nothing of lingraft.
A message says what was wrong, the value, where it came from and what to do instead.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable

# Bidirectional classes of the characters that turn what follows them: embeddings, overrides, isolates.
_DIRECTIONS = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})

EXIT_DONE = 0
EXIT_ANSWER_IS_NO = 1
EXIT_WRONG_INPUT = 2
EXIT_CANNOT_TELL = 3
EXIT_INTERNAL = 4
EXIT_INTERRUPTED = 130


class LingraftError(Exception):
    """Base of every error that lingraft raises on purpose; printed as one message, without a stack."""

    exit_code = EXIT_WRONG_INPUT


class ConfigError(LingraftError):
    """A study file, an override or an option is wrong."""


class DataError(LingraftError):
    """A data set cannot be found, read, or holds too many broken rows."""


class ModelError(LingraftError):
    """A model cannot be found or loaded, or does not fit what is asked of it."""


class StrategyError(LingraftError):
    """A strategy cannot be applied: it trains nothing, or conflicts with another one."""


class EvaluationError(LingraftError):
    """A task cannot be evaluated."""


class VerificationError(LingraftError):
    """A promise that lingraft checks itself was broken, such as a frozen weight that changed."""

    exit_code = EXIT_INTERNAL


def did_you_mean(value: str, options: Iterable[str]) -> str:
    """Return a hint: the closest of `options` to `value` if one is close, and the sorted list of all."""
    known = sorted(options)
    close = difflib.get_close_matches(value, known, n=1)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return f"{hint}Options: {', '.join(known)}."


def in_one_line(error: BaseException) -> str:
    """Return a library's message without its line breaks: what lingraft prints of a problem is one line."""
    return " ".join(str(error).split())


def escape_control_characters(text: str, keep: str = "\n\t") -> str:
    """Return a text that is not ours with what steers a terminal made visible: \\x1b in place of the escape.

    Such texts are a model's, a data set's or a server's; what steers are control characters but for those in `keep`,
    line and paragraph separators, marks that turn the direction of text, and halves of surrogate pairs. Joiners stay:
    scripts need them.
    """
    shown = []
    for character in text:
        steers = (
            unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
            or unicodedata.bidirectional(character) in _DIRECTIONS
        )
        shown.append(ascii(character)[1:-1] if steers and character not in keep else character)
    return "".join(shown)
