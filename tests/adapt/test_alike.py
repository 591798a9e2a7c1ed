"""Two models are versions of one, or it is said what differs and what to do; an adapter is merged first."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from lingraft.adapt.alike import check_alike
from lingraft.errors import ModelError
from lingraft.models.checkpoints import CheckpointReader
from lingraft.models.loading import load_model
from lingraft.stage import CHECKPOINT, given_model
from lingraft.study.execute import Executor
from lingraft.study.stages.merge import Merge
from lingraft.study.store import Store

Change = Callable[[Any, Any], None]


@pytest.fixture
def other(tiny_model: Path, tmp_path: Path) -> Callable[[Change], Path]:
    """A function that saves a copy of the tiny model, its model and tokenizer changed."""

    def build(change: Change) -> Path:
        model, tokenizer = load_model(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
        change(model, tokenizer)
        model.save_pretrained(tmp_path / "other")
        tokenizer.save_pretrained(tmp_path / "other")
        return tmp_path / "other"

    return build


def problem(before: Path, after: Path) -> str:
    with pytest.raises(ModelError) as caught:
        check_alike(before, after, ("M1", "M2"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_versions_of_one_model_are_alike_whatever_type_they_are_stored_in(
    tiny_model: Path, other: Callable[[Change], Path]
) -> None:
    def trained(model: Any, _: Any) -> None:
        with torch.no_grad():
            model.model.norm.weight.add_(1)
        model.to(torch.bfloat16)

    (note,) = check_alike(tiny_model, other(trained), ("M1", "M2"))
    assert note == "M1 is stored in float32, M2 in bfloat16: what lies between them is computed in float32."
    assert check_alike(tiny_model, tiny_model, ("M1", "M2")) == []


def test_an_embedding_of_other_size_says_how_to_make_it_equal(
    tiny_model: Path, other: Callable[[Change], Path]
) -> None:
    def extended(model: Any, tokenizer: Any) -> None:
        tokenizer.add_tokens(["<new>"])
        model.resize_token_embeddings(len(tokenizer))

    rows = len(AutoTokenizer.from_pretrained(tiny_model))
    said = problem(tiny_model, other(extended))
    assert said.startswith(f"M2: its embedding has {rows + 1} rows, that of M1 {rows}")
    assert f"resize_token_embeddings({rows + 1})" in said


def test_another_vocabulary_names_a_token(tiny_model: Path, other: Callable[[Change], Path]) -> None:
    folder = other(lambda *_: None)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    words = content["model"]["vocab"]
    first, second = sorted(words, key=words.get)[-2:]
    words[first], words[second] = words[second], words[first]
    path.write_text(json.dumps(content))
    said = problem(tiny_model, folder)
    assert "another vocabulary than that of M1: 2 tokens differ, such as" in said


def test_another_way_of_splitting_text_is_refused(tiny_model: Path, other: Callable[[Change], Path]) -> None:
    folder = other(lambda *_: None)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["merges"] = content["model"]["merges"][:3]
    path.write_text(json.dumps(content))
    assert "splits text otherwise than that of M1" in problem(tiny_model, folder)


def test_another_chat_template_is_refused(tiny_model: Path, other: Callable[[Change], Path]) -> None:
    def templated(_: Any, tokenizer: Any) -> None:
        tokenizer.chat_template = tokenizer.chat_template.replace("'\\n'", "'\\n\\n'", 1)

    assert "its chat template is another than that of M1" in problem(tiny_model, other(templated))


def test_another_size_and_another_architecture_are_refused(
    tiny_model: Path, other: Callable[[Change], Path], tiny_configuration: Callable[..., Any]
) -> None:
    folder = other(lambda *_: None)
    config = LlamaConfig.from_pretrained(tiny_model)
    config.intermediate_size = 48
    LlamaForCausalLM(config).save_pretrained(folder)
    assert "6 weights have another shape than in M1; the first is model.layers.0.mlp.down_proj" in problem(
        tiny_model, folder
    )
    config = LlamaConfig.from_pretrained(tiny_model)
    config.num_hidden_layers = 1
    LlamaForCausalLM(config).save_pretrained(folder)
    assert "M1: has 9 weights that M2 does not have (model.layers.1." in problem(tiny_model, folder)
    config = tiny_configuration("qwen2", config.vocab_size)
    shutil.rmtree(folder / "model.safetensors", ignore_errors=True)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)  # type: ignore[no-untyped-call]
    assert problem(tiny_model, folder).startswith("M2: is qwen2, but M1 is llama.")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT reads it
def test_an_adapter_is_merged_into_its_base(tiny_model: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    wrapped = get_peft_model(
        load_model(tiny_model), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    )
    wrapped.save_pretrained(str(tmp_path / "adapter"))
    expected = wrapped.merge_and_unload().state_dict()
    stage = Merge("adapter", given_model(str(tmp_path / "adapter")))
    with Store(tmp_path / "run") as store:
        done = Executor(store).make(stage)
    merged = CheckpointReader(done.folder / CHECKPOINT)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(merged.tensor(name), expected[name])
    assert not torch.equal(merged.tensor(name), CheckpointReader(tiny_model).tensor(name))
    assert check_alike(tiny_model, done.folder / CHECKPOINT, ("M1", "M2")) == []
