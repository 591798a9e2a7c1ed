"""Twelve architectures, each strategy: train, save, reload in plain transformers, evaluate, measure the difference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM

from lingraft.evaluate.answers import AnswerLog, ItemCount
from lingraft.evaluate.in_memory import Batching, InMemoryModel
from lingraft.models.loading import load_model, load_tokenizer
from lingraft.weights.difference import parameter_difference

TWELVE = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3",
    "phi3",
    "gpt2",
    "bloom",
    "gpt_neox",
    "olmo2",
    "mixtral",
)
PROMPTS = [
    "<|im_start|>user\nquestion 1 de<|im_end|>\n<|im_start|>assistant\n",
    "a",
    "tell me a good deal more about the question 7, about the answer 49, and all that lies between",
]
STRATEGIES: dict[str, Any] = {
    "plain": "plain",
    "lora": {"lora": {"rank": 2}},
    "freeze_changed": "freeze_changed",
    "ssu": {"ssu": {"tokens": 300}},
    "english_replay": {"english_replay": {"share": 0.25, "from": "phase_one"}},
    "interpolate": {"interpolate": {"alpha": 0.5}},
}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("architecture", TWELVE)
def test_it_is_trained_saved_reloaded_evaluated_and_compared(
    phases: Any, architecture: str, strategy: str
) -> None:
    done = phases.train(STRATEGIES[strategy], architecture, epochs=1)
    assert all(0 < loss < 30 for _, loss in done.stage.result["losses"])
    ids = torch.tensor([[5, 9, 31, 44, 17, 200, 3]])
    start, ours, plain = (
        AutoModelForCausalLM.from_pretrained(done.parent).eval(),
        load_model(done.folder),
        AutoModelForCausalLM.from_pretrained(done.folder).eval(),
    )
    with torch.no_grad():
        logits = plain(input_ids=ids).logits
        assert torch.equal(ours(input_ids=ids).logits, logits)
        assert not torch.allclose(start(input_ids=ids).logits, logits, atol=1e-5)
    check_evaluation(done.folder)
    found = parameter_difference(done.parent, done.folder)
    assert found.missing == ()
    names = {name for name, _ in start.named_parameters()}
    assert {one.name for one in found.tensors} == names
    moved = {
        name for name, own in start.named_parameters() if not torch.equal(own, plain.get_parameter(name))
    }
    assert {one.name for one in found.tensors if one.l2 > 0} == moved
    assert moved


def check_evaluation(folder: Path) -> None:
    """Answers and likelihoods in shared batches are those of the harness over plain transformers, one row at a time."""
    tokenizer = load_tokenizer(folder)
    theirs = HFLM(
        pretrained=AutoModelForCausalLM.from_pretrained(folder).eval(),
        tokenizer=tokenizer,
        batch_size=1,
        backend="causal",
        add_bos_token=False,
    )
    ours = InMemoryModel(
        load_model(folder), tokenizer, Batching(None, 512), AnswerLog(), ItemCount(100, None), chat=True
    )
    greedy = {"until": [], "do_sample": False, "max_gen_toks": 24}
    answers = requests("generate_until", [(prompt, dict(greedy)) for prompt in PROMPTS])
    assert ours.generate_until(answers) == theirs.generate_until(answers, disable_tqdm=True)
    pairs = requests("loglikelihood", [(prompt, end) for prompt in PROMPTS for end in (" answer 7", " no")])
    expected = [value for value, _ in theirs.loglikelihood(pairs, disable_tqdm=True)]
    assert [value for value, _ in ours.loglikelihood(pairs)] == pytest.approx(expected, abs=1e-3)


def requests(kind: str, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(kind, {}, one, 0, metadata=("task", number, 1)) for number, one in enumerate(arguments)]
