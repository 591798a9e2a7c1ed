"""Let a model continue prompts: many at once, each with draws of its own, so that batches and restarts change nothing.

The loop over tokens is transformers' `generate` (or vLLM's); evaluation uses the same one through the harness, which
brings its own batches and stop rules. Sampling is greedy search over perturbed scores: of the tokens that temperature
and top_p leave, the one with the largest log p + Gumbel noise is a draw from p, and the noise comes from the row's own
generator. So a row draws the same whatever stands beside it, and the global generators stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from transformers import (
    AutoConfig,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from lingraft.data.chat import encode_example
from lingraft.data.example import Example, Message
from lingraft.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BATCH_SIZE = 16
_STOP_LOOKS_BACK = 16  # tokens at the end of a row among which a stop text must begin


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
        text: This text, where no token ends the turn; "": none. It is cut off.
    """

    tokens: frozenset[int]
    text: str = ""


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """A prompt as token ids, special tokens included, and the seed of its own draws, below 2**63."""

    ids: tuple[int, ...]
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Generated:
    """A continuation.

    Attributes:
        text: Without special tokens and without white space around it.
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
) -> Iterator[dict[int, Generated]]:
    """Continue prompts, the longest first, and yield each batch when it is finished, by place in `prompts`.

    Batches do not depend on what is done: one of which anything is missing is made whole again, so that work that was
    interrupted ends as it would have, also in a precision in which rounding depends on the neighbours.

    Args:
        generator: Does the work.
        prompts: As tokens.
        sampling: For all.
        ending: For all.
        is_done: Whether a prompt's continuation is not needed; a batch of such is left out.
    """
    longest_first = sorted(range(len(prompts)), key=lambda row: (-len(prompts[row].ids), row))
    for start in range(0, len(prompts), generator.batch_size):
        rows = longest_first[start : start + generator.batch_size]
        if not all(is_done(row) for row in rows):
            found = generator.continue_batch([prompts[row] for row in rows], sampling, ending)
            yield dict(zip(rows, found, strict=True))


class TransformersGenerator:
    """Generation by a model in memory, in its own precision and on its own device.

    In float32 a row's tokens are those that it gets alone, up to ties in the last bit.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int = BATCH_SIZE
    ) -> None:
        self.batch_size = batch_size
        self._model, self._tokenizer = model, tokenizer

    def continue_batch(
        self, prompts: Sequence[TokenPrompt], sampling: Sampling, ending: Ending
    ) -> list[Generated]:
        """Return one continuation per prompt; shorter ones are padded at their beginning."""
        width = max(len(prompt.ids) for prompt in prompts)
        pad = min(ending.tokens)  # any id: the mask covers it
        ids = torch.tensor([[pad] * (width - len(one.ids)) + list(one.ids) for one in prompts])
        mask = torch.tensor([[0] * (width - len(one.ids)) + [1] * len(one.ids) for one in prompts])
        model: Any = self._model
        device = model.device
        config = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False,
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=sorted(ending.tokens),
            pad_token_id=pad,
        )
        stops = [_StopText(self._tokenizer, ending.text, width)] if ending.text else []
        with torch.inference_mode(), _own_defaults_off(self._model):
            found = model.generate(
                ids.to(device),
                attention_mask=mask.to(device),
                generation_config=config,
                logits_processor=_processors(sampling, [one.seed for one in prompts], device),
                stopping_criteria=StoppingCriteriaList(stops),
            )
        return [finished(row, ending, self._tokenizer) for row in found[:, width:].tolist()]


def finished(row: Sequence[int], ending: Ending, tokenizer: PreTrainedTokenizerBase) -> Generated:
    """Return what a row of new tokens says, up to what ends it."""
    said = list(takewhile(lambda token: token not in ending.tokens, row))
    ended = len(said) < len(row)
    text = str(tokenizer.decode(said, skip_special_tokens=True, clean_up_tokenization_spaces=False))
    if ending.text and ending.text in text:
        text, ended = text[: text.index(ending.text)], True
    return Generated(text.strip(), len(said) + (len(said) < len(row)), ended)


def answer_ending(folder: Path, tokenizer: PreTrainedTokenizerBase) -> Ending:
    """Return the tokens that end a model's answer.

    They are those that its generation_config.json names, the tokenizer's end token, and the token with which its chat
    template closes an answer, which training teaches it to end with.

    Raises:
        ModelError: There are none.
    """
    named: Any = None
    with suppress(OSError):  # the file is optional
        named = GenerationConfig.from_pretrained(folder).eos_token_id
    found = {*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id, _closing(tokenizer)}
    tokens = frozenset(int(token) for token in found if token is not None)
    if not tokens:
        raise ModelError(f"{folder}: names no end token; set `eos_token` in its tokenizer_config.json.")
    return Ending(tokens)


def context_length(folder: Path, *, trust_remote_code: bool = False) -> int | None:
    """Return how many tokens of prompt and continuation a model takes; None: its configuration does not say."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code).get_text_config()
    length: int | None = getattr(config, "max_position_embeddings", None)
    return length


def _closing(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the special token that training puts after an answer, if the template has one."""
    sample = Example("", (Message("user", "a"), Message("assistant", "b")), "und", "", "the chat template")
    try:
        encoded = encode_example(sample, tokenizer, 1 << 20)
    except DataError:  # the template wants other turns; the named tokens are left
        return None
    last = [token for token, seen in zip(encoded.input_ids, encoded.supervised, strict=True) if seen][-1]
    return last if last in special_tokens(tokenizer) else None


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids of the special tokens, those included that only the tokenizer's file marks as special."""
    added = tokenizer.added_tokens_decoder
    return frozenset(tokenizer.all_special_ids) | {token for token, one in added.items() if one.special}


def _processors(sampling: Sampling, seeds: Sequence[int], device: torch.device) -> LogitsProcessorList:
    if sampling.temperature == 0:
        return LogitsProcessorList()
    chosen: list[LogitsProcessor] = [TemperatureLogitsWarper(sampling.temperature)]
    if sampling.top_p < 1:
        chosen.append(TopPLogitsWarper(sampling.top_p))
    return LogitsProcessorList([*chosen, _RowNoise(seeds, device)])


class _RowNoise(LogitsProcessor):
    """Adds each row's own Gumbel noise, so that the largest score is a draw from the scores' softmax."""

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        # -log of an exponential variable is a Gumbel one. scores: [rows, vocabulary], float32
        noise = [torch.empty_like(scores[0]).exponential_(generator=one) for one in self._generators]
        return scores - torch.stack(noise).log()


class _StopText(StoppingCriteria):
    """Ends a row at a text that is no token of its own, such as the next heading of a template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: str, prompt_width: int) -> None:
        self._tokenizer, self._text, self._width = tokenizer, text, prompt_width
        self._back = _STOP_LOOKS_BACK + len(text.encode("utf-8"))

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:  # noqa: ARG002
        start = max(self._width, input_ids.shape[1] - self._back)
        ends = self._tokenizer.batch_decode(input_ids[:, start:], skip_special_tokens=True)
        return torch.tensor([self._text in end for end in ends], device=input_ids.device)


@contextmanager
def _own_defaults_off(model: PreTrainedModel) -> Iterator[None]:
    """Keep the model's generation_config.json, such as a repetition penalty, from adding to what was asked for."""
    own = model.generation_config
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        model.generation_config = own
