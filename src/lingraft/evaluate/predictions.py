"""One answer of one model to one item, and how such answers are kept on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeVar

from lingraft.errors import EvaluationError


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


Row = TypeVar("Row", bound=_Dataclass)
Ability = Literal["task_ability", "language_ability", "further_languages"]


@dataclass(frozen=True, slots=True)
class Prediction:
    """One item's answer and score.

    Attributes:
        ability: What it counts towards: task ability (English), language ability (the languages that the study
            trains), or further languages (those that are only evaluated).
        task: Task without its language, such as `worldbook:lookup`.
        language: BCP-47 tag.
        cluster: Items of one task that share content, such as parallel items: resampled together.
        item: Unique inside task and language.
        score: The task's score of this item, in [0, 1].
        asked: Fingerprint of what was asked and how (`manifest`): only where it is equal are two scores paired.
        prompt: What the model read, its chat template included.
        response: What it answered; for likelihood tasks the harness's numbers as text.
        reference: The right answer as the task gives it.
        form: worldbook: share of constraints followed.
        content: worldbook: exact match of the slot.
        chrf: worldbook: sentence chrF against the reference, in [0, 1].
        wrong_language: Answered in another language than `language`; None: too short to tell, or not looked at.
        language_judged: Whether that was looked at: of generated answers, where the language is known and the task
            asks for no code, no number and no language of its own.
        empty: Generated: nothing but white space; None: the task generates nothing.
        looping: Generated: says the same again and again (`data.degeneration`).
        truncated: Generated: used all the tokens that it was allowed, and was cut off there.
    """

    ability: Ability
    task: str
    language: str
    cluster: str
    item: str
    score: float
    prompt: str
    response: str
    reference: str
    form: float | None = None
    content: float | None = None
    chrf: float | None = None
    wrong_language: bool | None = None
    language_judged: bool = False
    empty: bool | None = None
    looping: bool | None = None
    truncated: bool | None = None
    asked: str = ""

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What two models' predictions are matched by."""
        return (self.ability, self.task, self.language, self.item)

    @property
    def label(self) -> str:
        """Task and language, as tables have them."""
        return f"{self.task}/{self.language}"


@dataclass(frozen=True, slots=True)
class ItemScore:
    """What of a `Prediction` paired differences need, without its texts; attributes as there."""

    ability: Ability
    task: str
    language: str
    cluster: str
    item: str
    score: float
    asked: str = ""

    @property
    def label(self) -> str:
        """Task and language, as tables have them."""
        return f"{self.task}/{self.language}"


Item = TypeVar("Item", Prediction, ItemScore)


def write_predictions(path: Path, predictions: Sequence[Prediction]) -> None:
    """Write predictions as Parquet, one row per item."""
    write_rows(path, predictions, Prediction)


def read_predictions(path: Path) -> tuple[Prediction, ...]:
    """Read what `write_predictions` wrote.

    Raises:
        EvaluationError: The file is absent or no Parquet file of predictions.
    """
    return read_rows(path, Prediction)


def read_item_scores(path: Path) -> tuple[ItemScore, ...]:
    """Read of what `write_predictions` wrote the scores alone: of hundreds of models, texts would fill the memory.

    Raises:
        EvaluationError: As of `read_predictions`.
    """
    return read_rows(path, ItemScore, columns=[field.name for field in fields(ItemScore)])


def write_rows(path: Path, rows: Sequence[Row], kind: type[Row]) -> None:
    """Write the rows, all of the dataclass `kind`, as Parquet with a column per field."""
    import pyarrow as pa
    from pyarrow import parquet

    columns = {field.name: [getattr(row, field.name) for row in rows] for field in fields(kind)}
    parquet.write_table(pa.table(columns), path, compression="zstd")


def read_rows(path: Path, kind: type[Row], columns: Sequence[str] | None = None) -> tuple[Row, ...]:
    """Read what `write_rows` wrote.

    Args:
        path: The file.
        kind: Of the rows.
        columns: The columns that are read, where the file holds more; None: it holds those of `kind`.

    Raises:
        EvaluationError: The file is absent, no Parquet file, or holds rows of another kind.
    """
    from pyarrow import ArrowException, BufferReader, parquet

    try:
        # A report reads hundreds of small files; through `read_table` and its threads each takes three times as long.
        with parquet.ParquetFile(BufferReader(path.read_bytes())) as file:
            rows = file.read(columns=columns, use_threads=False).to_pylist()
        return tuple(kind(**row) for row in rows)
    except (OSError, ArrowException, TypeError, ValueError) as error:  # a ValueError: bytes that are no text
        raise EvaluationError(f"{path}: cannot be read as rows of {kind.__name__} ({error}).") from None
