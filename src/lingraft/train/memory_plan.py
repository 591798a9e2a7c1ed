"""What a training or an evaluation holds in memory, by part, known before it runs: from sizes, without weights.

Activations are those that a decoder layer keeps for its backward pass, counted tensor by tensor as Korthikanti et al.
2022 (arXiv 2205.05198) count them for GPT: here of layers with RMSNorm, rotary positions, grouped queries and a gated
MLP, in this package's arithmetic and with its attention (`train.attention`) and head (`models.loss`). For other layers
it is an estimate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import psutil
import torch

from lingraft.config.schema import Training
from lingraft.models.compute import Compute, Precision
from lingraft.models.fused_loss import are_too_many, rows_at_once
from lingraft.models.shape import ModelShape

_KEEPS_WEIGHTS = 512  # tokens of a row up to which attention keeps its weights on a processor
_READ_TOKENS = 2048  # of the prompts that are read at once
_HEAP = 1.5  # measured: what the heap of a processor's process grows to over batches of different shapes
_SCORES = 3  # tensors of all scores of the next token, in float32: as they come, widened, and with draws
# Measured: modules and kernels that a processor's process gets with its first steps; in bf16 also the pieces that
# oneDNN's aligned blocks leave in its heap.
_LIBRARIES, _LIBRARIES_BF16 = 45_000_000, 140_000_000
_CONTEXT = (
    1_500_000_000  # of an accelerator: its context, the libraries' workspaces and buffers (an allowance)
)
_BLOCK = 256  # moments of 8 bits that share a float32 scale
# Bytes of a weight of 4 bits: 64 share a scale of 8 bits, 256 of these a float32.
_FOUR_BITS = 0.5 + (1 + 4 / 256) / 64
_GATHERED_LAYERS = 2  # that FSDP2 has put together at a time: one at work, one on the way
_BUSY = 1024  # tokens of a micro-batch that keep a device busy
SAFE = 0.92
"""Share of what is free that is planned with: a plan is up to a tenth off."""
_LIMITS = (  # of a container, of both versions of control groups
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
Optimizer = Literal["adamw", "adamw_8bit"]


@dataclass(frozen=True, slots=True)
class Setup:
    """How a model is trained, as far as memory depends on it.

    Attributes:
        precision: Of the training.
        optimizer: See `Training.optimizer`.
        on_processor: Whether a processor computes it.
        checkpointing: Whether the layers run forward again in the backward pass.
        micro_batches: Of an optimiser step: with several, gradients stay while activations are made.
        processes: That train it, each on a device of its own (on a processor, in one memory).
        sharded: Whether they divide weights, gradients and moments between them; else each has all.
        needs_logits: Whether strategies read the logits of all positions.
        replicas: Groups of processes that each divide a whole model between them, where it is divided.
    """

    precision: Precision
    optimizer: Optimizer = "adamw"
    on_processor: bool = False
    checkpointing: bool = False
    micro_batches: int = 1
    processes: int = 1
    sharded: bool = False
    needs_logits: bool = False
    replicas: int = 1

    @classmethod
    def of(
        cls,
        training: Training,
        compute: Compute,
        cut: Cut,
        processes: int = 1,
        *,
        sharded: bool = False,
        needs_logits: bool = False,
        replicas: int = 1,
    ) -> Setup:
        """Return how options of training, whose precision is resolved, train a model."""
        return cls(
            compute.precision,
            training.optimizer,
            on_processor=compute.device.type == "cpu",
            checkpointing=cut.checkpointing,
            micro_batches=training.micro_batches * cut.pieces,
            processes=processes,
            sharded=sharded,
            needs_logits=needs_logits,
            replicas=replicas,
        )

    @property
    def trained_bytes(self) -> int:
        """Bytes of a weight that trains."""
        return 2 if self.precision == "bf16_pure" else 4

    @property
    def frozen_bytes(self) -> int:
        """Bytes of a frozen weight, unless it is held in 4 bits; a divided one stays as it came."""
        return 4 if self.precision == "float32" or (self.precision == "bf16" and self.sharded) else 2

    @property
    def computed_bytes(self) -> int:
        """Bytes of a weight in the type that computes."""
        return 4 if self.precision == "float32" else 2

    @property
    def moment_bytes(self) -> float:
        """Bytes of both moments of a weight."""
        return 2 + 8 / _BLOCK if self.optimizer == "adamw_8bit" else 8


@dataclass(frozen=True, slots=True)
class Cut:
    """How a step is computed so that it fits; results depend on it by rounding alone.

    Attributes:
        pieces: That each micro-batch of a process is computed in, one after the other.
        checkpointing: Whether the layers run forward again in the backward pass.
    """

    pieces: int = 1
    checkpointing: bool = False


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes that a stage holds at its peak, on each device; on a processor those of one process.

    Attributes:
        base: The process before the stage, libraries included; of an accelerator its context.
        weights: Of the model.
        copies: Of weights in another type: autocast's, and on a processor the frozen ones as they came.
        gradients: Of what trains.
        optimiser: Both moments of AdamW.
        gathered: What FSDP2 has put together of divided layers, or DistributedDataParallel's buckets of gradients.
        held: What strategies hold of other models, such as a teacher.
        activations: What the layers keep for the backward pass; of an evaluation, what reading prompts takes.
        keys_values: Of the answers that are generated together.
        logits: Of the head, with their gradients.
    """

    base: int
    weights: int
    copies: int = 0
    gradients: int = 0
    optimiser: int = 0
    gathered: int = 0
    held: int = 0
    activations: int = 0
    keys_values: int = 0
    logits: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return sum(asdict(self).values())

    @property
    def certain(self) -> int:
        """What no batch is small enough to do without: weights, gradients and moments, and what strategies hold."""
        return self.weights + self.gradients + self.optimiser + self.held


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Bytes of the machine's own memory that a training on accelerators takes, at different times.

    Attributes:
        loading: Weights on their way to the devices: each process widens what trains, and the rest stays mapped from
            its files; of a divided model the first alone has the weights, all in float32.
        copy: Of a resumable checkpoint while it is written. Where less than twice as much is free, there is none, and
            training waits instead.
        saved: The trained model in float32, adapters merged, in the first process.
    """

    loading: int
    copy: int
    saved: int

    @property
    def total(self) -> int:
        """The most at a time."""
        return max(self.certain, self.copy)

    @property
    def certain(self) -> int:
        """The most that cannot be done without."""
        return max(self.loading, self.saved)


@dataclass(frozen=True, slots=True)
class LargestBatch:
    """A micro-batch: rows of so many tokens, of which so many are predicted and learned."""

    rows: int
    length: int
    supervised: int

    @classmethod
    def fullest(cls, training: Training) -> LargestBatch:
        """Return a micro-batch of the longest rows that options of training allow, all learned."""
        tokens = max(1, training.tokens_per_batch // training.micro_batches)
        length = min(tokens, training.max_length)
        return cls(tokens // length, length, tokens)

    def part(self, parts: int) -> LargestBatch:
        """Return the largest of so many parts of it: whole rows, at least one."""
        rows = -(-self.rows // parts)
        return LargestBatch(rows, self.length, -(-self.supervised * rows // self.rows))


def largest_batch(shapes: Sequence[tuple[int, int]], predicted: int) -> LargestBatch:
    """Return the micro-batch of the most tokens, as if learned ones were spread evenly.

    Args:
        shapes: Of each micro-batch its rows and the tokens of the longest.
        predicted: Tokens that are learned in all of them.
    """
    rows, length = max(shapes, key=lambda one: (one[0] * one[1], one[1]))
    share = predicted / sum(count * longest for count, longest in shapes)
    return LargestBatch(rows, length, round(share * rows * length))


def cuts(batch: LargestBatch, training: Training) -> list[Cut]:
    """Return the ways to compute a process's largest micro-batch, from the fastest to that of the least memory.

    Pieces that keep a device busy cost hardly any time, activations that are computed again a third of a step, smaller
    pieces more. What the options say is as they say.

    Args:
        batch: The largest.
        training: Its accumulation and gradient_checkpointing count.
    """
    most = batch.rows if training.accumulation is None else 1
    sizes = [1]
    while sizes[-1] < most:
        sizes.append(min(most, 2 * sizes[-1]))
    large = [one for one in sizes if one == 1 or batch.part(one).rows * batch.length >= _BUSY]
    if training.gradient_checkpointing is not None:
        return [Cut(one, training.gradient_checkpointing) for one in sizes]
    again = [Cut(one, checkpointing=True) for one in sizes]
    return [*(Cut(one) for one in large), *again]


def chosen_cut(
    batch: LargestBatch, training: Training, planned: Callable[[Cut], MemoryPlan], free: int
) -> Cut:
    """Return the fastest way to compute a micro-batch that fits; that of the least memory, where none does.

    Args:
        batch: See `cuts`.
        training: See there.
        planned: Returns the plan of a way.
        free: Bytes that the process may take of its device.
    """
    possible = cuts(batch, training)
    return next((one for one in possible if planned(one).total <= SAFE * free), possible[-1])


def training_memory(
    shape: ModelShape, batch: LargestBatch, setup: Setup, *, base: int = 0, held: int = 0
) -> MemoryPlan:
    """Return what training holds on each device.

    A trained parameter takes 16 bytes in float32; in bf16 18, because autocast keeps a bf16 copy of the float32 weight;
    in bf16_pure 12 (bf16 weight and gradient, float32 moments); with moments of 8 bits 6.03.

    On a processor what activations leave free does not serve gradients: the C library's heap keeps it, in pieces, and
    where there are few gradients it grows to half as much again as the activations. An accelerator's allocator reuses
    it, so there the larger of the two counts, unless gradients stay from one micro-batch to the next.

    Args:
        shape: Of the model, with what trains.
        batch: The largest of a process.
        setup: How it is trained.
        base: See `MemoryPlan`; of an accelerator it is added here.
        held: See there, in bytes of whole weights: of a divided model each process holds its pieces.
    """
    frozen = shape.parameters - shape.trained
    divided = setup.processes // setup.replicas if setup.sharded else 1
    small = shape.in_four_bits
    weights = setup.trained_bytes * shape.trained + setup.frozen_bytes * (frozen - small) + _FOUR_BITS * small
    gradients = setup.trained_bytes * shape.trained
    # Where the embedding is the head, its gradient is the sum of two, and each is made as a whole.
    if shape.is_tied and shape.trains_head:
        gradients += 2 * setup.trained_bytes * shape.head
    activations = activation_bytes(
        shape, batch, setup.precision, on_processor=setup.on_processor, checkpointing=setup.checkpointing
    )
    copies = 0.0
    if setup.precision == "bf16" and not setup.sharded:  # FSDP2 gathers in bf16: nothing is left to cast
        copies = 2.0 * (shape.trained_matrices + shape.trains_head * shape.head)
    if setup.on_processor and setup.precision != "float32":
        copies += 4 * frozen  # as they came
    gathered = 0.0
    if setup.sharded:
        # Weights in the type that computes; of the layer at work its gradients too, then in float32.
        width = setup.computed_bytes
        gathered = width * (_GATHERED_LAYERS * shape.largest_layer + shape.outside) + (width + 4) * max(
            shape.largest_layer, shape.outside
        )
    elif setup.processes > 1:  # DistributedDataParallel's buckets
        gathered = setup.trained_bytes * shape.trained
    scores = batch.supervised * shape.vocabulary
    logits = 2 * setup.computed_bytes * scores  # with their gradient
    if shape.has_plain_head and not setup.needs_logits and are_too_many(scores):
        # A portion, with its gradient in its place; and of a trained head the gradient, and what a portion adds to it.
        logits = setup.computed_bytes * rows_at_once(shape.vocabulary) * shape.vocabulary
        logits += shape.trains_head * (setup.trained_bytes + setup.computed_bytes) * shape.head
    made = gradients / divided
    extra = _CONTEXT
    if setup.on_processor:
        extra = _LIBRARIES if setup.precision == "float32" else _LIBRARIES_BF16
        activations = max(activations, int(_HEAP * activations) - int(made))
    elif setup.micro_batches == 1:  # gradients are made while activations and copies go
        made = max(0.0, made - activations - copies)
    return MemoryPlan(
        base=base + extra,
        weights=int(weights / divided),
        copies=int(copies),
        gradients=int(made),
        optimiser=int(setup.moment_bytes * shape.trained / divided),
        gathered=int(gathered),
        held=held // divided,
        activations=activations,
        logits=logits,
    )


def host_memory(shape: ModelShape, setup: Setup, *, saves: bool = True) -> HostMemory:
    """Return what the processes together hold in the machine's own memory, beside accelerators that train.

    Args:
        shape: See `training_memory`.
        setup: See there.
        saves: Whether resumable checkpoints are written.
    """
    whole = 4 * shape.parameters
    widened = setup.processes * setup.trained_bytes * shape.trained
    return HostMemory(
        loading=whole if setup.sharded else widened,
        copy=saves * checkpoint_bytes(shape, setup),
        saved=whole,
    )


def checkpoint_bytes(shape: ModelShape, setup: Setup) -> int:
    """Return what a resumable checkpoint takes on disk: what trains, with both moments in float32."""
    return (setup.trained_bytes + 8) * shape.trained


def activation_bytes(
    shape: ModelShape,
    batch: LargestBatch,
    precision: Precision,
    *,
    on_processor: bool,
    checkpointing: bool = False,
) -> int:
    """Return what a micro-batch keeps for the backward pass, logits left out; see `training_memory`."""
    h, a, k, n = shape.hidden, shape.attention, shape.keys, shape.normalised
    tokens = batch.rows * batch.length
    mlp = (4 if shape.is_gated else 2) * shape.intermediate
    # A processor's attention keeps the weights of all pairs of a row; flash attention makes them anew.
    pairs = shape.heads * batch.length if on_processor and batch.length <= _KEEPS_WEIGHTS else 0
    inside = (
        2 * a + 2 * k + pairs + mlp
    )  # queries, keys, values, what is attended to, weights of pairs; the MLP
    states = 2 if precision == "bf16_pure" else 4  # bytes
    # Of a token in a layer. Norms keep what they normalise, in float32, and what comes of it; matrices their input.
    if shape.ranks:  # adapters keep inputs of their own; frozen norms and matrices keep none
        inputs = 5 * h + a if precision == "bf16" else 2 * h
        token = 4 * n + (4 if precision == "float32" else 2) * (inputs + inside + shape.ranks)
    elif precision == "float32":
        token = 4 * (2 * n + 2 * h + inside)
    elif precision == "bf16":  # each of the five matrices gets an input of its own
        token = 8 * n + 2 * (5 * h + inside)
    else:
        token = 6 * n + 2 * (2 * h + inside)
    if checkpointing:  # what enters each layer, and one whole layer
        token += states * h * shape.layers
    kept = tokens * token * (1 if checkpointing else shape.reached_layers)
    return kept + 2 * states * h * tokens  # the last norm


def evaluation_memory(
    shape: ModelShape,
    compute: Compute,
    *,
    rows: int,
    length: int,
    positions: int = 0,
    base: int = 0,
    processes: int = 1,
) -> MemoryPlan:
    """Return what an evaluation holds, on a processor of all processes together, on accelerators of one.

    Args:
        shape: Of the model.
        compute: Its arithmetic.
        rows: Answers that are generated together, at most; 0: none.
        length: Tokens of each, prompt and answer together.
        positions: At which likelihoods are taken together, at most.
        base: See `MemoryPlan`.
        processes: How many answer, each with a whole model; more than 1 are others than this one.
    """
    width = compute.held.itemsize
    read = min(_READ_TOKENS, rows * length) or _READ_TOKENS
    models = processes if compute.device.type == "cpu" else 1
    return MemoryPlan(
        base=base if models == 1 else base * (models + 1),
        weights=models * width * shape.parameters,
        gradients=0,
        optimiser=0,
        activations=models
        * (width * read * (4 * shape.hidden + 3 * shape.intermediate + 2 * shape.attention)),
        keys_values=models * width * rows * length * 2 * shape.keys * shape.layers,
        logits=models * max(_SCORES * 4 * rows, width * positions) * shape.vocabulary,
    )


def held_now(compute: Compute) -> int:
    """Return the bytes that this process holds, where that is the memory that counts; 0 on an accelerator."""
    return int(psutil.Process().memory_info().rss) if compute.device.type == "cpu" else 0


def free_memory(compute: Compute) -> int:
    """Return the bytes that a stage may take of the device, with what this process holds of it on a processor."""
    if compute.device.type == "cuda":
        return int(torch.cuda.mem_get_info(compute.device)[0])
    return free_host()


def free_host() -> int:
    """Return the bytes of the machine's own memory that this process has or may take."""
    return int(psutil.virtual_memory().available) + int(psutil.Process().memory_info().rss)


