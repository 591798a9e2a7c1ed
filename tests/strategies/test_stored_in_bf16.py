"""A phase that starts from bf16 files trains, merges and saves what one from the same numbers in float32 does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lingraft.models.checkpoints import state_dtype
from lingraft.models.tensor_files import SINGLE_FILE
from lingraft.stage import CHECKPOINT, GivenModel

from .conftest import read


@pytest.mark.parametrize("written", [{"lora": {"rank": 4, "dropout": 0.1}}, {"half": {}}])
def test_the_type_of_the_files_makes_no_difference(phases: Any, written: Any) -> None:
    import shutil

    found = []
    for dtype in (torch.float32, torch.bfloat16):
        job = phases.job(written, precision="bf16")
        folder = phases.store.folder / f"stored in {dtype}"
        shutil.copytree(phases.model(), folder)
        weights = load_file(folder / SINGLE_FILE)
        rounded = {name: one.bfloat16().to(dtype) for name, one in weights.items()}
        save_file(rounded, folder / SINGLE_FILE, metadata={"format": "pt"})
        state_dtype(folder, dtype)
        done = phases.make(replace(job, parent=GivenModel({"weights": str(dtype)}, folder), label=str(dtype)))
        checkpoint = done.folder / CHECKPOINT
        found.append((done.result["losses"], read(checkpoint), (checkpoint / "config.json").read_text()))
    (losses, weights, config), (low_losses, low_weights, low_config) = found
    assert low_losses == losses
    assert low_config == config
    assert all(torch.equal(low_weights[name], own) for name, own in weights.items())
    assert {own.dtype for own in low_weights.values()} == {torch.float32}
    adapted = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(weights[adapted].bfloat16().float(), weights[adapted])  # merged in float32
