"""Twelve architectures, each strategy: train, save, reload in plain transformers, evaluate, measure the difference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoConfig, AutoModelForCausalLM

from lingraft.errors import StrategyError
from lingraft.evaluate.answers import AnswerLog, ItemCount
from lingraft.evaluate.in_memory import Batching, InMemoryModel
from lingraft.models.loading import load_model, load_tokenizer
from lingraft.stage import CHECKPOINT
from lingraft.strategies.base import Context
from lingraft.strategies.composition import Composition
from lingraft.strategies.lora import Lora
from lingraft.train.processes import Processes
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


# Every architecture and every strategy by default, with those that store weights in a way of their own (GPT-2 turned,
# Mixtral's experts in stacks) under what reads or merges weights; the other pairs by `make test-all`.
BY_DEFAULT = {
    ("llama", "plain"),
    ("mistral", "english_replay"),
    ("qwen2", "freeze_changed"),
    ("qwen3", "plain"),
    ("gemma2", "ssu"),
    ("gemma3", "interpolate"),
    ("phi3", "plain"),
    ("gpt2", "lora"),
    ("gpt2", "ssu"),
    ("bloom", "freeze_changed"),
    ("gpt_neox", "english_replay"),
    ("olmo2", "plain"),
    ("mixtral", "lora"),
    ("mixtral", "ssu"),
    ("mixtral", "interpolate"),
}


def test_every_architecture_and_every_strategy_is_tested_by_default() -> None:
    assert {architecture for architecture, _ in BY_DEFAULT} == set(TWELVE)
    assert {strategy for _, strategy in BY_DEFAULT} == set(STRATEGIES)


@pytest.mark.parametrize(
    ("architecture", "strategy"),
    [
        pytest.param(one, other, marks=() if (one, other) in BY_DEFAULT else pytest.mark.slow)
        for one in TWELVE
        for other in STRATEGIES
    ],
)
def test_it_is_trained_saved_reloaded_evaluated_and_compared(
    phases: Any, architecture: str, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[torch.Tensor] = []
    finish = Composition.finish

    def watched(self: Composition, model: Any, folder: Path, load: Any = None) -> Any:
        trained.append(logits_of(model))  # as it was trained, adapters and all
        return finish(self, model, folder, load)

    monkeypatch.setattr(Composition, "finish", watched)
    done = phases.train(STRATEGIES[strategy], architecture, epochs=1)
    assert all(0 < loss < 30 for _, loss in done.stage.result["losses"])
    start = AutoModelForCausalLM.from_pretrained(done.parent)
    saved = AutoModelForCausalLM.from_pretrained(done.stage.folder / CHECKPOINT)
    torch.testing.assert_close(logits_of(saved), trained[0], rtol=1e-4, atol=1e-4)
    made = AutoModelForCausalLM.from_pretrained(done.folder)
    if strategy == "interpolate":
        with torch.no_grad():
            for name, own in saved.named_parameters():
                own.copy_((start.get_parameter(name) + own) / 2)
        torch.testing.assert_close(logits_of(made), logits_of(saved), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits_of(start), logits_of(made), atol=1e-4)
    check_evaluation(done.folder)
    found = parameter_difference(done.parent, done.folder)
    assert found.missing == ()
    assert {one.name for one in found.tensors} == {name for name, _ in start.named_parameters()}
    moved = {name for name, own in start.named_parameters() if not torch.equal(own, made.get_parameter(name))}
    assert {one.name for one in found.tensors if one.l2 > 0} == moved
    naive = [
        float((own.detach().double() - made.get_parameter(name).detach().double()).norm())
        for name, own in start.named_parameters()
    ]
    assert found.mpd == pytest.approx(sum(naive) / len(naive))


IDS = (5, 9, 31, 44, 17, 200, 3)
IDS_OF_60 = (5, 9, 31, 44, 17, 59, 3)


def logits_of(model: Any, ids: tuple[int, ...] = IDS) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(input_ids=torch.tensor([ids])).logits
    return logits


def check_evaluation(folder: Path) -> None:
    """Answers and likelihoods in shared batches are those of the harness over plain transformers, one row at a time."""
    tokenizer = load_tokenizer(folder)
    plain: Any = AutoModelForCausalLM.from_pretrained(folder)
    theirs = HFLM(
        pretrained=plain.eval(),
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


TOWER = "vision_tower"


@pytest.mark.parametrize(
    "strategy",
    [
        *("plain", "lora", "ssu", "spectrum"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("freeze_changed", "ewc", "half")),
    ],
)
def test_what_text_does_not_reach_is_frozen_gets_no_adapter_and_stands_in_the_plan(
    phases: Any, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[Any] = []
    monkeypatch.setattr(phases.watcher, "freeze_plan", lambda _, plan: plans.append(plan))
    written = {"ewc": {"ewc": {"tokens": 100}}, **STRATEGIES}.get(strategy, strategy)
    done = phases.train(written, "gemma3", epochs=1)
    silent = {
        name: own.numel()
        for name, own in AutoModelForCausalLM.from_pretrained(done.parent).named_parameters()
        if TOWER in name or "projector" in name
    }
    assert len(silent) > 10
    (row,) = [one for one in plans[0] if one.part == "parts that text does not reach"]
    assert row.trainable_parameters == 0
    assert row.frozen_parameters == sum(silent.values())  # and no adapter's
    found = parameter_difference(done.parent, done.folder)
    assert {one.name for one in found.tensors if one.l2 == 0} >= set(silent)


def test_lora_refuses_modules_that_text_does_not_reach(phases: Any) -> None:
    model = load_model(phases.model("gemma3"))
    context = Context(None, phases.model("gemma3"), (), (), 0, phases.store.folder, phases.store.folder)
    with pytest.raises(StrategyError, match="'fc1' names only modules that text does not reach"):
        Lora(target_modules="fc1").wrap(model, context)
    wrapped: Any = Lora(target_modules=("q_proj", "fc1", "down_proj")[::2]).wrap(model, context)
    adapted = {name for name, _ in wrapped.named_parameters() if "lora_" in name}
    assert len(adapted) == 8  # two modules of two layers
    assert not any(TOWER in name for name in adapted)


def test_lora_leaves_out_routers_that_return_more_than_their_product(tmp_path: Path) -> None:
    shape = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    }
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("phimoe", **shape, **heads))  # type: ignore[no-untyped-call]
    context = Context(None, tmp_path, (), (), 0, tmp_path, tmp_path)
    with pytest.raises(StrategyError, match=r"'router' names only modules .* or routers"):
        Lora(target_modules="router").wrap(model, context)
    before = logits_of(model, IDS_OF_60)
    wrapped: Any = Lora(rank=2).wrap(model, context)
    assert not any("router.lora" in name for name, _ in wrapped.named_parameters())
    torch.testing.assert_close(logits_of(wrapped, IDS_OF_60), before)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["plain", "lora"])
@pytest.mark.parametrize("architecture", ["gemma3", "mixtral"])
def test_two_processes_train_a_model_of_which_text_reaches_a_part(
    phases: Any, architecture: str, strategy: str
) -> None:
    one = phases.train(STRATEGIES[strategy], architecture, epochs=1)
    phases.processes = Processes(2)
    job = phases.job(STRATEGIES[strategy], architecture, epochs=1)
    parent = replace(job.parent, identity={"weights": "the same, for two processes"})
    both = phases.make(replace(job, parent=parent))
    assert both.timing["processes"] == 2
    assert both.result["trainable_parameters"] == one.stage.result["trainable_parameters"]
    losses = [[loss for _, loss in stage.result["losses"]] for stage in (one.stage, both)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
