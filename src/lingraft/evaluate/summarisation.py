"""ROUGE in every language, and XL-Sum as a harness task that is scored by it.

The harness's XL-Sum asks for the summary of the word "text", and the usual ROUGE knows the letters a to z alone: it
scores every Thai, Arabic or Russian answer 0. Here the article stands in the prompt, and ROUGE counts `text_units`.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lingraft.data.row_fields import RowError, identifier, objects, text
from lingraft.errors import EvaluationError, did_you_mean
from lingraft.evaluate.task_data import (
    CONVERTED,
    HubSplit,
    fixed_sample,
    generating_task,
    read_rows,
    room_for,
)
from lingraft.text.folding import fold_for_scores
from lingraft.text.language_tags import english_name, is_english, nearest_language, primary_language
from lingraft.text.units import units

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

XLSUM_VERSION = 1
XLSUM_CONFIGS = {
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

_FEWEST_NEW_TOKENS = 96
_ENGLISH_WORD = re.compile("[a-z0-9]+")


@dataclass(frozen=True)
class Rouge:
    """How much of a reference summary an answer has, and little else: F1 of shared units, each in [0, 1].

    Attributes:
        rouge1: Of single units.
        rouge2: Of pairs of neighbours; 0 where a text has one unit only.
        rougeL: Of the longest common subsequence: units in the same order, with gaps.
    """

    rouge1: float
    rouge2: float
    rougeL: float  # noqa: N815 -- the name that papers and the harness print


METRICS = ("rougeL", "rouge1", "rouge2")


def rouge(reference: str, answer: str, language: str) -> Rouge:
    """Return ROUGE of an answer against one reference; 0 throughout where either has no unit.

    English is split as the package rouge_score does (runs of a-z and 0-9 of the text in lower case, no stemming), so
    its scores are that package's. All other languages are split into the `text_units` of the folded text.

    Args:
        reference: The summary to reach.
        answer: What the model wrote.
        language: BCP-47 tag of the reference.

    Source: Lin 2004, ROUGE. Biased upwards where units are single characters (Thai, Japanese, Chinese), which recur by
    chance: do not compare one language's score with another's.
    """
    expected, given = _scored_units(reference, language), _scored_units(answer, language)
    return Rouge(
        rouge1=_overlap(expected, given),
        rouge2=_overlap(_pairs(expected), _pairs(given)),
        rougeL=_f1(_common_subsequence(expected, given), len(expected), len(given)),
    )


def xlsum_task(
    language: str, *, data: Path | None, limit: int | None, max_new_tokens: int | None
) -> ConfigurableTask:
    """Return the harness task of summarising news articles in one language: ROUGE-L per item, ROUGE-1 and -2 beside.

    The prompt is English in every language and names the language of the summary; the article comes first, so that
    an overlong prompt, which the harness cuts at its start, keeps the instruction. Documents have the fields id,
    article, summary and cluster (the article's own id: articles are independent).

    Args:
        language: BCP-47 tag; one of XLSUM_CONFIGS where `data` is None.
        data: A local file of rows with `text` and `summary` (XL-Sum's own fields), or `prompts[0].text` and `label`
            (SEA-HELM's); None: the test split of csebuetnlp/xlsum on the hub.
        limit: Articles, a fixed sample; None: all.
        max_new_tokens: Longest answer; None: what every reference of the sample fits in, at least 96.

    Raises:
        EvaluationError: XL-Sum lacks the language, or a row of the file is broken.
        DataError: The data cannot be read.
    """
    found = read_rows(data, _xlsum_split(language), absent=_no_such_language(language))
    items = fixed_sample([_article(row.value, row.place) for row in found.rows], limit)
    return generating_task(
        f"xlsum:{language}",
        items,
        found,
        version=XLSUM_VERSION,
        metrics=METRICS,
        until=(),
        max_new_tokens=max_new_tokens or room_for((item["summary"] for item in items), _FEWEST_NEW_TOKENS),
        doc_to_text=lambda doc: summary_prompt(doc["article"], language),
        doc_to_target=lambda doc: doc["summary"],
        process_results=lambda doc, results: asdict(rouge(doc["summary"], results[0], language)),
    )


def summary_prompt(article: str, language: str) -> str:
    """Return the prompt of version 1, the same for every language but for its name."""
    return (
        f"Article:\n{article.strip()}\n\nSummarise this article in one or two sentences, in "
        f"{english_name(language)}.\n\nSummary:"
    )


def _xlsum_split(language: str) -> HubSplit | None:
    own = nearest_language(language, tuple(XLSUM_CONFIGS))
    return None if own is None else HubSplit("csebuetnlp/xlsum", XLSUM_CONFIGS[own], "test", CONVERTED)


def _no_such_language(language: str) -> str:
    return (
        f"xlsum: XL-Sum has no articles in {language!r}; give it `data:`, a local file of rows with text and summary, "
        f"or take another language. {did_you_mean(language, XLSUM_CONFIGS)}"
    )


def _article(row: Mapping[str, Any], place: str) -> dict[str, str]:
    """Return one document of a row in XL-Sum's or in SEA-HELM's layout."""
    try:
        if "prompts" in row:
            prompts = objects(row, "prompts", "'text'")
            if len(prompts) != 1:
                raise RowError("prompts", f"holds {len(prompts)} prompts; an item has one")
            article, summary = text(prompts[0], "text", "prompts[0]"), text(row, "label")
        else:
            article, summary = text(row, "text"), text(row, "summary")
        own_id = identifier(row, "id") or place
    except RowError as error:
        raise EvaluationError(f"{place}: {error}; a row of XL-Sum has text and summary.") from None
    return {"id": own_id, "article": article, "summary": summary, "cluster": own_id}


def _scored_units(written: str, language: str) -> list[str]:
    if is_english(primary_language(language)):
        return _ENGLISH_WORD.findall(written.lower())
    return units(fold_for_scores(written, language))


def _pairs(sequence: Sequence[str]) -> list[tuple[str, str]]:
    return list(pairwise(sequence))


def _overlap(expected: Sequence[Hashable], given: Sequence[Hashable]) -> float:
    shared = Counter(expected) & Counter(given)
    return _f1(shared.total(), len(expected), len(given))


def _f1(shared: int, expected: int, given: int) -> float:
    """Return F1 = 2 P R / (P + R) with P = shared / given and R = shared / expected; 0 where nothing is shared."""
    return 2 * shared / (expected + given) if shared else 0.0


def _common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest common subsequence, one row of the usual table held in the bits of a number.

    Source: Hyyrö 2004, Bit-parallel LCS-length computation revisited. Some 300 times as fast as the table
    for summaries of 300 and 600 characters.
    """
    places: defaultdict[str, int] = defaultdict(int)
    for place, unit in enumerate(first):
        places[unit] |= 1 << place
    everything = (1 << len(first)) - 1
    row = everything  # a zero bit: the subsequence grows at this place
    for unit in second:
        matches = row & places.get(unit, 0)
        row = (row + matches | row - matches) & everything
    return len(first) - row.bit_count()
