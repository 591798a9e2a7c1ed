"""What the stages of a study found, summed up as its result."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydantic import JsonValue

from lingraft.config.schema import StrategyChoice, Study
from lingraft.data.tokenizer_cost import LanguageCost
from lingraft.errors import LingraftError
from lingraft.evaluate.common_items import CommonItems, common_items, unpaired_sentence
from lingraft.evaluate.predictions import Prediction, read_predictions
from lingraft.evaluate.scores import difference_of, difference_over_seeds, differences, retention
from lingraft.evaluate.shown_names import names_of_records, renamed
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
    PendingCell,
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
from lingraft.study.unused import UnusedStage

Outcome = FinishedStage | Exception | None  # of a stage; None: it is not made yet


@dataclass(frozen=True)
class _SummedUp:
    """What was found of a cell, and the outcomes of the stages that it was found in."""

    outcomes: tuple[Outcome, ...]
    cell: CellResult | FailedCell
    compared: tuple[FinishedStage, FinishedStage] | None = None


class Summary:
    """The result of a study, as far as its stages are made."""

    def __init__(
        self, study: Study, materials: Materials, plan: Plan, executor: Executor, watcher: Watcher
    ) -> None:
        self._study = study
        self._materials = materials
        self._plan = plan
        self._executor = executor
        self._watcher = watcher
        self._summed_up: dict[
            int, _SummedUp
        ] = {}  # by the cell's number: what stays as it is while others are made
        self._means: dict[tuple[str, str], tuple[list[_SummedUp], SeedDifferences]] = {}

    @property
    def known(self) -> int:
        """How much of the result is known: the base, Phase 1 models, and cells with no stage left to be made."""
        evaluations = {cell.phase_one_evaluate.fingerprint for cell in self._plan.cells}
        evaluations |= set() if self._plan.base is None else {self._plan.base.fingerprint}
        settled = (all(map(self._executor.is_settled, cell.stages)) for cell in self._plan.cells)
        return len(evaluations & self._executor.done.keys()) + sum(settled)

    def _sum_up(self, number: int) -> CellResult | FailedCell | PendingCell:
        """Return what is known of a cell; anew where one of its stages was made again since."""
        planned = self._plan.cells[number]
        done, failed = self._executor.done, self._executor.failed
        outcomes = tuple(done.get(one.fingerprint) or failed.get(one.fingerprint) for one in planned.stages)
        base = None if self._plan.base is None else self._plan.base.fingerprint
        # The base stands in the cell's matrices, and its scores may come last, where they are made again.
        basis = (*outcomes, done.get(base or "") or failed.get(base or ""))
        known = self._summed_up.get(number)
        if known is not None and all(map(operator.is_, known.outcomes, basis)):
            return known.cell
        cell = planned.cell
        options = options_of(cell.steps[-1].strategy)
        if any(one is None for one in outcomes):
            return PendingCell(data=cell.data, strategy=cell.strategy, seed=cell.seed, options=options)
        try:
            error = next((one for one in outcomes if isinstance(one, Exception)), None)
            if error is not None:
                raise error
            found = _SummedUp(
                basis,
                self._cell(planned),
                (self._done(planned.phase_one_evaluate), self._done(planned.phases[-1].evaluate)),
            )
        except Exception as failure:  # whatever it is, the other cells go on and the reason is shown
            found = _SummedUp(
                basis,
                FailedCell(
                    data=cell.data,
                    strategy=cell.strategy,
                    seed=cell.seed,
                    options=options,
                    reason=self._reported(cell.label, failure),
                ),
            )
        self._summed_up[number] = found
        return found.cell

    def _phase_ones(self) -> Iterator[PhaseOneResult]:
        """Yield every different Phase 1 model that is evaluated."""
        seen = set()
        for planned in self._plan.cells:
            evaluation = self._executor.done.get(planned.phase_one_evaluate.fingerprint)
            if evaluation is None or evaluation.fingerprint in seen:
                continue
            seen.add(evaluation.fingerprint)
            own = planned.phase_one
            yield PhaseOneResult(
                data=None if own is None else own.step.data,
                strategy=None if own is None else own.step.strategy.label,
                seed=None if own is None else planned.cell.seed,
                scores=recorded(evaluation).scores,
                predictions=predictions_of(evaluation),
                checkpoint=None if own is None else self._checkpoint(own),
            )

    def result(
        self,
        folder: Path,
        *,
        tokenizer_cost: dict[str, dict[str, LanguageCost]],
        contamination: Contamination | None,
        language_notes: Sequence[str],
        unused: tuple[UnusedStage, ...],
    ) -> StudyResult:
        """Return the result of the study in `folder` as far as it is made."""
        base = None if self._plan.base is None else self._executor.done.get(self._plan.base.fingerprint)
        failure = None if self._plan.base is None else self._executor.failed.get(self._plan.base.fingerprint)
        cells = tuple(self._sum_up(number) for number in range(len(self._plan.cells)))
        done = [cell for cell in cells if isinstance(cell, CellResult)]
        evaluated = compute_for(self._study.evaluate.precision)
        return StudyResult(
            run=str(folder),
            base=None if base is None else recorded(base).scores,
            base_reason=None if failure is None else reason_of(failure),
            base_predictions=None if base is None else predictions_of(base),
            phase_ones=tuple(self._phase_ones()),
            cells=cells,
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
            unused=unused,
        )

    def _over_seeds(self) -> Iterator[SeedDifferences]:
        """Yield the mean changes of each data and strategy of which several seeds are done."""
        groups: dict[tuple[str, str], list[_SummedUp]] = {}
        for number in range(len(self._plan.cells)):
            own = self._summed_up.get(number)
            if own is not None and own.compared is not None:
                groups.setdefault((own.cell.data, own.cell.strategy), []).append(own)
        for (data, strategy), cells in groups.items():
            if len(cells) == 1:
                continue
            known = self._means.get((data, strategy))
            if known is None or len(known[0]) != len(cells) or not all(map(operator.is_, known[0], cells)):
                evaluations = [own.compared for own in cells if own.compared is not None]
                pairs = [
                    (before, after) for before, after in (common_of(pair).models for pair in evaluations)
                ]
                known = (cells, seed_differences(data, strategy, pairs, self._study.limits))
                self._means[data, strategy] = known
            yield known[1]

    def _cell(self, planned: PlannedCell) -> CellResult:
        """Return what was found of a cell that is done."""
        cell, done = planned.cell, self._executor.done
        note = partial(self._watcher.noted_of, cell.label)
        last = planned.phases[-1]
        compared = (self._done(planned.phase_one_evaluate), self._done(last.evaluate))
        before, after = (recorded(one) for one in compared)
        common = common_of(compared)
        names = names_of_records([before.tasks, after.tasks])
        for task, count in common.unpaired.items():
            judged = after.tasks[task].judged is not None
            note(renamed(unpaired_sentence(task, count, judged=judged), names))
        for problem in common.refused.values():
            note(renamed(problem, names))
        ends = [PhaseEnd(one.step.phase, self._done(one.evaluate)) for one in planned.phases]
        if cell.is_mixed:
            ends = [PhaseEnd(cell.strategy, compared[1])]
        elif planned.phase_one is None:
            ends.insert(0, PhaseEnd(self._study.phases[0].name, compared[0]))
        base = None if self._plan.base is None else done.get(self._plan.base.fingerprint)
        forgetting = forgetting_of(self._study, self._materials, cell, ends, base)
        for problem in () if forgetting.ability is None else forgetting.ability.not_paired.values():
            note(f"the base model stands in no matrix of abilities: {problem}")
        phases = tuple(self._phase(planned, number) for number in range(len(planned.phases)))
        own_stages: dict[str, StageSpec] = {
            one.fingerprint: one for one in (last.train, last.made, last.evaluate)
        }
        for taken in planned.measures.values():
            own_stages |= {one.fingerprint: one for one in taken[-1].stages.values()}
        return CellResult(
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
            checkpoint=phases[-1].checkpoint,
            seconds=sum(self._done(one).seconds for one in own_stages.values()),
        )

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
            checkpoint=self._checkpoint(phase),
        )

    def _checkpoint(self, phase: PlannedPhase) -> str | None:
        """Return where a phase's final model lies in the run folder; None: `keep` discards or discarded it."""
        made = phase.made
        is_kept = made.fingerprint in self._plan.kept
        if not is_kept or self._executor.store.find(made, with_artefacts=True) is None:
            return None
        return _in_run_folder(self._done(made), CHECKPOINT)

    def _cost(self, phase: PlannedPhase) -> PhaseCost:
        """Return what a phase took: of the machine's state, unlike all else in a result."""
        trained = self._done(phase.train)
        timing = trained.timing  # empty where it is lost
        states = [self._executor.done.get(one.fingerprint) for one in phase.train.states.values()]
        prepared = [one for one in states if one is not None]
        return PhaseCost(
            prepare_seconds=sum((stage.seconds for stage in prepared), 0.0),
            training_seconds=timing.get("training_seconds", 0.0),
            resumed_from=timing.get("resumed_from"),
            combine_seconds=0.0 if phase.combine is None else self._done(phase.combine).seconds,
            peak_bytes=max(stage.timing.get("peak_bytes", 0) for stage in (trained, *prepared)),
            mfu=timing.get("mfu"),
        )

    def _done(self, stage: StageSpec) -> FinishedStage:
        return self._executor.done[stage.fingerprint]

    def _reported(self, label: str, error: Exception) -> str:
        """Report that something failed, and return the reason."""
        reason = reason_of(error)
        self._watcher.cell_failed(label, reason, error)
        return reason


def reason_of(error: Exception) -> str:
    """Return what went wrong as a result says it."""
    return str(error) if isinstance(error, LingraftError) else f"{type(error).__name__}: {error}"


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


def common_of(evaluations: Sequence[FinishedStage]) -> CommonItems[Prediction]:
    """Return the models' predictions, on the items that all of them have a score of."""
    read = [read_predictions(one.artefact(PREDICTIONS)) for one in evaluations]
    return common_items(read, [recorded(one).tasks for one in evaluations])


def predictions_of(evaluation: FinishedStage) -> str:
    """Return where an evaluation's answers lie in the run folder, which may be moved."""
    return _in_run_folder(evaluation, PREDICTIONS)


def _in_run_folder(stage: FinishedStage, name: str) -> str:
    return f"{stage.folder.parent.name}/{stage.folder.name}/{name}"


def options_of(choice: StrategyChoice) -> dict[str, JsonValue]:
    """Return the options that the study file gives; of a composition by strategy."""
    if len(choice.parts) == 1:
        return dict(choice.parts[0].options)
    return {part.kind: dict(part.options) for part in choice.parts}
