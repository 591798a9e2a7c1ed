"""AlpacaEval: answers to its 805 instructions, which a judge compares afterwards.

The task generates only; what it scores is whether there is an answer at all. `judge_predictions` puts the judge's
preferences in the place of that score.

Source: Li et al. 2023, AlpacaEval; its data set tatsu-lab/alpaca_eval holds the outputs of text_davinci_003, the
reference of its first version.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lingraft.data.row_fields import RowError, text
from lingraft.data.rows import open_rows
from lingraft.errors import DataError, EvaluationError
from lingraft.evaluate.own_task import Documents, Options
from lingraft.evaluate.predictions import Prediction
from lingraft.judge.hub import hub_file
from lingraft.judge.runner import OnProgress
from lingraft.judge.win_rate import ALPACA_EVAL, Judge, Judged, Output, judge_answers
from lingraft.text.language_tags import ENGLISH

HUB_FILE = "alpaca_eval.json"
ANSWERED = "answered"
LONGEST_ANSWER = 2048  # tokens; the most common limit of the models on AlpacaEval's public leaderboard


def documents(options: Options) -> Documents:
    """Return AlpacaEval's instructions with the reference's outputs, from the first on; see `reference_outputs`."""
    outputs = reference_outputs(options.language, options.data)[: options.limit]
    return Documents(
        [{"instruction": one.instruction, "output": one.output} for one in outputs], LONGEST_ANSWER
    )


def scores(doc: Mapping[str, str], results: Sequence[str]) -> dict[str, float]:  # noqa: ARG001
    """Return 1 where there is any answer; it says nothing about quality."""
    return {ANSWERED: float(bool(results[0].strip()))}


def reference_outputs(language: str = ENGLISH, data: Path | None = None) -> tuple[Output, ...]:
    """Return the instructions with the reference's outputs, in their order.

    Raises:
        DataError: The file cannot be read, or the hub cannot be reached.
        EvaluationError: No data are known for the language.
    """
    if data is not None:
        return read_outputs(data)
    if language != ENGLISH:
        raise EvaluationError(
            f"{ALPACA_EVAL}: its instructions are English; for {language!r} give `data`, a file with instruction "
            "and output in each row."
        )
    return read_outputs(
        hub_file(
            HUB_FILE,
            "give a local file with instruction and output in each row (--reference, or --data-dir of an evaluation)",
        )
    )


def read_outputs(path: Path, reference: Sequence[Output] = ()) -> tuple[Output, ...]:
    """Read what a model wrote for instructions.

    Args:
        path: Rows with `instruction` and `output`, in any format that data sets come in; or predictions as an
            evaluation writes them (`predictions.parquet`), of which those of the task alpaca_eval count.
        reference: Of the same task, for predictions, which do not hold the bare instruction.

    Raises:
        DataError: The file cannot be read, is empty, or a field is missing.
        EvaluationError: The predictions are of other tasks, or of another reference.
    """
    rows = tuple(open_rows(path).sound())
    if not {"task", "item", "response"} <= rows[0].value.keys():
        outputs = []
        for row in rows:
            try:
                said = text(row.value, "output", may_be_empty=True)
                outputs.append(Output(row.place, text(row.value, "instruction"), said))
            except RowError as error:
                raise DataError(f"{row.place}: {error}.") from None
        return tuple(outputs)
    own = [row for row in rows if row.value.get("task") == ALPACA_EVAL]
    if not own:
        tasks = ", ".join(sorted({str(row.value.get("task")) for row in rows}))
        raise EvaluationError(f"{path}: holds no predictions of {ALPACA_EVAL}, only of {tasks}.")
    answers, seen = [], dict[str, str]()
    for row in own:
        try:
            item = text(row.value, "item")
            response, expected = (
                text(row.value, one, may_be_empty=True) for one in ("response", "reference")
            )
        except RowError as error:
            raise DataError(f"{row.place}: {error}.") from None
        if item in seen:
            raise DataError(f"{row.place}: the item {item} has an answer already, at {seen[item]}.")
        seen[item] = row.place
        answers.append(_answer(item, response, expected, reference))
    return tuple(answers)


def _answer(item: str, response: str, expected: str, reference: Sequence[Output]) -> Output:
    """Return a prediction as an answer: its item ends in its row of the reference, which must be the same."""
    _, _, number = item.rpartition("/")
    row = int(number) if number.isdecimal() else len(reference)
    if row >= len(reference) or reference[row].output != expected:
        raise EvaluationError(
            f"{ALPACA_EVAL}: the prediction {item} was not made with this reference: row {number} of it is another one."
        )
    return Output(item, reference[row].instruction, response)


def judge_predictions(
    predictions: Sequence[Prediction],
    reference: Sequence[Output],
    judge: Judge,
    *,
    cache: Path,
    on_progress: OnProgress | None = None,
) -> tuple[tuple[Prediction, ...], Judged]:
    """Let a judge score the predictions of this task.

    Args:
        predictions: Of that task alone, in one language.
        reference: What the task was made of (`reference_outputs`).
        judge: Who judges, and how.
        cache: File that verdicts are kept in.
        on_progress: Called with the verdicts so far and in all.

    Returns:
        The predictions with the judge's preference as their score, without those that have no verdict; and what
        the judging took.

    Raises:
        EvaluationError: As `judge_answers`; or the predictions are of another reference.
    """
    answers = [_answer(one.item, one.response, one.reference, reference) for one in predictions]
    language = predictions[0].language if predictions else ENGLISH
    judged = judge_answers(answers, reference, judge, cache=cache, language=language, on_progress=on_progress)
    scores = {one.item: one.score for one in judged.preferences}
    scored = tuple(replace(one, score=scores[one.item]) for one in predictions if one.item in scores)
    return scored, judged
