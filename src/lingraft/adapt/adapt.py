"""Teach a model languages, and keep a stated share of what it could do: from rows to a folder that can be deployed.

    RUNS/adapt/<name>/stages/   the training, the models on the way and their evaluations, as in a run of a study
                     /cache/
    OUTPUT/                     the model, its card, its history, the page

The training is the one cell of a study whose Phase 1 is the given model; what is written lies between the two.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lingraft.adapt.as_study import ADAPTED, check_adaptation, in_words_of_adapt, strategy_of, study_of
from lingraft.adapt.between import Between, decoder_layers, final_answer
from lingraft.adapt.delivery import Delivery, is_made_of, write_adapted
from lingraft.adapt.folder import check_place, run_folder
from lingraft.adapt.history import read_history
from lingraft.adapt.languages import RowLanguages, checked_languages
from lingraft.adapt.outlook import Outlook, look, outlook_lines
from lingraft.adapt.promise import promise_sentence
from lingraft.adapt.result import FORMAT, Adapted
from lingraft.adapt.start import whole_model
from lingraft.adapt.walk import Candidate, Promise, answers_of, compared
from lingraft.config.adaptation import Adaptation
from lingraft.config.paths import make_named_folder
from lingraft.config.schema import Evaluation, EvaluationTask, PathStep
from lingraft.data.example import Example
from lingraft.errors import ConfigError, as_disk_error
from lingraft.evaluate.held_out import item_of
from lingraft.evaluate.task_names import is_worldbook
from lingraft.intervals.macro_mean import Interval, macro_mean, values_of
from lingraft.models.loading import model_folder, parameter_names
from lingraft.records import fingerprint_of, from_json
from lingraft.stage import CHECKPOINT, GivenModel, MadeModel, StageSpec
from lingraft.study.events import Watcher
from lingraft.study.execute import Executor
from lingraft.study.fitting import check_memory
from lingraft.study.forecast import Forecast, forecast, time_text, work_text
from lingraft.study.materials import Materials, past_rows
from lingraft.study.plan import PlannedPhase, Planner
from lingraft.study.reach import check_reach
from lingraft.study.result import DataCounts
from lingraft.study.run import Prepared, prepare_study
from lingraft.study.stages.combine import Combine
from lingraft.study.stages.evaluate import Evaluate, Questions, questions
from lingraft.study.stages.train import Train
from lingraft.study.store import Store
from lingraft.study.unused import size_text
from lingraft.train.processes import Processes

_SMALL = 1_000_000_000  # parameters
SMALL_RATE, LARGE_RATE = 2.0e-4, 2.0e-5
"""Learning rates: of docs/results.md's runs of a model of 135 million parameters; and the study file's default, which
is common for full fine-tuning of 7 billion."""
MOST_HELD_OUT = 0.1
"""Share of a set's groups that is held out at most: of few rows most are for training."""
_ALL = 10_000  # items; more than worldbook has
LONG_TRAINING = 60
"""Steps of a training from which a few are timed before it begins."""


@dataclass(frozen=True)
class Ready:
    """An adaptation whose data are read and whose stages are described; nothing is trained yet.

    Attributes:
        adaptation: What was asked.
        prepared: The study that it is trained as.
        spoken: In which languages the rows of each of its sets are.
        start: The model.
        phase: The training.
        selection: What is asked where the model is chosen.
        report: What is asked of the chosen one.
        promise: What may be lost.
    """

    adaptation: Adaptation
    prepared: Prepared
    spoken: Mapping[str, RowLanguages]
    start: GivenModel
    phase: PlannedPhase
    selection: Questions
    report: Questions
    promise: Promise

    @property
    def stages(self) -> tuple[StageSpec, ...]:
        """The stages that are known before the walk: those of the training, and one model on the way."""
        made = MadeModel(self.phase.made, self.start.parameters)
        combine = Combine(
            "a model on the way", self.start, made, Candidate(0.5).choice, self.adaptation.dtype
        )
        states = tuple(self.phase.train.states.values())
        asked = Evaluate("the start", self.start, self.selection)
        return (*states, self.phase.train, self.phase.made, asked, combine)


