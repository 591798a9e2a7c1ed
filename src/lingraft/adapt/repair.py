"""Repair a damaged model: on-policy distillation towards the model that it was before.

The model answers general prompts, and learns at every token of its own answer what the start would have said there. So
it is corrected where it goes by itself, and needs no answers of anybody else, which would teach it more than was lost.

Source: Agarwal et al. 2024, arXiv 2306.13649 (GKD, with the reverse KL and the student's samples alone); Thinking
Machines Lab 2025, "On-Policy Distillation", which repairs a chat model so after it was trained on documents. They
sample one token's KL at a time or in batches of one step; here it is exact over the vocabulary, and answers are sampled
once a round, so the later steps of a round learn from answers that are some steps old.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from lingraft import stopping
from lingraft.append_log import AppendLog
from lingraft.config.schema import Training
from lingraft.data.batching import token_budget_batches
from lingraft.data.chat_format import CHAT_IDENTITY, chat_format
from lingraft.data.encoded import EncodedExample
from lingraft.data.example import UNDETERMINED_LANGUAGE
from lingraft.errors import DataError
from lingraft.models.checkpoints import save_checkpoint
from lingraft.models.compute import compute_for
from lingraft.models.context_length import context_length_of
from lingraft.models.generation import (
    BATCH_SIZE,
    Ending,
    Sampling,
    TokenPrompt,
    TransformersGenerator,
    answer_ending,
    batches_within,
)
from lingraft.models.loading import load_model, load_tokenizer
from lingraft.models.loss import collate, reverse_divergence, token_losses
from lingraft.models.text_parts import reached_by_text
from lingraft.models.token_ids import embedding_rows, padding_id
from lingraft.records import fingerprint_of, flush_folder, to_json
from lingraft.representation.prompts import Prompt, read_prompts
from lingraft.stage import (
    CHECKPOINT,
    Json,
    Model,
    Needs,
    StageProgress,
    StageSpec,
    Work,
    Workplace,
    libraries,
    machine,
    stages_of,
)
from lingraft.stopping import Stopped
from lingraft.study.stages.job import TRAINING_LIBRARIES
from lingraft.study.stages.replay import ROWS, Replay
from lingraft.train.checkpoints import FOLDER
from lingraft.train.on_policy import OnPolicy
from lingraft.train.phase import train_phase
from lingraft.train.watching import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lingraft.models.compute import Compute

ANSWERS = "answers.jsonl"
FEWEST_PROMPTS = 16
_HELD_OUT_SHARE, _MOST_HELD_OUT = 8, 64  # one in so many prompts, at most so many
_HELD_OUT_ROUNDS = {"before": -1, "after": -2}  # what their answers are kept under
_MEASURED_TOKENS = 4096  # of a batch whose divergence is measured, padding included


@dataclass(frozen=True, slots=True)
class RoundCounts:
    """What a model answered in one round.

    Attributes:
        answers: How many.
        tokens: Of all of them, end tokens included.
        ended: How many the model ended by itself; the others were cut off.
    """

    answers: int
    tokens: int
    ended: int


@dataclass(frozen=True, slots=True)
class Divergence:
    """How far a model's answers to the held-out prompts are from the start's.

    Attributes:
        nats: Mean KL(model || start) per token of the model's own answers, at least 0; 0: it answers as the start does.
        tokens: Tokens that it is the mean of.
    """

    nats: float
    tokens: int


@dataclass(frozen=True)
class Repaired:
    """What a repair did.

    Attributes:
        prompts: Prompts that were trained on, in every round.
        held_out: Prompts that were not, by which it is measured.
        refused: Prompts left out, by reason: refused by the chat template, too long for the model, or repeated.
        rounds: What was answered in each.
        steps: Optimiser steps.
        losses: (step, mean reverse KL of that step in nats per token).
        before: Of the damaged model.
        after: Of the repaired one.
        trainable_parameters: How many parameters were trained.
    """

    prompts: int
    held_out: int
    refused: dict[str, int]
    rounds: tuple[RoundCounts, ...]
    steps: int
    losses: tuple[tuple[int, float], ...]
    before: Divergence
    after: Divergence
    trainable_parameters: int


@dataclass(frozen=True, eq=False)
class Repair(StageSpec):
    """The repair of a damaged model; interrupted, it goes on from its last checkpoint and the answers that it has.

    Needs: weights, gradients and both moments of AdamW, the start's weights, and a copy of the weights to answer with
    where the arithmetic is not float32. Logits and activations are not in it.

    Attributes:
        start: The model before the damage, which teaches.
        damaged: The model that is repaired.
        prompts: What is answered, or the stage that samples it from a model.
        training: Its epochs are the rounds, and a step's tokens_per_batch are those of the longest answers allowed.
        max_new_tokens: Where an answer is cut off.
        seed: Of the answers and of the order.
        trust_remote_code: Run Python code that the models bring along.
    """

    kind: ClassVar[str] = "repair"
    continues: ClassVar[tuple[str, ...]] = (FOLDER, ANSWERS)
    is_discardable: ClassVar[bool] = True

    start: Model
    damaged: Model
    prompts: Sequence[Prompt] | Replay
    training: Training
    max_new_tokens: int = 128
    seed: int = 0
    trust_remote_code: bool = False

    @property
    def inputs(self) -> Mapping[str, Json]:
        """Both models, the prompts and the training options."""
        own = self.prompts
        prompts: Json = (
            {"stage": own.fingerprint}
            if isinstance(own, Replay)
            else fingerprint_of([[asdict(one) for one in row.messages] for row in own])
        )
        return {
            "start": self.start.identity,
            "damaged": self.damaged.identity,
            "prompts": prompts,
            "training": self.training.compared(),
            "max_new_tokens": self.max_new_tokens,
            "seed": self.seed,
            "chat": CHAT_IDENTITY,
            "libraries": libraries(TRAINING_LIBRARIES),
        }

    @property
    def parents(self) -> tuple[StageSpec, ...]:
        """The stages that made the models and the prompts."""
        own = (self.prompts,) if isinstance(self.prompts, Replay) else ()
        return (*stages_of(self.start, self.damaged), *own)

    @property
    def needs(self) -> Needs:
        """Weights, gradients, moments, and the models that answer and teach; on disk two checkpoints besides."""
        parameters = self.damaged.parameters
        held = compute_for(self.training.precision).held.itemsize
        copy = 0 if self.training.precision == "float32" else held
        saves = self.training.save_every or self.training.save_minutes
        return Needs(
            "accelerator",
            (16 + held + copy) * parameters or None,
            (4 + (24 if saves else 0)) * parameters or None,
        )

    def work(self, place: Workplace) -> Work:
        """Train on the model's own answers, write the repaired model, and measure it on held-out prompts."""
        note = partial(place.watcher.noted_of, self.label)
        compute = compute_for(self.training.precision)
        trust = self.trust_remote_code
        start, damaged = place.model(self.start), place.model(self.damaged)
        tokenizer = load_tokenizer(damaged, trust_remote_code=trust)
        model = load_model(damaged, trust_remote_code=trust)
        teacher = load_model(start, dtype=compute.held, trust_remote_code=trust)
        teacher.to(compute.device)  # type: ignore[arg-type]
        place.check_given()  # both are in memory now
        own = self.prompts
        given = read_prompts(str(place.folder_of(own) / ROWS)) if isinstance(own, Replay) else own
        longest = context_length_of(model.config)
        prompts, refused = _encoded(
            given, tokenizer, None if longest is None else longest - self.max_new_tokens
        )
        if len(prompts) < FEWEST_PROMPTS:
            reasons = (
                ", ".join(f"{count} {reason}" for reason, count in refused.items()) or "none was left out"
            )
            raise DataError(
                f"{self.label}: {len(prompts)} prompts are left to repair with ({reasons}); give at least "
                f"{FEWEST_PROMPTS}."
            )
        if refused:
            note(f"prompts left out: {', '.join(f'{count} {reason}' for reason, count in refused.items())}.")
        random.Random(f"prompts of seed {self.seed}").shuffle(prompts)
        held_out = min(len(prompts) // _HELD_OUT_SHARE, _MOST_HELD_OUT)
        asked, kept_back = prompts[held_out:], prompts[:held_out]

        answers = OwnAnswers(
            model,
            tokenizer,
            answer_ending(damaged, tokenizer),
            place.folder / ANSWERS,
            compute=compute,
            max_new_tokens=self.max_new_tokens,
            seed=self.seed,
            load_copy=partial(load_model, damaged, dtype=compute.held, trust_remote_code=trust),
            on_progress=partial(place.progressed, unit="answers"),
        )
        if answers.damage is not None:
            note(answers.damage)

        def measured(when: str) -> Divergence:
            found = answers.to(kept_back, _HELD_OUT_ROUNDS[when])
            return mean_divergence(model, teacher, found, compute)

        def on_progress(now: Progress) -> None:
            place.watcher.stage_progressed(
                StageProgress(now.step, now.steps, now.loss, seconds_left=now.seconds_left)
            )

        model.to(compute.device)  # type: ignore[arg-type]
        before = measured("before")
        saves = bool(self.training.save_every or self.training.save_minutes)
        fill = (padding_id(tokenizer, embedding_rows(model)),) * self.max_new_tokens
        outcome = train_phase(
            model,
            tokenizer,
            [_row(number, ids, fill) for number, ids in enumerate(asked)],
            self.training,
            trainable=reached_by_text(model),
            folder=place.folder,
            seed=self.seed,
            on_progress=on_progress,
            on_note=note,
            on_policy=OnPolicy(partial(answers.to, asked), ReverseDivergence(teacher), saves_rounds=saves),
        )
        save_checkpoint(model, tokenizer, place.folder / CHECKPOINT)
        flush_folder(place.folder / CHECKPOINT)
        result = Repaired(
            prompts=len(asked),
            held_out=len(kept_back),
            refused=refused,
            rounds=tuple(answers.counts(number) for number in range(self.training.epochs)),
            steps=outcome.steps,
            losses=outcome.losses,
            before=before,
            after=measured("after"),
            trainable_parameters=outcome.trainable_parameters,
        )
        timing = {
            "training_seconds": outcome.seconds,
            "peak_bytes": outcome.peak_bytes,
            "resumed_from": outcome.resumed_from,
            "refused_checkpoints": outcome.refused_checkpoints,
        }
        return Work(to_json(result), {**machine(compute), **timing})


class ReverseDivergence:
    """The loss of a repair: the sum over the answers' tokens of KL(model || teacher), over the whole vocabulary."""

    def __init__(self, teacher: PreTrainedModel) -> None:
        self._teacher = teacher

    def __call__(self, logits: Tensor, rows: Tensor, batch: Mapping[str, Tensor]) -> Tensor:  # noqa: ARG002
        """Return the sum in nats; see `OutputPenalty`."""
        with torch.no_grad():
            wanted = token_losses(self._teacher, batch).logits
        return reverse_divergence(logits, wanted).sum()


class OwnAnswers:
    """Answers of a model that changes, round by round; each batch is kept in a log before the next is begun.

    They are drawn from the model's own distribution (temperature 1, all tokens), each by a seed of its own, as token
    ids: encoded anew from its text, an answer might have other tokens than were drawn.

    Args:
        model: Answers with the weights that it has when it is asked; its mode is set to evaluation.
        tokenizer: Its own.
        ending: What ends an answer.
        log: The file that they are kept in.
        compute: What it computes on. In another arithmetic than float32 a copy of the weights answers, in the type that
            an evaluation holds them in.
        max_new_tokens: Where an answer is cut off.
        seed: Of all draws.
        load_copy: Returns the model that the weights are copied into; not called in float32.
        on_progress: Called with the answers of a round that are there, and how many it has.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        ending: Ending,
        log: Path,
        *,
        compute: Compute,
        max_new_tokens: int,
        seed: int,
        load_copy: Callable[[], PreTrainedModel],
        on_progress: Callable[[int, int], None] = lambda *_: None,
    ) -> None:
        self._model, self._tokenizer, self._ending = model, tokenizer, ending
        self._sampling = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=max_new_tokens)
        self._compute, self._seed = compute, seed
        self._load_copy = load_copy
        self._copy: PreTrainedModel | None = None
        self._on_progress = on_progress
        self._log = AppendLog(log, lambda line: (line["round"], line["row"], tuple(map(int, line["tokens"]))))
        self.damage = self._log.damage
        self._found = {(number, row): tokens for number, row, tokens in self._log.rows}

    def to(self, prompts: Sequence[tuple[int, ...]], number: int) -> list[EncodedExample]:
        """Return prompts (as token ids) with the answers of a round, whose tokens alone are supervised.

        Raises:
            Stopped: A signal asked for it; the answers so far are kept.
        """
        requests = [
            TokenPrompt(ids, int(fingerprint_of([self._seed, "repair", number, row])[:15], 16))
            for row, ids in enumerate(prompts)
        ]

        def is_done(row: int) -> bool:
            return (number, row) in self._found

        order = sorted(range(len(prompts)), key=lambda row: (-len(prompts[row]), row))
        answering: TransformersGenerator | None = None
        for rows in batches_within(order, [(len(ids), 0) for ids in prompts], BATCH_SIZE, None):
            if all(map(is_done, rows)):
                continue
            if answering is None:
                answering = TransformersGenerator(self._answering(), self._tokenizer)
            # Also those of the batch that are there: their neighbours decide the rounding.
            found = answering.continue_tokens([requests[row] for row in rows], self._sampling, self._ending)
            new = {row: said for row, said in zip(rows, found, strict=True) if not is_done(row)}
            self._log.append(
                {"round": number, "row": row, "tokens": said} for row, said in sorted(new.items())
            )
            self._found |= {(number, row): said for row, said in new.items()}
            there = sum(map(is_done, order))
            self._on_progress(there, len(order))
            if (signal := stopping.requested()) is not None:  # training does not raise it by itself
                stopping.saved(f"{there} of {len(order)} answers of a round are there")
                raise Stopped(signal)
        return [_row(row, ids, self._found[number, row]) for row, ids in enumerate(prompts)]

    def counts(self, number: int) -> RoundCounts:
        """Return what was answered in a round."""
        said = [tokens for (one, _), tokens in self._found.items() if one == number]
        ended = sum(tokens[-1] in self._ending.tokens for tokens in said)
        return RoundCounts(len(said), sum(map(len, said)), ended)

    def _answering(self) -> PreTrainedModel:
        """Return the model as it is now, in the type that it answers in."""
        untyped: Any = self._model
        if self._compute.held == untyped.dtype:
            untyped.eval()
            return self._model
        if self._copy is None:
            self._copy = self._load_copy()
            self._copy.to(self._compute.device)  # type: ignore[arg-type]
        with torch.no_grad():
            own = dict(self._model.named_parameters())
            for name, parameter in self._copy.named_parameters():
                parameter.copy_(own[name])
        return self._copy


@torch.no_grad()
def mean_divergence(
    model: PreTrainedModel, teacher: PreTrainedModel, rows: Sequence[EncodedExample], compute: Compute
) -> Divergence:
    """Return the mean KL(model || teacher) per supervised token of rows, over the whole vocabulary."""
    untyped: Any = model
    untyped.eval()
    total, tokens = 0.0, 0
    arithmetic = compute.autocast() if compute.precision == "bf16" else nullcontext()
    for places in token_budget_batches([len(row.input_ids) for row in rows], _MEASURED_TOKENS, 0, 0):
        batch = {
            name: one.to(model.device) for name, one in collate([rows[place] for place in places]).items()
        }
        with arithmetic:
            own = token_losses(model, batch).logits
        wanted = token_losses(teacher, batch).logits
        total += float(reverse_divergence(own, wanted).double().sum())
        tokens += len(own)
    return Divergence(total / tokens, tokens)


def _row(number: int, prompt: tuple[int, ...], answer: tuple[int, ...]) -> EncodedExample:
    """Return a prompt and its answer, whose tokens alone are supervised."""
    supervised = (False,) * len(prompt) + (True,) * len(answer)
    return EncodedExample(str(number), UNDETERMINED_LANGUAGE, prompt + answer, supervised, 0)


def _encoded(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, room: int | None
) -> tuple[list[tuple[int, ...]], dict[str, int]]:
    """Return prompts as token ids, each once, and how many were left out, by reason.

    Args:
        prompts: In their order.
        tokenizer: Whose chat template is used.
        room: Most tokens of one; None: no limit.
    """
    chat = chat_format(tokenizer)
    taken: dict[tuple[int, ...], None] = {}
    refused: Counter[str] = Counter()
    for prompt in prompts:
        try:
            ids = tuple(chat.prompt_ids(prompt.messages, fold_system=prompt.fold_system))
        except DataError:
            refused["refused by the chat template"] += 1
            continue
        if room is not None and len(ids) > room:
            refused["too long for the model"] += 1
        elif ids in taken:
            refused["repeated"] += 1
        else:
            taken[ids] = None
    return list(taken), dict(sorted(refused.items()))
