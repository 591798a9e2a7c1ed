"""Find a model by name, load it without pickle, and tell by a hash whether it changed.

A name is `embedded:NAME`, a local folder, or a hub id with an optional revision (`OWNER/NAME@REVISION`).
"""

from __future__ import annotations

import copy
import hashlib
import math
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError, TemplateSyntaxError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.quantizers.auto import AutoHfQuantizer

from lingraft.config.paths import user_path
from lingraft.data.chat_format import chat_format
from lingraft.data.chat_template import FALLBACK_TEMPLATE, compile_bounded, limited
from lingraft.data.example import Message
from lingraft.errors import ModelError, in_one_line
from lingraft.models.embedded import embedded_folder
from lingraft.models.model_names import EMBEDDED_PREFIX, check_hub_id
from lingraft.models.tensor_files import (
    INDEX_FILE,
    SINGLE_FILE,
    CheckpointReader,
    is_adapter,
    missing_weights,
)
from lingraft.models.token_ids import check_token_ids
from lingraft.models.weights import ModelWeights, empty_model, misfit_message
from lingraft.records import hash_file, read_json

_MOST_LAYERS = 10_000  # more than any model has; a model of so many could not even be described in memory
_GENERATION_RANGES = {
    "temperature": (0, math.inf), "top_p": (0, 1), "top_k": (0, math.inf), "min_p": (0, 1), "typical_p": (0, 1),
    "repetition_penalty": (1e-6, 1e6), "max_length": (1, math.inf), "max_new_tokens": (1, math.inf),
    "num_beams": (1, math.inf), "no_repeat_ngram_size": (0, math.inf), "length_penalty": (-1e6, 1e6),
}  # fmt: skip

_CONTENT_FILES = (  # what decides a model's answers; records and logs beside them do not
    "*.safetensors", INDEX_FILE, "config.json", "generation_config.json", "tokenizer*.json", "special_tokens_map.json",
    "added_tokens.json", "vocab*", "merges.txt", "*.model", "chat_template*", "*.py", "adapter_config.json", "*.jinja",
    "additional_chat_templates/*", "*.tiktoken", "tekken.json", "*.spm", "bpe.codes",
)  # fmt: skip
_HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "vocab*")
_HUB_LEFT_OUT = ("*/*", "consolidated*")  # other exports of the same weights


def model_folder(name: str | Path, *, trust_remote_code: bool = False) -> Path:
    """Return the local folder of a model, downloading it from the hub or unpacking it where needed.

    Only configuration, safetensors and tokenizer files are fetched, never a pickle; Python files only with
    `trust_remote_code`.

    Args:
        name: A folder, hub id (`ID@REVISION`) or `embedded:NAME`.
        trust_remote_code: Fetch Python code that the model brings along.

    Raises:
        ModelError: The model cannot be found or reached, or has no safetensors.
    """
    given: object = name
    if not isinstance(given, (str, Path)) or not str(given).strip():
        raise ModelError(f"{given!r:.80}: names no model; give a folder, a hub id or embedded:NAME.")
    name = str(name)
    if name.startswith(EMBEDDED_PREFIX):
        return embedded_folder(name.removeprefix(EMBEDDED_PREFIX))
    folder = local_folder(name, trust_remote_code=trust_remote_code)
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: holds no config.json, so it is not a model's folder.")
    if not any((folder / file).is_file() for file in (SINGLE_FILE, INDEX_FILE)):
        raise ModelError(missing_weights(folder))
    is_adapter(folder)  # refuses what is both
    return folder


def local_folder(name: str, *, trust_remote_code: bool = False) -> Path:
    """Return the folder of a model or adapter, downloading it from the hub where needed; what it holds is not checked.

    Raises:
        ModelError: It is a file, or cannot be found or reached.
    """
    folder = user_path(name)
    if folder.is_file():
        raise ModelError(f"{name}: is a file. Name the folder that holds config.json and safetensors.")
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    check_hub_id(name)
    try:
        fetched = snapshot_download(
            repository,
            revision=revision or None,
            allow_patterns=[*_HUB_FILES, *(["*.py"] if trust_remote_code else [])],
            ignore_patterns=list(_HUB_LEFT_OUT),
        )
    except Exception as error:  # hub, http and cache errors share no base class
        raise ModelError(
            f"{name}: there is no such folder, and it cannot be had from the Hugging Face hub ({in_one_line(error)}). "
            "Check the id and the connection (HF_HUB_OFFLINE must not be set; gated models need a login), or give a "
            "local folder with config.json and safetensors, or `embedded:smollm2-135m`."
        ) from error
    return Path(fetched)


