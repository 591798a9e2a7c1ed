"""The trained model of a sharded phase, written as one checkpoint without being whole in any process.

Each process writes its pieces by torch's distributed checkpoint, and the first one puts the files together, a tensor
at a time.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

from lingraft.models.checkpoints import state_dtype
from lingraft.models.loading import load_model
from lingraft.models.tensor_files import INDEX_FILE, SINGLE_FILE
from lingraft.train.saved_state import files_of, write_pieces

_BYTES_OF_FILE = 5 * 10**9
_BYTES_AT_ONCE = 1 << 24
_PIECES = "sharded"  # as torch calls it


def wants_whole(model: nn.Module) -> bool:
    """Whether a model's weights are not saved as they are: adapters are merged, experts are stored one by one.

    Nor does torch put buffers without a dimension together.
    """
    from transformers.core_model_loading import revert_weight_conversion

    if isinstance(model, PeftModel) or any(one.dim() == 0 for one in model.buffers()):
        return True
    shells: dict[str, Tensor] = {
        name: torch.empty(one.shape, dtype=one.dtype, device="meta") for name, one in model.named_parameters()
    }
    own: Any = model
    return set(revert_weight_conversion(own, dict(shells))) != set(shells)


def save_divided(model: nn.Module, start: Path, folder: Path, *, trust_remote_code: bool) -> None:
    """Write a divided model as `save_checkpoint` writes a whole one, but for its tokenizer; every process calls this.

    Files hold 5 GB. Twice the model's size is needed on the disk meanwhile.

    Args:
        model: Its frozen parameters are those of `start`, and are taken from its files.
        start: The checkpoint that training started from.
        folder: Where the model goes; of an interrupted writing nothing is kept.
        trust_remote_code: Run Python code that the model brings along.

    Raises:
        OSError: The disk is full or fails.
    """
    is_first = dist.get_rank() == 0
    own: Any = model
    parameters = dict(model.named_parameters())
    # Under gradients of its own a tensor could not be written.
    tensors: dict[str, Tensor] = {
        name: one.detach().float() for name, one in parameters.items() if one.requires_grad
    }
    if is_first:
        shutil.rmtree(folder, ignore_errors=True)
        own.save_pretrained(folder, state_dict={})  # all but the weights
        (folder / SINGLE_FILE).unlink(missing_ok=True)
        state_dtype(folder, torch.float32)
        if len(tensors) < len(parameters):
            whole = load_model(start, trust_remote_code=trust_remote_code)
            frozen = {name: one.detach() for name, one in whole.named_parameters() if name not in tensors}
            tensors |= {name: frozen[name] for name in parameters if name in frozen}
        stored = {name for name in model.state_dict() if name not in parameters}
        tensors |= {name: one for name, one in model.named_buffers() if name in stored}
    files = files_of(tensors, _BYTES_OF_FILE)
    dist.barrier()
    writer = HuggingFaceStorageWriter(str(folder), files, save_distributed=True, enable_consolidation=True)
    write_pieces(tensors, writer)
    if is_first:
        shutil.rmtree(folder / _PIECES)
        for path in folder.glob("*.safetensors"):
            _mark_as_torch(path)
        if set(files.values()) == {1}:
            (folder / "model-00001-of-00001.safetensors").rename(folder / SINGLE_FILE)
            (folder / INDEX_FILE).unlink()
    dist.barrier()


def _mark_as_torch(path: Path) -> None:
    """Write a file again with the mark that readers of models ask for, and its tensors at multiples of their widths."""
    marked = path.with_suffix(".marked")
    with path.open("rb") as old, marked.open("wb") as new:
        header = json.loads(old.read(int.from_bytes(old.read(8), "little")))
        text = json.dumps({"__metadata__": {"format": "pt"}, **header}, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        new.write(len(text).to_bytes(8, "little") + text)
        shutil.copyfileobj(old, new, _BYTES_AT_ONCE)
    marked.replace(path)
