"""The plan of a study: the graph of all its stages, known before anything is computed.

A training is known by its own fingerprint, so what comes after it can be described before it runs. Stages that cells
share stand once; each stands after those whose artefacts it reads, in the order in which the cells need them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from lingraft.config.checks import trained_with
from lingraft.config.schema import PLAIN, PathStep, Phase, StrategyChoice, StrategySpec, Study
from lingraft.data.example_table import joined
from lingraft.errors import LingraftError
from lingraft.measures import REGISTRY
from lingraft.measures.base import (
    FROM_PHASE_ONE,
    FROM_PREVIOUS,
    Instructions,
    Measure,
    MeasuredCell,
    MeasuredPhase,
    Start,
    Taken,
)
from lingraft.models.compute import compute_device
from lingraft.stage import Json, MadeModel, Model, StageSpec
from lingraft.strategies.base import Need
from lingraft.study.grid import Cell
from lingraft.study.limits import LimitPlan, limit_sentence, plan_limits
from lingraft.study.materials import DataSet, Drawn, Materials, past_rows
from lingraft.study.stages.combine import Combine
from lingraft.study.stages.evaluate import Evaluate, Questions
from lingraft.study.stages.job import TrainingJob
from lingraft.study.stages.prepare import Prepare
from lingraft.study.stages.train import Train
from lingraft.study.unused import ListedStage
from lingraft.train.compiled import check_compiler
from lingraft.train.phase import with_resolved_precision
from lingraft.train.processes import Processes

Spec = TypeVar("Spec", bound=StageSpec)


@dataclass(frozen=True)
class PlannedPhase:
    """The stages of one trained phase of a cell.

    Attributes:
        step: Phase, data set and strategy.
        train: Its training, which names what strategies prepare for it.
        combine: Makes the final model of it; None: the trained one is final.
        evaluate: Evaluates the final model.
    """

    step: PathStep
    train: Train
    combine: Combine | None
    evaluate: Evaluate

    @property
    def made(self) -> Train | Combine:
        """The stage that makes the final model."""
        return self.combine or self.train

    @property
    def model(self) -> MadeModel:
        """The final model."""
        return MadeModel(self.made, self.train.job.parent.parameters)


@dataclass(frozen=True)
class PlannedCell:
    """The stages of one cell.

    Attributes:
        cell: The cell.
        phase_one: Phase 1, where it is trained; None: it is a checkpoint.
        phase_one_evaluate: Evaluates Phase 1.
        phases: The trained phases in order; of a mixed cell its one phase.
        measures: By name, what each measure takes of each of `phases`.
    """

    cell: Cell
    phase_one: PlannedPhase | None
    phase_one_evaluate: Evaluate
    phases: tuple[PlannedPhase, ...]
    measures: Mapping[str, tuple[Taken, ...]]

    @property
    def stages(self) -> Iterator[StageSpec]:
        """All stages whose results the cell's own result is made of."""
        yield self.phase_one_evaluate
        for phase in self.phases:
            yield from (phase.train, phase.made, phase.evaluate)
        for taken in self.measures.values():
            for one in taken:
                yield from one.stages.values()


@dataclass(frozen=True)
class Plan:
    """The graph of a study's stages.

    Attributes:
        stages: Every stage once, after those whose artefacts it reads.
        base: Evaluates the base model; None: there is none.
        cells: What each cell is made of.
        measures: The study's measures, in the order of their registry.
        results: Fingerprints of the stages whose results are read; others serve these alone.
        kept: Fingerprints of the stages whose artefacts stay.
        limits: By name as the study file has it, how many items could decide a limit.
        notes: What is to be said before anything is computed.
    """

    stages: tuple[StageSpec, ...]
    base: Evaluate | None
    cells: tuple[PlannedCell, ...]
    measures: tuple[Measure, ...]
    results: frozenset[str]
    kept: frozenset[str]
    limits: Mapping[str, LimitPlan]
    notes: tuple[str, ...]


