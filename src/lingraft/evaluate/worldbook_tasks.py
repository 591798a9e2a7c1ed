"""worldbook as tasks of lm-evaluation-harness: one per family and language, scored by worldbook's verifiers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from lm_eval.api.task import ConfigurableTask

from lingraft.data.worldbook import (
    VERSION,
    Item,
    Verdict,
    item_from_row,
    item_to_row,
    load_items,
    score_answer,
)

DEFAULT_ITEMS = 100
FEWEST_NEW_TOKENS = 96
SCORE = "headline"


def worldbook_task(
    family: str, language: str, split: str, limit: int | None, max_new_tokens: int | None
) -> ConfigurableTask:
    """Return the harness task of one family in one language: greedy answers, one score per item.

    Args:
        family: A worldbook family.
        language: BCP-47 tag.
        split: A worldbook split; `report` for what is reported.
        limit: Items, from the first on; None: 100.
        max_new_tokens: Longest answer; None: see `longest_answer`.
    """
    import datasets

    items = load_items(family, language, split)
    rows = [
        {"question": item.example.instruction, "item": json.dumps(item_to_row(item), ensure_ascii=False)}
        for item in items[: limit or DEFAULT_ITEMS]
    ]
    return ConfigurableTask(
        config={
            "task": f"worldbook:{family}/{language}",
            "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(rows)},
            "test_split": "test",
            "output_type": "generate_until",
            "doc_to_text": "question",
            "doc_to_target": _reference,
            "process_results": _score,
            "generation_kwargs": {
                "until": [],
                "do_sample": False,
                "max_gen_toks": max_new_tokens or longest_answer(items),
            },
            "metric_list": [{"metric": SCORE, "aggregation": "mean", "higher_is_better": True}],
            "metadata": {"version": VERSION},
        }
    )


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


def _reference(doc: dict[str, Any]) -> str:
    return item_from_row(json.loads(doc["item"])).example.answer


def _score(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    return {SCORE: verdict(doc["item"], results[0]).headline}
