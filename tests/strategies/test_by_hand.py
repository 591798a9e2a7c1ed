"""Each strategy that came after the paper's, on models small enough to compute by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from lingraft.cli.main import _run
from lingraft.config.schema import StrategyChoice
from lingraft.errors import ConfigError, StrategyError
from lingraft.models.compute import compute_for
from lingraft.models.layers import layer_of
from lingraft.strategies.base import Anchor, Context, TrainingRules, count_masked
from lingraft.strategies.composition import Composition, build
from lingraft.strategies.distill import soft_divergence
from lingraft.strategies.ewc import _SquareSums, diagonal_fisher
from lingraft.strategies.ssu import _column_scores, _highest
from lingraft.study.stages.job import training_identity
from lingraft.train.restraints import Restraints, split_by_rate


def composed(written: Any) -> Composition:
    return build(StrategyChoice.model_validate(written))


def model(layers: int = 4, *, tied: bool = True, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=2,
            tie_word_embeddings=tied,
            initializer_range=0.2,
        )
    )


def context(folder: Path, **changes: Any) -> Context:
    defaults: dict[str, Any] = {
        "base": None, "previous": folder, "previous_data": (), "english": (), "seed": 0, "folder": folder,
        "cache": folder / "cache"
    }  # fmt: skip
    return Context(**(defaults | changes))


def names(of: Any) -> frozenset[str]:
    return frozenset(name for name, _ in of.named_parameters())


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor([1.0, 2.0]))
        self.b = nn.Parameter(torch.tensor([[1.0, 1.0], [1.0, 1.0]]))


def test_a_pull_adds_strength_times_importance_times_the_way() -> None:
    pair = Pair()
    importance = {"a": torch.tensor([1.0, 3.0])}
    rules = TrainingRules(anchors=(Anchor(0.5), Anchor(2.0, importance)))
    restraints = Restraints(pair, rules, restore=False)
    with torch.no_grad():
        pair.a.add_(torch.tensor([1.0, -1.0]))
        pair.b.mul_(3.0)
    pair.a.grad, pair.b.grad = torch.tensor([10.0, 10.0]), torch.zeros(2, 2)
    restraints.change_gradients()
    # a: 0.5 * (1, -1) + 2 * (1, 3) * (1, -1); b: 0.5 * 2
    assert pair.a.grad.tolist() == [10 + 0.5 + 2, 10 - 0.5 - 6]
    assert pair.b.grad.tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_a_frozen_cell_has_no_gradient_and_keeps_its_bits_under_decay() -> None:
    pair = Pair()
    cells = {"b": torch.tensor([[True, False]])}  # the first column
    restraints = Restraints(pair, TrainingRules(frozen_mask=cells), restore=True)
    optimizer = torch.optim.AdamW(pair.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(3):
        pair.a.grad, pair.b.grad = torch.ones(2), torch.ones(2, 2)
        restraints.change_gradients()
        assert pair.b.grad.tolist() == [[0.0, 1.0], [0.0, 1.0]]
        optimizer.step()
        restraints.restore_frozen()
    assert pair.b[:, 0].tolist() == [1.0, 1.0]
    assert bool((pair.b[:, 1] < 1).all())


def test_frozen_cells_count_where_the_parameter_trains() -> None:
    pair: Any = Pair()
    cells = {"a": torch.tensor([True, False]), "b": torch.tensor([[True, False]])}
    assert count_masked(pair, {"a", "b"}, cells) == 1 + 2
    assert count_masked(pair, {"b"}, cells) == 2


def test_rates_split_the_optimizers_groups() -> None:
    pair = Pair()
    optimizer = torch.optim.AdamW([{"params": [pair.a, pair.b], "weight_decay": 0.5}], lr=0.1)
    split_by_rate(optimizer, pair, {"a": 0.25})
    assert [(group["lr"], len(group["params"])) for group in optimizer.param_groups] == [(0.025, 1), (0.1, 1)]
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.5}


def test_lower_layers_learn_slower_by_the_decay() -> None:
    network = model(3)
    factors = composed({"layerwise_rates": {"decay": 0.5}}).parts[0].learning_rates(network)
    by_layer = {layer_of(name): factor for name, factor in factors.items()}
    assert by_layer == {None: 0.125, 0: 0.25, 1: 0.5, 2: 1.0}
    assert "model.norm.weight" not in factors  # at the full rate


def test_half_freezes_two_of_four_and_one_or_two_of_three(tmp_path: Path) -> None:
    network = model(8)
    frozen = names(network) - composed("half").trainable(network, context(tmp_path))
    for layer in range(8):
        own = {name for name in frozen if layer_of(name) == layer}
        assert len([name for name in own if "self_attn" in name]) == 2
        assert len([name for name in own if "mlp" in name]) in (1, 2)
        assert not any("norm" in name for name in own)
    assert frozen != names(network) - composed("half").trainable(network, context(tmp_path, seed=1))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"layers": "1-2"}, {1, 2}),
        ({"layers": "0,3"}, {0, 3}),
        ({"modules": ["q_proj"]}, {0, 1, 2, 3}),
        ({"patterns": [r"model\.norm\.weight"]}, {None}),
        ({"embeddings": True}, {None}),
        ({"head": True}, {None}),
    ],
)
def test_freeze_modules_freezes_what_is_named(tmp_path: Path, options: Any, expected: set[Any]) -> None:
    network = model()
    frozen = names(network) - composed({"freeze_modules": options}).trainable(network, context(tmp_path))
    assert {layer_of(name) for name in frozen} == expected
    if "modules" in options:
        assert all("q_proj" in name for name in frozen)


def test_modules_of_layers_are_both(tmp_path: Path) -> None:
    network = model()
    strategy = composed({"freeze_modules": {"layers": "1", "modules": ["q_proj"], "embeddings": True}})
    frozen = names(network) - strategy.trainable(network, context(tmp_path))
    assert frozen == {"model.layers.1.self_attn.q_proj.weight", "model.embed_tokens.weight"}


def test_a_head_of_its_own_is_frozen_without_the_embeddings(tmp_path: Path) -> None:
    network = model(tied=False)
    frozen = names(network) - composed({"freeze_modules": {"head": True}}).trainable(
        network, context(tmp_path)
    )
    assert frozen == {"lm_head.weight"}


def test_spectrum_trains_the_matrices_that_hold_structure(tmp_path: Path) -> None:
    network = model(4)
    strong = ("model.layers.1.mlp.up_proj.weight", "model.layers.3.mlp.up_proj.weight")
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name in strong:
                parameter.add_(torch.outer(torch.ones(parameter.shape[0]), torch.ones(parameter.shape[1])))
    network.save_pretrained(tmp_path / "one")
    strategy = composed({"spectrum": {"share": 0.5, "estimator": "median"}})
    there = context(tmp_path, previous=tmp_path / "one", states={"spectrum": tmp_path})
    strategy.parts[0].prepare(lambda: network, None, there)  # type: ignore[arg-type]
    trainable = strategy.trainable(network, there)
    assert {name for name in trainable if "up_proj" in name} == set(strong)
    assert "model.embed_tokens.weight" in trainable
    assert not any("norm" in name for name in trainable)
    inside = composed({"spectrum": {"share": 0.5, "outside": False}}).trainable(network, there)
    assert inside == trainable - {"model.embed_tokens.weight"}


def test_a_plan_of_everything_is_plain_and_a_plan_of_another_model_is_refused(tmp_path: Path) -> None:
    network = model()
    plan = tmp_path / "plan.yaml"
    plan.write_text(json.dumps({"unfrozen_parameters": ["^model[.].*$", "^lm_head.weight$"]}))
    strategy = composed({"spectrum": {"plan": str(plan)}})
    there = context(tmp_path, states={"spectrum": tmp_path})
    strategy.parts[0].prepare(lambda: network, None, there)  # type: ignore[arg-type]
    assert strategy.trainable(network, there) == names(network)
    plan.write_text(json.dumps({"unfrozen_parameters": ["^transformer[.]h[.]0.*$"]}))
    strategy.parts[0].prepare(lambda: network, None, there)  # type: ignore[arg-type]
    with pytest.raises(StrategyError, match="fits no parameter of this model"):
        strategy.trainable(network, there)


def test_a_plan_lies_where_lingraft_runs_or_under_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    plan = tmp_path / "here" / "plan.yaml"
    plan.write_text(json.dumps({"unfrozen_parameters": ["^model[.].*$"]}))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "here")
    identities = [training_identity(StrategyChoice.model_validate({"spectrum": {"plan": one}}))
                  for one in (str(plan), "plan.yaml", "~/here/plan.yaml")]  # fmt: skip
    assert identities[0] == identities[1] == identities[2]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"where you run lingraft: {re.escape(str(tmp_path))}"):
        composed({"spectrum": {"plan": "plan.yaml"}})


def test_the_plan_that_snr_writes_trains_what_the_scan_selected(tmp_path: Path) -> None:
    network = model()
    network.save_pretrained(tmp_path / "model")
    plan, record = tmp_path / "plan.yaml", tmp_path / "record.json"
    command = [
        "snr",
        str(tmp_path / "model"),
        "--share",
        "0.25",
        "--plan",
        str(plan),
        "--record",
        str(record),
    ]
    assert _run(command) == 0
    strategy = composed({"spectrum": {"plan": str(plan)}})
    there = context(tmp_path, states={"spectrum": tmp_path})
    strategy.parts[0].prepare(lambda: network, None, there)  # type: ignore[arg-type]
    modules = json.loads(record.read_text())["result"]["modules"]
    selected = {one["name"] for one in modules if one["selected"]}
    assert len(selected) == 7
    assert strategy.trainable(network, there) == selected | {"model.embed_tokens.weight"}


def test_ssu_scores_columns_by_their_norm_and_their_inputs(tmp_path: Path) -> None:
    network = model(2)
    rows = [(1, 2, 3, 4, 5), (6, 7)]
    scores = _column_scores(network, rows, context(tmp_path))
    assert len(scores) == 2 * 7
    first = network.model.layers[0]
    with torch.no_grad():
        inputs = torch.cat(
            [first.input_layernorm(network.model.embed_tokens(torch.tensor(row))) for row in rows]
        )
        expected = first.self_attn.q_proj.weight.norm(dim=0) * inputs.square().mean(dim=0)
    torch.testing.assert_close(
        scores["model.layers.0.self_attn.q_proj.weight"], expected, rtol=1e-4, atol=1e-6
    )
    # Padding counts nowhere: the rows one by one give the same.
    apart = [_column_scores(network, [row], context(tmp_path)) for row in rows]
    for name, own in scores.items():
        together = (5 * apart[0][name] + 2 * apart[1][name]) / 7
        torch.testing.assert_close(own, together, rtol=2e-2, atol=1e-5)  # bfloat16 arithmetic in between


@pytest.mark.parametrize(("precision", "expected"), [("bf16", torch.bfloat16), ("float32", torch.float32)])
def test_calibration_computes_as_the_phase_does(
    tmp_path: Path, precision: Literal["bf16", "float32"], expected: torch.dtype
) -> None:
    from lingraft.data.encoded import EncodedExample

    seen: set[torch.dtype] = set()
    network = model(2)
    for layer in network.model.layers:
        layer.mlp.down_proj.register_forward_hook(lambda _module, _given, out: seen.add(out.dtype))
    given = context(tmp_path, compute=compute_for(precision))
    _column_scores(network, [(1, 2, 3)], given)
    assert seen == {expected}
    seen.clear()
    diagonal_fisher(network, [EncodedExample("a", "en", (1, 2, 3), (False, True, True), 0)], given)
    assert seen == {expected}


def test_the_highest_scores_are_frozen_and_of_equal_ones_the_first() -> None:
    assert _highest(torch.tensor([1.0, 3.0, 2.0, 3.0]), 0.5).tolist() == [False, True, False, True]
    assert _highest(torch.tensor([1.0, 1.0, 1.0]), 0.34).tolist() == [True, False, False]
    assert _highest(torch.tensor([1.0, 2.0]), 0.0).tolist() == [False, False]


def test_ssu_scores_each_experts_columns_by_the_tokens_that_it_was_sent(tmp_path: Path) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    network: Any = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            num_local_experts=3,
            num_experts_per_tok=1,
        )
    )
    network.eval()
    rows = [(1, 2, 3, 4, 5, 9, 12), (6, 7, 30)]
    experts = network.model.layers[0].mlp.experts
    sent: list[Any] = []
    with torch.no_grad(), experts.register_forward_pre_hook(lambda _, given: sent.append(given)):
        for row in rows:
            network(input_ids=torch.tensor([row]))
    tokens, chosen = torch.cat([one[0] for one in sent]), torch.cat([one[1] for one in sent])[:, 0]
    scores = _column_scores(network, rows, context(tmp_path))
    found = scores["model.layers.0.mlp.experts.gate_up_proj"]
    assert found.shape == (3, 1, 16)
    assert scores["model.layers.0.mlp.experts.down_proj"].shape == (3, 1, 24)
    assert scores["model.layers.0.mlp.gate.weight"].shape == (16,)
    for expert in range(3):
        own = tokens[chosen == expert].square().sum(dim=0) / 10
        expected = experts.gate_up_proj[expert].detach().norm(dim=0) * own
        torch.testing.assert_close(found[expert, 0], expected, rtol=3e-2, atol=1e-4)


def test_ssu_scores_the_rows_of_a_matrix_that_is_stored_the_other_way(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    network: Any = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=16))
    network.eval()
    rows = [(1, 2, 3, 4, 5), (6, 7)]
    scores = _column_scores(network, rows, context(tmp_path))
    block = network.transformer.h[0]
    with torch.no_grad():
        inputs = [
            block.ln_1(
                network.transformer.wte(torch.tensor(row)) + network.transformer.wpe(torch.arange(len(row)))
            )
            for row in rows
        ]
        expected = block.attn.c_attn.weight.norm(dim=1) * torch.cat(inputs).square().mean(dim=0)
    found = scores["transformer.h.0.attn.c_attn.weight"]
    torch.testing.assert_close(found, expected[:, None], rtol=2e-2, atol=1e-5)
    save_file(scores, tmp_path / "scores.safetensors")
    (tmp_path / "calibration.json").write_text(json.dumps({"special_tokens": []}))
    cells = composed("ssu").rules(network, context(tmp_path, states={"ssu": tmp_path})).frozen_mask
    frozen = cells["transformer.h.0.attn.c_attn.weight"]
    assert frozen.shape == (16, 1)
    assert sorted(frozen[:, 0].nonzero()[:, 0].tolist()) == sorted(expected.topk(8).indices.tolist())


def test_ssu_scores_a_matrix_that_is_multiplied_by_its_transpose_itself(tmp_path: Path) -> None:
    from transformers import FalconConfig, FalconForCausalLM

    torch.manual_seed(0)
    network: Any = FalconForCausalLM(
        FalconConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    )
    network.eval()
    rows = [(1, 2, 3, 4, 5), (6, 7)]
    scores = _column_scores(network, rows, context(tmp_path, compute=compute_for("float32")))
    block = network.transformer.h[0]
    with torch.no_grad():
        inputs = [
            block.input_layernorm(network.transformer.word_embeddings(torch.tensor(row))) for row in rows
        ]
        expected = block.self_attention.query_key_value.weight.norm(dim=0) * torch.cat(inputs).square().mean(
            dim=0
        )
    found = scores["transformer.h.0.self_attention.query_key_value.weight"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_ssu_scores_experts_that_are_stored_the_other_way_and_freezes_of_each_ones_bias(
    tmp_path: Path,
) -> None:
    from transformers import GptOssConfig, GptOssForCausalLM

    shape: dict[str, Any] = {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_local_experts": 3,
        "num_experts_per_tok": 1,
    }
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    torch.manual_seed(0)
    network: Any = GptOssForCausalLM(
        GptOssConfig(**shape, rope_parameters=rope, pad_token_id=None, eos_token_id=None)
    )
    network.eval()
    rows = [(1, 2, 3, 4, 5, 9, 12), (6, 7, 30)]
    experts = network.model.layers[0].mlp.experts
    with torch.no_grad():
        for bias in (experts.gate_up_proj_bias, experts.down_proj_bias):
            bias.copy_(torch.randn_like(bias))
    sent: list[Any] = []
    with torch.no_grad(), experts.register_forward_pre_hook(lambda _, given: sent.append(given)):
        for row in rows:
            network(input_ids=torch.tensor([row]))
    tokens, chosen = torch.cat([one[0] for one in sent]), torch.cat([one[1] for one in sent])[:, 0]
    scores = _column_scores(network, rows, context(tmp_path, compute=compute_for("float32")))
    found = scores["model.layers.0.mlp.experts.gate_up_proj"]
    assert found.shape == (3, 16, 1)
    for expert in range(3):
        own = tokens[chosen == expert].square().sum(dim=0) / 10
        expected = experts.gate_up_proj[expert].detach().norm(dim=1) * own
        torch.testing.assert_close(found[expert, :, 0], expected, rtol=1e-4, atol=1e-6)
    save_file(scores, tmp_path / "scores.safetensors")
    (tmp_path / "calibration.json").write_text(json.dumps({"special_tokens": []}))
    cells = composed("ssu").rules(network, context(tmp_path, states={"ssu": tmp_path})).frozen_mask
    assert cells["model.layers.0.mlp.experts.gate_up_proj"].sum(dim=1).flatten().tolist() == [8, 8, 8]
    frozen = cells["model.layers.0.mlp.experts.down_proj_bias"]
    for row, bias in zip(frozen, experts.down_proj_bias, strict=True):
        assert sorted(row.nonzero()[:, 0].tolist()) == sorted(bias.abs().topk(8).indices.tolist())


def test_ssu_refuses_a_matrix_that_no_token_meets_as_a_linear_layers(tmp_path: Path) -> None:
    network = model(1)
    layer = network.model.layers[0]
    layer.extra = torch.nn.Parameter(torch.ones(2, 2))
    with pytest.raises(
        StrategyError, match=r"layers\.0\.extra is multiplied with no token.*cannot be scored"
    ):
        _column_scores(network, [(1, 2)], context(tmp_path))


def test_the_fisher_is_the_mean_of_squared_gradients_of_each_example(tmp_path: Path) -> None:
    from lingraft.data.encoded import EncodedExample

    network = model(1)
    rows = [
        EncodedExample("a", "en", (1, 2, 3, 4), (False, False, True, True), 0),
        EncodedExample("b", "en", (5, 6, 7), (False, True, True), 0),
    ]
    found = diagonal_fisher(network, rows, context(tmp_path, compute=compute_for("bf16")))
    expected = {name: torch.zeros_like(own) for name, own in network.named_parameters()}
    for row in rows:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = network(input_ids=torch.tensor([row.input_ids])).logits[0]
        log_chances = logits.float().log_softmax(dim=1)
        places = [place for place in range(1, len(row.input_ids)) if row.supervised[place]]
        likelihood = torch.stack([log_chances[place - 1, row.input_ids[place]] for place in places]).sum()
        gradients = torch.autograd.grad(likelihood, list(network.parameters()))
        for (name, _), gradient in zip(network.named_parameters(), gradients, strict=True):
            expected[name] += gradient.square() / len(rows)
    for name, own in expected.items():
        torch.testing.assert_close(found[name], own, rtol=5e-2, atol=5e-2 * float(own.max()))
    # Not the square of the mean gradient, which a batch would give.
    assert all(parameter.grad is None for parameter in network.parameters())


def test_squares_that_lie_elsewhere_are_added_when_their_gradients_have_arrived(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waited = []

    class Arrival:  # torch's is an accelerator's alone
        def __init__(self, _: torch.device) -> None:
            waited.append(False)
            self.number = len(waited) - 1

        def record(self) -> None: ...

        def synchronize(self) -> None:
            waited[self.number] = True

    monkeypatch.setattr("torch.Event", Arrival)
    parameters = {"a": torch.zeros(2, 3), "b": torch.zeros(4)}
    sums = _SquareSums(parameters, in_host=True)
    generator = torch.Generator().manual_seed(0)
    expected = {name: torch.zeros_like(own) for name, own in parameters.items()}
    for _ in range(3):
        for name, own in parameters.items():
            gradient = torch.randn(own.shape, generator=generator)
            expected[name].addcmul_(gradient, gradient)
            sums.add(name, gradient)
            gradient.zero_()  # given up
    assert waited == [True] * 4 + [False] * 2  # no more than two are on their way
    assert all(torch.equal(own, expected[name]) for name, own in sums.whole().items())
    assert all(waited)


def test_the_fisher_takes_its_rows_to_where_the_model_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lingraft.data.encoded import EncodedExample

    devices: set[str] = set()

    def loss(_model: Any, batch: dict[str, torch.Tensor], **_: Any) -> Any:
        devices.update(own.device.type for own in batch.values())
        raise KeyboardInterrupt

    monkeypatch.setattr("lingraft.models.loss.supervised_loss", loss)
    rows = [EncodedExample("a", "en", (1, 2, 3), (False, True, True), 0)]
    with pytest.raises(KeyboardInterrupt):
        diagonal_fisher(model(1).to("meta"), rows, context(tmp_path))
    assert devices == {"meta"}  # the one other device that every machine has


def test_the_divergence_is_kullback_and_leiblers() -> None:
    generator = np.random.default_rng(0)
    teacher, student = generator.normal(size=(3, 5)), generator.normal(size=(3, 5))
    found = soft_divergence(torch.tensor(teacher), torch.tensor(student), 2.0)
    p, q = (np.exp(one / 2) / np.exp(one / 2).sum(axis=1, keepdims=True) for one in (teacher, student))
    assert float(found) == pytest.approx(4 * float((p * np.log(p / q)).sum()), rel=1e-5)
    same = soft_divergence(torch.tensor(teacher), torch.tensor(teacher), 2.0)
    assert float(same) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 3e-2), ("float32", 1e-5)])
def test_the_divergence_is_of_replayed_rows_alone(
    tmp_path: Path, precision: Literal["bf16", "float32"], tolerance: float
) -> None:
    from lingraft.data.encoded import EncodedExample
    from lingraft.models.loss import collate, token_losses

    start, now = model(1), model(1, seed=1)
    start.save_pretrained(tmp_path / "start")
    rows = [
        EncodedExample("a", "de", (1, 2, 3, 4), (False, False, True, True), 0),
        EncodedExample("b", "en", (5, 6, 7), (False, True, True), 0, replayed=True),
    ]
    penalty = (
        composed({"distill": {"weight": 3.0}})
        .parts[0]
        .output_penalty(context(tmp_path, previous=tmp_path / "start", compute=compute_for(precision)))
    )
    assert penalty is not None
    losses = token_losses(now, collate(rows))
    found = penalty(losses.logits, losses.rows, collate(rows))
    with torch.no_grad():
        ids = torch.tensor([rows[1].input_ids])
        log_p, log_q = (one(input_ids=ids).logits[0, :2].float().log_softmax(1) for one in (start, now))
    expected = 3 * float((log_p.exp() * (log_p - log_q)).sum())
    assert float(found.detach()) == pytest.approx(expected, rel=tolerance)  # the start model is held in it
    assert next(penalty._teacher.parameters()).dtype == compute_for(precision).held  # type: ignore[attr-defined]
    nothing = penalty(losses.logits, losses.rows, collate([rows[0], rows[0]]))
    assert float(nothing.detach()) == 0.0


def test_interpolation_by_parts() -> None:
    strategy = composed({"interpolate": {"alpha": 0.5, "layers": {"0-1": 0.25, "embeddings": 0, "head": 1}}})
    before, after = torch.tensor([0.0]), torch.tensor([4.0])
    for name, value in (
        ("model.embed_tokens.weight", 0.0),
        ("lm_head.weight", 4.0),
        ("model.layers.1.mlp.up_proj.weight", 1.0),
        ("model.layers.2.mlp.up_proj.weight", 2.0),
        ("model.norm.weight", 2.0),
    ):
        assert strategy.combine(name, before, after).tolist() == [value]


def test_reversion_gives_named_parts_back() -> None:
    strategy = composed({"revert": {"layers": "2", "modules": ["up_proj"], "head": True}})
    before, after = torch.tensor([0.0]), torch.tensor([4.0])
    for name, value in (
        ("model.layers.2.mlp.up_proj.weight", 0.0),
        ("model.layers.2.mlp.down_proj.weight", 4.0),
        ("model.layers.1.mlp.up_proj.weight", 4.0),
        ("lm_head.weight", 0.0),
        ("model.norm.weight", 4.0),
    ):
        assert strategy.combine(name, before, after).tolist() == [value]


REFUSED = [
    ({"freeze_modules": {}}, ConfigError, "names nothing to freeze"),
    ({"freeze_modules": {"layers": "3-1"}}, ConfigError, "3-1 ends before it begins"),
    ({"freeze_modules": {"layers": "upper"}}, ConfigError, "write layers as 0-9"),
    ({"freeze_modules": {"patterns": ["("]}}, ConfigError, "is no regular expression"),
    ({"revert": {}}, ConfigError, "names nothing to revert"),
    ({"interpolate": {"alpha": 1.5}}, ConfigError, "1.5"),
    ({"interpolate": {"layers": {"0-3": 2}}}, ConfigError, "must lie between 0 and 1"),
    ({"interpolate": {"layers": {"0-3": 0.5, "3": 1}}}, ConfigError, "layer 3 stands twice"),
    ({"layerwise_rates": {"decay": 0}}, ConfigError, "0"),
    ({"l2_anchor": {"strength": -1}}, ConfigError, "-1"),
    ({"spectrum": {"estimator": "mean"}}, ConfigError, "'mean'"),
    ({"spectrum": {"plan": "/nowhere/plan.yaml"}}, ConfigError, "cannot be read"),
    (["lora", "l2_anchor"], StrategyError, "start at random"),
    (["lora", "ewc"], StrategyError, "start at random"),
    (["lora", "ssu"], StrategyError, "already freezes"),
    (["half", "lora"], StrategyError, "already freezes"),
    (["plain", "interpolate"], StrategyError, "no strategy at all"),
]


@pytest.mark.parametrize(("written", "error", "reason"), REFUSED, ids=[str(one[0]) for one in REFUSED])
def test_what_cannot_be_is_refused_with_the_reason(written: Any, error: type[Exception], reason: str) -> None:
    with pytest.raises(error) as caught:
        composed(written)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ({"freeze_modules": {"layers": "0-9"}}, "there is no layer 4; the model's 4 layers count from 0"),
        ({"freeze_modules": {"modules": ["q_prj"]}}, "no layer has a module 'q_prj'. Did you mean 'q_proj'"),
        ({"freeze_modules": {"patterns": ["q_proj"]}}, "'q_proj' matches no parameter's whole name"),
        ({"l2_anchor": {"layers": "4"}}, "there is no layer 4"),
        ({"interpolate": {"layers": {"2-7": 1}}}, "there is no layer 4"),
        ({"revert": {"layers": "7"}}, "there is no layer 7"),
        ({"revert": {"head": True}}, "has no output head of its own"),
        ({"interpolate": {"layers": {"head": 0.5}}}, "has no output head of its own"),
        ({"interpolate": {"layers": {"head": 0.5, "embeddings": 1}}}, "has no output head of its own"),
    ],
)
def test_a_model_that_lacks_what_is_named_is_refused(written: Any, reason: str) -> None:
    with pytest.raises(StrategyError) as caught:
        composed(written).check(names(model()))
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "written",
    [
        {"revert": {"head": True, "embeddings": True}},
        {"interpolate": {"layers": {"head": 0.5, "embeddings": 0.5}}},
        {"freeze_modules": {"head": True}},
    ],
)
def test_both_ends_may_be_named_of_a_model_that_ties_them(written: Any) -> None:
    composed(written).check(names(model()))
    composed(written).check(names(model(tied=False)))


@pytest.mark.parametrize("kind", ["freeze_modules", "revert"])
def test_embeddings_under_a_name_that_is_not_known_are_refused(kind: str) -> None:
    with pytest.raises(
        StrategyError, match="none of the model's 1 parameters is known for its input embeddings"
    ):
        composed({kind: {"embeddings": True}}).check(["model.layers.0.mlp.up_proj.weight"])


def test_a_single_layer_may_be_written_as_a_number() -> None:
    for kind in ("freeze_modules", "revert", "l2_anchor"):
        composed({kind: {"layers": 3}}).check(names(model()))
    halved = composed({"interpolate": {"alpha": 1, "layers": {3: 0.5}}})
    before, after = torch.tensor([0.0]), torch.tensor([4.0])
    assert halved.combine("model.layers.3.mlp.up_proj.weight", before, after).tolist() == [2.0]


def never() -> Any:
    raise AssertionError("the model was loaded, but its files are enough")


def test_a_plan_counts_by_what_it_holds_and_a_scan_by_its_options(tmp_path: Path) -> None:
    def identity(**options: Any) -> Any:
        return training_identity(StrategyChoice.model_validate({"spectrum": options}))

    plans = [tmp_path / name for name in ("one.yaml", "same.yaml", "other.yaml")]
    for plan, pattern in zip(plans, ("^model.*$", "^model.*$", "^lm_head.*$"), strict=True):
        plan.write_text(json.dumps({"unfrozen_parameters": [pattern]}))
    first, same, other = (identity(plan=str(plan)) for plan in plans)
    assert first == same != other
    assert first == identity(plan=str(plans[0]), share=0.1)  # a plan's other options do not count
    assert identity(share=0.1) != identity(share=0.2)


def test_spectrum_refuses_a_ranking_of_matrices_that_the_model_does_not_have(tmp_path: Path) -> None:
    model(4).save_pretrained(tmp_path / "one")
    strategy = composed({"spectrum": {"share": 0.5}})
    there = context(tmp_path, previous=tmp_path / "one", states={"spectrum": tmp_path})
    strategy.parts[0].prepare(never, None, there)  # type: ignore[arg-type]
    with pytest.raises(StrategyError, match=r"hold model\.layers\.3\..*no parameter of the loaded model"):
        strategy.trainable(model(3), there)


def test_ssu_freezes_rows_of_special_tokens_and_no_positions(tmp_path: Path) -> None:
    from transformers import OPTConfig, OPTForCausalLM

    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "ffn_dim": 24,
        "num_attention_heads": 2,
        "word_embed_proj_dim": 16,
    }
    network = OPTForCausalLM(OPTConfig(vocab_size=40, num_hidden_layers=1, **sizes))
    save_file(_column_scores(network, [(1, 2, 3)], context(tmp_path)), tmp_path / "scores.safetensors")
    (tmp_path / "calibration.json").write_text(json.dumps({"special_tokens": [1, 2]}))
    cells = composed("ssu").rules(network, context(tmp_path, states={"ssu": tmp_path})).frozen_mask
    assert cells["model.decoder.embed_tokens.weight"].nonzero()[:, 0].tolist() == [1, 2]
    assert not any("embed_positions" in name for name in cells)
