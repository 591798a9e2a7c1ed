"""The hidden states of a model's decoder layers for some prompts: their moments, and a sample of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lingraft.data.batching import token_budget_batches
from lingraft.data.chat_format import chat_format
from lingraft.errors import ConfigError, DataError, ModelError
from lingraft.models.compute import compute_for
from lingraft.models.context_length import at_most, context_length, context_length_of
from lingraft.models.layers import decoder_layers
from lingraft.models.loaded import (
    display_name,
    in_evaluation_mode,
    model_in_memory,
    name_of,
    tokenizer_for,
)
from lingraft.models.loading import check_model, load_model, load_tokenizer, model_folder
from lingraft.models.token_ids import check_token_ids, embedding_rows
from lingraft.representation.covariance import Moments, RunningMoments
from lingraft.representation.prompts import Prompt, prompts_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lingraft.data.example import Example
    from lingraft.data.sources import LoadedData
    from lingraft.models.compute import Compute

AskedPrompts: TypeAlias = "str | Path | LoadedData | Sequence[str] | Sequence[Prompt] | Sequence[Example]"
"""What `prompts_of` takes."""
Positions = Literal["prompt", "last"]
POSITIONS: tuple[Positions, ...] = ("prompt", "last")
KEPT_BYTES = 2**30  # of the states that are kept for CKA, of all layers of a model
FEWEST_KEPT = 2000  # of each layer, where a gigabyte holds fewer
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
        kept: By language, [n, d] float32, the states themselves, at the same places for every model: all where those of
            all layers take less than KEPT_BYTES, else evenly spaced ones.
    """

    moments: dict[str, Moments]
    kept: dict[str, Tensor]

    @property
    def whole(self) -> Moments:
        """The moments over all languages."""
        return reduce(add, self.moments.values())


def encode_prompts(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, *, max_length: int = 1024
) -> EncodedPrompts:
    """Return the prompts through the tokenizer's chat template, up to where the answer would begin.

    Raises:
        DataError: The template refuses a prompt.
    """
    chat = chat_format(tokenizer)
    whole = [chat.prompt_ids(prompt.messages, fold_system=prompt.fold_system) for prompt in prompts]
    return EncodedPrompts(
        ids=tuple(tuple(ids[-max_length:]) for ids in whole),
        languages=tuple(prompt.language for prompt in prompts),
        truncated=sum(len(ids) > max_length for ids in whole),
    )


def check_alike(models: Sequence[str | PreTrainedModel], *, trust_remote_code: bool = False) -> None:
    """Refuse models whose states cannot be compared, by their configurations: before any is loaded.

    Raises:
        ModelError: One cannot be had or its files are not whole; or it is of another architecture than the first, or
            its decoder has another number of layers or another width.
    """
    from transformers import AutoConfig

    first: tuple[str, int | None, int | None] | None = (
        None  # architecture, layers and width of the first model
    )
    for model in models:
        name = display_name(model)
        if isinstance(model, str):
            folder = model_folder(name, trust_remote_code=trust_remote_code)
            check_model(name, folder, trust_remote_code=trust_remote_code)
            config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        else:
            config = model.config
        decoder = config.get_text_config()
        layers, width = getattr(decoder, "num_hidden_layers", None), getattr(decoder, "hidden_size", None)
        first = first or (config.model_type, layers, width)
        if config.model_type != first[0]:
            raise ModelError(
                f"{name}: is a {config.model_type}, the first model a {first[0]}; two architectures."
            )
        if layers != first[1]:
            raise ModelError(f"{name}: has {layers} decoder layers, the first model has {first[1]}.")
        if width != first[2]:
            raise ModelError(f"{name}: its states are {width} wide, the first model's {first[2]}.")


