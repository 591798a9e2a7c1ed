"""Run a study: every cell of the grid, stage by stage, and the result as one object.

A cell that fails does not stop the others. A study that was stopped goes on at the first unfinished stage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from lingraft.config.load import save_study
from lingraft.config.schema import PLAIN, PathStep, Phase, StrategyChoice, StrategySpec, Study, Training
from lingraft.data.encodings import discard_encodings
from lingraft.data.example_table import joined
from lingraft.data.tokenizer_cost import LanguageCost
from lingraft.errors import ConfigError, LingraftError, ModelError, did_you_mean
from lingraft.evaluate.checks import check_tasks
from lingraft.evaluate.common_items import CommonItems, common_items, unpaired_sentence
from lingraft.evaluate.predictions import read_predictions
from lingraft.evaluate.results import EvaluationRecord, Forgetting
from lingraft.evaluate.scores import difference_over_seeds, differences
from lingraft.evaluate.selection import language_notes, resolve_suites
from lingraft.measures import REGISTRY
from lingraft.measures.base import FROM_PHASE_ONE, FROM_PREVIOUS, Measured
from lingraft.measures.mpd_pair import PAIR
from lingraft.models.compute import compute_for, device_name
from lingraft.models.vllm import check_vllm
from lingraft.records import from_json
from lingraft.stage import CHECKPOINT, FinishedStage, MadeModel, Model
from lingraft.strategies.composition import build
from lingraft.study.contamination import tell_contamination
from lingraft.study.counting import Key, count_stages, mixed_key, needed_keys, prepare_keys, train_key
from lingraft.study.events import Watcher
from lingraft.study.execute import Executor
from lingraft.study.forgetting import PhaseEnd, forgetting_of
from lingraft.study.grid import Cell
from lingraft.study.materials import (
    DataSet,
    Materials,
    check_added_tokens,
    gather,
    past_rows,
    tell_costs,
)
from lingraft.study.measures import Measures, Steps, des_encoder
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
    retention,
    write_result,
)
from lingraft.study.stages.combine import Combine
from lingraft.study.stages.evaluate import PREDICTIONS, Evaluate, Questions, questions
from lingraft.study.stages.job import TrainingJob
from lingraft.study.stages.prepare import Prepare
from lingraft.study.stages.train import Train
from lingraft.study.store import Store
from lingraft.train.phase import with_resolved_precision
from lingraft.train.processes import Processes


def run_study(
    study: Study,
    *,
    runs: Path = Path("runs"),
    base_folder: Path = Path(),
    watcher: Watcher | None = None,
    processes: Processes | None = None,
) -> StudyResult:
    """Run (or go on with) a study and return its result.

    Args:
        study: The study, checked.
        runs: Folder of all runs; this one's is `runs/<study.name>`.
        base_folder: What relative paths of data, prompts and tasks are relative to; those of models and of strategies'
            files are relative to the working directory. On the command line both are the same folder.
        watcher: Is told what happens.
        processes: How many processes train a phase; None: this one. Results differ by rounding, so records do not
            depend on it, but an interrupted phase is only continued by as many as began it.

    Returns:
        What `lingraft run --json` prints (docs/report.md); it is also written to `result.json` in the run folder.
        Cells that failed are in it, with their reason.

    Raises:
        ConfigError, DataError, ModelError: Something is wrong with the study as a whole, before any training.
    """
    watcher = watcher or Watcher()
    processes = processes or Processes()
    processes.check()
    folder = runs / study.name
    _check_place(folder)
    _check_trackers(study)
    materials = gather(study, base_folder, watcher)
    _check_sharding(materials.cells, processes)
    check_added_tokens(materials, trust_remote_code=study.trust_remote_code)
    evaluation = resolve_suites(study.evaluate, base_folder, languages=materials.languages)
    check_tasks(evaluation, base_folder, languages=materials.languages)
    notes = language_notes(study.evaluate, evaluation, materials.languages)
    for note in notes:
        watcher.noted(note)
    if evaluation.backend == "vllm":
        check_vllm()
    study = study.model_copy(update={"evaluate": evaluation})
    encoder = des_encoder(study, materials, watcher)
    costs = tell_costs(materials, watcher, trust_remote_code=study.trust_remote_code)
    with Store(folder) as store:
        save_study(study, folder / "study.yaml")
        executor = Executor(store, watcher)
        measures = Measures(study, materials, executor, encoder)
        contamination = tell_contamination(study, materials, store, base_folder, watcher)
        asked = questions(
            evaluation,
            materials.languages,
            materials.held_out,
            base_folder=base_folder,
            cache=store.cache,
        )
        runner = _Runner(study, materials, executor, measures, watcher, asked, processes)
        watcher.study_started(count_stages(study, materials, encoder))
        result = runner.run(folder, costs, contamination, notes)
        write_result(result)
        discard_encodings(store.cache)
    return result


def _check_place(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{folder}: the run's folder cannot be made ({error.strerror}: {error.filename}); give other --runs."
        ) from None


def _check_sharding(cells: Sequence[Cell], processes: Processes) -> None:
    """Refuse, before anything is prepared, what training on a divided model would refuse."""
    if not processes.sharded:
        return
    choices = {step.strategy.label: step.strategy for cell in cells for step in cell.steps}
    whole = [label for label, one in choices.items() if any(part.whole_tensors for part in build(one).parts)]
    if whole:
        raise ConfigError(
            f"--sharded divides weights between processes, but whole ones are needed by {', '.join(map(repr, whole))}, "
            "which freeze single cells or pull weights. Train on processes without --sharded, or leave these out."
        )


def _check_trackers(study: Study) -> None:
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    overrides = [phase.training.report_to or () for phase in study.phases]
    unknown = sorted({*study.training.report_to, *chain(*overrides)} - set(INTEGRATION_TO_CALLBACK))
    if unknown:
        raise ConfigError(
            f"training.report_to: {unknown[0]!r}: {did_you_mean(unknown[0], INTEGRATION_TO_CALLBACK)}"
        )


@dataclass(frozen=True)
class _Trained:
    """A trained phase of a cell."""

    step: PathStep
    stage: FinishedStage
    made: FinishedStage  # holds the phase's final model: the training, or the combination that follows
    prepared: tuple[FinishedStage, ...]
    model: Model
    evaluation: FinishedStage


@dataclass(frozen=True)
class _PhaseOne:
    """Phase 1 of a cell: what its differences are taken from. `step` is None for a checkpoint."""

    step: PathStep | None
    model: Model
    evaluation: FinishedStage


@dataclass
class _Runner:
    study: Study
    materials: Materials
    executor: Executor
    measures: Measures
    watcher: Watcher
    questions: Questions
    processes: Processes
    _made: dict[Key, list[FinishedStage]] = field(default_factory=dict)
    _kept: set[str] = field(default_factory=set)
    _base: FinishedStage | None = None
    _base_reason: str | None = None
    _phase_ones: dict[str, PhaseOneResult] = field(default_factory=dict)
    _compared: dict[tuple[str, str], list[tuple[FinishedStage, FinishedStage]]] = field(default_factory=dict)

    def run(
        self,
        folder: Path,
        costs: dict[str, dict[str, LanguageCost]],
        contamination: Contamination | None,
        notes: Sequence[str],
    ) -> StudyResult:
        self._evaluate_base()
        cells: list[CellResult | FailedCell] = []
        failed: list[Cell] = []
        for number, cell in enumerate(self.materials.cells, start=1):
            cells.append(self._attempt(cell))
            if isinstance(cells[-1], FailedCell):
                failed.append(cell)
            self._discard_but_for([*failed, *self.materials.cells[number:]])
        done = [cell for cell in cells if isinstance(cell, CellResult)]
        evaluated = compute_for(self.study.evaluate.precision)
        return StudyResult(
            run=str(folder),
            base=None if self._base is None else _evaluation(self._base).scores,
            base_reason=self._base_reason,
            base_predictions=None if self._base is None else _predictions_of(self._base),
            phase_ones=tuple(self._phase_ones.values()),
            cells=tuple(cells),
            over_seeds=tuple(self._over_seeds()),
            precision=Precision(
                training=tuple(sorted({one.training.precision for cell in done for one in cell.phases})),
                evaluation=evaluated.precision,
                device=device_name(evaluated.device),
            ),
            tokenizer_cost=costs,
            contamination=contamination,
            language_notes=tuple(notes),
        )

    def _over_seeds(self) -> Iterator[SeedDifferences]:
        """Yield the mean changes of each data and strategy that several seeds are done of, with intervals."""
        for (data, strategy), evaluations in self._compared.items():
            if len(evaluations) > 1:
                pairs = [(before, after) for before, after in (_common(pair).models for pair in evaluations)]
                yield SeedDifferences(
                    data=data,
                    strategy=strategy,
                    seeds=len(pairs),
                    task_ability=difference_over_seeds(pairs, "task_ability"),
                    language_ability=difference_over_seeds(pairs, "language_ability"),
                )

    def _evaluate_base(self) -> None:
        if self.materials.base is None:
            return
        try:
            self._base = self._evaluate("base", self.materials.base)
        except ModelError:  # every cell starts from a model that cannot be used
            raise
        except Exception as error:  # as for a cell: the others go on
            self._base_reason = self._tell_failure("base", error)

    def _tell_failure(self, label: str, error: Exception) -> str:
        """Tell that something failed, and return the reason."""
        reason = str(error) if isinstance(error, LingraftError) else f"{type(error).__name__}: {error}"
        self.watcher.cell_failed(label, reason, error)
        return reason

    def _discard_but_for(self, pending: Sequence[Cell]) -> None:
        """Discard the checkpoints and states that are not kept and no pending cell needs: all at once fill a disk."""
        if self.study.keep == "all":
            return
        kept = self._kept if self.study.keep == "final" else set()
        needed = {key for cell in pending for key in (*needed_keys(self.study, cell), _pair_key(cell))}
        for key in self._made.keys() - needed:
            for stage in self._made.pop(key):
                if stage.fingerprint not in kept:
                    self.executor.store.discard(stage)

    def _attempt(self, cell: Cell) -> CellResult | FailedCell:
        try:
            return self._run_cell(cell)
        except Exception as error:  # whatever it is, the other cells go on and the reason is shown
            return FailedCell(
                data=cell.data,
                strategy=cell.strategy,
                seed=cell.seed,
                options=_options(cell.steps[-1].strategy),
                reason=self._tell_failure(cell.label, error),
            )

    def _run_cell(self, cell: Cell) -> CellResult:
        phase_one, trained = self._train_cell(cell)
        last = trained[-1]
        self._keep(last)
        before, after = _evaluation(phase_one.evaluation).scores, _evaluation(last.evaluation)
        similarities = self.measures.similarities(cell)
        distances = self.measures.distances(cell, phase_one.model, [one.model for one in trained])
        drift = self.measures.drift(cell, phase_one.model, last.model)
        pair = self._pair(cell, phase_one.model)
        combination = None if last.made is last.stage else last.made
        own = [last.stage, combination, last.evaluation, distances[-1].from_phase_one, drift, pair]
        compared = (phase_one.evaluation, last.evaluation)
        common = _common(compared)
        for task, count in common.unpaired.items():
            judged = after.tasks[task].judged is not None
            self.watcher.noted(f"{cell.label}: {unpaired_sentence(task, count, judged=judged)}")
        for problem in common.refused.values():
            self.watcher.noted(f"{cell.label}: {problem}")
        self._compared.setdefault((cell.data, cell.strategy), []).append(compared)
        return CellResult(
            data=cell.data,
            strategy=cell.strategy,
            seed=cell.seed,
            options=_options(cell.steps[-1].strategy),
            retention=retention(before, after.scores),
            gain=gain(before, after.scores),
            difference=differences(*common.models),
            unpaired=common.unpaired,
            not_paired=common.refused,
            forgetting=self._forgetting(cell, phase_one, trained),
            scores=after.scores,
            predictions=_predictions_of(last.evaluation),
            phase_one_predictions=_predictions_of(phase_one.evaluation),
            phases=tuple(
                self._phase_result(one, des, mpd, *((drift, pair) if one is last else (None, None)))
                for one, des, mpd in zip(trained, similarities, distances, strict=True)
            ),
            training=_training_counts(last.stage),
            cost=_cost(last),
            checkpoint=None if self.study.keep == "none" else str(last.made.folder / CHECKPOINT),
            seconds=sum(stage.seconds for stage in own if stage is not None),
        )

    def _phase_result(
        self, one: _Trained, des: Steps, mpd: Steps, drift: FinishedStage | None, pair: FinishedStage | None
    ) -> PhaseResult:
        """Return the result of one trained phase of a cell; `drift` and `pair` are those of its last phase."""
        stages = {
            "des": {FROM_PREVIOUS: des.from_previous, FROM_PHASE_ONE: des.from_phase_one},
            "mpd": {FROM_PREVIOUS: mpd.from_previous, FROM_PHASE_ONE: mpd.from_phase_one},
            "mpd_pair": {PAIR: pair},
            "drift": {FROM_PHASE_ONE: drift},
        }
        measured: dict[str, Measured] = {}
        for name in self.study.measures:
            measure = REGISTRY.get(name)()
            found = {place: measure.found(one) for place, one in stages[name].items() if one is not None}
            measured[name] = Measured(found, des.reason if name == "des" else None)
        return PhaseResult(
            phase=one.step.phase,
            data=one.step.data,
            strategy=one.step.strategy.label,
            options=_options(one.step.strategy),
            measures=measured,
            scores=_evaluation(one.evaluation).scores,
            training=_training_counts(one.stage),
            losses=tuple((step, loss) for step, loss in one.stage.result["losses"]),
        )

    def _forgetting(self, cell: Cell, phase_one: _PhaseOne, trained: Sequence[_Trained]) -> Forgetting:
        ends = [PhaseEnd(one.step.phase, one.evaluation) for one in trained]
        if cell.is_mixed:
            ends = [PhaseEnd(cell.strategy, trained[-1].evaluation)]
        elif phase_one.step is None:
            ends.insert(0, PhaseEnd(self.study.phases[0].name, phase_one.evaluation))
        found = forgetting_of(self.study, self.materials, cell, ends, self._base)
        for problem in () if found.ability is None else found.ability.not_paired.values():
            self.watcher.noted(f"{cell.label}: the base model stands in no matrix of abilities: {problem}")
        return found

    def _train_cell(self, cell: Cell) -> tuple[_PhaseOne, list[_Trained]]:
        """Train a cell's phases; return Phase 1, and the phases that are the cell's own."""
        parent, trained = self._start(), []
        phase_one: _PhaseOne | None = None
        if self.materials.checkpoint is not None:
            phase_one = _PhaseOne(None, parent, self._evaluate(f"phase {self.study.phases[0].name}", parent))
            self._remember(phase_one, cell.seed)
        for index in range(1 if cell.is_mixed else len(cell.steps)):
            one = self._train_step(cell, index, parent)
            trained.append(one)
            parent = one.model
            if phase_one is None:
                phase_one = _PhaseOne(one.step, one.model, one.evaluation)
                self._keep(one)
                self._remember(phase_one, cell.seed)
        assert phase_one is not None  # a cell has at least one step
        return phase_one, [self._train_mixed(cell)] if cell.is_mixed else trained

    def _remember(self, phase_one: _PhaseOne, seed: int) -> None:
        """Keep each different Phase 1 model's scores for the result, in the order of the cells."""
        step = phase_one.step
        entry = PhaseOneResult(
            data=None if step is None else step.data,
            strategy=None if step is None else step.strategy.label,
            seed=None if step is None else seed,
            scores=_evaluation(phase_one.evaluation).scores,
            predictions=_predictions_of(phase_one.evaluation),
        )
        self._phase_ones.setdefault(phase_one.evaluation.fingerprint, entry)

    def _start(self) -> Model:
        start = self.materials.checkpoint or self.materials.base
        if start is None:
            raise LingraftError("the study has neither a base model nor a checkpoint.")
        return start

    def _train_step(self, cell: Cell, index: int, parent: Model) -> _Trained:
        step = cell.steps[index]
        data = self._data(step)
        taken = past_rows(self.study, index, step)
        english = old = None
        if "english" in taken:
            source = self._phase(step.phase).data[step.data]
            english = self.materials.drawn_english(source, data, cell.seed)
        if "previous_data" in taken:
            old = self.materials.drawn(self._data(cell.steps[0]), cell.seed)
        english_identity = None if english is None else english.identity
        old_identity = None if old is None else old.identity
        base = self.materials.base
        label = " > ".join(f"{s.phase}:{s.data}/{s.strategy.label}" for s in cell.steps[: index + 1])
        job = self._job(label, step, [data], parent, cell.seed)
        job = replace(
            job,
            counts=[*job.counts, *([] if english is None else [english.counts])],
            base=base,
            previous_data=() if old is None else old.rows,
            english=() if english is None else english.rows,
            replay_data={
                "previous_data": old_identity,
                "english": english_identity,
                "old_english": english_identity if old_identity is None else old_identity,
            },
        )
        steps = cell.steps[: index + 1]
        states = prepare_keys(self.study, steps, cell.seed)
        return self._train_and_evaluate(step, job, train_key(steps, cell.seed), states)

    def _train_mixed(self, cell: Cell) -> _Trained:
        """Train one phase over the union of the path's sets, from the base.

        It sees each set as often as that set's own phase does: where their epochs differ, in one pass over the
        sets repeated that many times. `mixed: {training: {epochs: N}}` asks for N passes over all of them.
        """
        step = cell.steps[-1]
        label = "+".join(f"{one.phase}:{one.data}" for one in cell.steps) + f"/{step.strategy.label}"
        sets = [self._data(one) for one in cell.steps]
        job = self._job(label, step, sets, self._start(), cell.seed)
        epochs = [self._phase(one.phase).training.apply_to(self.study.training).epochs for one in cell.steps]
        asked = any(part.training.epochs is not None for part in step.strategy.parts)
        if len(set(epochs)) > 1 and not asked:
            job = self._repeated(job, sets, epochs)
        return self._train_and_evaluate(step, job, mixed_key(cell), {})

    def _repeated(self, job: TrainingJob, sets: Sequence[DataSet], epochs: Sequence[int]) -> TrainingJob:
        told = ", ".join(f"{one.name} {times} times" for one, times in zip(sets, epochs, strict=True))
        self.watcher.noted(f"{job.label}: one pass over {told}, as often as in their own phases.")
        rows = [self.materials.drawn(one, job.seed).rows for one in sets]
        return replace(
            job,
            examples=joined([kept for kept, times in zip(rows, epochs, strict=True) for _ in range(times)]),
            data=[one for one, times in zip(job.data, epochs, strict=True) for _ in range(times)],
            training=job.training.model_copy(update={"epochs": 1}),
        )

    def _job(
        self, label: str, step: PathStep, sets: Sequence[DataSet], parent: Model, seed: int
    ) -> TrainingJob:
        """Describe the training of one step on the union of `sets`, with nothing to replay."""
        drawn = [self.materials.drawn(one, seed) for one in sets]
        return TrainingJob(
            label=self._seeded(label, seed),
            parent=parent,
            examples=joined([own.rows for own in drawn]),
            data=[own.identity for own in drawn],
            counts=[own.counts for own in drawn],
            choice=step.strategy,
            training=_training(self.study, self._phase(step.phase), step.strategy),
            seed=seed,
            trust_remote_code=self.study.trust_remote_code,
        )

    def _train_and_evaluate(
        self, step: PathStep, job: TrainingJob, key: Key, states: Mapping[str, Key]
    ) -> _Trained:
        """Train, combine and evaluate; `key` is the training's, `states` those of what its strategies prepare."""
        job = replace(job, training=with_resolved_precision(job.training))
        composition = job.composition
        prepares = {
            part.kind: Prepare(f"{part.kind} for {job.label}", job, part)
            for part in composition.parts
            if part.preparation is not None
        }
        train = Train(job.label, job, prepares, self.processes)
        stage = made = self.executor.make(train)
        model = MadeModel(train, job.parent.parameters)
        self._remember_made(key, stage)
        if composition.combines:
            combine = Combine(job.label, job, model)
            made = self.executor.make(combine)
            model = MadeModel(combine, job.parent.parameters)
            self._remember_made(key, made)
        found = {kind: self.executor.store.find(prepare) for kind, prepare in prepares.items()}
        prepared = {kind: state for kind, state in found.items() if state is not None}
        for kind, state in prepared.items():
            self._remember_made(states[kind], state)
        evaluation = self._evaluate(job.label, model)
        return _Trained(step, stage, made, tuple(prepared.values()), model, evaluation)

    def _keep(self, one: _Trained) -> None:
        """Note what stays under `keep: final`: a phase's final model, and the states that its strategies prepared."""
        self._kept.update(stage.fingerprint for stage in (one.made, *one.prepared))

    def _remember_made(self, key: Key, stage: FinishedStage) -> None:
        stages = self._made.setdefault(key, [])
        if stage.fingerprint not in {one.fingerprint for one in stages}:
            stages.append(stage)

    def _evaluate(self, label: str, model: Model) -> FinishedStage:
        evaluate = Evaluate(label, model, self.questions, self.study.trust_remote_code)
        return self.executor.make(evaluate)

    def _pair(self, cell: Cell, phase_one: Model) -> FinishedStage | None:
        """The paper's MPD of a data pair: the base tuned on Phase 1's set against the base tuned on the last set."""
        if "mpd_pair" not in self.study.measures or cell.is_mixed:
            return None
        plain = StrategyChoice(parts=(StrategySpec(kind=PLAIN),))
        step = cell.steps[-1].model_copy(update={"strategy": plain})
        job = self._job(f"base:{step.data}/{PLAIN}", step, [self._data(step)], self._start(), cell.seed)
        train = Train(
            job.label, replace(job, training=with_resolved_precision(job.training)), {}, self.processes
        )
        self._remember_made(_pair_key(cell), self.executor.make(train))
        return self.measures.distance(f"pair {cell.label}", phase_one, MadeModel(train))

    def _phase(self, name: str) -> Phase:
        return next(phase for phase in self.study.phases if phase.name == name)

    def _data(self, step: PathStep) -> DataSet:
        return self.materials.data[step.phase, step.data]

    def _seeded(self, label: str, seed: int) -> str:
        return label if len(self.study.seeds) == 1 else f"{label} (seed {seed})"


