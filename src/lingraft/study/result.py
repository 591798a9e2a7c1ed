"""The result of a study: what `run_study` returns, `result.json` holds and the report reads.

Here it is written and read, and nowhere else. What one measure finds stands under the measure's name and is known to
its own file alone (`measures/`): a new measure changes nothing here. docs/report.md describes the fields for users.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final, Literal

from pydantic import JsonValue

from lingraft.contamination.overlap import TaskOverlap
from lingraft.data.tokenizer_cost import LanguageCost
from lingraft.errors import ConfigError, escape_control_characters
from lingraft.evaluate.results import Differences, Forgetting, Scores
from lingraft.intervals.macro_mean import Difference, Ratio
from lingraft.measures.base import Measured
from lingraft.notebook import InNotebook
from lingraft.records import from_json, read_json, to_json, write_json_atomically
from lingraft.study.limits import LimitPlan, LimitResult
from lingraft.study.unused import UnusedStage

RESULT = "result.json"
STUDY = "study.yaml"
FORMAT: Final = 2
"""Of result.json; files of earlier versions have none. Another meaning or name of a field raises it."""

Options = dict[str, JsonValue]


@dataclass(frozen=True, kw_only=True)
class DataCounts:
    """The rows of one data set, as one seed draws them.

    Attributes:
        source: As the study file names it.
        rows: Rows read, broken ones included.
        broken: Rows that could not be read.
        first_broken: The first of these, each with its place and problem.
        filtered: Rows left out, by filter.
        incomplete_groups: Parallel groups without one of the languages; None: the set has no groups.
        unknown_keys: Rows by key of a message that nothing reads.
        max_broken_share: The share of broken rows that the study file allows.
        held_out: Rows kept for the held-out loss.
        withheld: Rows that another set of the study holds out.
        train: Rows trained on.
        shortfall: Rows fewer than `limit` asks for.
    """

    source: str
    rows: int
    broken: int
    first_broken: tuple[str, ...]
    filtered: dict[str, int]
    incomplete_groups: int | None
    unknown_keys: dict[str, int]
    max_broken_share: float
    held_out: int
    withheld: int
    train: int
    shortfall: int


@dataclass(frozen=True, kw_only=True)
class ReplayOrigin:
    """Where replayed rows are from.

    Attributes:
        kind: What they are, such as answers of a model.
        model: The model that answered; None: none did.
        settings: How it did.
        rows: How many there are.
    """

    kind: str
    model: str | None
    settings: Options
    rows: int


@dataclass(frozen=True, kw_only=True)
class TrainingCounts:
    """What one phase was trained on. Equal runs have equal counts.

    Attributes:
        data: The rows of each data set.
        precision: Of the arithmetic.
        examples: Rows trained on, replayed ones included.
        replayed: Of these, replayed ones.
        replay_share: Their share, in [0, 1].
        replay_shortfall: Replayed rows fewer than the strategy asks for, before the chat template refused any.
        replay_dropped: Replayed rows left out, by reason.
        replay_origins: Where the replayed rows are from.
        truncated: Rows cut to `max_length`.
        dropped: Rows that the chat template refuses, or whose answer was cut off.
        first_dropped: The first of these, each with its place and problem.
        handled: Rows that the chat template changed, by what it did.
        steps: Optimiser steps.
        tokens: Tokens of all epochs, without padding.
        padded_tokens: The same with padding.
        supervised_tokens: Tokens that the loss is taken over.
        trainable_parameters: Parameters that training could change; tied ones count once.
        frozen_parameters: Those that it could not.
        masked_parameters: Parameters frozen by a mask inside of tensors that train.
    """

    data: tuple[DataCounts, ...]
    precision: str
    examples: int
    replayed: int
    replay_share: float
    replay_shortfall: int
    replay_dropped: dict[str, int]
    replay_origins: tuple[ReplayOrigin, ...]
    truncated: int
    dropped: int
    first_dropped: tuple[str, ...]
    handled: dict[str, int]
    steps: int
    tokens: int
    padded_tokens: int
    supervised_tokens: int
    trainable_parameters: int
    frozen_parameters: int
    masked_parameters: int


@dataclass(frozen=True, kw_only=True)
class PhaseCost:
    """What a phase took on this machine: the one part of a result that two equal runs do not share.

    Attributes:
        prepare_seconds: What its strategies prepared.
        training_seconds: Training.
        resumed_from: Steps of an interrupted run, which are not in `training_seconds`; None: it ran in one go.
        combine_seconds: Making the final model of the one before and the trained one.
        peak_bytes: Largest resident memory; an accelerator's is not in it.
        mfu: Model FLOPs utilisation of the training; None: not known, as of results of older versions.
    """

    prepare_seconds: float
    training_seconds: float
    resumed_from: int | None
    combine_seconds: float
    peak_bytes: int
    mfu: float | None = None


@dataclass(frozen=True, kw_only=True)
class PhaseOneResult:
    """A Phase 1 model; a checkpoint has no data, strategy or seed.

    Attributes:
        data: Name of its data set.
        strategy: Its strategy.
        seed: Its seed.
        scores: Its scores.
        predictions: Where its answers are in the run folder.
        checkpoint: Its folder in the run folder; None: the study names the checkpoint itself, or `keep` discards it.
    """

    data: str | None
    strategy: str | None
    seed: int | None
    scores: Scores
    predictions: str
    checkpoint: str | None


@dataclass(frozen=True, kw_only=True)
class PhaseResult:
    """One phase that was trained for a cell.

    Attributes:
        phase: Its name.
        data: Its data set.
        strategy: Its strategy.
        options: The strategy's options that the study file gives; of a composition by strategy.
        measures: What each measure of the study found, by its name.
        scores: Of the model after it.
        training: What it was trained on.
        losses: Optimiser step, and its loss in nats per supervised token.
        checkpoint: Folder of the model after it, in the run folder; None: `keep` discards it.
    """

    phase: str
    data: str
    strategy: str
    options: Options
    measures: dict[str, Measured]
    scores: Scores
    training: TrainingCounts
    losses: tuple[tuple[int, float], ...]
    checkpoint: str | None


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """A cell that is done: what its last phase changed from Phase 1.

    Attributes:
        data: Data set of the last phase.
        strategy: Its strategy.
        seed: Of every phase.
        options: The strategy's options that the study file gives; of a composition by strategy.
        status: Tells cells that are done from failed ones.
        retention: Task ability after / before, on the items of `difference`.
        gain: Language ability after - before; None: there is none.
        difference: Paired differences from Phase 1.
        limits: By name as the study file has it, whether no more was lost.
        unpaired: By task and language, items that only one of the two models has a score of; `difference` leaves
            them out.
        not_paired: By task and language, why the two are not compared: they were asked in different ways.
        forgetting: Its forgetting matrices.
        scores: Of its last model.
        predictions: Where its answers are in the run folder.
        phase_one_predictions: Where those of its Phase 1 are.
        phases: The phases that were trained for it; of a mixed cell the one.
        training: Of the last phase.
        cost: Of the last phase.
        checkpoint: Folder of its last model, in the run folder; None: `keep` discards it.
        seconds: Of its last training, its evaluation and its measures, when they were made.
    """

    data: str
    strategy: str
    seed: int
    options: Options
    status: Literal["done"] = "done"
    retention: Ratio
    gain: float | None
    difference: Differences
    limits: dict[str, LimitResult]
    unpaired: dict[str, int]
    not_paired: dict[str, str]
    forgetting: Forgetting
    scores: Scores
    predictions: str
    phase_one_predictions: str
    phases: tuple[PhaseResult, ...]
    training: TrainingCounts
    cost: PhaseCost
    checkpoint: str | None
    seconds: float

    @property
    def measures(self) -> dict[str, Measured]:
        """What each measure found of the last phase."""
        return self.phases[-1].measures


@dataclass(frozen=True, kw_only=True)
class FailedCell:
    """A cell that failed, and why; the others are computed all the same.

    Attributes:
        data: Data set of the last phase.
        strategy: Its strategy.
        seed: Of every phase.
        options: The strategy's options that the study file gives.
        status: Tells failed cells from those that are done.
        reason: What went wrong.
    """

    data: str
    strategy: str
    seed: int
    options: Options
    status: Literal["failed"] = "failed"
    reason: str


@dataclass(frozen=True, kw_only=True)
class PendingCell:
    """A cell of which something is not made yet: the study is at work, was stopped, or failed as a whole.

    Attributes:
        data: Data set of the last phase.
        strategy: Its strategy.
        seed: Of every phase.
        options: The strategy's options that the study file gives.
        status: Tells pending cells from the others.
    """

    data: str
    strategy: str
    seed: int
    options: Options
    status: Literal["pending"] = "pending"


@dataclass(frozen=True, kw_only=True)
class SeedDifferences:
    """The mean change of one data set and strategy over its seeds.

    Every seed has its own two models, and all are asked the same items: the interval covers the choice of items at
    these seeds, not the choice of seeds.

    Attributes:
        data: Data set of the last phase.
        strategy: Its strategy.
        seeds: Seeds that are done.
        task_ability: Change from Phase 1.
        language_ability: Change from Phase 1.
        retention: Mean task ability over the seeds, after / before.
        limits: By name, whether the mean lost no more, and no seed says the opposite.
    """

    data: str
    strategy: str
    seeds: int
    task_ability: Difference
    language_ability: Difference
    retention: Ratio
    limits: dict[str, LimitResult]


@dataclass(frozen=True, kw_only=True)
class Precision:
    """What was computed in: what `auto` stands for on this machine.

    Attributes:
        training: Of all trained phases: bf16, bf16_pure, float32.
        evaluation: Of the evaluations.
        device: What computed.
    """

    training: tuple[str, ...]
    evaluation: str
    device: str


@dataclass(frozen=True, kw_only=True)
class Contamination:
    """How much of the evaluation stands in the training rows.

    Attributes:
        words: Words of an n-gram.
        characters: Characters of an n-gram, of languages that are written without spaces.
        tasks: By task and language.
        unread: Tasks that could not be read, each with its reason.
    """

    words: int
    characters: int
    tasks: dict[str, TaskOverlap]
    unread: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, repr=False)
class StudyResult(InNotebook):
    """What a study found.

    Attributes:
        format: Version of this format.
        run: The run folder, from where it was run or read; all other paths are relative to it.
        base: Scores of the base model; None: the study has none, it is pending, or its evaluation failed.
        base_reason: Why that failed; None: it did not.
        base_predictions: Where its answers are in the run folder; None as `base`.
        phase_ones: Every different Phase 1 model, in the order of the cells.
        cells: All that the study file lists, in the order of the grid: done, failed or pending.
        over_seeds: Of each data set and strategy of which several seeds are done.
        limits: By name as the study file has it, how many items could decide a limit.
        precision: What was computed in.
        tokenizer_cost: What each language costs in tokens, by `phase/data set` and BCP-47 tag.
        contamination: What of the tasks stands in the training rows; None: the study does not ask.
        language_notes: Which language of a task stands for which of the study's.
        unused: What else lies in the run folder: stages that the study file does not list (any more).
    """

    format: Literal[2] = FORMAT
    run: str
    base: Scores | None
    base_reason: str | None
    base_predictions: str | None
    phase_ones: tuple[PhaseOneResult, ...]
    cells: tuple[CellResult | FailedCell | PendingCell, ...]
    over_seeds: tuple[SeedDifferences, ...]
    limits: dict[str, LimitPlan]
    precision: Precision
    tokenizer_cost: dict[str, dict[str, LanguageCost]]
    contamination: Contamination | None
    language_notes: tuple[str, ...]
    unused: tuple[UnusedStage, ...]

    def __repr__(self) -> str:
        lines = [f"{self.run}: {len(self.done)} of {len(self.cells)} cells done"]
        for cell in self.cells:
            own = cell.scores if isinstance(cell, CellResult) else None
            said: list[str] = [cell.status]
            if own is not None:
                abilities = {"task ability": own.task_ability, "language ability": own.language_ability}
                said = [
                    f"{name} {one.value:.3f} [{one.low:.3f}, {one.high:.3f}]"
                    for name, one in abilities.items()
                    if one is not None
                ]
            elif isinstance(cell, FailedCell):
                said.append(cell.reason)
            lines.append(f"  {cell.data} / {cell.strategy}, seed {cell.seed}: {', '.join(said)}")
        return escape_control_characters("\n".join(lines))

    @cached_property
    def done(self) -> tuple[CellResult, ...]:
        """The cells that are done."""
        return tuple(cell for cell in self.cells if isinstance(cell, CellResult))

    @property
    def has_seeds(self) -> bool:
        """Whether cells have several seeds."""
        return len({cell.seed for cell in self.cells}) > 1


def gain(before: Scores, after: Scores) -> float | None:
    """Return language ability after - before; None: no task measures it."""
    if before.language_ability is None or after.language_ability is None:
        return None
    return after.language_ability.value - before.language_ability.value


def write_result(result: StudyResult) -> None:
    """Write `result.json` into the result's run folder."""
    write_json_atomically(Path(result.run) / RESULT, to_json(result))


def read_result(folder: Path | str) -> StudyResult:
    """Return the result of a study, of one that was stopped as far as it came.

    Raises:
        ConfigError: There is none, or its format is another version's.
    """
    path = Path(folder) / RESULT
    try:
        found = read_json(path)
        if found["format"] != FORMAT:
            raise KeyError("format")
    except FileNotFoundError:
        raise ConfigError(f"{folder}: holds no {RESULT} of a study.") from None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(
            f"{path}: is not of this version's format ({FORMAT}); run the study anew with this version."
        ) from None
    try:
        return replace(from_json(StudyResult, found), run=str(folder))  # it may have been moved
    except ValueError as error:
        raise ConfigError(f"{path}: is damaged ({error}); run the study anew.") from None
