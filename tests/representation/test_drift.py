"""Drift against naive computations with all states in memory, by hand, and by its invariances."""

from __future__ import annotations

import gzip
import json
import shutil
import weakref
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lingraft.config.schema import DataSource
from lingraft.data.example import Example, Message
from lingraft.data.sources import LoadedData, load_data
from lingraft.errors import DataError, ModelError
from lingraft.models.loading import load_model
from lingraft.representation.covariance import (
    Moments,
    RunningMoments,
    covariance_change,
    trace_change,
    variance_change,
)
from lingraft.representation.drift import drift_between, drift_of_models
from lingraft.representation.prompts import Prompt, read_prompts
from lingraft.representation.similarity import linear_cka, mean_cosine
from lingraft.representation.states import (
    EncodedPrompts,
    LayerStates,
    Positions,
    encode_prompts,
    layer_states,
)

TEXTS = ["one", "a longer prompt about kings and bread", "two words", "Montag und März", "yes or no or maybe"]


def states_of(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return (
        torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * 3 + 1000
    )  # a mean that cancels badly


def moved(model: Any, seed: int = 1) -> Any:
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


@pytest.fixture(scope="module")
def prompts(tiny_model: Path) -> EncodedPrompts:
    said = [
        Prompt((Message("user", text),), tag)
        for text, tag in zip(TEXTS, ("en", "en", "en", "de", "en"), strict=True)
    ]
    return encode_prompts(said, AutoTokenizer.from_pretrained(tiny_model))


def naive_states(model: Any, prompts: EncodedPrompts, positions: Positions) -> list[torch.Tensor]:
    """All states of each layer, prompt by prompt; the last layer's through a copy of what enters the final norm."""
    found: list[list[torch.Tensor]] = [[] for _ in model.model.layers]
    entering: list[torch.Tensor] = []
    handle = model.model.norm.register_forward_pre_hook(lambda _m, inputs: entering.append(inputs[0]))
    with torch.no_grad():
        for ids in prompts.ids:
            entering.clear()
            hidden = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
            for layer, states in enumerate([*hidden[1:-1], entering[0]]):
                found[layer].append(states[0] if positions == "prompt" else states[0, -1:])
    handle.remove()
    return [torch.cat(own).double() for own in found]


@pytest.mark.parametrize("positions", ["prompt", "last"])
def test_drift_equals_a_naive_computation(
    tiny_model: Path, prompts: EncodedPrompts, positions: Positions
) -> None:
    before = load_model(tiny_model)
    after = moved(AutoModelForCausalLM.from_pretrained(tiny_model)).eval()
    found = drift_between("after", *(layer_states(m, prompts, positions=positions) for m in (before, after)))
    naive = [naive_states(model, prompts, positions) for model in (before, after)]
    for layer, (x, y) in enumerate(zip(*naive, strict=True)):
        one = found.layers[layer]
        c1, c2 = np.cov(x.numpy().T), np.cov(y.numpy().T)
        assert one.mean_cosine == pytest.approx(
            torch.cosine_similarity(x.mean(0), y.mean(0), dim=0).item(), abs=1e-5
        )
        assert one.covariance_change == pytest.approx(np.linalg.norm(c2 - c1) / np.linalg.norm(c1), rel=1e-5)
        assert one.trace_change == pytest.approx(
            (np.trace(c2) - np.trace(c1)) / np.trace(c1), rel=1e-4, abs=1e-6
        )
        v1, v2 = x.var(0), y.var(0)
        assert one.variance_change == pytest.approx(float((v2 - v1).abs().sum() / v1.sum()), rel=1e-5)
        xc, yc = x - x.mean(0), y - y.mean(0)
        hsic = [(a @ a.T * (b @ b.T)).sum() for a, b in ((xc, yc), (xc, xc), (yc, yc))]
        assert one.cka == pytest.approx(float(hsic[0] / (hsic[1] * hsic[2]).sqrt()), abs=1e-5)


def test_a_model_against_itself_did_not_move(tiny_model: Path, prompts: EncodedPrompts) -> None:
    model = load_model(tiny_model)
    found = drift_between("itself", layer_states(model, prompts), layer_states(model, prompts))
    assert list(found.by_language) == ["de", "en"]
    for one in (*found.layers, *found.by_language["de"]):
        assert one.cka == pytest.approx(1.0, abs=1e-12)
        assert one.mean_cosine == pytest.approx(1.0, abs=1e-12)
        assert (one.covariance_change, one.trace_change, one.variance_change) == pytest.approx(
            (0, 0, 0), abs=1e-12
        )
    assert found.most_changed == ()


def test_each_languages_drift_is_that_of_its_prompts_alone(tiny_model: Path, prompts: EncodedPrompts) -> None:
    models = load_model(tiny_model), moved(AutoModelForCausalLM.from_pretrained(tiny_model)).eval()
    together = drift_between("after", *(layer_states(model, prompts) for model in models))
    english = [i for i, tag in enumerate(prompts.languages) if tag == "en"]
    alone = EncodedPrompts(tuple(prompts.ids[i] for i in english), ("en",) * len(english), 0)
    found = drift_between("after", *(layer_states(model, alone) for model in models))
    assert found.by_language == {}
    for one, other in zip(together.by_language["en"], found.layers, strict=True):
        figures, expected = asdict(one), asdict(other)
        assert figures == pytest.approx(expected, rel=1e-4)


def test_cka_is_of_every_token_or_of_evenly_spaced_ones_where_memory_is_short(
    tiny_model: Path, prompts: EncodedPrompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(tiny_model)
    total = sum(map(len, prompts.ids))
    assert drift_between("x", layer_states(model, prompts), layer_states(model, prompts)).cka_tokens == total
    monkeypatch.setattr("lingraft.representation.states.KEPT_BYTES", 4 * 2 * 32 * 20)
    monkeypatch.setattr("lingraft.representation.states.FEWEST_KEPT", 7)
    states = layer_states(model, prompts)
    found = drift_between("x", states, states)
    assert found.cka_tokens == 20 < total
    monkeypatch.setattr("lingraft.representation.states.KEPT_BYTES", 0)
    assert len(layer_states(model, prompts)[0].kept["en"]) < 7  # of 7 in all


def test_models_are_checked_before_any_is_loaded(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = [Prompt((Message("user", "a"),), "en")]
    with pytest.raises(ModelError, match="1 model has nothing to drift from"):
        drift_of_models([str(tiny_model)], said)
    monkeypatch.setattr("lingraft.representation.states.load_model", pytest.fail)
    for change, says in (
        ({"model_type": "mistral"}, "two architectures"),
        ({"num_hidden_layers": 3}, "has 3 decoder layers, the first model has 2"),
        ({"hidden_size": 48}, "its states are 48 wide, the first model's 32"),
    ):
        other = tmp_path / next(iter(change))
        shutil.copytree(tiny_model, other)
        config: Any = AutoConfig.from_pretrained(other)
        kind = change.get("model_type", config.model_type)
        options = {**config.to_dict(), **change, "model_type": kind}
        AutoModelForCausalLM.from_config(AutoConfig.for_model(**options)).save_pretrained(other)  # type: ignore[no-untyped-call]
        with pytest.raises(ModelError, match=says):
            drift_of_models([str(tiny_model), str(tiny_model), str(other)], said)


def test_a_gpu_holds_the_moments_of_one_block_at_a_time(
    tiny_model: Path, prompts: EncodedPrompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0
    of, cpu = Moments.of, Moments.cpu

    def computed(states: torch.Tensor) -> Moments:  # where the states are
        nonlocal most
        found = of(states)
        alive.append(weakref.ref(found.scatter))
        most = max(most, sum(one() is not None for one in alive))
        return found

    def fetched(moments: Moments) -> Moments:  # a copy, as from another device
        return Moments(moments.n, moments.mean.clone(), moments.scatter.clone())

    monkeypatch.setattr(Moments, "of", computed)
    monkeypatch.setattr(Moments, "cpu", fetched)
    found = layer_states(load_model(tiny_model), prompts)
    assert len(alive) >= len(found) * len(found[0].moments) == 4
    assert most == 1
    monkeypatch.setattr(Moments, "of", of)
    monkeypatch.setattr(Moments, "cpu", cpu)
    expected = layer_states(load_model(tiny_model), prompts)
    assert torch.equal(found[0].whole.scatter, expected[0].whole.scatter)


@pytest.mark.parametrize("sizes", [[1, 2, 300, 5], [64], [0, 7], [0, 0, 4]])
def test_moments_in_parts_are_those_of_the_whole(sizes: list[int]) -> None:
    whole = states_of(sum(sizes), 6)
    parts = [Moments.of(part) for part in torch.split(whole, sizes)]
    running = RunningMoments()
    for block in torch.split(whole, sizes):
        running.add(block)
    together = reduce(add, parts)
    assert running.moments.n == together.n
    assert torch.equal(running.moments.mean, together.mean)
    assert torch.equal(running.moments.scatter, together.scatter)
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    assert total.n == len(whole)
    np.testing.assert_allclose(total.mean.numpy(), whole.double().mean(0).numpy(), rtol=1e-13)
    np.testing.assert_allclose(
        total.covariance.numpy(), np.cov(whole.double().numpy().T), rtol=1e-9, atol=1e-9
    )


def test_changes_by_hand() -> None:
    before = Moments.of(
        torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    )  # variances 2/3, 2/3
    after = Moments.of(torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))  # 8/3, 2/3
    assert covariance_change(before, after) == pytest.approx(2 / (2 * (2 / 3) ** 2) ** 0.5)
    assert trace_change(before, after) == pytest.approx(2 / (4 / 3))
    assert trace_change(after, before) == pytest.approx(-2 / (10 / 3))
    assert variance_change(before, after) == pytest.approx(2 / (4 / 3))
    still = Moments.of(torch.ones(3, 2))
    assert (
        covariance_change(still, before),
        trace_change(still, before),
        variance_change(still, before),
    ) == (None,) * 3
    assert mean_cosine(torch.zeros(2), torch.ones(2)) is None


@pytest.mark.parametrize("n", [5, 80])  # fewer and more states than the width
def test_cka_knows_no_rotation_and_no_scale_and_sees_what_is_unrelated(n: int) -> None:
    x = states_of(n, 20).double()
    turn = torch.linalg.qr(torch.randn(20, 20, generator=torch.Generator().manual_seed(2)).double())[0]
    assert linear_cka(x, 3 * x @ turn + 5) == pytest.approx(1.0, abs=1e-9)
    other = states_of(n, 20, seed=9).double()
    assert linear_cka(x, other) == pytest.approx(linear_cka(other, x))
    assert (linear_cka(states_of(4000, 5), states_of(4000, 5, seed=9)) or 0) < 0.01
    assert linear_cka(x, torch.ones(n, 3)) is None
    assert linear_cka(x[:0], other[:0]) is None


def layers(count: int, change: Callable[[int], float]) -> list[LayerStates]:
    base = states_of(50, 4) - 1000
    return [LayerStates({"en": Moments.of(base * (1 + change(i)))}, {"en": base}) for i in range(count)]


def test_where_it_happens_is_told() -> None:
    found = drift_between(
        "x", layers(9, lambda _: 0.0), layers(9, lambda i: 0.4 if i >= 6 else 0.1 + i / 1000)
    )
    assert set(found.most_changed) == {6, 7, 8}
    assert found.upper_to_lower == pytest.approx((1.4**2 - 1) / (1.101**2 - 1), rel=0.01)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ModelError, match="x: has 3 decoder layers, the first model has 2"):
        drift_between("x", layers(2, float), layers(3, float))
    wide = [LayerStates({"en": Moments.of(states_of(5, 6))}, {"en": states_of(5, 6)})] * 2
    with pytest.raises(ModelError, match="x: its states are 6 wide"):
        drift_between("x", layers(2, float), wide)


def test_prompts_of_a_large_data_set_are_read_when_they_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = read_prompts("worldbook:lookup/de", limit=3)
    examples = load_data(DataSource(source="worldbook:lookup/de")).examples
    asked: list[int] = []

    class Rows(Sequence[Example]):
        def __len__(self) -> int:
            return len(examples)

        def __getitem__(self, row: Any) -> Any:
            asked.append(row)
            return examples[row]

    loaded = LoadedData(Rows(), "messages", len(examples), (), "")
    monkeypatch.setattr("lingraft.representation.prompts.load_data", lambda *_, **__: loaded)
    found = read_prompts("large")
    assert (len(found), asked) == (len(examples), [])
    assert [*found[:2], found[-1]] == [*few[:2], read_prompts("large")[len(examples) - 1]]
    assert len(asked) == 4
    asked.clear()
    assert list(read_prompts("large", limit=3)) == list(few)
    assert asked == [0, 1, 2]


def test_prompts_are_read_from_text_from_mt_bench_and_from_data_sets(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("first\n\n second \n")
    assert [one.messages[0].content for one in read_prompts(str(tmp_path / "a.txt"))] == ["first", "second"]
    rows = [{"question_id": 1, "turns": ["Say a.", "Say b."]}, {"turns": ["Say c."]}]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_prompts(str(tmp_path / "b.jsonl"), language="en", limit=1)
    assert [(one.messages[0].content, one.language) for one in found] == [("Say a.", "en")]
    (tmp_path / "c.jsonl").write_text('{"turns": ["Sag a."], "lang": "German"}\n')
    assert [one.language for one in read_prompts(str(tmp_path / "c.jsonl"))] == ["de"]
    (tmp_path / "languages").mkdir()
    for tag in ("de", "th"):
        (tmp_path / "languages" / f"{tag}.jsonl").write_text('{"prompt": "a"}\n')
    of_each = read_prompts(str(tmp_path / "languages" / "{language}.jsonl"))
    assert [one.language for one in of_each] == ["de", "th"]
    with gzip.open(tmp_path / "d.jsonl.gz", "wt") as file:
        file.write('{"turns": ["Say d."]}\n')
    assert [one.messages[0].content for one in read_prompts(str(tmp_path / "d.jsonl.gz"))] == ["Say d."]
    found = read_prompts("worldbook:lookup/de", limit=3)
    assert [(one.messages[-1].role, one.language) for one in found] == [("user", "de")] * 3
    for name, content, says in (
        ("e.txt", "\n", "no rows"),
        ("f.jsonl", '{"turns": ["a"]}\n{"turns": []}\n', "f.jsonl:2: has no text"),
        ("g.jsonl", '{"turns": ["a"], "lang": "Klingonisch"}\n', "g.jsonl:1: field 'lang'"),
        ("none.txt", None, "no such file"),
    ):
        if content is not None:
            (tmp_path / name).write_text(content)
        with pytest.raises(DataError, match=says):
            read_prompts(str(tmp_path / name))
