"""What a stage will work through: rows, tokens and steps of a training, prompts and answers of an evaluation.

Exact where it is cheap: rows are mixed, encoded and cut into batches, and prompts are made, by the functions that do it
in the run. What cannot be is estimated, and said to be.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lingraft.data.encodings import encode_once
from lingraft.data.example_table import select
from lingraft.data.mixing import replay_count
from lingraft.evaluate.answers import AnswerLog, ItemCount, request_keys
from lingraft.evaluate.in_memory import Batching, InMemoryModel
from lingraft.evaluate.lm_eval_compat import quiet
from lingraft.evaluate.running import samples_of
from lingraft.evaluate.task_runs import Run, build_runs, expected_text
from lingraft.models.context_length import at_most, context_length
from lingraft.models.generation import Ending, Sampling, TokenPrompt, batches_within
from lingraft.models.loading import load_tokenizer
from lingraft.models.shape import ModelShape
from lingraft.models.weights import empty_model
from lingraft.stage import GivenModel
from lingraft.strategies.base import Context, Mix
from lingraft.study.stages.evaluate import Questions
from lingraft.study.stages.job import TrainingJob
from lingraft.train.memory_plan import LargestBatch, largest_batch
from lingraft.train.trainer import BatchPlan

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from transformers import PreTrainedTokenizerBase

    from lingraft.data.encoded import EncodedTable
    from lingraft.evaluate.likelihood import Pair

MOST_ROWS = 20_000  # of a phase that are encoded for a plan; of more a sample is
_Lengths = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(frozen=True)
class TrainingCount:
    """What a training will work through.

    Attributes:
        rows: Examples that are trained on, replayed ones included.
        replayed: Of these, those that strategies mix in.
        tokens: Real tokens over all epochs.
        padded_tokens: Computed ones over all epochs.
        supervised_tokens: Those that the loss is taken of, over all epochs.
        steps: Optimiser steps.
        largest: The micro-batch that takes the most memory.
        flops: Of forward and backward passes; None: the architecture is not known.
        flops_again: Of computing activations again, where that is done.
        model_flops: Of these what real tokens need, without padding and recomputed activations: what MFU counts.
        is_exact: Whether all rows were mixed and encoded; else a sample was, or some are made by a model.
        seconds: That mixing and encoding took.
        table: The encoded rows of which it was counted; for measuring.
    """

    rows: int
    replayed: int
    tokens: int
    padded_tokens: int
    supervised_tokens: int
    steps: int
    largest: LargestBatch
    flops: float | None
    flops_again: float
    model_flops: float | None
    is_exact: bool
    seconds: float
    table: EncodedTable = field(repr=False)

    @property
    def supervised_share(self) -> float:
        """Share of the padded tokens that are predicted and learned."""
        return self.supervised_tokens / max(1, self.padded_tokens)


def context_of(job: TrainingJob, root: GivenModel, place: Path) -> Context:
    """Return what a phase's strategies see while a plan is made: the root stands for the phase before."""
    return Context(
        base=None,
        previous=root.folder,
        previous_data=job.previous_data,
        english=job.english,
        seed=job.seed,
        folder=place,
        cache=place / "cache",
        trust_remote_code=job.trust_remote_code,
    )


