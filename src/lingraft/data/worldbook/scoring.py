"""The verdict on an answer: form, content, language and likeness to the reference."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from lingraft.data.language_id import LanguageIdentifier
from lingraft.data.worldbook.constraints import count_sentences, follows, parse_json_object
from lingraft.data.worldbook.items import Item
from lingraft.data.worldbook.tasks import task_named
from lingraft.data.worldbook.templates import LANGUAGES
from lingraft.data.worldbook.writing import count_words, ends_without_mark, phrase_pattern
from lingraft.text.folding import fold_for_worldbook

MINIMUM_WORDS = 5  # of a plain answer: one bare word is no sentence

_MARKS = re.compile(r"[*_`]+")
_NUMBER = re.compile(r"\d+")
_PLAIN_START = re.compile(r"[^\W_]|[¿¡]")


@dataclass(frozen=True, slots=True)
class Verdict:
    """How good one answer is.

    Attributes:
        headline: The score that tables show, in [0, 1]: the mean of form and content; 0 for an empty answer and
            for one in the wrong language, because a user who asked in Spanish has no use for German.
        form: Share of the constraints followed, in [0, 1]. A counting item, which has none, asks for one plain
            sentence of at least MINIMUM_WORDS words: 1 or 0.
        content: 1 if the slot is answered (see `has_content`), else 0.
        chrf: Sentence chrF against the reference answer, in [0, 1]. Rewards wording as well; never the headline.
        wrong_language: Whether the answer is in another language than the question; None where it is too short
            to tell.
        constraints_followed: One entry per constraint, in the item's order.
    """

    headline: float
    form: float
    content: float
    chrf: float
    wrong_language: bool | None
    constraints_followed: tuple[bool, ...]


def score_answer(item: Item, response: str) -> Verdict:
    """Return the verdict on a response to an item; the same for the same response and item.

    Biases: content is exact, so a right answer in other words than CLDR's ("5th of March" for "March 5") scores 0
    and a model tuned on the templates is favoured over one that was not. What is said about the slot is not
    examined beyond the rule in `has_content`.
    """
    followed = tuple(follows(constraint, response) for constraint in item.constraints)
    form = sum(followed) / len(followed) if followed else float(is_plain_sentence(response))
    content = float(has_content(item, response))
    wrong = is_wrong_language(item, response)
    usable = bool(response.strip()) and wrong is not True
    return Verdict(
        headline=(form + content) / 2 if usable else 0.0,
        form=form,
        content=content,
        chrf=_chrf_metric().sentence_score(response, [item.example.answer]).score / 100,
        wrong_language=wrong,
        constraints_followed=followed,
    )


def has_content(item: Item, response: str) -> bool:
    """Return whether the response answers the question's slot, whatever its form.

    The rule: after normalising (see `normalise`), the slot must occur as a whole phrase, which is judged by its script
    (see `writing.phrase_pattern`), and no competing value of the task may occur:
    none of its vocabulary (all weekdays, all number words, ...) nor, in some tasks, any number in digits, except
    what the slot itself or the question holds. So an answer that lists all weekdays is wrong, and so is one that
    names both numbers where the larger was asked for. In tasks about lists each word may occur once only, and in
    those about weekdays and months the question's own value may not come after the slot ("Tuesday follows Monday"
    is refused for the sake of refusing "the day after Tuesday is Monday").
    """
    text = normalise(response)
    slot = normalise(item.slot)
    if not re.search(phrase_pattern(slot), text):
        return False
    task = task_named(item.task)
    values = _values_in(text, item)
    allowed = {*_values_in(slot, item), *(normalise(given) for given in item.given)}
    return (
        set(values) <= allowed
        and not (task.each_once and len(set(values)) < len(values))
        and not (task.given_first and values[-1] != slot)
    )


def _values_in(text: str, item: Item) -> list[str]:
    """Return the values of the item's task in normalised text: words in their order, then numbers in theirs."""
    matches = _vocabulary_pattern(item.task, item.example.language).finditer(text)
    words = [match[match.lastindex or 0] for match in matches]
    return words + _NUMBER.findall(text) if task_named(item.task).digits_compete else words


@cache
def _vocabulary_pattern(task: str, language: str) -> re.Pattern[str]:
    """Longest first, so that "twenty-one" is one value and not three."""
    words = sorted({normalise(word) for word in task_named(task).vocabulary(language)}, key=len, reverse=True)
    return re.compile("|".join(phrase_pattern(word) for word in words) or r"(?!)")


def normalise(text: str) -> str:
    """Return what of a text matters to its content: of a JSON object the values, without marks such as *, folded."""
    value = parse_json_object(text)
    if value is not None:
        text = " ".join(str(entry) for entry in value.values())
    return fold_for_worldbook(_MARKS.sub("", text))


def is_plain_sentence(response: str) -> bool:
    """Return whether a response is one whole sentence on one line, without quotes, markup or capitals throughout.

    A Thai sentence needs no mark at its end. MINIMUM_WORDS are words, or ten Japanese or twenty Thai characters.
    """
    text = response.strip()
    return (
        "\n" not in text
        and _PLAIN_START.match(text) is not None
        and (text[-1] in ".!?\u3002\uff01\uff1f" or ends_without_mark(text))
        and count_words(text) >= MINIMUM_WORDS
        and count_sentences(text) == 1
        and not text.isupper()
    )


def is_wrong_language(item: Item, response: str) -> bool | None:
    """Return whether the response is in another language than the item, or None where nobody can tell.

    Exact where it can be: a response that holds the item's own plain answer sentence is in the right language,
    one that holds another language's parallel sentence is not. Else a language identifier decides among
    worldbook's languages, and short text is undetermined unless its script tells.
    """
    text = normalise(response)
    if _unended(item.sentence) in text:
        return False
    if any(_unended(answer) in text for answer in item.other_answers.values()):
        return True
    identified = _identifier().identify(text)
    return None if identified is None else identified != item.example.language


@cache
def _unended(sentence: str) -> str:
    """A plain sentence without its end mark, which some constraints replace."""
    return normalise(sentence).rstrip(".\u3002")


@cache
def _identifier() -> LanguageIdentifier:
    return LanguageIdentifier(LANGUAGES)


@cache
def _chrf_metric() -> Any:
    from sacrebleu.metrics import CHRF

    return CHRF()
