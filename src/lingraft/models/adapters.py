"""LoRA adapters on disk: the weights that they make of their base model, piece by piece or merged into it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lingraft.config.paths import user_path
from lingraft.data.chat_format import chat_format
from lingraft.errors import ModelError, in_one_line
from lingraft.models.layers import layer_of
from lingraft.models.loading import (
    check_model,
    content_files,
    load_model,
    load_tokenizer,
    local_folder,
    model_content_hash,
    model_folder,
    tokenizer_in,
)
from lingraft.models.model_names import EMBEDDED_PREFIX
from lingraft.models.tensor_files import ADAPTER_CONFIG, WeightReader, is_adapter, repeats
from lingraft.models.weights import ModelWeights
from lingraft.records import fingerprint_of, read_json

_ADAPTER_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_WRAPPED = "base_layer"
_FACTORS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B")
# What makes the effective weight something else than W + scale * B A.
_REFUSED = (
    "use_dora", "lora_bias", "use_qalora", "use_bdlora", "kasa_config", "monteclora_config", "arrow_config",
    "alora_invocation_tokens", "layer_replication", "trainable_token_indices",
)  # fmt: skip
_CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # values of init_lora_weights begin so


def open_weights(name: str, adapter_base: str | None = None) -> WeightReader:
    """Return the tensors of a model or LoRA adapter: a folder, hub id, or `embedded:NAME`.

    Args:
        name: The model or adapter.
        adapter_base: The model that an adapter belongs to; None: the one that it names.

    Raises:
        ModelError: The model cannot be had or is no checkpoint, or the adapter is not plain LoRA.
    """
    if not name.startswith(EMBEDDED_PREFIX):
        folder = local_folder(name)
        if is_adapter(folder):
            return AdaptedReader(folder, adapter_base)
    return ModelWeights(model_folder(name))


def load_merged(
    name: str,
    *,
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
    with_weights: bool = True,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model to run it, with its tokenizer: a folder, hub id, `embedded:NAME`, or the folder of a LoRA adapter.

    An adapter is merged into its base in float32. Its tokenizer is the one beside it, else the base's. Without weights
    (see `load_model`) its base has the rows that the adapter gives it.

    Raises:
        ModelError: The model or the adapter's base cannot be had, or the adapter is not plain LoRA or does not fit.
    """
    folder = user_path(name)
    if not is_adapter(folder):
        model = load_model(name, dtype=dtype, trust_remote_code=trust_remote_code, with_weights=with_weights)
        return model, load_tokenizer(name, trust_remote_code=trust_remote_code)
    adapted = AdaptedReader(folder, trust_remote_code=trust_remote_code)  # refuses what does not fit
    base = adapted.base_folder
    if with_weights:
        model = _merge(load_model(base, trust_remote_code=trust_remote_code), adapted, dtype)
    else:
        model = load_model(base, dtype=dtype, trust_remote_code=trust_remote_code, with_weights=False)
        if adapted.vocabulary is not None:
            model.resize_token_embeddings(adapted.vocabulary, mean_resizing=False)
    owner = folder if (folder / "tokenizer_config.json").is_file() else base
    return model, tokenizer_in(owner, owner, trust_remote_code=trust_remote_code)


def _merge(base: PreTrainedModel, adapter: AdaptedReader, dtype: torch.dtype) -> PreTrainedModel:
    from peft import PeftModel

    folder = adapter.folder
    if adapter.vocabulary is not None:  # all rows are the adapter's own
        base.resize_token_embeddings(adapter.vocabulary, mean_resizing=False)
    with warnings.catch_warnings():
        # PEFT reads a name that transformers 5 has renamed; it means nothing to a user of lingraft.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        # Which the adapter means, and the configuration says.
        warnings.filterwarnings("ignore", message="Input and output embeddings are no longer tied")
        warnings.filterwarnings("ignore", message="Model with `tie_word_embeddings=True`")
        try:
            wrapped: Any = PeftModel.from_pretrained(base, folder)
            first, last = wrapped.get_input_embeddings(), wrapped.get_output_embeddings()
            if any(hasattr(end, "base_layer") for end in (first, last)):  # the update is of one of them alone
                layer = getattr(last, "base_layer", last)
                layer.weight = torch.nn.Parameter(layer.weight.detach().clone())
            merged: Any = wrapped.merge_and_unload()
        except (RuntimeError, ValueError, KeyError) as error:
            raise ModelError(f"{folder}: cannot be merged into its base: {in_one_line(error)}") from error
    first, last = merged.get_input_embeddings(), merged.get_output_embeddings()
    config = merged.config.get_text_config()
    if first.weight is not last.weight and hasattr(config, "tie_word_embeddings"):
        if config.tie_word_embeddings and torch.equal(first.weight, last.weight):
            last.weight = first.weight
        else:
            config.tie_word_embeddings = merged.config.tie_word_embeddings = False
            merged.all_tied_weights_keys = {}
    checked: PreTrainedModel = merged.to(dtype).eval()
    return checked


