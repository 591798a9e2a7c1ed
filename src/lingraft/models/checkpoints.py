"""Checkpoints on disk: written as float32 safetensors, and made of two others tensor by tensor."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from lingraft.data.chat_template import chat_template
from lingraft.errors import ModelError
from lingraft.models.tensor_files import INDEX_FILE
from lingraft.models.tensor_files import CheckpointReader as CheckpointReader  # noqa: PLC0414 - its old place
from lingraft.models.weights import ModelWeights
from lingraft.records import read_json, write_json_atomically

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def save_checkpoint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a model as float32 safetensors, with its config, generation config, tokenizer and chat template.

    float32, because the difference between two phases is smaller than what bf16 can hold (DESIGN.md). A
    tokenizer without a template is saved with the fallback it was trained with.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(p.is_floating_point() and p.dtype != torch.float32 for p in model.state_dict().values()):
        # Tensors that share storage still do in float32, so that ties are saved once.
        converted: dict[tuple[int, int, tuple[int, ...]], torch.Tensor] = {}
        state = {}
        for name, tensor in model.state_dict().items():
            key = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape))
            if key not in converted:
                converted[key] = tensor.float() if tensor.is_floating_point() else tensor
            state[name] = converted[key]
        model.save_pretrained(folder, state_dict=state)
        config = folder / "config.json"
        write_json_atomically(config, read_json(config) | {"dtype": "float32"})
    else:
        model.save_pretrained(folder)
    own_template = tokenizer.chat_template
    try:
        if own_template is None:
            tokenizer.chat_template = chat_template(tokenizer)[0]
        tokenizer.save_pretrained(folder)
    finally:
        tokenizer.chat_template = own_template


def combine_checkpoints(
    before: Path,
    after: Path,
    combine: Callable[[str, torch.Tensor, torch.Tensor], torch.Tensor],
    folder: Path,
    *,
    trust_remote_code: bool = False,
) -> None:
    """Write a model of two that share an architecture, parameter by parameter; about a shard is in memory at a time.

    What is no parameter, and tensors of whole numbers or marks, are the second's.

    Args:
        before: Checkpoint folder of the first, whose files may name tensors otherwise.
        after: Of the second; all of its files but the weights are taken over, and so are its shards.
        combine: Called with a parameter's name and the two tensors in float32; returns the new one.
        folder: Where the model goes.
        trust_remote_code: Run Python code that the models bring along, which tells the parameters' names.

    Raises:
        ModelError: A parameter of the second is missing in the first, or has it in another shape.
    """
    first = ModelWeights(before, trust_remote_code=trust_remote_code)
    second = ModelWeights(after, trust_remote_code=trust_remote_code)
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(after.iterdir()):
        if path.is_file() and path.suffix != ".safetensors":
            shutil.copyfile(path, folder / path.name)
    left = {file: set(names) - set(second.repeated) for file, names in second.files.files().items()}
    pending: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    places: dict[str, str] = {}
    for part in second.parts():
        made: dict[str, torch.Tensor] = {}
        for name in part.parameters:
            if name not in first or first.shape(name) != second.shape(name):
                raise ModelError(
                    f"{before}: has no {name} of the shape {list(second.shape(name))} that {after} has."
                )
            made[name] = second.tensor(name)
            if made[name].is_floating_point():  # else it counts or marks something, and is no weight
                made[name] = combine(name, first.tensor(name).float(), made[name].float())
        files = {name: second.files.file_of(name) for name in part.stored}
        for name, tensor in second.as_stored(part, made).items():
            places[name] = files.get(name, files[part.stored[0]])
            pending[places[name]][name] = tensor.contiguous()
        for name, file in files.items():
            left[file].discard(name)
        for file in [file for file in pending if not left[file]]:
            save_file(pending.pop(file), folder / file, metadata={"format": "pt"})
    if (after / INDEX_FILE).is_file():
        index = read_json(after / INDEX_FILE)
        write_json_atomically(folder / INDEX_FILE, {**index, "weight_map": dict(sorted(places.items()))})
