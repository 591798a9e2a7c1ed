"""A model as an ordinary Hugging Face folder: what transformers, vLLM or llama.cpp's converter read, without lingraft.

The folder is whole or not there; see `adapt.folder`.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedConfig

from lingraft.adapt.folder import new_folder
from lingraft.config.load import load_study
from lingraft.config.paths import user_path
from lingraft.data.chat_template import FALLBACK_TEMPLATE
from lingraft.errors import ModelError, in_one_line
from lingraft.models.adapters import AdaptedReader
from lingraft.models.checkpoints import WEIGHT_TYPES, WeightType, state_dtype
from lingraft.models.loading import content_files, model_folder
from lingraft.models.model_names import EMBEDDED_PREFIX
from lingraft.models.shards import write_shards
from lingraft.models.tensor_files import INDEX_FILE, CheckpointReader, is_adapter
from lingraft.models.weights import ModelWeights
from lingraft.records import read_json
from lingraft.stage import CHECKPOINT, RECORD
from lingraft.study.result import STUDY

SHARD_BYTES = 5_000_000_000
_PROCESSORS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
_TEMPLATE = "chat_template.jinja"
_NAMES = {dtype: name for name, dtype in WEIGHT_TYPES.items()}


@dataclass(frozen=True)
class Written:
    """A model's folder.

    Attributes:
        dtype: What its weights are stored in.
        bytes: Of its weights.
        own_template: Whether its chat template is the source's own; else it is lingraft's, which its tokenizer had
            none of.
    """

    dtype: WeightType
    bytes: int
    own_template: bool


def write_model(
    source: Path,
    folder: Path,
    *,
    dtype: WeightType | None = None,
    shard_bytes: int = SHARD_BYTES,
    trust_remote_code: bool = False,
) -> Written:
    """Write a model's folder anew, as others publish theirs: weights, configuration, tokenizer and chat template.

    Weights are read and written piece by piece. Code that the model brings along is copied, and run only on request.

    Args:
        source: A model's folder, such as a stage's checkpoint.
        folder: Where it goes: absent, or empty.
        dtype: What the weights are rounded to; None: what `type_of_start` says.
        shard_bytes: Most bytes of a file of weights.
        trust_remote_code: Run Python code that the model brings along, to know the names of its parameters.

    Raises:
        ConfigError: The folder is not empty.
        ModelError: The source is no whole model, or is quantised.
        DiskError: It cannot be written; nothing is left.
    """
    if is_adapter(source):
        raise ModelError(
            f"{source}: is a LoRA adapter, and no whole model; export the model it was merged into."
        )
    config = _config_of(source)
    if config.get("quantization_config"):
        raise ModelError(
            f"{source}: its weights are quantised, so they cannot be rounded; publish it as it is."
        )
    dtype = dtype or type_of_start(source)
    weights = ModelWeights(source, trust_remote_code=trust_remote_code)
    with new_folder(folder) as own:
        has_template = _copy_around(source, own, config, trust_remote_code=trust_remote_code)
        state_dtype(own, WEIGHT_TYPES[dtype])
        total = write_shards(weights, own, WEIGHT_TYPES[dtype], shard_bytes)
    return Written(dtype, total, has_template)


def _config_of(source: Path) -> dict[str, Any]:
    try:
        config = read_json(source / "config.json")
    except (OSError, ValueError) as error:
        raise ModelError(f"{source}: its config.json cannot be used: {in_one_line(error)}") from None
    if not isinstance(config, dict):
        raise ModelError(f"{source}: its config.json holds no object with settings.")
    return config


def _copy_around(
    source: Path, folder: Path, config: dict[str, Any], *, trust_remote_code: bool = False
) -> bool:
    """Copy all that a model's folder holds beside its weights; return whether its tokenizer has a template."""
    names = [*content_files(source), *(source / name for name in _PROCESSORS if (source / name).is_file())]
    for path in names:
        if path.suffix == ".safetensors" or path.name in (INDEX_FILE, "adapter_config.json"):
            continue
        place = folder / path.relative_to(source)
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, place)
    for reference in (config.get("auto_map") or {}).values():
        for one in reference if isinstance(reference, list) else [reference]:
            module = str(one).rpartition(".")[0]
            if one and "--" not in str(one) and not (source / f"{module}.py").is_file():
                raise ModelError(
                    f"{source}: its config.json names code in {module}.py, which is not there, so nobody could load "
                    "the model; copy that file there from the model that it was made of."
                )
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except Exception as error:  # tokenizer files are parsed by several libraries, each with its own errors
        raise ModelError(f"{source}: its tokenizer cannot be loaded: {in_one_line(error)}") from error
    if tokenizer.chat_template is None:  # what it was trained and scored with
        (folder / _TEMPLATE).write_text(FALLBACK_TEMPLATE, encoding="utf-8")
    return tokenizer.chat_template is not None


