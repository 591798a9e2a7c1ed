"""How fast this machine does what a plan counts: a few real steps and real answers, on copies that are thrown away.

Rates are kept by model, work, precision and machine, so that a plan which is looked at again measures nothing twice.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from lingraft.claims import node_name
from lingraft.config.schema import Training
from lingraft.data.encoded import EncodedTable, Int64s, write_table
from lingraft.models.adapters import load_merged
from lingraft.models.compute import Compute, compute_for, device_name
from lingraft.models.generation import Sampling, TokenPrompt, TransformersGenerator, chat_ending
from lingraft.models.loading import load_for_training, load_tokenizer
from lingraft.models.shape import ModelShape
from lingraft.records import cache_folder, fingerprint_of, flush_folder, hash_file, read_kept, write_kept
from lingraft.stage import MODEL_LIBRARIES, GivenModel, Json, libraries
from lingraft.strategies.base import Strategy
from lingraft.study.counts import AnswerCount, Prompts, TrainingCount, context_of
from lingraft.study.stages.evaluate import Questions
from lingraft.study.stages.job import TrainingJob, foreseeable, part_identity
from lingraft.train.held import in_float32
from lingraft.train.memory_plan import Cut
from lingraft.train.phase import train_phase
from lingraft.train.trainer import BatchPlan

_FORMAT = 1  # of kept rates
_HOOKS = ("wrap", "frozen_mask", "learning_rates", "anchor", "output_penalty")  # by which a step takes longer
_STEPS = 5  # that are timed, after one that warms up
_ANSWERS = 32  # that are generated together to be timed
_FEW = 4  # answers that are generated together for what a step costs whatever the rows
_FEWEST = 3  # steps from which both are known
_MOST_SAVED = 2**29  # bytes of a model that are written to see how fast the disk is
_ALIKE = 0.2  # steps whose sizes differ less say nothing about what a step costs whatever its size


@dataclass(frozen=True)
class TrainingRate:
    """How fast a phase trains.

    Attributes:
        flop_seconds: Seconds a FLOP.
        step_seconds: Seconds an optimiser step besides.
        first_seconds: Seconds that the first step takes more than others.
        fixed_seconds: Seconds of loading, checking, merging, saving and hashing.
        unplanned_bytes: Largest resident memory while the largest batch trained with others, less what was planned.
    """

    flop_seconds: float
    step_seconds: float
    first_seconds: float
    fixed_seconds: float
    unplanned_bytes: int

    def seconds(self, count: TrainingCount) -> float:
        """Return what a training takes whose FLOPs are known."""
        return count.seconds + self.fixed_seconds + self.step_seconds_of(count)

    def step_seconds_of(self, count: TrainingCount) -> float:
        """Return what the optimiser steps of a training take whose FLOPs are known."""
        assert count.flops is not None
        return self.first_seconds + self.step_seconds * count.steps + self.flop_seconds * count.flops


@dataclass(frozen=True)
class Batching:
    """Most rows and tokens of a batch of answers."""

    most_rows: int
    tokens: int


@dataclass(frozen=True)
class AnswerRate:
    """How fast a model answers.

    Attributes:
        fixed_seconds: Seconds of loading.
        read_seconds: Seconds a FLOP of reading.
        step_seconds: Seconds of the model for one token more of a batch, whatever its rows.
        token_seconds: Seconds a generated token besides.
        length_share: Tokens of the model's own answers by those of their references.
        most_share: The same of the longest answer by what was allowed.
    """

    fixed_seconds: float
    read_seconds: float
    step_seconds: float
    token_seconds: float
    length_share: float
    most_share: float

    def seconds(self, count: AnswerCount, shape: ModelShape, batching: Batching, *, is_root: bool) -> float:
        """Return what an evaluation takes.

        Args:
            count: What is asked.
            shape: Of the model.
            batching: How answers are put together.
            is_root: Whether the model is the one that was measured: its answers are as long as the measured ones, those
                of a trained model as their references.
        """
        found = self.fixed_seconds + count.seconds
        for group in count.groups:
            for rows in group.batches(batching.most_rows, batching.tokens):
                limits = [group.limit(row) for row in rows]
                lengths = [float(group.references[row]) for row in rows]
                longest = max(lengths)
                if is_root:
                    lengths = [min(a * self.length_share, b) for a, b in zip(lengths, limits, strict=True)]
                    longest = max(limits) * self.most_share
                found += self.read_seconds * reading_flops(shape, group, rows)
                found += self.step_seconds * longest + self.token_seconds * sum(lengths)
        scored = sum(len(one.continuation) for one in count.pairs)
        contexts = {one.context for one in count.pairs}
        read = sum(map(len, contexts)) + scored + count.held_out_tokens
        pairs = sum(len(one) ** 2 for one in contexts)
        found += self.read_seconds * shape.forward_flops(read, pairs, scored + count.held_out_tokens)
        return found


def training_key(job: TrainingJob, root: GivenModel, shape: ModelShape, cut: Cut) -> str:
    """Return what a rate of training is known by: what computes, not the rows."""
    training = job.training.compared(without=("epochs", "learning_rate", "warmup_share"))
    acting = [
        part_identity(part)
        for part in foreseeable(job.composition).parts
        if any(getattr(type(part), hook) is not getattr(Strategy, hook) for hook in _HOOKS)
    ]
    own: dict[str, Any] = {"root": root.identity, "shape": asdict(shape), "acting": acting}
    if job.training.compile is True:  # a result does not depend on it, but its rate does
        training["compile"] = True
    own |= {"training": training, "cut": asdict(cut)}
    return fingerprint_of({"kind": "train", **own, **_machine(compute_for(job.training.precision))})


def answer_key(count: AnswerCount, compute: Compute, root: GivenModel) -> str:
    """Return what a rate of answering is known by."""
    prompts = [[one.ids for one in group.prompts] for group in count.groups]
    own = {"root": root.identity, "prompts": fingerprint_of(prompts)}
    return fingerprint_of({"kind": "evaluate", **own, **_machine(compute)})


def _machine(compute: Compute) -> dict[str, Json]:
    return {
        "format": _FORMAT,
        "device": device_name(compute.device),
        "precision": compute.precision,
        "node": node_name(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "libraries": libraries(MODEL_LIBRARIES),
    }


def kept_rate(kind: type[Any], key: str) -> Any | None:
    """Return a rate that was measured before on this machine; None: there is none."""
    try:
        return kind(**read_kept(_path(key)))
    except (OSError, ValueError, TypeError):  # there is none, or it is damaged
        return None


def _path(key: str) -> Path:
    return cache_folder() / "rates" / f"{key}.json"


def keep_rate(key: str, rate: TrainingRate | AnswerRate) -> None:
    """Keep a rate for the next plan."""
    path = _path(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_kept(path, asdict(rate))


def measure_training(
    job: TrainingJob,
    root: GivenModel,
    count: TrainingCount,
    shape: ModelShape,
    planned: int,
    cut: Cut,
    place: Path,
) -> TrainingRate:
    """Train a few of a phase's steps on a copy of the root, and time them and what comes before and after.

    The steps are those of the largest and the smallest batches and some in between, so that both what a step and what a
    FLOP costs is seen, and the memory that the largest batch takes.

    Args:
        job: The phase.
        root: Whose weights are trained.
        count: Of the phase.
        shape: Of the model, with what trains.
        planned: Bytes of memory that it was planned to take.
        cut: How its steps are computed.
        place: A folder for what is written meanwhile; the caller removes it.
    """
    training = job.training.model_copy(
        update={"epochs": 1, "save_every": 0, "save_minutes": 0.0, "report_to": ()}
    )
    started = time.perf_counter()
    tokenizer = load_tokenizer(root.folder, trust_remote_code=job.trust_remote_code)
    model = load_for_training(root.folder, trust_remote_code=job.trust_remote_code)
    composition, context = foreseeable(job.composition), context_of(job, root, place)
    model = composition.wrap(model, context)
    trainable = composition.trainable(model, context)
    rules = composition.rules(model, context)
    table = write_table([count.table[row] for row in _sampled_rows(job, count, shape)])
    loaded = time.perf_counter()
    at: list[float] = []
    outcome = train_phase(
        model,
        tokenizer,
        table,
        training,
        trainable=trainable,
        folder=place,
        seed=job.seed,
        on_progress=lambda _: at.append(time.perf_counter()),
        stop=lambda: None,
        rules=rules,
        cut=cut,
    )
    trained = time.perf_counter()
    finished = composition.finish(
        in_float32(model),
        place,
        lambda: in_float32(load_for_training(root.folder, trust_remote_code=job.trust_remote_code)),
    )
    merged = time.perf_counter()
    saving = _saving_seconds(finished, place / "weights")
    fixed = (loaded - started) + (trained - loaded - outcome.seconds) + (merged - trained) + saving
    steps = _flops_of_steps(
        table, training, job.seed, count.supervised_share, shape, checkpointing=cut.checkpointing
    )
    later = np.diff(at).tolist()
    flop_seconds, step_seconds = _fitted(steps[1:], later) if later else (outcome.seconds / steps[0], 0.0)
    first = outcome.seconds - sum(later) - step_seconds - flop_seconds * steps[0]
    return TrainingRate(flop_seconds, step_seconds, max(0.0, first), fixed, outcome.peak_bytes - planned)


def _sampled_rows(job: TrainingJob, count: TrainingCount, shape: ModelShape) -> list[int]:
    """Return the rows of some optimiser steps: of the largest and the smallest, and of some in between."""
    lengths = np.asarray(count.table.lengths, np.int64)
    training = job.training.model_copy(update={"epochs": 1})
    plan, size = list(BatchPlan(lengths, training, job.seed)), training.micro_batches
    steps = [plan[start : start + size] for start in range(0, len(plan), size)]
    share = count.supervised_share
    steps.sort(key=lambda step: sum(_flops(lengths[batch], share, shape) for batch in step))
    places = {round(place) for place in np.linspace(0, len(steps) - 1, min(len(steps), _STEPS + 1))}
    # What takes the most memory is a micro-batch of the most tokens, not always one of the most FLOPs.
    places.add(
        max(range(len(steps)), key=lambda i: max(len(one) * int(lengths[one].max()) for one in steps[i]))
    )
    return [row for place in sorted(places) for batch in steps[place] for row in batch]


def _flops_of_steps(
    table: EncodedTable,
    training: Training,
    seed: int,
    share: float,
    shape: ModelShape,
    *,
    checkpointing: bool,
) -> list[float]:
    """Return the FLOPs of each optimiser step of a table."""
    lengths = np.asarray(table.lengths, np.int64)
    own = [
        _flops(lengths[batch], share, shape, checkpointing=checkpointing)
        for batch in BatchPlan(lengths, training, seed)
    ]
    size = training.micro_batches
    return [sum(own[start : start + size]) for start in range(0, len(own), size)]


def _flops(lengths: Int64s, share: float, shape: ModelShape, *, checkpointing: bool = False) -> float:
    """Return the FLOPs of a micro-batch of rows of these lengths, of which a share of tokens is learned."""
    tokens, longest = len(lengths) * int(lengths.max()), int(lengths.max())
    return shape.training_flops(tokens, tokens * longest, share * tokens, checkpointing=checkpointing)


def _fitted(sizes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Return seconds a unit of size and seconds besides, by least squares; neither is below 0."""
    x, y = np.asarray(sizes), np.asarray(seconds)
    whole = float(y.sum() / x.sum())
    if len(x) < _FEWEST or np.ptp(x) < _ALIKE * x.max():
        return whole, 0.0
    slope, besides = (float(one) for one in np.polyfit(x, y, 1))
    return (
        (slope, besides)
        if slope > 0 and besides > 0
        else (whole, 0.0)
        if slope > 0
        else (0.0, float(y.mean()))
    )


