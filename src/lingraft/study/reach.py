"""What a study needs from elsewhere: the hub's models and data sets, and a judge; asked for before data are read.

Without a network each of the hub's libraries tries for half a minute, one after the other. Here the hub is asked once,
and only where something is in no cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lingraft.config.paths import user_path
from lingraft.config.schema import Evaluation, EvaluationTask, JudgeChoice, ServerChoice, Study
from lingraft.data.files import is_local
from lingraft.data.sources import WORLDBOOK_PREFIX
from lingraft.errors import ConfigError, EvaluationError, in_one_line
from lingraft.evaluate.catalogue import catalogue, filled
from lingraft.evaluate.loading import is_local as is_local_task
from lingraft.evaluate.selection import entries, expanded, label_of, listed_tasks, wanted_languages
from lingraft.evaluate.task_files import read_task_file
from lingraft.evaluate.task_names import OWN_TASKS, SUITE, harness_names, is_task_file, is_worldbook
from lingraft.judge.budget import Ledger
from lingraft.judge.client import ChatClient, key_from_environment
from lingraft.judge.win_rate import ALPACA_EVAL, Judge
from lingraft.models.completions import models_at
from lingraft.models.model_names import EMBEDDED_PREFIX

_SECONDS = 5.0


@dataclass(frozen=True)
class Needed:
    """Something of the hub's.

    Attributes:
        place: Who needs it.
        kind: What it is.
        id: What the hub calls it.
        instead: What helps where it cannot be had.
    """

    place: str
    kind: Literal["model", "dataset"]
    id: str
    instead: str


def check_reach(study: Study, base_folder: Path, before: Study | None = None) -> None:
    """Refuse a study that needs what cannot be had here: one message with everything.

    Args:
        study: The study.
        base_folder: What the paths of tasks are relative to.
        before: The study that was run here before: what that had, a finished one needs no more. None: none was.

    Raises:
        ConfigError: The hub has something that is in no cache, and cannot be reached; or the judge cannot be used.
    """
    problems: list[str] = []
    had = set() if before is None else {one.id for one in needed_of_hub(before, base_folder)}
    missing = [one for one in needed_of_hub(study, base_folder) if one.id not in had and not _is_cached(one)]
    reason = _why_unreachable() if missing else None
    if reason is not None:
        problems += dict.fromkeys(
            f"{one.place}: {one.id}: is not here, and the Hugging Face hub cannot be reached ({reason}): {one.instead}."
            for one in missing
        )
    judge = _judge_of(study, base_folder)
    if judge is not None and (before is None or judge != _judge_of(before, base_folder)):
        problems += filter(None, [judge_failure(study.evaluate, may_ask=True)])
    backend = study.evaluate.backend
    if not isinstance(backend, str) and (before is None or backend != before.evaluate.backend):
        problems += filter(None, [server_failure(backend)])
    if problems:
        raise ConfigError("\n".join(problems))


def server_failure(choice: ServerChoice) -> str | None:
    """Return why a server that runs cannot generate, None where it lists its models, or is yet to be started."""
    if choice.server is None:
        return None
    try:
        models_at(choice, choice.server)
    except EvaluationError as error:
        return f"evaluate.backend: {error}"
    return None


def _judge_of(study: Study, base_folder: Path) -> JudgeChoice | None:
    """Return the judge that a study asks; None: no task of it needs one."""
    labels = (label_of(entry) for entry in _asked(study, base_folder))
    return study.evaluate.judge if ALPACA_EVAL in labels else None


def judge_failure(evaluation: Evaluation, *, may_ask: bool) -> str | None:
    """Return why the judge of an evaluation cannot be used, None where it answers or may answer later.

    It is asked which models it has, which costs nothing; with `may_ask`, and where no budget is set, it is asked for
    one letter instead: any endpoint answers that, and says whether it has the model.
    """
    if evaluation.judge is None:
        return None
    judge = Judge.of(evaluation.judge)
    ledger = Ledger(judge.prices, judge.budget)
    key = key_from_environment()
    try:
        with ChatClient(judge.endpoint, key, ledger, max_tokens=judge.options.max_tokens) as client:
            client.check(may_cost=may_ask and judge.budget is None)
    except EvaluationError as error:
        return f"evaluate.judge: {error}"
    return None


def needed_of_hub(study: Study, base_folder: Path) -> Iterator[Needed]:
    """Yield what a study takes from the hub, as far as is known before its data are read."""
    first = study.phases[0]
    for place, model in (("model", study.model), (f"phases[0] ({first.name}).checkpoint", first.checkpoint)):
        if model is None or model.startswith(EMBEDDED_PREFIX) or user_path(model).exists():
            continue
        name, instead = model.partition("@")[0], "name a local folder with config.json and safetensors"
        yield Needed(place, "model", name, instead)
    for index, phase in enumerate(study.phases):
        for name, data in phase.data.items():
            if not data.source.startswith(WORLDBOOK_PREFIX) and not is_local(data.source, base_folder):
                place = f"phases[{index}] ({phase.name}).data.{name}.source"
                yield Needed(place, "dataset", data.source, "name local files")
    for entry in _asked(study, base_folder):
        found = _data_set_of(entry, base_folder)
        if found is None:
            continue
        known = catalogue().get(entry.name or "")  # a suite's
        instead = "give the task `data:`, a local json or jsonl file of its rows"
        if known is not None and known.copies:
            copy = filled(known.copies[0], entry.language or "en", entry.language or "en")
            instead = f"put a copy into the folder of `evaluate.data_dir`, as {copy}"
        elif entry.task in catalogue() and study.evaluate.data_dir is not None:
            instead += (
                ", or take it from a suite (`task: suite:NAME`, `without:` the others): only a suite's data are looked "
                "for in `evaluate.data_dir`"
            )
        yield Needed(f"evaluate: {label_of(entry)}", "dataset", found, instead)


def _asked(study: Study, base_folder: Path) -> Iterator[EvaluationTask]:
    """Yield the tasks of an evaluation, those of suites in their place, in the languages that are known already."""
    stated = {tag for phase in study.phases for data in phase.data.values() if (tag := data.language)}
    for ability, entry in entries(study.evaluate):
        if not entry.task.startswith(SUITE):
            yield entry
            continue
        every = wanted_languages(ability, study.evaluate, sorted(stated - {"en"}))
        for one in listed_tasks(entry, ability):
            tags = every if entry.language is None else (entry.language,)
            yield from expanded(one, tags, study.evaluate.data_dir, base_folder)


def _data_set_of(entry: EvaluationTask, base_folder: Path) -> str | None:
    """Return the hub's data set of a task; None: it has local data or brings them along, or is a group of tasks."""
    if is_worldbook(entry.task) or is_local_task(entry, base_folder):
        return None
    if entry.task in OWN_TASKS:
        known = catalogue().get(label_of(entry))
        return None if known is None else known.hub
    path = base_folder / entry.task if is_task_file(entry.task) else None
    if path is None:
        listed = harness_names()[entry.task]
        path = Path(listed.path) if listed.kind == "TASK" and listed.path is not None else None
    if path is None:
        return None
    try:
        found = read_task_file(path).get("dataset_path")
    except ConfigError:  # of another form; loading it says what it needs
        return None
    is_id = isinstance(found, str) and not (base_folder / found).exists() and "/" in found
    return found if is_id else None


def _is_cached(one: Needed) -> bool:
    """Return whether the hub's client or the datasets library has something of that name already."""
    import datasets.config
    from huggingface_hub.constants import HF_HUB_CACHE

    snapshots = Path(HF_HUB_CACHE) / f"{one.kind}s--{one.id.replace('/', '--')}" / "snapshots"
    if snapshots.is_dir() and any(snapshots.iterdir()):
        return True
    prepared = Path(datasets.config.HF_DATASETS_CACHE)
    wanted = one.id.replace("/", "___").casefold()
    return (
        one.kind == "dataset"
        and prepared.is_dir()
        and any(folder.name.casefold() == wanted for folder in prepared.iterdir())
    )


def _why_unreachable() -> str | None:
    import httpx
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        httpx.head(ENDPOINT, timeout=_SECONDS)
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        return in_one_line(error)[:100] or type(error).__name__
    return None