def merged_content_hash(name: str) -> str:
    """Return what tells whether a model changed: `model_content_hash`, of an adapter its base's and its own.

    An adapter's own covers its weights, its configuration (alpha, modules) and the tokenizer beside it.
    """
    folder = user_path(name)
    if not is_adapter(folder):
        return model_content_hash(model_folder(name))
    base = AdaptedReader(folder).base_folder
    return fingerprint_of([model_content_hash(base), model_content_hash(folder)])


def deciding_files(folder: Path) -> list[Path]:
    """Return the files that decide the answers of the model or adapter in a folder, an adapter's base included."""
    own = content_files(folder)
    return (
        [*own, *content_files(AdaptedReader(folder).base_folder)] if folder / ADAPTER_CONFIG in own else own
    )


def check_adapter(folder: Path, *, trust_remote_code: bool = False) -> None:
    """Refuse an adapter whose model could not be loaded or trained; see `check_model`.

    Raises:
        ModelError: It does not fit its base, one of them holds what is no finite number, or the base cannot be loaded.
    """
    adapted = AdaptedReader(folder, trust_remote_code=trust_remote_code)
    adapted.check_finite()
    check_model(str(adapted.base_folder), adapted.base_folder, trust_remote_code=trust_remote_code)
    if (folder / "tokenizer_config.json").is_file():
        chat_format(tokenizer_in(folder, folder, trust_remote_code=trust_remote_code))


