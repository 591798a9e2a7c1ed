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
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from lingraft.evaluate.held_out import AnswerLoss, bits_difference, mean_bits
from lingraft.evaluate.predictions import Prediction
from lingraft.evaluate.results import (
    AbilityMatrix,
    BitsDifference,
    ForgettingMatrix,
    LossMatrix,
    MatrixColumn,
    MatrixRow,
    MeanBits,
)
from lingraft.intervals.changes import NO_LIMITS, Margins
from lingraft.intervals.macro_mean import (
    Difference,
    Interval,
    difference_over_columns,
    mean_over_columns,
)
from lingraft.text.language_tags import is_english

BASE = "base"
_TASK_ABILITY = "task ability"  # what English is measured by
_Item = TypeVar("_Item")
_Entry = TypeVar("_Entry", Interval, MeanBits)
_Change = TypeVar("_Change")
_Pair = tuple[Sequence[_Item], Sequence[_Item]]


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

    def mean(values: Sequence[float]) -> float | None:
        return sum(values) / len(values) if values else None

    columns, last = range(len(learned)), matrix[-1]
    early = [j for j in columns if learned[j] < len(matrix) - 1]
    late = [j for j in columns if learned[j] > 0]
    forward = None if base is None else [matrix[learned[j] - 1][j] - base[j] for j in late]
    return Transfer(
        average=sum(last) / len(last),
        backward=mean([last[j] - matrix[learned[j]][j] for j in early]),
        forward=None if forward is None else mean(forward),
        forgetting=mean([max(row[j] for row in matrix[:-1]) - last[j] for j in early]),
    )


def ability_matrix(
    taught: Sequence[Taught],
    phases: Sequence[tuple[str, Sequence[Prediction]]],
    base: Sequence[Prediction] | None,
    margins: Margins = NO_LIMITS,
) -> AbilityMatrix | None:
    """Return the matrix of abilities; None: no column can be measured.

    A column is the mean over its set's languages of the mean over tasks: English by the task ability, any other
    language by its language ability. Two phases of the same languages therefore have equal columns.

    Args:
        taught: The columns.
        phases: Name and predictions of the model after each phase, all of the same items.
        base: Predictions of the base model, if known.
        margins: How large a change nobody minds; of several columns, or languages, the smallest counts.

    Raises:
        EvaluationError: The models were not asked the same items.
    """

    def measured_by(one: Taught) -> list[str]:
        return list(dict.fromkeys(_TASK_ABILITY if is_english(tag) else tag for tag in one.languages))

    def name(item: Prediction) -> str:
        return _TASK_ABILITY if item.ability == "task_ability" else item.language

    def select(items: Sequence[Prediction], one: Taught) -> list[Prediction]:
        names = set(measured_by(one))
        return [item for item in items if name(item) in names]

    def gain(pairs: Sequence[_Pair[Prediction]]) -> Difference:
        measured = {(p.ability, p.language) for before, _ in pairs for p in before}
        smallest = min(
            margins.of(ability) if ability == "task_ability" else margins.of(language, ability)
            for ability, language in measured
        )
        return difference_over_columns(pairs, smallest)

    kind = _Kind[Prediction, Interval, Difference](
        select=select,
        name=name,
        measured_by=measured_by,
        mean=mean_over_columns,
        gain=gain,
        sign=1,
    )
    return _matrix(kind, taught, phases, base)


