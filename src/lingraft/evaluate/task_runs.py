"""The tasks of an evaluation as they are run: which harness task, on which documents, for which ability and language.

What is built here is described by `manifest` and run by `running`.
"""

from __future__ import annotations

import inspect
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lingraft.config.schema import Evaluation, EvaluationTask
from lingraft.errors import EvaluationError
from lingraft.evaluate.checks import judge_problem
from lingraft.evaluate.expressions import Expression
from lingraft.evaluate.lm_eval_compat import quiet
from lingraft.evaluate.loading import NotRunnableError, data_revision, filter_of, load_tasks, metric_of
from lingraft.evaluate.predictions import Ability, Prediction
from lingraft.evaluate.selection import ability_of, asked_in, entries, wanted_languages
from lingraft.evaluate.task_data import fixed_sample
from lingraft.evaluate.task_names import OWN_TASKS, is_worldbook
from lingraft.evaluate.task_records import DataRevision
from lingraft.judge.win_rate import ALPACA_EVAL

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

# IFEval's verifiers of these instructions tokenise with NLTK's Punkt model, which the harness would download.
NEEDS_PUNKT = frozenset({"length_constraints:number_sentences", "change_case:capital_word_frequency"})

# What the harness seeds before it builds prompts and answers, by its own defaults; and langdetect, which IFEval asks.
SEEDS = {"python": 0, "numpy": 1234, "torch": 1234, "few_shot_examples": 1234, "langdetect": 0}


@dataclass(frozen=True)
class Run:
    """One harness task as it is run: for which ability and language, on which documents.

    Attributes:
        key: Unique: ability, name, language and the harness's name; one task may count for two abilities or languages.
        ability: What it counts towards.
        name: In predictions and tables.
        language: BCP-47 tag.
        task: The harness's.
        metric: Its score.
        filter: What answers go through before they are scored.
        documents: Numbers of those that are asked.
        left_out: Those that cannot be scored here, each with its reason.
        cluster: What items that share content have in common; None: as the task says, or the item alone.
        is_own: Whether the task is of lingraft's own.
        is_judged: Whether a judge scores its answers.
        data: Revision of its data.
        sample: Seed by which documents were drawn; None: they were not.
    """

    key: str
    ability: Ability
    name: str
    language: str
    task: ConfigurableTask
    metric: str
    filter: str
    documents: tuple[int, ...]
    left_out: tuple[str, ...]
    cluster: Expression | None
    is_own: bool
    is_judged: bool
    data: DataRevision
    sample: int | None

    @property
    def label(self) -> str:
        """Name and language, as the record has them; the tasks of a group share it."""
        return f"{self.name}/{self.language}"

    @property
    def generates(self) -> bool:
        """Whether the model answers in words; else the likelihood of given answers is asked."""
        return bool(self.task.config.output_type == "generate_until")

    @property
    def is_worldbook(self) -> bool:
        """Whether it is a family of worldbook."""
        return is_worldbook(self.name)

    def has(self, prediction: Prediction) -> bool:
        """Return whether a prediction is of this task, or of another one of its group."""
        own = (self.ability, self.name, self.language)
        return (prediction.ability, prediction.task, prediction.language) == own


def runs_of(
    evaluation: Evaluation,
    languages: Sequence[str],
    base_folder: Path,
    *,
    trust_remote_code: bool = False,
) -> list[Run]:
    """Return the tasks of an evaluation as they will be run, with their documents; see `evaluate_model`.

    Raises:
        EvaluationError: A task cannot be loaded, has no such metric, or cannot be divided into two parts.
    """
    runs, _ = build_runs(
        evaluation, languages, base_folder, skip_missing=False, trust_remote_code=trust_remote_code
    )
    return runs


def build_runs(
    evaluation: Evaluation,
    languages: Sequence[str],
    base_folder: Path,
    *,
    skip_missing: bool,
    trust_remote_code: bool = False,
) -> tuple[list[Run], dict[str, str]]:
    """Return the tasks of an evaluation as they will be run, and why others cannot be, by name and language.

    Raises:
        EvaluationError: A task cannot be loaded, has no such metric, or cannot be divided into two parts;
            `skip_missing`: not for want of its data.
    """
    runs: list[Run] = []
    not_run: dict[str, str] = {}
    hub_out_of_reach = False
    for ability, entry in entries(evaluation):
        for name, language in asked_in(entry, wanted_languages(ability, evaluation, languages)):
            try:
                problem = judge_problem(entry, evaluation)
                if problem is not None:
                    raise NotRunnableError(
                        f"the task {entry.task} cannot be run: {problem}", problem, is_hub_out_of_reach=False
                    )
                # Of a half, the limit is taken once it is known which items are in it.
                is_halved = evaluation.part != "all" and not is_worldbook(entry.task)
                tasks = load_tasks(
                    entry.model_copy(update={"limit": None}) if is_halved else entry,
                    base_folder,
                    name=name,
                    language=language,
                    split=evaluation.worldbook_split,
                    hub_out_of_reach=hub_out_of_reach,
                    trust_remote_code=trust_remote_code,
                )
                counted = ability_of(ability, language, languages)
                with quiet():
                    runs += [
                        _run(counted, name, language, entry, task, evaluation, base_folder) for task in tasks
                    ]
            except NotRunnableError as error:
                if not skip_missing:
                    raise
                hub_out_of_reach = hub_out_of_reach or error.is_hub_out_of_reach
                not_run[f"{name}/{language}"] = error.reason
    return runs, not_run


