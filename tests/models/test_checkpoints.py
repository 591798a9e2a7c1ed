"""Checkpoints are read tensor by tensor and written so that they come back bit for bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

from lingraft.data.chat_template import FALLBACK_TEMPLATE
from lingraft.errors import ModelError
from lingraft.models.checkpoints import CheckpointReader, combine_checkpoints, save_checkpoint
from lingraft.models.loading import load_model, load_tokenizer


@pytest.fixture(params=["one file", "shards"])
def folder(request: pytest.FixtureRequest, tiny_model: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "model"
    if request.param == "one file":
        shutil.copytree(tiny_model, copy)
    else:
        load_model(tiny_model).save_pretrained(copy, max_shard_size="50KB")
        assert len(list(copy.glob("*.safetensors"))) > 2
    return copy


def test_every_tensor_is_that_of_the_model(folder: Path, tiny_model: Path) -> None:
    reader = CheckpointReader(folder)
    state = load_model(tiny_model).state_dict()
    assert set(state) - set(reader.names) == {"lm_head.weight"}  # tied, so stored once
    assert reader.names == tuple(sorted(reader.names))
    for name in reader.names:
        assert reader.shape(name) == tuple(state[name].shape)
        assert torch.equal(reader.tensor(name), state[name])


def test_an_unknown_tensor_gets_a_hint(folder: Path) -> None:
    with pytest.raises(
        ModelError, match=r"no tensor is called 'model.norm.weights'. Did you mean 'model.norm.weight'"
    ):
        CheckpointReader(folder).tensor("model.norm.weights")


def test_a_missing_or_damaged_shard_is_named(folder: Path) -> None:
    shard = sorted(folder.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ModelError, match=f"{shard.name}: damaged"):
        CheckpointReader(folder)
    shard.write_bytes(b"\xff" * 64)
    with pytest.raises(ModelError, match=f"{shard.name}: damaged"):
        CheckpointReader(folder)
    shard.unlink()
    with pytest.raises(ModelError, match=r"is missing|there are no weights"):
        CheckpointReader(folder)


@pytest.mark.parametrize(
    ("index", "problem"),
    [
        ("{", "not an index of shards"),
        ('{"a": 1}', "not an index of shards"),
        ('{"weight_map": {"a.weight": "../x.safetensors"}}', "is outside the folder"),
        (
            '{"weight_map": {"a.weight": "model.safetensors"}}',
            "a.weight should be in model.safetensors, but is not",
        ),
    ],
)
def test_a_wrong_index_is_named(tiny_model: Path, tmp_path: Path, index: str, problem: str) -> None:
    shutil.copy(tiny_model / "model.safetensors", tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelError) as raised:
        CheckpointReader(tmp_path)
    assert problem in str(raised.value)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(
        ModelError, match=r"only pickled weights \(pytorch_model.bin\).* Convert them to safetensors"
    ):
        CheckpointReader(tmp_path)


def test_a_saved_checkpoint_comes_back_bit_for_bit(tiny_model: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(tiny_model), load_tokenizer(tiny_model)
    save_checkpoint(model, tokenizer, tmp_path / "new" / "saved")
    again = load_model(tmp_path / "new" / "saved")
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    assert load_tokenizer(tmp_path / "new" / "saved").chat_template == tokenizer.chat_template
    assert again.generation_config.eos_token_id == tokenizer.eos_token_id


def test_bf16_weights_are_saved_as_float32_and_ties_once(tiny_model: Path, tmp_path: Path) -> None:
    model = load_model(tiny_model, dtype=torch.bfloat16)
    save_checkpoint(model, load_tokenizer(tiny_model), tmp_path)
    reader = CheckpointReader(tmp_path)
    assert "lm_head.weight" not in reader.names
    assert {reader.tensor(name).dtype for name in reader.names} == {torch.float32}
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float32"
    assert model.dtype == torch.bfloat16
    for name in reader.names:
        assert torch.equal(reader.tensor(name), model.state_dict()[name].float())


def test_the_fallback_template_travels_with_the_checkpoint(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.chat_template = None
    save_checkpoint(load_model(tiny_model), tokenizer, tmp_path)
    assert tokenizer.chat_template is None
    assert load_tokenizer(tmp_path).chat_template == FALLBACK_TEMPLATE


def test_two_checkpoints_make_a_third_and_what_is_no_weight_is_the_seconds(tmp_path: Path) -> None:
    before, after, made = (tmp_path / name for name in ("before", "after", "made"))
    for folder, value, dtype in ((before, 1.0, torch.bfloat16), (after, 3.0, torch.float32)):
        folder.mkdir()
        tensors = {"weight": torch.full((2, 3), value, dtype=dtype), "seen": torch.tensor([int(value)])}
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"of": folder.name}))
    combine_checkpoints(before, after, lambda _, old, new: (old + new) / 2, made)
    reader = CheckpointReader(made)
    assert torch.equal(reader.tensor("weight"), torch.full((2, 3), 2.0))
    assert torch.equal(reader.tensor("seen"), torch.tensor([3]))
    assert json.loads((made / "config.json").read_text()) == {"of": "after", "dtype": "float32"}
    save_file({"seen": torch.tensor([1])}, before / "model.safetensors")
    with pytest.raises(ModelError, match=r"has no weight of the shape \[2, 3\]"):
        combine_checkpoints(before, after, lambda _, old, __: old, tmp_path / "none")


def test_a_combined_model_can_be_rounded_but_for_what_its_architecture_keeps_in_float32(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LlamaForCausalLM, "_keep_in_fp32_modules_strict", ["input_layernorm.weight"])
    before, after, made = (tmp_path / name for name in ("before", "after", "made"))
    for number, folder in enumerate((before, after)):
        model = load_model(tiny_model)
        torch.manual_seed(number)
        for own in model.parameters():
            own.data += torch.randn_like(own)
        save_checkpoint(model, load_tokenizer(tiny_model), folder)
    (after / "pytorch_model.bin").write_bytes(b"the same weights again")
    config = json.loads((after / "config.json").read_text())
    del config["dtype"]
    old = {**config, "torch_dtype": "float32", "part_config": {"dtype": "float32", "name": "dtype"}}
    (after / "config.json").write_text(json.dumps(old))
    combine_checkpoints(before, after, lambda _, a, b: (a + b) / 2, made, dtype=torch.bfloat16)
    reader, first, second = (CheckpointReader(one) for one in (made, before, after))
    for name in reader.names:
        mean = (first.tensor(name) + second.tensor(name)) / 2
        assert torch.equal(
            reader.tensor(name), mean if "input_layernorm" in name else mean.to(torch.bfloat16)
        )
    kept = {name for name in reader.names if reader.kind(name) == torch.float32}
    assert kept == {f"model.layers.{number}.input_layernorm.weight" for number in (0, 1)}
    stated = json.loads((made / "config.json").read_text())
    assert (stated["dtype"], stated["torch_dtype"]) == ("bfloat16", "bfloat16")
    assert stated["part_config"] == {"dtype": "bfloat16", "name": "dtype"}
    assert not (made / "pytorch_model.bin").exists()
    assert (
        load_model(made, dtype=torch.bfloat16).model.layers[0].input_layernorm.weight.dtype == torch.float32
    )
