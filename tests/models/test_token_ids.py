"""Tokens that only the tokenizer knows are refused before anything runs; a pad token among them harms nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lingraft.config.schema import Study, Training
from lingraft.data.chat import encode_examples
from lingraft.data.example import Example, Message
from lingraft.data.special_tokens import special_tokens
from lingraft.errors import ModelError
from lingraft.evaluate.answers import AnswerLog, ItemCount
from lingraft.evaluate.held_out import held_out_losses
from lingraft.evaluate.in_memory import Batching, InMemoryModel
from lingraft.models.generation import Ending, Sampling, TokenPrompt, TransformersGenerator, generate
from lingraft.models.loading import check_model, load_model, load_tokenizer
from lingraft.representation.states import EncodedPrompts, layer_states
from lingraft.strategies.base import Context
from lingraft.strategies.ewc import Ewc
from lingraft.strategies.ssu import Ssu
from lingraft.study.run import run_study
from lingraft.train.phase import train_phase

TOLD = r"'<new>' has the id 600, but the model's embedding has 600 rows.*resize_token_embeddings"
TRAINING = Training(learning_rate=1e-3, epochs=1, tokens_per_batch=128, precision="float32")


@pytest.fixture
def wider(tiny_model: Path) -> Any:
    """The tiny model's tokenizer with a token more than the model knows."""
    tokenizer: Any = load_tokenizer(tiny_model)
    tokenizer.add_tokens(["<new>"])
    assert len(tokenizer) == 601
    return tokenizer


def rows(text: str = "b") -> tuple[Example, ...]:
    return tuple(
        Example(
            str(i), (Message("user", f"question {i}"), Message("assistant", f"{i} {text}")), "en", "", "x"
        )
        for i in range(6)
    )


def engine(model: Any, tokenizer: Any, **options: Any) -> InMemoryModel:
    return InMemoryModel(
        model, tokenizer, Batching(None, 400), AnswerLog(), ItemCount(9, None), chat=True, **options
    )


def asked(kind: str, *arguments: Any) -> list[Instance]:
    return [Instance(kind, {}, one, 0, metadata=("quiz", i, 1)) for i, one in enumerate(arguments)]


def test_a_chat_template_that_writes_such_a_token_is_refused_before_anything_is_loaded(
    tiny_model: Path, wider: Any, tmp_path: Path
) -> None:
    load_model(tiny_model).save_pretrained(tmp_path)
    wider.chat_template = wider.chat_template.replace("<|im_end|>", "<new>")
    wider.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="mine: its chat template: the token " + TOLD):
        check_model("mine", tmp_path)
    check_model("mine", tiny_model)


def test_training_rows_that_hold_it_are_refused_before_a_step(
    tiny_model: Path, wider: Any, tmp_path: Path
) -> None:
    model = load_model(tiny_model)
    names = [name for name, _ in model.named_parameters()]
    encoded = encode_examples(rows("<new>"), wider, 64, folder=tmp_path / "encoded").examples
    for one in (encoded, list(encoded)):
        with pytest.raises(ModelError, match="the training data: the token " + TOLD):
            train_phase(model, wider, one, TRAINING, trainable=names, folder=tmp_path, seed=0)


