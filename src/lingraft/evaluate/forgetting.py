"""The forgetting matrix of a cell: what each phase taught, measured after every phase.

R[i][j] is the score, after phase i, on what phase j taught; row 0 is the base model. What a phase taught is measured
twice: by the abilities of its data set's languages, and by the held-out loss of that very set.

Sources: Lopez-Paz and Ranzato 2017, "Gradient Episodic Memory for Continual Learning", arXiv 1706.08840, section 2
(average, backward and forward transfer); Chaudhry et al. 2018, "Riemannian Walk for Incremental Learning", arXiv
1801.10112, section 3 (forgetting). Where we depart from them: the base of forward transfer is the model that the
study starts from, which is no random one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

from lingraft.evaluate.held_out import AnswerLoss, bits_difference, mean_bits
from lingraft.evaluate.predictions import Prediction
from lingraft.intervals.macro_mean import difference_over_columns, mean_over_columns
from lingraft.text.language_tags import is_english

BASE = "base"
_TASK_ABILITY = "task ability"  # what English is measured by
_Item = TypeVar("_Item")
_Columns = Sequence[Sequence[_Item]]
_Pairs = Sequence[tuple[Sequence[_Item], Sequence[_Item]]]


@dataclass(frozen=True, slots=True)
class Taught:
    """What one phase taught, and when.

    Attributes:
        phase: Name of the phase.
        data: Name of its data set; empty for a checkpoint, whose data are unknown.
        languages: BCP-47 tags of the set.
        items: Identities of the set's held-out examples; empty if unknown.
        row: Row of the matrix after which it was learned, from 0 (the base is no row here).
    """

    phase: str
    data: str
    languages: tuple[str, ...]
    items: frozenset[str]
    row: int


@dataclass(frozen=True, slots=True)
class Transfer:
    """The summary of a forgetting matrix whose entries are better when higher.

    Attributes:
        average: Mean of the last row.
        backward: Mean over the columns learned before the last phase of (last - just learned); below 0: forgotten.
            None: there is no such column.
        forward: Mean over the columns that another phase came before of (just before it was learned - base);
            above 0: earlier phases helped. None: no base or no such column.
        forgetting: Mean over the columns learned before the last phase of (best of any phase before the last -
            last). At least -backward. None: there is no such column. Biased upwards: the best of several noisy
            scores is too high.
    """

    average: float
    backward: float | None
    forward: float | None
    forgetting: float | None


def transfer(
    matrix: Sequence[Sequence[float]], learned: Sequence[int], base: Sequence[float] | None = None
) -> Transfer:
    """Return the summary of a forgetting matrix.

    Args:
        matrix: [phases, columns]; row i is the model after phase i.
        learned: [columns] the row after which each column was learned.
        base: [columns] the base model's scores, if known.
    """
    columns, last = range(len(learned)), matrix[-1]
    early = [j for j in columns if learned[j] < len(matrix) - 1]
    late = [j for j in columns if learned[j] > 0]
    forward = None if base is None else [matrix[learned[j] - 1][j] - base[j] for j in late]
    return Transfer(
        average=sum(last) / len(last),
        backward=_mean([last[j] - matrix[learned[j]][j] for j in early]),
        forward=None if forward is None else _mean(forward),
        forgetting=_mean([max(row[j] for row in matrix[:-1]) - last[j] for j in early]),
    )


def ability_matrix(
    taught: Sequence[Taught],
    phases: Sequence[tuple[str, Sequence[Prediction]]],
    base: Sequence[Prediction] | None,
) -> dict[str, Any] | None:
    """Return the matrix of abilities as JSON (docs/report.md), or None where no column can be measured.

    A column is the mean over its set's languages of the mean over tasks: English by the task ability, any other
    language by its language ability. Two phases of the same languages therefore have equal columns.

    Args:
        taught: The columns.
        phases: Name and predictions of the model after each phase, all of the same items.
        base: Predictions of the base model, if known.

    Raises:
        EvaluationError: The models were not asked the same items.
    """
    kind = _Kind[Prediction](
        select=_abilities_of,
        name=lambda item: _TASK_ABILITY if item.ability == "task_ability" else item.language,
        wanted=lambda one: list(
            dict.fromkeys(_TASK_ABILITY if is_english(tag) else tag for tag in one.languages)
        ),
        mean=lambda columns: asdict(mean_over_columns(columns)),
        gain=lambda pairs: asdict(difference_over_columns(pairs)),
        sign=1,
    )
    return _matrix(kind, taught, phases, base)


def loss_matrix(
    taught: Sequence[Taught],
    phases: Sequence[tuple[str, Sequence[AnswerLoss]]],
    base: Sequence[AnswerLoss] | None,
) -> dict[str, Any] | None:
    """Return the matrix of held-out losses in bits per character as JSON, or None where there are none.

    A column is the mean over its set's languages of the summed bits over the summed characters of the set's own
    held-out answers. Lower is better; all differences are turned, so that a loss which rose is below 0 in backward
    transfer and above 0 in forgetting, as with abilities.

    Args:
        taught: The columns.
        phases: Name and held-out losses of the model after each phase.
        base: Losses of the base model, if known.

    Only what all of these models could be measured on counts: templates and tokenizers may differ, and what one
    refuses or cannot hold whole is left out of all rows. Each column counts that as `left_out`.
    """
    common = frozenset.intersection(*(frozenset(loss.item for loss in own) for own in _all(phases, base)))
    kind = _Kind[AnswerLoss](
        select=lambda losses, one: [loss for loss in losses if loss.item in one.items & common],
        name=lambda loss: loss.language,
        wanted=lambda one: list(one.languages),
        mean=lambda columns: asdict(mean_bits(columns)),
        gain=lambda pairs: asdict(bits_difference([(after, before) for before, after in pairs])),
        sign=-1,
    )
    matrix = _matrix(kind, taught, phases, base)
    sizes = {(one.phase, one.data): len(one.items) for one in taught}
    for column in [] if matrix is None else matrix["columns"]:
        column["left_out"] = sizes[column["phase"], column["data"]] - column["n"]
    return matrix


def _all(
    phases: Sequence[tuple[str, Sequence[_Item]]], base: Sequence[_Item] | None
) -> list[Sequence[_Item]]:
    return [*([] if base is None else [base]), *(items for _, items in phases)]


@dataclass(frozen=True)
class _Kind(Generic[_Item]):
    """How one kind of matrix takes its columns, means and gains (always above 0 where things got better)."""

    select: Callable[[Sequence[_Item], Taught], list[_Item]]
    name: Callable[[_Item], str]  # what an item measures
    wanted: Callable[[Taught], list[str]]  # what there is to measure
    mean: Callable[[_Columns[_Item]], dict[str, Any]]
    gain: Callable[[_Pairs[_Item]], dict[str, Any]]
    sign: int


def _matrix(
    kind: _Kind[_Item],
    taught: Sequence[Taught],
    phases: Sequence[tuple[str, Sequence[_Item]]],
    base: Sequence[_Item] | None,
) -> dict[str, Any] | None:
    columns = [one for one in taught if kind.select(phases[-1][1], one)]
    if not columns:
        return None
    table = [
        [kind.select(items, one) for one in columns] for _, items in phases
    ]  # [phases][columns] of items
    first = None if base is None else [kind.select(base, one) for one in columns]
    models = [*([] if first is None else [(BASE, first)]), *zip((n for n, _ in phases), table, strict=True)]
    entries = [[kind.mean([column]) for column in row] for _, row in models]
    values = [[kind.sign * entry["value"] for entry in row] for row in entries]
    after = values if first is None else values[1:]
    backward, forward = _compared(columns, table, first)
    return {
        "columns": [
            {
                "phase": one.phase,
                "data": one.data,
                **_names(kind, one, table[-1][j]),
                "n": len(table[-1][j]),
                "backward_transfer": kind.gain([backward[j]]) if j in backward else None,
                "forward_transfer": kind.gain([forward[j]]) if j in forward else None,
                "forgetting": transfer([[row[j]] for row in after], [one.row]).forgetting,
            }
            for j, one in enumerate(columns)
        ],
        "unmeasured": [one.phase for one in taught if one not in columns],
        "rows": [{"after": name, "scores": row} for (name, _), row in zip(models, entries, strict=True)],
        "average": kind.mean(table[-1]),
        "backward_transfer": kind.gain(list(backward.values())) if backward else None,
        "forward_transfer": kind.gain(list(forward.values())) if forward else None,
        "forgetting": transfer(after, [one.row for one in columns]).forgetting,
    }


def _names(kind: _Kind[_Item], taught: Taught, items: Sequence[_Item]) -> dict[str, list[str]]:
    found = {kind.name(item) for item in items}
    wanted = kind.wanted(taught)
    return {
        "measured_by": [name for name in wanted if name in found],
        "not_measured": [name for name in wanted if name not in found],
    }


def _compared(
    columns: Sequence[Taught], table: Sequence[_Columns[_Item]], base: _Columns[_Item] | None
) -> tuple[dict[int, tuple[Any, Any]], dict[int, tuple[Any, Any]]]:
    """Return by column the pairs (before, after) of backward and of forward transfer."""
    last = len(table) - 1
    backward = {j: (table[one.row][j], table[last][j]) for j, one in enumerate(columns) if one.row < last}
    if base is None:
        return backward, {}
    forward = {j: (base[j], table[one.row - 1][j]) for j, one in enumerate(columns) if one.row > 0}
    return backward, forward


def _abilities_of(predictions: Sequence[Prediction], taught: Taught) -> list[Prediction]:
    others = {tag for tag in taught.languages if not is_english(tag)}
    has_english = len(others) < len(taught.languages)
    return [
        p
        for p in predictions
        if (p.ability == "task_ability" and has_english)
        or (p.ability != "task_ability" and p.language in others)
    ]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
