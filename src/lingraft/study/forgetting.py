"""The forgetting matrix of a cell, from what its evaluations left on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lingraft.config.schema import Study
from lingraft.evaluate.common_items import common_items
from lingraft.evaluate.forgetting import Taught, ability_matrix, loss_matrix
from lingraft.evaluate.held_out import item_of, read_losses
from lingraft.evaluate.predictions import read_predictions
from lingraft.evaluate.results import Forgetting
from lingraft.intervals.changes import Margins
from lingraft.stage import FinishedStage
from lingraft.study.grid import Cell
from lingraft.study.materials import Materials
from lingraft.study.stages.evaluate import HELD_OUT, PREDICTIONS, recorded
from lingraft.text.language_tags import ENGLISH


@dataclass(frozen=True)
class PhaseEnd:
    """The evaluated model at the end of one phase of a cell.

    Attributes:
        name: The phase's; of a mixed cell its strategy's.
        evaluation: The stage that evaluated the model.
    """

    name: str
    evaluation: FinishedStage


def forgetting_of(
    study: Study, materials: Materials, cell: Cell, ends: Sequence[PhaseEnd], base: FinishedStage | None
) -> Forgetting:
    """Return both matrices of a cell.

    Args:
        study: The study.
        materials: Its data.
        cell: The cell.
        ends: The model after each phase, Phase 1 first; of a mixed cell the one, which learned all sets at once.
        base: The base model's evaluation, if there is one.
    """
    taught = []
    if materials.checkpoint is not None:
        languages = (ENGLISH,) if materials.instructions is None else materials.instructions.languages
        taught.append(Taught(study.phases[0].name, "", languages, frozenset(), 0))
    for step in cell.steps:
        data = materials.data[step.phase, step.data]
        held_out = frozenset(item_of(example) for example in data.held_out)
        row = 0 if cell.is_mixed else len(taught)
        taught.append(Taught(step.phase, step.data, data.languages, held_out, row))

    evaluations = [*([] if base is None else [base]), *(end.evaluation for end in ends)]
    read = [read_predictions(one.artefact(PREDICTIONS)) for one in evaluations]
    tasks = [recorded(one).tasks for one in evaluations]
    common = common_items(read, tasks)
    not_paired = common.refused
    if not_paired and base is not None:  # its chat template may be another: the phases compare without it
        common = common_items(read[1:], tasks[1:])
    base_abilities = common.models[0] if len(common.models) > len(ends) else None
    names = [end.name for end in ends]
    abilities = list(zip(names, common.models[-len(ends) :], strict=True))
    losses = [(end.name, read_losses(end.evaluation.artefact(HELD_OUT))) for end in ends]
    base_losses = None if base is None else read_losses(base.artefact(HELD_OUT))
    ability = ability_matrix(taught, abilities, base_abilities, Margins(study.limits))
    if ability is not None:
        ability = replace(ability, unpaired=common.unpaired, not_paired=not_paired)
    return Forgetting(ability, loss_matrix(taught, losses, base_losses))
