"""transformers.Trainer with our loss, our batches and small checkpoints; nothing else.

The Trainer's engines (distributed, trackers, resume, clipping, schedules) stay its own. One pass over the
loader covers all epochs, since the Trainer reads the loader's length once and a resumed loader gets no
set_epoch.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import signal
import threading
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import accumulate, chain, islice
from multiprocessing import get_start_method
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import SchedulerType, TrainingArguments, set_seed
from transformers.trainer_utils import TrainOutput
from transformers.training_args import OptimizerNames

from lingraft import stopping
from lingraft.config.schema import Training
from lingraft.data.batching import Lengths, padded_tokens, token_budget_batches
from lingraft.errors import DataError, DiskError, LingraftError, disk_error, in_one_line
from lingraft.models.compute import Compute
from lingraft.models.fused_loss import LogitsChangedError, are_too_many, can_be_fused
from lingraft.models.loss import collate, count_supervised, supervised_loss
from lingraft.strategies.base import TrainingRules
from lingraft.train.checkpoints import Checkpoints
from lingraft.train.on_policy import OnPolicy
from lingraft.train.packing import Packing, packed
from lingraft.train.restrained import RestrainedTrainer
from lingraft.train.saved_state import Saving, read_training, training_tensors, write_optimizer
from lingraft.train.sharding import divided_in_groups, while_it_is_divided
from lingraft.train.stochastic_rounding import StochasticRoundingAdamW

if TYPE_CHECKING:
    from lingraft.data.encoded import EncodedExample, EncodedTable, TokenArrays

_LARGEST_SHARE = math.nextafter(1.0, 0.0)  # the Trainer reads a warm-up of 1 as one step
_WORKERS, _BATCHES_AHEAD = 2, 4  # processes that make batches for an accelerator, and how many each is ahead
_SHARDING_VARIABLES = ("ACCELERATE_USE_FSDP", "FSDP_CPU_RAM_EFFICIENT_LOADING", "FSDP_VERSION")
# torch and safetensors have their own types.
_DISK_ERRORS = (OSError, RuntimeError, SafetensorError)


class BatchPlan(Collection[list[int]]):
    """The micro-batches of all epochs in order; `accumulation` of them make an optimiser step.

    Args:
        lengths: Tokens of each row.
        training: Its tokens_per_batch, accumulation and epochs count.
        seed: Decides the order.
        pieces: That each micro-batch is computed in, one after the other; what a step learns does not depend on it.

    Attributes:
        pieces: See above.
    """

    def __init__(self, lengths: Lengths, training: Training, seed: int, pieces: int = 1) -> None:
        budget = max(1, training.tokens_per_batch // training.micro_batches)
        self._lengths = np.asarray(lengths, np.int64)
        self._accumulation = training.micro_batches
        self.pieces = pieces
        self._epochs = [
            token_budget_batches(lengths, budget, seed, epoch) for epoch in range(training.epochs)
        ]

    def __iter__(self) -> Iterator[list[int]]:
        return chain.from_iterable(self._epochs)

    def __len__(self) -> int:
        return sum(len(epoch) for epoch in self._epochs)

    def __contains__(self, batch: object) -> bool:
        return any(batch == own for own in self)

    def epoch_of(self, batch: int) -> int:
        """Return the epoch of a micro-batch, both from 0."""
        return bisect_right(list(accumulate(len(epoch) for epoch in self._epochs)), batch)

    @property
    def padded_tokens(self) -> int:
        """Tokens that a model computes over all epochs, padding included."""
        return sum(padded_tokens(epoch, self._lengths) for epoch in self._epochs)

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Of each micro-batch its rows and the tokens of the longest."""
        return [(len(batch), int(self._lengths[batch].max())) for batch in self]

    def tokens_per_step(self, of_rows: Lengths | None = None) -> list[int]:
        """Return the tokens of each optimiser step, over all processes.

        Args:
            of_rows: Tokens of each row that count; None: all, without padding.
        """
        counted = self._lengths if of_rows is None else np.asarray(of_rows, np.int64)
        return [int(own) for own in self._per_step(counted)]

    def pairs_per_step(self) -> list[float]:
        """Return of each optimiser step the sum over its rows of the squared tokens, which attention's FLOPs follow."""
        return self._per_step(self._lengths.astype(np.float64) ** 2)

    def _per_step(self, of_rows: np.ndarray[Any, Any]) -> list[float]:
        sums = [float(of_rows[batch].sum()) for batch in self]
        size = self._accumulation
        return [sum(sums[start : start + size]) for start in range(0, len(sums), size)]