def load_model(
    name_or_folder: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
    with_weights: bool = True,
) -> PreTrainedModel:
    """Load a causal language model on the CPU, in evaluation mode.

    Args:
        name_or_folder: See `model_folder`.
        dtype: Type of the weights in memory, whatever it is on disk.
        trust_remote_code: Run Python code that the model brings along.
        with_weights: False: they stay on the meta device, for who asks about the model and not the model itself.

    Raises:
        ModelError: The model cannot be had, is of an unknown architecture, or weights are missing in its files (which
            transformers would fill with random numbers).
    """
    folder = model_folder(str(name_or_folder), trust_remote_code=trust_remote_code)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are named below
            **({} if with_weights else {"device_map": "meta"}),
        )
    except Exception as error:  # transformers raises whatever the architecture's code raises
        raise ModelError(
            f"{name_or_folder}: cannot be loaded as a causal language model: {_first_line(error)}"
        ) from error
    model, info = loaded
    mismatched = sorted(info["mismatched_keys"])
    if mismatched:
        raise ModelError(f"{name_or_folder}: {misfit_message(mismatched, (), ())}")
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(f"{name_or_folder}: {misfit_message((), missing, sorted(info['unexpected_keys']))}")
    checked: PreTrainedModel = model.eval()
    return checked


def load_for_training(name_or_folder: str | Path, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """Load a model as `load_model` does, but with its parameters in bf16 where its files hold nothing else.

    So they stay mapped from the files: in float32 each would take four bytes, also one that a phase freezes. Training
    widens what trains; buffers are those of float32.

    Raises:
        ModelError: See `load_model`.
    """
    folder = model_folder(str(name_or_folder), trust_remote_code=trust_remote_code)
    files = CheckpointReader(folder)
    if {files.kind(name) for name in files.names} != {torch.bfloat16}:
        return load_model(folder, trust_remote_code=trust_remote_code)
    model = load_model(folder, dtype=torch.bfloat16, trust_remote_code=trust_remote_code)
    rounded = [name for name, buffer in model.named_buffers() if buffer.dtype == torch.bfloat16]
    if rounded:  # numbers that the architecture computes, in the type of its weights
        from accelerate import init_empty_weights

        config = copy.deepcopy(model.config)
        with init_empty_weights(include_buffers=False):
            exact: Any = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                config, dtype=torch.float32, trust_remote_code=trust_remote_code
            )
        for name in rounded:
            place, _, own = name.rpartition(".")
            module = model.get_submodule(place)
            is_stored = own not in module._non_persistent_buffers_set
            values = module._buffers[own] if is_stored else exact.get_buffer(name)
            assert values is not None
            module._buffers[own] = values.float()
    return model