def plan_study(
    study: Study, materials: Materials, questions: Questions, processes: Processes | None = None
) -> Plan:
    """Return the plan of a study.

    Args:
        study: The study, its suites resolved.
        materials: All that its stages draw from.
        questions: What its models are asked.
        processes: How many processes train a phase; None: one.

    Raises:
        ConfigError: The encoder of DES is needed and cannot be had, or a limit is of nothing that is evaluated.
    """
    limits = plan_limits(study.limits, questions)
    measures = tuple(REGISTRY.get(name)() for name in REGISTRY if name in study.measures)
    planner = Planner(study, materials, questions, processes or Processes(), measures)
    base = None if materials.base is None else planner.evaluate("base", materials.base)
    cells = tuple(planner.cell(cell) for cell in materials.cells)
    notes = list(dict.fromkeys(planner.notes))
    for measure in measures:
        taken = [one for cell in cells for one in cell.measures[measure.name]]
        reasons = dict.fromkeys(reason for one in taken for reason in one.warnings)
        if reasons:
            where = "; and where ".join(reasons)
            notes.append(f"{measure.title} is null where {where}. Everything else is measured.")
    notes += [limit_sentence(name, one) for name, one in limits.items()]
    last = [one for cell in cells for one in (cell.phase_one, cell.phases[-1]) if one is not None]
    final = {stage.fingerprint for one in last for stage in (one.made, *one.train.states.values())}
    kept = {"all": set(planner.stages), "final": final, "none": set[str]()}[study.keep]
    read = [*(() if base is None else (base,)), *(stage for cell in cells for stage in cell.stages)]
    return Plan(
        stages=tuple(planner.stages.values()),
        base=base,
        cells=cells,
        measures=measures,
        results=frozenset(stage.fingerprint for stage in read),
        kept=frozenset(kept),
        limits=limits,
        notes=tuple(notes),
    )


