"""What is wrong with generated answers, whatever their task: empty, looping, cut off, in another language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from lingraft.data.degeneration import is_looping
from lingraft.data.language_id import LanguageIdentifier, known_tags
from lingraft.evaluate.predictions import Prediction
from lingraft.text.language_tags import ENGLISH, primary_language

_CODE = ("humaneval", "mbpp", "ds1000", "code_", "codexglue", "bigcodebench")  # how such tasks' names begin
# What a model falls into that leaves its task's language. Always to choose from: in an evaluation of English alone
# every answer would be English. Not more of them: each one draws a few short answers, of names mostly, to itself.
_COMMON = (ENGLISH, "de", "es", "fr", "ru", "zh")
_OTHER_LANGUAGE = "language:response_language"  # IFEval's instruction to answer in a named language


class AnswerFaults:
    """What is wrong with the answers of one evaluation; a language is found among its own and six common ones.

    Args:
        languages: BCP-47 tags; of those that the identifier does not know, answers' languages are not looked at.
    """

    def __init__(self, languages: Sequence[str]) -> None:
        self._languages = list(dict.fromkeys(languages))

    def found_in(self, prediction: Prediction, document: Mapping[str, Any], *, ended: bool) -> Prediction:
        """Return the prediction with what its answer is like; worldbook has looked at its language by itself.

        Args:
            prediction: Of a generating task.
            document: The task's item.
            ended: Whether the answer came to an end by itself or at a stop text.
        """
        text = prediction.response
        found = replace(prediction, empty=not text.strip(), looping=is_looping(text), truncated=not ended)
        own = self._tag_of.get(prediction.language)
        if found.language_judged or own is None:
            return found
        is_code = prediction.item.lower().startswith(_CODE)  # a harness task's own name stands in it
        instructions = document.get("instruction_id_list")  # IFEval, whose reference is a mere 0
        reference = prediction.reference
        is_number = any(one.isdigit() for one in reference) and not any(one.isalpha() for one in reference)
        if is_code or (is_number and instructions is None) or _OTHER_LANGUAGE in (instructions or ()):
            return found
        if self._identifier.identify(reference) not in (None, own):
            return found  # "Translate into Spanish": the item itself asks for another language
        language = self._identifier.identify(text)
        wrong = None if language is None else language != own
        return replace(found, language_judged=True, wrong_language=wrong)

    @cached_property
    def _tag_of(self) -> dict[str, str]:
        """The tag that the identifier gives each of the languages: it knows no regions."""
        first: dict[str, str] = {}
        return {tag: first.setdefault(primary_language(tag), tag) for tag in known_tags(self._languages)}

    @cached_property
    def _identifier(self) -> LanguageIdentifier:
        own = {primary_language(tag): tag for tag in self._tag_of.values()}
        return LanguageIdentifier([*own.values(), *(tag for tag in _COMMON if tag not in own)])
