"""The cells of a study: every path through the phases' data sets and strategies, once per seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    """Return the study's cells in the order of the file, seed by seed."""
    paths = list(study.paths) if study.paths else list(_full_product(study))
    named = _phases_to_name(paths)
    return tuple(
        Cell(steps=path, seed=seed, data=_data_label(study, path), strategy=_strategy_label(path, named))
        for seed in study.seeds
        for path in paths
    )


def _full_product(study: Study) -> Iterator[tuple[PathStep, ...]]:
    united: set[tuple[tuple[str, ...], str]] = set()
    for path in product(*(tuple(_steps_of(phase)) for phase in trained_phases(study))):
        if path[-1].strategy.is_mixed:
            union = (tuple(step.data for step in path), path[-1].strategy.label)
            if union in united:
                continue  # a mixed cell trains one phase: the earlier phases' strategies make no difference
            united.add(union)
        yield path


def _steps_of(phase: Phase) -> Iterator[PathStep]:
    plain = StrategyChoice(parts=(StrategySpec(kind=PLAIN),))
    for name, data in phase.data.items():
        choices = (*phase.strategies, *data.strategies) or (plain,)
        for one in swept(choices, f"phase {phase.name!r}, data {name!r}"):
            yield PathStep(phase=phase.name, data=name, strategy=one)


def _data_label(study: Study, path: tuple[PathStep, ...]) -> str:
    """Name the last phase's set, after those of earlier phases where these have several to choose from."""
    phases = trained_phases(study)
    earlier = [step.data for step, phase in zip(path[:-1], phases, strict=False) if len(phase.data) > 1]
    return " > ".join([*earlier, path[-1].data])


def _phases_to_name(paths: Sequence[tuple[PathStep, ...]]) -> set[int]:
    """Return the phases before the last whose strategy is not plain throughout, and so belongs in names."""
    chains = [path for path in paths if not path[-1].strategy.is_mixed]
    labels = [(index, step.strategy.label) for path in chains for index, step in enumerate(path[:-1])]
    return {index for index, label in labels if label != PLAIN}


def _strategy_label(path: tuple[PathStep, ...], named: set[int]) -> str:
    """Name the last phase's strategy, after those of earlier phases where these are told apart by them."""
    last = path[-1].strategy
    if last.is_mixed:
        return last.label
    earlier = [step.strategy.label for index, step in enumerate(path[:-1]) if index in named]
    return " > ".join([*earlier, last.label])