def _run(
    ability: Ability,
    name: str,
    language: str,
    entry: EvaluationTask,
    task: ConfigurableTask,
    evaluation: Evaluation,
    base_folder: Path,
) -> Run:
    if entry.max_new_tokens is not None and task.config.output_type == "generate_until":
        task.set_config("generation_kwargs", {"max_gen_toks": entry.max_new_tokens}, update=True)
    task.set_config("num_fewshot", task.config.num_fewshot or 0)
    cluster = None if entry.cluster is None else Expression(entry.cluster, f"the task {entry.task}: cluster")
    rows = task.eval_docs
    is_halved = evaluation.part != "all" and not is_worldbook(entry.task)
    documents = _half(entry, task, cluster, evaluation) if is_halved else tuple(range(len(rows)))
    if entry.limit is not None and entry.limit < len(documents):
        if entry.sample is not None:  # parallel sets of one length give the same ones
            drawn = random.Random(entry.sample).sample(range(len(documents)), entry.limit)
            documents = tuple(documents[place] for place in sorted(drawn))
        elif is_halved and entry.task in OWN_TASKS and "id" in rows.column_names:  # as those tasks take it
            by_id = [{"id": rows[number]["id"], "number": number} for number in documents]
            documents = tuple(one["number"] for one in fixed_sample(by_id, entry.limit))
        else:
            documents = documents[: entry.limit]
    left_out: tuple[str, ...] = ()
    if "instruction_id_list" in rows.column_names and punkt_data() is None:  # never score these items 0
        needy = {number for number in documents if NEEDS_PUNKT & set(rows[number]["instruction_id_list"])}
        reason = "needs NLTK's punkt_tab, which is not installed (python -m nltk.downloader punkt_tab)"
        left_out = tuple(f"{name}: item {rows[one].get('key', one)}: {reason}" for one in sorted(needy))
        documents = tuple(number for number in documents if number not in needy)
    if not documents:
        reason = left_out[0] if left_out else "its data set is empty."
        raise EvaluationError(f"the task {entry.task}: no item can be scored: {reason}")
    return Run(
        key=f"{ability}|{name}|{language}|{task.config.task}",
        ability=ability,
        name=name,
        language=language,
        task=task,
        metric=metric_of(entry, task),
        filter=filter_of(entry, task),
        documents=documents,
        left_out=left_out,
        cluster=cluster,
        is_own=entry.task in OWN_TASKS,
        is_judged=entry.task == ALPACA_EVAL,
        data=data_revision(entry, task, base_folder),
        sample=entry.sample,
    )


def _half(
    entry: EvaluationTask, task: ConfigurableTask, cluster: Expression | None, evaluation: Evaluation
) -> tuple[int, ...]:
    """Return the numbers of the documents in an evaluation's part, half of the clusters on average.

    The part is a hash of the seed and of the cluster, and of the text where the task says no cluster. So what is
    parallel or equal is in the same half, whatever task, language or order it stands in.

    Raises:
        EvaluationError: One half would be empty, or an item cannot be read.
    """
    halves: dict[str, list[int]] = {"selection": [], "report": []}
    keys: set[str] = set()
    rows = task.eval_docs
    for number, document in enumerate(rows):
        key = stated_cluster(cluster, entry.task in OWN_TASKS, number, document)
        key = _text(task, document) if key is None else key
        digest = sha256(f"{evaluation.part_seed}\0{key}".encode()).digest()
        halves["report" if digest[0] % 2 else "selection"].append(number)
        keys.add(key)
    if len(rows) and not all(halves.values()):
        if len(keys) > 1:
            reason = f"all of its {len(rows)} items fall into one part at part_seed {evaluation.part_seed}"
        else:
            reason = "it has 1 item" if len(rows) == 1 else f"its {len(rows)} items share one cluster or text"
        raise EvaluationError(
            f"the task {entry.task} cannot be divided into a selection and a report part: {reason}. Give it more items"
            f"{', or another part_seed' if len(keys) > 1 else ''}."
        )
    return tuple(halves[evaluation.part])


