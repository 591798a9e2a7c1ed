"""One phase: prepare the model, train it, check what must not have changed, and leave it ready to evaluate."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from transformers import PrinterCallback

from lingraft import stopping
from lingraft.config.load import section_of
from lingraft.config.paths import path_of
from lingraft.config.schema import DataSource, Training
from lingraft.data.chat import encode_examples
from lingraft.data.encoded import EncodedExample, EncodedTable, write_table
from lingraft.data.example import Example
from lingraft.data.sources import LoadedData, examples_of
from lingraft.errors import ConfigError, DataError, ModelError, StrategyError, VerificationError, did_you_mean
from lingraft.models.compute import Compute, Machine, compute_for, trained_in
from lingraft.models.four_bits import parameter_count
from lingraft.models.loaded import check_has_values, model_in_memory, tokenizer_for
from lingraft.models.peak import Peak
from lingraft.models.shape import shape_of
from lingraft.models.token_ids import check_token_ids, embedding_rows, padding_id
from lingraft.records import fingerprint_of
from lingraft.stopping import Stopped
from lingraft.strategies.base import TrainingRules
from lingraft.train.attention import grouped_attention
from lingraft.train.checkpoints import FOLDER, Checkpoints, Found
from lingraft.train.compiled import compiled_layers, compiles
from lingraft.train.held import held_weights
from lingraft.train.memory import forget_peak, peak_bytes
from lingraft.train.memory_plan import (
    Cut,
    MemoryPlan,
    Setup,
    chosen_cut,
    free_memory,
    held_now,
    largest_batch,
    training_memory,
)
from lingraft.train.on_policy import OnPolicy
from lingraft.train.packing import (
    PACKING,
    Packing,
    can_pack,
    kernel_problem,
    packed_attention,
    packing_for,
)
from lingraft.train.restraints import frozen_changed, frozen_hashes
from lingraft.train.sharding import from_all, own_piece, take_layout
from lingraft.train.trackers import RUNS, TrackedRun, tracked
from lingraft.train.trainer import BatchPlan, PhaseTrainer, ProcessShares, training_arguments
from lingraft.train.watching import Clock, Progress, Saving

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SAMPLED = 1024
NO_RULES = TrainingRules()


@dataclass(frozen=True, slots=True)
class PhaseOutcome:
    """What a phase did.

    Attributes:
        steps: Optimiser steps.
        examples: Examples; each was seen once per epoch.
        tokens: Real tokens over all epochs.
        padded_tokens: Tokens that the model computed over all epochs, padding included.
        supervised_tokens: Tokens that the loss was taken over, over all epochs.
        losses: (step, mean loss of that step in nats per supervised token), resumed steps included.
        trainable_parameters: How many parameters were trained; tied ones count once.
        frozen_parameters: How many were not.
        seconds: Wall time of training in this process; of a resumed run the rest only.
        tokens_per_second: Real tokens per second in that time; 0 where nothing was left to do.
        peak_bytes: Largest resident memory of this process since training began (of several, the first); since its
            start where the kernel cannot forget an older peak. Memory of an accelerator is not in it.
        resumed_from: Steps that an interrupted run had done; None: the phase ran in one go.
        refused_checkpoints: How many newer checkpoints that run had left that were not whole.
        mfu: See `Progress`; None: not known, or nothing was left to do.
        peak: What one device can compute at most; None: the model's FLOPs are not known.
        compiled: Whether its layers were compiled.
        packed: Whether rows were laid end to end (`train.packing`) and not padded.
    """

    steps: int
    examples: int
    tokens: int
    padded_tokens: int
    supervised_tokens: int
    losses: tuple[tuple[int, float], ...]
    trainable_parameters: int
    frozen_parameters: int
    seconds: float
    tokens_per_second: float
    peak_bytes: int
    resumed_from: int | None
    refused_checkpoints: int = 0
    mfu: float | None = None
    peak: Peak | None = None
    compiled: bool = False
    packed: bool = False


def train_phase(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase | None,
    encoded: Sequence[EncodedExample]
    | Sequence[Example]
    | LoadedData
    | DataSource
    | str
    | Path
    | Mapping[str, Any],
    training: Training | Mapping[str, Any] | None = None,
    *,
    trainable: Collection[str] | None = None,
    folder: str | Path,
    seed: int = 0,
    on_progress: Callable[[Progress], None] | None = None,
    on_note: Callable[[str], None] | None = None,
    stop: Callable[[], int | None] = stopping.requested,
    sharded: bool = False,
    rules: TrainingRules = NO_RULES,
    on_policy: OnPolicy | None = None,
    run: TrackedRun | None = None,
    cut: Cut | None = None,
    replicas: int = 1,
) -> PhaseOutcome:
    """Train `model` in place on `encoded`, and leave it in eval mode: what trained in float32, the rest as it was.

    Work that was done is kept: by steps, by time, at a signal and after the last step a checkpoint is written, from
    which the same call continues. Whoever has saved the model removes `folder/trainer`.

    The arguments alone decide the order of the data, and so, on the CPU of one machine and with one number of
    processes, every bit of the result, also when an interrupted run is continued. Processes that torchrun started
    share each batch's rows.

    Args:
        model: In memory; what trains is computed with and left in float32, whatever type it has.
        tokenizer: Gives the id that fills rows, and what examples are encoded by; None: the one that lies where the
            model was loaded from.
        encoded: The examples: encoded (all tokens are known), as `load_data` returns them, or what it takes. Rows that
            the chat template refuses are left out, and noted.
        training: Options of training, or their fields in a dict; None: the defaults of a study. `precision: auto` is
            resolved for this machine.
        trainable: Names from `model.named_parameters()`; None: all. All others are frozen, and verified to be bit for
            bit the same afterwards. A tied head has no name of its own: it goes with the embedding.
        folder: Where `folder/trainer` holds resumable checkpoints. One that an interrupted run of the same phase left
            is continued. Files of trackers are kept in `folder/trackers`.
        seed: Of data order, dropout and stochastic rounding.
        on_progress: Called after every optimiser step, in the first process; what it raises ends the phase.
        on_note: Called in the first process with a sentence about checkpoints: refused, of another phase, or saved at a
            stop.
        stop: Asked after every step; a signal's number ends the phase once that step is saved.
        sharded: Divide parameters, gradients and optimiser states between the processes (FSDP2). The weights are those
            of the first process's model; those of the others may lie on the meta device. The model is left in pieces:
            `divided_model.save_divided` writes it.
        rules: What strategies ask besides: a mask that freezes elements of trained parameters (verified as frozen
            parameters are), learning rates, pulls towards the start, penalties on outputs.
        on_policy: Train on the model's own answers, which `encoded` stands for, in one process; the counts of tokens
            are then those of the longest answers allowed.
        run: What trackers call it; None: it is called by its folder.
        cut: How a step is computed so that it fits; None: as fast as fits the memory that is free, within what
            `training` says.
        replicas: Groups of processes that each divide a whole model, where it is `sharded`; 1: all divide it.

    Returns:
        Counts, losses and times.

    Raises:
        ConfigError: the model's own answers are to be trained on by several processes; `compile: true` where nothing
            compiles.
        StrategyError: `trainable` is empty or holds an unknown name.
        DataError: no examples, or an optimiser step without a supervised token.
        ModelError: the data hold a token that the model has no embedding for, or the loss is no longer a number.
        VerificationError: a frozen parameter changed, or no trained one did.
        Stopped: a signal asked for it; what was trained is saved.
    """
    training = with_resolved_precision(section_of(Training, {} if training is None else training, "training"))
    folder = path_of(folder, "folder")
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ConfigError(f"seed {seed!r}: must be a whole number from 0 to 2**32 - 1.")
    tokenizer, table = _checked(model, tokenizer, encoded, training.max_length, on_note, sharded=sharded)
    compute = compute_for(training.precision)
    if sharded:
        for name, parameter in model.named_parameters():
            if parameter.dim() == 0:
                raise ModelError(
                    f"{name!r} is a single number without a dimension, which FSDP2 cannot divide. Train this model "
                    "without sharding (no --sharded)."
                )
        PartialState(cpu=compute.device.type == "cpu")
        take_layout(model)
    names = _check_trainable(model, trainable)
    rows = embedding_rows(model)
    check_token_ids((table.highest_token,), rows, tokenizer, "the training data")
    cut = cut or _chosen_cut(
        model,
        names,
        table,
        training,
        seed,
        compute,
        sharded=sharded,
        needs_logits=on_policy is not None or bool(rules.output_penalties),
    )
    plan = BatchPlan(table.lengths, training, seed, cut.pieces)
    workplace = folder / FOLDER
    run = run or TrackedRun("lingraft", folder.absolute().name)
    arguments = training_arguments(
        training, compute, folder=workplace, seed=seed, sharded=sharded, pieces=cut.pieces
    )
    arguments.run_name, arguments.project = run.name, run.project
    state = arguments.distributed_state
    if on_policy is not None and state.num_processes > 1:
        raise ConfigError("training on a model's own answers runs in one process; start it without torchrun.")
    noted = on_note if on_note is not None and state.is_main_process else lambda _: None
    # The answers that the model trains on may be shorter than planned, so their FLOPs are not known before.
    flops = None if on_policy is not None else _flops_of_steps(model, names, table, plan)
    layers = _layers(model, training, compute, rules, table, plan, state.num_processes, flops, noted)
    identity = _identity(model, names, training, table, rules, seed)
    checkpoints = Checkpoints(workplace, identity, noted)
    found = [checkpoints.find() if state.is_main_process else Found(None, 0)]
    if state.num_processes > 1:
        broadcast_object_list(found)
    resumed, refused = found[0].step, found[0].refused
    bits = _Bits(model, rules.frozen_mask)
    with _prepared(
        model,
        frozenset(names),
        compute,
        rules.frozen_mask,
        checkpointing=cut.checkpointing,
        sharded=sharded,
        layers=layers,
    ):
        trainer = PhaseTrainer(
            model,
            arguments,
            table,
            plan,
            pad_token_id=padding_id(tokenizer, rows),
            compute=compute,
            rules=rules,
            checkpoints=checkpoints,
            noted=noted,
            on_policy=on_policy,
            prepared=bits.remember,
            packing=layers.packing,
            replicas=replicas,
        )
        forget_peak()
        tokens_after = [0, *accumulate(plan.tokens_per_step())]  # by number of steps done
        clock = Clock(
            tokens_after,
            flops if state.is_main_process else None,
            compute,
            state.num_processes,
            on_progress if state.is_main_process else None,
        )
        saving = Saving(training, stop, trainer.agreed)
        trainer.add_callback(clock)
        trainer.add_callback(saving)
        trainer.remove_callback(PrinterCallback)
        own = set(vars(model))
        try:
            with stopping.finish_first(), tracked(trainer, run, workplace / RUNS, tokens_after):
                trainer.train(
                    resume_from_checkpoint=None if resumed is None else str(checkpoints.path_of(resumed))
                )
                if saving.stopped_by is not None:
                    step, steps = trainer.state.global_step, trainer.state.max_steps
                    is_saved = trainer.saved_step == step
                    stopping.saved(
                        f"training stopped after step {step} of {steps}, which is "
                        f"{'saved' if is_saved else 'not saved'}"
                    )
                    raise Stopped(saving.stopped_by)
        finally:
            for mark in set(vars(model)) - own:  # accelerate's
                delattr(model, mark)
            trainer.accelerator.free_memory()
        changed = bits.changed_though_frozen()
        if changed is not None:
            checkpoints.clear()
            raise changed
        if not bits.have_changed():
            raise VerificationError(_why_nothing_moved(trainer.state.log_history, training))
        sizes = [(parameter_count(one), one.requires_grad) for one in model.parameters()]
    state.wait_for_everyone()
    if state.is_main_process and (workplace / RUNS).is_dir():  # a tracker's
        shutil.copytree(workplace / RUNS, folder / "trackers", dirs_exist_ok=True, ignore=_no_files)
    return PhaseOutcome(
        steps=trainer.state.global_step,
        examples=len(table),
        tokens=training.epochs * int(np.sum(table.lengths)),
        padded_tokens=plan.padded_tokens
        if layers.packing is None
        else layers.packing.length * len(plan) * plan.pieces * state.num_processes,
        supervised_tokens=training.epochs * table.predicted_tokens,
        losses=tuple((int(e["step"]), e["loss"]) for e in trainer.state.log_history if "loss" in e),
        trainable_parameters=sum(size for size, is_trained in sizes if is_trained),
        frozen_parameters=sum(size for size, is_trained in sizes if not is_trained),
        seconds=clock.seconds,
        tokens_per_second=clock.tokens_per_second,
        peak_bytes=peak_bytes(),
        resumed_from=resumed,
        refused_checkpoints=refused,
        mfu=clock.mfu,
        peak=clock.peak,
        compiled=layers.is_compiled,
        packed=layers.packing is not None,
    )


def _chosen_cut(
    model: Any,
    names: Collection[str],
    table: EncodedTable,
    training: Training,
    seed: int,
    compute: Compute,
    *,
    sharded: bool,
    needs_logits: bool,
) -> Cut:
    """Return how a step of a model in memory is computed: as fast as fits the memory, in all processes alike."""
    given = Cut(checkpointing=bool(training.gradient_checkpointing))
    is_said = training.accumulation is not None and training.gradient_checkpointing is not None
    config = model.config.get_text_config()
    if is_said or getattr(config, "hidden_size", None) is None or model.get_output_embeddings() is None:
        return given
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    shape, on_processor = shape_of(model, names), compute.device.type == "cpu"
    largest = largest_batch(
        BatchPlan(table.lengths, training, seed).shapes, training.epochs * table.predicted_tokens
    )
    batch = largest.part(processes)
    loaded = sum(one.nbytes for one in model.parameters()) if on_processor else 0

    def planned(cut: Cut) -> MemoryPlan:
        setup = Setup.of(training, compute, cut, processes, sharded=sharded, needs_logits=needs_logits)
        return training_memory(shape, batch.part(cut.pieces), setup, base=max(0, held_now(compute) - loaded))

    of_node = int(os.environ.get("LOCAL_WORLD_SIZE", str(processes)))
    free = free_memory(compute) // (of_node if on_processor else 1)
    chosen = [chosen_cut(batch, training, planned, free)]
    if processes > 1:
        PartialState(cpu=on_processor)
        broadcast_object_list(chosen)
    return chosen[0]


def _flops_of_steps(
    model: Any, trainable: Collection[str], table: EncodedTable, plan: BatchPlan
) -> list[float] | None:
    """Return the FLOPs that a model needs for the real tokens of each optimiser step; None: its sizes are not known."""
    config = model.config.get_text_config()
    if getattr(config, "hidden_size", None) is None or model.get_output_embeddings() is None:
        return None
    shape = shape_of(model, trainable)
    learned = table.predicted_tokens / int(np.sum(table.lengths))
    sizes = zip(plan.tokens_per_step(), plan.pairs_per_step(), strict=True)
    return [shape.training_flops(tokens, pairs, learned * tokens) for tokens, pairs in sizes]


@dataclass(frozen=True, slots=True)
class _Layers:
    """How a phase's layers run: compiled or not, on rows that are packed or (None) padded."""

    is_compiled: bool
    packing: Packing | None


