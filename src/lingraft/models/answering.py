"""Who answers batches: a model in this process, at once or on demand, or one in each of several (`workers`).

Batches are planned by who asks, and do not depend on who answers them: answers are the same whatever the number of
workers, in whatever order they come. A batch is a value that another process can be sent; called with a model in
memory, it returns what that answers.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch

from lingraft.models.engine import Engine, ModelFiles
from lingraft.models.generation import Ending, Generated, Generator, Sampling, TokenPrompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Answer_co = TypeVar("Answer_co", covariant=True)
Answer = TypeVar("Answer")


class Held:
    """A model in memory, with the generators that were made over it.

    Args:
        model: On the device that it computes on; left as it is.
        tokenizer: Its own.
        noted: Called with a sentence where an engine cannot do its work and another does it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        noted: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.model, self.tokenizer, self._noted = model, tokenizer, noted
        self._generators: dict[Engine, Generator] = {}

    def generator(self, engine: Engine) -> Generator:
        """Return an engine over the model, made once."""
        if engine not in self._generators:
            self._generators[engine] = engine.generator(self.model, self.tokenizer, self._noted)
        return self._generators[engine]


class Batch(Protocol[Answer_co]):
    """What a model is asked at once; it can be pickled, and so can the answer."""

    def __call__(self, held: Held) -> Answer_co:
        """Return what the model answers."""


class Answering(Protocol):
    """Answers batches.

    Attributes:
        model: What is known of the model; it may be without weights, on the meta device.
        tokenizer: Its own.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def answers(self, batches: Sequence[Batch[Answer]]) -> Iterator[tuple[int, Answer]]:
        """Yield each batch's place in `batches` and its answer, as they come; those asked first are begun first.

        Raises:
            LingraftError: A batch cannot be answered.
        """


class InThisProcess:
    """A model in this process answers one batch after the other."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        noted: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._held = Held(model, tokenizer, noted)

    def answers(self, batches: Sequence[Batch[Answer]]) -> Iterator[tuple[int, Answer]]:
        """See `Answering`."""
        for place, batch in enumerate(batches):
            yield place, batch(self._held)


class OnDemand:
    """A model that this process loads when a batch is asked, and may give up again: what stands beside a server.

    Args:
        files: The model.
        device: What it computes on; the processor where that has no room left.
        noted: Called with a sentence in that case.
    """

    def __init__(
        self, files: ModelFiles, device: torch.device, noted: Callable[[str], None] = lambda _: None
    ) -> None:
        self.model, self.tokenizer = files.load(with_weights=False)
        self._files, self._device, self._noted = files, device, noted
        self._held: Held | None = None

    def answers(self, batches: Sequence[Batch[Answer]]) -> Iterator[tuple[int, Answer]]:
        """See `Answering`."""
        for place, batch in enumerate(batches):
            if self._held is None:
                self._held = self._loaded()
            yield place, batch(self._held)

    def give_up(self) -> None:
        """Free the memory of the model; the next batch loads it again."""
        self._held = None
        gc.collect()
        if self._device.type != "cpu":
            torch.accelerator.empty_cache()

    def _loaded(self) -> Held:
        model, tokenizer = self._files.load()
        try:
            model.to(self._device)  # type: ignore[arg-type]
        except torch.OutOfMemoryError:
            model.to("cpu")  # type: ignore[arg-type]
            self._noted(
                f"{self._device} has no room for the model beside what is on it, so likelihoods and losses are "
                "computed on the processor, which is slow: leave the server less of it (vLLM: "
                "--gpu-memory-utilization 0.6), or run it on another card."
            )
        return Held(model, tokenizer)


@dataclass(frozen=True, slots=True)
class Continue:
    """Prompts to continue together: a `Batch` of an engine."""

    engine: Engine
    prompts: tuple[TokenPrompt, ...]
    sampling: Sampling
    ending: Ending

    def __call__(self, held: Held) -> list[Generated]:
        """Return one continuation per prompt, in order."""
        return held.generator(self.engine).continue_batch(self.prompts, self.sampling, self.ending)
