"""What the stages of a study found, summed up as its result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import JsonValue

from lingraft.config.schema import StrategyChoice, Study
from lingraft.data.tokenizer_cost import LanguageCost
from lingraft.errors import LingraftError
from lingraft.evaluate.common_items import CommonItems, common_items, unpaired_sentence
from lingraft.evaluate.predictions import Prediction, read_predictions
from lingraft.evaluate.scores import difference_of, difference_over_seeds, differences, retention
from lingraft.intervals.changes import Margins
from lingraft.measures.base import Measured
from lingraft.models.compute import compute_for, device_name
from lingraft.records import from_json
from lingraft.stage import CHECKPOINT, FinishedStage, StageSpec
from lingraft.study.events import Watcher
from lingraft.study.execute import Executor
from lingraft.study.forgetting import PhaseEnd, forgetting_of
from lingraft.study.limits import limit_result
from lingraft.study.materials import Materials
from lingraft.study.plan import Plan, PlannedCell, PlannedPhase
from lingraft.study.result import (
    CellResult,
    Contamination,
    FailedCell,
    PhaseCost,
    PhaseOneResult,
    PhaseResult,
    Precision,
    SeedDifferences,
    StudyResult,
    TrainingCounts,
    gain,
)
from lingraft.study.stages.evaluate import PREDICTIONS, recorded


class Summary:
    """Collects the result of a study while its stages are made."""

    def __init__(
        self, study: Study, materials: Materials, plan: Plan, executor: Executor, watcher: Watcher
    ) -> None:
        self._study = study
        self._materials = materials
        self._plan = plan
        self._executor = executor
        self._watcher = watcher
        self._base_reason: str | None = None
        self._phase_ones: dict[str, PhaseOneResult] = {}
        self._cells: list[CellResult | FailedCell] = []
        self._compared: dict[tuple[str, str], list[tuple[FinishedStage, FinishedStage]]] = {}

    def sum_up_base(self, error: Exception | None) -> None:
        """Take over the base model's evaluation, or why it failed."""
        self._base_reason = None if error is None else self._reported("base", error)

    def sum_up_cell(self, planned: PlannedCell) -> None:
        """Take over a cell whose stages are all done or have failed."""
        cell = planned.cell
        if (evaluation := self._executor.done.get(planned.phase_one_evaluate.fingerprint)) is not None:
            step = None if planned.phase_one is None else planned.phase_one.step
            self._phase_ones.setdefault(
                evaluation.fingerprint,
                PhaseOneResult(
                    data=None if step is None else step.data,
                    strategy=None if step is None else step.strategy.label,
                    seed=None if step is None else cell.seed,
                    scores=recorded(evaluation).scores,
                    predictions=predictions_of(evaluation),
                ),
            )
        failures = (self._executor.failed.get(one.fingerprint) for one in planned.stages)
        try:
            error = next((one for one in failures if one is not None), None)
            if error is not None:
                raise error
            self._cells.append(self._cell(planned))
        except Exception as failure:  # whatever it is, the other cells go on and the reason is shown
            failed = FailedCell(
                data=cell.data,
                strategy=cell.strategy,
                seed=cell.seed,
                options=options_of(cell.steps[-1].strategy),
                reason=self._reported(cell.label, failure),
            )
            self._cells.append(failed)

    def result(
        self,
        folder: Path,
        *,
        tokenizer_cost: dict[str, dict[str, LanguageCost]],
        contamination: Contamination | None,
        language_notes: Sequence[str],
    ) -> StudyResult:
        """Return the result of the study in `folder`, all of whose cells were taken over."""
        base = None if self._plan.base is None else self._executor.done.get(self._plan.base.fingerprint)
        done = [cell for cell in self._cells if isinstance(cell, CellResult)]
        evaluated = compute_for(self._study.evaluate.precision)
        return StudyResult(
            run=str(folder),
            base=None if base is None else recorded(base).scores,
            base_reason=self._base_reason,
            base_predictions=None if base is None else predictions_of(base),
            phase_ones=tuple(self._phase_ones.values()),
            cells=tuple(self._cells),
            over_seeds=tuple(self._over_seeds()),
            limits=dict(self._plan.limits),
            precision=Precision(
                training=tuple(sorted({one.training.precision for cell in done for one in cell.phases})),
                evaluation=evaluated.precision,
                device=device_name(evaluated.device),
            ),
            tokenizer_cost=tokenizer_cost,
            contamination=contamination,
            language_notes=tuple(language_notes),
        )

    def _over_seeds(self) -> Iterator[SeedDifferences]:
        """Yield the mean changes of each data and strategy of which several seeds are done."""
        for (data, strategy), evaluations in self._compared.items():
            if len(evaluations) > 1:
                pairs = [
                    (before, after) for before, after in (common_of(pair).models for pair in evaluations)
                ]
                yield seed_differences(data, strategy, pairs, self._study.limits)

    def _cell(self, planned: PlannedCell) -> CellResult:
        """Return what was found of a cell that is done."""
        cell, done, note = planned.cell, self._executor.done, self._watcher.noted
        last = planned.phases[-1]
        compared = (self._done(planned.phase_one_evaluate), self._done(last.evaluate))
        before, after = (recorded(one) for one in compared)
        common = common_of(compared)
        for task, count in common.unpaired.items():
            judged = after.tasks[task].judged is not None
            note(f"{cell.label}: {unpaired_sentence(task, count, judged=judged)}")
        for problem in common.refused.values():
            note(f"{cell.label}: {problem}")
        ends = [PhaseEnd(one.step.phase, self._done(one.evaluate)) for one in planned.phases]
        if cell.is_mixed:
            ends = [PhaseEnd(cell.strategy, compared[1])]
        elif planned.phase_one is None:
            ends.insert(0, PhaseEnd(self._study.phases[0].name, compared[0]))
        base = None if self._plan.base is None else done.get(self._plan.base.fingerprint)
        forgetting = forgetting_of(self._study, self._materials, cell, ends, base)
        for problem in () if forgetting.ability is None else forgetting.ability.not_paired.values():
            note(f"{cell.label}: the base model stands in no matrix of abilities: {problem}")
        phases = tuple(self._phase(planned, number) for number in range(len(planned.phases)))
        own_stages: dict[str, StageSpec] = {
            one.fingerprint: one for one in (last.train, last.made, last.evaluate)
        }
        for taken in planned.measures.values():
            own_stages |= {one.fingerprint: one for one in taken[-1].stages.values()}
        found = CellResult(
            data=cell.data,
            strategy=cell.strategy,
            seed=cell.seed,
            options=options_of(cell.steps[-1].strategy),
            retention=retention([(common.models[0], common.models[1])]),
            gain=gain(before.scores, after.scores),
            difference=differences(common.models[0], common.models[1], margins=Margins(self._study.limits)),
            limits={
                name: limit_result(limit, difference_of(common.models[0], common.models[1], name, limit))
                for name, limit in self._study.limits.items()
            },
            unpaired=common.unpaired,
            not_paired=common.refused,
            forgetting=forgetting,
            scores=after.scores,
            predictions=predictions_of(compared[1]),
            phase_one_predictions=predictions_of(compared[0]),
            phases=phases,
            training=phases[-1].training,
            cost=self._cost(last),
            checkpoint=None if self._study.keep == "none" else str(self._done(last.made).folder / CHECKPOINT),
            seconds=sum(self._done(one).seconds for one in own_stages.values()),
        )
        self._compared.setdefault((cell.data, cell.strategy), []).append(
            compared
        )  # nothing can fail any more
        return found

    def _phase(self, planned: PlannedCell, number: int) -> PhaseResult:
        """Return what was found of a cell's `number`-th trained phase."""
        phase: PlannedPhase = planned.phases[number]
        measures = {}
        for measure in self._plan.measures:
            taken = planned.measures[measure.name][number]
            found = {place: measure.found(self._done(one)) for place, one in taken.stages.items()}
            measures[measure.name] = Measured(found, taken.reason)
        trained = self._done(phase.train)
        counts = {key: value for key, value in trained.result.items() if key not in ("losses", "plan")}
        try:
            training = from_json(TrainingCounts, counts)
        except ValueError as error:
            raise LingraftError(
                f"{trained.folder}: was recorded by another version of lingraft ({error}); run the study anew, under "
                "another name."
            ) from None
        return PhaseResult(
            phase=phase.step.phase,
            data=phase.step.data,
            strategy=phase.step.strategy.label,
            options=options_of(phase.step.strategy),
            measures=measures,
            scores=recorded(self._done(phase.evaluate)).scores,
            training=training,
            losses=tuple((step, loss) for step, loss in trained.result["losses"]),
        )

    def _cost(self, phase: PlannedPhase) -> PhaseCost:
        """Return what a phase took: of the machine's state, unlike all else in a result."""
        timing = self._done(phase.train).timing
        states = [self._executor.done.get(one.fingerprint) for one in phase.train.states.values()]
        prepared = [one for one in states if one is not None]
        return PhaseCost(
            prepare_seconds=sum((stage.seconds for stage in prepared), 0.0),
            training_seconds=timing["training_seconds"],
            resumed_from=timing["resumed_from"],
            combine_seconds=0.0 if phase.combine is None else self._done(phase.combine).seconds,
            peak_bytes=max([timing["peak_bytes"], *(stage.timing["peak_bytes"] for stage in prepared)]),
        )

    def _done(self, stage: StageSpec) -> FinishedStage:
        return self._executor.done[stage.fingerprint]

    def _reported(self, label: str, error: Exception) -> str:
        """Report that something failed, and return the reason."""
        reason = str(error) if isinstance(error, LingraftError) else f"{type(error).__name__}: {error}"
        self._watcher.cell_failed(label, reason, error)
        return reason