class AdaptedReader:
    """The effective weights of a model with a LoRA adapter: W + scale * B A, computed when they are asked for.

    Memory: the adapter's factors, and one piece of the base at a time.

    Args:
        folder: Holds adapter_config.json and adapter_model.safetensors, as PEFT saves them.
        base: The base model; None: the one that adapter_config.json names.
        trust_remote_code: Fetch and run Python code that the base brings along.

    Raises:
        ModelError: The adapter is of another kind, does not fit its base, or one of them cannot be had.
    """

    def __init__(self, folder: Path, base: str | None = None, *, trust_remote_code: bool = False) -> None:
        self._folder = folder
        self._config = _read_config(folder)
        named = base or self._config.base
        if not named:
            raise ModelError(
                f"{folder}: its {ADAPTER_CONFIG} names no base model; give it with --adapter-base."
            )
        base_folder = model_folder(str(named), trust_remote_code=trust_remote_code)
        self._base = ModelWeights(base_folder, trust_remote_code=trust_remote_code)
        self._stored = _Stored(folder)
        self._check_fit()
        # What lies under an adapted embedding is its tied head's weight too, and the other way round.
        whole = self._stored.whole
        for name, own in self._base.tied.items():
            for one, other in ((name, own), (own, name)):
                if one in self._stored.under_factors and other not in whole:
                    whole[other] = whole[one]
        self.vocabulary = self._resized()
        """Rows of the embeddings where the adapter has resized them; None: as many as the base."""
        changed = {*whole, *(f"{module}.weight" for module in self._stored.factors)}
        apart = [
            name
            for name, own in self._base.tied.items()
            if changed & {name, own} and not repeats(self, name, own)
        ]
        self.names: tuple[str, ...] = tuple(sorted({*self._base.names, *apart}))
        """Names of the parameters, of the base's tied ones both where the adapter changes one of them alone."""

    @property
    def folder(self) -> Path:
        """Where the adapter lies."""
        return self._folder

    @property
    def base_folder(self) -> Path:
        """Where the base model lies."""
        return self._base.folder

    @property
    def architecture(self) -> str | None:
        """The base's."""
        return self._base.architecture

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return tuple(self._stored.whole[name].shape) if name in self._stored.whole else self._base.shape(name)

    def pieces(self, name: str, elements: int, rows: int | None = None) -> Iterator[torch.Tensor]:
        """Yield a tensor's rows as `CheckpointReader.pieces` does; an adapted one in float32."""
        from peft.utils.other import get_pattern_key

        factors = self._stored.factors.get(name.removesuffix(".weight")) or self._stored.stacks.get(name)
        if factors is None:
            yield from self._without_factors(name, elements, rows)
            return
        left, right = (
            factors  # [out, r] and [r, in]; of a stack of experts [experts, out, r] and [experts, r, in]
        )
        alphas = self._config.alphas
        alpha = alphas.get(get_pattern_key(alphas.keys(), name.removesuffix(".weight")), self._config.alpha)
        rank = left.shape[-1]
        left = left * (float(alpha) / (rank**0.5 if self._config.rank_stabilised else rank))
        row = 0
        for piece in self._without_factors(name, elements, rows):
            if left.dim() == 3:
                own = piece.view(-1, left.shape[1], right.shape[2]).float()
                yield (own + left[row : row + len(own)] @ right[row : row + len(own)]).view(-1)
            else:
                own = piece.view(-1, right.shape[1]).float()
                yield (own + left[row : row + len(own)] @ right).view(-1)
            row += len(own)

    def check_finite(self) -> None:
        """Refuse an adapter that holds what is no finite number.

        Raises:
            ModelError: With its first such weight.
        """
        pairs = {**self._stored.factors, **self._stored.stacks}
        factors = [(module, one) for module, pair in pairs.items() for one in pair]
        tensors = [*factors, *self._stored.whole.items()]
        bad = next((name for name, one in tensors if not one.isfinite().all()), None)
        if bad is not None or not math.isfinite(self._config.alpha):
            raise ModelError(
                f"{self.folder}: its {bad or 'lora_alpha'} is no finite number (NaN, inf); take an adapter from "
                "before that arose."
            )

    def _without_factors(self, name: str, elements: int, rows: int | None) -> Iterator[torch.Tensor]:
        stored = self._stored.whole.get(name)
        if stored is None:
            yield from self._base.pieces(name, elements, rows)
            return
        width = stored[0].numel()
        flat = stored.reshape(-1)[: None if rows is None else rows * width]
        yield from torch.split(flat, max(1, elements // width) * width)

    def _check_fit(self) -> None:
        for module, (stored_left, stored_right) in list(self._stored.factors.items()):
            left, right = stored_left, stored_right
            name = f"{module}.weight"
            if name not in self._base and self._take_stack(module):
                continue
            if name not in self._base:
                raise ModelError(f"{self.folder}: adapts {name}, which {self._base.folder} does not have.")
            if self._base.is_turned(name) or module in self._stored.embeddings:
                left, right = right.T, left.T  # the weight is stored as [in, out]
                self._stored.factors[module] = (left, right)
            if self.shape(name) != (left.shape[0], right.shape[1]):
                raise ModelError(
                    f"{self.folder}: its update of {name} is {[left.shape[0], right.shape[1]]}, the weight in "
                    f"{self._base.folder} is {list(self.shape(name))}."
                )
        for name, tensor in self._stored.whole.items():
            if name not in self._base:
                raise ModelError(f"{self.folder}: holds {name}, which {self._base.folder} does not have.")
            if tuple(tensor.shape) != self._base.shape(name) and not self._is_resized(name):
                raise ModelError(
                    f"{self.folder}: its {name} is {list(tensor.shape)}, that of {self._base.folder} is "
                    f"{list(self._base.shape(name))}: it belongs to another base. Give it with --adapter-base."
                )

    def _take_stack(self, module: str) -> bool:
        """Turn factors of a mixture's experts, which lie in one parameter, into those of each expert, if they fit one.

        PEFT writes them as [r * experts, in] and [out, experts of r], and which of a module's parameters they are of
        only by how deep its wrappers are nested.

        Raises:
            ModelError: They fit several.
        """
        left, right = self._stored.factors[module]
        owner = module.replace(f".{_WRAPPED}", "")
        fits: dict[str, bool] = {}  # by name, whether the experts are stored as [in, out]
        for name in self._base.names:
            shape = self._base.shape(name)
            if name.rpartition(".")[0] != owner or len(shape) != 3 or right.shape[0] % shape[0]:
                continue
            # A square expert is taken as [out, in], as nearly all architectures store it.
            if right.shape[0] == left.shape[1] and sorted(shape[1:]) == sorted((len(left), right.shape[1])):
                fits[name] = shape[1:] != (len(left), right.shape[1])
        if len(fits) > 1:
            raise ModelError(
                f"{self.folder}: adapts one of {', '.join(fits)}, which have one shape, so it is not clear which; "
                "merge it where it was trained."
            )
        for name, is_turned in fits.items():
            experts = self._base.shape(name)[0]
            of_in = right.reshape(experts, -1, right.shape[1])  # [experts, r, in]
            of_out = left.reshape(len(left), -1, experts).permute(2, 0, 1)  # [experts, out, r]
            self._stored.stacks[name] = (of_in.mT, of_out.mT) if is_turned else (of_out, of_in)
            del self._stored.factors[module]
        return bool(fits)

    def _is_resized(self, name: str) -> bool:
        """Whether a tensor that is saved whole differs from the base's in its number of rows alone: a vocabulary."""
        own, base = tuple(self._stored.whole[name].shape), self._base.shape(name)
        return (
            layer_of(name) is None
            and len(own) == len(base) == 2
            and own[0] != base[0]
            and own[1:] == base[1:]
        )

    def _resized(self) -> int | None:
        resized = {name: len(tensor) for name, tensor in self._stored.whole.items() if self._is_resized(name)}
        if not resized:
            return None
        # What else has a row for each token, and is no tied name of what the adapter brings along.
        rows = self._base.shape(next(iter(resized)))[0]
        brought = {self._base.tied.get(name, name) for name in resized}
        left = [
            name
            for name in self._base.names
            if layer_of(name) is None and len(self._base.shape(name)) == 2
            if self._base.shape(name)[0] == rows and name not in brought
        ]
        if left or len(set(resized.values())) > 1:
            said = ", ".join(f"{name} with {count} rows" for name, count in sorted(resized.items()))
            raise ModelError(
                f"{self.folder}: was trained on a resized vocabulary ({said}; {self._base.folder} has {rows}), but "
                f"does not hold {left[0] if left else 'one number of rows'}, so the whole model cannot be made. Save "
                "the adapter with save_embedding_layers=True, or merge it where it was trained."
            )
        return next(iter(resized.values()))


class _Stored:
    """An adapter's tensors: factors by module, [out, r] and [r, in] in float32, and tensors that are saved whole."""

    def __init__(self, folder: Path) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = folder / _ADAPTER_WEIGHTS
        if not path.is_file():
            raise ModelError(f"{folder}: holds no {_ADAPTER_WEIGHTS}; pickled adapters are not read.")
        try:
            tensors = load_file(path)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path}: damaged ({error}). Fetch the adapter again.") from error
        self.whole: dict[str, torch.Tensor] = {}
        self.embeddings: set[str] = set()
        self.under_factors: set[str] = set()  # of the whole ones, those that the factors are added to
        found: dict[str, dict[str, torch.Tensor]] = {}
        for key, tensor in tensors.items():
            written = name = key.removeprefix(_PREFIX)
            if ".original_module." in name:  # what a module saved whole was before
                continue
            # PEFT saves adapted and resized embeddings whole as well.
            name = name.replace(".base_layer.", ".").replace(".modules_to_save.", ".")
            factor = next((part for part in name.split(".") if part in _FACTORS), None)
            if factor is None:
                self.whole[name] = tensor
                if ".base_layer." in key:
                    self.under_factors.add(name)
                continue
            # Wrapped twice, as a stack of experts is, one module has several pairs of factors.
            module = written[: written.index(f".{factor}")].replace(".modules_to_save", "")
            found.setdefault(module, {})[factor[-1]] = tensor.float()
            if "embedding" in factor:
                self.embeddings.add(module)
        incomplete = sorted(module for module, pair in found.items() if len(pair) != 2)
        if incomplete:
            raise ModelError(f"{path}: {incomplete[0]} has only one of its two factors.")
        self.factors = {}
        for module, pair in found.items():
            plain = module.replace(f".{_WRAPPED}", "")
            self.factors[module if plain in found else plain] = (pair["B"], pair["A"])
        self.stacks: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}  # by parameter, of a mixture's experts


