"""Adapters on tied and untied embeddings, saved whole or of a resized vocabulary, become the model that was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lingraft.errors import ModelError
from lingraft.models.adapters import load_merged, open_weights
from lingraft.weights.difference import parameter_difference

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:`is_gradient_checkpointing`:FutureWarning"
    ),  # a name that peft still uses
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`"),
    pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`"),
    pytest.mark.filterwarnings("ignore:You have requested `ensure_weight_tying`"),
]
IDS = torch.tensor([[5, 9, 31, 44]])
CASES: dict[str, dict[str, Any]] = {
    "whole embedding": {"modules_to_save": ["embed_tokens"]},
    "whole head": {"modules_to_save": ["lm_head"]},
    "whole embedding and head": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "whole and tied": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "adapted embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "resized": {"rows": 6},
    "resized and whole": {"rows": 6, "modules_to_save": ["embed_tokens", "lm_head"]},
}


def trained(tmp_path: Path, tiny_model: Path, tied: bool, options: dict[str, Any]) -> tuple[Path, Any]:
    """Return an adapter's folder, and the logits of the model that it was trained as."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_model, tie_word_embeddings=tied)
    base.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "base")
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    more = options.pop("rows", 0)
    if more:
        model.resize_token_embeddings(model.config.vocab_size + more, mean_resizing=False)
        with torch.no_grad():
            for end in (model.get_input_embeddings(), model.get_output_embeddings()):
                end.weight[-more:] = torch.randn(more, 32)
    config = LoraConfig(**{"r": 2, "target_modules": ["q_proj"], "init_lora_weights": False, **options})
    wrapped: Any = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        logits = wrapped.eval()(input_ids=IDS).logits
    wrapped.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", logits


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("case", CASES)
def test_merged_saved_and_reloaded_in_plain_transformers_it_gives_the_logits_of_the_training(
    tmp_path: Path, tiny_model: Path, case: str, tied: bool
) -> None:
    adapter, expected = trained(tmp_path, tiny_model, tied, dict(CASES[case]))
    merged, _ = load_merged(str(adapter))
    merged.save_pretrained(tmp_path / "merged")
    reloaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    reloaded.eval()
    with torch.no_grad():
        torch.testing.assert_close(merged(input_ids=IDS).logits, expected)
        torch.testing.assert_close(reloaded(input_ids=IDS).logits, expected)
    found = parameter_difference(open_weights(str(adapter)), tmp_path / "merged")
    assert found.missing == ()
    assert found.mpd == pytest.approx(0, abs=1e-5)
    assert found.resized == ()


@pytest.mark.parametrize("end", ["embed_tokens", "lm_head"])
def test_an_adapted_end_of_a_resized_vocabulary_leaves_the_end_it_was_tied_to_all_rows(
    tmp_path: Path, tiny_model: Path, end: str
) -> None:
    adapter, expected = trained(tmp_path, tiny_model, True, {"rows": 6, "target_modules": ["q_proj", end]})
    merged, _ = load_merged(str(adapter))
    with torch.no_grad():
        torch.testing.assert_close(merged(input_ids=IDS).logits, expected)
    merged.save_pretrained(tmp_path / "merged")
    reader = open_weights(str(adapter))
    assert {reader.shape(name) for name in reader.names if "embed" in name or "head" in name} == {(606, 32)}
    found = parameter_difference(reader, tmp_path / "merged")
    assert (found.missing, found.resized) == ((), ())
    assert found.mpd == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"init_lora_weights": "pissa"}, "'pissa', which changed the base's weights too"),
        ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4', which changed the base's weights too"),
        ({"init_lora_weights": "olora"}, "'olora', which changed the base's weights too"),
        (
            {"alora_invocation_tokens": [5, 9], "task_type": "CAUSAL_LM"},
            "uses alora_invocation_tokens, so it is no plain LoRA",
        ),
    ],
)
def test_an_adapter_whose_update_is_not_all_that_it_changed_is_refused(
    tmp_path: Path, tiny_model: Path, options: dict[str, Any], said: str
) -> None:
    adapter, _ = trained(tmp_path, tiny_model, False, options)
    for read in (open_weights, load_merged):
        with pytest.raises(ModelError, match=said):
            read(str(adapter))


def test_code_of_an_adapters_base_runs_only_where_it_is_trusted(tmp_path: Path, tiny_model: Path) -> None:
    adapter, expected = trained(tmp_path, tiny_model, False, {})
    base = tmp_path / "base"
    config = json.loads((base / "config.json").read_text())
    config |= {
        "model_type": "own_llama",
        "auto_map": {
            "AutoConfig": "own.OwnConfig",
            "AutoModelForCausalLM": "own.OwnForCausalLM",
        },
    }
    (base / "config.json").write_text(json.dumps(config))
    (base / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own_llama'\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    with pytest.raises(ModelError):
        load_merged(str(adapter))
    merged, _ = load_merged(str(adapter), trust_remote_code=True)
    with torch.no_grad():
        torch.testing.assert_close(merged(input_ids=IDS).logits, expected)


def change(adapter: Path, with_what: Any) -> None:
    file = adapter / "adapter_model.safetensors"
    save_file(with_what(load_file(file)), file)


def test_a_resized_vocabulary_of_which_the_head_was_not_kept_is_refused(
    tmp_path: Path, tiny_model: Path
) -> None:
    adapter, _ = trained(tmp_path, tiny_model, tied=False, options={"rows": 6})
    change(adapter, lambda tensors: {name: own for name, own in tensors.items() if "lm_head" not in name})
    with pytest.raises(
        ModelError, match=r"resized vocabulary \(model\.embed_tokens.*606 rows.*not hold lm_head"
    ):
        load_merged(str(adapter))


def test_a_module_of_another_base_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    adapter, _ = trained(tmp_path, tiny_model, tied=True, options={"modules_to_save": ["norm"]})
    name = "base_model.model.model.norm.weight"
    change(adapter, lambda tensors: {**tensors, name: torch.ones(16)})
    with pytest.raises(ModelError, match=r"model\.norm\.weight is \[16\].*\[32\].*another base"):
        open_weights(str(adapter))


@pytest.mark.parametrize("architecture", ["gpt2", "bloom", "gemma3"])
def test_an_adapter_goes_by_the_models_names_where_the_bases_files_have_others(
    tmp_path: Path, tiny_configuration: Any, architecture: str
) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_configuration(architecture, 60))  # type: ignore[no-untyped-call]
    model.save_pretrained(tmp_path / "base")
    if architecture != "gemma3":  # whose files are named otherwise in any case
        file = tmp_path / "base" / "model.safetensors"
        save_file({n.removeprefix("transformer."): own for n, own in load_file(file).items()}, file)
    module = {"gpt2": "c_attn", "bloom": "query_key_value", "gemma3": "q_proj"}[architecture]
    config = LoraConfig(
        r=2, target_modules=[module], init_lora_weights=False, fan_in_fan_out=architecture == "gpt2"
    )
    wrapped: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), config)
    wrapped.save_pretrained(tmp_path / "adapter")
    wrapped.merge_and_unload().save_pretrained(tmp_path / "merged")
    found = parameter_difference(open_weights(str(tmp_path / "adapter")), tmp_path / "merged")
    assert found.missing == ()
    assert found.mpd == pytest.approx(0, abs=1e-5)
