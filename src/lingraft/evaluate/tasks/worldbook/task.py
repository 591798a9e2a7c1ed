"""worldbook as a task: one family in one language, scored by worldbook's verifiers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache

from lingraft.data.worldbook import (
    VERSION,
    Item,
    Verdict,
    item_from_row,
    item_to_row,
    load_items,
    score_answer,
)
from lingraft.evaluate.own_task import FEWEST_NEW_TOKENS, Documents, Options

DEFAULT_ITEMS = 100


def documents(options: Options) -> Documents:
    """Return the items of a family in a language and split, from the first on; 100 where no limit is named."""
    items = load_items(options.family, options.language, options.split)
    rows = [
        {"question": item.example.instruction, "item": json.dumps(item_to_row(item), ensure_ascii=False)}
        for item in items[: options.limit or DEFAULT_ITEMS]
    ]
    references = tuple(item.example.answer for item in items)  # of all, whatever the limit
    return Documents(rows, longest_answer(items), version=VERSION, references=references)


def longest_answer(items: Sequence[Item]) -> int:
    """Return how many tokens every reference answer fits in: its bytes, which no byte-level tokenizer exceeds.

    At least 96. Half of the Thai answers have more than 96 tokens for a model that hardly saw Thai; at that limit it
    could not have been right. The end token is counted.
    """
    return max(FEWEST_NEW_TOKENS, *(len(item.example.answer.encode()) + 1 for item in items))


@lru_cache(maxsize=8192)
def verdict(item_row: str, response: str) -> Verdict:
    """Return the verdict on a response to an item, given as the JSON row of the task's documents."""
    return score_answer(item_from_row(json.loads(item_row)), response)


def cluster_of(item_row: str) -> str:
    """Return what parallel items share."""
    return item_from_row(json.loads(item_row)).example.group


def target(doc: Mapping[str, str]) -> str:
    """Return the right answer."""
    return item_from_row(json.loads(doc["item"])).example.answer


def scores(doc: Mapping[str, str], results: Sequence[str]) -> dict[str, float]:
    """Return the score that joins form and content."""
    return {"headline": verdict(doc["item"], results[0]).headline}