def count_training(job: TrainingJob, root: GivenModel, place: Path) -> TrainingCount:
    """Count a training; nothing is written but in `place`, where rows are encoded."""
    started = time.perf_counter()
    mix, made_later = _mixed(job, root, place)
    examples, whole = mix.examples, len(mix.examples) + made_later
    if len(examples) > MOST_ROWS:
        examples = select(examples, np.arange(MOST_ROWS) * len(examples) // MOST_ROWS)
    training = job.training
    reads = context_length(root.folder, trust_remote_code=job.trust_remote_code)
    encoded = encode_once(
        examples,
        load_tokenizer(root.folder, trust_remote_code=job.trust_remote_code),
        at_most(training.max_length, reads),
        place / "cache",
        max_refused_share=max((counts.max_broken_share for counts in job.counts), default=1.0),
    )
    table = encoded.examples
    own: _Lengths = np.asarray(table.lengths, np.int64)
    rows = round(len(own) * whole / len(examples))
    lengths = own if rows == len(own) else own[np.arange(rows) * len(own) // rows]
    batches = BatchPlan(lengths, training, job.seed).shapes
    padded = sum(count * longest for count, longest in batches)
    predicted = round(training.epochs * table.predicted_tokens * rows / len(own))
    shape = job.shape
    pairs = sum(number * width**2 for number, width in batches)
    replayed = (table.replayed_rows if len(examples) == len(mix.examples) else mix.replayed) + made_later
    return TrainingCount(
        rows=rows,
        replayed=replayed,
        tokens=training.epochs * int(lengths.sum()),
        padded_tokens=padded,
        supervised_tokens=predicted,
        steps=-(-len(batches) // training.micro_batches),
        largest=largest_batch(batches, predicted),
        flops=None if shape is None else shape.training_flops(padded, pairs, predicted),
        flops_again=0.0
        if shape is None
        else shape.training_flops(padded, pairs, predicted, checkpointing=True)
        - shape.training_flops(padded, pairs, predicted),
        model_flops=None
        if shape is None
        else shape.training_flops(
            training.epochs * int(lengths.sum()), training.epochs * float((lengths**2).sum()), predicted
        ),
        is_exact=rows == len(own),
        seconds=time.perf_counter() - started,
        table=table,
    )


def _mixed(job: TrainingJob, root: GivenModel, place: Path) -> tuple[Mix, int]:
    """Return a phase's rows after mixing, and how many more a model is to write before it begins."""
    context = context_of(job, root, place)
    mix, made_later = Mix(job.examples), 0
    for part in job.composition.parts:
        if "previous" in part.needs:  # the model of the phase before writes rows
            made_later += replay_count(len(mix.examples), float(getattr(part, "share", 0.0)))
        else:
            mix = part.mix(mix.examples, context).after(mix)
    return mix, made_later


@dataclass(frozen=True)
class Prompts:
    """Prompts that share batches.

    Attributes:
        sampling: How they are answered.
        ending: What ends an answer.
        prompts: As tokens.
        references: Tokens of the reference answer of each, one for the end included, at most what is allowed; where the
            task has none, half of that.
    """

    sampling: Sampling
    ending: Ending
    prompts: tuple[TokenPrompt, ...]
    references: tuple[int, ...]

    def limit(self, row: int) -> int:
        """Return the most tokens that an answer may have."""
        return self.prompts[row].limit(self.sampling)

    def batches(self, most_rows: int, tokens: int) -> list[list[int]]:
        """Return the rows of each batch, as `models.generation.generate` makes them."""
        order = sorted(range(len(self.prompts)), key=lambda row: (-len(self.prompts[row].ids), row))
        sizes = [(len(one.ids), one.limit(self.sampling)) for one in self.prompts]
        return list(batches_within(order, sizes, most_rows, tokens))


@dataclass(frozen=True)
class AnswerCount:
    """What an evaluation will ask, of any model with one tokenizer.

    Attributes:
        items: That are asked; one with several choices counts once.
        groups: The prompts that are answered.
        pairs: Contexts and continuations whose likelihood is taken.
        held_out_tokens: Of the held-out rows.
        seconds: That making the prompts and scoring took.
    """

    items: int
    groups: tuple[Prompts, ...] = field(repr=False)
    pairs: tuple[Pair, ...] = field(repr=False)
    held_out_tokens: int
    seconds: float

    @property
    def prompt_tokens(self) -> int:
        """Tokens that are read: prompts, contexts (a shared one once) with their continuations, held-out rows."""
        contexts = {pair.context for pair in self.pairs}
        read = sum(map(len, contexts)) + sum(len(pair.continuation) for pair in self.pairs)
        asked = sum(len(one.ids) for group in self.groups for one in group.prompts)
        return asked + read + self.held_out_tokens

    @property
    def most_generated(self) -> int:
        """Tokens of all answers, were each as long as it may be."""
        return sum(group.limit(row) for group in self.groups for row in range(len(group.prompts)))

    @property
    def expected_generated(self) -> int:
        """Tokens of all answers, were each as long as its reference."""
        return sum(sum(group.references) for group in self.groups)

    def flops(self, shape: ModelShape) -> float:
        """Return the FLOPs: 2 N a token, with attention; the head where it predicts."""
        pairs = sum(
            (len(one.ids) + length) ** 2
            for group in self.groups
            for one, length in zip(group.prompts, group.references, strict=True)
        )
        pairs += sum((len(one.context) + len(one.continuation)) ** 2 for one in self.pairs)
        scored = sum(len(one.continuation) for one in self.pairs)
        generated = self.expected_generated
        return shape.forward_flops(
            self.prompt_tokens + generated, pairs, generated + scored + self.held_out_tokens
        )


class _Recorder(InMemoryModel):
    """Notes what it is asked and answers nothing."""

    groups: list[tuple[tuple[Sampling, Ending], dict[int, TokenPrompt]]]
    asked: list[Instance]
    pairs: list[Pair]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:  # noqa: ARG002
        """Note the prompts."""
        self.asked, self.groups = requests, self._grouped(requests, request_keys(requests, 0))
        return [""] * len(requests)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[Any]:  # noqa: ARG002
        """Note the pairs."""
        self.pairs = [self.pair(*request.args) for request in requests]
        return [(0.0, False)] * len(requests)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:  # noqa: ARG002
        """Answer; whole texts are not counted."""
        return [0.0] * len(requests)


def count_answers(
    asked: Questions, root: GivenModel, *, trust_remote_code: bool = False
) -> AnswerCount | None:
    """Return what an evaluation asks of models with the tokenizer of `root`; None: the architecture is not known."""
    started = time.perf_counter()
    model = empty_model(root.folder, trust_remote_code=trust_remote_code)
    if model is None:
        return None
    tokenizer = load_tokenizer(root.folder, trust_remote_code=trust_remote_code)
    runs, _ = build_runs(
        asked.evaluation,
        asked.languages,
        asked.base_folder,
        skip_missing=asked.skip_missing,
        trust_remote_code=trust_remote_code,
    )
    evaluation = asked.evaluation
    with quiet():
        recorder = _Recorder(
            model,
            tokenizer,
            Batching(evaluation.batch_size, evaluation.tokens_per_batch),
            AnswerLog(),
            ItemCount(0, None),
            chat=evaluation.apply_chat_template,
        )
    recorder.groups, recorder.asked, recorder.pairs = [], [], []
    if runs:
        samples_of(recorder, tokenizer, evaluation, runs)
    by_key = {run.key: run for run in runs}
    length = partial(_reference_length, tokenizer)
    groups = []
    for (sampling, ending), prompts in recorder.groups:
        chosen = tuple(prompts.values())
        limits = [one.limit(sampling) for one in chosen]
        own = [recorder.asked[place] for place in prompts]
        references = [length(by_key, one, limit) for one, limit in zip(own, limits, strict=True)]
        groups.append(Prompts(sampling, ending, chosen, tuple(references)))
    held_out = sum(
        len(tokenizer(message.content).input_ids)
        for example in asked.held_out
        for message in example.messages
    )
    return AnswerCount(
        items=sum(len(run.documents) for run in runs),
        groups=tuple(groups) * evaluation.repeats,
        pairs=tuple(recorder.pairs),
        held_out_tokens=held_out,
        seconds=time.perf_counter() - started,
    )


def _reference_length(
    tokenizer: PreTrainedTokenizerBase, runs: dict[str, Run], request: Instance, limit: int
) -> int:
    run = runs.get(str(request.task_name))
    expected = "" if run is None else expected_text(run.task, request.doc)
    tokens = len(tokenizer(expected, add_special_tokens=False).input_ids)
    return min(limit, tokens + 1) if tokens else max(1, limit // 2)
