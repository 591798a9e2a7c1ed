"""A cell of a study as a model to deploy, scored as what is stored, with its card."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from lingraft.adapt.card import (
    CARD,
    CardFacts,
    DataFact,
    LossFact,
    ScoreFact,
    card_text,
    hub_id,
    licence_of,
    public_name,
)
from lingraft.adapt.choice import cell_key, choose_cell
from lingraft.adapt.export import Written, type_of, write_adapter, write_model
from lingraft.adapt.folder import check_place, new_folder
from lingraft.adapt.history import History, Learnt, read_history, write_history
from lingraft.adapt.promise import Gain
from lingraft.config.load import load_study
from lingraft.config.paths import user_path
from lingraft.config.schema import Study
from lingraft.errors import ConfigError, LingraftError
from lingraft.evaluate.common_items import CommonItems
from lingraft.evaluate.predictions import Prediction
from lingraft.evaluate.results import Scores
from lingraft.evaluate.scores import difference_of, differences, retention
from lingraft.intervals.changes import Margins
from lingraft.intervals.macro_mean import Difference, Ratio
from lingraft.models.checkpoints import WeightType
from lingraft.stage import CHECKPOINT, RECORD, given_model
from lingraft.stage_record import DamagedRecordError, read_record
from lingraft.strategies.lora import ADAPTER
from lingraft.study.events import Watcher
from lingraft.study.execute import Executor
from lingraft.study.limits import LimitResult, limit_result
from lingraft.study.plan import Plan, PlannedCell
from lingraft.study.result import (
    STUDY,
    CellResult,
    PhaseResult,
    StudyResult,
    read_result,
)
from lingraft.study.run import prepare_study
from lingraft.study.stages.evaluate import Evaluate, recorded
from lingraft.study.store import Store
from lingraft.study.summary import common_of
from lingraft.study.unused import ListedStage, read_plan, write_plan
from lingraft.text.language_tags import ENGLISH, is_english


@dataclass(frozen=True, kw_only=True)
class ExportedCell:
    """What `lingraft export` wrote.

    Attributes:
        format: Version of this format.
        run: The run folder.
        cell: The cell's label.
        reason: Why it was recommended; None: it was asked for.
        folder: Where it was written.
        dtype: What its weights are stored in.
        bytes: Of its weights.
        scored_in: The type in which the study scored it.
        scores: Those of the study.
        exported_scores: Those of the exported folder, where it is another model than the one that was scored; None: it
            is that one, or nothing was evaluated.
        is_scored: Whether what is stored is what was scored.
    """

    format: Literal[1] = 1
    run: str
    cell: str
    reason: str | None
    folder: str
    dtype: WeightType
    bytes: int
    scored_in: str
    scores: Scores
    exported_scores: Scores | None
    is_scored: bool


@dataclass(frozen=True)
class _Found:
    """The scores of an exported cell, and what they say against Phase 1."""

    scores: Scores
    retention: Ratio
    language: Difference
    limits: dict[str, LimitResult]


def export_cell(
    run: Path,
    asked: str | None,
    folder: Path,
    *,
    dtype: WeightType | None = None,
    overwrite: bool = False,
    evaluate: bool = True,
    train: bool = False,
    adapter: bool = False,
    repository: str | None = None,
    watcher: Watcher | None = None,
) -> ExportedCell:
    """Write a cell of a study as a folder to deploy, with its card; see `choose_cell`.

    Where what is stored is another model than the one that was scored, as bf16 weights of a study that was evaluated in
    float32 are, the folder is evaluated as the study evaluates, and both scores are given.

    Args:
        run: The run folder.
        asked: The cell; None: the recommended one.
        folder: Where it goes.
        dtype: What the weights are stored in; None: the type of the model that the study starts from.
        overwrite: Replace what lingraft wrote there.
        evaluate: Evaluate what was not scored.
        train: Train the cell again where `keep` discarded its checkpoint.
        adapter: Write the LoRA adapter that training kept, and not the model that it was merged into.
        repository: Id on the hub under which the card speaks of the model; None: it stays in a folder.
        watcher: Receives what happens.

    Raises:
        ConfigError: There is no such run or cell, its checkpoint was discarded, or the folder is not empty.
        DiskError: The folder cannot be written; nothing is left.
    """
    watcher = watcher or Watcher()
    check_place(folder, overwrite=overwrite)
    if not run.is_dir():
        raise ConfigError(f"{run}: there is no such run folder.")
    result, study = read_result(run), load_study(run / STUDY)
    chosen = choose_cell(result, asked)
    cell = chosen.cell
    start = study.phases[0].checkpoint or study.model
    assert start is not None  # a study has one of the two
    if adapter and dtype is not None:
        raise ConfigError(
            "--dtype: an adapter is stored as it was trained, in float32; leave one of the two out."
        )
    dtype = "float32" if adapter else dtype or type_of(start)
    checkpoint = None if cell.checkpoint is None else run / cell.checkpoint
    if checkpoint is not None and not (checkpoint / "config.json").is_file():
        checkpoint = None
    if checkpoint is None and not train:
        raise ConfigError(
            f"the checkpoint of {chosen.label!r} is not kept (keep: {study.keep}). To train this cell again and export "
            f'it: lingraft export {run} --cell "{chosen.label}" {folder} --train'
        )
    scored_in = result.precision.evaluation
    # bf16 arithmetic scores weights that were rounded to it, which float32 ones are when they are loaded so.
    is_scored = adapter or dtype == scored_in or (scored_in == "bf16" and dtype == "float32")
    stored = Store(run, watcher.noted)
    executor = Executor(stored, watcher)
    plan, planned = None, None
    if checkpoint is None or (evaluate and not is_scored):
        plan, planned = _planned(study, cell, stored, watcher)
    if checkpoint is None:
        assert planned is not None
        with stored:
            checkpoint = executor.make(planned.phases[-1].made, with_artefacts=True).folder / CHECKPOINT
    found = _Found(cell.scores, cell.retention, cell.difference.language_ability, cell.limits)
    exported: Scores | None = None
    with new_folder(folder, overwrite=overwrite) as own:
        if adapter:
            written = _written_adapter(
                checkpoint.parent, own, chosen.label, start, is_published=repository is not None
            )
        else:
            written = write_model(checkpoint, own, dtype=dtype, trust_remote_code=study.trust_remote_code)
        if evaluate and not is_scored:
            assert planned is not None
            with stored:
                found = _scored(own, chosen.label, dtype, planned, study, executor)
            exported, is_scored = found.scores, True
        learnt = (*_earlier(start), *_learnt(result, cell, run, start, found))
        write_history(own, History(learnt=learnt))
        before = next(
            (one.scores for one in result.phase_ones if one.predictions == cell.phase_one_predictions), None
        )
        facts = CardFacts(
            name=repository or folder.absolute().name,
            repository=repository,
            start=public_name(start),
            languages=tuple(dict.fromkeys(tag for one in cell.phases for tag in _tags(result, one))),
            data=_data(result, cell),
            strategy=cell.strategy,
            amount=_amount(cell),
            combined=None,
            dtype=None if adapter else dtype,
            scores=_scores(before, found.scores),
            scored_on=_scored_on(scored_in, dtype, is_scored=is_scored, anew=exported is not None),
            losses=_losses(found),
            gain=_gain_sentence(found.language),
            licence=licence_of(start),
            history=learnt,
            notes=_notes(found, own_template=written.own_template),
            is_adapter=adapter,
            brings_code=any(own.glob("*.py")),
            lingraft=version("lingraft"),
        )
        (own / CARD).write_text(card_text(facts), encoding="utf-8")
    if plan is not None:
        with stored:  # what `keep` would have discarded
            for stage in plan.stages:
                if stage.is_discardable and stage.fingerprint not in plan.kept:
                    stored.discard(stage)
    return ExportedCell(
        run=str(run),
        cell=chosen.label,
        reason=chosen.reason,
        folder=str(folder),
        dtype=dtype,
        bytes=written.bytes,
        scored_in=scored_in,
        scores=cell.scores,
        exported_scores=exported,
        is_scored=is_scored,
    )


def _written_adapter(stage: Path, folder: Path, label: str, start: str, *, is_published: bool) -> Written:
    """Write the adapter that a cell's training kept; it names the hub's id of its base where that has one."""
    source = stage / ADAPTER
    if not source.is_dir():
        why = (
            "its weights were combined after training"
            if stage.name.startswith("combine-")
            else "none was kept"
        )
        raise ConfigError(
            f"--adapter: there is no adapter of {label!r}: {why}. Train with `lora: {{keep_adapter: true}}`, or export "
            "the whole model."
        )
    is_of_start = "weights" in (read_record(stage).inputs.get("parent") or {})
    base = hub_id(start) if is_of_start else None
    if is_published and base is None:
        raise ConfigError(
            f"--push: the adapter of {label!r} belongs to a model that is not on the hub, so nobody else could load "
            "it; leave --adapter out."
        )
    write_adapter(source, folder, base)
    return Written("float32", sum(one.stat().st_size for one in folder.glob("*.safetensors")), True)


def _planned(study: Study, cell: CellResult, store: Store, watcher: Watcher) -> tuple[Plan, PlannedCell]:
    """Return the plan of a study and the stages of a cell, which are known by the data as they are now."""
    try:
        plan = prepare_study(study, Path(), watcher).plan(store, Path())
    except LingraftError as error:
        raise ConfigError(
            f"{store.folder}: what is stored would be another model than the one that was scored, and the study cannot "
            f"be asked again ({error}) Run lingraft where the study was run, or add --no-evaluate."
        ) from error
    found = next(
        one for one in plan.cells if (one.cell.data, one.cell.strategy, one.cell.seed) == cell_key(cell)
    )
    if store.find(found.phases[-1].made) is None:
        raise ConfigError(
            f"{store.folder}: the data, the models or the libraries changed since the study was run, so the cell would "
            f"be another one. Run the study again (lingraft run {store.folder / STUDY}), or add --no-evaluate."
        )
    return plan, found


def _scored(
    folder: Path, label: str, dtype: WeightType, planned: PlannedCell, study: Study, executor: Executor
) -> _Found:
    """Evaluate an exported folder as the study evaluates, and compare it with Phase 1."""
    model = given_model(str(folder), trust_remote_code=study.trust_remote_code)
    last = planned.phases[-1].evaluate
    stage = Evaluate(f"{label} in {dtype}", model, last.questions, study.trust_remote_code)
    run = executor.store.folder
    plan = read_plan(run)
    write_plan(
        run, {**plan.stages, executor.store.folder_of(stage).name: ListedStage(f"{label} in {dtype}", True)}
    )
    evaluated = executor.make(stage)
    gc.collect()
    phase_one = executor.make(planned.phase_one_evaluate)
    common: CommonItems[Prediction] = common_of((phase_one, evaluated))
    before, after = common.models
    return _Found(
        recorded(evaluated).scores,
        retention([(before, after)]),
        differences(before, after, margins=Margins(study.limits)).language_ability,
        {
            name: limit_result(limit, difference_of(before, after, name, limit))
            for name, limit in study.limits.items()
        },
    )


def _scored_on(scored_in: str, dtype: WeightType, *, is_scored: bool, anew: bool) -> str:
    """Return what the scores are of, in a sentence."""
    if anew:
        return f"This folder, in {dtype}, was asked what the study asked the cell, which it had scored in {scored_in}."
    if is_scored:
        same = (
            ""
            if dtype == scored_in
            else f"; the weights are stored in {dtype}, and were rounded to bf16 for that"
        )
        return f"The study scored this model in {scored_in}{same}."
    return (
        f"The study scored the model in {scored_in}; what is stored here is rounded to {dtype}, and was not scored "
        "itself."
    )


def _scores(before: Scores | None, after: Scores) -> tuple[ScoreFact, ...]:
    found = []
    for name in ("task_ability", "language_ability", "further_languages"):
        own = getattr(after, name)
        if own is not None:
            earlier = None if before is None else getattr(before, name)
            language = ENGLISH if name == "task_ability" else None
            found.append(
                ScoreFact(
                    name=name.replace("_", " "), language=language, before=earlier, after=own, is_task=False
                )
            )
    for key, score in after.tasks.items():
        task, _, language = key.rpartition("/")
        found.append(
            ScoreFact(
                name=task or key,
                language=language or None,
                before=None if before is None else before.tasks.get(key),
                after=score,
                is_task=True,
            )
        )
    return tuple(found)


def _losses(found: _Found) -> tuple[LossFact, ...]:
    """Return what of English was lost, relative to Phase 1, with the limit that the study states."""
    ratio, limit = found.retention, found.limits.get("task_ability")
    return (
        LossFact(
            name="task ability (English)",
            loss=None if ratio.value is None else 1 - ratio.value,
            low=None if ratio.high is None else 1 - ratio.high,
            high=None if ratio.low is None else 1 - ratio.low,
            limit=None if limit is None else f"{limit.limit:g} of the score",
            answer=None if limit is None else limit.answer,
            n=ratio.n,
        ),
    )


def _notes(found: _Found, *, own_template: bool) -> tuple[str, ...]:
    notes = [
        f"The study's limit of {one.limit:g} on {name}: {one.answer}."
        for name, one in found.limits.items()
        if name != "task_ability"
    ]
    if not own_template:
        notes.append(
            "The start has no chat template; the one in this folder is what the model was trained and scored with."
        )
    return tuple(notes)


def _gain_sentence(gain: Difference) -> str:
    return (
        f"Gain in language ability: {gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}] on the same items."
    )


def _earlier(start: str) -> tuple[Learnt, ...]:
    """Return what the start was taught by lingraft, where it lies in a folder that says so."""
    folder = user_path(start)
    return read_history(folder).learnt if folder.is_dir() else ()


def _tags(result: StudyResult, phase: PhaseResult) -> tuple[str, ...]:
    """Return the languages of a phase's data set besides English."""
    costs = result.tokenizer_cost.get(f"{phase.phase}/{phase.data}", {})
    return tuple(tag for tag in costs if not is_english(tag))


