"""MLQA: the questions of facebook/mlqa whose passage, question and answer are in one language."""

from __future__ import annotations

from lingraft.config.schema import DataSource
from lingraft.evaluate.own_task import Documents, Options
from lingraft.evaluate.task_data import CONVERTED
from lingraft.evaluate.tasks.passage_questions import passage_documents
from lingraft.text.language_tags import nearest_language

LANGUAGES = ("ar", "de", "en", "es", "hi", "vi", "zh")


def documents(options: Options) -> Documents:
    """Return MLQA's questions; see `passage_documents`.

    Some questions are missing in some languages, so that a passage's lowest id may differ between two of them; such
    items count as independent.
    """
    own = nearest_language(options.language, LANGUAGES)
    hub = (
        None
        if own is None
        else DataSource(source="facebook/mlqa", config=f"mlqa.{own}.{own}", split="test", revision=CONVERTED)
    )
    return passage_documents("mlqa", options, LANGUAGES, hub)