def _text(task: ConfigurableTask, document: Mapping[str, Any]) -> str:
    """Return what of a document two equal items share: prompt and choices; of a bare text, that text."""
    try:
        parts = [asked_text(task, document), *choices_of(task, document)]
        found = " ".join(" ".join(parts).split()) or expected_text(task, document)
    except Exception:  # a kind of task that has no such parts: see `manifest`
        found = json.dumps(dict(document), sort_keys=True, default=str, ensure_ascii=False)
    return found


def stated_cluster(
    cluster: Expression | None, is_own: bool, number: int, document: Mapping[str, Any]
) -> str | None:
    """Return what a document shares content by, as the entry says it, else as our own task does; None: neither does."""
    if cluster is not None:
        return str(cluster(document, number))
    return str(document["cluster"]) if is_own and "cluster" in document else None


def punkt_data() -> Path | None:
    """Return where NLTK finds the English sentence data that some of IFEval's verifiers need; None: nowhere."""
    import nltk

    try:
        return Path(str(nltk.data.find("tokenizers/punkt_tab/english/")))
    except LookupError:
        return None


def item_of_document(run: Run, number: int) -> str:
    """Return what a document is called in predictions; worldbook's are called by their group."""
    return f"{run.key.rpartition('|')[2]}/{number}"


def item_and_cluster(run: Run, number: int, document: Mapping[str, Any]) -> tuple[str, str]:
    """Return an item's name, and what items that share content have in common.

    That is said by the entry, else by our own task, else it is the item alone.
    """
    from lingraft.evaluate.tasks.worldbook.task import cluster_of

    if run.is_worldbook:
        group = cluster_of(document["item"])
        return group, group
    item, stated = item_of_document(run, number), stated_cluster(run.cluster, run.is_own, number, document)
    return item, item if stated is None else stated


def choices_of(task: ConfigurableTask, row: Any) -> list[str]:
    """Return the choices of an item, empty where it has none."""
    return [] if task.config.doc_to_choice is None else list(map(str, task.doc_to_choice(row)))


def asked_text(task: ConfigurableTask, row: Any) -> str:
    """Return an item's prompt; of a task whose prompts differ by choice (Winogrande), all of them."""
    prompt = task.doc_to_text(row)
    return prompt if isinstance(prompt, str) else "\n".join(map(str, task.doc_to_choice(row)))


def expected_text(task: ConfigurableTask, row: Any) -> str:
    """Return the answer that a task expects to an item."""
    target = task.doc_to_target(row)
    if isinstance(target, int) and task.config.doc_to_choice is not None:
        return str(task.doc_to_choice(row)[target])
    return "\n".join(map(str, target)) if isinstance(target, list) else str(target)


def template_of(task: ConfigurableTask) -> dict[str, object]:
    """Return what makes a task's prompts and answers of its documents; code stands for itself."""
    config = task.config
    return {
        "text": _source(config.doc_to_text),
        "choice": _source(config.doc_to_choice),
        "target": _source(config.doc_to_target),
        "description": _source(config.description),
        "prefix": _source(config.gen_prefix),
        "delimiters": [config.target_delimiter, config.fewshot_delimiter],
        "few_shot_examples": config.num_fewshot,
        "generation": config.generation_kwargs,
        "repeats": config.repeats,
    }


def _source(part: Any) -> Any:
    """Return a part of a task's configuration, at any depth, with its source in the place of code."""
    if isinstance(part, dict):
        return {key: _source(one) for key, one in part.items()}
    if isinstance(part, (list, tuple)):
        return [_source(one) for one in part]
    if isinstance(part, partial):
        return [_source(part.func), _source(part.args), _source(part.keywords)]
    if not callable(part):
        return part
    return inspect.getsource(part if inspect.isroutine(part) else type(part))


def code_of(run: Run) -> list[object]:
    """Return what scores a task's answers beside the harness.

    These are its functions' source, its metrics, the steps of the filter that answers go through, and the files beside
    its YAML.
    """
    config = run.task.config
    files = run.data.files or {}
    return [
        _source(config.process_results),
        _source(config.metric_list),
        [_source(one["filter"]) for one in config.filter_list or () if one["name"] == run.filter],
        sorted(digest for name, digest in files.items() if name.endswith(".py")),
    ]


def few_shot_of(task: ConfigurableTask) -> list[object]:
    """Return what makes the examples before an item: their documents, and how they are chosen and written."""
    config = task.config
    made = {
        name: _source(getattr(config.fewshot_config, name, None))
        for name in (
            "sampler",
            "fewshot_indices",
            "doc_to_text",
            "doc_to_choice",
            "doc_to_target",
            "gen_prefix",
            "fewshot_delimiter",
            "target_delimiter",
        )
    }
    return [config.num_fewshot, made, [dict(row) for row in task.fewshot_docs() or ()]]


def reads_whole_documents(run: Run) -> bool:
    """Return whether a task's scorer is its own, and so may read any field of a document."""
    from lm_eval.api.task import ConfigurableTask

    own = type(run.task).process_results is not ConfigurableTask.process_results
    return own or run.is_judged or run.task.config.process_results is not None
