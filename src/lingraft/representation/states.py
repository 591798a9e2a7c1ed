"""The hidden states of a model's decoder layers for some prompts: their moments, and a sample of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from lingraft.data.batching import token_budget_batches
from lingraft.data.chat import encode_prompt
from lingraft.errors import DataError, ModelError
from lingraft.models.layers import layer_of
from lingraft.models.loading import load_model, load_tokenizer
from lingraft.representation.covariance import Moments
from lingraft.representation.prompts import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Positions = Literal["prompt", "last"]
POSITIONS: tuple[Positions, ...] = ("prompt", "last")
SAMPLED = 2000  # states of each layer kept as they are, for CKA
_TOKENS_PER_BATCH = 2048


@dataclass(frozen=True)
class EncodedPrompts:
    """Prompts as token ids.

    Attributes:
        ids: Of each prompt, its template included.
        languages: Of each prompt.
        truncated: Prompts that lost their beginning, because they are longer than `max_length`.
    """

    ids: tuple[tuple[int, ...], ...]
    languages: tuple[str, ...]
    truncated: int


@dataclass(frozen=True)
class LayerStates:
    """What is kept of one layer's states.

    Attributes:
        moments: By language.
        sample: [at most SAMPLED, d] float32: states at the same places for every model.
    """

    moments: dict[str, Moments]
    sample: Tensor

    @property
    def whole(self) -> Moments:
        """The moments over all languages."""
        parts = iter(self.moments.values())
        total = next(parts)
        for part in parts:
            total = total + part
        return total


def encode_prompts(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, *, max_length: int = 1024
) -> EncodedPrompts:
    """Return the prompts through the tokenizer's chat template, up to where the answer would begin.

    Raises:
        DataError: The template refuses a prompt.
    """
    whole = [encode_prompt(prompt.messages, tokenizer) for prompt in prompts]
    return EncodedPrompts(
        ids=tuple(tuple(ids[-max_length:]) for ids in whole),
        languages=tuple(prompt.language for prompt in prompts),
        truncated=sum(len(ids) > max_length for ids in whole),
    )


@dataclass(frozen=True)
class ModelStates:
    """A model's states of some prompts.

    Attributes:
        architecture: As its configuration names it, such as llama.
        layers: Of its decoder layers, in order.
    """

    architecture: str
    layers: list[LayerStates]


def encode_alike(
    models: Sequence[str],
    prompts: Sequence[Prompt],
    *,
    max_length: int = 1024,
    trust_remote_code: bool = False,
) -> EncodedPrompts:
    """Return the prompts as tokens, the same for all models.

    Raises:
        ModelError: A model makes other tokens of them than the first.
        DataError: A chat template refuses a prompt.
    """
    tokenizers = [load_tokenizer(name, trust_remote_code=trust_remote_code) for name in models]
    encoded = [encode_prompts(prompts, tokenizer, max_length=max_length) for tokenizer in tokenizers]
    for name, own in zip(models, encoded, strict=True):
        if own.ids != encoded[0].ids:
            raise ModelError(
                f"{name}: its tokenizer or chat template makes other tokens of the prompts than {models[0]}'s, so "
                "states cannot be compared token by token."
            )
    return encoded[0]


def model_states(
    name: str | Path,
    prompts: EncodedPrompts,
    *,
    like: str | None = None,
    positions: Positions = "prompt",
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> ModelStates:
    """Load a model, run it over the prompts and let it go; see `layer_states`.

    Args:
        name: Folder, hub id or embedded:NAME.
        prompts: From `encode_prompts`.
        like: The architecture that it must have; None: any.
        positions: See `layer_states`.
        dtype: Type that the weights are held in.
        trust_remote_code: Run code that the model brings along.
        on_progress: Called with the prompts done and all of them.

    Raises:
        ModelError: It is of another architecture, or see `layer_states`.
    """
    model = load_model(name, dtype=dtype, trust_remote_code=trust_remote_code)
    architecture: str = model.config.model_type
    if like is not None and architecture != like:
        raise ModelError(f"{name}: is a {architecture}, the first model a {like}; two architectures.")
    model.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
    return ModelStates(
        architecture, layer_states(model, prompts, positions=positions, on_progress=on_progress)
    )


def layer_states(
    model: PreTrainedModel,
    prompts: EncodedPrompts,
    *,
    positions: Positions = "prompt",
    on_progress: Callable[[int, int], None] | None = None,
) -> list[LayerStates]:
    """Return, layer by layer, what the decoder layers give for the prompts.

    A layer's states are what it adds to and passes on, before the final norm. Memory: d x d numbers in float64 and
    SAMPLED x d in float32 for each layer, besides the model.

    Args:
        model: A causal language model, in evaluation mode.
        prompts: From `encode_prompts`.
        positions: `prompt`: every token of the prompt; `last`: the one after which the answer begins.
        on_progress: Called with the prompts done and all of them.

    Raises:
        DataError: There are no prompts.
        ModelError: The model has no decoder layers that can be told from their names, or its states are not finite.
    """
    if not prompts.ids:
        raise DataError("there are no prompts to look at the model's states with.")
    layers = _decoder_layers(model)
    collectors = [_Collector(_sampled_places(prompts, positions)) for _ in layers]
    done = 0
    for batch in token_budget_batches([len(ids) for ids in prompts.ids], _TOKENS_PER_BATCH, seed=0, epoch=0):
        rows = sorted(batch)
        with torch.inference_mode(), _recorded(layers) as states:
            _forward(model, [prompts.ids[row] for row in rows])
        for collector, own in zip(collectors, states, strict=True):
            chosen = {
                row: own[
                    place, 0 if positions == "prompt" else len(prompts.ids[row]) - 1 : len(prompts.ids[row])
                ]
                for place, row in enumerate(rows)
            }
            collector.add(chosen, prompts.languages)
        done += len(rows)
        if on_progress is not None:
            on_progress(done, len(prompts.ids))
    found = [collector.finish() for collector in collectors]
    for number, one in enumerate(found):
        if not bool(torch.isfinite(one.whole.scatter).all()):
            raise ModelError(
                f"{model.config._name_or_path}: the states of layer {number} are not finite (NaN or infinity), so "
                "training diverged or a file is damaged. Train with a lower learning rate, or fetch it again."
            )
    return found


@dataclass
class _Collector:
    places: Mapping[int, Tensor]  # by prompt, the positions of the sample among its chosen ones
    _moments: dict[str, Moments] = field(default_factory=dict)
    _kept: dict[int, Tensor] = field(default_factory=dict)

    def add(self, states: Mapping[int, Tensor], languages: Sequence[str]) -> None:
        """Take the chosen states of a batch's prompts, [n, d] each."""
        for language in sorted({languages[prompt] for prompt in states}):
            own = Moments.of(
                torch.cat([one for prompt, one in states.items() if languages[prompt] == language])
            )
            self._moments[language] = self._moments[language] + own if language in self._moments else own
        for prompt in states.keys() & self.places.keys():
            self._kept[prompt] = states[prompt][self.places[prompt]].float().cpu()

    def finish(self) -> LayerStates:
        """Return what was kept, the sample in the order of the prompts."""
        moments = {language: self._moments[language] for language in sorted(self._moments)}
        return LayerStates(moments, torch.cat([self._kept[prompt] for prompt in sorted(self._kept)]))


