"""Checkpoints on disk: written as safetensors, and made of two others tensor by tensor."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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

WeightType = Literal["float32", "bf16", "float16"]
WEIGHT_TYPES: Mapping[WeightType, torch.dtype] = {
    "float32": torch.float32,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
}
_PICKLED = frozenset((".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx"))


def save_checkpoint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a model as float32 safetensors, with its config, generation config, tokenizer and chat template.

    float32, because the difference between two phases is smaller than what bf16 can hold (DESIGN.md).
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
        state_dtype(folder, torch.float32)
    else:
        model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a tokenizer, one without a chat template with the fallback that it was trained with."""
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
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
) -> None:
    """Write a model of two that share an architecture, parameter by parameter; about a shard is in memory at a time.

    What is no parameter, and tensors of whole numbers or marks, are the second's.

    Args:
        before: Checkpoint folder of the first, whose files may name tensors otherwise.
        after: Of the second; all of its files but weights of any format are taken over, and so are its shards.
        combine: Called with a parameter's name and the two tensors in float32; returns the new one.
        folder: Where the model goes.
        dtype: What the new tensors are rounded to, but for those that the architecture keeps in float32; config.json
            says so.
        trust_remote_code: Run Python code that the models bring along, which tells the parameters' names.

    Raises:
        ModelError: A parameter of the second is missing in the first, or has it in another shape.
    """
    first = ModelWeights(before, trust_remote_code=trust_remote_code)
    second = ModelWeights(after, trust_remote_code=trust_remote_code)
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(after.iterdir()):
        if path.is_file() and path.suffix != ".safetensors" and path.suffix not in _PICKLED:
            shutil.copyfile(path, folder / path.name)
    state_dtype(folder, dtype)
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
                new = combine(name, first.tensor(name).float(), made[name].float())
                made[name] = new.to(second.type_in(name, dtype))
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


def state_dtype(folder: Path, dtype: torch.dtype) -> None:
    """Make a folder's config.json say which type its weights are stored in, of a model of several parts in each.

    A folder without one, and a configuration that says so already, are left as they are.
    """
    path = folder / "config.json"
    if not path.is_file():
        return
    config = read_json(path)
    stated = _with_dtype({"dtype": None, **config}, str(dtype).removeprefix("torch."))
    if stated != config:
        write_json_atomically(path, stated)


def _with_dtype(config: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a configuration with its own type and those of its parts, under whichever name they stand."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if key in ("dtype", "torch_dtype"):
            found[key] = name
        elif isinstance(value, dict) and key.endswith("_config") and key != "quantization_config":
            found[key] = _with_dtype(value, name)
        else:
            found[key] = value
    return found