def _layers(
    model: nn.Module,
    training: Training,
    compute: Compute,
    rules: TrainingRules,
    table: EncodedTable,
    plan: BatchPlan,
    processes: int,
    flops: Sequence[float] | None,
    noted: Callable[[str], None],
) -> _Layers:
    """Decide how a phase's layers run; rows are packed for compiled layers on accelerators, in 16 bits."""
    is_compiled = compiles(training.compile, compute.device, flops, noted)
    if (
        not is_compiled
        or flops is None  # the model's own answers are no table's rows
        or (compute.device.type, compute.arithmetic) not in PACKING
        or rules.output_penalties  # they read padded rows
        or not can_pack(model, int(np.max(table.lengths)))
    ):
        return _Layers(is_compiled, None)
    problem = kernel_problem(model, compute.device, compute.arithmetic)
    if problem is not None:
        noted(f"rows are padded, as attention within packed rows does not work on this device: {problem}.")
        return _Layers(is_compiled, None)
    parts = ProcessShares(plan, processes * plan.pieces, silent_row=len(table))
    return _Layers(is_compiled, packing_for(parts, table.lengths))


def _checked(
    model: object,
    tokenizer: object,
    encoded: object,
    max_length: int,
    on_note: Callable[[str], None] | None,
    *,
    sharded: bool,
) -> tuple[PreTrainedTokenizerBase, EncodedTable]:
    """Return tokenizer and encoded examples, of what `train_phase` is given, or refuse it."""
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"a phase trains a model in memory, in place, and {model!r:.80} is none; load it first "
            "(AutoModelForCausalLM.from_pretrained) and save it afterwards (save_pretrained)."
        )
    if not sharded or int(os.environ.get("RANK", "0")) == 0:  # others are given their pieces
        check_has_values(model)
    known: Any = tokenizer
    if tokenizer is None or not hasattr(tokenizer, "pad_token_id"):
        known = tokenizer_for(model_in_memory(model), tokenizer)
    if isinstance(encoded, EncodedTable):
        return known, encoded
    if isinstance(encoded, Sequence) and not isinstance(encoded, str):
        if not encoded:
            raise DataError("a phase needs at least one example, but its data set is empty.")
        if isinstance(encoded[0], EncodedExample):
            return known, write_table(encoded)
    found = encode_examples(examples_of(encoded, "data", answered=True), known, max_length)
    if found.dropped and on_note is not None:
        first = found.dropped[0]
        on_note(f"{len(found.dropped)} examples are left out, the first at {first.place}: {first.problem}.")
    return known, found.examples


