"""QLoRA: the base in 4 bits while adapters train, merged into the exact weights of the files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lingraft.config.load import load_study
from lingraft.errors import ConfigError, StrategyError
from lingraft.models import four_bits
from lingraft.models.compute import Compute
from lingraft.models.loading import load_model
from lingraft.strategies.base import Context
from lingraft.strategies.composition import build
from lingraft.strategies.lora import ADAPTER, Lora
from lingraft.study.run import run_study
from lingraft.train.processes import Processes

NF4 = {"lora": {"rank": 4, "base": "nf4", "keep_adapter": True}}
BF16 = Compute("bf16", torch.device("cpu"), torch.bfloat16, torch.bfloat16)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks for it
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_adapters_that_learn_beside_4_bits_are_merged_into_the_files_weights(
    phases: Any, precision: str
) -> None:
    from peft import PeftModel

    done = phases.train(NF4, precision=precision)
    losses = [loss for _, loss in done.stage.result["losses"]]
    assert losses[-1] < losses[0]
    whole: Any = PeftModel.from_pretrained(load_model(done.parent), done.stage.folder / ADAPTER)
    expected = dict(whole.merge_and_unload().named_parameters())
    before = done.before()
    for name, found in done.tensors().items():
        assert found.dtype == torch.float32
        assert torch.allclose(found, expected[name], atol=1e-6), name
        assert torch.equal(found, before[name]) == ("proj" not in name), name
    plain = phases.train({"lora": {"rank": 4}}, precision=precision)
    for (_, own), (_, other) in zip(done.stage.result["losses"], plain.stage.result["losses"], strict=True):
        assert own == pytest.approx(other, rel=0.05)  # 4 bits are near
        assert own != other
    counts = ("trainable_parameters", "frozen_parameters")
    assert all(done.stage.result[one] == plain.stage.result[one] for one in counts)


def test_linear_layers_take_half_a_byte_for_a_weight(phases: Any, tmp_path: Path) -> None:
    model: Any = load_model(phases.model())
    layers = [
        name for name, own in model.named_modules() if isinstance(own, torch.nn.Linear) and "head" not in name
    ]
    weights = sum(model.get_submodule(name).weight.numel() for name in layers)
    context = Context(
        base=None, previous=phases.model(), previous_data=(), english=(), seed=0, folder=tmp_path, cache=tmp_path,
        compute=BF16,
    )  # fmt: skip
    wrapped: Any = Lora(base="nf4").wrap(model, context)
    held = [parameter for parameter in wrapped.parameters() if hasattr(parameter, "quant_state")]
    assert len(held) == len(layers)
    codes = sum(parameter.nbytes for parameter in held)
    scales = sum(parameter.quant_state.absmax.nbytes for parameter in held)  # in 8 bits
    assert codes == weights // 2
    assert scales <= weights / 64 + len(held)
    embedded = wrapped.get_input_embeddings().weight
    assert embedded.dtype == torch.float32


def test_a_study_without_4_bits_keeps_what_it_is_known_by() -> None:
    assert "base" not in Lora(rank=4).identity
    assert Lora(rank=4, base="nf4").identity["base"] == "nf4"


def test_4_bits_are_refused_where_they_cannot_work(
    phases: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(
        "name: small\nmodel: embedded:smollm2-135m\nphases:\n"
        "  - {name: one, data: {en: {source: 'worldbook:lookup/en', limit: 20}}}\n"
        "  - name: two\n    data: {de: {source: 'worldbook:lookup/de', limit: 20}}\n"
        "    strategies: [{lora: {base: nf4}}]\n"
    )
    with pytest.raises(ConfigError, match=r"4 bits, which --sharded cannot divide\. Leave --sharded out"):
        run_study(load_study(study), runs=tmp_path / "runs", processes=Processes(2, sharded=True))
    assert not (tmp_path / "runs").exists()
    monkeypatch.setattr(four_bits, "find_spec", lambda _: None)
    with pytest.raises(StrategyError, match=r"needs bitsandbytes.*pip install 'lingraft\[qlora\]'"):
        build(phases.job(NF4).choice).check(())
    build(replace(phases.job({"lora": {}})).choice).check(())
