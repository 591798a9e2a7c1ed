"""Let a model continue prompts: many at once, each with draws of its own, so that batches and restarts change nothing.

The loop over tokens is transformers' `generate` (or vLLM's), for replay and for evaluation. It is left whenever an
eighth of the rows has ended, and entered again with the others and their keys and values: a batch otherwise computes
for ended rows until its longest answer is done. Prompts are read before it, in portions of about one length, so that
short ones are not padded to the longest of the batch; tokens that all of them begin with are read once.

Sampling is greedy search over perturbed scores: of the tokens that temperature and top_p leave, the one with the
largest log p + Gumbel noise is a draw from p, and the noise comes from the row's own generator. So a row draws the same
whatever stands beside it, and the global generators stay as they are.
"""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from lingraft.data.chat_format import chat_format
from lingraft.models.loss import SupervisedHead
from lingraft.models.token_ids import check_token_ids, embedding_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BATCH_SIZE = 16
_STOP_LOOKS_BACK = 16  # tokens at the end of a row among which a stop text must begin
_LEAVING = 8  # rows leave a batch when one in so many has ended
_ROOM = 32  # tokens
_SHORTEST_SHARED = 8  # tokens of a common beginning that are worth a forward pass of their own
_READ_TOKENS = 2048  # of a portion of prompts that is read at once, padding included


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0: greedy, the most probable token; else scores are divided by it.
        top_p: Only the most probable tokens that together have this probability are drawn from, in (0, 1].
        max_new_tokens: Where a continuation is cut off.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 256


@dataclass(frozen=True, slots=True)
class Ending:
    """What ends a continuation.

    Attributes:
        tokens: Any of these ids.
        texts: Any of these texts, such as where no token ends the turn; none is empty. They are cut off.
        thoughts: Tokens between which a model thinks before it answers; what it thought is taken out of the text.
    """

    tokens: frozenset[int]
    texts: tuple[str, ...] = ()
    thoughts: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """A prompt as token ids, special tokens included, and the seed of its own draws, below 2**63.

    `max_new_tokens` cuts its own continuation off, in place of the sampling's limit.
    """

    ids: tuple[int, ...]
    seed: int = 0
    max_new_tokens: int | None = None

    def limit(self, sampling: Sampling) -> int:
        """Return where its continuation is cut off, in tokens."""
        return sampling.max_new_tokens if self.max_new_tokens is None else self.max_new_tokens


@dataclass(frozen=True, slots=True)
class Generated:
    """A continuation.

    Attributes:
        text: Without special tokens.
        tokens: How many were generated, the end token included.
        ended: Whether the model ended it by itself; else it was cut off.
    """

    text: str
    tokens: int
    ended: bool


class Generator(Protocol):
    """Continues prompts; `batch_size` of them at a time."""

    batch_size: int

    def continue_batch(
        self, prompts: Sequence[TokenPrompt], sampling: Sampling, ending: Ending
    ) -> list[Generated]:
        """Return one continuation per prompt, in order."""


def generate(
    generator: Generator,
    prompts: Sequence[TokenPrompt],
    sampling: Sampling,
    ending: Ending,
    is_done: Callable[[int], bool] = lambda _: False,
    *,
    tokens_per_batch: int | None = None,
    shuffle: int | None = None,
) -> Iterator[dict[int, Generated]]:
    """Continue prompts, and yield each batch when it is finished, by place in `prompts`; see `planned_batches`.

    Args:
        generator: Does the work.
        prompts: As tokens.
        sampling: For all.
        ending: For all.
        is_done: Whether a prompt's continuation is not needed.
        tokens_per_batch: See there; None: only the generator's `batch_size` limits a batch.
        shuffle: See there.
    """
    for rows in planned_batches(
        prompts, sampling, generator.batch_size, is_done, tokens_per_batch=tokens_per_batch, shuffle=shuffle
    ):
        found = generator.continue_batch([prompts[row] for row in rows], sampling, ending)
        yield dict(zip(rows, found, strict=True))


