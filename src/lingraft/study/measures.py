"""DES, MPD and drift of a cell: between which of its data sets and models they are taken.

With more than two phases both are taken step by step (the phase before and this one) and from Phase 1 on (Phase 1
and this one); of the last phase, the second is the cell's own figure. Drift is taken of the last phase alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lingraft.config.schema import Study
from lingraft.similarity.encoders import Encoder
from lingraft.study.grid import Cell
from lingraft.study.materials import DataSet, Materials
from lingraft.study.stages import ModelReference, Stages
from lingraft.study.store import Stage


@dataclass(frozen=True)
class Steps:
    """A measure of one phase of a cell.

    Attributes:
        from_previous: Between the phase before and this one; None: there is none, or its data are unknown.
        from_phase_one: Between Phase 1 and this one; None likewise.
    """

    from_previous: Stage | None
    from_phase_one: Stage | None

    def figures(self, key: str) -> dict[str, float | None]:
        """Return one figure of the two stages, by name."""
        stages = {"from_previous": self.from_previous, "from_phase_one": self.from_phase_one}
        return {name: None if stage is None else stage.result[key] for name, stage in stages.items()}


NOT_TAKEN = Steps(None, None)


class Measures:
    """Takes DES and MPD for the cells of one study, each pair once."""

    def __init__(self, study: Study, materials: Materials, stages: Stages, encoder: Encoder | None) -> None:
        self._study = study
        self._materials = materials
        self._stages = stages
        self._encoder = encoder

    @property
    def encoder_name(self) -> str | None:
        """Name of the encoder of DES; None: DES is not taken."""
        return None if self._encoder is None else self._encoder.name

    def similarities(self, cell: Cell) -> list[Steps]:
        """Return DES of each trained phase of a cell; of a mixed cell, of its one phase."""
        first, sets = self._sets(cell)
        if cell.is_mixed:
            return [Steps(None, self._similarity(first, sets[-1], cell.seed))]
        found = []
        previous = None if self._materials.checkpoint is None else first
        for number, own in enumerate(sets):
            is_phase_one = number == 0 and self._materials.checkpoint is None
            since_one = None if is_phase_one else self._similarity(first, own, cell.seed)
            found.append(Steps(self._similarity(previous, own, cell.seed), since_one))
            previous = own
        return found

    def distances(
        self, cell: Cell, phase_one: ModelReference, models: Sequence[ModelReference]
    ) -> list[Steps]:
        """Return MPD of each trained phase of a cell.

        Args:
            cell: The cell.
            phase_one: Phase 1's model.
            models: The models after the cell's trained phases; of a mixed cell the one.
        """
        if "mpd" not in self._study.measures:
            return [NOT_TAKEN for _ in models]
        found: list[Steps] = []
        previous = None if self._materials.checkpoint is None or cell.is_mixed else phase_one
        for number, model in enumerate(models):
            place = f"{cell.label}, phase {number + 1} of {len(models)}" if len(models) > 2 else cell.label
            step = None if previous is None else self._distance(f"step to {place}", previous, model)
            last: Stage | None = None
            if not (number == 0 and self._materials.checkpoint is None and not cell.is_mixed):
                last = self._distance(f"from phase one to {place}", phase_one, model)
            found.append(Steps(step, last))
            previous = model
        return found

    def drift(self, cell: Cell, phase_one: ModelReference, last: ModelReference) -> Stage | None:
        """Return the drift of the hidden states from Phase 1 to the cell's last model; None: it is not measured."""
        if "drift" not in self._study.measures:
            return None
        return self._stages.drift(f"to {cell.label}", phase_one, last, self._materials.prompts)

    def _sets(self, cell: Cell) -> tuple[DataSet | None, list[DataSet]]:
        """Return the set of Phase 1's instructions, if known, and those of the trained phases."""
        sets = [self._materials.data[step.phase, step.data] for step in cell.steps]
        return (sets[0] if self._materials.checkpoint is None else self._materials.instructions), sets

    def _similarity(self, first: DataSet | None, second: DataSet, seed: int) -> Stage | None:
        if self._encoder is None or first is None:
            return None
        one, other = ((s.split(seed).train, {**s.identity, "seed": seed}) for s in (first, second))
        label = f"{first.name} and {second.name}"
        label = label if len(self._study.seeds) == 1 else f"{label} (seed {seed})"
        return self._stages.similarity(label, one, other, self._encoder)

    def _distance(self, label: str, first: ModelReference, second: ModelReference) -> Stage:
        return self._stages.difference(label, first, second)


def measured_pairs(steps: int, *, has_checkpoint: bool) -> Iterator[tuple[int, int]]:
    """Yield the different pairs of phases that are measured: (i, j) with i before j; -1 is the checkpoint."""
    first = -1 if has_checkpoint else 0
    yield from sorted({(i, j) for j in range(first + 1, steps) for i in (first, j - 1)})