def encode_alike(
    models: Sequence[str | PreTrainedModel],
    prompts: Sequence[Prompt],
    *,
    tokenizer: object = None,
    max_length: int = 1024,
    trust_remote_code: bool = False,
) -> EncodedPrompts:
    """Return the prompts as tokens, the same for all models.

    Args:
        models: Names, or models in memory.
        prompts: At least one.
        tokenizer: Of the models in memory; None: those that lie where they were loaded from.
        max_length: Tokens of a prompt; longer ones lose their beginning.
        trust_remote_code: Run code that a model brings along.

    Raises:
        ModelError: A model makes other tokens of them than the first.
        DataError: A chat template refuses a prompt.
    """
    tokenizers = []
    for model in models:
        if isinstance(model, str):
            folder = model_folder(model, trust_remote_code=trust_remote_code)
            most = context_length(folder, trust_remote_code=trust_remote_code)
            tokenizers.append(load_tokenizer(model, trust_remote_code=trust_remote_code))
        else:
            most = context_length_of(model.config)
            tokenizers.append(tokenizer_for(model, tokenizer, trust_remote_code=trust_remote_code))
        max_length = at_most(max_length, most)
    encoded = [encode_prompts(prompts, own, max_length=max_length) for own in tokenizers]
    for model, own in zip(models, encoded, strict=True):
        if own.ids != encoded[0].ids:
            raise ModelError(
                f"{display_name(model)}: its tokenizer or chat template makes other tokens of the prompts than "
                f"{display_name(models[0])}'s, so states cannot be compared token by token."
            )
    return encoded[0]