def planned_batches(
    prompts: Sequence[TokenPrompt],
    sampling: Sampling,
    most: int,
    is_done: Callable[[int], bool] = lambda _: False,
    *,
    tokens_per_batch: int | None = None,
    shuffle: int | None = None,
) -> Iterator[list[int]]:
    """Cut prompts into batches, the longest first; yield those of which anything is missing, as places in `prompts`.

    Batches do not depend on what is done: one of which anything is missing is made whole again, so that work that was
    interrupted ends as it would have, also in a precision in which rounding depends on the neighbours.

    Args:
        prompts: As tokens.
        sampling: For all.
        most: Prompts in a batch.
        is_done: Whether a prompt's continuation is not needed; a batch of such is left out.
        tokens_per_batch: Most tokens of a batch, were each row as long as its longest prompt and its longest allowed
            continuation together; None: no such limit.
        shuffle: Seed of another order, so that rows get other neighbours; None: the longest first.
    """
    order = sorted(range(len(prompts)), key=lambda row: (-len(prompts[row].ids), row))
    if shuffle is not None:
        random.Random(f"order {shuffle}").shuffle(order)
    sizes = [(len(one.ids), one.limit(sampling)) for one in prompts]
    for rows in batches_within(order, sizes, most, tokens_per_batch):
        if not all(is_done(row) for row in rows):
            yield rows


def batches_within(
    order: Sequence[int], sizes: Sequence[tuple[int, int]], most: int, tokens_per_batch: int | None
) -> Iterator[list[int]]:
    """Cut rows, in order, into batches; a row that is larger than a batch may be gets its own.

    Args:
        order: Row numbers.
        sizes: Of every row, the tokens of its prompt and of what follows.
        most: Rows in a batch.
        tokens_per_batch: Rows times the longest prompt and the longest rest together, at most; None: no limit.
    """
    batch: list[int] = []
    prompt = rest = 0  # the longest of the batch
    for row in order:
        prompt, rest = max(prompt, sizes[row][0]), max(rest, sizes[row][1])
        tokens = (len(batch) + 1) * (prompt + rest)
        if batch and (len(batch) == most or (tokens_per_batch is not None and tokens > tokens_per_batch)):
            yield batch
            batch = []
            prompt, rest = sizes[row]
        batch.append(row)
    if batch:
        yield batch