@dataclass(frozen=True)
class Expected:
    """What is known before anything is trained.

    Attributes:
        outlook: Of the data, the model and the machine.
        start: The start's score in each promised ability, on the selection part.
        independent: By promised ability, independent items of that part.
        max_loss: What may be lost.
        forecast: What the training, and one model on the way to it, will take.
        budget: Seconds for everything; None: no bound.
    """

    outlook: Outlook
    start: Mapping[str, Interval]
    independent: Mapping[str, float]
    max_loss: float
    forecast: Forecast
    budget: float | None

    @property
    def budget_problem(self) -> str | None:
        """Why nothing is trained: a training that is not begun takes longer than the time for everything."""
        seconds = [
            one.seconds for one in self.forecast.stages if one.kind == "train" and one.state == "to do"
        ]
        known = sum(one for one in seconds if one is not None)
        if self.budget is None or known <= self.budget:
            return None
        return (
            f"--budget: the training takes about {time_text(known)}, and {time_text(self.budget)} are allowed for "
            "everything. Allow more, or train less: fewer rows (`limit` of the data, in a file), or training.epochs=1."
        )

    @property
    def lines(self) -> list[str]:
        """The same in plain sentences; those that begin with `!` are warnings."""
        said = [
            promise_sentence(name, score, self.independent[name], self.max_loss)
            for name, score in self.start.items()
        ]
        budget = [] if self.budget_problem is None else [f"! {self.budget_problem}"]
        return [*outlook_lines(self.outlook), *self._work_lines(), *budget, *said]

    def _work_lines(self) -> Iterator[str]:
        for kind, name in (("train", "The training"), ("evaluate", "Each model on the way to it")):
            for one in self.forecast.stages:
                if one.kind != kind or one.is_finished:
                    continue
                time_needed = "" if one.seconds is None else f"; about {time_text(one.seconds)}"
                memory = "" if one.memory_bytes is None else f"; {size_text(one.memory_bytes)} of memory"
                yield f"{name}: {work_text(one)}{time_needed}{memory}."


def get_ready(
    adaptation: Adaptation,
    name: str,
    *,
    store: Store,
    base_folder: Path,
    watcher: Watcher,
    processes: Processes,
) -> Ready:
    """Read and find all that an adaptation needs, check it, and describe its stages.

    Raises:
        ConfigError, DataError, ModelError: Something is wrong with it, before anything is trained.
    """
    check_adaptation(adaptation, base_folder)
    check_reach(study_of(adaptation, name), base_folder)
    check_memory(study_of(adaptation, name), processes)
    trust = adaptation.trust_remote_code
    whole, merged = whole_model(adaptation.model, Executor(store, watcher), trust_remote_code=trust)
    if merged is not None:
        adaptation = adaptation.model_copy(update={"model": whole})
        watcher.noted(merged)
    given = model_folder(adaptation.model, trust_remote_code=adaptation.trust_remote_code)
    earlier = read_history(given).languages
    study = study_of(adaptation, name, earlier)
    spoken: dict[str, RowLanguages] = {}
    prepared = prepare_study(
        study,
        base_folder,
        watcher,
        check_materials=lambda read: spoken.update(
            checked_languages(read, adaptation.languages, base_folder)
        ),
        without_tasks=True,
        most_held_out=MOST_HELD_OUT,
    )
    materials = prepared.materials
    start = materials.checkpoint
    assert start is not None
    study = prepared.study.model_copy(update={"evaluate": all_of_worldbook(prepared.study.evaluate)})
    if adaptation.training.learning_rate is None:
        rate = SMALL_RATE if 0 < start.parameters < _SMALL else LARGE_RATE
        training = study.training.model_copy(update={"learning_rate": rate})
        study = study.model_copy(update={"training": training})
    prepared = Prepared(study, materials, prepared.language_notes)
    promise = Promise(
        adaptation.max_loss,
        earlier=tuple(tag for tag in earlier if tag not in materials.languages),
        learnt=materials.languages,
    )
    asked = {
        part: questions(
            study.evaluate.model_copy(update={"part": part}),
            materials.languages,
            held_out_part(materials, part, adaptation.seed),
            base_folder=base_folder,
            cache=store.cache if store.stages.is_dir() else None,
            trust_remote_code=adaptation.trust_remote_code,
            workers=processes.workers,
        )
        for part in ("selection", "report")
    }
    planner = Planner(study, materials, asked["selection"], processes, ())
    strategy = strategy_of(adaptation)
    steps = [
        PathStep(phase=ADAPTED, data=data, strategy=strategy)
        for phase, data in materials.data
        if phase == ADAPTED
    ]
    taken = past_rows(study, 0, steps[0])
    phase = planner.phase_of(
        steps, f"{adaptation.model} on {', '.join(one.data for one in steps)}", start, adaptation.seed, taken
    )
    return Ready(adaptation, prepared, spoken, start, phase, asked["selection"], asked["report"], promise)


