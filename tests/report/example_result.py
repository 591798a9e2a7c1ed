"""Results of small studies, made by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lingraft.evaluate.results import (
    AbilityMatrix,
    BitsPerCharacter,
    Differences,
    Forgetting,
    ForgettingMatrix,
    LanguageScore,
    MatrixColumn,
    MatrixRow,
    Scores,
    TaskDifference,
    TaskScore,
)
from lingraft.intervals.changes import answer, answer_over_seeds
from lingraft.intervals.macro_mean import Difference, Interval, Ratio
from lingraft.measures.base import FROM_PHASE_ONE, Figure, Found, Measured
from lingraft.study.result import (
    CellResult,
    DataCounts,
    FailedCell,
    PhaseCost,
    PhaseOneResult,
    PhaseResult,
    Precision,
    SeedDifferences,
    StudyResult,
    TrainingCounts,
)


def score(value: float) -> Interval:
    return Interval(value, value - 0.1, value + 0.1, 40)


def scores(task: float, german: float) -> Scores:
    def in_language(value: float | None, bits: float) -> LanguageScore:
        low, high = (None, None) if value is None else (value - 0.1, value + 0.1)
        held_out = BitsPerCharacter(bits, bits, bits, 6, 600)
        return LanguageScore(value, low, high, 40, held_out, None, 0, None)

    lookup = TaskScore(task, task - 0.1, task + 0.1, 40, "task_ability", None, None, None, None, 0, None)
    return Scores(
        task_ability=score(task),
        language_ability=score(german),
        further_languages=None,
        per_language={"de": in_language(german, 1.5), "en": in_language(None, 1.1)},
        wrong_language=0.25,
        undetermined_language=0,
        answers=None,
        tasks={"worldbook:lookup/en": lookup},
        left_out=("ifeval: item 7: needs punkt",),
        truncated={"worldbook:lookup/en": 2},
        truncated_prompts={"worldbook:counting/de": 3},
        noise=None,
    )


def difference(value: float, half_width: float, margin: float = 0.01) -> Difference:
    low, high = value - half_width, value + half_width
    said = answer(low, high, margin)
    return Difference(value, low, high, 0.07, 40, 9, False, None, margin, said)


def counts(**changes: Any) -> DataCounts:
    common: dict[str, Any] = {"source": "d", "rows": 200, "first_broken": (), "unknown_keys": {}}
    common |= {"max_broken_share": 0.0, "held_out": 6, "train": 95}
    return DataCounts(**common, **changes)


TRAINED = TrainingCounts(
    data=(
        counts(broken=3, filtered={"near-duplicate": 4}, incomplete_groups=5, withheld=2, shortfall=7),
        counts(broken=0, filtered={}, incomplete_groups=None, withheld=1, shortfall=0),
    ),
    precision="float32",
    examples=190,
    replayed=0,
    replay_share=0.0,
    replay_shortfall=0,
    replay_dropped={},
    replay_origins=(),
    truncated=1,
    dropped=0,
    first_dropped=(),
    handled={},
    steps=20,
    tokens=10000,
    padded_tokens=11000,
    supervised_tokens=5000,
    trainable_parameters=10,
    frozen_parameters=3,
    masked_parameters=0,
)


def matrix(phases: tuple[str, ...], rows: dict[str, list[float]], backward: float | None) -> AbilityMatrix:
    last = list(rows.values())[-1]
    return ForgettingMatrix(
        columns=tuple(
            MatrixColumn(phase, f"set {phase}", ("de",), (), 40, 0, None, None, None) for phase in phases
        ),
        unmeasured=(),
        rows=tuple(MatrixRow(name, tuple(score(value) for value in row)) for name, row in rows.items()),
        average=score(sum(last) / len(phases)),
        backward_transfer=None if backward is None else difference(backward, 0.05),
        forward_transfer=None,
        forgetting=None if backward is None else -backward,
        unpaired={},
        not_paired={},
    )


def done_cell(strategy: str, seed: int = 0, task: float = 0.4) -> CellResult:
    change = round(task - 0.5, 3)
    rows = {"base": [0.2, 0.1], "one": [0.5, 0.3], "two": [task, 0.6]}
    in_task = TaskDifference(**asdict(difference(change, 0.05)), p=0.004, p_adjusted=0.012)
    des = Found({"des": Figure(0.912), "corrected": Figure(0.934, 0.921, 0.947)}, {"encoder": "some==1"})
    measures = {
        "des": Measured({FROM_PHASE_ONE: des}),
        "mpd": Measured({FROM_PHASE_ONE: Found({"mpd": Figure(0.31)})}),
    }
    return CellResult(
        data="similar",
        strategy=strategy,
        seed=seed,
        options={},
        retention=Ratio(0.8, 0.7, 0.9, 40, None),
        gain=0.3,
        difference=Differences(
            task_ability=difference(change, 0.05),
            language_ability=difference(0.3, 0.1),
            further_languages=None,
            per_language={},
            tasks={"worldbook:lookup/en": in_task},
            correction="holm",
        ),
        limits={},
        unpaired={},
        not_paired={},
        scores=scores(task, 0.6),
        predictions="stages/evaluate-1/predictions.parquet",
        phase_one_predictions="stages/evaluate-0/predictions.parquet",
        forgetting=Forgetting(matrix(("one", "two"), rows, change), None),
        training=TRAINED,
        cost=PhaseCost(
            prepare_seconds=3.0 if strategy == "ssu" else 0.0,
            training_seconds=20.0 if strategy == "plain" else 22.0,
            resumed_from=None,
            combine_seconds=0.0,
            peak_bytes=4_000_000_000,
            mfu=0.34 if strategy == "plain" else 0.31,
        ),
        phases=(
            PhaseResult(
                phase="two",
                data="similar",
                strategy=strategy,
                options={},
                measures=measures,
                scores=scores(task, 0.6),
                training=TRAINED,
                losses=((1, 2.0), (2, 1.5)),
                checkpoint=None,
            ),
        ),
        checkpoint=None,
        seconds=30.0,
    )


def failed_cell(
    data: str = "similar", strategy: str = "lora", seed: int = 0, reason: str = "no memory"
) -> FailedCell:
    return FailedCell(data=data, strategy=strategy, seed=seed, options={}, reason=reason)


def phase_one(data: str, seed: int, of: Scores) -> PhaseOneResult:
    return PhaseOneResult(
        data=data, strategy="plain", seed=seed, scores=of, predictions="p.parquet", checkpoint=None
    )


def over_seeds(cells: Sequence[CellResult]) -> Iterator[SeedDifferences]:
    """Yield the means of cells of several seeds, as a study takes them."""
    groups: dict[tuple[str, str], list[CellResult]] = {}
    for cell in cells:
        groups.setdefault((cell.data, cell.strategy), []).append(cell)
    for (data, strategy), own in groups.items():
        if len(own) > 1:
            seeds = [cell.difference.task_ability for cell in own]
            mean = difference(round(sum(one.value for one in seeds) / len(seeds), 3), 0.04)
            yield SeedDifferences(
                data=data,
                strategy=strategy,
                seeds=len(own),
                task_ability=replace(mean, answer=answer_over_seeds(mean.answer, seeds)),
                language_ability=difference(0.3, 0.05),
                retention=Ratio(0.8, 0.75, 0.85, 40, None),
                limits={},
            )


def result(tmp_path: Path, cells: Sequence[CellResult | FailedCell]) -> StudyResult:
    seeds = list(dict.fromkeys(cell.seed for cell in cells))
    return StudyResult(
        run=str(tmp_path),
        base=scores(0.2, 0.1),
        base_reason=None,
        base_predictions="stages/evaluate-b/predictions.parquet",
        phase_ones=tuple(phase_one("e", seed, scores(0.5 + 0.1 * seed, 0.3)) for seed in seeds),
        cells=tuple(cells),
        over_seeds=tuple(over_seeds([cell for cell in cells if isinstance(cell, CellResult)])),
        limits={},
        precision=Precision(training=("float32",), evaluation="float32", device="cpu"),
        tokenizer_cost={},
        contamination=None,
        language_notes=(),
        unused=(),
    )
