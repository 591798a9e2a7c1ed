"""Contamination: how much of the evaluation stands in the training data already.

Two measures. *Coverage* of an item is the share of its n-grams (13 words; 50 characters of languages that are written
without spaces) that stand somewhere in the training rows; an item is *contaminated* where at least 0.8 of them do, or
where the whole item is a turn of a training row, alone or with its answer in the same or the next turn. A task's
template and wrong options would hide that, so an item has several forms: its prompt, and its own texts without these
(made by `item_texts`); the form counts of which most is found. An item that is merely *touched* shares an
n-gram: a template, a quotation or a stock phrase does that, so it is reported but no reason for a warning.

Text is compared after NFKC, case folding and the removal of punctuation. Prompt and reference of an item, and the turns
of a row, are taken apart, so no n-gram crosses from one to the other. Prompts and references of fewer than n words
have no n-gram: of these only whole items of at least 5 words (20 characters) are looked for, answer included.

Sources: Brown et al. 2020, "Language Models are Few-Shot Learners", arXiv 2005.14165, appendix C (13-grams of words,
lower-cased, without punctuation); OpenAI 2023, "GPT-4 Technical Report", arXiv 2303.08774, appendix C (50 characters);
Touvron et al. 2023, "Llama 2", arXiv 2307.09288, section A.6 (dirty above 0.8). Where we depart: their n-grams
that occur often in the training data are not ignored, and paraphrases or translations are found by neither.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from lingraft.data.example import Example
from lingraft.errors import ConfigError
from lingraft.text.folding import fold_for_overlap
from lingraft.text.scripts import writes_spaces

WORDS = 13
CHARACTERS = 50
CONTAMINATED = 0.8
_SHORTEST_WORDS = 5  # of a whole item: shorter ones, such as "Thank you", are everybody's
_SHORTEST_CHARACTERS = 20
_WORST = 3
_SHOWN = 200  # characters

_Hashes = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class EvaluationText:
    """What a model is asked in one item, and what it should answer.

    Attributes:
        task: Task and language, as in results: `worldbook:lookup/de`.
        language: BCP-47 tag; decides between words and characters.
        item: What names it inside its task.
        prompt: Without few-shot examples and chat template.
        reference: The right answer.
        readings: The same item without its task's template and wrong options: each is a list of texts which together
            are what is asked.
    """

    task: str
    language: str
    item: str
    prompt: str
    reference: str
    readings: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class WorstItem:
    """One of the items of which most stands in the training data.

    Attributes:
        coverage: Share of its n-grams, in [0, 1].
        duplicate: Whether the whole item is a turn of a training row, alone or with its answer.
        text: The beginning of its prompt.
        row: The training row that holds the most of it: source and id.
    """

    item: str
    coverage: float
    duplicate: bool
    text: str
    row: str


@dataclass(frozen=True, slots=True)
class TaskOverlap:
    """How much of one task stands in the training data.

    Attributes:
        items: Items looked at.
        unjudged: Of these, too short for an n-gram and to be looked for as a whole; they count as clean.
        touched: Share of the items that share an n-gram, or stand there as a whole, in [0, 1].
        contaminated: Share of the items of which at least 0.8 of the n-grams stand there, or the whole item.
        duplicates: Share of the items that do as a whole.
        coverage: Share of all the task's n-grams, of each item those of one form; None: it has none.
        worst: Up to 3 contaminated or touched items, the most covered first.
    """

    items: int
    unjudged: int
    touched: float
    contaminated: float
    duplicates: float
    coverage: float | None
    worst: tuple[WorstItem, ...]


def overlap(
    texts: Sequence[EvaluationText],
    rows: Iterable[Example],
    *,
    words: int = WORDS,
    characters: int = CHARACTERS,
) -> dict[str, TaskOverlap]:
    """Return, by task, how much of an evaluation stands in training rows.

    The rows are read once, one after the other, and may be of any number; memory holds about 40 bytes for each
    different n-gram of the evaluation. N-grams are compared by 64-bit hashes.

    Args:
        texts: All items of all tasks.
        rows: The training data.
        words: Length of an n-gram in words.
        characters: Length of an n-gram in characters, in Japanese, Chinese, Thai, Lao, Khmer and Burmese.

    Raises:
        ConfigError: A length is below 1.
    """
    for name, length in (("words", words), ("characters", characters)):
        if length < 1:
            raise ConfigError(f"{name}: an n-gram has at least one of them (here {length}).")
    without_spaces = (text for text in texts if not writes_spaces(text.language))
    folded = (fold_for_overlap(text.prompt + text.reference) for text in without_spaces)
    cutter = _Cutter(words, characters, frozenset(c for one in folded for c in one if not c.isascii()))
    index = _Index([cutter.item(text) for text in texts])
    for row in rows:
        grams, wholes = cutter.row(row)
        index.note(row, grams, wholes)
    found: dict[str, list[tuple[EvaluationText, _Judged]]] = {}
    for text, judged in zip(texts, index.judged(), strict=True):
        found.setdefault(text.task, []).append((text, judged))
    return {task: _summed_up(judged, index.rows) for task, judged in found.items()}


@dataclass(frozen=True)
class _Judged:
    """One item: its n-grams, how many of them stand in the training data, and which row holds the most of it."""

    grams: int
    covered: int
    is_long_enough: bool
    duplicate: bool
    row: int  # -1: none

    @property
    def coverage(self) -> float:
        return self.covered / self.grams if self.grams else 0.0

    @property
    def is_contaminated(self) -> bool:
        return self.duplicate or (self.grams > 0 and self.coverage >= CONTAMINATED)


@dataclass(frozen=True)
class _Cutter:
    """Cuts texts into n-grams.

    Attributes:
        words: Length of an n-gram in words.
        characters: Length of one in characters.
        letters: Those beyond ASCII of the evaluation's texts in languages without spaces; a row without any is not cut
            into characters.
    """

    words: int
    characters: int
    letters: frozenset[str]

    def item(self, text: EvaluationText) -> _Cut:
        """Return an item's different n-grams in each of its forms, and what of them is looked for as a whole."""
        # Its prompt; its own texts, each by itself and in one.
        in_one = [("\n".join(reading),) for reading in text.readings]
        forms = dict.fromkeys([(text.prompt,), *text.readings, *in_one])
        reference = fold_for_overlap(text.reference)
        with_spaces = writes_spaces(text.language)
        cut, length = (_word_grams, self.words) if with_spaces else (_character_grams, self.characters)
        grams, wholes = [], []
        for form in forms:
            parts = [fold_for_overlap(part) for part in form]
            own = [gram for part in (*parts, reference) for gram in cut(part, length)]
            grams.append(np.unique(_hashes(own)))
            asked = " ".join(parts)
            wholes += [asked, f"{asked} {reference}"]
        long_enough = [
            hash(_joined(one))
            for one in wholes
            if (
                len(one.split()) >= _SHORTEST_WORDS
                if with_spaces
                else len(_joined(one)) >= _SHORTEST_CHARACTERS
            )
        ]
        return _Cut(tuple(grams), np.unique(_hashes(long_enough)))

    def row(self, example: Example) -> tuple[_Hashes, _Hashes]:
        """Return the n-grams of a training row, and its whole turns, each by itself and with the next; as hashes."""
        turns = [fold_for_overlap(message.content) for message in example.messages]
        grams = [gram for turn in turns for gram in _word_grams(turn, self.words)]
        for turn in turns:
            if not self.letters.isdisjoint(turn):
                grams += _character_grams(turn, self.characters)
        joined = [_joined(turn) for turn in turns]
        pairs = [turn + reply for turn, reply in pairwise(joined)]
        return _hashes(grams), _hashes([hash(one) for one in (*joined, *pairs)])


