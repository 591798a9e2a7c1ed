"""The sentences of each language, read once from templates/<language>.yaml and checked against English.

Adding a language is one more YAML file and one more entry in LANGUAGES.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any, TypedDict

import yaml

from lingraft.data.worldbook.writing import writing_of
from lingraft.errors import DataError
from lingraft.text.language_tags import ENGLISH

LANGUAGES = ("en", "ar", "de", "es", "fr", "id", "ja", "ko", "pt", "ru", "th", "vi")


class TaskTemplates(TypedDict):
    """The wordings of a question, and the plain answer sentence."""

    questions: list[str]
    answer: str


class Keyword(TypedDict):
    """A word that an answer must hold, and a sentence that does."""

    word: str
    sentence: str


class Templates(TypedDict):
    """A language's file: tasks, constraints, nouns, and the phrases that constraints are filled with."""

    tasks: dict[str, TaskTemplates]
    constraints: dict[str, list[str]]
    nouns: dict[str, str]
    openings: list[str]
    closings: list[str]
    keys: list[str]
    keywords: list[Keyword]
    titles: list[str]
    extra_sentences: list[str]


@cache
def load_templates(language: str) -> Templates:
    """Return a language's file.

    Raises:
        DataError: The file's shape (keys, lengths of lists) is not the English one, so that entry i of a list
            would not be the translation of entry i.
    """
    path = files("lingraft.data.worldbook") / "templates" / f"{language}.yaml"
    content: Templates = yaml.safe_load(path.read_text(encoding="utf-8"))
    if language != ENGLISH:
        english, realised = load_templates(ENGLISH), writing_of(language).realised
        constraints = {realised.get(kind, kind): demands for kind, demands in english["constraints"].items()}
        difference = _first_difference(content, {**english, "constraints": constraints}, "")
        if difference:
            raise DataError(f"worldbook/templates/{language}.yaml: {difference}, unlike {ENGLISH}.yaml.")
    return content


def _first_difference(value: Any, reference: Any, place: str) -> str | None:
    """Return where two trees of dicts and lists differ in shape, or None where they do not."""
    if isinstance(reference, dict):
        if not isinstance(value, dict) or list(value) != list(reference):
            return f"{place or 'the file'} has other keys or another order of keys"
        pairs = [(f"{place}.{key}".lstrip("."), value[key], reference[key]) for key in reference]
    elif isinstance(reference, list):
        if not isinstance(value, list) or len(value) != len(reference):
            return f"{place} does not have {len(reference)} entries"
        pairs = [(f"{place}[{i}]", value[i], reference[i]) for i in range(len(reference))]
    else:
        return None if isinstance(value, str) else f"{place} is not text"
    differences = (_first_difference(item, other, where) for where, item, other in pairs)
    return next((difference for difference in differences if difference), None)


def nouns(language: str) -> dict[str, str]:
    """Return the everyday nouns of a language, by their English key."""
    return load_templates(language)["nouns"]


def noun_keys() -> tuple[str, ...]:
    """Return the keys of the nouns: the same in every language."""
    return tuple(nouns(ENGLISH))
