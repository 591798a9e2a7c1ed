"""What models answered: the worst answers of one model, or those of which another model's were better.

Reads a run folder, whose result says where each model's answers lie, or the folder of an evaluation of one or two
models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lingraft.errors import ConfigError, did_you_mean
from lingraft.evaluate.predictions import Prediction, read_predictions
from lingraft.evaluate.shown_names import names_in_files, renamed
from lingraft.records import path_inside, read_json
from lingraft.report.tables import models_of
from lingraft.stage_record import DamagedRecordError, read_record, stamps_of_whole
from lingraft.study.result import RESULT, read_result

PREDICTIONS = "predictions.parquet"
RECORD = "record.json"  # of an evaluation
_STAGES = "stages"


@dataclass(frozen=True)
class Answers:
    """One model's answers.

    Attributes:
        label: The model's name in tables.
        predictions: One per item.
    """

    label: str
    predictions: tuple[Prediction, ...]

    @property
    def task_names(self) -> dict[str, str]:
        """By path, what a task that is given as a file is called: its items have the name that it has in the file."""
        asked: dict[str, set[str]] = {}
        for one in self.predictions:
            asked.setdefault(one.task, set()).add(one.item.rpartition("/")[0])
        return names_in_files(asked)


@dataclass(frozen=True)
class Answered:
    """One item as one or two models answered it.

    Attributes:
        after: The model that is looked at.
        before: The one that it is compared with; None: it is looked at alone.
    """

    after: Prediction
    before: Prediction | None

    @property
    def change(self) -> float:
        """Score after - before, in [-1, 1]; alone: the score."""
        return self.after.score - (0.0 if self.before is None else self.before.score)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        one, other = self.after, self.before
        return {
            "ability": one.ability,
            "task": one.task,
            "language": one.language,
            "item": one.item,
            "prompt": one.prompt,
            "reference": one.reference,
            "score": one.score,
            "response": one.response,
            "before": None if other is None else {"score": other.score, "response": other.response},
        }


def read_answers(folder: Path, cell: str | None, against: str | None) -> tuple[Answers, Answers | None]:
    """Return the answers of the model that is looked at, and those of the one that it is compared with.

    Args:
        folder: A run folder, or that of an evaluation of one or two models.
        cell: Label of the model in a run; None: the first cell that is done. In an evaluation of two, a model as it was
            named there; None: the second.
        against: Label of the other one; None: the cell's own Phase 1 model (of a Phase 1 or base model: none), or the
            other model of the evaluation.

    Raises:
        ConfigError: There are no answers there, or no model of that name.
        EvaluationError: A file of answers cannot be read.
    """
    if (folder / PREDICTIONS).is_file():
        for option, given in (("--cell", cell), ("--against", against)):
            if given is not None:
                raise ConfigError(f"{option} {given!r}: {folder} holds the answers of one model only.")
        return Answers(folder.name, read_predictions(folder / PREDICTIONS)), None
    if (folder / RESULT).is_file():
        result = read_result(folder)
        models = {
            model.title(with_seed=result.has_seeds): _Source(
                model.predictions, None if model.cell is None else model.cell.phase_one_predictions
            )
            for model in models_of(result)
        }
    elif (folder / RECORD).is_file():
        try:
            found = read_json(folder / RECORD)["result"]
            # A check says which of the two it is about.
            first, second = found["compared"] if "compared" in found else (found["against"], found["model"])
            before, after = found["predictions"]
        except (ValueError, KeyError, TypeError):
            raise ConfigError(
                f"{folder / RECORD}: is not of an evaluation of two models that says where their answers lie; name "
                "the folder of one model inside it, or run `lingraft evaluate` again."
            ) from None
        models = {second: _Source(after, before), first: _Source(before, after)}
    else:
        raise ConfigError(
            f"{folder}: there is neither {RESULT} of a study that ran to its end nor {PREDICTIONS} or {RECORD} of an "
            "evaluation."
        )
    label = next((name for name, own in models.items() if own.before), None) if cell is None else cell
    if label is None:
        raise ConfigError(f"{folder}: no cell is done; name a model with --cell: {', '.join(models)}.")
    own = _chosen(models, label, "--cell")
    other = own.before if against is None else _chosen(models, against, "--against").path
    if other is None:
        return Answers(label, read_predictions(_inside(folder, own.path))), None
    title = against or next((name for name, one in models.items() if one.path == other), "phase 1")
    return Answers(label, read_predictions(_inside(folder, own.path))), Answers(
        title, read_predictions(_inside(folder, other))
    )


@dataclass(frozen=True)
class _Source:
    """Where a model's answers lie in the folder, and those that they are compared with unless another is named.

    These are of a cell those of its Phase 1; a base or Phase 1 model has none.
    """

    path: str
    before: str | None = None


def _inside(folder: Path, name: str) -> Path:
    """Return where answers lie by a file of the folder, which may be from elsewhere.

    Raises:
        ConfigError: Not in the folder, or they are not those that their stage recorded.
    """
    try:
        path = path_inside(folder, name)
    except ValueError as error:
        raise ConfigError(f"{folder}: its result names answers outside of it: {error}.") from None
    check_whole(path)
    return path


def check_whole(path: Path) -> None:
    """Refuse answers in a stage's folder that are not those which the stage recorded; without a record all pass.

    Raises:
        ConfigError: They were changed, or the record was.
    """
    if path.parent.parent.name != _STAGES or not (path.parent / RECORD).exists():
        return
    try:
        stamps_of_whole(path.parent, read_record(path.parent))
    except DamagedRecordError as error:
        raise ConfigError(
            f"{path}: the answers are not those that were scored ({error}); run the study again."
        ) from None


def _chosen(models: dict[str, _Source], label: str, option: str) -> _Source:
    if label not in models:
        raise ConfigError(f"{option} {label!r} is no model of this run. {did_you_mean(label, models)}")
    return models[label]


def worst_answers(
    after: Answers, before: Answers | None, *, language: str | None, task: str | None, count: int
) -> list[Answered]:
    """Return the items with the lowest scores; of two models those whose score fell most, the largest fall first.

    Args:
        after: The model that is looked at.
        before: The model that it is compared with; items that it was not asked, or not in the same way, are left out.
        language: BCP-47 tag; None: all.
        task: Task, with or without its language; None: all.
        count: Items at most.

    Raises:
        ConfigError: No item is of that language or task, or none of them was asked alike of both models.
    """
    chosen = _matching(after, _matching(after, after.predictions, "--language", language), "--task", task)
    others = None if before is None else {one.key: one for one in before.predictions}
    answered = [
        Answered(one, None if others is None else others[one.key])
        for one in chosen
        if others is None or (one.key in others and others[one.key].asked == one.asked)
    ]
    if before is not None and chosen and not answered:
        raise ConfigError(
            f"{after.label} and {before.label}: none of these items was asked alike of both (another chat template, "
            "precision, version or option); look at one alone, or evaluate both again with the same options."
        )
    return sorted(answered, key=lambda one: (one.change, one.after.key))[:count]


def _matching(
    model: Answers, predictions: Sequence[Prediction], option: str, wanted: str | None
) -> list[Prediction]:
    if wanted is None:
        return list(predictions)
    shown = model.task_names

    def names(one: Prediction) -> tuple[str, ...]:
        if option == "--language":
            return (one.language,)
        return (one.task, one.label, renamed(one.task, shown), renamed(one.label, shown))

    found = [one for one in predictions if wanted in names(one)]
    if not found:
        known = {name for one in predictions for name in names(one)}
        raise ConfigError(f"{option} {wanted!r}: no answer is of it. {did_you_mean(wanted, known)}")
    return found
