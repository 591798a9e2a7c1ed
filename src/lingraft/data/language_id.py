"""Which of a study's languages a text is written in; used by the wrong-language verdicts of the evaluation."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from copy import copy
from functools import cache
from typing import Any

from lingraft.errors import DataError, did_you_mean
from lingraft.text.language_tags import nearest_language

MINIMUM_LETTERS = 20
CLEAR_SHARE = 0.8  # of a set's texts, from which their language is named; a translated set holds some English
MINIMUM_SCRIPT_LETTERS = 5  # where the script alone tells the language
_SCRIPT_SHARE = 0.8  # of the letters, so that a foreign name or unit may stand among them

# Script, as Unicode's character names begin, to the languages of the identifier that are written in it.
_WRITTEN_IN = {
    "ARABIC": ("ar", "fa", "ps", "ug", "ur"),
    "CYRILLIC": ("be", "bg", "kk", "ky", "mk", "mn", "ru", "sr", "uk"),
    "HANGUL": ("ko",),
    "HIRAGANA": ("ja",),
    "KATAKANA": ("ja",),
    "CJK": ("ja", "zh"),
    "THAI": ("th",),
}


def known_tags(tags: Sequence[str]) -> list[str]:
    """Return those of `tags` (BCP-47) whose language the identifier knows."""
    known = tuple(_all_languages().labels)
    return [tag for tag in tags if nearest_language(tag, known) is not None]


def shares_of_languages(texts: Iterable[str]) -> dict[str, float]:
    """Return in which languages texts are, among all that the identifier knows: tag -> share, the largest first.

    Of the texts that are long enough to tell; empty where none is. A single short text is often misjudged among so many
    languages: trust what most of a hundred say.
    """
    identifier = LanguageIdentifier(known_tags(_all_languages().labels))  # all but zxx, which is no language
    found = Counter(tag for text in texts if (tag := identifier.identify(text)) is not None)
    return {tag: count / found.total() for tag, count in found.most_common()}


@cache
def _all_languages() -> Any:
    """Return the identifier of all languages, read once; it is copied before it is restricted."""
    from py3langid.langid import MODEL_FILE
    from py3langid.langid import LanguageIdentifier as Identifier

    return Identifier.from_model_file(MODEL_FILE)


class LanguageIdentifier:
    """Names the language of a text among a few known ones, or leaves it undetermined.

    First by script: text in Hangul is Korean where no other of the languages is written in it. Else py3langid
    (character n-grams, model inside the package, no network) restricted to `languages`.

    Accuracy: on sentences of about 12 words nearly always right among a dozen languages; on one-word names
    only in 78 % of cases (44 % on English ones), which is why a text of fewer than MINIMUM_LETTERS letters is
    undetermined unless its script tells. Biased towards the languages that are given: text in any other language is
    forced into one of them. Names, digits and quoted foreign words pull the verdict towards their own language.

    The model is loaded once in a process, which takes about half a second.
    """

    def __init__(self, languages: Sequence[str]) -> None:
        """Restrict the model.

        Args:
            languages: BCP-47 tags; the identifier's nearest counts ("pt-BR" is "pt", see `nearest_language`).

        Raises:
            DataError: `languages` is empty, or the model does not know one of them.
        """
        if not languages:
            raise DataError(
                "language identification needs at least one language to choose from; none was given."
            )
        self._identifier: Any = copy(_all_languages())
        known = tuple(self._identifier.labels)
        self._tag_of: dict[str, str] = {}
        for tag in languages:
            own = nearest_language(tag, known)
            if own is None:
                raise DataError(
                    f"{tag!r} is not known to the language identifier. {did_you_mean(tag, known)}"
                )
            self._tag_of[own] = tag
        self._identifier.set_languages(list(self._tag_of))
        self._only_tag_of = {
            script: self._tag_of[found[0]]
            for script, languages_in_it in _WRITTEN_IN.items()
            if len(found := [primary for primary in languages_in_it if primary in self._tag_of]) == 1
        }

    def identify(self, text: str) -> str | None:
        """Return the tag of the most likely language, or None where `text` is too short to tell.

        Too short is under MINIMUM_LETTERS letters, or MINIMUM_SCRIPT_LETTERS where the script belongs to one of the
        languages only. Case is ignored: an answer in capital letters is the same text to the identifier.
        """
        letters = [character for character in text if unicodedata.category(character)[0] == "L"]
        if len(letters) >= MINIMUM_SCRIPT_LETTERS:
            scripts = (re.split("[ -]", unicodedata.name(letter, ""))[0] for letter in letters)
            tags = Counter(self._only_tag_of.get(script) for script in scripts)
            tag, count = tags.most_common(1)[0]
            if tag is not None and count >= _SCRIPT_SHARE * len(letters):
                return tag
        if len(letters) < MINIMUM_LETTERS:
            return None
        language: str = self._identifier.classify(text.lower())[0]
        return self._tag_of[language]
