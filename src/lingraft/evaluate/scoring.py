"""From the harness's samples to predictions: the score of each item, and what is wrong with its answer."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lingraft.data.control_tokens import without_marks
from lingraft.errors import EvaluationError
from lingraft.evaluate.answer_faults import AnswerFaults
from lingraft.evaluate.answers import request_key
from lingraft.evaluate.lm_eval_compat import Sample
from lingraft.evaluate.predictions import Prediction
from lingraft.evaluate.task_runs import Run, item_and_cluster, item_of_document
from lingraft.evaluate.tasks.alpaca_eval.task import judge_predictions
from lingraft.evaluate.tasks.worldbook.task import verdict
from lingraft.judge.win_rate import Judge, Judged, Output


def predictions_of(
    run: Run,
    samples: Sequence[Sample],
    faults: AnswerFaults,
    ended: Mapping[str, bool],
    asked: Mapping[str, str],
) -> list[Prediction]:
    """Return one prediction per item of a task.

    Args:
        run: The task.
        samples: The harness's, one per item and filter.
        faults: What looks at generated answers.
        ended: By `request_key`, whether an answer came to an end by itself or at a stop text.
        asked: By item, the fingerprint of what was asked and how.

    Raises:
        EvaluationError: A score is no number in [0, 1].
    """
    found = []
    for sample in samples:
        if sample.filter != run.filter:  # a task may score the same answers through several filters
            continue
        item, cluster = item_and_cluster(run, sample.number, sample.document)
        prediction = Prediction(
            ability=run.ability,
            task=run.name,
            language=run.language,
            cluster=cluster,
            item=item,
            score=score_of(run, sample),
            prompt=without_marks(str(sample.requests[0][0]))[0].text,
            response=sample.response if run.generates else sample.filtered_response,
            reference=sample.target,
            asked=asked[item],
        )
        if run.is_worldbook:
            own = verdict(sample.document["item"], prediction.response)
            prediction = replace(
                prediction,
                form=own.form,
                content=own.content,
                chrf=own.chrf,
                wrong_language=own.wrong_language,
                language_judged=True,
            )
        if run.generates:
            has_ended = ended[request_key(sample.requests[0])]
            prediction = faults.found_in(prediction, sample.document, ended=has_ended)
        found.append(prediction)
    return found


def score_of(run: Run, sample: Sample) -> float:
    """Return an item's score; a list of yes and no (IFEval's instructions of one prompt) counts by its mean.

    Raises:
        EvaluationError: The task's metric is no number in [0, 1] for this item.
    """
    value = sample.metrics.get(run.metric)
    if isinstance(value, list) and value and all(isinstance(one, bool) for one in value):
        return sum(value) / len(value)
    is_number = isinstance(value, (bool, int, float)) or getattr(value, "ndim", None) == 0
    if not is_number or not 0.0 <= float(value) <= 1.0:  # type: ignore[arg-type]
        raise EvaluationError(
            f"the task {run.name}: its metric {run.metric!r} is {value!r} for item {sample.number}; a score must be "
            "one number per item in [0, 1] (one of a whole set, such as f1 or bleu, is none). Name another one "
            "with `metric:`."
        )
    return float(value)  # type: ignore[arg-type]


def judged(
    run: Run,
    predictions: Sequence[Prediction],
    judge: Judge,
    verdicts: Path | None,
    on_judged: Callable[[int, int], None] | None,
) -> tuple[list[Prediction], Judged]:
    """Return predictions with a judge's preferences as the scores of a task; items without a verdict are left out.

    Args:
        run: The task.
        predictions: Of any tasks.
        judge: Who judges, and how.
        verdicts: File that verdicts are kept in; None: they are not kept.
        on_judged: Called with the verdicts so far and in all.

    Raises:
        EvaluationError: The judge gives no verdicts.
    """
    reference = [
        Output(item_of_document(run, row), document["instruction"], document["output"])
        for row, document in enumerate(run.task.eval_docs)
    ]
    own = [one for one in predictions if run.has(one)]
    others = [one for one in predictions if not run.has(one)]
    with tempfile.TemporaryDirectory() as folder:
        scored, found = judge_predictions(
            own,
            reference,
            judge,
            cache=verdicts or Path(folder) / "verdicts.jsonl",
            on_progress=on_judged,
        )
    return [*others, *scored], found
