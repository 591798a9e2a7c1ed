"""DES, MPD and drift of a cell: between which of its data sets and models they are taken.

With more than two phases both are taken step by step (the phase before and this one) and from Phase 1 on (Phase 1
and this one); of the last phase, the second is the cell's own figure. Drift is taken of the last phase alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lingraft.config.schema import Study
from lingraft.measures.base import Instructions
from lingraft.measures.des import Similarity
from lingraft.measures.drift import StatesDrift
from lingraft.measures.mpd import Difference
from lingraft.similarity.embedding_similarity import unknown_languages
from lingraft.similarity.encoders import Encoder, load_encoder
from lingraft.stage import FinishedStage, Model
from lingraft.study.events import Watcher
from lingraft.study.execute import Executor
from lingraft.study.grid import Cell
from lingraft.study.materials import DataSet, Materials


@dataclass(frozen=True)
class Steps:
    """A measure of one phase of a cell.

    Attributes:
        from_previous: Between the phase before and this one; None: there is none, or it cannot be taken.
        from_phase_one: Between Phase 1 and this one; None likewise.
        reason: Why `from_phase_one` cannot be taken; None: it is, or there is nothing to take.
    """

    from_previous: FinishedStage | None
    from_phase_one: FinishedStage | None
    reason: str | None = None

    def figures(self, key: str) -> dict[str, float | None]:
        """Return one figure of the two stages, by name."""
        stages = {"from_previous": self.from_previous, "from_phase_one": self.from_phase_one}
        return {name: None if stage is None else stage.result[key] for name, stage in stages.items()}


NOT_TAKEN = Steps(None, None)


class Measures:
    """Takes DES and MPD for the cells of one study, each pair once."""

    def __init__(
        self, study: Study, materials: Materials, executor: Executor, encoder: Encoder | None
    ) -> None:
        self._study = study
        self._materials = materials
        self._executor = executor
        self._encoder = encoder

    @property
    def encoder_name(self) -> str | None:
        """Name of the encoder of DES; None: DES is not taken."""
        return None if self._encoder is None else self._encoder.name

    def similarities(self, cell: Cell) -> list[Steps]:
        """Return DES of each trained phase of a cell; of a mixed cell, of its one phase."""
        first, sets = self._sets(cell)
        if cell.is_mixed:
            return [Steps(None, self._similarity(first, sets[-1], cell.seed), self._reason(first, sets[-1]))]
        found = []
        previous = None if self._materials.checkpoint is None else first
        for number, own in enumerate(sets):
            if number == 0 and self._materials.checkpoint is None:
                found.append(NOT_TAKEN)
            else:
                step = self._similarity(previous, own, cell.seed)
                since_one = self._similarity(first, own, cell.seed)
                found.append(Steps(step, since_one, self._reason(first, own)))
            previous = own
        return found

    def distances(self, cell: Cell, phase_one: Model, models: Sequence[Model]) -> list[Steps]:
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
            step = None if previous is None else self.distance(f"step to {place}", previous, model)
            last: FinishedStage | None = None
            if not (number == 0 and self._materials.checkpoint is None and not cell.is_mixed):
                last = self.distance(f"from phase one to {place}", phase_one, model)
            found.append(Steps(step, last))
            previous = model
        return found

    def drift(self, cell: Cell, phase_one: Model, last: Model) -> FinishedStage | None:
        """Return the drift of the hidden states from Phase 1 to the cell's last model; None: it is not measured."""
        if "drift" not in self._study.measures:
            return None
        trust = self._study.trust_remote_code
        return self._executor.make(
            StatesDrift(f"to {cell.label}", phase_one, last, self._materials.prompts, trust)
        )

    def _sets(self, cell: Cell) -> tuple[DataSet | None, list[DataSet]]:
        """Return the set of Phase 1's instructions, if known, and those of the trained phases."""
        sets = [self._materials.data[step.phase, step.data] for step in cell.steps]
        return (sets[0] if self._materials.checkpoint is None else self._materials.instructions), sets

    def _reason(self, first: DataSet | None, second: DataSet) -> str | None:
        """Return why DES of two sets cannot be taken; None: it can, or is not asked for."""
        if "des" not in self._study.measures:
            return None
        if first is None:
            return (
                f"the instructions of {self._study.phases[0].name!r}, a checkpoint, are unknown; name a data set that "
                "stands for them (`instructions: SOURCE`)"
            )
        return None if self._encoder is None else unknown_to(self._encoder, (first, second))

    def _similarity(self, first: DataSet | None, second: DataSet, seed: int) -> FinishedStage | None:
        if first is None or self._encoder is None or self._reason(first, second) is not None:
            return None
        one, other = (
            Instructions(s.name, s.split(seed).train, {**s.identity, "seed": seed}, s.languages)
            for s in (first, second)
        )
        label = f"{first.name} and {second.name}"
        label = label if len(self._study.seeds) == 1 else f"{label} (seed {seed})"
        return self._executor.make(Similarity(label, one, other, self._encoder))

    def distance(self, label: str, first: Model, second: Model) -> FinishedStage:
        """Return MPD of two models."""
        return self._executor.make(Difference(label, first, second, self._study.trust_remote_code))


