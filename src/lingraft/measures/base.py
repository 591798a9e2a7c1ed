"""The measure protocol: which stages a measure takes of a cell, and what its columns and figures show of them.

A study asks each of its measures for stages while it plans, runs them with all others, and hands the finished ones
back. What a measure found stands under its name in the result; tables and page read columns and figures from here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from pydantic import JsonValue

from lingraft.config.schema import Study
from lingraft.data.example import Example
from lingraft.representation.prompts import Prompt
from lingraft.stage import FinishedStage, Json, Model, StageSpec

if TYPE_CHECKING:
    import altair as alt

FROM_PREVIOUS = "from_previous"
FROM_PHASE_ONE = "from_phase_one"


@dataclass(frozen=True)
class Instructions:
    """A data set whose instructions are compared.

    Attributes:
        name: As the study file names it.
        rows: The training rows that the cell's seed draws.
        identity: What decides them, for fingerprints.
        languages: BCP-47 tags of the whole set, sorted.
    """

    name: str
    rows: Sequence[Example]
    identity: Mapping[str, Json]
    languages: tuple[str, ...]


@dataclass(frozen=True)
class Start:
    """What a phase is compared with.

    Attributes:
        model: The model before it.
        instructions: What that was trained on last; None: unknown, as of a checkpoint.
    """

    model: Model
    instructions: Instructions | None


@dataclass(frozen=True)
class MeasuredPhase:
    """A trained phase of a cell, as measures see it.

    Attributes:
        label: For progress lines.
        model: The model that it made.
        instructions: What it was trained on; of a mixed cell the last of the sets.
        starts: What it is compared with, by name: `FROM_PREVIOUS`, the phase before, and `FROM_PHASE_ONE`. Empty for
            Phase 1 itself; a mixed cell has the second alone.
    """

    label: str
    model: Model
    instructions: Instructions
    starts: Mapping[str, Start]


@dataclass(frozen=True)
class MeasuredCell:
    """A cell, as measures see it.

    Attributes:
        label: For progress lines.
        is_mixed: Whether it is one phase over the union of all phases' data.
        has_one_seed: Whether the study has one seed, so that labels need not name it.
        seed: Of every phase.
        phase_one: Phase 1's model.
        phases: The trained phases in order; of a mixed cell the one.
        prompts: What models are asked for their hidden states.
        tuned_base: Adds to the plan the training of the base on the cell's last set, with no strategy, and returns the
            model.
        study: The study.
    """

    label: str
    is_mixed: bool
    has_one_seed: bool
    seed: int
    phase_one: Model
    phases: tuple[MeasuredPhase, ...]
    prompts: Sequence[Prompt]
    tuned_base: Callable[[], Model]
    study: Study


@dataclass(frozen=True)
class Taken:
    """What a measure takes of one trained phase.

    Attributes:
        stages: By name of what the phase is compared with, or any other name that the measure's columns use.
        reason: Why it is not taken from Phase 1; None: it is, or there is nothing to take.
        warnings: Reasons that are worth a note before anything is computed, each once a study.
    """

    stages: Mapping[str, StageSpec] = field(default_factory=dict)
    reason: str | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure, with its 95 % interval where it has one.

    Attributes:
        value: None: it cannot be known.
        low: Lower end.
        high: Upper end.
    """

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Found:
    """What one stage of a measure found.

    Attributes:
        figures: By the names that columns use.
        details: What else the measure's own figures and sentences need.
    """

    figures: dict[str, Figure]
    details: JsonValue = None


@dataclass(frozen=True)
class Measured:
    """What a measure found of one trained phase.

    Attributes:
        found: By name of what the phase is compared with.
        reason: Why there is nothing from Phase 1; None: there is, or it was not asked for.
    """

    found: dict[str, Found]
    reason: str | None = None

    def figure(self, column: Column) -> Figure:
        """Return what stands in a column; a value of None where the measure was not taken."""
        one = self.found.get(column.taken_from)
        return Figure(None) if one is None else one.figures.get(column.figure, Figure(None))


@dataclass(frozen=True)
class PlottedCell:
    """What a measure found of the cells of one data set and strategy, which differ by their seeds.

    Attributes:
        data: Data set of the last phase.
        strategy: Its strategy.
        seeds: What was found of each.
    """

    data: str
    strategy: str
    seeds: tuple[Measured, ...]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        title: Its heading.
        meaning: An explanation.
        figure: Name of the figure that it shows.
        taken_from: Name of what the phase is compared with.
    """

    title: str
    meaning: str
    figure: str
    taken_from: str = FROM_PHASE_ONE


@dataclass(frozen=True)
class Plot:
    """A figure of the report.

    Attributes:
        name: Of its files and its anchor on the page: lower-case letters, digits and hyphens, unique in the report.
        title: Its heading.
        caption: What it shows, and how to read it.
        chart: Makes the drawing; altair is imported there, so that tables need none.
        description: Its text alternative: what can be seen in it, with the values that matter most.
    """

    name: str
    title: str
    caption: str
    chart: Callable[[], alt.TopLevelMixin]
    description: str = ""


class Measure(ABC):
    """Base of all measures. One object serves all cells of a study."""

    name: ClassVar[str]
    """Registered name."""
    title: ClassVar[str]
    """Name in notes."""
    meaning: ClassVar[str]
    """One sentence for the legend of the page."""
    columns: ClassVar[tuple[Column, ...]]
    """Of the table of cells."""
    phase_columns: ClassVar[tuple[Column, ...]] = ()
    """Of the table of trained phases."""
    reads_prompts: ClassVar[bool] = False
    """Whether it reads the study's `prompts`."""

    def check(self, study: Study) -> Iterable[str]:  # noqa: ARG002
        """Return a line, with its place in the study file, for all that the measure needs and the study has not."""
        return ()

    @abstractmethod
    def stages(self, cell: MeasuredCell) -> Sequence[Taken]:
        """Return what is taken of each trained phase of a cell, in order."""

    @abstractmethod
    def found(self, stage: FinishedStage) -> Found:
        """Return what one of its stages found."""

    def legend(self, measured: Sequence[Measured]) -> str:  # noqa: ARG002
        """Return what the page says of the measure, whose cells found `measured`."""
        return self.meaning

    def plots(self, cells: Sequence[PlottedCell]) -> Iterator[Plot]:  # noqa: ARG002
        """Yield the page's figures of finished cells, in the order of the tables."""
        yield from ()