class Planner:
    """Collects stages, each once: of equal ones the first stands for all."""

    def __init__(
        self,
        study: Study,
        materials: Materials,
        questions: Questions,
        processes: Processes,
        measures: Sequence[Measure],
    ) -> None:
        self.study = study
        self.materials = materials
        self.questions = questions
        self.processes = processes
        self.measures = measures
        self.stages: dict[str, StageSpec] = {}
        self.notes: list[str] = []

    def add(self, stage: Spec) -> Spec:
        """Return the stage, added after its parents, or the equal one that is there already."""
        if stage.fingerprint not in self.stages:
            for parent in stage.parents:  # one that only a measure knows is planned by this alone
                self.add(parent)
        known = self.stages.setdefault(stage.fingerprint, stage)
        assert isinstance(known, type(stage))
        return known

    def evaluate(self, label: str, model: Model) -> Evaluate:
        """Add an evaluation."""
        return self.add(Evaluate(label, model, self.questions, self.study.trust_remote_code))

    def cell(self, cell: Cell) -> PlannedCell:
        """Add all stages of a cell."""
        checkpoint = self.materials.checkpoint
        if checkpoint is not None:
            phase_one_evaluate = self.evaluate(f"phase {self.study.phases[0].name}", checkpoint)
        chain: list[PlannedPhase] = []
        for index in range(len(cell.phases_one_by_one)):
            chain.append(self.step(cell, index, chain[-1].model if chain else self.start()))
        phase_one = None
        if checkpoint is None:
            phase_one, phase_one_evaluate = chain[0], chain[0].evaluate
        phases = (self.mixed(cell),) if cell.is_mixed else tuple(chain)
        seen = self.measured_cell(cell, phases, self.start() if phase_one is None else phase_one.model)
        taken: dict[str, tuple[Taken, ...]] = {}
        for measure in self.measures:
            own = measure.stages(seen)
            taken[measure.name] = tuple(
                replace(one, stages={place: self.add(stage) for place, stage in one.stages.items()})
                for one in own
            )
        return PlannedCell(cell, phase_one, phase_one_evaluate, phases, taken)

    def start(self) -> Model:
        """Return the model that the first trained phase starts from."""
        start = self.materials.checkpoint or self.materials.base
        if start is None:
            raise LingraftError("the study has neither a base model nor a checkpoint.")
        return start

    def step(self, cell: Cell, index: int, parent: Model) -> PlannedPhase:
        """Add the stages of the `index`-th phase of a cell that trains its phases one by one."""
        step = cell.steps[index]
        taken = past_rows(self.study, index, step)
        old = None
        if "previous_data" in taken:
            old = self.materials.drawn(self.data(cell.steps[0]), cell.seed)
        label = " > ".join(f"{s.phase}:{s.data}/{s.strategy.label}" for s in cell.steps[: index + 1])
        return self.phase_of([step], label, parent, cell.seed, taken, old)

    def phase_of(
        self,
        steps: Sequence[PathStep],
        label: str,
        parent: Model,
        seed: int,
        taken: Collection[Need],
        old: Drawn | None = None,
    ) -> PlannedPhase:
        """Add the stages of a phase that trains on the union of what `steps` name, with the strategy of the last.

        Args:
            steps: One, or several of one phase.
            label: For progress lines.
            parent: What it starts from.
            seed: Of what is drawn.
            taken: Which rows of the past its strategies take; see `past_rows`.
            old: Phase 1's rows, where they are taken.
        """
        sets = [self.data(step) for step in steps]
        english = []
        if "english" in taken:
            sources = [self.phase(step.phase).data[step.data] for step in steps]
            drawn = [
                self.materials.drawn_english(source, data, seed)
                for source, data in zip(sources, sets, strict=True)
            ]
            english = [one for one in drawn if one is not None]
        identities = [one.identity for one in english]
        english_identity: Json = identities[0] if len(identities) == 1 else identities or None
        old_identity = None if old is None else old.identity
        job = self.job(label, steps[-1], sets, parent, seed)
        job = replace(
            job,
            counts=[*job.counts, *(one.counts for one in english)],
            base=self.materials.base,
            previous_data=() if old is None else old.rows,
            english=joined([one.rows for one in english]) if english else (),
            replay_data={
                "previous_data": old_identity,
                "english": english_identity,
                "old_english": english_identity if old_identity is None else old_identity,
            },
        )
        return self.phase_stages(steps[-1], job)

    def mixed(self, cell: Cell) -> PlannedPhase:
        """Add the stages of a mixed cell's one phase over the union of the path's sets, from the base.

        It sees each set as often as that set's own phase does: where their epochs differ, in one pass over the
        sets repeated that many times. `mixed: {training: {epochs: N}}` asks for N passes over all of them.
        """
        step = cell.steps[-1]
        label = "+".join(f"{one.phase}:{one.data}" for one in cell.steps) + f"/{step.strategy.label}"
        sets = [self.data(one) for one in cell.steps]
        job = self.job(label, step, sets, self.start(), cell.seed)
        epochs = [self.phase(one.phase).training.apply_to(self.study.training).epochs for one in cell.steps]
        is_asked = any(part.training.epochs is not None for part in step.strategy.parts)
        if len(set(epochs)) > 1 and not is_asked:
            each = ", ".join(f"{one.name} {times} times" for one, times in zip(sets, epochs, strict=True))
            self.notes.append(f"{job.label}: one pass over {each}, as often as in their own phases.")
            rows = [self.materials.drawn(one, cell.seed).rows for one in sets]
            job = replace(
                job,
                examples=joined([own for own, times in zip(rows, epochs, strict=True) for _ in range(times)]),
                data=[one for one, times in zip(job.data, epochs, strict=True) for _ in range(times)],
                training=job.training.model_copy(update={"epochs": 1}),
            )
        return self.phase_stages(step, job)

    def tuned_base(self, cell: Cell) -> Model:
        """Add the training of the base on a cell's last set, with no strategy."""
        plain = StrategyChoice(parts=(StrategySpec(kind=PLAIN),))
        step = cell.steps[-1].model_copy(update={"strategy": plain})
        start = self.start()
        job = self.job(f"base:{step.data}/{PLAIN}", step, [self.data(step)], start, cell.seed)
        train = self.add(Train(job.label, job, {}, self.processes))
        return MadeModel(train, start.parameters)

    def job(
        self, label: str, step: PathStep, sets: Sequence[DataSet], parent: Model, seed: int
    ) -> TrainingJob:
        """Describe the training of one step on the union of `sets`, with nothing to replay.

        Training options are the study's, overridden by the phase's, then by each strategy's in order.
        """
        drawn = [self.materials.drawn(one, seed) for one in sets]
        training = self.phase(step.phase).training.apply_to(self.study.training)
        training = with_resolved_precision(trained_with(step.strategy, training))
        check_compiler(training.compile, compute_device())
        return TrainingJob(
            label=self.seeded(label, seed),
            parent=parent,
            examples=joined([own.rows for own in drawn]),
            data=[own.identity for own in drawn],
            counts=[own.counts for own in drawn],
            choice=step.strategy,
            training=training,
            seed=seed,
            trust_remote_code=self.study.trust_remote_code,
        )

    def phase_stages(self, step: PathStep, job: TrainingJob) -> PlannedPhase:
        """Add what a phase prepares, trains, combines and evaluates."""
        composition = job.composition
        states = {
            part.kind: self.add(Prepare(f"{part.kind} for {job.label}", job, part, self.processes.workers))
            for part in composition.parts
            if part.preparation is not None
        }
        train = self.add(Train(job.label, job, states, self.processes))
        model, combine = MadeModel(train, job.parent.parameters), None
        if composition.combines:
            combine = self.add(
                Combine(job.label, job.parent, model, job.choice, trust_remote_code=job.trust_remote_code)
            )
            model = MadeModel(combine, job.parent.parameters)
        return PlannedPhase(step, train, combine, self.evaluate(job.label, model))

    def measured_cell(self, cell: Cell, phases: Sequence[PlannedPhase], phase_one: Model) -> MeasuredCell:
        """Return a cell as measures see it."""
        sets = [self.instructions(self.data(step), cell.seed) for step in cell.steps]
        named = self.materials.instructions
        has_checkpoint = self.materials.checkpoint is not None
        known = (
            (None if named is None else self.instructions(named, cell.seed)) if has_checkpoint else sets[0]
        )
        first = Start(phase_one, known)
        seen: list[MeasuredPhase] = []
        for number, phase in enumerate(phases):
            starts: dict[str, Start] = {}
            if cell.is_mixed:
                starts = {FROM_PHASE_ONE: first}
            elif number > 0 or has_checkpoint:
                before = Start(seen[-1].model, seen[-1].instructions) if seen else first
                starts = {FROM_PREVIOUS: before, FROM_PHASE_ONE: first}
            many = f", phase {number + 1} of {len(phases)}" if len(phases) > 2 else ""
            own = sets[-1] if cell.is_mixed else sets[number]
            seen.append(MeasuredPhase(cell.label + many, phase.model, own, starts))
        return MeasuredCell(
            label=cell.label,
            is_mixed=cell.is_mixed,
            has_one_seed=len(self.study.seeds) == 1,
            seed=cell.seed,
            phase_one=phase_one,
            phases=tuple(seen),
            prompts=self.materials.prompts,
            tuned_base=partial(self.tuned_base, cell),
            study=self.study,
        )

    def instructions(self, data: DataSet, seed: int) -> Instructions:
        """Return a data set as measures see it."""
        identity = {**data.identity, "seed": seed}
        return Instructions(data.name, data.split(seed).train, identity, data.languages)

    def phase(self, name: str) -> Phase:
        """Return a phase of the study."""
        return next(phase for phase in self.study.phases if phase.name == name)

    def data(self, step: PathStep) -> DataSet:
        """Return the data set of a step."""
        return self.materials.data[step.phase, step.data]

    def seeded(self, label: str, seed: int) -> str:
        """Return a label that names the seed where there are several."""
        return label if len(self.study.seeds) == 1 else f"{label} (seed {seed})"