class TransformersGenerator:
    """Generation by a model in memory, in its own precision and on its own device.

    In float32 a row's tokens are those that it gets alone, up to ties in the last bit.

    Args:
        model: The model; left as it is.
        tokenizer: Its own.
        batch_size: Most rows at a time.
        own_defaults: Keep what its generation_config.json adds to greedy search, such as a repetition penalty.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int = BATCH_SIZE,
        *,
        own_defaults: bool = False,
    ) -> None:
        self.batch_size = batch_size
        self._model, self._tokenizer, self._own_defaults = model, tokenizer, own_defaults
        self._rows = embedding_rows(model)

    def continue_batch(
        self, prompts: Sequence[TokenPrompt], sampling: Sampling, ending: Ending
    ) -> list[Generated]:
        """Return one continuation per prompt; shorter ones are padded before what they do not share."""
        said = self.continue_tokens(prompts, sampling, ending)
        return [finished(one, ending, self._tokenizer) for one in said]

    def continue_tokens(
        self, prompts: Sequence[TokenPrompt], sampling: Sampling, ending: Ending
    ) -> list[tuple[int, ...]]:
        """Return the new tokens of each prompt, with the one that ended it where one did."""
        check_token_ids(
            (token for one in prompts for token in one.ids), self._rows, self._tokenizer, "a prompt"
        )
        found: dict[int, tuple[int, ...]] = {}
        pad = min(*ending.tokens, self._rows - 1)  # any id that the model knows, since the mask covers it
        untyped: Any = self._model
        with torch.inference_mode(), nullcontext() if self._own_defaults else _own_defaults_off(self._model):
            rows = self._begin(prompts, sampling, pad)
            width = rows.ids.shape[1]
            while rows.places:
                ends = _Ends(self._tokenizer, ending, width, rows)
                ids = untyped.generate(  # until enough of the rows have ended
                    rows.ids,
                    attention_mask=rows.mask,
                    generation_config=GenerationConfig(  # type: ignore[no-untyped-call]
                        do_sample=False,
                        max_new_tokens=max(rows.limits) - (rows.ids.shape[1] - width),
                        eos_token_id=sorted(ending.tokens),
                        pad_token_id=pad,
                    ),
                    logits_processor=_processors(sampling, rows.draws),
                    stopping_criteria=StoppingCriteriaList([ends]),
                    **({} if rows.cache is None else {"past_key_values": rows.cache}),
                )
                has_ended = ends.has_ended.tolist()
                for row in (row for row, one in enumerate(has_ended) if one):
                    said = ids[row, width : width + rows.limits[row]].tolist()
                    words = len(list(takewhile(lambda token: token not in ending.tokens, said)))
                    found[rows.places[row]] = tuple(said[: words + 1])
                rows = rows.without(has_ended, ids)
        return [found[place] for place in range(len(prompts))]

    def _begin(self, prompts: Sequence[TokenPrompt], sampling: Sampling, pad: int) -> _Rows:
        """Return the rows of a batch, with the keys and values of their prompts but for the last tokens."""
        device = self._model.device
        cache = empty_cache(self._model)
        reads_ahead = cache is not None and keeps_all(cache) and takes_positions(self._model)
        lengths = [len(prompt.ids) for prompt in prompts]
        shared = 0  # tokens that all prompts begin with, and none is without more
        if reads_ahead and len(prompts) > 1:
            first, last = min(one.ids for one in prompts), max(one.ids for one in prompts)
            alike = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))))
            shared = min(alike, min(lengths) - 1)
            shared = shared if shared >= _SHORTEST_SHARED else 0
        gaps = [max(lengths) - length for length in lengths]
        padded = [
            [*one.ids[:shared], *[pad] * gap, *one.ids[shared:]]
            for one, gap in zip(prompts, gaps, strict=True)
        ]
        mask = [
            [1] * shared + [0] * gap + [1] * (length - shared)
            for gap, length in zip(gaps, lengths, strict=True)
        ]
        rows = _Rows(
            places=list(range(len(prompts))),
            ids=torch.tensor(padded, device=device),
            mask=torch.tensor(mask, device=device),
            cache=cache,
            limits=[one.limit(sampling) for one in prompts],
            draws=[torch.Generator(device).manual_seed(one.seed) for one in prompts],
        )
        if reads_ahead and max(lengths) > 1:
            self._read(rows, shared, lengths)
        return rows

    def _read(self, rows: _Rows, shared: int, lengths: Sequence[int]) -> None:
        """Fill the cache with the keys and values of all tokens of the prompts but the last, which generation reads."""
        width = rows.ids.shape[1]
        beginning: Any = empty_cache(self._model)
        if shared:
            self._forward(rows.ids[:1, :shared], rows.mask[:1, :shared], beginning)
        longest_first = sorted(range(len(lengths)), key=lambda row: -lengths[row])
        sizes = [(length - shared, 0) for length in lengths]
        for portion in batches_within(longest_first, sizes, len(lengths), _READ_TOKENS):
            own = torch.tensor(portion, device=rows.ids.device)
            # Not before the last token: a portion may have none between it and the common beginning.
            start = min(width - lengths[portion[0]] + shared, width - 1 if shared else width - 2)
            columns = torch.tensor([*range(shared), *range(start, width - 1)], device=own.device)
            cache = copy.deepcopy(beginning)
            if shared:
                cache.batch_repeat_interleave(len(portion))
            if start < width - 1:
                self._forward(rows.ids[own, start : width - 1], rows.mask[own][:, columns], cache)
            untyped: Any = rows.cache
            for layer, part in zip(untyped.layers, cache.layers, strict=True):
                layer.put(own, columns, part, width, len(lengths))

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, cache: DynamicCache) -> None:
        """Add the keys and values of `ids` to a cache; `mask` covers what is in it as well. No logits are made."""
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        with SupervisedHead(self._model, torch.zeros(0, dtype=torch.long)):
            self._model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of a batch that are still at work: B rows of T tokens, padding among them.

    Attributes:
        places: [B] where each stands in what was asked for.
        ids: [B, T].
        mask: [B, T], 0 on padding.
        cache: Keys and values of all tokens that were computed; None: the model has none that rows can leave.
        limits: [B] most tokens that each may generate.
        draws: [B] what each draws by.
    """

    places: list[int]
    ids: torch.Tensor
    mask: torch.Tensor
    cache: DynamicCache | None
    limits: list[int]
    draws: list[torch.Generator]

    def without(self, has_ended: Sequence[bool], ids: torch.Tensor) -> _Rows:
        """Return the rows that go on, with their tokens so far, taken out of `ids` of all."""
        kept = [row for row, one in enumerate(has_ended) if not one]
        chosen = torch.tensor(kept, dtype=torch.long, device=ids.device)
        if self.cache is not None and kept:
            self.cache.batch_select_indices(chosen)
        new = torch.ones((len(kept), ids.shape[1] - self.mask.shape[1]), dtype=torch.long, device=ids.device)
        return _Rows(
            places=[self.places[row] for row in kept],
            ids=ids[chosen],
            mask=torch.cat([self.mask[chosen], new], dim=1),
            cache=self.cache,
            limits=[self.limits[row] for row in kept],
            draws=[self.draws[row] for row in kept],
        )


