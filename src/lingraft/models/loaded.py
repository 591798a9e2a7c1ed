"""Models that are in memory already: what public functions take beside a folder, a hub id and `embedded:NAME`."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lingraft.config.paths import user_path
from lingraft.errors import ModelError
from lingraft.models.adapters import open_weights
from lingraft.models.loading import load_tokenizer
from lingraft.models.model_names import model_problem
from lingraft.models.tensor_files import WeightReader, is_adapter
from lingraft.models.weights import ModelWeights

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_KINDS = "a folder, a hub id, embedded:NAME, or a causal language model of transformers"


def name_of(model: object) -> str | None:
    """Return the name that stands for a model; None: it is in memory.

    Raises:
        ModelError: There can be no model of that name.
    """
    if not isinstance(model, (str, Path)):
        return None
    name = str(model)
    problem = model_problem(name) if name.strip() else f"{name!r}: names no model; give {_KINDS}."
    if problem is not None:
        raise ModelError(problem)
    return name


def model_in_memory(model: object) -> PreTrainedModel:
    """Return the model of transformers itself, also out of the wrapper of torch.compile or PEFT.

    Raises:
        ModelError: It is no such model, or its weights are not in memory.
    """
    from peft import PeftModel
    from transformers import PreTrainedModel

    inner = getattr(model, "_orig_mod", model)
    if isinstance(inner, PeftModel):
        inner = inner.get_base_model()
    if not isinstance(inner, PreTrainedModel):
        shown = "None" if model is None else f"{type(model).__name__} {str(model)[:40]!r}"
        if isinstance(model, (list, tuple)):
            shown = f"a {type(model).__name__} of {len(model)}"
        raise ModelError(f"{shown}: is no model; give {_KINDS}.")
    check_has_values(inner)
    return inner


def check_is_causal(model: PreTrainedModel) -> None:
    """Refuse a model that is not asked as a causal language model: one without a head, or with an encoder.

    Raises:
        ModelError: Saying how to load it.
    """
    if getattr(model.config, "is_encoder_decoder", False) or not model.can_generate():
        raise ModelError(
            f"{display_name(model)}: a {type(model).__name__} is no causal language model, which generates by itself; "
            "load the model by AutoModelForCausalLM.from_pretrained."
        )


def check_has_values(model: torch.nn.Module) -> None:
    """Refuse a model whose weights are not in memory.

    Raises:
        ModelError: Naming the first such weight.
    """
    meta = next((name for name, own in model.named_parameters() if own.is_meta), None)
    if meta is not None:
        raise ModelError(
            f"{display_name(model)}: its {meta} is on the meta device, so it has no values; load the weights "
            "(from_pretrained without a meta device, or a device_map that leaves nothing on disk)."
        )


def display_name(model: object) -> str:
    """Return what a model is called: its name, of one in memory where it was loaded from, else its class."""
    if isinstance(model, (str, Path)):
        return str(model)
    return str(getattr(model, "name_or_path", "") or type(model).__name__)


def tokenizer_for(
    model: PreTrainedModel, tokenizer: object = None, *, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model that is in memory.

    Args:
        model: The model.
        tokenizer: One, or where it lies; None: where the model was loaded from.
        trust_remote_code: Run Python code that it brings along.

    Raises:
        ModelError: It is no tokenizer, or none is known.
    """
    from transformers import PreTrainedTokenizerBase

    if isinstance(tokenizer, PreTrainedTokenizerBase):
        if tokenizer.pad_token is not None:
            return tokenizer
        padded = copy.deepcopy(tokenizer)  # the user's stays as it is
        padded.pad_token = padded.eos_token
        return padded
    if isinstance(tokenizer, (str, Path)):
        return load_tokenizer(tokenizer, trust_remote_code=trust_remote_code)
    if tokenizer is not None:
        raise ModelError(
            f"tokenizer: {type(tokenizer).__name__} is no tokenizer of transformers; give what "
            "AutoTokenizer.from_pretrained returns, or the folder that it lies in."
        )
    where = getattr(model, "name_or_path", "")
    if not where:
        raise ModelError(
            f"{display_name(model)}: does not say where it was loaded from, so its tokenizer is unknown; give it "
            "(tokenizer=)."
        )
    try:
        return load_tokenizer(where, trust_remote_code=trust_remote_code)
    except ModelError as error:
        raise ModelError(
            f"no tokenizer was given, and none is where the model was loaded from: {error}"
        ) from error


@contextmanager
def in_evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Switch dropout and the like off inside, and leave every module as it was."""
    training = [module for module in model.modules() if module.training]
    model.train(mode=False)
    try:
        yield
    finally:
        for module in training:
            module.training = True


def weights_of(model: object) -> WeightReader:
    """Return the weights of a model: a folder (also of an adapter), hub id, `embedded:NAME`, reader, or one in memory.

    Raises:
        ModelError: It cannot be had, or is none of these.
    """
    if isinstance(model, (str, Path)):
        folder = user_path(str(model))
        if str(model).strip() and folder.is_dir() and not is_adapter(folder):
            return ModelWeights(folder)  # which a folder of weights alone is enough for
        return open_weights(str(name_of(model)))
    if all(hasattr(model, part) for part in ("folder", "names", "pieces", "shape")):
        reader: Any = model
        return reader  # type: ignore[no-any-return]
    return LoadedWeights(model_in_memory(model))


class LoadedWeights:
    """The weights of a model in memory under the names of its parameters; see `WeightReader`.

    Raises:
        ModelError: They are not what the model computes with: quantised ones, or those beside LoRA layers.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._parameters = {name: own.detach() for name, own in model.named_parameters()}
        self.folder = Path(display_name(model))
        """Stands for where they lie, in messages."""
        self.names = tuple(sorted(self._parameters))
        self.architecture: str | None = getattr(model.config, "model_type", None)
        adapted = next((name for name in self.names if ".lora_" in name or ".base_layer." in name), None)
        if adapted is not None:
            raise ModelError(
                f"{self.folder}: holds an adapter ({adapted}), so its weights are not those that it computes with; "
                "merge it first (merge_and_unload), or name the adapter's folder."
            )
        quantised = next(
            (name for name, own in self._parameters.items() if not own.is_floating_point()), None
        )
        if quantised is not None:
            raise ModelError(
                f"{self.folder}: its {quantised} is quantised ({self._parameters[quantised].dtype}); load the model "
                "without quantisation, or name its folder."
            )

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a parameter's shape."""
        return tuple(self._parameters[name].shape)

    def pieces(self, name: str, elements: int, rows: int | None = None) -> Iterator[torch.Tensor]:
        """Yield whole rows of a parameter, flat and in order, on the processor; see `CheckpointReader.pieces`."""
        own = self._parameters[name]
        matrix = own.reshape(own.shape[0], -1) if own.dim() else own.reshape(1, 1)
        for piece in torch.split(matrix[:rows], max(1, elements // max(1, matrix.shape[1]))):
            yield piece.reshape(-1).cpu()