def _rows(phase: PhaseResult) -> dict[str, int]:
    """Return the rows that a phase was trained on by their source; of English rows to replay those that were."""
    found: dict[str, int] = {}
    for number, one in enumerate(phase.training.data):
        is_replayed = number > 0 and phase.training.replayed > 0 and number == len(phase.training.data) - 1
        name = public_name(one.source)
        found[name] = found.get(name, 0) + (phase.training.replayed if is_replayed else one.train)
    return found


def _amount(cell: CellResult) -> str:
    counts = cell.training
    replayed = f", {counts.replayed:,} of them replayed" if counts.replayed else ""
    return (
        f"{counts.examples:,} examples{replayed}, in {counts.steps:,} steps of {counts.tokens:,} tokens in all, in "
        f"{counts.precision}"
    )


def _data(result: StudyResult, cell: CellResult) -> tuple[DataFact, ...]:
    found = []
    for phase in cell.phases:
        tags = tuple(result.tokenizer_cost.get(f"{phase.phase}/{phase.data}", {}))
        found += [
            DataFact(source=source, rows=rows, languages=tags if number == 0 else ())
            for number, (source, rows) in enumerate(_rows(phase).items())
        ]
    return tuple(found)


def _learnt(result: StudyResult, cell: CellResult, run: Path, start: str, found: _Found) -> Sequence[Learnt]:
    """Return what a cell was taught, phase by phase; the last phase's gain is the cell's."""
    learnt = []
    for number, phase in enumerate(cell.phases):
        is_last = number == len(cell.phases) - 1
        languages = _tags(result, phase)
        stage = None if phase.checkpoint is None else (run / phase.checkpoint).parent
        gain = None
        before = next(
            (one.scores for one in result.phase_ones if one.predictions == cell.phase_one_predictions), None
        )
        after = found.scores.language_ability
        if is_last and before is not None and before.language_ability is not None and after is not None:
            gain = Gain(
                languages=languages,
                kind="language ability",
                before=before.language_ability.value,
                after=after.value,
                value=found.language.value,
                low=found.language.low,
                high=found.language.high,
                n=found.language.n,
                answer=found.language.answer,
            )
        learnt.append(
            Learnt(
                date=_date_of(stage or run),
                languages=languages,
                data=_rows(phase),
                strategy=phase.strategy,
                alpha=None,
                kept_back=None,
                max_loss=None,
                losses=(),
                gain=gain,
                start=public_name(start),
                start_identity=_start_identity(stage),
                lingraft=version("lingraft"),
            )
        )
    return learnt


def _date_of(place: Path) -> str:
    """Return the day on which a stage was recorded, of a run folder on which its result was."""
    record = place / RECORD
    path = record if record.is_file() else place / "result.json"
    return datetime.fromtimestamp(path.stat().st_mtime, UTC).date().isoformat()


def _start_identity(stage: Path | None) -> str:
    """Return by what the model that a phase started from is known; empty where its stage does not say."""
    try:
        inputs = {} if stage is None else read_record(stage).inputs
    except (OSError, DamagedRecordError, LingraftError):
        return ""
    parent = inputs.get("parent") or inputs.get("before") or {}
    return ":".join(f"{key} {value}" for key, value in parent.items())