def seed_differences(
    data: str,
    strategy: str,
    pairs: Sequence[tuple[Sequence[Prediction], Sequence[Prediction]]],
    limits: Mapping[str, float],
) -> SeedDifferences:
    """Return the mean change over seeds, of which each has its own two models."""
    margins = Margins(limits)
    found = {}
    for name, limit in limits.items():
        by_seed = [difference_of(before, after, name, limit) for before, after in pairs]
        mean = None if None in by_seed else difference_over_seeds(pairs, name, limit)
        found[name] = limit_result(limit, mean, [limit_result(limit, one) for one in by_seed])
    return SeedDifferences(
        data=data,
        strategy=strategy,
        seeds=len(pairs),
        task_ability=difference_over_seeds(pairs, "task_ability", margins.of("task_ability")),
        language_ability=difference_over_seeds(pairs, "language_ability", margins.of("language_ability")),
        retention=retention(pairs),
        limits=found,
    )


def common_of(evaluations: Sequence[FinishedStage]) -> CommonItems:
    """Return the models' predictions, on the items that all of them have a score of."""
    read = [read_predictions(one.folder / PREDICTIONS) for one in evaluations]
    return common_items(read, [recorded(one).tasks for one in evaluations])


def predictions_of(evaluation: FinishedStage) -> str:
    """Return where an evaluation's answers lie in the run folder, which may be moved."""
    return f"{evaluation.folder.parent.name}/{evaluation.folder.name}/{PREDICTIONS}"


def options_of(choice: StrategyChoice) -> dict[str, JsonValue]:
    """Return the options that the study file gives; of a composition by strategy."""
    if len(choice.parts) == 1:
        return dict(choice.parts[0].options)
    return {part.kind: dict(part.options) for part in choice.parts}
