"""Who answers batches: a model in this process, or one in each of several (`workers`), which share a queue.

Batches are planned by who asks, and do not depend on who answers them: answers are the same whatever the number of
workers, in whatever order they come. A batch is a value that another process can be sent; called with a model in
memory, it returns what that answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from lingraft.models.engine import Engine
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
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._generators: dict[Engine, Generator] = {}

    def generator(self, engine: Engine) -> Generator:
        """Return an engine over the model, made once."""
        if engine not in self._generators:
            self._generators[engine] = engine.generator(self.model, self.tokenizer)
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

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._held = Held(model, tokenizer)

    def answers(self, batches: Sequence[Batch[Answer]]) -> Iterator[tuple[int, Answer]]:
        """See `Answering`."""
        for place, batch in enumerate(batches):
            yield place, batch(self._held)


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
