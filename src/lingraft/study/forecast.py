"""What a plan will take: of every stage its work, memory, disk and time, and what of it is done already.

Tokens, steps and prompts are counted (`study.counts`), memory follows from them (`train.memory_plan`). Time is known
where this machine did the like: in `--measure` (`study.measuring`), or in a stage of the same run folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, TypeVar

from lingraft.models.compute import compute_for
from lingraft.models.peak import peak_of
from lingraft.models.shape import ModelShape, shape_of
from lingraft.models.weights import empty_model
from lingraft.stage import GivenModel, StageSpec, root_of
from lingraft.study.counts import AnswerCount, count_answers, count_training
from lingraft.study.events import Watcher
from lingraft.study.measuring import (
    AnswerRate,
    Batching,
    TrainingRate,
    answer_key,
    keep_rate,
    kept_rate,
    measure_answers,
    measure_training,
    training_key,
)
from lingraft.study.plan import consumers_of
from lingraft.study.stages.evaluate import Evaluate
from lingraft.study.stages.train import Train
from lingraft.study.store import Store, unfinished
from lingraft.study.unused import size_text
from lingraft.train.memory import give_back
from lingraft.train.memory_plan import (
    HostMemory,
    MemoryPlan,
    evaluation_memory,
    free_host,
    free_memory,
    held_now,
    host_problem,
    memory_problem,
)

FORMAT = 1
MOST_ROWS_GENERATED = 1024  # together, where the study names no number
State = Literal["finished", "begun", "to do"]
Source = Literal["measured", "stage"]
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
_FEW_MINUTES = 10 * _MINUTE  # from here on seconds say nothing
Rate = TypeVar("Rate", TrainingRate, AnswerRate)


@dataclass(frozen=True)
class TrainingWork:
    """What a training works through; see `TrainingCount`, and how (`memory_plan.Cut`)."""

    rows: int
    replayed: int
    tokens: int
    padded_tokens: int
    supervised_tokens: int
    steps: int
    trained_parameters: int | None
    is_exact: bool
    pieces: int
    gradient_checkpointing: bool


@dataclass(frozen=True)
class AnswerWork:
    """What an evaluation asks; see `AnswerCount`.

    Attributes:
        items: See there.
        prompt_tokens: See there.
        most_generated: See there.
        expected_generated: See there; of a model that was measured, by the length of its own answers.
    """

    items: int
    prompt_tokens: int
    most_generated: int
    expected_generated: int


@dataclass(frozen=True)
class StageForecast:
    """One stage of a plan.

    Attributes:
        kind: What it does.
        label: Its name.
        fingerprint: Of its inputs.
        consumers: How many stages read its artefacts.
        state: `finished`, `begun` (interrupted: it goes on), or `to do`.
        is_kept: Whether its artefacts stay when the study is over.
        device: What it computes on: `accelerator` or `processor`.
        training: Its work, where it trains.
        answers: Its work, where it evaluates.
        flops: Floating-point operations of its work; None: not known.
        memory: Bytes at its peak, by part; None: not known.
        memory_bytes: Of these the sum; of a training that was measured, as measured.
        host: Bytes of the machine's own memory beside an accelerator that trains; None: none does, or not known.
        disk_bytes: Of its artefacts, with what it keeps there while it works; None: not known.
        seconds: That it will take, or took; None: not known.
        seconds_from: `measured`, or `stage`: a finished stage of this run folder is the like; None: not known.
        mfu: Model FLOPs utilisation of a training, at the measured rate, or what a finished one reached; None: not
            known.
    """

    kind: str
    label: str
    fingerprint: str
    consumers: int
    state: State
    is_kept: bool
    device: str
    training: TrainingWork | None = None
    answers: AnswerWork | None = None
    flops: float | None = None
    memory: MemoryPlan | None = None
    memory_bytes: int | None = None
    host: HostMemory | None = None
    disk_bytes: int | None = None
    seconds: float | None = None
    seconds_from: Source | None = None
    mfu: float | None = None

    @property
    def is_finished(self) -> bool:
        """Whether it is finished already."""
        return self.state == "finished"


@dataclass(frozen=True)
class Forecast:
    """What a plan will take.

    Attributes:
        stages: In the order in which they run.
        seconds: Of the stages that are not finished, where all that train or evaluate are known; None: not known.
        stages_without_time: How many of the unfinished ones are not in `seconds`.
        flops: Of the unfinished stages.
        memory_bytes: The most that one of the unfinished stages takes at a time.
        free_memory_bytes: Of the device that trains.
        disk_bytes: The most that lies on the disk at a time, beyond what does now.
        free_disk_bytes: Of the disk of the run folder.
        host_bytes: The most that one of them takes of the machine's own memory beside an accelerator that trains; None:
            none does, or not known.
        free_host_bytes: Of the machine's own memory.
        format: Of its JSON.
    """

    stages: tuple[StageForecast, ...]
    seconds: float | None
    stages_without_time: int
    flops: float
    memory_bytes: int | None
    free_memory_bytes: int
    disk_bytes: int
    free_disk_bytes: int
    host_bytes: int | None = None
    free_host_bytes: int = 0
    format: int = FORMAT

    @property
    def problems(self) -> tuple[str, ...]:
        """What does not fit this machine, each in a sentence."""
        return tuple(
            problem
            for problem in (
                memory_problem(self.memory_bytes or 0, self.free_memory_bytes),
                host_problem(
                    max(
                        (one.host.certain for one in self.stages if one.host and not one.is_finished),
                        default=0,
                    ),
                    self.free_host_bytes,
                ),
                disk_problem(self.disk_bytes, self.free_disk_bytes),
            )
            if problem is not None
        )


def work_text(one: StageForecast) -> str:
    """Return what a stage works through, in a few words; of other kinds than training and evaluating nothing."""
    if one.training is not None:
        about = "" if one.training.is_exact else "about "
        replayed = f", {one.training.replayed:,} rows replayed" if one.training.replayed else ""
        cut = f", each in {one.training.pieces} pieces" if one.training.pieces > 1 else ""
        again = ", checkpointing" if one.training.gradient_checkpointing else ""
        return f"{about}{one.training.steps:,} steps{cut}, {one.training.tokens:,} tokens{replayed}{again}"
    if one.answers is not None:
        asked = one.answers
        return (
            f"{asked.items:,} items, {asked.expected_generated:,} tokens (at most {asked.most_generated:,})"
        )
    return ""


def time_text(seconds: float) -> str:
    """Return a length of time: in seconds below ten minutes, then in minutes, hours and minutes, or days and hours."""
    if seconds < _FEW_MINUTES:
        return f"{seconds:.0f} s"
    if seconds < 2 * _HOUR:
        return f"{seconds / _MINUTE:.0f} min"
    if seconds < 2 * _DAY:
        return f"{seconds // _HOUR:.0f} h {seconds % _HOUR // _MINUTE:.0f} min"
    return f"{seconds // _DAY:.0f} days {seconds % _DAY // _HOUR:.0f} h"


def free_disk(folder: Path) -> int:
    """Return the free bytes of the disk on which a folder lies, or will."""
    place = folder.absolute()
    return shutil.disk_usage(next(path for path in (place, *place.parents) if path.exists())).free


def disk_problem(needed: int, free: int) -> str | None:
    """Return what is said where a run needs more disk than is free, in bytes; None: it fits."""
    if needed <= free:
        return None
    return (
        f"the run needs about {size_text(needed)} of disk, and {size_text(free)} are free: free some, name other "
        "--runs, or set keep=none."
    )


def forecast(
    stages: Sequence[StageSpec],
    kept: Collection[str],
    store: Store,
    *,
    measure_from: int | None = None,
    watcher: Watcher | None = None,
    trust_remote_code: bool = False,
) -> Forecast:
    """Return what stages will take; nothing is written but rates that were measured.

    Args:
        stages: In the order in which they run.
        kept: Fingerprints of those whose artefacts stay.
        store: Where what is finished lies.
        measure_from: Time a few real steps of trainings of at least so many, and a few real answers of evaluations
            where no finished one asks the same; None: measure nothing.
        watcher: Receives how far the counting is.
        trust_remote_code: Run Python code that models and tasks bring along.

    Raises:
        DataError, ModelError: Rows cannot be encoded, or a model cannot be loaded; as the run would.
    """
    with TemporaryDirectory(prefix="lingraft-plan-") as place:
        own = _Forecaster(
            stages, kept, store, Path(place), measure_from, watcher or Watcher(), trust_remote_code
        )
        alone = tuple(own.stage(number, stage) for number, stage in enumerate(stages))
    found = tuple(_after_the_like(one, alone) for one in alone)
    ahead = [one for one in found if not one.is_finished]
    unknown = [one for one in ahead if one.seconds is None]
    heavy = any(one.kind in ("train", "evaluate") for one in unknown)
    memory = [one.memory_bytes for one in ahead if one.memory_bytes is not None]
    return Forecast(
        stages=found,
        seconds=None if heavy else sum(one.seconds or 0.0 for one in ahead),
        stages_without_time=len(unknown),
        flops=sum(one.flops or 0.0 for one in ahead),
        memory_bytes=max(memory, default=None),
        free_memory_bytes=free_memory(compute_for()),
        disk_bytes=disk_needed(stages, kept, [one.fingerprint for one in found if one.is_finished]),
        free_disk_bytes=free_disk(store.folder),
        host_bytes=max((one.host.total for one in ahead if one.host is not None), default=None),
        free_host_bytes=free_host(),
    )


class _Forecaster:
    """Counts and measures what stages share once."""

    def __init__(
        self,
        stages: Sequence[StageSpec],
        kept: Collection[str],
        store: Store,
        place: Path,
        measure_from: int | None,
        watcher: Watcher,
        trust_remote_code: bool,
    ) -> None:
        self._stages, self._kept, self._store, self._place = stages, kept, store, place
        self._measure_from, self._watcher, self._trust = measure_from, watcher, trust_remote_code
        self._consumers = consumers_of(stages)
        self._base = held_now(compute_for())  # before anything is measured, which leaves a larger heap
        self._was_asked = {
            id(one.questions)
            for one in stages
            if isinstance(one, Evaluate) and store.find(one) is not None  # it says how long the others take
        }
        self._shapes: dict[Path, ModelShape | None] = {}
        self._answers: dict[tuple[int, Path], AnswerCount | None] = {}
        self._rates: dict[str, TrainingRate | AnswerRate | None] = {}

    def stage(self, number: int, stage: StageSpec) -> StageForecast:
        """Return what one stage will take, or took."""
        doing = "counting" if self._measure_from is None else "measuring"
        self._watcher.preparing(f"{doing} {stage.name}", number, len(self._stages))
        found, needs = self._store.find(stage), stage.needs
        work = unfinished(self._store.folder, stage.folder_name)
        begun = work is not None and any((work / name).exists() for name in stage.continues)
        one = StageForecast(
            kind=stage.kind,
            label=stage.label,
            fingerprint=stage.fingerprint,
            consumers=len(self._consumers[stage.fingerprint]),
            state="finished" if found is not None else "begun" if begun else "to do",
            is_kept=not stage.is_discardable or stage.fingerprint in self._kept,
            device=needs.device,
            memory_bytes=needs.memory_bytes,
            disk_bytes=needs.disk_bytes,
        )
        if isinstance(stage, Train) and (root := root_of(stage.job.parent)) is not None:
            one = self._training(one, stage, root)
        if isinstance(stage, Evaluate) and (root := root_of(stage.model)) is not None:
            one = self._evaluation(one, stage, root)
        if found is not None:
            own = found.timing.get("mfu")
            one = replace(one, seconds=found.seconds or None, seconds_from="stage", mfu=own)
        return one

    def _training(self, one: StageForecast, stage: Train, root: GivenModel) -> StageForecast:
        job = stage.job
        count = count_training(job, root, self._place)
        cut = stage.cut(count.largest, base=self._base)
        memory = stage.memory(count.largest, cut, base=self._base)
        if cut.checkpointing and count.flops is not None:
            count = replace(count, flops=count.flops + count.flops_again)
        work = TrainingWork(
            rows=count.rows,
            replayed=count.replayed,
            tokens=count.tokens,
            padded_tokens=count.padded_tokens,
            supervised_tokens=count.supervised_tokens,
            steps=count.steps,
            trained_parameters=None if job.shape is None else job.shape.trained,
            is_exact=count.is_exact,
            pieces=cut.pieces,
            gradient_checkpointing=cut.checkpointing,
        )
        one = replace(one, training=work, flops=count.flops, memory=memory, host=stage.host)
        if memory is None or job.shape is None:
            return one
        rate = None
        if stage.processes.count == 1 and one.state != "finished":
            key = training_key(job, root, job.shape, cut)
            rate = self._rate(
                TrainingRate,
                key,
                lambda shape=job.shape: measure_training(  # type: ignore[misc]
                    job, root, count, shape, memory.total, cut, self._place
                ),
                is_wanted=self._measure_from is not None and count.steps >= self._measure_from,
            )
        if rate is None:
            return replace(one, memory_bytes=memory.total)
        needed = (count.model_flops or 0.0) / max(rate.step_seconds_of(count), 1e-9)
        return replace(
            one,
            memory_bytes=memory.total + rate.unplanned_bytes,
            seconds=rate.seconds(count),
            seconds_from="measured",
            mfu=needed / peak_of(compute_for(job.training.precision)).flops,
        )

    def _evaluation(self, one: StageForecast, stage: Evaluate, root: GivenModel) -> StageForecast:
        asked = stage.questions
        known = id(asked), root.folder
        if known not in self._answers:
            self._answers[known] = count_answers(asked, root, trust_remote_code=self._trust)
        count = self._answers[known]
        if root.folder not in self._shapes:
            model = empty_model(root.folder, trust_remote_code=self._trust)
            self._shapes[root.folder] = None if model is None else shape_of(model)
        shape = self._shapes[root.folder]
        if count is None or shape is None:
            return one
        compute = compute_for(asked.evaluation.precision)
        if not self._rates:  # the harness is loaded now, and nothing has been measured yet
            self._base = held_now(compute)
        batching = Batching(
            asked.evaluation.batch_size or MOST_ROWS_GENERATED, asked.evaluation.tokens_per_batch
        )
        rows, length = max(
            (
                (len(own), max(len(group.prompts[row].ids) + group.limit(row) for row in own))
                for group in count.groups
                for own in group.batches(batching.most_rows, batching.tokens)
            ),
            key=lambda batch: batch[0] * batch[1],
            default=(0, 0),
        )
        positions = min(
            sum(len(pair.continuation) for pair in count.pairs) + count.held_out_tokens, batching.tokens // 8
        )
        memory = evaluation_memory(
            shape,
            compute,
            rows=rows,
            length=length,
            positions=positions,
            base=self._base,
            processes=asked.workers,
        )
        rate = None
        if one.state != "finished" and isinstance(asked.evaluation.backend, str):
            rate = self._rate(
                AnswerRate,
                answer_key(count, compute, root),
                lambda: measure_answers(asked, root, count, shape, trust_remote_code=self._trust),
                is_wanted=self._measure_from is not None and id(asked) not in self._was_asked,
            )
        is_root = isinstance(stage.model, GivenModel)
        expected = count.expected_generated
        if rate is not None and is_root:
            expected = min(count.most_generated, round(expected * rate.length_share))
        work = AnswerWork(count.items, count.prompt_tokens, count.most_generated, expected)
        one = replace(one, answers=work, flops=count.flops(shape), memory=memory, memory_bytes=memory.total)
        if rate is None:
            return one
        seconds = rate.seconds(count, shape, batching, is_root=is_root)
        if compute.device.type != "cpu":  # there, processes share the threads that one was measured with
            seconds /= asked.workers
        return replace(one, seconds=seconds, seconds_from="measured")

    def _rate(
        self, kind: type[Rate], key: str, measured: Callable[[], Rate], *, is_wanted: bool
    ) -> Rate | None:
        """Return a rate: measured now, once, where that is asked for, else what an earlier plan measured."""
        if key not in self._rates:
            if is_wanted:
                rate = measured()
                give_back()  # a model a measurement, as of stages
                keep_rate(key, rate)
                self._rates[key] = rate
            else:
                self._rates[key] = kept_rate(kind, key)
        found = self._rates[key]
        assert found is None or isinstance(found, kind)
        return found


def _after_the_like(one: StageForecast, stages: tuple[StageForecast, ...]) -> StageForecast:
    """Return a stage with the time that finished ones of its kind took, for as much work; as it is, where none is."""
    if one.seconds is not None or one.is_finished:
        return one
    alike = [
        other
        for other in stages
        if other.kind == one.kind
        and other.is_finished
        and other.seconds
        and bool(other.flops) == bool(one.flops)
    ]
    if one.training is not None:
        alike = [
            other
            for other in alike
            if other.training is not None
            and other.training.trained_parameters == one.training.trained_parameters
        ]
    if not alike:
        return one
    seconds = sum(other.seconds or 0.0 for other in alike)
    if one.flops:
        seconds *= one.flops / sum(other.flops or 0.0 for other in alike)
    else:
        seconds /= len(alike)
    return replace(one, seconds=seconds, seconds_from="stage")


def disk_needed(stages: Sequence[StageSpec], kept: Collection[str], finished: Collection[str]) -> int:
    """Return the most bytes that stages will have on the disk at a time, beyond what lies there now.

    Args:
        stages: In the order in which they run.
        kept: Fingerprints of those whose artefacts stay.
        finished: Fingerprints of those that are.
    """
    readers = {
        key: {reader.fingerprint for reader in found} - set(finished)
        for key, found in consumers_of(stages).items()
    }
    lying: dict[str, int] = {}
    most = 0
    for stage in stages:
        if stage.fingerprint not in finished:
            own, start = stage.needs.disk_bytes or 0, stage.starts_from
            most = max(most, sum(lying.values()) + own)
            lying[stage.fingerprint] = own if start is None else min(own, 4 * start.parameters)
        for waiting in readers.values():
            waiting.discard(stage.fingerprint)
        over = [key for key in lying if not readers[key] and key not in kept]
        for fingerprint in over:
            del lying[fingerprint]
    return most