def load_empty_model(name_or_folder: str | Path, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """Return what `load_model` returns but for its weights: parameters are on the meta device, no file of them is read.

    Raises:
        ModelError: The model cannot be built of its config.json.
    """
    folder = model_folder(str(name_or_folder), trust_remote_code=trust_remote_code)
    found = empty_model(folder, trust_remote_code=trust_remote_code)
    if found is None:
        raise ModelError(
            f"{name_or_folder}: the model of its config.json cannot be built without its weights, so it cannot be "
            "trained with --sharded; train it without."
        )
    empty: PreTrainedModel = found.float().eval()
    return empty


def check_model(name: str, folder: Path, *, trust_remote_code: bool = False) -> None:
    """Refuse a model that could not be loaded, or not be trained, without loading it: for before anything is trained.

    Its weights are read once, about a shard at a time.

    Raises:
        ModelError: Its configuration cannot be read or is none of a causal language model, its tokenizer cannot be
            loaded, its chat format fails its test, a file of weights is not whole, its weights are not those of its
            configuration or no finite numbers, or the tokenizer or chat template has a token that the model has no
            embedding for; the message is one line.
    """
    _check_numbers(name, folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise ModelError(f"{name}: its config.json cannot be used: {_first_lines(error)}") from error
    brings_code = trust_remote_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if not brings_code and type(config) not in AutoModelForCausalLM._model_mapping:
        raise ModelError(
            f"{name}: model_type {config.model_type!r} is no causal language model that transformers knows; name a "
            "model that AutoModelForCausalLM can load."
        )
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if isinstance(layers, int) and not 0 < layers <= _MOST_LAYERS:
        raise ModelError(f"{name}: by its config.json it has {layers} layers (num_hidden_layers).")
    weights = ModelWeights(folder, trust_remote_code=trust_remote_code)
    if not (weights.has_model or brings_code):
        try:
            with torch.device("meta"):
                AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
        except Exception as error:  # whatever the architecture's code raises
            raise ModelError(
                f"{name}: the model of its config.json cannot be built: {type(error).__name__}: {_first_lines(error)}"
            ) from error
    quantised = getattr(config, "quantization_config", None)
    if quantised:
        try:
            quantizer: Any = AutoHfQuantizer.from_config(quantised, pre_quantized=True)
            quantizer.validate_environment(device_map=None, weights_only=False)
        except Exception as error:  # each kind needs libraries or devices of its own
            raise ModelError(
                f"{name}: its weights are quantised, and cannot be read here: {_first_line(error)}"
            ) from error
    # Quantised weights are stored under other names and in other shapes.
    problem = None if quantised else weights.misfit()
    problem = problem or weights.not_finite()
    if problem:
        raise ModelError(f"{name}: {problem}")
    tokenizer = tokenizer_in(folder, name, trust_remote_code=trust_remote_code)
    chat = chat_format(tokenizer)
    rows = _stated_rows(config)
    if rows is not None:
        own: Any = tokenizer
        added = tokenizer.added_tokens_decoder
        words = own.backend_tokenizer.get_vocab(with_added_tokens=False).values() if own.is_fast else ()
        highest = max((one for one in words if one not in added), default=0)
        if highest >= rows:  # any text may need it
            raise ModelError(
                f"{name}: its tokenizer has ids up to {highest}, but the model's embedding has {rows} rows: it belongs "
                "to another model."
            )
        written = [*chat.prompt_ids([Message("user", "a")]), *chat.endings]
        check_token_ids(written, rows, tokenizer, f"{name}: its chat template")
        _check_generation(name, folder, rows)


def _check_numbers(name: str, folder: Path) -> None:
    """Refuse a config.json that is no object, or holds what is no number where numbers stand."""
    path = folder / "config.json"
    try:
        found = read_json(path)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{name}: its config.json cannot be used: {in_one_line(error)}") from error
    if not isinstance(found, dict):
        raise ModelError(
            f"{name}: its config.json holds no object with settings, but {type(found).__name__}."
        )
    open_values: list[tuple[str, Any]] = list(found.items())
    for place, value in open_values:  # grows while it runs
        if isinstance(value, float) and math.isnan(value):
            raise ModelError(f"{name}: its config.json says {place}: NaN, which is no number.")
        inner = (
            value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        )
        open_values += [(f"{place}.{key}", one) for key, one in inner]


def _check_generation(name: str, folder: Path, rows: int) -> None:
    """Refuse a generation_config.json by which nothing could be generated, or nothing would end.

    Raises:
        ModelError: With the first such setting.
    """
    path = folder / "generation_config.json"
    if not path.is_file():
        return
    try:
        found = read_json(path)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{name}: its generation_config.json cannot be used: {in_one_line(error)}"
        ) from error
    if not isinstance(found, dict):
        raise ModelError(
            f"{name}: its generation_config.json holds no object with settings, but {type(found).__name__}."
        )
    ends = found.get("eos_token_id")
    for end in ends if isinstance(ends, list) else [] if ends is None else [ends]:
        if type(end) is not int or not 0 <= end < rows:
            raise ModelError(
                f"{name}: its generation_config.json says eos_token_id: {end!r}, but the ids of the model's tokens are "
                f"0 to {rows - 1}."
            )
    for setting, (least, most) in _GENERATION_RANGES.items():
        value = found.get(setting)
        if value is None:
            continue
        if not isinstance(value, (int, float)) or not least <= value <= most:
            raise ModelError(
                f"{name}: its generation_config.json says {setting}: {value!r}, which cannot be used."
            )
    try:
        GenerationConfig.from_dict(found)
    except Exception as error:  # its own checks
        raise ModelError(
            f"{name}: its generation_config.json cannot be used: {in_one_line(error)}"
        ) from error


def stated_rows(folder: Path, *, trust_remote_code: bool = False) -> int | None:
    """Return how many tokens a model has embeddings for by its configuration; None: it does not say."""
    return _stated_rows(AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code))


