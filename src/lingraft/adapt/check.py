"""Whether a model lost more than it may against an earlier one: the gate of continuous integration.

Both evaluations are stages of one store, so that the earlier model is asked once for all that are checked against it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lingraft.adapt.checked import FORMAT, Checked
from lingraft.adapt.gate import MaxLosses, check_pair
from lingraft.adapt.promise import AbilityLoss, answer_of, loss_of
from lingraft.config.load import backend_of
from lingraft.config.schema import ServerChoice
from lingraft.evaluate.manifest import chat_identity
from lingraft.evaluate.running import (
    shortfalls,
)
from lingraft.evaluate.scores import measured_by
from lingraft.evaluate.shown_names import names_in_files, names_in_keys
from lingraft.intervals.changes import LimitAnswer
from lingraft.models.compute import AskedPrecision
from lingraft.models.loading import load_tokenizer
from lingraft.models.tensor_files import is_adapter
from lingraft.stage import GivenModel
from lingraft.study.evaluation import (
    Asked,
    EvaluationOptions,
    ModelEvaluation,
    Part,
    ask,
    evaluate_in,
    evaluations,
    not_run_lines,
    paired,
)
from lingraft.study.events import Watcher
from lingraft.study.execute import Executor
from lingraft.study.stages.evaluate import PREDICTIONS, Evaluate
from lingraft.study.store import Store
from lingraft.text.language_tags import ENGLISH

FOLDER = Path("runs") / "check"


@dataclass(frozen=True)
class Gate:
    """What both models are asked, and what may be lost of it.

    Attributes:
        asked: What is asked.
        max_losses: Each ability has a limit.
        each_task: Whether every task decides.
        not_run: By task and language, why it cannot be run here, and where its data were looked for.
    """

    asked: Asked
    max_losses: MaxLosses
    each_task: bool
    not_run: Mapping[str, str]

    @property
    def tasks(self) -> tuple[str, ...]:
        """By name and language, what was asked for, also what cannot be run; English first, then by language."""
        names = ["/".join(key.split("|", 3)[1:3]) for key in self._keys]
        found = dict.fromkeys([*names, *self.not_run])
        return tuple(sorted(found, key=lambda one: (_language(one) != ENGLISH, _language(one))))

    @property
    def _keys(self) -> tuple[str, ...]:
        keys = self.asked.questions.manifest["tasks"]
        return tuple(keys) if isinstance(keys, Mapping) else ()

    @property
    def shown_names(self) -> dict[str, str]:
        """By path, what a task that is given as a file is called in tables."""
        return names_in_files(names_in_keys(self._keys))

    @property
    def abilities(self) -> tuple[str, ...]:
        """BCP-47 tags of the languages that were asked for, English first."""
        return tuple(dict.fromkeys(_language(name) for name in self.tasks))

    @property
    def deciding_tasks(self) -> tuple[str, ...]:
        """The tasks that decide besides the abilities."""
        return tuple(name for name in self.tasks if self.each_task or name in self.max_losses.named)


def _language(task: str) -> str:
    """Return the language of a task that is named with it."""
    return task.rpartition("/")[2]


def check(
    model: str | Path,
    against: str | Path,
    max_loss: float | None = None,
    *,
    limits: Mapping[str, float] | None = None,
    suite: str = "quick",
    tasks: str | Path | Sequence[str | Path] = (),
    languages: str | Sequence[str] = (),
    each_task: bool = False,
    data_dir: str | Path | None = None,
    limit: int | None = None,
    part: Part = "all",
    max_new_tokens: int | None = None,
    batch_size: int | None = None,
    precision: AskedPrecision = "auto",
    backend: str | ServerChoice | Mapping[str, Any] = "transformers",
    chat: bool = True,
    processes: int | None = None,
    trust_remote_code: bool = False,
    folder: str | Path = FOLDER,
    watcher: Watcher | None = None,
) -> Checked:
    """Return whether a model lost more than it may against an earlier one, as `lingraft check` does.

    Args:
        model: A folder, hub id, `embedded:NAME`, or the folder of a LoRA adapter.
        against: The model from before, likewise.
        max_loss: What may be lost of each ability: a share of the score before, in [0, 1); None: `limits` says all.
        limits: The same by BCP-47 tag (`en`: English), or by task and language (`ifeval/en`), which then decides too.
        suite: Name of a suite of tasks.
        tasks: `[TAG=]NAME`: only these tasks of it, harness tasks or YAML files; empty: all of the suite.
        languages: Languages besides English; each decides.
        each_task: Every task decides as well.
        data_dir: Folder with local copies of data sets; None: all come from the hub.
        limit: Most items of each task; None: the suite's.
        part: All items, or one half of each task's.
        max_new_tokens: Most tokens of an answer; None: each task's own.
        batch_size: Most answers generated together; None: as many as fit.
        precision: Of the arithmetic; auto: bf16 where it is clearly faster.
        backend: What generates answers; see `evaluate`.
        chat: Apply the chat template to prompts.
        processes: How many answer, each with the whole model; None: one an accelerator, one without any.
        trust_remote_code: Run Python code that models and YAML tasks bring along.
        folder: Where evaluations are kept: what is there is not asked again.
        watcher: Receives progress.

    Raises:
        ConfigError: An option is wrong, both models are the same, or a limit is of nothing that is asked.
        ModelError: A model cannot be had.
        EvaluationError: None of the tasks can be run, or one fails.
    """
    max_losses = MaxLosses.of(max_loss, limits or {})
    check_pair(str(model), str(against))
    options = EvaluationOptions(
        suite=suite,
        tasks=tuple(map(str, [tasks] if isinstance(tasks, (str, Path)) else tasks)),
        languages=tuple(languages.split(",") if isinstance(languages, str) else languages),
        data_dir=None if data_dir is None else str(data_dir),
        limit=limit,
        part=part,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        precision=precision,
        backend=backend_of(backend, "backend"),
        chat=chat,
    )
    gate = gate_of(
        options,
        max_losses,
        each_task=each_task,
        trust_remote_code=trust_remote_code,
        processes=processes,
    )
    return check_models(
        str(model),
        str(against),
        gate,
        folder=Path(folder),
        trust_remote_code=trust_remote_code,
        watcher=watcher,
    )


def gate_of(
    options: EvaluationOptions,
    max_losses: MaxLosses,
    *,
    each_task: bool = False,
    trust_remote_code: bool = False,
    processes: int | None = None,
) -> Gate:
    """Resolve what both models are asked; no model is looked at.

    Args:
        options: What to ask.
        max_losses: What may be lost.
        each_task: Whether every task decides.
        trust_remote_code: Run Python code that YAML tasks bring along.
        processes: How many answer; None: one an accelerator, one without any.

    Raises:
        ConfigError: There is no such suite, task, language or folder, or a limit is of nothing that is asked.
        EvaluationError: None of the tasks can be run, or the templates of one fail.
    """
    asked = ask(options, trust_remote_code=trust_remote_code, processes=processes)
    lines = not_run_lines(asked.questions, options.data_dir)
    not_run = {
        name: line.removeprefix(f"{name}: not run: ")
        for name, line in zip(asked.questions.not_run, lines, strict=True)
    }
    gate = Gate(asked, max_losses, each_task, not_run)
    max_losses.check_against(gate.abilities, gate.tasks)
    return gate


def check_models(
    model: str,
    against: str,
    gate: Gate,
    *,
    names: tuple[str, str] | None = None,
    folder: Path = FOLDER,
    trust_remote_code: bool = False,
    watcher: Watcher | None = None,
) -> Checked:
    """Return what a model lost against an earlier one. Arguments and errors as of `check`.

    `names` are what the answer calls the two, the one that is checked first; None: as they are named.
    """
    called, before_called = names or (model, against)
    stages = evaluations(
        [against, model],
        gate.asked.questions,
        [before_called, called],
        trust_remote_code=trust_remote_code,
    )
    if _are_prompted_otherwise(stages):  # known without an answer
        advice = "ask both without one (`--no-chat`), or give both models the same"
        sentence = f"not compared, because the models have different chat templates; {advice}."
        not_paired = {task: f"{task}: {sentence}" for task in gate.tasks if task not in gate.not_run}
        return replace(
            _found(gate, {}, gate.not_run, {}, not_paired, ()), model=called, against=before_called
        )
    with Store(folder) as store:
        executor = Executor(store, watcher)
        before, after = (evaluate_in(stage, executor) for stage in stages)
        places = [store.folder_of(stage) / PREDICTIONS for stage in stages]
    found = compare_evaluations(before, after, gate)
    if stages[0].fingerprint == stages[1].fingerprint:
        found = same_model(found)
    first, second = (place.relative_to(folder).as_posix() for place in places)
    return replace(found, folder=str(folder), predictions=(first, second))


def _are_prompted_otherwise(stages: Sequence[Evaluate]) -> bool:
    """Return whether prompts go through different chat templates; of an adapter that is known once it is loaded."""
    folders = [stage.model.folder for stage in stages if isinstance(stage.model, GivenModel)]
    if any(is_adapter(folder) for folder in folders):
        return False
    tokenizers = [
        load_tokenizer(folder, trust_remote_code=stage.trust_remote_code)
        for folder, stage in zip(folders, stages, strict=True)
    ]
    return len({chat_identity(one, stages[0].questions.evaluation) for one in tokenizers}) > 1


def compare_evaluations(before: ModelEvaluation, after: ModelEvaluation, gate: Gate) -> Checked:
    """Return what the second of two evaluations lost against the first, on the items that both were asked alike.

    Args:
        before: Of the model from before.
        after: Of the model that is checked.
        gate: What both should have been asked. What of it decides and could not be measured leaves it undecided.
    """
    common = paired(before, after)
    losses: dict[str, AbilityLoss] = {}
    for name in (*gate.abilities, *gate.tasks):
        ability = "task_ability" if name == ENGLISH else name
        earlier, later = (measured_by(own, ability) for own in common.models)
        max_loss = gate.max_losses.of_ability(name, _language(name))
        if earlier and max_loss is not None:
            losses[name] = loss_of(name, earlier, later, max_loss)
    not_run, notes = dict(gate.not_run), []
    for own in (before, after):
        not_run |= {name: f"{own.model}: {reason}" for name, reason in own.record.no_room.items()}
        notes += [f"{own.model}: {note}" for note in shortfalls(own.scores)]
    found = _found(gate, losses, not_run, common.unpaired, common.refused, notes)
    return replace(found, model=after.model, against=before.model)


def _found(
    gate: Gate,
    losses: Mapping[str, AbilityLoss],
    not_run: Mapping[str, str],
    unpaired: Mapping[str, int],
    not_paired: Mapping[str, str],
    notes: Sequence[str],
) -> Checked:
    """Return what is found of two models, yet to be named, of the losses that could be measured."""
    unmeasured: dict[str, str] = {}
    for name in (*gate.abilities, *gate.deciding_tasks):
        if name not in losses:
            unmeasured[name] = " ".join(
                not_paired.get(task)
                or f"{task} was {f'not run: {not_run[task]}' if task in not_run else 'asked alike in no item.'}"
                for task in gate.tasks
                if name in (task, _language(task))
            )
    if gate.asked.options.tasks:  # each that was named is missed
        by_task: dict[str, list[str]] = {}
        for task in gate.tasks:
            by_task.setdefault(task.rpartition("/")[0], []).append(task)
        for name, own in by_task.items():
            is_said = all({task, _language(task)} & unmeasured.keys() for task in own)
            if not is_said and not losses.keys() & set(own):
                unmeasured[name] = "it was asked for by name, and could be compared in no language."
    stand_ins = [note for note in gate.asked.notes if note.partition(": not run: ")[0] not in gate.not_run]
    found = Checked(
        format=FORMAT,
        answer="undecided",
        model="",
        against="",
        are_equal=False,
        abilities=tuple(losses[name] for name in gate.abilities if name in losses),
        tasks=tuple(losses[name] for name in gate.tasks if name in losses),
        deciding_tasks=gate.deciding_tasks,
        unmeasured=unmeasured,
        not_run=dict(not_run),
        unpaired=dict(unpaired),
        not_paired=dict(not_paired),
        notes=(*stand_ins, *notes),
        part=gate.asked.options.part,
        precision=gate.asked.options.precision,
        folder=None,
        predictions=None,
    )
    return replace(found, answer=_answer(found))


def same_model(found: Checked) -> Checked:
    """Return the check of a model against itself: what it scores on other items is the same as well.

    Of a score of 0 there is no share, so it stays undecided.
    """
    abilities, tasks = (
        tuple(
            one if one.loss is None else replace(one, loss=0.0, low=0.0, high=0.0, answer="held")
            for one in own
        )
        for own in (found.abilities, found.tasks)
    )
    equal = replace(found, are_equal=True, abilities=abilities, tasks=tasks)
    return replace(equal, answer=_answer(equal))


def _answer(found: Checked) -> LimitAnswer:
    answer = answer_of(found.deciding)
    return "undecided" if answer == "held" and found.unmeasured else answer
