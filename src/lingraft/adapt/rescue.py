"""Rescue a model that somebody has damaged: find which layers carry the loss, and the best model on the way back.

    RUNS/rescue/<name>/stages/  merged adapters, models on the way, their evaluations, a repair
                      /cache/
    OUTPUT/                     the model that is kept

Nothing is trained, unless a repair is asked for: then the way leads from the start to the repaired model.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lingraft.adapt.adapt import all_of_worldbook
from lingraft.adapt.alike import check_alike
from lingraft.adapt.between import Between, decoder_layers, final_answer
from lingraft.adapt.delivery import Delivery, Draw, is_made_of, write_adapted
from lingraft.adapt.export import type_of_start
from lingraft.adapt.folder import check_place, run_folder
from lingraft.adapt.history import read_history
from lingraft.adapt.promise import AbilityLoss, Gain
from lingraft.adapt.repair import FEWEST_PROMPTS, Repair, Repaired
from lingraft.adapt.result import FORMAT, Adapted
from lingraft.adapt.walk import Candidate, Promise, compared, judged, layer_groups
from lingraft.config.paths import make_named_folder
from lingraft.config.schema import Evaluation, Training
from lingraft.errors import ConfigError, DataError, EvaluationError, as_disk_error
from lingraft.evaluate.checks import check_names
from lingraft.evaluate.selection import Chosen, choose_tasks
from lingraft.intervals.macro_mean import Difference, paired_difference
from lingraft.models.adapters import AdaptedReader
from lingraft.models.checkpoints import WeightType
from lingraft.models.compute import AskedPrecision, compute_for
from lingraft.models.context_length import context_length
from lingraft.models.generation import Sampling
from lingraft.models.loading import local_folder, parameter_names
from lingraft.models.model_names import EMBEDDED_PREFIX
from lingraft.models.tensor_files import is_adapter
from lingraft.models.workers import worker_count
from lingraft.records import from_json, to_json
from lingraft.representation.prompts import Prompt, read_prompts
from lingraft.stage import CHECKPOINT, GivenModel, Json, MadeModel, Model, given_model
from lingraft.strategies.base import is_embedding
from lingraft.strategies.replay_rows import SELF, ReplaySettings
from lingraft.strategies.selection import is_head
from lingraft.study.evaluation import not_run_lines
from lingraft.study.events import Watcher
from lingraft.study.execute import Executor
from lingraft.study.stages.evaluate import Questions, questions
from lingraft.study.stages.merge import Merge
from lingraft.study.stages.replay import Replay
from lingraft.study.store import Store
from lingraft.text.language_tags import ENGLISH, canonical_tag, is_english
from lingraft.train.phase import with_resolved_precision


@dataclass(frozen=True)
class RepairOptions:
    """How a model is repaired before its weights are walked back.

    Attributes:
        prompts: Source of prompts, or `self`: the start writes them.
        n: Most prompts.
        max_new_tokens: Where an answer is cut off.
        training: Its epochs are the rounds.
    """

    prompts: str = SELF
    n: int = 256
    max_new_tokens: int = 128
    training: Training = field(default_factory=lambda: Training(epochs=4))


@dataclass(frozen=True, kw_only=True)
class GivenBack:
    """The damaged model with the start's weights in one part of it, on the selection part.

    Attributes:
        part: Decoder layers, such as `0-9`; `embeddings` (with a tied head) or `head`.
        losses: What is still lost of each promised ability.
        gain: Of the languages that were learnt; None: nothing is asked in them.
        change: English score with the part given back less that without, paired: above 0 the part carries loss.
    """

    part: str
    losses: tuple[AbilityLoss, ...]
    gain: Gain | None
    change: Difference


@dataclass(frozen=True, kw_only=True)
class Rescued:
    """What `lingraft rescue` did.

    Attributes:
        adapted: The walk, the model that is kept and the answer.
        damage: What the damaged model lost of each promised ability, on the selection part.
        given_back: One for each part of the model, what carries most of the loss first.
        repair: What a repair did; None: none was asked for.
        notes: What the user should know, one sentence each.
    """

    adapted: Adapted
    damage: tuple[AbilityLoss, ...]
    given_back: tuple[GivenBack, ...]
    repair: Repaired | None
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Json]:
        """Return what `lingraft rescue --json` prints: the fields of `Adapted`, and these beside them."""
        whole = to_json(self)
        return {**whole.pop("adapted"), **whole}


def rescue(
    before: str | Path,
    after: str | Path,
    max_loss: float = 0.01,
    *,
    output: str | Path,
    languages: Sequence[str] = (),
    suite: str = "quick",
    tasks: Sequence[str] = (),
    data_dir: str | Path | None = None,
    limit: int | None = None,
    max_new_tokens: int | None = None,
    steps: int = 5,
    groups: int = 3,
    by_layer: bool = False,
    repair: RepairOptions | None = None,
    dtype: WeightType | None = None,
    precision: Literal["auto", "bf16", "float32"] = "auto",
    processes: int | None = None,
    seed: int = 0,
    trust_remote_code: bool = False,
    overwrite: bool = False,
    repository: str | None = None,
    draw: Draw | None = None,
    runs: str | Path = "runs",
    watcher: Watcher | None = None,
) -> Rescued:
    """Write the model between two that lost no more than allowed; the same call goes on after an interruption.

    Args:
        before: The model before the damage: folder, hub id, `embedded:NAME`, or the folder of a LoRA adapter.
        after: The damaged one, likewise; an adapter is merged into its base.
        max_loss: What may be lost of English, as a share of the first model's score, in [0, 1).
        output: Folder of the model; its name is that of the run folder `runs/rescue/<name>`.
        languages: What the second model has learnt; none given: what lingraft taught it, by its history. Of the models
            that meet the limit, the one with the most language ability is kept; of no language: that with the largest
            alpha.
        suite: Suite of tasks that measures.
        tasks: `[TAG=]NAME`: only these tasks.
        data_dir: Folder with local copies of data sets.
        limit: Most items of each task in each half of the items.
        max_new_tokens: Most tokens of an answer to a task.
        steps: Points between the two models, evenly spaced.
        groups: Groups of layers of which each is tried with the first model's weights.
        by_layer: Say of each layer what it carries, not of each group.
        repair: Train the damaged model back towards the first one before.
        dtype: Type of the written weights; None: that of the second model.
        precision: Of the arithmetic.
        processes: How many answer, each with the whole model; None: one an accelerator, one without any.
        seed: Of the halves of the items, and of a repair.
        trust_remote_code: Run Python code that models and YAML tasks bring along.
        overwrite: Replace a model that lingraft wrote into `output`; one made there of the same two is replaced
            anyway.
        repository: Id on the hub under which the model will be known, for its card.
        draw: Draws the page that lies beside the model; None: there is none.
        runs: Folder of all runs.
        watcher: Receives what happens.

    Raises:
        ConfigError, ModelError, EvaluationError: Something is wrong, before anything is made.
    """
    watcher = watcher or Watcher()
    workers = worker_count(processes)
    if not 0 <= max_loss < 1:
        raise ConfigError(f"--max-loss {max_loss}: must be a share from 0 to below 1, such as 0.01 for 1 %.")
    folder = run_folder(Path(runs), "rescue", Path(output))
    went_on = (folder / "stages").is_dir()
    check_place(Path(output), overwrite=overwrite or went_on)
    given = [_given(str(name), trust_remote_code=trust_remote_code) for name in (before, after)]
    # Models of another run, whose folder is only called as this one's, are not replaced.
    overwrite = overwrite or (went_on and is_made_of(Path(output), given[0].identity, given[1].identity))
    check_place(Path(output), overwrite=overwrite)
    if given[0].identity == given[1].identity:
        raise ConfigError(
            f"--after {after}: is the same model as --before {before}; there is nothing to rescue."
        )
    earlier, later = (read_history(one.folder) for one in given)

    def tasks_in(languages: Sequence[str]) -> Chosen:
        return choose_tasks(
            suite,
            tasks,
            languages=[*languages, *earlier.languages],
            data_dir=None if data_dir is None else str(data_dir),
            limit=limit,
            max_new_tokens=max_new_tokens,
        )

    taught = [] if languages else [tag for tag in later.languages if tag not in earlier.languages]
    try:
        chosen = tasks_in(languages or taught)
    except ConfigError:  # no task may be in what the user has not named
        if not taught:
            raise
        chosen, taught = tasks_in(()), []
    languages = languages or taught
    notes = [f"{one}: there is no such task; it is left out." for one in chosen.missing]
    named = {ENGLISH if is_english(tag) else canonical_tag(tag) or tag for tag in languages}
    learnt = tuple(tag for tag in chosen.languages if tag in named and tag != ENGLISH)
    promise = Promise(
        max_loss, tuple(tag for tag in earlier.languages if tag not in learnt), learnt, is_rescue=True
    )
    if not learnt:
        notes.append(
            "What the model has learnt is not said (--languages), so of the models that meet the limit the one that is "
            "nearest to it is kept, and no gain is measured."
        )
    asked = _questions(
        all_of_worldbook(chosen.evaluation),
        promise,
        precision,
        seed,
        trust_remote_code=trust_remote_code,
        workers=workers,
    )
    notes += not_run_lines(asked["selection"], None if data_dir is None else str(data_dir))
    if repair is not None:
        _check_room(repair, given[1], trust_remote_code=trust_remote_code)
    prompts = None if repair is None or repair.prompts == SELF else _prompts(repair, seed)
    for note in notes:
        watcher.noted(note)

    make_named_folder(folder)
    with as_disk_error(folder), Store(folder, watcher.noted) as store:
        executor = Executor(store, watcher)
        start, damaged = (_whole(one, executor, trust_remote_code=trust_remote_code) for one in given)
        folders = [
            one.folder if isinstance(one, GivenModel) else store.folder_of(one.stage) / CHECKPOINT
            for one in (start, damaged)
        ]
        for difference in check_alike(
            folders[0], folders[1], (str(before), str(after)), trust_remote_code=trust_remote_code
        ):
            notes.append(difference)
            watcher.noted(difference)
        names = parameter_names(folders[1], trust_remote_code=trust_remote_code)
        layers = decoder_layers(names)
        made_of = given[1].folder
        if is_adapter(made_of):  # merging makes it float32
            made_of = AdaptedReader(made_of, trust_remote_code=trust_remote_code).base_folder
        written = dtype or type_of_start(made_of)

        def between(trained: Model) -> Between:
            return Between(
                start=start,
                trained=trained,
                selection=asked["selection"],
                report=asked["report"],
                promise=promise,
                dtype=written,
                executor=executor,
                trust_remote_code=trust_remote_code,
            )

        damage, given_back = _given_back(between(damaged), names, layers if by_layer else groups)
        repaired, trained = None, damaged
        if repair is not None:
            stage = _repair(
                str(before),
                start,
                damaged,
                repair,
                prompts,
                seed,
                trust_remote_code=trust_remote_code,
                workers=workers,
            )
            repaired = from_json(Repaired, executor.make(stage, with_artefacts=True).result)
            trained = MadeModel(stage, given[1].parameters)
        way = between(trained)
        walked = way.walk(steps=steps, groups=groups, layers=layers)
        report = way.reported(walked.kept)
        answer, sentence = final_answer(walked, report)
        adapted = Adapted(
            format=FORMAT,
            command="rescue",
            start=str(before),
            start_identity=given[0].identity,
            trained=str(after),
            trained_identity=given[1].identity,
            max_loss=max_loss,
            learnt=promise.learnt,
            earlier=promise.earlier,
            outlook=None,
            data=(),
            strategy=None if repair is None else "repair",
            steps=0 if repaired is None else repaired.steps,
            seed=seed,
            dtype=written,
            precision=asked["selection"].evaluation.precision,
            walked=walked,
            report=report,
            answer=answer,
            sentence=sentence,
            folder=str(output),
        )
        combine = way.combine(Candidate(walked.kept.alpha, walked.kept.kept_back))
        made = executor.make(combine, with_artefacts=True)
        delivery = Delivery(
            Path(output),
            overwrite=overwrite,
            draw=draw,
            repository=repository,
            trust_remote_code=trust_remote_code,
        )
        write_adapted(adapted, made.folder / CHECKPOINT, given[0].folder, delivery, damaged=given[1].folder)
    return Rescued(adapted=adapted, damage=damage, given_back=given_back, repair=repaired, notes=tuple(notes))


def _given(name: str, *, trust_remote_code: bool) -> GivenModel:
    """Return a model that the user names, also an adapter on the hub."""
    if not name.startswith(EMBEDDED_PREFIX):
        folder = local_folder(name, trust_remote_code=trust_remote_code)
        name = str(folder) if is_adapter(folder) else name
    return given_model(name, trust_remote_code=trust_remote_code)


def _whole(model: GivenModel, executor: Executor, *, trust_remote_code: bool) -> Model:
    """Return a model with weights of its own: an adapter is merged into its base."""
    if not is_adapter(model.folder):
        return model
    stage = Merge(model.folder.name, model, trust_remote_code)
    executor.make(stage, with_artefacts=True)
    return MadeModel(stage, model.parameters)


def _questions(
    evaluation: Evaluation,
    promise: Promise,
    precision: AskedPrecision,
    seed: int,
    *,
    trust_remote_code: bool,
    workers: int,
) -> dict[str, Questions]:
    """Return what is asked of each half of the items.

    Raises:
        ConfigError: No task is in English.
        EvaluationError: None of the tasks can be run here.
    """
    if not evaluation.task_ability:
        raise ConfigError(
            "--task: none of the tasks is in English, so what was lost of it cannot be known; name one."
        )
    check_names(evaluation, trust_remote_code=trust_remote_code)
    evaluation = evaluation.model_copy(
        update={"precision": precision, "languages": promise.earlier, "part_seed": seed}
    )
    asked = {
        part: questions(
            evaluation.model_copy(update={"part": part}),
            promise.learnt,
            skip_missing=True,
            trust_remote_code=trust_remote_code,
            workers=workers,
        )
        for part in ("selection", "report")
    }
    if not asked["selection"].has_tasks:
        raise EvaluationError(
            "\n".join(
                [
                    "none of the tasks can be run here.",
                    *not_run_lines(asked["selection"], evaluation.data_dir),
                ]
            )
        )
    return asked


def _given_back(
    between: Between, names: Sequence[str], groups: int
) -> tuple[tuple[AbilityLoss, ...], tuple[GivenBack, ...]]:
    """Return what the damaged model lost, and what it loses with each part given back, which carries most first."""
    promise, asked = between.promise, between.selection
    start = between.start_answers(asked)
    whole, *_ = between.answers(Candidate(1.0), asked)
    damage, _ = judged(promise, compared(promise, start, whole))
    parts = list(layer_groups(decoder_layers(tuple(names)), groups))
    parts += ["embeddings"] if any(map(is_embedding, names)) else []
    parts += ["head"] if any(map(is_head, names)) else []
    found = []
    for part in parts:
        own, *_ = between.answers(Candidate(1.0, part), asked)
        losses, gain = judged(promise, compared(promise, start, own))
        change = paired_difference(*compared(promise, whole, own).abilities[ENGLISH])
        found.append(GivenBack(part=part, losses=losses, gain=gain, change=change))
    return damage, tuple(sorted(found, key=lambda one: -one.change.value))


def _prompts(options: RepairOptions, seed: int) -> Sequence[Prompt]:
    """Return the prompts of a source, drawn where there are more than are wanted.

    Raises:
        DataError: There are too few.
    """
    prompts = read_prompts(options.prompts)
    if len(prompts) < FEWEST_PROMPTS:
        raise DataError(
            f"--prompts {options.prompts}: holds {len(prompts)} prompts; a repair needs at least {FEWEST_PROMPTS}."
        )
    count = min(options.n, len(prompts))
    return [prompts[place] for place in random.Random(f"repair {seed}").sample(range(len(prompts)), count)]


def _check_room(options: RepairOptions, damaged: GivenModel, *, trust_remote_code: bool) -> None:
    """Refuse answers so long that no prompt would have room before them."""
    folder = damaged.folder
    if is_adapter(folder):
        folder = AdaptedReader(folder, trust_remote_code=trust_remote_code).base_folder
    length = context_length(folder, trust_remote_code=trust_remote_code)
    if length is not None and options.max_new_tokens >= length:
        raise ConfigError(
            f"--answer-tokens {options.max_new_tokens}: leaves no room for a prompt, as the model reads {length} "
            "tokens; take fewer."
        )


def _repair(
    name: str,
    start: Model,
    damaged: Model,
    options: RepairOptions,
    prompts: Sequence[Prompt] | None,
    seed: int,
    *,
    trust_remote_code: bool,
    workers: int,
) -> Repair:
    """Return the stage that repairs the damaged model; the start samples prompts where none are given."""
    training = with_resolved_precision(options.training)
    compute = compute_for(training.precision)
    settings = ReplaySettings(Sampling(), seed, compute, trust_remote_code=trust_remote_code, workers=workers)
    return Repair(
        f"{name} <- damaged",
        start,
        damaged,
        Replay(name, start, options.n, settings, answered=False) if prompts is None else prompts,
        training,
        options.max_new_tokens,
        seed,
        trust_remote_code,
    )