def empty_cache(model: PreTrainedModel) -> DynamicCache | None:
    """Return an empty cache that rows can leave, or None where the architecture keeps its states otherwise."""
    untyped: Any = model
    if not untyped._supports_default_dynamic_cache():
        return None
    cache = DynamicCache(config=model.config)
    if not {type(layer) for layer in cache.layers} <= {DynamicLayer, DynamicSlidingWindowLayer}:
        return None
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def takes_positions(model: PreTrainedModel) -> bool:
    """Return whether tokens can be given their positions, whatever padding is before them."""
    return "position_ids" in inspect.signature(model.forward).parameters


def keeps_all(cache: DynamicCache) -> bool:
    """Return whether every layer keeps all tokens: a window counts padding that stands between tokens."""
    return all(isinstance(layer, RoomyLayer) for layer in cache.layers)


class RoomyLayer(DynamicLayer):
    """Keeps keys and values with room for the next ones; transformers' own layer copies all of them at every token."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._rooms: list[torch.Tensor] = []  # of the keys and of the values, [B, heads, tokens, width]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the states of new tokens; return those of all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        held = self.get_seq_length()
        end = held + key_states.shape[-2]
        if not self._rooms or self._rooms[0].shape[-2] < end:
            self._rooms = [
                new.new_empty((*new.shape[:2], end + _ROOM, new.shape[3]))
                for new in (key_states, value_states)
            ]
            before: Any = (self.keys, self.values)
            for room, old in zip(self._rooms, before, strict=True):
                if held:
                    room[:, :, :held] = old
        for room, new in zip(self._rooms, (key_states, value_states), strict=True):
            room[:, :, held:end] = new
        self.keys, self.values = (room[:, :, :end] for room in self._rooms)
        return self.keys, self.values

    def put(
        self, rows: torch.Tensor, columns: torch.Tensor, part: DynamicLayer, width: int, count: int
    ) -> None:
        """Take the keys and values of some rows of a batch over from a layer that held these alone.

        Args:
            rows: [R] where they belong.
            columns: [C] where each of the C tokens in `part` belongs; elsewhere stands 0, for a mask to cover.
            part: Keys and values [R, heads, C, size].
            width: Tokens of the batch, of which the last is left to be computed.
            count: Rows of the batch.
        """
        held: Any = (part.keys, part.values)
        if not self.is_initialized:
            self.lazy_initialization(*held)
            self._rooms = [one.new_zeros((count, one.shape[1], width + _ROOM, one.shape[3])) for one in held]
            self.keys, self.values = (room[:, :, : width - 1] for room in self._rooms)
        for room, one in zip(self._rooms, held, strict=True):
            room[rows[:, None], :, columns] = one.transpose(1, 2)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows."""
        super().batch_select_indices(indices)
        self._rooms = []

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        super().batch_repeat_interleave(repeats)
        self._rooms = []


