"""One phase of one cell, described: what its stages prepare, train and combine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import cast

from lingraft.config.schema import PLAIN, StrategyChoice, Training
from lingraft.data.example import Example
from lingraft.models.shape import ModelShape, shape_of
from lingraft.models.weights import empty_model
from lingraft.stage import MODEL_LIBRARIES, Json, Model, root_of
from lingraft.strategies.base import Context, Strategy
from lingraft.strategies.composition import Composition, build
from lingraft.study.result import DataCounts

TRAINING_LIBRARIES = (*MODEL_LIBRARIES, "accelerate", "peft")


@dataclass(frozen=True)
class TrainingJob:
    """One phase of one cell.

    Attributes:
        label: For progress lines.
        parent: The model that training starts from.
        examples: The phase's training rows, before any strategy mixes others in.
        data: Identity of these rows, by set.
        counts: Of each set: rows read, broken, held out, asked for and had; for the record.
        choice: The strategies.
        training: Resolved training options, the precision included.
        seed: Seed of everything drawn.
        base: The base model, if a strategy may want it.
        previous_data: Phase 1's training rows, empty if unknown.
        english: The English parallel rows, empty if there are none.
        replay_data: Identity of what is replayed, by the need that it fills.
        trust_remote_code: Run Python code that a model brings along.
    """

    label: str
    parent: Model
    examples: Sequence[Example]
    data: Sequence[Mapping[str, Json]]
    counts: Sequence[DataCounts]
    choice: StrategyChoice
    training: Training
    seed: int
    base: Model | None = None
    previous_data: Sequence[Example] = ()
    english: Sequence[Example] = ()
    replay_data: Mapping[str, Json] = field(default_factory=dict)
    trust_remote_code: bool = False

    @property
    def composition(self) -> Composition:
        """The strategies, built."""
        return build(self.choice)

    @property
    def shape(self) -> ModelShape | None:
        """The shape of the model that it trains, adapters and frozen parts included; None: it cannot be known.

        What a state or another model decides to freeze is taken to train.
        """
        root = root_of(self.parent)
        if root is None:
            return None
        return shape_in(root.folder, self.choice, self.seed, trust_remote_code=self.trust_remote_code)


def foreseeable(composition: Composition) -> Composition:
    """Return the strategies without those that need a state or the base: what these freeze is not known yet."""
    parts = (part for part in composition.parts if part.preparation is None and "base" not in part.needs)
    return replace(composition, parts=tuple(parts))


def shape_in(
    folder: Path, choice: StrategyChoice, seed: int = 0, *, trust_remote_code: bool = False
) -> ModelShape | None:
    """Return the shape of a folder's model as strategies train it, by its config.json alone; None: as there."""
    return _shape(folder, choice.model_dump_json(), seed, trust_remote_code)


@cache
def _shape(folder: Path, choice: str, seed: int, trust_remote_code: bool) -> ModelShape | None:
    model = empty_model(folder, trust_remote_code=trust_remote_code)
    if model is None:
        return None
    composition = foreseeable(build(StrategyChoice.model_validate_json(choice)))
    context = Context(
        base=None,
        previous=folder,
        previous_data=(),
        english=(),
        seed=seed,
        folder=folder,
        cache=folder,
        trust_remote_code=trust_remote_code,
    )
    try:
        model = composition.wrap(model, context)
        return shape_of(model, composition.trainable(model, context))
    except (
        Exception
    ):  # what strategies refuse, or a model's own code raises without weights: training says it
        return None


def training_identity(choice: StrategyChoice) -> list[dict[str, Json]]:
    """Return what decides a choice's training besides training options: kinds and all options, defaults included.

    What only combines models afterwards is not among it, so that a sweep of it trains once, as plain does.
    """
    parts = [part for part in build(choice).parts if not part.combines and part.kind != PLAIN]
    return [part_identity(part) for part in parts] or [{"kind": PLAIN, "options": {}}]


def part_identity(part: Strategy) -> dict[str, Json]:
    """Return what decides a strategy's effect: its kind and options."""
    return {"kind": part.kind, "options": cast("Mapping[str, Json]", part.identity)}
