"""Find a model by name, load it without pickle, and tell by a hash whether it changed.

A name is `embedded:NAME`, a local folder, or a hub id with an optional revision (`OWNER/NAME@REVISION`).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateSyntaxError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lingraft.config.paths import user_path
from lingraft.data.chat_format import chat_format
from lingraft.data.chat_template import FALLBACK_TEMPLATE
from lingraft.data.example import Message
from lingraft.errors import ModelError, in_one_line
from lingraft.models.embedded import embedded_folder
from lingraft.models.model_names import EMBEDDED_PREFIX, check_hub_id
from lingraft.models.tensor_files import INDEX_FILE, SINGLE_FILE, CheckpointReader, missing_weights
from lingraft.models.token_ids import check_token_ids
from lingraft.models.weights import WRAPPED_ADVICE, empty_model
from lingraft.records import hash_file

_CONTENT_FILES = (  # what decides a model's answers; records and logs beside them do not
    "*.safetensors", INDEX_FILE, "config.json", "generation_config.json", "tokenizer*.json", "special_tokens_map.json",
    "added_tokens.json", "vocab*", "merges.txt", "*.model", "chat_template*", "*.py", "adapter_config.json", "*.jinja",
    "additional_chat_templates/*", "*.tiktoken", "tekken.json", "*.spm", "bpe.codes",
)  # fmt: skip
_HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "vocab*")
_HUB_LEFT_OUT = ("*/*", "consolidated*")  # other exports of the same weights


def model_folder(name: str, *, trust_remote_code: bool = False) -> Path:
    """Return the local folder of a model, downloading it from the hub or unpacking it where needed.

    Only configuration, safetensors and tokenizer files are fetched, never a pickle; Python files only with
    `trust_remote_code`.

    Raises:
        ModelError: The model cannot be found or reached, or has no safetensors.
    """
    if name.startswith(EMBEDDED_PREFIX):
        return embedded_folder(name.removeprefix(EMBEDDED_PREFIX))
    folder = local_folder(name, trust_remote_code=trust_remote_code)
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: holds no config.json, so it is not a model's folder.")
    if not any((folder / file).is_file() for file in (SINGLE_FILE, INDEX_FILE)):
        raise ModelError(missing_weights(folder))
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
    name_or_folder: str | Path, *, dtype: torch.dtype = torch.float32, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Load a causal language model on the CPU, in evaluation mode.

    Args:
        name_or_folder: See `model_folder`.
        dtype: Type of the weights in memory, whatever it is on disk.
        trust_remote_code: Run Python code that the model brings along.

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
        )
    except Exception as error:  # transformers raises whatever the architecture's code raises
        raise ModelError(
            f"{name_or_folder}: cannot be loaded as a causal language model: {_first_line(error)}"
        ) from error
    model, info = loaded
    mismatched = sorted(info["mismatched_keys"])
    if mismatched:
        name, stored, wanted = mismatched[0]
        raise ModelError(
            f"{name_or_folder}: {len(mismatched)} weights have another size than config.json says; the first is "
            f"{name}: {list(stored)} in its file, {list(wanted)} by config.json."
        )
    lacking = sorted(info["missing_keys"])
    if lacking:
        listed = ", ".join(lacking[:3]) + (", ..." if len(lacking) > 3 else "")
        message = f"{name_or_folder}: {len(lacking)} weights are not in its files ({listed})"
        others = sorted(info["unexpected_keys"])
        if others:
            message += f", which hold {len(others)} that no parameter is called, such as {others[0]}. {WRAPPED_ADVICE}"
        raise ModelError(message)
    checked: PreTrainedModel = model.eval()
    return checked


def check_model(name: str, folder: Path, *, trust_remote_code: bool = False) -> None:
    """Refuse a model that could not be loaded, without loading it: for before anything is trained.

    Raises:
        ModelError: Its configuration cannot be read or is none of a causal language model, its tokenizer cannot be
            loaded, its chat format fails its test, a file of weights is not whole, or the chat template writes a token
            that the model has no embedding for; the message is one line.
    """
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise ModelError(f"{name}: its config.json cannot be used: {_first_line(error)}") from error
    brings_code = trust_remote_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if not brings_code and type(config) not in AutoModelForCausalLM._model_mapping:
        raise ModelError(
            f"{name}: model_type {config.model_type!r} is no causal language model that transformers knows; name a "
            "model that AutoModelForCausalLM can load."
        )
    CheckpointReader(folder)
    tokenizer = tokenizer_in(folder, name, trust_remote_code=trust_remote_code)
    chat = chat_format(tokenizer)
    rows = _stated_rows(config)
    if rows is not None:
        written = [*chat.prompt_ids([Message("user", "a")]), *chat.endings]
        check_token_ids(written, rows, tokenizer, f"{name}: its chat template")


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
    if tokenizer.chat_template is None:
        tokenizer.chat_template = FALLBACK_TEMPLATE
    try:  # a template that is not valid Jinja would refuse every row, long after the model was found
        tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    except TemplateSyntaxError as error:
        raise ModelError(
            f"{name_or_folder}: its chat template is broken at line {error.lineno}: {error.message}"
        ) from error
    except Exception:  # it refuses this conversation; what it makes of the rows is reported with them
        pass
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