class ProcessShares(Sampler[list[int]]):
    """Each micro-batch cut into parts, one after the other, as a batch sampler: a plan's `pieces` for each process.

    An optimiser step thus learns the same examples however many processes and pieces there are. Every so many-th row
    goes to a part: rows are ordered by length, so the parts are alike. A part without a row gets the silent one, which
    teaches nothing.

    `batch_size` is None, so accelerate deals whole parts to the processes in turn; their number is a multiple of
    the number of processes, since it would fill up with repeated ones.
    """

    batch_size = None
    drop_last = False

    def __init__(self, batches: Collection[list[int]], parts: int, silent_row: int) -> None:
        self._batches = batches
        self._parts = parts
        self._silent_row = silent_row

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._batches:
            for part in range(self._parts):
                yield batch[part :: self._parts] or [self._silent_row]

    def __len__(self) -> int:
        return len(self._batches) * self._parts


class ExampleRows(Dataset["TokenArrays"]):
    """The examples by row number, and behind the last a silent one: the shortest, nothing supervised."""

    def __init__(self, examples: EncodedTable) -> None:
        shortest = examples.arrays(int(np.argmin(examples.lengths)))
        self._silent = replace(shortest, supervised=np.zeros(len(shortest.supervised), bool))
        self._examples = examples

    @property
    def is_nameless(self) -> bool:
        """Whether no other process can open the rows."""
        return self._examples.folder is None

    def __getitem__(self, row: int) -> TokenArrays:
        return self._silent if row == len(self._examples) else self._examples.arrays(row)

    def __len__(self) -> int:
        return len(self._examples) + 1