def _sampled_places(prompts: EncodedPrompts, positions: Positions) -> dict[int, Tensor]:
    """Return evenly spaced places among all chosen tokens: by prompt, their positions in it."""
    lengths = [1 if positions == "last" else len(ids) for ids in prompts.ids]
    total = sum(lengths)
    chosen = torch.linspace(0, total - 1, min(SAMPLED, total), dtype=torch.float64).round().long()
    found: dict[int, Tensor] = {}
    start = 0
    for prompt, length in enumerate(lengths):
        own = chosen[(chosen >= start) & (chosen < start + length)] - start
        if len(own):
            found[prompt] = own
        start += length
    return found


def _decoder_layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    found: dict[int, torch.nn.Module] = {}
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        if last.isdecimal() and layer_of(f"{name}.weight") == int(last):
            found.setdefault(int(last), module)
    if not found:
        raise ModelError(
            f"{type(model).__name__}: its decoder layers cannot be told from the names of its modules."
        )
    return [found[number] for number in sorted(found)]


@contextmanager
def _recorded(layers: Sequence[torch.nn.Module]) -> Iterator[list[Tensor]]:
    """Keep what each layer returns, [B, L, d], while inside; filled after a forward pass."""
    states: list[Tensor] = [torch.empty(0)] * len(layers)

    def keep(number: int) -> Callable[..., None]:
        def hook(_module: torch.nn.Module, _inputs: Any, output: Any) -> None:
            states[number] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [layer.register_forward_hook(keep(number)) for number, layer in enumerate(layers)]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def _forward(model: Any, rows: Sequence[Sequence[int]]) -> None:
    """Run the decoder alone on rows padded on the right, which a causal model's real tokens never see."""
    longest = max(map(len, rows))
    ids = torch.zeros((len(rows), longest), dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
        mask[place, : len(row)] = 1
    decoder = model.base_model  # without the head: its logits are not asked for
    decoder(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False)
