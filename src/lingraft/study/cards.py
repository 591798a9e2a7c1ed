"""What a study's trainings take of cards that need not be here, by a model's config.json alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lingraft.config.schema import StrategyChoice, Study, Training
from lingraft.errors import ConfigError
from lingraft.models.compute import Machine, Precision, compute_for
from lingraft.models.shape import ModelShape
from lingraft.strategies.composition import build
from lingraft.study.fitting import adapted_shape, check_divided, configuration_of, refusal, trainings_of
from lingraft.study.stages.job import shape_in
from lingraft.study.stages.train import held_bytes, setup_of
from lingraft.train.memory_plan import (
    Cut,
    LargestBatch,
    MemoryPlan,
    Setup,
    checkpoint_bytes,
    chosen_cut,
    training_memory,
)
from lingraft.train.phase import with_resolved_precision
from lingraft.train.processes import Processes

_CARD = Machine(torch.device("cuda"), has_bf16=True, speed_up=lambda: 1.0)


@dataclass(frozen=True)
class CardTraining:
    """What a training takes of the cards that it is planned for.

    Attributes:
        phase: Its phase.
        strategy: Its strategy's name.
        precision: Of the training; `auto` is resolved for a card.
        parameters: Of the model.
        trained: Of these, how many train.
        pieces: In which each process computes a micro-batch.
        gradient_checkpointing: Whether activations are computed twice.
        memory: Bytes of each card, by part.
        memory_bytes: Their sum.
        disk_bytes: Of the model and two resumable checkpoints.
        fits: Whether a card holds it.
    """

    phase: str
    strategy: str
    precision: Precision
    parameters: int
    trained: int
    pieces: int
    gradient_checkpointing: bool
    memory: MemoryPlan
    memory_bytes: int
    disk_bytes: int
    fits: bool


@dataclass(frozen=True)
class CardPlan:
    """What the trainings of a study take of cards, by a model's config.json alone.

    Attributes:
        card_bytes: Of each card.
        processes: That train, each on a card.
        sharded: Whether they divide the model.
        trainings: One for each strategy of each phase.
        problems: What does not fit, each in a sentence with what would.
        format: Of its JSON.
    """

    card_bytes: int
    processes: int
    sharded: bool
    trainings: tuple[CardTraining, ...]
    problems: tuple[str, ...]
    format: int = 1


def plan_for_cards(study: Study, card_bytes: int, processes: Processes) -> CardPlan:
    """Return what each training takes of cards that need not be here; data and weights are not read.

    A step is the fullest that `tokens_per_batch` and `max_length` allow: what rows are like is not known.

    Args:
        study: The study.
        card_bytes: Memory of a card.
        processes: That train, each on a card.

    Raises:
        ConfigError: The model's config.json cannot be had, or does not say its size; an optimizer and a precision that
            do not go together.
    """
    if processes.sharded:
        check_divided(study)
    name = study.phases[0].checkpoint or study.model or ""
    folder = configuration_of(name)
    if folder is None:
        raise ConfigError(
            f"{name}: its config.json cannot be had, by which --card plans: name a folder that has it."
        )
    found, problems = [], []
    for phase, choice, asked in trainings_of(study):
        training = with_resolved_precision(asked, _CARD)
        shape = shape_in(folder, choice, trust_remote_code=study.trust_remote_code)
        place = f"phase {phase!r}, strategy {choice.label!r}"
        if shape is None:
            raise ConfigError(f"{place}: what trains is not known by the config.json of {name} alone.")
        batch = LargestBatch.fullest(training).part(processes.count)
        one, own = card_training(phase, choice, training, shape, batch, card_bytes, processes)
        found.append(one)
        if not one.fits:
            held = held_bytes(build(choice), shape, compute_for(training.precision, _CARD))
            adapted = adapted_shape(folder, shape, trust_remote_code=study.trust_remote_code)
            problems.append(refusal(place, training, shape, adapted, own, held, one.memory_bytes, card_bytes))
    return CardPlan(card_bytes, processes.count, processes.sharded, tuple(found), tuple(problems))


def card_training(
    phase: str,
    choice: StrategyChoice,
    training: Training,
    shape: ModelShape,
    batch: LargestBatch,
    card_bytes: int,
    processes: Processes,
) -> tuple[CardTraining, Setup]:
    """Return what a training takes of cards, and how it trains there.

    Args:
        phase: Its phase.
        choice: Its strategies.
        training: Its options, the precision resolved for a card.
        shape: Of the model.
        batch: The fullest of a process.
        card_bytes: Memory of a card.
        processes: That train, each on a card.
    """
    compute = compute_for(training.precision, _CARD)
    composition = build(choice)
    held = held_bytes(composition, shape, compute)

    def setup(cut: Cut) -> Setup:
        return setup_of(composition, training, compute, cut, processes)

    def memory(cut: Cut) -> MemoryPlan:
        return training_memory(shape, batch.part(cut.pieces), setup(cut), held=held)

    cut = chosen_cut(batch, training, memory, card_bytes)
    plan, own = memory(cut), setup(cut)
    one = CardTraining(
        phase=phase,
        strategy=choice.label,
        precision=own.precision,
        parameters=shape.parameters,
        trained=shape.trained,
        pieces=cut.pieces,
        gradient_checkpointing=cut.checkpointing,
        memory=plan,
        memory_bytes=plan.total,
        disk_bytes=4 * shape.parameters + 2 * checkpoint_bytes(shape, own),
        fits=plan.total <= card_bytes,
    )
    return one, own