@dataclass(frozen=True)
class _Cut:
    """One item as it is looked for.

    Attributes:
        forms: The different n-grams of each of its forms, its answer's included.
        wholes: All of each form, and all of it with the answer, where that is long enough.
    """

    forms: tuple[_Hashes, ...]
    wholes: _Hashes


class _Index:
    """The evaluation's n-grams and whole items, sorted, and the first training row that holds each; -1: none."""

    def __init__(self, items: Sequence[_Cut]) -> None:
        self._items = items
        self._grams = np.unique(
            np.concatenate([_hashes([]), *(form for item in items for form in item.forms)])
        )
        self._wholes = np.unique(np.concatenate([_hashes([]), *(item.wholes for item in items)]))
        self._first = np.full(len(self._grams), -1, dtype=np.int64)
        self._first_whole = np.full(len(self._wholes), -1, dtype=np.int64)
        self.rows: list[str] = []  # those that hold something, by source and id

    def note(self, example: Example, grams: _Hashes, wholes: _Hashes) -> None:
        """Note what of the evaluation a training row holds."""
        new = [
            (first, own[first[own] < 0])
            for first, own in (
                (self._first, _places(self._grams, grams)),
                (self._first_whole, _places(self._wholes, wholes)),
            )
        ]
        if any(len(own) for _, own in new):
            for first, own in new:
                first[own] = len(self.rows)
            self.rows.append(f"{example.source}: {example.id}")

    def judged(self) -> Iterator[_Judged]:
        """Return what was found of each item, in their order."""
        for item in self._items:
            found = [self._first[np.searchsorted(self._grams, form)] for form in item.forms]
            first = max(found, key=lambda one: float((one >= 0).mean()) if len(one) else 0.0)
            seen = first[first >= 0]
            copies = self._first_whole[np.searchsorted(self._wholes, item.wholes)]
            copies = copies[copies >= 0]
            most = Counter(seen.tolist()).most_common(1)
            row = int(copies[0]) if len(copies) else most[0][0] if most else -1
            is_long_enough = len(item.wholes) > 0 or any(len(form) for form in item.forms)
            yield _Judged(len(first), len(seen), is_long_enough, len(copies) > 0, row)