def _identity(
    model: nn.Module,
    names: Sequence[str],
    training: Training,
    table: EncodedTable,
    rules: TrainingRules,
    seed: int,
) -> dict[str, object]:
    """Return all that decides a phase's steps but for rounding: the number of processes does not."""
    weights = [f"{name} {_sampled(one)}" for name, one in model.named_parameters() if not one.is_meta]
    return {
        "seed": seed,
        "options": training.compared(),
        "data": table.content_hash,
        "model": fingerprint_of(weights),
        "trained parameters": fingerprint_of(names),
        # Penalties on outputs are known by the stage alone.
        "restraints": fingerprint_of(
            [
                {name: _sampled(mask) for name, mask in rules.frozen_mask.items()},
                dict(rules.learning_rates),
                [
                    [
                        anchor.strength,
                        {name: _sampled(own) for name, own in (anchor.importance or {}).items()},
                        sorted(anchor.names or ()),
                    ]
                    for anchor in rules.anchors
                ],
            ]
        ),
    }


def with_resolved_precision(training: Training, machine: Machine | None = None) -> Training:
    """Return the options with the precision that `auto` stands for: what a result depends on.

    Args:
        training: The options.
        machine: Where they train; None: this machine.

    Raises:
        ConfigError: The optimizer does not train in the precision that is asked for.
    """
    problem = training.conflict()
    if problem is not None:
        raise ConfigError(f"training: {problem}")
    precision = trained_in(training.precision, training.optimizer, machine)
    return training.model_copy(update={"precision": precision})


