"""Answers to questions about a passage, scored as MLQA scores them, in every language: what XQuAD and MLQA share.

The harness's XQuAD drops English articles and ASCII punctuation in all languages (and needs a module that transformers
5 no longer has). The scorer here begins where MLQA's official one ends: its articles by language, Unicode punctuation,
characters where a script writes no spaces; `normalised_units` says what it does besides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import TypedDict

import regex

from lingraft.config.schema import DataSource
from lingraft.data.row_fields import Row, RowError, identifier, kind, objects, present, text
from lingraft.errors import EvaluationError
from lingraft.evaluate.own_task import Documents, Options
from lingraft.evaluate.task_data import fixed_sample, read_rows, room_for
from lingraft.text.folding import fold_for_scores
from lingraft.text.language_tags import primary_language
from lingraft.text.units import units

_FEWEST_NEW_TOKENS = 32
# de, en, es and vi as in MLQA's scorer (vi: words of grammar and classifiers, as it has no articles). Languages that
# are not here have none, or write them as part of the noun.
_ARTICLES = {
    "de": "ein eine einen einem eines einer der die das den dem des",
    "el": "ο η το οι τα τον την του της των τους τις ένας μια μία ένα",  # noqa: RUF001
    "en": "a an the",
    "es": "un una unos unas el la los las",
    "fr": "le la les un une des",
    "it": "il lo la i gli le un uno una",
    "nl": "de het een",
    "pt": "o a os as um uma uns umas",
    "ro": "un o unui unei",
    "vi": "của là cái chiếc những",
}
_FOLDED_ARTICLES = {
    language: frozenset(fold_for_scores(words, language).split()) for language, words in _ARTICLES.items()
}
_ELIDED_ARTICLE = {language: regex.compile(r"(?<!\w)l['\u2019](?=\w)") for language in ("fr", "it")}
_ARABIC_ARTICLE = "ال"
_PUNCTUATION = regex.compile(r"[\p{P}\p{S}]")


class Document(TypedDict):
    """One question, as the harness hands it over."""

    id: str
    context: str
    question: str
    answers: list[str]
    cluster: str


@dataclass(frozen=True)
class AnswerScores:
    """How well an answer meets the best of the expected ones.

    Attributes:
        f1: Of the units that both share, however often each has them, in [0, 1].
        exact_match: 1 where all units are the same in the same order, else 0.
    """

    f1: float
    exact_match: float


def answer_scores(answer: str, expected: Sequence[str], language: str) -> AnswerScores:
    """Return F1 and exact match of an answer, each against whichever expected answer suits it best.

    Args:
        answer: What the model wrote.
        expected: Every answer that counts as right; at least one.
        language: BCP-47 tag of the expected answers.

    Source: the official scorer of MLQA (Lewis et al. 2020), mlqa_evaluation_v1.py. Biased downwards where a right
    answer is phrased otherwise, and where a model explains: each word more lowers precision.
    """
    f1 = exact_match = 0.0
    for one in expected:
        given, wanted = normalised_units(answer, language), normalised_units(one, language)
        if not given and not wanted:  # nothing but articles and signs, so these are the answer
            given, wanted = fold_for_scores(answer, language).split(), fold_for_scores(one, language).split()
        shared = (Counter(given) & Counter(wanted)).total()
        both = len(given) + len(wanted)
        f1 = max(f1, 2 * shared / both if both else 1.0)
        exact_match = max(exact_match, float(given == wanted))
    return AnswerScores(f1, exact_match)


def normalised_units(answer: str, language: str) -> list[str]:
    """Return what is compared: the units of an answer without punctuation, symbols and articles.

    As in MLQA's scorer, punctuation is deleted rather than replaced by a space (ice-cream is icecream), the Arabic
    article is taken off every word that begins with it, and Chinese is split into characters. Besides: the text is
    folded (`fold_for_scores`); symbols go as well (€ as $); Japanese, Thai, Lao, Khmer and Burmese are split into
    their `text.units` too; articles of el, fr, it, nl, pt and ro are dropped.
    """
    language = primary_language(language)
    folded = fold_for_scores(answer, language)
    if language in _ELIDED_ARTICLE:
        folded = _ELIDED_ARTICLE[language].sub("", folded)
    found = units(_PUNCTUATION.sub("", folded))
    if language == "ar":
        found = [unit.removeprefix(_ARABIC_ARTICLE) for unit in found]
    articles = _FOLDED_ARTICLES.get(language, frozenset())
    return [unit for unit in found if unit and unit not in articles]


def passage_documents(
    name: str, options: Options, languages: Sequence[str], hub: DataSource | None
) -> Documents:
    """Return questions as documents with the fields id, context, question, answers (all that are right) and cluster.

    A cluster is a passage, named by the lowest id among its questions. `limit` takes a fixed sample. An answer may be
    as long as every expected one, and at least 32 tokens.

    Args:
        name: Of the task.
        options: `data` may hold flat rows as on the hub (context, question, answers), rows of one passage with its
            `qas`, or SQuAD's own layout (`data`, `paragraphs`, `qas`).
        languages: BCP-47 tags of the languages that the hub has.
        hub: What it has for this language; None: nothing.

    Raises:
        EvaluationError: There is nothing in this language, or a row is broken.
        DataError: The data cannot be read.
    """
    absent = (
        f"{name}: there are no questions in {options.language!r}, only in {', '.join(languages)}; give it `data:`, a "
        "local file in SQuAD's layout, or take another language."
    )
    found = read_rows(options.data, hub, absent=absent)
    documents: dict[str, Document] = {}
    places: dict[str, str] = {}
    lowest: dict[str, str] = {}  # id by passage
    for row in found.rows:
        try:
            for context, question in _questions(row.value):
                asked = text(question, "question")
                own_id = identifier(question, "id") or sha256(f"{context}\0{asked}".encode()).hexdigest()[:16]
                if own_id in documents:
                    raise EvaluationError(
                        f"{row.place}: the id {own_id!r} stands in {places[own_id]} already; every question needs its "
                        "own."
                    )
                documents[own_id] = {
                    "id": own_id,
                    "context": context,
                    "question": asked,
                    "answers": _answers(question),
                    "cluster": "",
                }
                places[own_id] = row.place
                lowest[context] = min(lowest.get(context, own_id), own_id)
        except RowError as error:
            raise EvaluationError(
                f"{row.place}: {error}; a row has context, question and answers, or a context and its qas."
            ) from None
    for one in documents.values():
        one["cluster"] = lowest[one["context"]]
    items = fixed_sample(list(documents.values()), options.limit)
    expected = (answer for item in items for answer in item["answers"])
    return Documents(items, room_for(expected, _FEWEST_NEW_TOKENS), found.source, found.revision)


def prompt(doc: Document) -> str:
    """Return the prompt of version 1, English in every language: the passage and the question are not."""
    return (
        f"Passage: {doc['context'].strip()}\n\nAnswer the question with words of the passage, as short as possible."
        f"\n\nQuestion: {doc['question'].strip()}\n\nAnswer:"
    )


def target(doc: Document) -> str:
    """Return the first of the expected answers."""
    return doc["answers"][0]


def scores(doc: Document, results: Sequence[str], language: str) -> dict[str, float]:
    """Return F1 and exact match of an answer."""
    return asdict(answer_scores(results[0], doc["answers"], language))


def _questions(row: Row) -> Iterator[tuple[str, Row]]:
    """Yield context and question of a row: a whole file of SQuAD's, an article, a passage, or one question."""
    for inner in ("data", "paragraphs"):
        if inner in row:
            for part in objects(row, inner, "passages"):
                yield from _questions(part)
            return
    context = text(row, "context")
    for question in objects(row, "qas", "'question' and 'answers'") if "qas" in row else [row]:
        yield context, question


def _answers(question: Row) -> list[str]:
    """Return the distinct expected answers, in the hub an object of lists, in SQuAD's files a list of objects."""
    held = present(question, "answers")
    if isinstance(held, Mapping):
        texts = present(held, "text", "answers")
        if not isinstance(texts, (list, tuple)):
            raise RowError("answers.text", f"must be a list of text, not {kind(texts)}")
        held = [{"text": one} for one in texts]
    found = [
        text(one, "text", f"answers[{i}]")
        for i, one in enumerate(objects({"answers": held}, "answers", "'text'"))
    ]
    if not found:
        raise RowError("answers", "is empty, so no answer could be right")
    return list(dict.fromkeys(found))