def finished(row: Sequence[int], ending: Ending, tokenizer: PreTrainedTokenizerBase) -> Generated:
    """Return what a row of new tokens says, up to what ends it."""
    said = list(takewhile(lambda token: token not in ending.tokens, row))
    ended = len(said) < len(row)
    tokens = len(said) + ended
    if ending.thoughts is not None:
        begin, end = ending.thoughts
        if end in said:
            said = said[len(said) - said[::-1].index(end) :]
        elif begin in said[:2]:  # thoughts without an end; white space may come first
            said = []
    text = str(tokenizer.decode(said, skip_special_tokens=True, clean_up_tokenization_spaces=False))
    stops = [text.index(stop) for stop in ending.texts if stop in text]
    if stops:
        text, ended = text[: min(stops)], True
    return Generated(text, tokens, ended)


def answer_ending(folder: Path, tokenizer: PreTrainedTokenizerBase) -> Ending:
    """Return the tokens that end a model's answer.

    They are those that its generation_config.json names and those of its `ChatFormat`, which training teaches it to end
    with.

    Raises:
        ModelError: See `chat_format`.
    """
    named: Any = None
    with suppress(OSError):  # the file is optional
        named = GenerationConfig.from_pretrained(folder).eos_token_id
    return chat_ending(named, tokenizer)


def chat_ending(named: int | list[int] | None, tokenizer: PreTrainedTokenizerBase) -> Ending:
    """Return what ends an answer in a conversation: the tokens named by a generation_config, and the chat format's."""
    own = named if isinstance(named, list) else [] if named is None else [named]
    chat = chat_format(tokenizer)
    return Ending(chat.endings.union(map(int, own)), thoughts=chat.thoughts)


def _processors(sampling: Sampling, draws: Sequence[torch.Generator]) -> LogitsProcessorList:
    if sampling.temperature == 0:
        return LogitsProcessorList()
    chosen: list[LogitsProcessor] = [TemperatureLogitsWarper(sampling.temperature)]
    if sampling.top_p < 1:
        chosen.append(TopPLogitsWarper(sampling.top_p))
    return LogitsProcessorList([*chosen, _RowNoise(draws)])


class _RowNoise(LogitsProcessor):
    """Adds each row's own Gumbel noise, so that the largest score is a draw from the scores' softmax."""

    def __init__(self, draws: Sequence[torch.Generator]) -> None:
        self._generators = draws

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        # -log of an exponential variable is a Gumbel one. scores: [rows, vocabulary], float32
        noise = [torch.empty_like(scores[0]).exponential_(generator=one) for one in self._generators]
        return scores - torch.stack(noise).log()


class _Ends(StoppingCriteria):
    """Notes which rows have ended: at a token, at a text that is no token of its own, or at their limit.

    All are stopped when enough of them have, so that those can leave.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, ending: Ending, prompt_width: int, rows: _Rows
    ) -> None:
        device = rows.ids.device
        self._tokenizer, self._texts, self._width = tokenizer, ending.texts, prompt_width
        self._back = _STOP_LOOKS_BACK + max((len(text.encode("utf-8")) for text in ending.texts), default=0)
        self._tokens = torch.tensor(sorted(ending.tokens), device=device)
        self._limits = torch.tensor(rows.limits, device=device)
        self._enough = len(rows.places) if rows.cache is None else max(1, len(rows.places) // _LEAVING)
        self.has_ended = torch.zeros(len(rows.places), dtype=torch.bool, device=device)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:  # noqa: ARG002
        self.has_ended |= torch.isin(input_ids[:, -1], self._tokens)
        self.has_ended |= self._limits <= input_ids.shape[1] - self._width
        if self._texts:
            start = max(self._width, input_ids.shape[1] - self._back)
            ends = self._tokenizer.batch_decode(input_ids[:, start:], skip_special_tokens=True)
            found = [any(text in end for text in self._texts) for end in ends]
            self.has_ended |= torch.tensor(found, device=input_ids.device)
        return self.has_ended | (self.has_ended.sum() >= self._enough)


@contextmanager
def _own_defaults_off(model: PreTrainedModel) -> Iterator[None]:
    """Keep the model's generation_config.json, such as a repetition penalty, from adding to what was asked for."""
    own = model.generation_config
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        model.generation_config = own
