"""MPD is the mean over tensors of the L2 norms of their differences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lingraft.errors import ModelError
from lingraft.weights.difference import parameter_difference


def checkpoint(folder: Path, **tensors: Any) -> Path:
    folder.mkdir()
    save_file(
        {name.replace("__", "."): torch.tensor(value) for name, value in tensors.items()},
        folder / "model.safetensors",
    )
    return folder


def test_mpd_by_hand(tmp_path: Path) -> None:
    first = checkpoint(
        tmp_path / "a", model__layers__3__mlp__up_proj__weight=[[3.0, 4.0]], lm_head__weight=[[1.0]]
    )
    second = checkpoint(
        tmp_path / "b", model__layers__3__mlp__up_proj__weight=[[0.0, 0.0]], lm_head__weight=[[2.0]]
    )
    found = parameter_difference(first, second)
    assert found.mpd == pytest.approx((5.0 + 1.0) / 2)
    assert found.relative == pytest.approx((26 / 26) ** 0.5)
    by_name = {tensor.name: tensor for tensor in found.tensors}
    up = by_name["model.layers.3.mlp.up_proj.weight"]
    assert (up.layer, up.module, up.l2, up.relative, up.cosine) == (3, "up_proj", 5.0, 1.0, None)
    assert by_name["lm_head.weight"].cosine == pytest.approx(1.0)


def test_a_model_against_itself_is_zero(tiny_model: Path) -> None:
    found = parameter_difference(tiny_model, tiny_model)
    assert found.mpd == 0.0
    assert found.relative == 0.0
    assert all(tensor.cosine == pytest.approx(1.0, abs=1e-12) for tensor in found.tensors)


def test_mpd_equals_the_naive_value_and_counts_a_tied_head_once(tmp_path: Path, tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    model.save_pretrained(tmp_path / "moved")
    naive = [
        float((value.detach().double() - before[name].double()).norm())
        for name, value in model.named_parameters()
    ]
    found = parameter_difference(tiny_model, tmp_path / "moved")
    assert len(found.tensors) == len(naive)
    assert found.mpd == pytest.approx(sum(naive) / len(naive), rel=1e-6)


def test_pieces_of_a_tensor_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(7, 9, generator=generator) for _ in range(2)]
    first, second = (checkpoint(tmp_path / name, x=v.tolist()) for name, v in zip("ab", values, strict=True))
    monkeypatch.setattr("lingraft.weights.difference._ELEMENTS_PER_PIECE", 10)
    tensor = parameter_difference(first, second).tensors[0]
    one, other = (value.double().flatten() for value in values)
    assert tensor.l2 == pytest.approx(float((one - other).norm()), rel=1e-12)
    assert tensor.cosine == pytest.approx(float(torch.cosine_similarity(one, other, dim=0)), rel=1e-12)


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path) -> None:
    first, second = checkpoint(tmp_path / "a", x=[1.0]), checkpoint(tmp_path / "b", x=[float("nan")])
    with pytest.raises(ModelError, match="x: holds weights that are not finite"):
        parameter_difference(first, second)


def test_a_tensor_of_zeros_has_neither_relative_change_nor_cosine(tmp_path: Path) -> None:
    first, second = checkpoint(tmp_path / "a", x=[0.0]), checkpoint(tmp_path / "b", x=[2.0])
    found = parameter_difference(first, second)
    assert (found.mpd, found.relative) == (2.0, None)
    assert (found.tensors[0].relative, found.tensors[0].cosine) == (None, None)


def test_what_only_one_model_has_is_listed(tmp_path: Path) -> None:
    first = checkpoint(tmp_path / "a", both=[1.0], old=[1.0])
    second = checkpoint(tmp_path / "b", both=[1.0], new=[1.0])
    assert parameter_difference(first, second).missing == ("new", "old")


def test_two_architectures_are_refused(tmp_path: Path) -> None:
    first, second = checkpoint(tmp_path / "a", x=[1.0]), checkpoint(tmp_path / "b", y=[1.0])
    with pytest.raises(ModelError, match="no tensor in common"):
        parameter_difference(first, second)
    third = checkpoint(tmp_path / "c", x=[1.0, 2.0])
    with pytest.raises(ModelError, match=r"x is .*1.*2"):
        parameter_difference(first, third)


def test_architectures_are_those_that_the_configurations_name(tmp_path: Path) -> None:
    models = [checkpoint(tmp_path / name, x=[1.0]) for name in "abc"]
    for folder, kind in zip(models[:2], ("llama", "mistral"), strict=True):
        (folder / "config.json").write_text(f'{{"model_type": "{kind}"}}')
    with pytest.raises(ModelError, match=r"a is a llama, .*b a mistral"):
        parameter_difference(models[0], models[1])
    with pytest.raises(ModelError, match=r"a is a llama, .*b a mistral"):
        parameter_difference(models[0], models[0], models[1])
    assert parameter_difference(models[0], models[2]).mpd == 0.0  # the third says nothing
    (models[2] / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json: is not valid JSON"):
        parameter_difference(models[0], models[2])


def test_a_tied_head_that_is_stored_in_full_counts_once(tmp_path: Path) -> None:
    def stored(name: str, embedding: list[list[float]], **head: list[list[float]]) -> Path:
        return checkpoint(
            tmp_path / name, model__embed_tokens__weight=embedding, model__norm__weight=[1.0], **head
        )

    old, new = [[1.0, 2.0]], [[4.0, 6.0]]
    once = parameter_difference(stored("a", old), stored("b", new))
    twice = parameter_difference(stored("c", old, lm_head__weight=old), stored("d", new, lm_head__weight=new))
    mixed = parameter_difference(stored("e", old, lm_head__weight=old), stored("f", new))
    assert once.mpd == twice.mpd == mixed.mpd == 5.0 / 2
    assert [t.name for t in twice.tensors] == ["model.embed_tokens.weight", "model.norm.weight"]
    assert once.missing == twice.missing == mixed.missing == ()
    untied = parameter_difference(
        stored("g", old, lm_head__weight=old), stored("h", new, lm_head__weight=old)
    )
    assert untied.mpd == pytest.approx(5.0 / 3)