def _saving_seconds(model: Any, path: Path) -> float:
    """Return what writing and hashing a model as float32 takes, from a part of it."""
    whole = sum(4 * int(one.numel()) for one in model.parameters())
    part: dict[str, torch.Tensor] = {}
    for name, one in model.named_parameters():
        if not part or 4 * sum(own.numel() for own in part.values()) < _MOST_SAVED:
            part[name] = one.detach().float().contiguous()
    started = time.perf_counter()
    save_file(part, path)
    flush_folder(path.parent)
    hash_file(path)
    spent = time.perf_counter() - started
    return spent * whole / path.stat().st_size


def measure_answers(
    asked: Questions,
    root: GivenModel,
    count: AnswerCount,
    shape: ModelShape,
    *,
    trust_remote_code: bool,
) -> AnswerRate:
    """Let the root answer a few of an evaluation's prompts, and time it: many together, few, and reading alone.

    Args:
        asked: What it is asked.
        root: The model.
        count: The prompts.
        shape: Of the model.
        trust_remote_code: Run Python code that the model brings along.

    Raises:
        LingraftError: The model cannot be loaded, or generate.
    """
    compute = compute_for(asked.evaluation.precision)
    started = time.perf_counter()
    model, tokenizer = load_merged(str(root.folder), dtype=compute.held, trust_remote_code=trust_remote_code)
    model.to(compute.device)  # type: ignore[arg-type]
    fixed = time.perf_counter() - started
    group = max(count.groups, key=lambda one: len(one.prompts), default=None)
    if group is None:  # nothing is generated: a forward pass is timed
        pairs = count.pairs[:: max(1, len(count.pairs) // _ANSWERS)][:_ANSWERS]
        rows = [TokenPrompt((*one.context, *one.continuation)) for one in pairs] or [TokenPrompt((1,) * 64)]
        group = Prompts(Sampling(), chat_ending(None, tokenizer), tuple(rows), (1,) * len(rows))
    generator = TransformersGenerator(model, tokenizer, _ANSWERS, own_defaults=True)
    order = sorted(range(len(group.prompts)), key=lambda row: (-len(group.prompts[row].ids), row))
    many = order[:: max(1, len(order) // _ANSWERS)][:_ANSWERS]
    few = many[:: max(1, len(many) // _FEW)][:_FEW]

    def answered(rows: Sequence[int], limit: int | None = None) -> tuple[float, list[int]]:
        prompts = [group.prompts[row] for row in rows]
        if limit is not None:
            prompts = [replace(one, max_new_tokens=limit) for one in prompts]
        begun = time.perf_counter()
        found = generator.continue_batch(prompts, group.sampling, group.ending)
        return time.perf_counter() - begun, [one.tokens for one in found]

    answered(few, 1)  # warms up
    reading, _ = answered(many, 1)
    whole, lengths = answered(many)
    few_reading, _ = answered(few, 1)
    few_whole, few_lengths = answered(few)
    read = reading / reading_flops(shape, group, many)
    step, token = _decoding(
        (max(lengths), sum(lengths), whole - reading),
        (max(few_lengths), sum(few_lengths), few_whole - few_reading),
    )
    limits = [group.limit(row) for row in many]
    return AnswerRate(
        fixed_seconds=fixed,
        read_seconds=read,
        step_seconds=step,
        token_seconds=token,
        length_share=sum(lengths) / sum(group.references[row] for row in many),
        most_share=max(lengths) / max(limits),
    )


def reading_flops(shape: ModelShape, group: Prompts, rows: Sequence[int]) -> float:
    """Return the FLOPs of reading prompts and predicting one token after each."""
    lengths = [len(group.prompts[row].ids) for row in rows]
    return shape.forward_flops(sum(lengths), sum(one**2 for one in lengths), len(rows))


def _decoding(many: tuple[int, int, float], few: tuple[int, int, float]) -> tuple[float, float]:
    """Return seconds a step and seconds a token besides, from two batches: (longest answer, tokens of all, seconds)."""
    (a, b, x), (c, d, y) = many, few
    determinant = a * d - b * c
    if determinant:
        step, token = (x * d - b * y) / determinant, (a * y - x * c) / determinant
        if step >= 0 and token >= 0:
            return step, token
    return 0.0, max(0.0, x / b)