def loss_matrix(
    taught: Sequence[Taught],
    phases: Sequence[tuple[str, Sequence[AnswerLoss]]],
    base: Sequence[AnswerLoss] | None,
) -> LossMatrix | None:
    """Return the matrix of held-out losses in bits per character; None: nothing is held out.

    A column is the mean over its set's languages of the summed bits over the summed characters of the set's own
    held-out answers. Lower is better; all differences are turned, so that a loss which rose is below 0 in backward
    transfer and above 0 in forgetting, as with abilities.

    Only what all of these models could be measured on counts: templates and tokenizers may differ, and what one
    refuses or cannot hold whole is left out of all rows. Each column counts that as `left_out`.

    Args:
        taught: The columns.
        phases: Name and held-out losses of the model after each phase.
        base: Losses of the base model, if known.
    """
    models = [*([] if base is None else [base]), *(losses for _, losses in phases)]
    common = frozenset.intersection(*(frozenset(loss.item for loss in own) for own in models))
    kind = _Kind[AnswerLoss, MeanBits, BitsDifference](
        select=lambda losses, one: [loss for loss in losses if loss.item in one.items & common],
        name=lambda loss: loss.language,
        measured_by=lambda one: one.languages,
        mean=mean_bits,
        gain=lambda pairs: bits_difference([(after, before) for before, after in pairs]),
        sign=-1,
    )
    matrix = _matrix(kind, taught, phases, base)
    if matrix is None:
        return None
    sizes = {(one.phase, one.data): len(one.items) for one in taught}
    columns = (replace(one, left_out=sizes[one.phase, one.data] - one.n) for one in matrix.columns)
    return replace(matrix, columns=tuple(columns))


@dataclass(frozen=True)
class _Kind(Generic[_Item, _Entry, _Change]):
    """How one kind of matrix takes its columns, means and gains (always above 0 where things got better)."""

    select: Callable[[Sequence[_Item], Taught], list[_Item]]
    name: Callable[[_Item], str]  # what an item measures
    measured_by: Callable[[Taught], Sequence[str]]  # what would measure all of it
    mean: Callable[[Sequence[Sequence[_Item]]], _Entry]
    gain: Callable[[Sequence[_Pair[_Item]]], _Change]
    sign: int


def _matrix(
    kind: _Kind[_Item, _Entry, _Change],
    taught: Sequence[Taught],
    phases: Sequence[tuple[str, Sequence[_Item]]],
    base: Sequence[_Item] | None,
) -> ForgettingMatrix[_Entry, _Change] | None:
    columns = [one for one in taught if kind.select(phases[-1][1], one)]
    if not columns:
        return None
    models = [*([] if base is None else [(BASE, base)]), *phases]
    items = [[kind.select(own, one) for one in columns] for _, own in models]  # [models][columns]
    entries = [[kind.mean([column]) for column in row] for row in items]
    first = len(models) - len(phases)  # row of the model after the first phase
    values = [[kind.sign * entry.value for entry in row] for row in entries[first:]]
    backward = {
        j: (items[first + one.row][j], items[-1][j])
        for j, one in enumerate(columns)
        if one.row < len(phases) - 1
    }
    forward = {
        j: (items[0][j], items[one.row][j])
        for j, one in enumerate(columns)
        if base is not None and one.row > 0
    }
    measured = [{kind.name(item) for item in own} for own in items[-1]]
    return ForgettingMatrix(
        columns=tuple(
            MatrixColumn(
                phase=one.phase,
                data=one.data,
                measured_by=tuple(name for name in kind.measured_by(one) if name in measured[j]),
                not_measured=tuple(name for name in kind.measured_by(one) if name not in measured[j]),
                n=len(items[-1][j]),
                left_out=0,
                backward_transfer=kind.gain([backward[j]]) if j in backward else None,
                forward_transfer=kind.gain([forward[j]]) if j in forward else None,
                forgetting=transfer([[row[j]] for row in values], [one.row]).forgetting,
            )
            for j, one in enumerate(columns)
        ),
        unmeasured=tuple(one.phase for one in taught if one not in columns),
        rows=tuple(MatrixRow(name, tuple(row)) for (name, _), row in zip(models, entries, strict=True)),
        average=kind.mean(items[-1]),
        backward_transfer=kind.gain(list(backward.values())) if backward else None,
        forward_transfer=kind.gain(list(forward.values())) if forward else None,
        forgetting=transfer(values, [one.row for one in columns]).forgetting,
        unpaired={},
        not_paired={},
    )