def _stated_rows(config: Any) -> int | None:
    """Return what loading compares with the embedding's size."""
    return getattr(config.get_text_config(), "vocab_size", None)


def parameter_names(folder: Path, *, trust_remote_code: bool = False) -> tuple[str, ...]:
    """Return the names of a model's parameters in its order, without reading its weights; tied ones stand once.

    Empty where a model's own code cannot be run without memory for its weights.
    """
    model = empty_model(folder, trust_remote_code=trust_remote_code)
    return () if model is None else tuple(name for name, _ in model.named_parameters())


def _first_line(error: Exception) -> str:
    """Return what a library says in its first line; transformers adds paragraphs of advice."""
    return str(error).strip().split("\n", 1)[0].strip()


def _first_lines(error: Exception) -> str:
    """Return the same with what follows a first line that ends in a colon."""
    first = _first_line(error)
    return in_one_line(error) if first.endswith(":") else first


def load_tokenizer(name_or_folder: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer.

    One without a chat template is given `FALLBACK_TEMPLATE`, so that training, generation and the
    harness see the same; one without a pad token pads with its end token (masks never look at ids).

    Raises:
        ModelError: The model cannot be had or has no usable tokenizer.
    """
    folder = model_folder(str(name_or_folder), trust_remote_code=trust_remote_code)
    return tokenizer_in(folder, name_or_folder, trust_remote_code=trust_remote_code)


def tokenizer_in(
    folder: Path, name_or_folder: str | Path, *, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load the tokenizer that lies in a folder, whether or not a whole model does; see `load_tokenizer`.

    Args:
        folder: Where it lies.
        name_or_folder: What the user calls it, for errors.
        trust_remote_code: Run Python code that it brings along.

    Raises:
        ModelError: There is no usable tokenizer.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # tokenizer files are parsed by several libraries, each with its own errors
        raise ModelError(
            f"{name_or_folder}: its tokenizer cannot be loaded: {type(error).__name__}: {in_one_line(error)}"
        ) from error
    longest: Any = tokenizer.model_max_length
    if isinstance(longest, bool) or not isinstance(longest, (int, float)) or not longest > 0:
        raise ModelError(
            f"{name_or_folder}: its tokenizer_config.json says model_max_length: {longest!r}, which is no number of "
            "tokens."
        )
    if tokenizer.chat_template is None:
        tokenizer.chat_template = FALLBACK_TEMPLATE
    if isinstance(tokenizer.chat_template, str):
        try:  # one that is not valid Jinja would refuse every row, long after the model was found
            compile_bounded(limited(tokenizer.chat_template))
        except TemplateSyntaxError as error:
            raise ModelError(
                f"{name_or_folder}: its chat template is broken at line {error.lineno}: {error.message}"
            ) from error
        except (TemplateError, RecursionError, MemoryError, ValueError, OverflowError) as error:
            raise ModelError(
                f"{name_or_folder}: its chat template cannot be used: {in_one_line(error)}"
            ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def content_files(folder: Path) -> list[Path]:
    """Return the files of a folder that decide a model's answers, sorted: weights, configuration and tokenizer."""
    found = {path for pattern in _CONTENT_FILES for path in folder.glob(pattern) if path.is_file()}
    return sorted(found)


def model_content_hash(folder: Path) -> str:
    """Return the SHA-256 over a model's weights, configuration and tokenizer: names and bytes, in sorted order.

    Files are read in blocks. Other files in the folder (logs, records, a README) do not count.
    """
    digest = hashlib.sha256()
    for path in content_files(folder):
        digest.update(f"{path.name}\0{hash_file(path)}\n".encode())
    return digest.hexdigest()