def test_a_study_refuses_such_rows_of_every_set_before_anything_is_evaluated(
    tiny_model: Path, wider: Any, tmp_path: Path
) -> None:
    load_model(tiny_model).save_pretrained(tmp_path / "model")
    wider.save_pretrained(tmp_path / "model")
    for name, end in (("en", "1"), ("es", "<new>"), ("de", "a <new> one")):
        lines = [
            {"instruction": f"q {i}", "output": end if i == 7 else "1", "language": name} for i in range(9)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    sets = {name: {"source": str(tmp_path / f"{name}.jsonl")} for name in ("en", "es", "de")}
    phases = [
        {"name": "one", "data": {"en": sets["en"]}},
        {"name": "two", "data": {name: sets[name] for name in ("es", "de")}},
    ]
    study = Study.model_validate(
        {"name": "s", "model": str(tmp_path / "model"), "phases": phases, "measures": [], "held_out": 1}
    )
    told = rf"phase 'two', data 'es', row 8: the token {TOLD}.*\n.*phase 'two', data 'de', row 8: the token {TOLD}"
    with pytest.raises(ModelError, match=told):
        run_study(study, runs=tmp_path / "runs")
    assert not list((tmp_path / "runs" / "s").iterdir())


def test_padding_with_such_a_token_changes_nothing(tiny_model: Path, wider: Any, tmp_path: Path) -> None:
    results = []
    plain = load_tokenizer(tiny_model)
    wider.pad_token = "<new>"
    for tokenizer in (plain, wider):
        model = load_model(tiny_model)
        names = [name for name, _ in model.named_parameters()]
        encoded = encode_examples(rows(), tokenizer, 64).examples
        train_phase(model, tokenizer, encoded, TRAINING, trainable=names, folder=tmp_path / "w", seed=0)
        lm = engine(model, tokenizer)
        settings = {"until": [], "do_sample": False, "max_gen_toks": 6}
        requests = asked("generate_until", ("one question", settings), ("two", dict(settings)))
        beams = [{**settings, "num_beams": 2}]  # which go the harness's own way
        requests += asked("generate_until", ("three", beams[0]), ("four is longer", beams[0]))
        answers = lm.generate_until(requests)
        scores = lm.loglikelihood(asked("loglikelihood", ("one", " two"), ("one", " two three")))
        losses = held_out_losses(model, tokenizer, rows())
        results.append((model.state_dict(), answers, scores, [one.bits for one in losses]))
    first, second = results
    assert all(torch.equal(own, second[0][name]) for name, own in first[0].items())
    assert first[1:] == second[1:]
    assert wider.pad_token == "<new>"  # it stays what it was


def test_generation_fills_rows_with_an_id_that_the_model_knows(tiny_model: Path, wider: Any) -> None:
    generator = TransformersGenerator(load_model(tiny_model), wider)
    prompts = [TokenPrompt((5, 9, 31), 0, 4), TokenPrompt((7,), 1, 8)]
    for one in generate(generator, prompts, Sampling(), Ending(frozenset({600}), ())):
        assert {answer.tokens for answer in one.values()} == {4, 8}
    with pytest.raises(ModelError, match="a prompt: the token " + TOLD):
        next(generate(generator, [TokenPrompt((5, 600), 0, 4)], Sampling(), Ending(frozenset({2}), ())))


def test_prompts_and_held_out_rows_that_hold_it_are_refused_before_any_is_answered(
    tiny_model: Path, wider: Any
) -> None:
    model = load_model(tiny_model)
    settings = {"until": [], "do_sample": False, "max_gen_toks": 6}
    lm = engine(model, wider)
    with pytest.raises(ModelError, match="a prompt of the task quiz: the token " + TOLD):
        lm.generate_until(asked("generate_until", ("good", settings), ("bad <new>", dict(settings))))
    with pytest.raises(ModelError, match="a prompt of the task quiz: the token " + TOLD):
        lm.loglikelihood(asked("loglikelihood", ("good", " one"), ("good", " <new>")))
    assert not lm.ended
    with pytest.raises(ModelError, match="the held-out row 0: the token " + TOLD):
        held_out_losses(model, wider, rows("<new>"))
    with pytest.raises(ModelError, match=r"the prompts: .* 600"):
        layer_states(model, EncodedPrompts(((1, 600),), ("en",), 0))


@pytest.mark.parametrize("strategy", [Ssu(tokens=50), Ewc(tokens=50)])
def test_calibration_rows_that_hold_it_are_refused(
    tiny_model: Path, wider: Any, tmp_path: Path, strategy: Any
) -> None:
    context = Context(None, tiny_model, rows("<new>"), (), 0, tmp_path, tmp_path)
    with pytest.raises(ModelError, match=r"calibration rows \(phase_one\): the token " + TOLD):
        strategy.prepare(lambda: load_model(tiny_model), wider, context)


def test_ssu_shields_the_tokens_that_only_the_tokenizers_file_marks_as_special(
    tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "llama3"
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    written = json.loads((folder / "tokenizer.json").read_text())
    header = next(one["id"] for one in written["added_tokens"] if one["content"] == "<|endoftext|>")
    assert all(one["special"] for one in written["added_tokens"])
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    assert header not in tokenizer.all_special_ids
    assert special_tokens(tokenizer) == {0, 1, 2}
    context = Context(None, tiny_model, rows(), (), 0, tmp_path, tmp_path)
    record = Ssu(tokens=50).prepare(lambda: load_model(tiny_model), tokenizer, context)
    assert record["special_tokens"] == [0, 1, 2]
    cells = Ssu().frozen_mask(load_model(tiny_model), replace(context, states={"ssu": tmp_path}))
    assert cells["model.embed_tokens.weight"][:, 0].nonzero()[:, 0].tolist() == [0, 1, 2]
