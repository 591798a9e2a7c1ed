"""A model and the engine that generates with it, described: any process can load the one and make the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from lingraft.models.generation import BATCH_SIZE, Generator, TransformersGenerator

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EngineName = Literal["transformers", "continuous"]


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where a model lies, and how it is loaded to be asked.

    Attributes:
        folder: Of the model, or of a LoRA adapter, which is merged into its base.
        dtype: Type of the weights in memory.
        trust_remote_code: Run Python code that the model brings along.
    """

    folder: Path
    dtype: torch.dtype
    trust_remote_code: bool = False

    def load(self, *, with_weights: bool = True) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Return the model, on the processor and in evaluation mode, and its tokenizer; see `load_merged`.

        Raises:
            ModelError: It cannot be had, or an adapter does not fit its base.
        """
        from lingraft.models.adapters import load_merged

        return load_merged(
            str(self.folder),
            dtype=self.dtype,
            trust_remote_code=self.trust_remote_code,
            with_weights=with_weights,
        )


def engine_for(device: torch.device, backend: str) -> EngineName:
    """Return what generates with a model unless a server does: continuous batching on a card of CUDA.

    Args:
        device: Of the model; `meta`: it has no weights here, and those of other processes have the cards.
        backend: `generate`: never continuous batching.
    """
    has_cards = torch.cuda.is_available() and device.type in ("cuda", "meta")
    return "continuous" if has_cards and backend != "generate" else "transformers"


@dataclass(frozen=True, slots=True)
class Engine:
    """What generates.

    Attributes:
        name: `transformers`: its `generate`, left and entered again as rows end; `continuous`: continuous batching.
        batch_size: Most rows at a time.
        own_defaults: Keep what the model's generation_config.json adds to greedy search, such as a repetition penalty.
        tokens_per_batch: Most tokens at a time of rows that `continuous` leaves to `transformers`.
    """

    name: EngineName = "transformers"
    batch_size: int = BATCH_SIZE
    own_defaults: bool = False
    tokens_per_batch: int = 32768

    def generator(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        noted: Callable[[str], None] = lambda _: None,
    ) -> Generator:
        """Return the engine over a model in memory, which is left as it is; `noted` hears where another must do it."""
        if self.name == "continuous":
            from lingraft.models.continuous import ContinuousGenerator

            return ContinuousGenerator(
                model,
                tokenizer,
                self.batch_size,
                own_defaults=self.own_defaults,
                tokens_per_batch=self.tokens_per_batch,
                noted=noted,
            )
        return TransformersGenerator(model, tokenizer, self.batch_size, own_defaults=self.own_defaults)
