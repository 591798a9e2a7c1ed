"""One phase: prepare the model, train it, check what must not have changed, and leave it ready to evaluate."""

from __future__ import annotations

import hashlib
import math
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PrinterCallback, TrainerCallback

from lingraft.config.schema import Training
from lingraft.data.encoded import EncodedTable, write_table
from lingraft.errors import ConfigError, DataError, ModelError, StrategyError, VerificationError, did_you_mean
from lingraft.models.compute import Compute, compute_for
from lingraft.models.token_ids import check_token_ids, embedding_rows, padding_id
from lingraft.records import fingerprint_of, read_json, write_json_atomically
from lingraft.strategies.base import TrainingRules
from lingraft.train.attention import grouped_attention
from lingraft.train.memory import forget_peak, peak_bytes
from lingraft.train.sharding import whole
from lingraft.train.trainer import BatchPlan, PhaseTrainer, training_arguments

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lingraft.data.encoded import EncodedExample

_IDENTITY = "phase.json"
_STATE = "trainer_state.json"  # the Trainer writes it last
_SAMPLED = 1024
NO_RULES = TrainingRules()


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a phase stands after an optimiser step.

    Attributes:
        step: Steps done, from 1.
        steps: Steps of the phase.
        loss: Mean loss of this step in nats per supervised token.
        tokens_per_second: Real tokens (no padding) per second since this process began or resumed.
        seconds_left: Expected at that rate.
    """

    step: int
    steps: int
    loss: float
    tokens_per_second: float
    seconds_left: float


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


def train_phase(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[EncodedExample],
    training: Training,
    *,
    trainable: Collection[str],
    folder: Path,
    seed: int,
    on_progress: Callable[[Progress], None] | None = None,
    sharded: bool = False,
    rules: TrainingRules = NO_RULES,
) -> PhaseOutcome:
    """Train `model` in place on `encoded`, and leave it in eval mode with float32 weights.

    The arguments alone decide the order of the data, and so, on the CPU of one machine and with one number of
    processes, every bit of the result, also when an interrupted run is continued. Processes that torchrun started
    share each batch's rows.

    Args:
        model: float32 weights.
        tokenizer: Gives the id that fills rows.
        encoded: The examples.
        training: `precision: auto` is resolved for this machine.
        trainable: Names from `model.named_parameters()`; all others are frozen, and verified to be bit for bit
            the same afterwards. A tied head has no name of its own: it goes with the embedding.
        folder: Where `folder/trainer` holds checkpoints while the phase runs (`training.save_every`). One that an
            interrupted run of the same phase left is continued; nothing of it remains at the end. Files of
            trackers are kept in `folder/trackers`.
        seed: Of data order, dropout and stochastic rounding.
        on_progress: Called after every optimiser step, in the first process; what it raises ends the phase.
        sharded: Divide parameters, gradients and optimiser states between the processes (FSDP2). The model is left
            in pieces: `sharding.whole_weights` puts them together.
        rules: What strategies ask besides: a mask that freezes elements of trained parameters (verified as frozen
            parameters are), learning rates, pulls towards the start, penalties on outputs.

    Returns:
        Counts, losses and times.

    Raises:
        ConfigError: sharded training in pure bf16, or with rules that need whole tensors.
        StrategyError: `trainable` is empty or holds an unknown name.
        DataError: no examples, or an optimiser step without a supervised token.
        ModelError: the data hold a token that the model has no embedding for, or the loss is no longer a number.
        VerificationError: a frozen parameter changed.
    """
    if not encoded:
        raise DataError("a phase needs at least one example, but its data set is empty.")
    training = with_resolved_precision(training)
    compute = compute_for(training.precision)
    if sharded and compute.precision == "bf16_pure":
        raise ConfigError(
            "training.precision bf16_pure does not go with sharded training: its optimiser rounds whole tensors. "
            "Use bf16, whose float32 weights are divided between the processes."
        )
    if sharded and (rules.frozen_mask or rules.anchors):
        raise ConfigError(
            "sharded training divides weights between processes, but this strategy freezes parts of tensors or pulls "
            "weights, which needs whole tensors here. Train it on processes without --sharded."
        )
    names = _check_trainable(model, trainable)
    table = encoded if isinstance(encoded, EncodedTable) else write_table(encoded)
    rows = embedding_rows(model)
    check_token_ids((table.highest_token,), rows, tokenizer, "the training data")
    plan = BatchPlan(table.lengths, training, seed)
    workplace = folder / "trainer"
    arguments = training_arguments(training, compute, folder=workplace, seed=seed, sharded=sharded)
    state = arguments.distributed_state
    if state.is_main_process:
        parts = [
            [f"{name} {_sampled(parameter)}" for name, parameter in model.named_parameters()],
            training.model_dump(mode="json", exclude={"save_every", "report_to"}),
            names,
            seed,
            table.content_hash,
            [state.num_processes, sharded],  # the two kinds of checkpoint differ
            # Penalties on outputs are known by the stage alone.
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
        _keep_checkpoints_of(fingerprint_of(parts), workplace)
    state.wait_for_everyone()
    resumed = max(workplace.glob("checkpoint-*"), key=_steps_of, default=None)
    with _prepared(model, frozenset(names), training, compute, rules.frozen_mask):
        before = _frozen_hashes(model, rules.frozen_mask)
        trainer = PhaseTrainer(
            model,
            arguments,
            table,
            table.lengths,
            plan,
            pad_token_id=padding_id(tokenizer, rows),
            compute=compute,
            rules=rules,
        )
        forget_peak()
        clock = _Clock(plan.tokens_per_step(), on_progress if state.is_main_process else None)
        trainer.add_callback(clock)
        trainer.remove_callback(PrinterCallback)
        own = set(vars(model))
        try:
            trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
        finally:
            for mark in set(vars(model)) - own:  # accelerate's
                delattr(model, mark)
            trainer.accelerator.free_memory()
        after = _frozen_hashes(model, rules.frozen_mask)
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        if changed:
            raise VerificationError(
                f"{len(changed)} frozen parameters changed in training, the first is {changed[0]!r}. This is a fault "
                "of lingraft or of a callback; the model must not be used."
            )
        sizes = [(one.numel(), one.requires_grad) for one in model.parameters()]
    state.wait_for_everyone()
    if state.is_main_process:
        if (workplace / "runs").is_dir():  # a tracker's
            shutil.copytree(workplace / "runs", folder / "trackers", dirs_exist_ok=True)
        shutil.rmtree(workplace)
    return PhaseOutcome(
        steps=trainer.state.global_step,
        examples=len(table),
        tokens=training.epochs * int(np.sum(table.lengths)),
        padded_tokens=plan.padded_tokens,
        supervised_tokens=training.epochs * table.predicted_tokens,
        losses=tuple((int(e["step"]), e["loss"]) for e in trainer.state.log_history if "loss" in e),
        trainable_parameters=sum(size for size, is_trained in sizes if is_trained),
        frozen_parameters=sum(size for size, is_trained in sizes if not is_trained),
        seconds=clock.seconds,
        tokens_per_second=clock.tokens_per_second,
        peak_bytes=peak_bytes(),
        resumed_from=None if resumed is None else _steps_of(resumed),
    )


def with_resolved_precision(training: Training) -> Training:
    """Return the options with the precision that `auto` stands for on this machine: what a result depends on."""
    return training.model_copy(update={"precision": compute_for(training.precision).precision})


def _check_trainable(model: nn.Module, trainable: Collection[str]) -> list[str]:
    """Return the sorted names, or say which of them the model does not have."""
    names = {name for name, _ in model.named_parameters()}
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


def _keep_checkpoints_of(phase: str, workplace: Path) -> None:
    """Leave the whole checkpoints of an interrupted run of this very phase in the workplace, and nothing else."""
    identity = {"fingerprint": phase}
    if _json_in(workplace / _IDENTITY) != identity:
        shutil.rmtree(workplace, ignore_errors=True)
        workplace.mkdir(parents=True)
        write_json_atomically(workplace / _IDENTITY, identity)
    for checkpoint in workplace.glob("checkpoint-*"):
        if not isinstance(_json_in(checkpoint / _STATE), dict):
            shutil.rmtree(checkpoint)


def _json_in(path: Path) -> object:
    """Return a file's content; None where it is missing or torn."""
    try:
        content: object = read_json(path)
    except (OSError, ValueError):
        return None
    return content