def _no_files(folder: str, names: list[str]) -> list[str]:
    """Return which of a folder's names no tracker made: links, which may lead anywhere, and pipes."""
    paths = [Path(folder, name) for name in names]
    return [one.name for one in paths if one.is_symlink() or not (one.is_file() or one.is_dir())]


def _check_trainable(model: nn.Module, trainable: Collection[str] | None) -> list[str]:
    """Return the sorted names, None standing for all, or say which of them the model does not have."""
    names = {name for name, _ in model.named_parameters()}
    if trainable is None:
        return sorted(names)
    if isinstance(trainable, str):
        raise StrategyError(f"trainable {trainable!r}: give a list of parameters' names.")
    if not trainable:
        raise StrategyError(
            f"nothing would be trained: all {len(names)} parameters are frozen. Leave at least one to train."
        )
    for unknown in sorted(set(trainable) - names):
        tied = dict(model.named_parameters(remove_duplicate=False))
        if unknown in tied:
            partner = next(name for name in names if tied[name] is tied[unknown])
            raise StrategyError(f"{unknown!r} is tied to {partner!r}: name that one, which trains both.")
        hint = did_you_mean(unknown, names).partition("Options:")[0]
        raise StrategyError(
            f"{unknown!r} is no parameter of this model. {hint}Use names from model.named_parameters()."
        )
    return sorted(trainable)


