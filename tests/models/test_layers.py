"""Parameter names are read by their components."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from lingraft.models.layers import layer_count, layer_of, module_type_of, tied_parameters
from lingraft.models.loading import load_model


@pytest.mark.parametrize(
    ("parameter", "layer", "module_type"),
    [
        ("model.embed_tokens.weight", None, "embed_tokens"),
        ("lm_head.weight", None, "lm_head"),
        ("model.norm.weight", None, "norm"),
        ("model.layers.12.self_attn.q_proj.weight", 12, "q_proj"),
        ("model.layers.3.self_attn.k_proj.bias", 3, "k_proj"),
        ("model.layers.0.input_layernorm.weight", 0, "input_layernorm"),
        ("model.layers.12.mlp.experts.3.gate_proj.weight", 12, "gate_proj"),
        ("model.layers.12.block_sparse_moe.experts.3.w1.weight", 12, "w1"),
        ("model.layers.5.mlp.experts.gate_up_proj", 5, "gate_up_proj"),
        ("model.layers.5.mlp.gate.weight", 5, "gate"),
        ("transformer.h.7.attn.c_attn.weight", 7, "c_attn"),
        ("transformer.blocks.2.ffn.up_proj.weight", 2, "up_proj"),
        ("gpt_neox.layers.11.attention.query_key_value.weight", 11, "query_key_value"),
        ("model.decoder.layers.4.fc1.weight", 4, "fc1"),
        ("model.language_model.layers.9.mlp.down_proj.weight", 9, "down_proj"),
        ("model.audio_model.layers.3.fc1.weight", None, "fc1"),
        ("model.perceiver_resampler.layers.0.q_proj.weight", None, "q_proj"),
        ("model.vision_model.transformer.layers.1.mlp.fc2.weight", None, "fc2"),
        ("model.vision_tower.encoder.layers.9.mlp.fc1.weight", None, "fc1"),
        ("base_model.model.model.layers.1.self_attn.v_proj.lora_A.default.weight", 1, "v_proj"),
        ("base_model.model.model.layers.1.self_attn.v_proj.base_layer.weight", 1, "v_proj"),
        ("base_model.model.lm_head.modules_to_save.default.weight", None, "lm_head"),
        ("model.layers.6.mixer.A_log", 6, "A_log"),
    ],
)
def test_layer_and_module_type(parameter: str, layer: int | None, module_type: str) -> None:
    assert layer_of(parameter) == layer
    assert module_type_of(parameter) == module_type


def test_layers_are_counted_by_the_highest_index() -> None:
    assert layer_count(["model.embed_tokens.weight"]) == 0
    assert layer_count(["model.layers.0.a.weight", "model.layers.11.mlp.experts.60.w1.weight"]) == 12


def test_parameters_that_share_storage_are_found(tiny_model: Path) -> None:
    model = load_model(tiny_model)
    assert tied_parameters(model) == [frozenset({"lm_head.weight", "model.embed_tokens.weight"})]
    model.lm_head.weight.data = model.lm_head.weight.data.clone()  # one object still, whatever its storage
    assert len(tied_parameters(model)) == 1
    assert tied_parameters(model.model) == []
    with torch.device("meta"):
        planned = AutoModelForCausalLM.from_config(model.config)  # type: ignore[no-untyped-call]
    assert tied_parameters(planned) == [frozenset({"lm_head.weight", "model.embed_tokens.weight"})]