def _steps_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


@contextmanager
def _prepared(
    model: Any,
    names: Collection[str],
    training: Training,
    compute: Compute,
    frozen_mask: Mapping[str, Tensor],
) -> Iterator[None]:
    """Set what trains, the weights' type and gradient checkpointing; undo all but the training at the end.

    In pure bf16 the weights are bf16 inside. Outside, what is frozen has the very float32 bits that it had.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    use_cache = getattr(model.config, "use_cache", None)
    if training.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
        # Only the re-entrant kind needs gradients at the embeddings; they would cost the frozen layers' backward.
        model.disable_input_require_grads()
    originals: dict[str, Tensor] = {}
    if compute.precision == "bf16_pure":
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad or name in frozen_mask:
                originals[name] = parameter.data
            parameter.data = parameter.data.to(compute.held)
    try:
        with grouped_attention(model):
            yield
    finally:
        for name, parameter in model.named_parameters() if compute.precision == "bf16_pure" else ():
            kept = originals.pop(name, None)
            kept = parameter.data.float() if kept is None else kept.to(parameter.device)
            if name in frozen_mask and parameter.requires_grad:
                kept = torch.where(frozen_mask[name].to(parameter.device), kept, parameter.data.float())
            parameter.data = kept
        if training.gradient_checkpointing:
            model.activation_checkpointing_disable()
        model.config.use_cache = use_cache  # the Trainer switches it off, and generation would crawl
        model.zero_grad(set_to_none=True)
        model.eval()


class _Clock(TrainerCallback):
    """Watches the steps: reports progress, stops at a loss that is no number, spares the last checkpoint."""

    def __init__(
        self, tokens_per_step: Sequence[int], on_progress: Callable[[Progress], None] | None
    ) -> None:
        self._tokens_after = [0, *accumulate(tokens_per_step)]  # by number of steps done
        self._on_progress = on_progress
        self._first_step = 0
        self._begin = time.perf_counter()
        self.seconds = 0.0
        self.tokens_per_second = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Start the clock where an interrupted run stood."""
        self._first_step = state.global_step
        self._begin = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Leave out the checkpoint at the end: whoever called saves the model next."""
        if state.global_step >= state.max_steps:
            control.should_save = False

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Report the step that has just been logged."""
        logs = kwargs["logs"]
        if "loss" not in logs:  # the summary at the end
            return
        step, loss, norm = state.global_step, logs["loss"], logs.get("grad_norm", 0.0)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise ModelError(
                f"training diverged: at step {step} of {state.max_steps} the loss is {loss} and the gradient's "
                f"norm {norm}. Lower training.learning_rate ({args.learning_rate}) or raise warmup_share."
            )
        self.seconds = time.perf_counter() - self._begin
        done = self._tokens_after[step] - self._tokens_after[self._first_step]
        self.tokens_per_second = done / max(self.seconds, 1e-9)
        left = (self._tokens_after[-1] - self._tokens_after[step]) / self.tokens_per_second
        if self._on_progress is not None:
            self._on_progress(Progress(step, state.max_steps, loss, self.tokens_per_second, left))


def _frozen_hashes(model: nn.Module, frozen_mask: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the SHA-256 of the bytes of every parameter that is not trained, and of what a mask freezes of others."""
    hashes = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            kept = whole(parameter).cpu().contiguous()
        elif name in frozen_mask:
            kept = parameter.detach().cpu()[frozen_mask[name].expand(parameter.shape)]
        else:
            continue
        hashes[name] = hashlib.sha256(kept.view(-1).view(torch.uint8).numpy().data).hexdigest()
    return hashes
