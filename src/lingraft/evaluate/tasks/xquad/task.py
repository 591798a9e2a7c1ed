"""XQuAD: the questions of google/xquad, the same ones in twelve languages."""

from __future__ import annotations

from lingraft.config.schema import DataSource
from lingraft.evaluate.own_task import Documents, Options
from lingraft.evaluate.tasks.passage_questions import passage_documents
from lingraft.text.language_tags import nearest_language

LANGUAGES = ("ar", "de", "el", "en", "es", "hi", "ro", "ru", "th", "tr", "vi", "zh")


def documents(options: Options) -> Documents:
    """Return XQuAD's questions, whose clusters are the same in every language; see `passage_documents`."""
    own = nearest_language(options.language, LANGUAGES)
    hub = (
        None if own is None else DataSource(source="google/xquad", config=f"xquad.{own}", split="validation")
    )
    return passage_documents("xquad", options, LANGUAGES, hub)