def listed_stages(plan: Plan) -> dict[str, ListedStage]:
    """Return a plan's stages by their folders, in their order; those that one cell alone needs are called by it.

    Of a cell with several stages of one kind, such as the trainings of three phases, each keeps its own label.
    """
    cells: dict[str, set[str]] = {}
    for cell in plan.cells:
        waiting: list[StageSpec] = list(cell.stages)
        while waiting:
            stage = waiting.pop()
            own = cells.setdefault(stage.fingerprint, set())
            if cell.cell.label not in own:
                own.add(cell.cell.label)
                waiting += stage.parents
    names = {}
    for stage in plan.stages:
        own = cells.get(stage.fingerprint, set())
        names[stage.folder_name] = next(iter(own)) if len(own) == 1 else stage.label
    alike = Counter((stage.kind, names[stage.folder_name]) for stage in plan.stages)
    return {
        stage.folder_name: ListedStage(
            stage.label if alike[stage.kind, own] > 1 else own,
            bool(stage.continues),
            tuple(one.folder_name for one in stage.parents),
        )
        for stage in plan.stages
        for own in (names[stage.folder_name],)
    }


def consumers_of(stages: Sequence[StageSpec]) -> dict[str, list[StageSpec]]:
    """Return, by fingerprint, the stages that read a stage's artefacts."""
    found: dict[str, list[StageSpec]] = {stage.fingerprint: [] for stage in stages}
    for stage in stages:
        for fingerprint in {parent.fingerprint for parent in stage.parents}:
            found[fingerprint].append(stage)
    return found
