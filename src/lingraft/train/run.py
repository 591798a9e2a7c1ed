"""Train one described phase, from the checkpoint that it starts from to the one that it leaves.

The same function runs in this process and as one of torchrun's (`train.processes` starts them).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate import PartialState
from pydantic import BaseModel, ConfigDict

from lingraft import stopping
from lingraft.config.schema import StrategyChoice, Training
from lingraft.data.encoded import EncodedTable
from lingraft.models.checkpoints import save_checkpoint, save_tokenizer
from lingraft.models.compute import compute_for
from lingraft.models.loading import load_empty_model, load_for_training, load_model, load_tokenizer
from lingraft.models.weights import ModelWeights
from lingraft.records import flush_folder
from lingraft.strategies.base import Context, FreezePlanRow, count_masked, freeze_plan
from lingraft.strategies.composition import build
from lingraft.train.divided_model import save_divided, wants_whole
from lingraft.train.held import in_float32
from lingraft.train.memory_plan import Cut
from lingraft.train.phase import PhaseOutcome, train_phase
from lingraft.train.restraints import give_back_bits
from lingraft.train.sharding import from_first, set_whole
from lingraft.train.teacher import load_divided
from lingraft.train.trackers import TrackedRun
from lingraft.train.watching import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PhaseTask(BaseModel):
    """A phase to train: all that decides it, and where its files lie. Paths are absolute."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    parent: Path
    """Checkpoint folder that training starts from."""
    base: Path | None
    """Checkpoint folder of the base, if a strategy needs it."""
    choice: StrategyChoice
    """The strategies; what they mix in stands among the encoded rows already."""
    states: dict[str, Path]
    """Folders that strategies prepared, by kind."""
    training: Training
    """Resolved options, the precision included: every process must compute in the same."""
    encoded: Path
    """Folder of the table of encoded examples."""
    folder: Path
    """The stage's folder."""
    checkpoint: Path
    """Where the trained model goes."""
    seed: int
    """The cell's seed."""
    trust_remote_code: bool
    """Whether Python code that a model brings along may be run."""
    run: TrackedRun | None = None
    """What trackers call it."""
    cut: Cut | None = None
    """How a step is computed so that it fits; None: it is chosen when the model is in memory."""
    replicas: int = 1
    """Groups of processes, alike large, that each divide a whole model between them, where it is divided."""


@dataclass(frozen=True, slots=True)
class PhasePlan:
    """What of a model trains, known before training.

    Attributes:
        parts: Trained and frozen parameters of each part of the model.
        masked_parameters: Parameters that a frozen mask keeps inside of tensors that train.
    """

    parts: tuple[FreezePlanRow, ...]
    masked_parameters: int


@dataclass(frozen=True, slots=True)
class TrainedPhase:
    """A trained phase, whose model is on disk; what it could have continued from still lies in its folder."""

    plan: PhasePlan
    outcome: PhaseOutcome


def train_task(
    task: PhaseTask,
    *,
    rank: int = 0,
    sharded: bool = False,
    on_plan: Callable[[PhasePlan], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_note: Callable[[str], None] | None = None,
    stop: Callable[[], int | None] = stopping.requested,
) -> TrainedPhase:
    """Train a phase and write its checkpoint: load, check, wrap, train, merge adapters, save.

    The resumable checkpoints stay until the caller has recorded the phase: a save that fails repeats no step.

    Args:
        task: The phase.
        rank: Of this process among torchrun's; the first reports and writes.
        sharded: Whether parameters, gradients and optimiser states are divided between the processes (FSDP2).
        on_plan: Called once, before training.
        on_progress: Called after every optimiser step.
        on_note: Called with a sentence about resumable checkpoints.
        stop: Returns the number of a signal that asks to stop.

    Raises:
        LingraftError: What a strategy names is missing in the model, or what `train_phase` raises.
    """
    composition = build(task.choice)
    compute = compute_for(task.training.precision)
    context = Context(
        base=task.base,
        previous=task.parent,
        previous_data=(),
        english=(),
        seed=task.seed,
        folder=task.folder,
        cache=task.folder,
        states=task.states,
        trust_remote_code=task.trust_remote_code,
        compute=compute,
        load_divided=partial(load_divided, dtype=compute.held, trust_remote_code=task.trust_remote_code)
        if sharded
        else None,
    )
    tokenizer = load_tokenizer(task.parent, trust_remote_code=task.trust_remote_code)
    is_first = rank == 0
    # Of a sharded model each process gets its piece of every weight from the first, which alone reads the files.
    has_weights = is_first or not sharded
    load = load_for_training if not sharded else load_model if has_weights else load_empty_model
    model = load(task.parent, trust_remote_code=task.trust_remote_code)

    def start() -> PreTrainedModel:
        return in_float32(load_for_training(task.parent, trust_remote_code=task.trust_remote_code))

    composition.check([name for name, _ in model.named_parameters()])
    model = composition.wrap(model, context)
    trainable = composition.trainable(model, context)
    frozen_mask = composition.frozen_mask(model, context) if has_weights else {}
    plan = PhasePlan(freeze_plan(model, trainable), count_masked(model, trainable, frozen_mask))
    if sharded:
        PartialState(cpu=compute.device.type == "cpu")  # the processes meet
        trainable, frozen_mask, plan = from_first((trainable, frozen_mask, plan))
    rules = composition.rules(model, context, frozen_mask)
    rows = EncodedTable.open(task.encoded)
    if not rows.replayed_rows:  # which alone they are taken of
        rules = replace(rules, output_penalties=())
    if is_first and on_plan is not None:
        on_plan(plan)
    outcome = train_phase(
        model,
        tokenizer,
        rows,
        task.training,
        trainable=trainable,
        folder=task.folder,
        seed=task.seed,
        on_progress=on_progress,
        on_note=on_note,
        stop=stop,
        sharded=sharded,
        rules=rules,
        run=task.run,
        cut=task.cut,
        replicas=task.replicas,
    )
    if sharded and frozen_mask and compute.precision == "bf16_pure":
        files = ModelWeights(task.parent, trust_remote_code=task.trust_remote_code)
        give_back_bits(model, frozen_mask, files)
    if sharded and not from_first(is_first and wants_whole(model)):
        save_divided(model, task.parent, task.checkpoint, trust_remote_code=task.trust_remote_code)
        if is_first:
            save_tokenizer(tokenizer, task.checkpoint)
    else:
        trained = model
        if sharded and is_first:  # what becomes of the weights needs them whole
            model = composition.wrap(load(task.parent, trust_remote_code=task.trust_remote_code), context)
        if sharded:
            set_whole(model if is_first else None, trained, trainable)
        if is_first:
            finished = composition.finish(in_float32(model), task.folder, start)
            save_checkpoint(finished, tokenizer, task.checkpoint)
    if is_first:
        flush_folder(task.checkpoint)
    return TrainedPhase(plan, outcome)