def _sampled(tensor: Tensor) -> str:
    """Return a hash of up to _SAMPLED evenly spaced elements: fine-tuning leaves hardly one as it was."""
    flat = tensor.detach().reshape(-1)
    sample = flat[:: max(1, -(-flat.numel() // _SAMPLED))]
    return hashlib.sha256(sample.float().cpu().numpy().tobytes()).hexdigest()


class _Bits:
    """What the weights' bits were before training; every process asks together.

    Args:
        model: Its parameters say themselves whether they train.
        frozen_mask: Freezes elements of those that do.
    """

    def __init__(self, model: nn.Module, frozen_mask: Mapping[str, Tensor]) -> None:
        self._model, self._frozen_mask = model, frozen_mask
        self._frozen: dict[str, str] = {}
        self._trained: dict[str, tuple[str, int]] = {}

    def remember(self) -> None:
        """Note what they are now, where they lie while they train."""
        self._frozen = frozen_hashes(self._model, self._frozen_mask)
        self._trained = _trained_marks(self._model)

    def changed_though_frozen(self) -> VerificationError | None:
        """Return what to raise where a frozen weight has other bits now."""
        now = frozen_hashes(self._model, self._frozen_mask)
        return None if now == self._frozen else frozen_changed(self._frozen, now)

    def have_changed(self) -> bool:
        """Return whether any bit of what trains is another one now."""
        return any(from_all(_trained_marks(self._model) != self._trained))


def _trained_marks(model: nn.Module) -> dict[str, tuple[str, int]]:
    """Return of every trained parameter a hash of sampled elements, and the sum of the bits of all as whole numbers.

    Of a divided parameter they are those of this process's piece. The two tell a model in which nothing changed; a
    change of one bit changes the sum.
    """
    marks = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            flat = own_piece(parameter).detach().reshape(-1)
            together = (
                8 // flat.element_size()
            )  # in whole numbers of 64 bits, which are summed without a copy
            fits = flat.numel() % together == 0 and flat.storage_offset() % together == 0
            bits = flat.view(torch.int64 if fits else torch.uint8)
            marks[name] = _sampled(flat), int(bits.sum(dtype=torch.int64))
    return marks


def _why_nothing_moved(history: Sequence[Mapping[str, float]], training: Training) -> str:
    """Return what to say of a phase after which every trained parameter has the bits that it began with."""
    norms = [one["grad_norm"] for one in history if "grad_norm" in one]
    reason = (
        "All gradients were zero: what trains does not touch the loss, or a mask freezes all of it."
        if norms and not any(norms)
        else f"The largest gradient's norm was {max(norms, default=0):.3g}, so the steps were too small for the "
        f"weights' precision ({training.precision}): raise training.learning_rate ({training.learning_rate:g})."
    )
    return f"the phase trained nothing: no trained parameter changed by a single bit. {reason}"


@contextmanager
def _prepared(
    model: Any,
    names: Collection[str],
    compute: Compute,
    frozen_mask: Mapping[str, Tensor],
    *,
    checkpointing: bool,
    sharded: bool,
    layers: _Layers,
) -> Iterator[None]:
    """Set what trains, the weights' types, checkpointing of activations and compiling; undo all but the training."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    use_cache = getattr(model.config, "use_cache", None)
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
        # Only the re-entrant kind needs gradients at the embeddings; they would cost the frozen layers' backward.
        model.disable_input_require_grads()
    try:
        with (
            held_weights(model, compute, frozen_mask, divided=sharded),
            grouped_attention(model) if layers.packing is None else packed_attention(model, layers.packing),
            compiled_layers(model) if layers.is_compiled else nullcontext(),
        ):
            yield
    finally:
        if checkpointing:
            model.activation_checkpointing_disable()
        model.config.use_cache = use_cache  # the Trainer switches it off, and generation would crawl
        model.zero_grad(set_to_none=True)
        model.eval()
