"""An adapter is merged into its base, once, and training starts from the whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from lingraft.adapt.history import HISTORY
from lingraft.adapt.start import whole_model
from lingraft.errors import ModelError
from lingraft.stage import given_model
from lingraft.study.execute import Executor
from lingraft.study.store import Store

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:`is_gradient_checkpointing`:FutureWarning"
    ),  # a name that peft still uses
    pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`"),
]
IDS = torch.tensor([[5, 9, 31, 44]])


@pytest.fixture
def adapter(tmp_path: Path, tiny_model: Path) -> tuple[Path, torch.Tensor]:
    """A LoRA adapter of the tiny model, and the logits of the two together."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model)
    wrapped: Any = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    folder = tmp_path / "adapter"
    wrapped.save_pretrained(folder)
    wrapped.eval()
    with torch.no_grad():
        return folder, wrapped(IDS).logits


def test_an_adapter_becomes_a_whole_model_that_says_the_same(
    tmp_path: Path, adapter: tuple[Path, torch.Tensor], tiny_model: Path
) -> None:
    folder, logits = adapter
    (folder / HISTORY).write_text("{}")
    with Store(tmp_path / "run") as store:
        name, said = whole_model(str(folder), Executor(store))
    assert said is not None
    assert f"is a LoRA adapter; it is merged into its base ({tiny_model})" in said
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(name)(IDS).logits
    torch.testing.assert_close(merged, logits, atol=1e-5, rtol=1e-5)
    assert AutoTokenizer.from_pretrained(name).chat_template is not None
    assert (Path(name) / HISTORY).read_text() == "{}"
    # Training may start from it; a stage knows it, so nothing is hashed again.
    assert "stage" in given_model(name, is_trained_on=True).identity


def test_it_is_merged_once(
    tmp_path: Path, adapter: tuple[Path, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store(tmp_path / "run") as store:
        first = whole_model(str(adapter[0]), Executor(store))
    monkeypatch.setattr("lingraft.study.stages.merge.load_merged", None)
    with Store(tmp_path / "run") as store:
        assert whole_model(str(adapter[0]), Executor(store)) == first


def test_a_whole_model_stays_what_it_is(tmp_path: Path, tiny_model: Path) -> None:
    with Store(tmp_path / "run") as store:
        assert whole_model(str(tiny_model), Executor(store)) == (str(tiny_model), None)
        assert whole_model("embedded:smollm2-135m", Executor(store)) == ("embedded:smollm2-135m", None)


def test_an_adapter_whose_base_is_gone_is_refused(tmp_path: Path, adapter: tuple[Path, torch.Tensor]) -> None:
    config = adapter[0] / "adapter_config.json"
    config.write_text(
        config.read_text().replace('"base_model_name_or_path": "', '"base_model_name_or_path": "/no')
    )
    with Store(tmp_path / "run") as store, pytest.raises(ModelError, match="there is no such folder"):
        whole_model(str(adapter[0]), Executor(store))