class PhaseTrainer(RestrainedTrainer):
    """Trainer whose loss is the mean over the supervised tokens of the whole optimiser step.

    Attributes:
        fuses: Whether the loss is taken without making all logits of a micro-batch: where no strategy needs them, and
            the largest micro-batch, before it is dealt to processes, has too many. So all processes do alike.

    Args:
        model: The model; parameters that require no gradient are neither trained nor checkpointed.
        arguments: From `training_arguments`.
        examples: Encoded examples.
        plan: Rows of each micro-batch.
        pad_token_id: Fills rows; never seen by the loss.
        compute: What computes, and in which types; in `bf16_pure` the weights are bf16 and AdamW rounds stochastically.
        rules: What strategies ask of training.
        checkpoints: Where resumable checkpoints go.
        noted: Receives why one could not be written.
        on_policy: Says what the rows are and what the loss is, where the model trains on its own answers.
        prepared: Called once, when the weights lie where they train, before a checkpoint is read into them.
        packing: How batches are packed; None: rows are padded.
        replicas: Groups of processes that each divide a whole model; 1: all divide it.
    """

    def __init__(
        self,
        model: nn.Module,
        arguments: TrainingArguments,
        examples: EncodedTable,
        plan: BatchPlan,
        *,
        pad_token_id: int,
        compute: Compute,
        rules: TrainingRules,
        checkpoints: Checkpoints,
        noted: Callable[[str], None],
        on_policy: OnPolicy | None = None,
        prepared: Callable[[], None] = lambda: None,
        packing: Packing | None = None,
        replicas: int = 1,
    ) -> None:
        self._prepared, self._replicas = prepared, replicas
        options = {
            "lr": arguments.learning_rate,
            "betas": (arguments.adam_beta1, arguments.adam_beta2),
            "eps": arguments.adam_epsilon,
            "seed": arguments.seed,
        }
        optimizer: type[torch.optim.Optimizer] | None = None
        if arguments.optim == OptimizerNames.ADAMW_TORCH_8BIT:
            from lingraft.train.eight_bit import EightBitAdamW  # takes a second to import

            optimizer = EightBitAdamW
        elif compute.precision == "bf16_pure":
            optimizer = StochasticRoundingAdamW
        rows = ExampleRows(examples)
        self._rows: Any = rows if on_policy is None else range(len(rows))
        self._on_policy, self._plan = on_policy, plan
        self._round: tuple[int, Sequence[EncodedExample]] | None = None
        self._learned_per_step = plan.tokens_per_step(examples.predicted_per_row)
        self._collate = partial(_collated, pad_token_id=pad_token_id, packing=packing)
        self._compute = compute
        self._checkpoints, self._noted = checkpoints, noted
        self.saved_step: int | None = None  # of the newest checkpoint that this process has seen sealed
        self._being_saved: int | None = None
        self._saving: Saving | None = None
        self._hosts: dist.ProcessGroup | None = None
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=self._rows,
            # The loader is a batch ahead of the model, whose answers are known when their batch is due.
            data_collator=self._collate if on_policy is None else _numbers,
            optimizer_cls_and_kwargs=None if optimizer is None else (optimizer, options),
        )
        learned = examples.predicted_per_row
        needs_logits = on_policy is not None or rules.output_penalties or not can_be_fused(model)
        self.fuses = not needs_logits and are_too_many(
            max(int(learned[batch].sum()) for batch in plan) * model.get_output_embeddings().weight.shape[0]  # type: ignore[operator]
        )
        self.restrain(rules, restore=arguments.weight_decay > 0)
        self._parts = ProcessShares(plan, arguments.world_size * plan.pieces, silent_row=len(examples))
        self.loss_is_scaled_for_ga = True  # compute_loss divides by the tokens of the whole step

    def create_accelerator_and_postprocess(self) -> None:
        """Create the accelerator; it wraps no forward pass, and a CPU shards as well, which it offers to others only.

        Its wrapper would make a float32 copy of all logits: `compute_loss` sets the arithmetic in its place. Torch's
        FSDP2 runs over gloo; without this, accelerate would replicate the model and not say so.
        """
        super().create_accelerator_and_postprocess()
        for name in _SHARDING_VARIABLES:  # else models that are loaded later are taken for divided
            os.environ.pop(name, None)
        self.accelerator.native_amp = False
        state = self.accelerator.state
        if self.args.fsdp and state.distributed_type == DistributedType.MULTI_CPU:
            state.distributed_type = DistributedType.FSDP
            state.fsdp_plugin = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)
            self.is_fsdp_enabled = True
        if self.is_fsdp_enabled and self._compute.arithmetic != torch.float32:
            # Weights travel as they are computed with; gradients of several processes are added in float32.
            state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
                param_dtype=self._compute.arithmetic, reduce_dtype=torch.float32
            )

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Create the optimiser, and note the names of what it trains: dividing the model gives it other parameters."""
        optimizer = super().create_optimizer(model)
        own: Any = self.model
        names = {parameter: name for name, parameter in own.named_parameters()}
        self._trained = [[names[one] for one in group["params"]] for group in optimizer.param_groups]
        return optimizer

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> tuple[nn.Module, Any]:
        """Divide the model or copy it to all processes, as asked; then read a checkpoint."""
        own: Any = self.model
        groups = divided_in_groups(self.accelerator, self._replicas)
        with while_it_is_divided(own) if self.is_fsdp_enabled else nullcontext(), groups:
            parent: Any = super()  # which says no types
            model, loader = parent._prepare_for_training(max_steps, train_dataloader, None)
        if self.is_fsdp_enabled:
            # accelerate tells parameters apart by where they lie, and on the meta device all lie nowhere.
            divided = dict(own.named_parameters())
            assert self.optimizer is not None
            for group, names in zip(self.optimizer.param_groups, self._trained, strict=True):
                group["params"] = [divided[name] for name in names]
        self._prepared()
        if resume_from_checkpoint is not None:
            assert self.optimizer is not None
            assert isinstance(self.lr_scheduler, LambdaLR)
            read_training(Path(resume_from_checkpoint), own, self.optimizer, self.lr_scheduler)
        return model, loader

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the planned batches, dealt to the processes; on an accelerator other processes make them ahead."""
        workers = self.args.dataloader_num_workers
        if isinstance(self._rows, range) or (self._rows.is_nameless and get_start_method() != "fork"):
            workers = 0  # there is nothing to make yet; or no other process can open the rows
        loader = DataLoader(
            self._rows,
            batch_sampler=self._parts,
            collate_fn=self.data_collator,
            num_workers=workers,
            prefetch_factor=_BATCHES_AHEAD if workers else None,
            pin_memory=self.args.dataloader_pin_memory,
            worker_init_fn=_leave_signals,
        )
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def get_batch_samples(
        self,
        epoch_iterator: Iterator[Any],
        num_batches: int,
        device: torch.device,  # noqa: ARG002
    ) -> tuple[list[Any], int]:
        """Take one optimiser step's micro-batches, and say how many tokens of all processes it learns.

        The host knows that number without a word from the device or from another process.

        Raises:
            DataError: there is none; such a step has trained on nothing with a normal loss curve elsewhere.
        """
        step = self.state.global_step
        batches = list(islice(epoch_iterator, num_batches))
        count = self._learned_per_step[step]
        if self._on_policy is not None:
            first = step * self.args.gradient_accumulation_steps
            batches = [self._answered(rows, number) for number, rows in enumerate(batches, start=first)]
            count = sum(count_supervised(batch) for batch in batches)
        if count == 0:
            raise DataError(
                f"optimiser step {step + 1} has no supervised token: none of its examples has "
                "an answer that survived the chat template and max_length. Raise training.max_length or leave them out."
            )
        return batches, count

    def _answered(self, rows: Sequence[int], batch: int) -> dict[str, Tensor]:
        """Return a micro-batch of the model's own answers; a round's are sampled at its first step."""
        assert self._on_policy is not None
        number = self._plan.epoch_of(batch // self._plan.pieces)
        if self._round is None or self._round[0] != number:
            step = self.state.global_step
            if (
                self._on_policy.saves_rounds
                and self._round is not None
                and step not in (self.saved_step, self._being_saved)
            ):
                model: Any = self.model
                self._save_checkpoint(model)  # sampling takes a while, and may be stopped
            self._round = number, self._on_policy.rows(number)
        return self._collate([self._round[1][row] for row in rows])

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the micro-batch's share of the step's mean loss, in nats per supervised token."""
        if return_outputs or num_items_in_batch is None:
            raise NotImplementedError("PhaseTrainer trains only; evaluate with lingraft.models.loss")
        own = self._on_policy
        total_of = partial(
            supervised_loss,
            model,
            inputs,
            with_auxiliary=True,
            arithmetic=self._compute.autocast() if self._compute.precision == "bf16" else None,
            penalties=self.rules.output_penalties
            if own is None
            else (*self.rules.output_penalties, own.loss),
            has_likelihood=own is None,
        )
        try:
            total, _ = total_of(fused=self.fuses)
        except LogitsChangedError:  # in the first micro-batch, and of every process
            self.fuses = False
            total, _ = total_of()
        # Processes' gradients are averaged, but each divides by the tokens of all.
        return total * self.accelerator.num_processes / num_items_in_batch

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> LambdaLR:
        """Create the course of the learning rate: see `rate_factor`."""
        if self.lr_scheduler is None:
            factor = partial(
                rate_factor,
                course=SchedulerType(self.args.lr_scheduler_type).value,
                warmup_steps=self.args.get_warmup_steps(num_training_steps),
                steps=num_training_steps,
            )
            own = self.optimizer if optimizer is None else optimizer
            assert own is not None  # it was created before
            self.lr_scheduler = LambdaLR(own, factor)
            self._created_lr_scheduler = True
        super().create_scheduler(num_training_steps, optimizer)
        return self.lr_scheduler

    def train(self, *arguments: Any, **options: Any) -> TrainOutput:
        """Train; whatever ends it, a checkpoint that was begun is written to its end."""
        try:
            result = super().train(*arguments, **options)
        except BaseException:
            if self.args.world_size == 1:  # of several, others may have gone
                self.finish_saving()
            raise
        self.finish_saving()
        return result

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        """Begin to write a resumable checkpoint, which is sealed when all of it is on disk; training goes on.

        Raises:
            LingraftError: The one before could not be written, and other processes wait for it: a DiskError, where
                the disk is full or fails.
        """
        self.finish_saving()
        step, is_first = self.state.global_step, self.args.should_save
        folder = self._checkpoints.path_of(step)
        own: Any = self.model
        # After the last step nobody needs it.
        optimizer = self.optimizer if step < self.state.max_steps else None
        self._being_saved = step
        try:
            if is_first:
                self._checkpoints.make_room()
                folder.mkdir(parents=True)
                write_optimizer(own, optimizer, step, folder)
            self.accelerator.wait_for_everyone()
            # Where the trainer stands, and each process's random state.
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()  # the seal lists all of it
            if self._saving is None:
                self._saving = Saving(self.args.world_size)
            # What every process holds whole the first one writes.
            tensors = training_tensors(own, optimizer) if is_first or self.is_fsdp_enabled else {}
            self._saving.begin(
                tensors, folder, partial(self._checkpoints.seal, step) if is_first else _nothing
            )
        except _DISK_ERRORS as error:
            self._not_saved(step, error)

    def finish_saving(self) -> None:
        """Wait until the checkpoint that is being written is sealed; where the disk is full, training goes on without.

        Raises:
            LingraftError: It could not be written, and other processes wait for it.
        """
        step = self._being_saved
        if step is None:
            return
        try:
            if self._saving is not None:
                self._saving.finish()
        except _DISK_ERRORS as error:
            self._not_saved(step, error)
        else:
            self.saved_step = step
        self._being_saved = None
        self.accelerator.wait_for_everyone()

    def _not_saved(self, step: int, error: Exception) -> None:
        folder, self._being_saved = self._checkpoints.path_of(step), None
        problem = f"the checkpoint of step {step} could not be written to {folder} ({in_one_line(error)})"
        if self.args.world_size > 1:
            stops_all = disk_error(error, folder.parent) is not None  # what comes next would fail as well
            raise (DiskError if stops_all else LingraftError)(
                f"{problem}. Free space there and run the same command again: it continues from the one before."
            ) from error
        shutil.rmtree(folder, ignore_errors=True)
        self._noted(f"{problem}; training goes on without it. Free space there.")

    def agreed(self, wishes: Sequence[int]) -> list[int]:
        """Return the largest of all processes' wishes, each."""
        if self.args.world_size == 1:
            return list(wishes)
        if self._hosts is None:
            self._hosts = dist.new_group(backend="gloo")  # between processors: no device is waited for
        together = torch.tensor(wishes)
        dist.all_reduce(together, dist.ReduceOp.MAX, self._hosts)
        agreed: list[int] = together.tolist()
        return agreed

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Leave this to `_save_checkpoint`."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Leave this to `_save_checkpoint`: what is frozen the caller has, and it need not be a saveable model."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Leave this to `_prepare_for_training`: the Trainer asks before the weights lie where they train."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Continue each process's random numbers; of another number of processes, begin those that the step decides."""
        if checkpoint is None:
            return
        count = self.args.world_size
        expected = {f"rng_state_{one}.pth" for one in range(count)} if count > 1 else {"rng_state.pth"}
        if {path.name for path in Path(checkpoint).glob("rng_state*.pth")} == expected:
            super()._load_rng_state(checkpoint)
        else:
            digest = hashlib.sha256(f"{self.args.seed} {self.state.global_step}".encode()).digest()
            set_seed(int.from_bytes(digest[:4], "big"))


def _nothing() -> None:
    """Do nothing."""


def _leave_signals(_: int) -> None:
    """Let the training process alone answer signals, which a terminal or a scheduler sends to all.

    SIGTERM from the training process itself ends this one: so Python ends those that are left when a command is over.
    """
    for number in stopping.SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS, where nothing accelerates that workers are made for
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # what is ignored cannot be waited for

    def wait() -> None:
        while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def _collated(
    examples: Sequence[EncodedExample | TokenArrays], pad_token_id: int, packing: Packing | None
) -> dict[str, Tensor]:
    batch = collate(examples, pad_token_id)
    return batch if packing is None else packed(batch, packing)


def _numbers(rows: list[int]) -> Any:
    """Return the numbers of rows that are collated later."""
    return rows


def rate_factor(step: int, *, course: str, warmup_steps: int, steps: int) -> float:
    """Return the learning rate of a step as a factor of its peak, in 0 < factor <= 1.

    After the warm-up these are the courses of transformers (`get_scheduler`), bit for bit. Its warm-up of W steps has
    the rates 0, 1/W, ..., (W-1)/W: the first step trains nothing, and a phase of one step is none. Ours has 1/(W+1),
    ..., W/(W+1); the peak comes at the same step.

    Args:
        step: Steps done before, from 0.
        course: cosine, linear or constant_with_warmup.
        warmup_steps: Steps before the peak.
        steps: Of the phase.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if course == "linear":
        return max(0.0, (steps - step) / max(1, steps - warmup_steps))
    if course == "cosine":
        return max(
            0.0, 0.5 * (1.0 + math.cos(math.pi * ((step - warmup_steps) / max(1, steps - warmup_steps))))
        )
    return 1.0


def training_arguments(
    training: Training, compute: Compute, *, folder: Path, seed: int, sharded: bool = False, pieces: int = 1
) -> TrainingArguments:
    """Translate our options to the Trainer's; everything that prints is off.

    A micro-batch of the Trainer's is one of the `pieces` of one of ours.

    Gradient checkpointing is switched on by `train_phase`: the Trainer's own way sends gradients through
    frozen embeddings.
    """
    has_own_memory = compute.device.type not in ("cpu", "mps")
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=1,  # the loader holds all epochs
        gradient_accumulation_steps=training.micro_batches * pieces,
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.scheduler,
        warmup_steps=min(training.warmup_share, _LARGEST_SHARE),
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_gradient_norm,
        optim="adamw_torch_8bit" if training.optimizer == "adamw_8bit" else "adamw_torch_fused",
        bf16=compute.precision == "bf16",
        use_cpu=compute.device.type == "cpu",  # bf16 on a CPU must be asked for
        save_strategy="no",  # `phase` says when
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to=list(training.report_to) or "none",
        seed=seed,
        data_seed=seed,
        remove_unused_columns=False,
        dataloader_num_workers=_WORKERS if has_own_memory else 0,
        dataloader_pin_memory=has_own_memory,
        accelerator_config={
            "non_blocking": has_own_memory,
            # Else every process would gather whole gradients until the step's last micro-batch.
            "gradient_accumulation_kwargs": {"sync_each_batch": True} if sharded else None,
        },
        fsdp=sharded or None,  # type: ignore[arg-type]  # the type is older than what the field means now
        fsdp_config={"version": 2, "cpu_ram_efficient_loading": True} if sharded else None,
        ddp_find_unused_parameters=False,  # what is frozen is known, and all else takes part in every step
    )
    # With several GPUs and one process the Trainer would replicate the model in threads, which hides its parts.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments
