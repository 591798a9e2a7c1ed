"""Models are found by name, loaded without pickle, and hashed by what decides their answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.utils._paths import filter_repo_objects
from safetensors.torch import load_file, save_file

from lingraft.data.chat_template import FALLBACK_TEMPLATE
from lingraft.errors import ModelError
from lingraft.models.loading import load_model, load_tokenizer, model_content_hash, model_folder
from lingraft.weights.difference import parameter_difference


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def test_a_folder_is_its_own_name(folder: Path) -> None:
    assert model_folder(str(folder)) == folder


def test_a_model_is_loaded_in_the_type_asked_for_and_in_evaluation_mode(folder: Path) -> None:
    model = load_model(folder)
    assert model.dtype == torch.float32
    assert not model.training
    assert load_model(str(folder), dtype=torch.bfloat16).dtype == torch.bfloat16


def test_a_folder_with_pickled_weights_only_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"only pickled weights \(pytorch_model.bin\)"):
        load_model(folder)


def test_a_folder_without_config_or_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="there are no weights to read"):
        model_folder(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"holds no config.json"):
        model_folder(str(folder))


def test_weights_that_a_file_lacks_are_an_error_not_random_numbers(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ModelError, match=r"1 weights are not in its files \(model.layers.1.mlp.down_proj.weight"
    ):
        load_model(folder)


def test_names_that_a_wrapper_has_lengthened_are_told_as_such(folder: Path, tiny_model: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    file = folder / "model.safetensors"
    save_file({f"_orig_mod.{name}": own for name, own in tensors.items()}, file, metadata={"format": "pt"})
    said = r"such as _orig_mod\.model\..* If the names begin with a wrapper's .* save_pretrained\."
    with pytest.raises(
        ModelError, match=r"weights are not in its files .* that no parameter is called, " + said
    ):
        load_model(folder)
    both = r"no tensor in common, though both are a llama: .* holds model\..* _orig_mod\.model\..* wrapper's"
    with pytest.raises(ModelError, match=both):
        parameter_difference(tiny_model, folder)


def test_an_unknown_architecture_is_a_model_error(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "unheard-of"}))
    with pytest.raises(ModelError, match="cannot be loaded as a causal language model"):
        load_model(folder)


def test_a_tokenizer_without_template_or_pad_token_is_given_both(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.chat_template == FALLBACK_TEMPLATE
    assert tokenizer.pad_token == tokenizer.eos_token == "<|im_end|>"


def test_a_folder_without_tokenizer_is_a_model_error(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ModelError, match="its tokenizer cannot be loaded"):
        load_tokenizer(folder)


def test_an_unreachable_hub_says_what_to_do() -> None:
    with pytest.raises(
        ModelError, match=r"someone/something@main: there is no such folder.*give a local folder"
    ):
        model_folder("someone/something@main")


@pytest.mark.parametrize("name", ["./missing", "/nowhere/at/all", "a/b/c", "with space/x"])
def test_what_is_neither_folder_nor_hub_id_is_refused_without_asking_the_hub(name: str) -> None:
    with pytest.raises(ModelError, match="there is no such folder, and it is not a hub id"):
        model_folder(name)


@pytest.mark.parametrize("trusting", [False, True])
def test_only_safe_files_are_fetched_from_the_hub(
    folder: Path, monkeypatch: pytest.MonkeyPatch, trusting: bool
) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    def snapshot_download(repository: str, **options: Any) -> str:
        calls.append((repository, options))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert model_folder("owner/name@abc123", trust_remote_code=trusting) == folder
    ((repository, options),) = calls
    assert (repository, options["revision"]) == ("owner/name", "abc123")
    repository_files = [
        *(
            "config.json",
            "model-00001-of-00002.safetensors",
            "model.safetensors.index.json",
            "tokenizer.json",
        ),
        *("chat_template.jinja", "merges.txt", "pytorch_model.bin", "consolidated.00.pth", "modeling.py"),
        *("consolidated.safetensors", "onnx/model.json", "README.md", "rust_model.ot"),
    ]
    filtered = filter_repo_objects(
        repository_files, allow_patterns=options["allow_patterns"], ignore_patterns=options["ignore_patterns"]
    )
    assert list(filtered) == repository_files[:6] + (["modeling.py"] if trusting else [])


def test_the_content_hash_follows_weights_config_and_tokenizer_alone(folder: Path) -> None:
    before = model_content_hash(folder)
    (folder / "README.md").write_text("x")
    (folder / "record.json").write_text("{}")
    assert model_content_hash(folder) == before
    seen = {before}
    for name in (
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "chat_template.jinja",
        "generation_config.json",
    ):
        path = folder / name
        path.write_bytes(path.read_bytes() + b" ")
        seen.add(model_content_hash(folder))
    assert len(seen) == 6