def total_memory(compute: Compute) -> int:
    """Return the bytes that there are of what training holds: of an accelerator its own, else those of the machine."""
    if compute.device.type == "cuda":
        return int(torch.cuda.get_device_properties(compute.device).total_memory)
    return total_host()


def total_host() -> int:
    """Return the bytes of memory and swap space that the machine has; a container's limit counts for the memory."""
    memory = int(psutil.virtual_memory().total)
    for limit in _LIMITS:
        with suppress(OSError, ValueError):  # none, or `max`
            memory = min(memory, int(limit.read_text(encoding="ascii")))
    return memory + int(psutil.swap_memory().total)


def memory_problem(needed: int, free: int) -> str | None:
    """Return what is said where a stage needs more memory than is free, in bytes; None: it fits."""
    if needed <= free:
        return None
    return (
        f"about {needed / 1e9:.1f} GB of memory are needed, and {free / 1e9:.1f} GB are free: it may be killed. Lower "
        "training.tokens_per_batch or raise training.accumulation (of an evaluation lower evaluate.tokens_per_batch), "
        "set training.gradient_checkpointing=true, or train fewer parameters (lora)."
    )


def host_problem(needed: int, free: int) -> str | None:
    """Return what is said where accelerators train more than the machine's own memory can load or save, in bytes."""
    if needed <= free:
        return None
    return (
        f"about {needed / 1e9:.1f} GB of the machine's own memory are needed to load and save the model, and "
        f"{free / 1e9:.1f} GB are free: it may be killed, when it has been trained. End other programs."
    )