@dataclass(frozen=True, slots=True)
class _LoraConfig:
    """What of an adapter's configuration decides its weights; `alphas` are those of modules, by pattern."""

    base: str | None
    alpha: float
    alphas: dict[str, float]
    rank_stabilised: bool


def _read_config(folder: Path) -> _LoraConfig:
    """Return a plain LoRA's configuration; refuse any other."""
    try:
        config = read_json(folder / ADAPTER_CONFIG)
        kind = config["peft_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{folder}: its {ADAPTER_CONFIG} cannot be used: {type(error).__name__}: {error}"
        ) from error
    if kind != "LORA":
        raise ModelError(
            f"{folder}: is an adapter of type {kind!r}; only LORA is read. Merge it into its base first."
        )
    refused = [name for name in _REFUSED if config.get(name)]
    if refused:
        raise ModelError(
            f"{folder}: uses {refused[0]}, so it is no plain LoRA. Merge it into its base first."
        )
    begun = config.get("init_lora_weights")
    if isinstance(begun, str) and begun.lower().startswith(_CHANGES_THE_BASE):
        raise ModelError(
            f"{folder}: was trained with init_lora_weights {begun!r}, which changed the base's weights too, and they "
            "are not in it. Merge it where it was trained, or convert it there with "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...)."
        )
    return _LoraConfig(
        base=config.get("base_model_name_or_path"),
        alpha=float(config.get("lora_alpha", 8)),  # PEFT's default
        alphas=config.get("alpha_pattern") or {},
        rank_stabilised=bool(config.get("use_rslora")),
    )
