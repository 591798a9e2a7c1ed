"""Commands run in the process of the tests, each test's in a folder of its own; and the run folder of a study."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lingraft.evaluate.predictions import Prediction, write_predictions
from lingraft.evaluate.results import Differences, Forgetting, Scores
from lingraft.intervals.macro_mean import Difference, Ratio
from lingraft.study.result import (
    CellResult,
    FailedCell,
    PhaseCost,
    PhaseOneResult,
    Precision,
    StudyResult,
    TrainingCounts,
    write_result,
)

_SCORES = Scores(
    task_ability=None,
    language_ability=None,
    further_languages=None,
    per_language={},
    wrong_language=None,
    undetermined_language=0,
    answers=None,
    tasks={},
    left_out=(),
    truncated={},
    truncated_prompts={},
    noise=None,
)
_NO_CHANGE = Difference(0.0, 0.0, 0.0, 0.1, 1, 1, False, None, 0.01, "unchanged")
_TRAINED = TrainingCounts(
    data=(),
    precision="float32",
    examples=1,
    replayed=0,
    replay_share=0.0,
    replay_shortfall=0,
    replay_dropped={},
    replay_origins=(),
    truncated=0,
    dropped=0,
    first_dropped=(),
    handled={},
    steps=1,
    tokens=1,
    padded_tokens=1,
    supervised_tokens=1,
    trainable_parameters=1,
    frozen_parameters=0,
    masked_parameters=0,
)


@pytest.fixture
def write_run() -> Callable[..., None]:
    """Writes a run folder of one cell with the answers of its three models; `is_done=False`: the cell failed."""

    def place(folder: Path, name: str, predictions: list[Prediction]) -> str:
        (folder / "stages" / name).mkdir(parents=True)
        write_predictions(folder / "stages" / name / "predictions.parquet", predictions)
        return f"stages/{name}/predictions.parquet"

    def write(
        folder: Path,
        base: list[Prediction],
        phase_one: list[Prediction],
        cell: list[Prediction],
        *,
        is_done: bool = True,
    ) -> None:
        before = place(folder, "evaluate-one", phase_one)
        failed = FailedCell(data="similar", strategy="lora", seed=0, options={}, reason="no memory")
        done = CellResult(
            data="similar",
            strategy="plain",
            seed=0,
            options={},
            retention=Ratio(None, None, None, 1, "the score before is 0"),
            limits={},
            gain=0.0,
            difference=Differences(
                task_ability=_NO_CHANGE,
                language_ability=_NO_CHANGE,
                further_languages=None,
                per_language={},
                tasks={},
                correction="holm",
            ),
            unpaired={},
            not_paired={},
            forgetting=Forgetting(None, None),
            scores=_SCORES,
            predictions=place(folder, "evaluate-two", cell),
            phase_one_predictions=before,
            phases=(),
            training=_TRAINED,
            cost=PhaseCost(
                prepare_seconds=0.0,
                training_seconds=1.0,
                resumed_from=None,
                combine_seconds=0.0,
                peak_bytes=1,
            ),
            checkpoint=None,
            seconds=1.0,
        )
        one = PhaseOneResult(
            data="e", strategy="plain", seed=0, scores=_SCORES, predictions=before, checkpoint=None
        )
        write_result(
            StudyResult(
                run=str(folder),
                base=_SCORES,
                base_reason=None,
                base_predictions=place(folder, "evaluate-base", base),
                phase_ones=(one,),
                cells=(failed, done) if is_done else (failed,),
                over_seeds=(),
                limits={},
                precision=Precision(training=(), evaluation="float32", device="cpu"),
                tokenizer_cost={},
                contamination=None,
                language_notes=(),
                unused=(),
            )
        )

    return write
