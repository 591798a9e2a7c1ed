"""What an evaluation will ask, before any model is asked: for the contamination measure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lingraft.config.schema import Evaluation, EvaluationTask
from lingraft.contamination.item_texts import item_texts
from lingraft.contamination.overlap import EvaluationText
from lingraft.errors import EvaluationError, in_one_line
from lingraft.evaluate.lm_eval_compat import quiet
from lingraft.evaluate.task_runs import Run, asked_text, choices_of, expected_text, runs_of


@dataclass(frozen=True)
class EvaluationTexts:
    """The items of an evaluation.

    Attributes:
        texts: Of all tasks that could be loaded.
        unread: The tasks that could not, each with its reason.
    """

    texts: tuple[EvaluationText, ...]
    unread: tuple[str, ...]


def evaluation_texts(
    evaluation: Evaluation,
    *,
    languages: Sequence[str],
    base_folder: Path = Path(),
    trust_remote_code: bool = False,
) -> EvaluationTexts:
    """Return the prompt and the reference of every item that an evaluation will ask, and its texts without template.

    A prompt is the item's own: without few-shot examples and chat template. An item that counts for two abilities is
    there once. A task that cannot be loaded is named and left out: its evaluation will fail, or find it by then.

    Args:
        evaluation: The tasks.
        languages: BCP-47 tags of the study's languages besides English.
        base_folder: What the paths of YAML tasks and data files are relative to.
        trust_remote_code: Run the Python code that YAML tasks name.
    """
    # One evaluation for each task, so that one which cannot be loaded does not hide the others.
    nothing: dict[str, tuple[EvaluationTask, ...]] = {"task_ability": (), "language_ability": ()}
    single = [nothing | {"task_ability": (entry,)} for entry in evaluation.task_ability]
    single += [nothing | {"language_ability": (entry,)} for entry in evaluation.language_ability]
    texts: dict[EvaluationText, None] = {}
    unread = []
    for tasks in single:
        try:
            one = evaluation.model_copy(update=tasks)
            runs = runs_of(one, languages, base_folder, trust_remote_code=trust_remote_code)
            with quiet():  # some tasks (Global-MMLU) filter their documents only now, with a bar
                texts.update(dict.fromkeys(text for run in runs for text in _texts_of(run)))
        except EvaluationError as error:
            unread.append(str(error))
    return EvaluationTexts(tuple(texts), tuple(unread))


def _texts_of(run: Run) -> Iterator[EvaluationText]:
    task = run.task
    rows = task.eval_docs
    try:
        for number in run.documents:
            row = rows[number]
            prompt = asked_text(task, row)
            own = item_texts(row, prompt, expected_text(task, row), choices_of(task, row))
            item = f"{task.config.task}/{number}"
            yield EvaluationText(run.label, run.language, item, prompt, own.reference, own.readings)
    except Exception as error:  # a task's own templates and functions
        raise EvaluationError(
            f"the task {run.name}: its items cannot be read: {type(error).__name__}: {in_one_line(error)}"
        ) from error