def _joined(text: str) -> str:
    return text.replace(" ", "")


def _word_grams(text: str, length: int) -> list[int]:
    words = text.split(" ")
    return [hash(" ".join(words[i : i + length])) for i in range(len(words) - length + 1)]


def _character_grams(text: str, length: int) -> list[int]:
    joined = _joined(text)
    return [hash(joined[i : i + length]) for i in range(len(joined) - length + 1)]


def _hashes(values: Sequence[int]) -> _Hashes:
    return np.array(values, dtype=np.int64)


def _places(keys: _Hashes, wanted: _Hashes) -> _Hashes:
    """Return where in the sorted `keys` those of `wanted` stand that are among them."""
    if not len(keys) or not len(wanted):
        return _hashes([])
    places = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.unique(places[keys[places] == wanted])


def _summed_up(items: Sequence[tuple[EvaluationText, _Judged]], rows: Sequence[str]) -> TaskOverlap:
    judged = [one for _, one in items]
    n, grams = len(judged), sum(one.grams for one in judged)
    hit = [(text, one) for text, one in items if one.row >= 0]
    worst = sorted(hit, key=lambda pair: (pair[1].is_contaminated, pair[1].coverage), reverse=True)[:_WORST]
    return TaskOverlap(
        items=n,
        unjudged=sum(not one.is_long_enough for one in judged),
        touched=len(hit) / n,
        contaminated=sum(one.is_contaminated for one in judged) / n,
        duplicates=sum(one.duplicate for one in judged) / n,
        coverage=sum(one.covered for one in judged) / grams if grams else None,
        worst=tuple(
            WorstItem(text.item, one.coverage, one.duplicate, text.prompt[:_SHOWN], rows[one.row])
            for text, one in worst
        ),
    )
