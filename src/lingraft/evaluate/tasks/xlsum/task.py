"""XL-Sum: summaries of news articles of csebuetnlp/xlsum, scored by ROUGE in every language.

The harness's XL-Sum asks for the summary of the word "text". Here the article stands in the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from lingraft.config.schema import DataSource
from lingraft.data.row_fields import RowError, identifier, objects, text
from lingraft.errors import EvaluationError, did_you_mean
from lingraft.evaluate.own_task import Documents, Options
from lingraft.evaluate.task_data import CONVERTED, fixed_sample, read_rows, room_for
from lingraft.evaluate.tasks.xlsum.rouge import rouge
from lingraft.text.language_tags import english_name, nearest_language

Document = dict[str, str]

_FEWEST_NEW_TOKENS = 96
CONFIGS = {
    "am": "amharic",
    "ar": "arabic",
    "az": "azerbaijani",
    "bn": "bengali",
    "cy": "welsh",
    "en": "english",
    "es": "spanish",
    "fa": "persian",
    "fr": "french",
    "gd": "scottish_gaelic",
    "gu": "gujarati",
    "ha": "hausa",
    "hi": "hindi",
    "id": "indonesian",
    "ig": "igbo",
    "ja": "japanese",
    "ko": "korean",
    "ky": "kyrgyz",
    "mr": "marathi",
    "my": "burmese",
    "ne": "nepali",
    "om": "oromo",
    "pa": "punjabi",
    "pcm": "pidgin",
    "ps": "pashto",
    "pt": "portuguese",
    "rn": "kirundi",
    "ru": "russian",
    "si": "sinhala",
    "so": "somali",
    "sr": "serbian_cyrillic",
    "sr-Latn": "serbian_latin",
    "sw": "swahili",
    "ta": "tamil",
    "te": "telugu",
    "th": "thai",
    "ti": "tigrinya",
    "tr": "turkish",
    "uk": "ukrainian",
    "ur": "urdu",
    "uz": "uzbek",
    "vi": "vietnamese",
    "yo": "yoruba",
    "zh": "chinese_simplified",
    "zh-Hans": "chinese_simplified",
    "zh-Hant": "chinese_traditional",
    "zh-HK": "chinese_traditional",
    "zh-TW": "chinese_traditional",
}


def documents(options: Options) -> Documents:
    """Return articles as documents with the fields id, article, summary and cluster (the article's own id).

    `limit` takes a fixed sample. An answer may be as long as every reference of it, and at least 96 tokens.

    Args:
        options: `data` may hold rows with `text` and `summary` (XL-Sum's own fields), or `prompts[0].text` and `label`
            (SEA-HELM's).

    Raises:
        EvaluationError: XL-Sum does not have the language, or a row of the file is broken.
        DataError: The data cannot be read.
    """
    own = nearest_language(options.language, tuple(CONFIGS))
    hub = (
        None
        if own is None
        else DataSource(source="csebuetnlp/xlsum", config=CONFIGS[own], split="test", revision=CONVERTED)
    )
    absent = (
        f"xlsum: XL-Sum has no articles in {options.language!r}; give it `data:`, a local file of rows with text and "
        f"summary, or take another language. {did_you_mean(options.language, CONFIGS)}"
    )
    found = read_rows(options.data, hub, absent=absent)
    articles: list[Document] = []
    for one in found.rows:
        row, place = one.value, one.place
        try:
            if "prompts" in row:  # SEA-HELM's layout
                prompts = objects(row, "prompts", "'text'")
                if len(prompts) != 1:
                    raise RowError("prompts", f"holds {len(prompts)} prompts; an item has one")
                article, summary = text(prompts[0], "text", "prompts[0]"), text(row, "label")
            else:
                article, summary = text(row, "text"), text(row, "summary")
            own_id = identifier(row, "id") or place
        except RowError as error:
            raise EvaluationError(f"{place}: {error}; a row of XL-Sum has text and summary.") from None
        articles.append({"id": own_id, "article": article, "summary": summary, "cluster": own_id})
    items = fixed_sample(articles, options.limit)
    longest = room_for((item["summary"] for item in items), _FEWEST_NEW_TOKENS)
    return Documents(items, longest, found.source, found.revision)


def prompt(doc: Document, language: str) -> str:
    """Return the prompt of version 1, English in every language.

    The article comes first: an overlong prompt, which is cut at its start, keeps the instruction.
    """
    return (
        f"Article:\n{doc['article'].strip()}\n\nSummarise this article in one or two sentences, in "
        f"{english_name(language)}.\n\nSummary:"
    )


def scores(doc: Document, results: Sequence[str], language: str) -> dict[str, float]:
    """Return ROUGE of an answer."""
    return asdict(rouge(doc["summary"], results[0], language))