def all_of_worldbook(evaluation: Evaluation) -> Evaluation:
    """Return an evaluation in which worldbook asks all that it has where no entry says how many, as other tasks do."""

    def whole(entries: tuple[EvaluationTask, ...]) -> tuple[EvaluationTask, ...]:
        return tuple(
            one.model_copy(update={"limit": _ALL}) if is_worldbook(one.task) and one.limit is None else one
            for one in entries
        )

    return evaluation.model_copy(
        update={
            "task_ability": whole(evaluation.task_ability),
            "language_ability": whole(evaluation.language_ability),
        }
    )


def held_out_part(materials: Materials, part: str, seed: int) -> tuple[Example, ...]:
    """Return the held-out rows of one half of the evaluation; parallel rows are in the same one.

    Which half follows from the seed and the rows, not from where their file lies; of two groups each half has one.
    """
    items = defaultdict[tuple[str, str], list[str]](list)
    for one in materials.held_out:
        items[one.source, one.group].append(item_of(one))
    drawn = sorted(items, key=lambda group: fingerprint_of([seed, sorted(items[group])]))
    own = set(drawn[{"selection": 0, "report": 1}[part] :: 2])
    return tuple(one for one in materials.held_out if (one.source, one.group) in own)


def expect(
    ready: Ready, executor: Executor, base_folder: Path, watcher: Watcher, measure_from: int = LONG_TRAINING
) -> Expected:
    """Return what is known before anything is trained; the start answers the selection part for it.

    A training of at least `measure_from` steps is timed by a few of them.

    Raises:
        ConfigError: The rows are in another language than was said.
        DiskError: There is no room for the training.
        EvaluationError: Nothing is asked in a promised language.
    """
    outlook = look(
        ready.prepared,
        executor,
        spoken=ready.spoken,
        stages=ready.stages,
        base_folder=base_folder,
        watcher=watcher,
    )
    asked = Evaluate("the start", ready.start, ready.selection, ready.adaptation.trust_remote_code)
    answers = answers_of(executor.make(asked))
    model = MadeModel(ready.stages[-1], ready.start.parameters)
    on_the_way = Evaluate("a model on the way", model, ready.selection, ready.adaptation.trust_remote_code)
    abilities = compared(ready.promise, answers, answers).abilities
    return Expected(
        outlook=outlook,
        start={name: macro_mean(before) for name, (before, _) in abilities.items()},
        independent={name: values_of(before).clusters().effective for name, (before, _) in abilities.items()},
        max_loss=ready.promise.max_loss,
        budget=ready.adaptation.budget,
        forecast=forecast(
            tuple({one.fingerprint: one for one in (asked, *ready.stages, on_the_way)}.values()),
            (),
            executor.store,
            measure_from=measure_from,
            watcher=watcher,
            trust_remote_code=ready.adaptation.trust_remote_code,
        ),
    )


def trained_rows(train: Train, record: Mapping[str, Any]) -> tuple[DataCounts, ...]:
    """Return what was read and trained on of each set, by a training's record; of one that is replayed from, that."""
    counts = [from_json(DataCounts, one) for one in record["data"]]
    learnt = len(train.job.data)
    return (*counts[:learnt], *(replace(one, train=record["replayed"]) for one in counts[learnt:]))


