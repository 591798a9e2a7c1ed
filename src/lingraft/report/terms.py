"""The terms that a page explains where they stand; their texts are those of docs/glossary.md and docs/concepts.md."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup, escape


@dataclass(frozen=True)
class Term:
    """A word with a meaning.

    Attributes:
        name: As the glossary has it.
        meaning: What it is, in a sentence or two.
        page: Where the documentation says more: a page of docs/, with the place in it.
        spellings: How else it stands in texts and as a column's term.
        is_linked: Whether a text links it; words of everyday language are explained at the end of the page alone.
    """

    name: str
    meaning: str
    page: str
    spellings: tuple[str, ...] = ()
    is_linked: bool = True

    @property
    def anchor(self) -> str:
        """Return its place on a page."""
        return f"term-{re.sub(r'[^a-z0-9]+', '-', self.name.lower())}"


_ABILITIES: Final = "concepts.md#task-ability-language-ability-retention-gain"
_BOUNDS: Final = "concepts.md#strategy-and-the-two-bounds"
_MATRIX: Final = "concepts.md#the-forgetting-matrix"
_STUDY: Final = "concepts.md#phase-study-cell-stage"

TERMS: Final = (
    Term(
        "phase",
        "One round of fine-tuning on one data set; Phase 1 is usually English, Phase 2 brings new languages.",
        _STUDY,
        ("phases", "Phase 1", "Phase 2"),
        is_linked=False,
    ),
    Term(
        "cell",
        "One trained model of the grid, and nothing else. The grid is data sets x strategies x seeds.",
        _STUDY,
        ("cells",),
        is_linked=False,
    ),
    Term(
        "strategy",
        "A way to train Phase 2, or to combine its model with earlier ones, so that less is lost.",
        _BOUNDS,
        ("strategies", "mitigation", "mitigations"),
        is_linked=False,
    ),
    Term("plain", "No mitigation: the lower bound.", _BOUNDS, is_linked=False),
    Term(
        "mixed",
        "One phase over the union of all phases' data: the upper bound. It starts over from the base model, with "
        "everything at once.",
        _BOUNDS,
        is_linked=False,
    ),
    Term("task ability", "Mean score on the English tasks, in [0, 1].", _ABILITIES),
    Term(
        "language ability",
        "Mean over the new languages of the mean score on their tasks, in [0, 1].",
        _ABILITIES,
        ("language abilities",),
    ),
    Term(
        "further languages",
        "Languages that are evaluated and not trained; they have a mean of their own.",
        _ABILITIES,
    ),
    Term(
        "retention",
        "Task ability after Phase 2 / task ability after Phase 1. 100 % means that nothing was lost on average; it can "
        "be above that.",
        _ABILITIES,
    ),
    Term(
        "gain",
        "Language ability after Phase 2 - language ability after Phase 1.",
        _ABILITIES,
        ("gains",),
    ),
    Term(
        "interval",
        "95 % confidence interval; of a mean over clusters of items. It covers the choice of items, not that of seeds.",
        "evaluation.md#how-intervals-are-made",
        ("intervals",),
        is_linked=False,
    ),
    Term(
        "paired difference",
        "Mean over the same items of one model's score minus the other's. It shows smaller changes than two "
        "separate scores do.",
        "evaluation.md#what-is-compared",
        ("paired differences",),
    ),
    Term(
        "sign",
        "What a paired difference says: ▲ rose and ▼ fell where its interval excludes 0, = unchanged where it lies "
        "within the margin, ? undecided where these items do not show which.",
        "concepts.md#what-a-sign-says",
        ("signs",),
    ),
    Term(
        "minimum detectable effect",
        "The smallest true difference that this evaluation finds with a power of 80 %. Smaller changes may be there "
        "unseen.",
        "evaluation.md#how-many-items",
        ("minimum detectable effects",),
    ),
    Term(
        "permutation test",
        "Signs of the paired differences are flipped at random; the p-value is the share at least as extreme.",
        "evaluation.md#many-comparisons",
        ("p-value", "p-values"),
    ),
    Term(
        "limit",
        "What may be lost. Held: the whole interval lies within it; broken: all of it lies beyond; undecided: neither.",
        "concepts.md#limits-what-may-be-lost",
        ("limits",),
        is_linked=False,
    ),
    Term(
        "DES",
        "Dataset embedding similarity: how alike the instructions of two data sets are, in [-1, 1]. Where it is high, "
        "the paper found that Phase 2 keeps task ability.",
        "concepts.md#des-how-alike-two-phases-instructions-are",
        ("dataset embedding similarity",),
    ),
    Term(
        "MPD",
        "Model parameter difference: mean L2 distance of two models' parameter tensors. 0 means equal weights; it "
        "compares only within one architecture.",
        "concepts.md#mpd-how-far-the-weights-moved",
        ("model parameter difference", "MPD of the pair"),
    ),
    Term(
        "drift",
        "Change of the hidden states of one model from another's, by layer.",
        "concepts.md#drift-where-the-hidden-states-moved",
    ),
    Term(
        "forgetting matrix",
        "The score after phase i on what phase j taught; backward and forward transfer come from it.",
        _MATRIX,
        ("forgetting matrices",),
    ),
    Term(
        "backward transfer",
        "What later phases did to what earlier ones taught: after the last phase - just after learning, mean over the "
        "earlier phases. Below 0: forgotten.",
        _MATRIX,
    ),
    Term(
        "forward transfer",
        "What earlier phases did for a later one before it was trained: just before learning - base model, mean over "
        "the later phases. Above 0: they helped.",
        _MATRIX,
    ),
    Term(
        "bits per character",
        "Loss of held-out answers, in bits, divided by their characters. Lower is better, and it compares between "
        "tokenizers.",
        _MATRIX,
    ),
    Term(
        "contamination",
        "Share of an evaluation's items that stands in the training rows.",
        "contamination.md#what-is-measured",
    ),
    Term(
        "noise floor",
        "How far scores move when the same model answers again in other batches.",
        "evaluation.md#the-noise-floor",
    ),
    Term(
        "walk",
        "Models between the start and the trained one, looked at outwards from the start until one is not certified.",
        "adapt.md#the-promise",
    ),
    Term(
        "certified",
        "More than the max loss was lost with a probability of at most 5 %, for the choice as a whole.",
        "adapt.md#the-promise",
    ),
    Term(
        "alpha",
        "Share of the way from the start's weights (0) to the trained ones (1).",
        "adapt.md#the-promise",
        is_linked=False,
    ),
)
_NAMED: Final = {spelling.lower(): term for term in TERMS for spelling in (term.name, *term.spellings)}


def _pattern(spellings: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(spellings, key=len, reverse=True)
    return re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, longest_first))})(?![\w-])", re.IGNORECASE)


_ALL: Final = _pattern(_NAMED)
_LINKED: Final = _pattern(spelling for spelling, term in _NAMED.items() if term.is_linked)


def term_of(name: str) -> Term | None:
    """Return the term of a column; None: there is none of this name."""
    return _NAMED.get(name.lower())


def terms_in(texts: Iterable[str]) -> tuple[Term, ...]:
    """Return the terms that stand in texts, in the order in which a page explains them."""
    found = {_NAMED[one.lower()].name for text in texts for one in _ALL.findall(text)}
    return tuple(term for term in TERMS if term.name in found)


def with_terms(text: str) -> Markup:
    """Return a text as HTML, escaped; the first time that a term stands in it, it leads to its explanation."""
    pieces, end, seen = [], 0, set()
    for found in _LINKED.finditer(text):
        term = _NAMED[found.group().lower()]
        if term.name in seen:
            continue
        seen.add(term.name)
        link = Markup('<a class="term" href="#{0}" data-tip="{0}">{1}</a>').format(term.anchor, found.group())
        pieces += [escape(text[end : found.start()]), link]
        end = found.end()
    return Markup("").join([*pieces, escape(text[end:])])