def type_of_start(source: Path) -> WeightType:
    """Return the type of the model that a checkpoint was made of, which a study stores in float32 whatever it was.

    Of a study's checkpoint it is that of the model that the study starts from; of any other model its own.

    Raises:
        ModelError: The model that the study starts from cannot be had any more.
    """
    stage = source.absolute().parent
    run = stage.parent.parent
    if source.name != CHECKPOINT or not (stage / RECORD).is_file() or not (run / STUDY).is_file():
        return stored_type(source)
    study = load_study(run / STUDY)
    name = study.phases[0].checkpoint or study.model
    assert name is not None  # a study has one of the two
    return type_of(name)


def type_of(name: str) -> WeightType:
    """Return the type that a model of a name is stored in; of one on the hub its configuration alone is fetched.

    Raises:
        ModelError: It cannot be had.
    """
    try:
        if name.startswith(EMBEDDED_PREFIX) or user_path(name).is_dir():
            return stored_type(model_folder(name))
        repository, _, revision = name.partition("@")
        config, _ = PreTrainedConfig.get_config_dict(repository, revision=revision or None)
    except Exception as error:  # hub, http and cache errors share no base class
        raise ModelError(
            f"{name}: cannot be found any more, so its type is not known ({in_one_line(error)}). Say what the weights "
            "are stored in: --dtype bf16, float16 or float32."
        ) from None
    stated = config.get("dtype") or config.get("torch_dtype") or "float32"
    found = getattr(torch, str(stated).removeprefix("torch."), None)
    return _NAMES.get(found, "float32") if isinstance(found, torch.dtype) else "float32"


def stored_type(folder: Path) -> WeightType:
    """Return the type that most of a model's weights are stored in; float32 where it is none that is written."""
    reader = CheckpointReader(folder)
    elements: Counter[torch.dtype] = Counter()
    for name in reader.names:
        elements[reader.kind(name)] += prod(reader.shape(name))
    return _NAMES.get(elements.most_common(1)[0][0], "float32") if elements else "float32"


def write_adapter(source: Path, folder: Path, base: str | None = None) -> None:
    """Write a LoRA adapter that training kept as a folder of its own, with the tokenizer of its merged model.

    Args:
        source: What `lora: {keep_adapter: true}` keeps, beside the merged checkpoint.
        folder: Where it goes: absent, or empty.
        base: What the adapter names as its base, such as a hub id; None: the folder that it was trained on.

    Raises:
        ConfigError: The folder is not empty.
        ModelError: The source is no adapter, or its base cannot be had.
        DiskError: It cannot be written; nothing is left.
    """
    AdaptedReader(source)  # refuses what does not fit
    merged = source.parent / CHECKPOINT
    with new_folder(folder) as own:
        for path in sorted(source.iterdir()):
            if path.is_file():
                shutil.copyfile(path, own / path.name)
        if base is not None:
            path = own / "adapter_config.json"
            path.write_text(
                json.dumps(read_json(path) | {"base_model_name_or_path": base}, indent=2) + "\n",
                encoding="utf-8",
            )
        for path in content_files(merged) if merged.is_dir() else ():
            if path.suffix not in (".safetensors", ".py") and "config.json" != path.name != INDEX_FILE:
                place = own / path.relative_to(merged)
                place.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, place)