def _common(evaluations: Sequence[FinishedStage]) -> CommonItems:
    """Read the models' predictions, on the items that all of them have a score of."""
    read = [read_predictions(one.folder / PREDICTIONS) for one in evaluations]
    return common_items(read, [_evaluation(one).tasks for one in evaluations])


def _evaluation(stage: FinishedStage) -> EvaluationRecord:
    return from_json(EvaluationRecord, stage.result)


def _predictions_of(evaluation: FinishedStage) -> str:
    """Return where an evaluation's answers lie in the run folder, which may be moved."""
    return f"{evaluation.folder.parent.name}/{evaluation.folder.name}/{PREDICTIONS}"


def _pair_key(cell: Cell) -> Key:
    """Return the key of the base tuned on a cell's last set, for the paper's MPD of a data pair."""
    return "pair", cell.steps[-1].phase, cell.steps[-1].data, cell.seed


def _training_counts(stage: FinishedStage) -> TrainingCounts:
    counts = {key: value for key, value in stage.result.items() if key not in ("losses", "plan")}
    return from_json(TrainingCounts, counts)


def _cost(one: _Trained) -> PhaseCost:
    """Return what a phase's strategy took: of the machine's state, unlike all else in a result."""
    timing = one.stage.timing
    return PhaseCost(
        prepare_seconds=sum((stage.seconds for stage in one.prepared), 0.0),
        training_seconds=timing["training_seconds"],
        resumed_from=timing["resumed_from"],
        combine_seconds=0.0 if one.made is one.stage else one.made.seconds,
        peak_bytes=max([timing["peak_bytes"], *(stage.timing["peak_bytes"] for stage in one.prepared)]),
    )


def _training(study: Study, phase: Phase, choice: StrategyChoice) -> Training:
    """Resolve training options: the study's, overridden by the phase's, then by each strategy's in order."""
    training = phase.training.apply_to(study.training)
    for part in choice.parts:
        training = part.training.apply_to(training)
    return training


def _options(choice: StrategyChoice) -> dict[str, Any]:
    if len(choice.parts) == 1:
        return dict(choice.parts[0].options)
    return {part.kind: dict(part.options) for part in choice.parts}