def run_adaptation(
    adaptation: Adaptation,
    delivery: Delivery,
    *,
    runs: Path = Path("runs"),
    base_folder: Path = Path(),
    watcher: Watcher | None = None,
    processes: Processes | None = None,
    measure_from: int = LONG_TRAINING,
    on_expected: Callable[[Expected], None] = lambda _: None,
) -> Adapted:
    """Teach a model languages, and write the model that keeps the limit; the same call goes on after an interruption.

    Args:
        adaptation: What is asked.
        delivery: Where the model goes; the name of its folder is that of the run folder `runs/adapt/<name>`. A model
            that this run has made there of the same start is replaced.
        runs: Folder of all runs.
        base_folder: What relative paths of data and tasks are relative to.
        watcher: Receives what happens.
        processes: How many processes train; None: this one.
        measure_from: Steps of a training from which a few are timed first, to say how long it takes.
        on_expected: Called when everything is checked, before anything is trained.

    Raises:
        ConfigError, DataError, ModelError: Something is wrong, before anything is trained.
        DiskError: The disk is full; the same call goes on when it is not.
    """
    watcher, processes = watcher or Watcher(), processes or Processes()
    processes.check()
    deadline = None if adaptation.budget is None else time.monotonic() + adaptation.budget
    folder = run_folder(runs, "adapt", delivery.folder)
    went_on = (folder / "stages").is_dir()  # then it may be this run's own model, which `ready` tells
    check_place(delivery.folder, overwrite=delivery.overwrite or went_on)
    delivery.check()
    make_named_folder(folder)
    with as_disk_error(folder), Store(folder, watcher.noted) as store:
        with in_words_of_adapt():
            ready = get_ready(
                adaptation,
                folder.name,
                store=store,
                base_folder=base_folder,
                watcher=watcher,
                processes=processes,
            )
        # A model of another start, or of other rows, whose folder is only called as this one's, is not replaced.
        is_own = is_made_of(
            delivery.folder, ready.start.identity, data=[one.source for one in adaptation.data]
        )
        delivery = replace(
            delivery,
            overwrite=delivery.overwrite or (went_on and is_own),
            trust_remote_code=adaptation.trust_remote_code,
        )
        check_place(delivery.folder, overwrite=delivery.overwrite)
        executor = Executor(store, watcher)
        # A bound can only be kept where it is known how long the training takes.
        measured = measure_from if deadline is None else 0
        expected = expect(ready, executor, base_folder, watcher, measured)
        on_expected(expected)
        if (problem := expected.budget_problem) is not None:
            raise ConfigError(problem)
        executor.make(ready.phase.made, with_artefacts=True)
        between = Between(
            start=ready.start,
            trained=MadeModel(ready.phase.made, ready.start.parameters),
            selection=ready.selection,
            report=ready.report,
            promise=ready.promise,
            dtype=adaptation.dtype,
            executor=executor,
            trust_remote_code=adaptation.trust_remote_code,
        )
        names = parameter_names(ready.start.folder, trust_remote_code=adaptation.trust_remote_code)
        walked = between.walk(
            steps=adaptation.steps, groups=adaptation.groups, layers=decoder_layers(names), deadline=deadline
        )
        report = between.reported(walked.kept)
        answer, sentence = final_answer(walked, report)
        training = executor.make(ready.phase.train).result
        adapted = Adapted(
            format=FORMAT,
            command="adapt",
            start=adaptation.model,
            start_identity=ready.start.identity,
            trained=None,
            trained_identity=None,
            max_loss=adaptation.max_loss,
            learnt=ready.promise.learnt,
            earlier=ready.promise.earlier,
            data=trained_rows(ready.phase.train, training),
            strategy=strategy_of(adaptation).label,
            steps=training["steps"],
            seed=adaptation.seed,
            dtype=adaptation.dtype,
            precision=ready.selection.evaluation.precision,
            outlook=expected.outlook,
            walked=walked,
            report=report,
            answer=answer,
            sentence=sentence,
            folder=str(delivery.folder),
        )
        combine = between.combine(Candidate(walked.kept.alpha, walked.kept.kept_back))
        made = executor.make(combine, with_artefacts=True)
        write_adapted(adapted, made.folder / CHECKPOINT, ready.start.folder, delivery)
    return adapted
