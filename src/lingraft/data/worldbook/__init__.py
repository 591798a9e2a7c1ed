"""worldbook: the embedded corpus. Verifiable instructions, parallel in several languages, with nothing to download.

Flow: `lexicon` (words from CLDR and num2words, with corrections.yaml) and `templates` (our sentences, YAML per
language) feed `tasks`, `writing` knows scripts and punctuation;
`groups` deals contents, phrasings and constraints (`forms`) out to splits; `items` puts a group into a language;
`sources` names parts of the corpus in study files; `scoring` judges answers with `constraints`.
"""

from __future__ import annotations

from lingraft.data.worldbook.constraints import Constraint
from lingraft.data.worldbook.groups import SPLITS
from lingraft.data.worldbook.items import FAMILIES, VERSION, Item, item_from_row, item_to_row, load_items
from lingraft.data.worldbook.scoring import Verdict, score_answer
from lingraft.data.worldbook.sources import load_examples, parse_source
from lingraft.data.worldbook.templates import LANGUAGES

__all__ = [
    "FAMILIES",
    "LANGUAGES",
    "SPLITS",
    "VERSION",
    "Constraint",
    "Item",
    "Verdict",
    "item_from_row",
    "item_to_row",
    "load_examples",
    "load_items",
    "parse_source",
    "score_answer",
]
