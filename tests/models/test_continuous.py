"""Continuous batching on a processor: greedy tokens are those of `generate`, and what it cannot do is left to that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from lingraft.data.chat_format import chat_format
from lingraft.data.example import Message
from lingraft.errors import ModelError
from lingraft.models.continuous import ContinuousGenerator
from lingraft.models.engine import Engine, engine_for
from lingraft.models.generation import Ending, Sampling, TokenPrompt, TransformersGenerator, answer_ending
from lingraft.models.loading import load_model, load_tokenizer

QUESTIONS = ["Say a.", "What is the weekday after Monday, and what comes before it?", "Why?", "Ja?", "Two"]


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return load_tokenizer(tiny_model)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    loaded: Any = load_model(tiny_model)
    with torch.no_grad():  # so that answers differ and some of them end
        torch.manual_seed(1)
        for parameter in loaded.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return loaded


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> list[TokenPrompt]:
    format_ = chat_format(tokenizer)
    return [
        TokenPrompt(tuple(format_.prompt_ids([Message("user", text)])), seed, 4 + 9 * seed)
        for seed, text in enumerate([*QUESTIONS, QUESTIONS[0]])
    ]


@pytest.fixture
def continuous(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> ContinuousGenerator:
    made = Engine("continuous", 8).generator(model, tokenizer)
    assert isinstance(made, ContinuousGenerator)
    return made


def test_greedy_rows_are_those_of_generate_with_limits_and_stop_texts(
    continuous: ContinuousGenerator,
    model: Any,
    tokenizer: Any,
    tiny_model: Path,
    prompts: list[TokenPrompt],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = TransformersGenerator(model, tokenizer)
    ending = answer_ending(tiny_model, tokenizer)
    said = own.continue_tokens(prompts, Sampling(), ending)
    ending = Ending(ending.tokens | {said[3][6]})  # so that some end
    plain = own.continue_batch(prompts, Sampling(), ending)
    stop = next(one.text[3:5] for one in plain if len(one.text) > 8)
    wanted = [plain, own.continue_batch(prompts, Sampling(), Ending(ending.tokens, (stop,)))]
    assert wanted[0] != wanted[1]
    assert {one.ended for one in plain} == {True, False}
    attention = model.config._attn_implementation
    monkeypatch.setattr(TransformersGenerator, "continue_batch", None)  # nothing is left to it
    for ended, expected in zip((ending, Ending(ending.tokens, (stop,))), wanted, strict=True):
        found = continuous.continue_batch(prompts, Sampling(), ended)
        assert [(one.text, one.ended) for one in found] == [(one.text, one.ended) for one in expected]
    assert model.config._attn_implementation == attention
    assert not hasattr(model, "_cached_continuous_batching_manager")


def test_rows_that_are_drawn_and_settings_of_the_model_are_left_to_generate(
    continuous: ContinuousGenerator,
    model: Any,
    tokenizer: Any,
    prompts: list[TokenPrompt],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ending, drawn = Ending(frozenset({2})), Sampling(1.0)
    wanted = TransformersGenerator(model, tokenizer).continue_batch(prompts, drawn, ending)
    assert continuous.continue_batch(prompts, drawn, ending) == wanted
    penalised = GenerationConfig(repetition_penalty=5.0)  # type: ignore[no-untyped-call]
    monkeypatch.setattr(model, "generation_config", penalised)
    free = continuous.continue_batch(prompts, Sampling(), ending)
    engine = Engine("continuous", 8, own_defaults=True, tokens_per_batch=100)
    bound = engine.generator(model, tokenizer).continue_batch(prompts, Sampling(), ending)
    own = TransformersGenerator(model, tokenizer, own_defaults=True)
    assert bound == own.continue_batch(prompts, Sampling(), ending) != free


def test_a_failure_of_the_library_is_one_line(
    continuous: ContinuousGenerator, prompts: list[TokenPrompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("no kernel image\nis available")

    monkeypatch.setattr(
        "transformers.generation.continuous_batching.continuous_api.ContinuousBatchProcessor._generation_step",
        fails,
    )
    with pytest.raises(
        ModelError, match=r"continuous batching failed \(.*no kernel image.*--backend generate"
    ):
        continuous.continue_batch(prompts, Sampling(), Ending(frozenset({2})))


def test_it_is_the_engine_of_cards_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    processor, card, none = torch.device("cpu"), torch.device("cuda", 1), torch.device("meta")
    assert {engine_for(one, "transformers") for one in (processor, none)} == {"transformers"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert engine_for(processor, "transformers") == "transformers"
    assert engine_for(card, "transformers") == engine_for(none, "transformers") == "continuous"
    assert engine_for(card, "generate") == "transformers"
