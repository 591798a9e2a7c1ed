"""Which of a study's languages a text is written in; used by the wrong-language verdicts of the evaluation."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

from lingraft.errors import DataError, did_you_mean

MINIMUM_LETTERS = 20


class LanguageIdentifier:
    """Names the language of a text among a few known ones, or says that it cannot tell.

    py3langid (character n-grams, model inside the package, no network) restricted to `languages`.

    Accuracy: on sentences of about 12 words nearly always right among a dozen languages; on one-word names
    only in 78 % of cases (44 % on English ones), which is why a text of fewer than MINIMUM_LETTERS letters is
    undetermined. Biased towards the languages that are given: text in any other language is forced into one
    of them. Names, digits and quoted foreign words pull the verdict towards their own language.

    Loading takes about half a second, so construct it once and keep it.
    """

    def __init__(self, languages: Sequence[str]) -> None:
        """Load the model.

        Args:
            languages: BCP-47 tags; only the primary subtag counts ("pt-BR" is "pt").

        Raises:
            DataError: `languages` is empty, or the model does not know one of them.
        """
        from py3langid.langid import MODEL_FILE
        from py3langid.langid import LanguageIdentifier as Identifier

        if not languages:
            raise DataError(
                "language identification needs at least one language to choose from; none was given."
            )
        self._tag_of = {tag.split("-")[0].lower(): tag for tag in languages}
        self._identifier: Any = Identifier.from_model_file(MODEL_FILE)
        known = set(self._identifier.labels)
        for primary, tag in self._tag_of.items():
            if primary not in known:
                raise DataError(
                    f"{tag!r} is not known to the language identifier. {did_you_mean(primary, known)}"
                )
        self._identifier.set_languages(list(self._tag_of))

    def identify(self, text: str) -> str | None:
        """Return the tag of the most likely language, or None where `text` has under MINIMUM_LETTERS letters.

        Case is ignored: an answer in capital letters is the same text to the identifier.
        """
        if sum(unicodedata.category(character)[0] == "L" for character in text) < MINIMUM_LETTERS:
            return None
        language: str = self._identifier.classify(text.lower())[0]
        return self._tag_of[language]
