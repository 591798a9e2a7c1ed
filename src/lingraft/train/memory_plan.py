"""What a training or an evaluation holds in memory, by part, known before it runs.

Activations are those that a decoder layer keeps for its backward pass, counted tensor by tensor as Korthikanti et al.
2022 (arXiv 2205.05198) count them for GPT: here of layers with RMSNorm, rotary positions, grouped queries and a gated
MLP, in this package's arithmetic and with its attention (`train.attention`) and head (`models.loss`). For other layers
it is an estimate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import psutil
import torch

from lingraft.models.compute import Compute, Precision
from lingraft.models.shape import ModelShape

_KEEPS_WEIGHTS = 512  # tokens of a row up to which attention keeps its weights on a processor
_READ_TOKENS = 2048  # of the prompts that are read at once
_HEAP = 1.5  # measured: what the heap of a processor's process grows to over batches of different shapes
_SCORES = 3  # tensors of all scores of the next token, in float32: as they come, widened, and with draws


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes that a stage holds at its peak.

    Attributes:
        base: The process before the stage, libraries included; 0 on an accelerator.
        weights: Of the model, with what strategies hold of other models.
        gradients: Of what trains.
        optimiser: Both moments of AdamW.
        activations: What the layers keep for the backward pass; of an evaluation, what reading prompts takes.
        keys_values: Of the answers that are generated together.
        logits: Of the head, with their gradients.
    """

    base: int
    weights: int
    gradients: int
    optimiser: int
    activations: int
    keys_values: int
    logits: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(asdict(self).values())


@dataclass(frozen=True, slots=True)
class LargestBatch:
    """A micro-batch: rows of so many tokens, of which so many are predicted and learned."""

    rows: int
    length: int
    supervised: int


def largest_batch(shapes: Sequence[tuple[int, int]], predicted: int) -> LargestBatch:
    """Return the micro-batch of the most tokens, as if learned ones were spread evenly.

    Args:
        shapes: Of each micro-batch its rows and the tokens of the longest.
        predicted: Tokens that are learned in all of them.
    """
    rows, length = max(shapes, key=lambda one: (one[0] * one[1], one[1]))
    share = predicted / sum(count * longest for count, longest in shapes)
    return LargestBatch(rows, length, round(share * rows * length))


def training_memory(
    shape: ModelShape,
    batch: LargestBatch,
    precision: Precision,
    *,
    on_processor: bool,
    base: int = 0,
    checkpointing: bool = False,
    shared_by: int = 1,
    held: int = 0,
) -> MemoryPlan:
    """Return what training holds.

    On a processor what activations leave free does not serve gradients: the C library's heap keeps it, in pieces, and
    where there are few gradients it grows to half as much again as the activations. An accelerator's allocator reuses
    it, so there the larger of the two counts.

    Args:
        shape: Of the model, with what trains.
        batch: The largest.
        precision: Of the training.
        on_processor: Whether a processor computes it.
        base: See `MemoryPlan`.
        checkpointing: Whether the layers run forward again in the backward pass.
        shared_by: Processes that divide weights, gradients and moments between them.
        held: Bytes of what strategies hold of other models, such as a teacher.
    """
    width = 2 if precision == "bf16_pure" else 4
    frozen = shape.parameters - shape.trained
    weights = width * shape.parameters + (4 * frozen if precision == "bf16_pure" else 0)
    gradients, moments = width * shape.trained, 2 * width * shape.trained
    # Where the embedding is the head, its gradient is the sum of two, and each is made as a whole.
    summed = 2 * width * shape.head if shape.is_tied and shape.trains_head else 0
    activations = activation_bytes(
        shape, batch, precision, on_processor=on_processor, checkpointing=checkpointing
    )
    logits = batch.supervised * shape.vocabulary * (4 if precision == "float32" else 2)
    logits *= 2  # with their gradient
    made = gradients + summed
    if on_processor:
        activations = max(activations, int(_HEAP * activations) - gradients)
    else:  # gradients are made while activations go
        made = max(0, made - activations)
    return MemoryPlan(
        base=base,
        weights=weights // shared_by + held,
        gradients=made // shared_by,
        optimiser=moments // shared_by,
        activations=activations,
        keys_values=0,
        logits=logits,
    )


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
    if precision == "float32":
        token = 4 * (2 * n + 2 * h + inside)
    elif precision == "bf16":  # each of the five matrices gets an input of its own
        token = 8 * n + 2 * (5 * h + inside)
    else:
        token = 6 * n + 2 * (2 * h + inside)
    if checkpointing:  # what enters each layer, and one whole layer
        token += states * h * shape.layers
    kept = tokens * token * (1 if checkpointing else shape.reached_layers)
    if precision == "bf16":  # the matrices in bf16, for as long as the graph lives
        kept += int(2 * (0 if checkpointing else shape.matrices) + 2 * shape.head)
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
    return int(psutil.virtual_memory().available) + int(psutil.Process().memory_info().rss)


def memory_problem(needed: int, free: int) -> str | None:
    """Return what is said where a stage needs more memory than is free, in bytes; None: it fits."""
    if needed <= free:
        return None
    return (
        f"about {needed / 1e9:.1f} GB of memory are needed, and {free / 1e9:.1f} GB are free: it may be killed. Lower "
        "training.tokens_per_batch or raise training.accumulation (of an evaluation lower evaluate.tokens_per_batch), "
        "set training.gradient_checkpointing=true, or train fewer parameters (lora)."
    )