def compared_sets(study: Study, materials: Materials) -> list[tuple[DataSet, DataSet]]:
    """Return the different pairs of data sets whose instructions DES is asked to compare."""
    if "des" not in study.measures:
        return []
    pairs: dict[tuple[int, int], tuple[DataSet, DataSet]] = {}
    for cell in materials.cells:
        for i, j in cell_pairs(cell, has_checkpoint=materials.checkpoint is not None):
            first, second = (set_of(materials, cell, place) for place in (i, j))
            if first is not None and second is not None:
                pairs[id(first), id(second)] = first, second
    return list(pairs.values())


def des_encoder(study: Study, materials: Materials, watcher: Watcher) -> Encoder | None:
    """Return the encoder of DES, and warn once of languages that it does not know; None: there is nothing to compare.

    Raises:
        ConfigError: The encoder is needed and cannot be had.
    """
    pairs = compared_sets(study, materials)
    if not pairs:
        return None
    encoder = load_encoder(study.encoder)
    reasons = dict.fromkeys(reason for pair in pairs if (reason := unknown_to(encoder, pair)) is not None)
    if reasons:
        watcher.noted(f"DES is null where {'; and where '.join(reasons)}. Everything else is measured.")
    return encoder


def unknown_to(encoder: Encoder, sets: Sequence[DataSet]) -> str | None:
    """Return why the encoder cannot compare the sets' instructions, and what to write; None: it can."""
    found = {one.name: unknown for one in sets if (unknown := unknown_languages(one.languages, encoder))}
    if not found:
        return None
    where = " and ".join(f"{name!r} is in {', '.join(map(repr, tags))}" for name, tags in found.items())
    return (
        f"{where}, which the encoder {encoder.name} does not know; write another one, such as `encoder: labse` "
        "(pip install 'lingraft[encoders]')"
    )


def set_of(materials: Materials, cell: Cell, index: int) -> DataSet | None:
    """Return the set of a cell's trained phase, or of index -1 the one that stands for a checkpoint's instructions."""
    if index < 0:
        return materials.instructions
    step = cell.steps[index]
    return materials.data[step.phase, step.data]


def cell_pairs(cell: Cell, *, has_checkpoint: bool) -> list[tuple[int, int]]:
    """Return the different pairs of phases of a cell that are measured; see `measured_pairs`."""
    if cell.is_mixed:
        return [(-1 if has_checkpoint else 0, len(cell.steps) - 1)]
    return list(measured_pairs(len(cell.steps), has_checkpoint=has_checkpoint))


def measured_pairs(steps: int, *, has_checkpoint: bool) -> Iterator[tuple[int, int]]:
    """Yield the different pairs of phases that are measured: (i, j) with i before j; -1 is the checkpoint."""
    first = -1 if has_checkpoint else 0
    yield from sorted({(i, j) for j in range(first + 1, steps) for i in (first, j - 1)})
