"""The cells of a study: every path through the phases' data sets and strategies, once per seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from lingraft.config.schema import PLAIN, PathStep, Phase, StrategyChoice, StrategySpec, Study
from lingraft.strategies.composition import swept


@dataclass(frozen=True)
class Cell:
    """One trained model of the grid.

    Attributes:
        steps: One step per trained phase. In a mixed cell they name the united sets; only the last step's
            strategy counts.
        seed: Seed of every phase of this cell.
        data: Name of the cell's data in tables.
        strategy: Name of the cell's strategy in tables.
    """

    steps: tuple[PathStep, ...]
    seed: int
    data: str
    strategy: str

    @property
    def is_mixed(self) -> bool:
        """Whether the cell is one phase over the union of all phases' data, trained from the base."""
        return self.steps[-1].strategy.is_mixed

    @property
    def phases_one_by_one(self) -> tuple[PathStep, ...]:
        """The steps that are trained one by one: of a mixed cell Phase 1's alone."""
        return self.steps[:1] if self.is_mixed else self.steps

    @property
    def label(self) -> str:
        """Name in progress lines and errors."""
        return f"{self.data} / {self.strategy} / seed {self.seed}"


def trained_phases(study: Study) -> tuple[Phase, ...]:
    """Return the phases that are trained: all but a first one that is a checkpoint."""
    return tuple(phase for phase in study.phases if phase.checkpoint is None)


def cells_of(study: Study) -> tuple[Cell, ...]:
    """Return the study's cells in the order of the file, seed by seed.

    A cell is called by its last phase's set and strategy: after the sets of earlier phases that have several to choose
    from, and after the strategies of earlier phases in which some cell's is not plain.
    """
    paths = study.paths or tuple(_full_product(study))
    phases = trained_phases(study)
    named = {
        place
        for path in paths
        if not path[-1].strategy.is_mixed
        for place, step in enumerate(path[:-1])
        if step.strategy.label != PLAIN
    }
    cells = []
    for seed in study.seeds:
        for path in paths:
            *earlier, last = path
            data = [step.data for step, phase in zip(earlier, phases, strict=False) if len(phase.data) > 1]
            strategies = [step.strategy.label for place, step in enumerate(earlier) if place in named]
            if last.strategy.is_mixed:
                strategies = []
            label = " > ".join([*strategies, last.strategy.label])
            cells.append(Cell(steps=path, seed=seed, data=" > ".join([*data, last.data]), strategy=label))
    return tuple(cells)


def _full_product(study: Study) -> Iterator[tuple[PathStep, ...]]:
    """Yield every path through the trained phases' sets and strategies."""
    plain = StrategyChoice(parts=(StrategySpec(kind=PLAIN),))
    steps = []
    for phase in trained_phases(study):
        own = []
        for name, data in phase.data.items():
            choices = (*phase.strategies, *data.strategies) or (plain,)
            for one in (one for choice in choices for one in swept(choice)):
                own.append(PathStep(phase=phase.name, data=name, strategy=one))
        steps.append(own)
    united: set[tuple[tuple[str, ...], str]] = set()
    for path in product(*steps):
        if path[-1].strategy.is_mixed:
            union = (tuple(step.data for step in path), path[-1].strategy.label)
            if union in united:
                continue  # a mixed cell trains one phase: the earlier phases' strategies make no difference
            united.add(union)
        yield path
