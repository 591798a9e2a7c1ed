"""What an evaluation item is made of, without its task's template and wrong options.

A prompt is the task's own: `Frage: ... Antwort:`, options behind letters, a connective. Training rows that hold the
item have none of that, so the texts are looked up in the task's document, which any harness task has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lingraft.text.folding import fold_for_overlap

Reading = tuple[str, ...]

_GRAM = 5  # characters
_INSIDE = 0.7  # of a text's n-grams: tasks change a letter here and drop a tag there (XCOPA, HellaSwag)
_FUZZY = 10  # characters; of fewer, the n-grams say nothing
_LONG = 20  # characters; shorter texts are names, categories and labels as often as what is asked
_LONGEST_LABEL = 2
_END = re.compile(r"^\s+|\W+$")
_LETTERS = tuple("ABCDEFGHIJ")
_LETTER = re.compile(r"\(?([A-J])\)?")
_WORD_BEFORE = re.compile(r"(\w+)\W{1,3}$")


@dataclass(frozen=True)
class ItemTexts:
    """An item in its own words.

    Attributes:
        readings: Each is the whole item as it is asked, as texts of the document in the prompt's order: those that
            stand in the prompt, then those that these are made of; without wrong options.
        reference: The right answer; where the task's is the label of an option, the option.
    """

    readings: tuple[Reading, ...]
    reference: str


def item_texts(document: Mapping[str, Any], prompt: str, reference: str, choices: Sequence[str]) -> ItemTexts:
    """Return the texts of a document that its prompt asks, and the right answer.

    A text stands in the prompt where most of it does (0.7 of its 5 characters in a row): tasks change a letter
    or drop a tag. An option is a text that stands behind a label, such as `B. `. What the prompt does not show (ids,
    solutions) is no text of the item. An item whose document holds no text of the prompt has no reading.

    Args:
        document: The task's row; texts may stand at any depth.
        prompt: As the task's template makes it.
        reference: The task's right answer.
        choices: Of a task of multiple choice: labels, or whole answers; else empty.
    """
    texts = list({one.joined: one for one in map(_Text, _strings(document)) if one.joined}.values())
    # What options are called in the prompt, and which one is right; none where choices are whole answers.
    labels: Sequence[str] = ()
    right = reference.strip()
    if choices:
        labels = [choice.strip() for choice in choices]
        labels = labels if max(map(len, labels)) <= _LONGEST_LABEL else ()
    elif letter := _LETTER.fullmatch(right):  # a generating task has no choices, but may expect a letter
        labels, right = _LETTERS, letter[1]
    options = {one.raw: label for one in texts if (label := _label_of(one.raw, prompt, labels)) is not None}
    answer = next((text for text, label in options.items() if label == right), reference)
    answers = [_Text(one) for one in (answer, reference)]
    whole = _Text(f"{prompt}\n{answer}")
    asked = [
        one
        for one in texts
        if one.raw not in options and one.stands_in(whole) and not any(one.is_inside(own) for own in answers)
    ]
    wrong = _size([_Text(text) for text, label in options.items() if label != right])
    return ItemTexts(tuple(dict.fromkeys(_readings(asked, whole, wrong))), answer)


@dataclass(frozen=True)
class _Text:
    """A text, and what is compared of it: its letters and digits in one."""

    raw: str

    @cached_property
    def joined(self) -> str:
        return fold_for_overlap(self.raw).replace(" ", "")

    @cached_property
    def _grams(self) -> frozenset[str]:
        return frozenset(self.joined[i : i + _GRAM] for i in range(max(1, len(self.joined) - _GRAM + 1)))

    @property
    def is_long(self) -> bool:
        return len(self.joined) >= _LONG

    def is_inside(self, other: _Text) -> bool:
        """Return whether most of this text stands in the other."""
        if self.joined in other.joined:
            return True
        if len(self.joined) < _FUZZY:
            return False
        return len(self._grams & other._grams) >= _INSIDE * len(self._grams)

    def stands_in(self, other: _Text) -> bool:
        """Return the same; of a few characters, whether they stand there as whole words, as they are written."""
        if len(self.joined) >= _FUZZY:
            return self.is_inside(other)
        words = re.escape(_END.sub("", self.raw))
        return re.search(rf"(?<!\w){words}(?!\w)", other.raw) is not None

    def is_part_of(self, other: _Text) -> bool:
        """Return whether the other text was made with this one, which is no mere resemblance to a part of it."""
        shorter, longer = len(self.joined), len(other.joined)
        return (
            self.joined in other.joined
            if 2 * shorter < longer
            else shorter < longer and self.is_inside(other)
        )

    def place_in(self, other: _Text) -> int:
        place = other.joined.find(self.joined)
        return place if place >= 0 else other.joined.find(self.joined[:_GRAM])


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _strings(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _strings(one)


def _label_of(text: str, prompt: str, labels: Sequence[str]) -> str | None:
    """Return the label that a text stands behind in the prompt; None: it is no option."""
    text = text.strip()
    start = prompt.find(text) if labels and text else -1
    while start >= 0:
        before = _WORD_BEFORE.search(prompt[max(0, start - _LONG) : start])
        is_whole = not prompt[start + len(text) : start + len(text) + 1].isalnum()
        if is_whole and before is not None and before[1] in labels:
            return before[1]
        start = prompt.find(text, start + 1)
    return None


def _readings(asked: Sequence[_Text], whole: _Text, wrong: int) -> Iterator[Reading]:
    """Yield the outermost of the texts; then those inside of them that still make the item up, together and each.

    HellaSwag's `query` holds its `ctx` beside a category, and this one `ctx_a`. What is less than half of the item,
    such as an answer that stands in its passage, is no reading of it.

    Args:
        asked: The item's texts.
        whole: The prompt, for their order.
        wrong: Characters of wrong options, which an outer text may hold.
    """
    inner = _inside_others(asked)
    outer = sorted((one for one in asked if one not in inner), key=lambda one: one.place_in(whole))
    if outer:
        yield tuple(one.raw for one in outer)
    half = max(1, _size(outer) - wrong) / 2
    while inner:
        deeper = _inside_others(inner)
        level = [one for one in inner if one.is_long and one not in deeper]
        level.sort(key=lambda one: one.place_in(whole))
        for reading in (level, *([one] for one in level)):
            if _size(reading) >= half:
                yield tuple(one.raw for one in reading)
        inner = deeper


def _inside_others(texts: Sequence[_Text]) -> list[_Text]:
    return [one for one in texts if any(one.is_part_of(other) for other in texts)]


def _size(texts: Sequence[_Text]) -> int:
    return sum(len(one.joined) for one in texts)
