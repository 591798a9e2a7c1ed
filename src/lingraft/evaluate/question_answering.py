"""Answers to questions about a passage, scored as MLQA scores them, in every language; XQuAD and MLQA as harness tasks.

The harness's XQuAD drops English articles and ASCII punctuation in all languages (and needs a module that transformers
5 no longer has). The scorer here begins where MLQA's official one ends: its articles by language, Unicode punctuation,
characters where a script writes no spaces; `normalised_units` says what it does besides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import regex

from lingraft.data.row_fields import Row, RowError, identifier, kind, objects, present, text
from lingraft.errors import EvaluationError
from lingraft.evaluate.task_data import (
    CONVERTED,
    HubSplit,
    TaskRows,
    fixed_sample,
    generating_task,
    read_rows,
    room_for,
)
from lingraft.text.folding import fold_for_scores
from lingraft.text.language_tags import nearest_language, primary_language
from lingraft.text.units import units

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

PROMPT_VERSION = 1
XQUAD_LANGUAGES = ("ar", "de", "el", "en", "es", "hi", "ro", "ru", "th", "tr", "vi", "zh")
MLQA_LANGUAGES = ("ar", "de", "en", "es", "hi", "vi", "zh")
METRICS = ("f1", "exact_match")

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
    scores = [_scores(answer, one, language) for one in expected]
    return AnswerScores(
        f1=max(score.f1 for score in scores), exact_match=max(score.exact_match for score in scores)
    )


def normalised_units(answer: str, language: str) -> list[str]:
    """Return what is compared: the units of an answer without punctuation, symbols and articles.

    As in MLQA's scorer, punctuation is deleted rather than replaced by a space (ice-cream is icecream), the Arabic
    article is taken off every word that begins with it, and Chinese is split into characters. Besides: the text is
    folded (`text_units.fold`); symbols go as well (€ as $); Japanese, Thai, Lao, Khmer and Burmese are split into
    their `text_units` too; articles of el, fr, it, nl, pt and ro are dropped.
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


def xquad_task(
    language: str, *, data: Path | None, limit: int | None, max_new_tokens: int | None
) -> ConfigurableTask:
    """Return the harness task of XQuAD in one language: F1 per item, exact match beside.

    Documents have the fields id, context, question, answers (all that count as right) and cluster. A cluster is a
    passage, named by the lowest id among its questions: the same in every language, because XQuAD's ids are.

    Args:
        language: BCP-47 tag; one of XQUAD_LANGUAGES where `data` is None.
        data: A local file: flat rows as on the hub (context, question, answers), rows of one passage with its `qas`, or
            SQuAD's own layout (`data`, `paragraphs`, `qas`); None: google/xquad on the hub.
        limit: Questions, a fixed sample; None: all.
        max_new_tokens: Longest answer; None: what every expected answer of the sample fits in, at least 32.

    Raises:
        EvaluationError: XQuAD lacks the language, or a row of the file is broken.
        DataError: The data cannot be read.
    """
    own = nearest_language(language, XQUAD_LANGUAGES)
    hub = None if own is None else HubSplit("google/xquad", f"xquad.{own}", "validation")
    found = _rows("xquad", language, XQUAD_LANGUAGES, data, hub)
    return _passage_task(f"xquad:{language}", language, found, limit, max_new_tokens)


def mlqa_task(
    language: str, *, data: Path | None, limit: int | None, max_new_tokens: int | None
) -> ConfigurableTask:
    """Return the harness task of MLQA with passage, question and answer in one language; else as `xquad_task`.

    Some of MLQA's questions lack in some languages, so that a passage's lowest id may differ between two of them; such
    items count as independent. The hub's data set is facebook/mlqa, its split test.

    Raises:
        EvaluationError: MLQA lacks the language, or a row of the file is broken.
        DataError: The data cannot be read.
    """
    own = nearest_language(language, MLQA_LANGUAGES)
    hub = None if own is None else HubSplit("facebook/mlqa", f"mlqa.{own}.{own}", "test", CONVERTED)
    found = _rows("mlqa", language, MLQA_LANGUAGES, data, hub)
    return _passage_task(f"mlqa:{language}", language, found, limit, max_new_tokens)


def answer_prompt(context: str, question: str) -> str:
    """Return the prompt of version 1, English in every language: the passage and the question are not."""
    return (
        f"Passage: {context.strip()}\n\nAnswer the question with words of the passage, as short as possible.\n\n"
        f"Question: {question.strip()}\n\nAnswer:"
    )


def _rows(
    name: str, language: str, languages: Sequence[str], data: Path | None, hub: HubSplit | None
) -> TaskRows:
    absent = (
        f"{name}: there are no questions in {language!r}, only in {', '.join(languages)}; give it `data:`, a local "
        "file in SQuAD's layout, or take another language."
    )
    return read_rows(data, hub, absent=absent)


def _passage_task(
    name: str, language: str, found: TaskRows, limit: int | None, max_new_tokens: int | None
) -> ConfigurableTask:
    questions = [item for row in found.rows for item in _questions_of_row(row.value, row.place)]
    items = fixed_sample(_with_clusters(questions), limit)
    expected = (answer for item in items for answer in item["answers"])
    return generating_task(
        name,
        items,
        found,
        version=PROMPT_VERSION,
        metrics=METRICS,
        until=("\n",),
        max_new_tokens=max_new_tokens or room_for(expected, _FEWEST_NEW_TOKENS),
        doc_to_text=lambda doc: answer_prompt(doc["context"], doc["question"]),
        doc_to_target=lambda doc: doc["answers"][0],
        process_results=lambda doc, results: asdict(answer_scores(results[0], doc["answers"], language)),
    )


def _questions_of_row(row: Row, place: str) -> list[dict[str, Any]]:
    try:
        return [_item(context, question, place) for context, question in _questions(row)]
    except RowError as error:
        raise EvaluationError(
            f"{place}: {error}; a row has context, question and answers, or a context and its qas."
        ) from None


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


def _item(context: str, question: Row, place: str) -> dict[str, Any]:
    asked = text(question, "question")
    own_id = identifier(question, "id") or sha256(f"{context}\0{asked}".encode()).hexdigest()[:16]
    return {
        "id": own_id,
        "context": context,
        "question": asked,
        "answers": _answers(question),
        "place": place,
    }


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


def _with_clusters(questions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Name every question's passage by the lowest id of its questions; refuse an id that stands twice."""
    lowest: dict[str, str] = {}
    places: dict[str, str] = {}
    for one in questions:
        if one["id"] in places:
            raise EvaluationError(
                f"{one['place']}: the id {one['id']!r} stands in {places[one['id']]} already; every question needs "
                "its own."
            )
        places[one["id"]] = one["place"]
        lowest[one["context"]] = min(lowest.get(one["context"], one["id"]), one["id"])
    return [
        {field: value for field, value in one.items() if field != "place"}
        | {"cluster": lowest[one["context"]]}
        for one in questions
    ]


def _scores(answer: str, expected: str, language: str) -> AnswerScores:
    given, wanted = normalised_units(answer, language), normalised_units(expected, language)
    if not given and not wanted:  # nothing but articles and signs, so these are the answer
        given, wanted = fold_for_scores(answer, language).split(), fold_for_scores(expected, language).split()
    shared = (Counter(given) & Counter(wanted)).total()
    both = len(given) + len(wanted)
    return AnswerScores(f1=2 * shared / both if both else 1.0, exact_match=float(given == wanted))
