"""ROUGE in every language: rouge_score's scorer over `text.units`.

The usual ROUGE knows the letters a to z alone: it scores every Thai, Arabic or Russian answer 0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer

from lingraft.text.folding import fold_for_scores
from lingraft.text.language_tags import is_english, primary_language
from lingraft.text.units import units

METRICS = ("rougeL", "rouge1", "rouge2")
_ENGLISH_WORD = re.compile("[a-z0-9]+")


@dataclass(frozen=True)
class Rouge:
    """How much of a reference summary an answer has, and little else: F1 of shared units, each in [0, 1].

    Attributes:
        rouge1: Of single units.
        rouge2: Of pairs of neighbours; 0 where a text has one unit only.
        rougeL: Of the longest common subsequence: units in the same order, with gaps.
    """

    rouge1: float
    rouge2: float
    rougeL: float  # noqa: N815 -- the name that papers and the harness print


def rouge(reference: str, answer: str, language: str) -> Rouge:
    """Return ROUGE of an answer against one reference; 0 throughout where either has no unit.

    English is split as the package rouge_score does (runs of a-z and 0-9 of the text in lower case, no stemming), so
    its scores are that package's. All other languages are split into the `text.units` of the folded text.

    Args:
        reference: The summary to reach.
        answer: What the model wrote.
        language: BCP-47 tag of the reference.

    Source: Lin 2004, ROUGE. Biased upwards where units are single characters (Thai, Japanese, Chinese), which recur by
    chance: do not compare one language's score with another's.
    """
    found = _scorer(primary_language(language)).score(reference, answer)
    return Rouge(*(float(found[name].fmeasure) for name in ("rouge1", "rouge2", "rougeL")))


@cache
def _scorer(language: str) -> RougeScorer:
    return RougeScorer(METRICS, tokenizer=_Units(language))


class _Units(Tokenizer):  # type: ignore[misc]
    """Splits English as rouge_score itself does, and all other languages into the units of the folded text."""

    def __init__(self, language: str) -> None:
        self._language = language

    def tokenize(self, text: str) -> list[str]:
        """Return the units of a text."""
        if is_english(self._language):
            return _ENGLISH_WORD.findall(text.lower())
        return units(fold_for_scores(text, self._language))
