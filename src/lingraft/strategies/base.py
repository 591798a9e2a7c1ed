"""The strategy protocol: a frozen options class plus hooks that return values; none receives the trainer.

Hooks run in the order mix, wrap, trainable. DESIGN has four more (prepare, learning_rates, penalty, combine);
each comes with the first strategy that needs it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from lingraft.data.example import Example
from lingraft.errors import StrategyError
from lingraft.models.layers import layer_of, module_type_of, tied_parameters
from lingraft.records import fingerprint_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Need = Literal["base", "previous", "previous_data", "english"]

# What Llama and most others, GPT-2, Bloom and Falcon, GPT-NeoX, InternLM, OPT and Mamba call theirs.
_EMBEDDINGS = frozenset(
    (
        "embed_tokens",
        "wte",
        "wpe",
        "word_embeddings",
        "embed_in",
        "tok_embeddings",
        "embed_positions",
        "embeddings",
    )
)


@dataclass(frozen=True)
class Context:
    """What the past left.

    Attributes:
        base: Checkpoint folder of the base model; None if unknown or not needed.
        previous: Checkpoint folder that this phase starts from.
        previous_data: Phase 1's training examples; empty if unknown.
        english: The English parallel of this phase's set; empty if there is none.
        seed: The cell's seed.
        folder: The stage's folder, for what a strategy caches.
    """

    base: Path | None
    previous: Path
    previous_data: Sequence[Example]
    english: Sequence[Example]
    seed: int
    folder: Path

    def generator(self, purpose: str) -> np.random.Generator:
        """Return a generator seeded by the cell's seed and `purpose`: two purposes never share draws."""
        return np.random.default_rng(self.seed_of(purpose))

    def seed_of(self, purpose: str) -> int:
        """Return a seed below 2**32 made of the cell's seed and `purpose`."""
        return int(fingerprint_of([self.seed, purpose])[:8], 16)


@dataclass(frozen=True)
class Mix:
    """A phase's examples after mixing.

    Attributes:
        examples: All of them, in order.
        replayed: How many are replayed.
        shortfall: How many fewer replayed ones there are than asked for.
    """

    examples: Sequence[Example]
    replayed: int = 0
    shortfall: int = 0

    @property
    def share(self) -> float:
        """Realised share of replayed examples in the final mix, in [0, 1]."""
        return self.replayed / len(self.examples) if self.examples else 0.0


class Strategy(BaseModel):
    """Base of all strategies; its hooks do nothing. A subclass's fields are its options in the study file."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, use_attribute_docstrings=True
    )

    kind: ClassVar[str]
    """Registered name."""
    conflicts: ClassVar[dict[str, str]] = {}
    """Strategies that it cannot be composed with, each with the reason."""

    @property
    def needs(self) -> frozenset[Need]:
        """What of the context it needs."""
        return frozenset()

    def mix(self, phase_data: Sequence[Example], context: Context) -> Mix:  # noqa: ARG002
        """Return the phase's examples, others mixed in."""
        return Mix(phase_data)

    def wrap(self, model: PreTrainedModel, context: Context) -> PreTrainedModel:  # noqa: ARG002
        """Return the model to train, such as one with adapters."""
        return model

    def trainable(self, model: PreTrainedModel, context: Context) -> frozenset[str] | None:  # noqa: ARG002
        """Return the names of the parameters that train; None: it does not care."""
        return None


@dataclass(frozen=True, slots=True)
class FreezePlanRow:
    """One part of a model in the plan that is shown before training.

    Attributes:
        part: `embeddings`, `layer 3`, `final norm and head`, ...
        trainable_parameters: Scalars that train.
        frozen_parameters: Scalars that do not.
        modules: Kinds of module with a parameter that trains, such as q_proj, in the model's order.
    """

    part: str
    trainable_parameters: int
    frozen_parameters: int
    modules: tuple[str, ...]


def freeze_plan(model: PreTrainedModel, trainable: Collection[str]) -> tuple[FreezePlanRow, ...]:
    """Return what trains and what is frozen, part by part in the model's order.

    Freezing tied embeddings freezes the output head, and the reverse: their row says so.
    """
    tied = {name for group in tied_parameters(model) for name in group}
    parts: dict[str, dict[str, int]] = {}
    for name, parameter in model.named_parameters():
        parts.setdefault(_part(name, name in tied), {})[name] = parameter.numel()
    return tuple(_plan_row(part, sizes, trainable) for part, sizes in parts.items())


def _plan_row(part: str, sizes: Mapping[str, int], trainable: Collection[str]) -> FreezePlanRow:
    trained = {name: size for name, size in sizes.items() if name in trainable}
    return FreezePlanRow(
        part=part,
        trainable_parameters=sum(trained.values()),
        frozen_parameters=sum(sizes.values()) - sum(trained.values()),
        modules=tuple(dict.fromkeys(module_type_of(name) for name in trained)),
    )


def check_plan(
    model: PreTrainedModel, trainable: Collection[str], strategies: str = "the strategies together"
) -> None:
    """Refuse a plan that trains nothing.

    Args:
        model: The model, wrapped.
        trainable: Names of the parameters that train.
        strategies: Whose plan it is, for the message.

    Raises:
        StrategyError: No parameter of the model is left to train.
    """
    if not any(name in trainable for name, _ in model.named_parameters()):
        raise StrategyError(
            f"nothing is left to train: {strategies} would freeze every parameter. Lower a `share`, or leave a "
            "strategy out."
        )


def _part(name: str, is_tied: bool) -> str:
    layer = layer_of(name)
    if layer is not None:
        return f"layer {layer}"
    if is_embedding(name):
        return "embeddings (tied head)" if is_tied else "embeddings"
    return "final norm and head"


def is_embedding(name: str) -> bool:
    """Return whether a parameter is an input embedding."""
    return layer_of(name) is None and module_type_of(name) in _EMBEDDINGS