def model_states(
    name: str | Path | PreTrainedModel,
    prompts: EncodedPrompts,
    *,
    positions: Positions = "prompt",
    compute: Compute | None = None,
    trust_remote_code: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[LayerStates]:
    """Load a model, run it over the prompts and let it go; see `layer_states`, also for the other arguments and errors.

    Args:
        name: Folder, hub id or embedded:NAME; a model in memory runs where it is, in its own type.
        prompts: From `encode_prompts`.
        positions: See `layer_states`.
        compute: What runs the model, and the type that its weights are held in; None: float32, which shows what
            bf16 would round away.
        trust_remote_code: Run code that the model brings along.
        on_progress: See `layer_states`.
    """
    if not isinstance(name, (str, Path)):
        return layer_states(name, prompts, positions=positions, on_progress=on_progress)
    compute = compute or compute_for("float32")
    model = load_model(name, dtype=compute.held, trust_remote_code=trust_remote_code)
    model.to(compute.device)  # type: ignore[arg-type]
    return layer_states(model, prompts, positions=positions, on_progress=on_progress)


def layer_states(
    model: str | Path | PreTrainedModel,
    prompts: EncodedPrompts | AskedPrompts,
    *,
    tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
    positions: Positions = "prompt",
    max_length: int = 1024,
    trust_remote_code: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[LayerStates]:
    """Return, layer by layer, what the decoder layers give for the prompts.

    A layer's states are what it adds to and passes on, before the final norm. Memory beside the model, of the
    processor: for each layer and language d x d values in float64 (4.3 GB a language for 32 layers of width 4096), and
    KEPT_BYTES of states, or FEWEST_KEPT of each layer where that is more. Of a GPU: the states of a batch, and the
    d x d values of one layer.

    Args:
        model: A causal language model in memory, which is left as it was; or a folder, hub id or `embedded:NAME`, which
            is loaded in float32.
        prompts: A list of texts, of `Prompt` or of `Example`; a .txt file, MT-Bench file or data set by its name; or
            what `encode_prompts` returned.
        tokenizer: Of a model in memory; None: the one that lies where it was loaded from. Tokens need none.
        positions: `prompt`: every token of the prompt; `last`: the one after which the answer begins.
        max_length: Tokens of a prompt; longer ones lose their beginning.
        trust_remote_code: Run code that the model brings along.
        on_progress: Called with the prompts done and all of them.

    Raises:
        ConfigError: There are no such positions.
        DataError: There are no prompts.
        ModelError: The model has no embedding of a token or no decoder layers that its modules' names show, or its
            states are not finite.
    """
    check_positions(positions)
    name = name_of(model)
    known = model_in_memory(model) if name is None else None
    if known is not None and getattr(known.config, "is_encoder_decoder", False):
        raise ModelError(f"{display_name(known)}: has an encoder; states are those of a decoder alone.")
    if not isinstance(prompts, EncodedPrompts):
        prompts = encode_alike(
            [name or known],  # type: ignore[list-item]
            prompts_of(prompts),
            tokenizer=tokenizer,
            max_length=max_length,
            trust_remote_code=trust_remote_code,
        )
    if not prompts.ids:
        raise DataError("there are no prompts to look at the model's states with.")
    if name is not None:
        return model_states(
            name,
            prompts,
            positions=positions,
            trust_remote_code=trust_remote_code,
            on_progress=on_progress,
        )
    assert known is not None
    with in_evaluation_mode(known):
        return _layer_states(known, prompts, positions, on_progress)


def check_positions(positions: str) -> None:
    """Refuse what names no tokens of a prompt.

    Raises:
        ConfigError: With those that there are.
    """
    if positions not in POSITIONS:
        raise ConfigError(f"positions {positions!r}: choose {' or '.join(POSITIONS)}.")


def _layer_states(
    model: PreTrainedModel,
    prompts: EncodedPrompts,
    positions: Positions,
    on_progress: Callable[[int, int], None] | None,
) -> list[LayerStates]:
    tokens = (token for ids in prompts.ids for token in ids)
    check_token_ids(tokens, embedding_rows(model), None, "the prompts")
    layers = decoder_layers(model)
    if not layers:
        raise ModelError(f"{type(model).__name__}: the names of its modules do not show its decoder layers.")
    bytes_per_place = 4 * len(layers) * int(model.config.get_text_config().hidden_size)
    places = _kept_places(prompts, positions, max(FEWEST_KEPT, KEPT_BYTES // bytes_per_place))
    collectors = [_Collector(places, prompts.languages) for _ in layers]
    done = 0
    for rows in _batches_of_one_language(prompts):
        with torch.inference_mode(), _recorded(layers) as states:
            run_decoder(model, [prompts.ids[row] for row in rows])
        for collector, own in zip(collectors, states, strict=True):
            chosen = {
                row: own[
                    place, 0 if positions == "prompt" else len(prompts.ids[row]) - 1 : len(prompts.ids[row])
                ]
                for place, row in enumerate(rows)
            }
            collector.add(chosen)
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


def _batches_of_one_language(prompts: EncodedPrompts) -> Iterator[list[int]]:
    """Yield the prompts that run together: of one language, since each that a batch holds costs d^2 sums a layer."""
    for language in sorted(set(prompts.languages)):
        own = [prompt for prompt, tag in enumerate(prompts.languages) if tag == language]
        lengths = [len(prompts.ids[prompt]) for prompt in own]
        for batch in token_budget_batches(lengths, _TOKENS_PER_BATCH, seed=0, epoch=0):
            yield sorted(own[place] for place in batch)


@dataclass
class _Collector:
    places: Mapping[int, Tensor]  # by prompt, which of its chosen states are kept
    languages: Sequence[str]  # of each prompt
    _moments: dict[str, RunningMoments] = field(default_factory=dict)
    _kept: dict[int, Tensor] = field(default_factory=dict)

    def add(self, states: Mapping[int, Tensor]) -> None:
        """Take the chosen states of a batch's prompts, [n, d] each."""
        for language in sorted({self.languages[prompt] for prompt in states}):
            own = torch.cat([one for prompt, one in states.items() if self.languages[prompt] == language])
            self._moments.setdefault(language, RunningMoments()).add(own)
        for prompt in states.keys() & self.places.keys():
            self._kept[prompt] = states[prompt][self.places[prompt]].float().cpu()

    def finish(self) -> LayerStates:
        """Return what was kept, in the order of the prompts, in ordinary memory."""
        kept: dict[str, list[Tensor]] = {}
        for prompt in sorted(self._kept):
            kept.setdefault(self.languages[prompt], []).append(self._kept.pop(prompt))
        return LayerStates(
            {language: self._moments[language].moments for language in sorted(self._moments)},
            {language: torch.cat(own) for language, own in sorted(kept.items())},
        )


def _kept_places(prompts: EncodedPrompts, positions: Positions, most: int) -> dict[int, Tensor]:
    """Return evenly spaced places among all chosen tokens, or all of them: by prompt, their positions in it."""
    lengths = [1 if positions == "last" else len(ids) for ids in prompts.ids]
    total = sum(lengths)
    chosen = torch.linspace(0, total - 1, min(most, total), dtype=torch.float64).round().long()
    found: dict[int, Tensor] = {}
    start = 0
    for prompt, length in enumerate(lengths):
        own = chosen[(chosen >= start) & (chosen < start + length)] - start
        if len(own):
            found[prompt] = own
        start += length
    return found


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


def run_decoder(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> None:
    """Run the decoder alone on rows padded on the right, which a causal model's real tokens never see."""
    ids = [torch.tensor(row) for row in rows]
    padded = pad_sequence(ids, batch_first=True).to(model.device)
    mask = pad_sequence([torch.ones_like(own) for own in ids], batch_first=True).to(model.device)
    decoder: Any = model.base_model  # without the head: its logits are not asked for
    decoder(input_ids=padded, attention_mask=mask, use_cache=False)
