"""Evaluate a model in memory with lm-evaluation-harness: worldbook's tasks, harness tasks, a user's YAML tasks.

The harness builds the requests, generates and scores; what comes back is one prediction per item. Intervals are
ours (`statistics`). Nothing is printed: the harness's own progress and log lines are kept down, and progress is
told through a callback.
"""

from __future__ import annotations

import inspect
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from lingraft.config.schema import Evaluation, EvaluationTask
from lingraft.data.chat_template import chat_template
from lingraft.data.control_tokens import without_marks
from lingraft.data.worldbook import FAMILIES
from lingraft.errors import EvaluationError
from lingraft.evaluate.alpaca_eval_task import judge_predictions
from lingraft.evaluate.answer_faults import AnswerJudge
from lingraft.evaluate.answers import AnswerLog, ItemCount, request_key
from lingraft.evaluate.judge import ALPACA_EVAL, Judge, Judged, Output
from lingraft.evaluate.local_rows import Expression
from lingraft.evaluate.noise import noise_floor
from lingraft.evaluate.own_tasks import OWN_TASKS
from lingraft.evaluate.predictions import Ability, Prediction
from lingraft.evaluate.tasks import (
    ENGLISH,
    NotRunnableError,
    data_revision,
    entries,
    file_manager,
    filter_of,
    is_worldbook,
    judge_problem,
    label_of,
    load_tasks,
    metric_of,
    quiet,
)
from lingraft.records import fingerprint_of

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lingraft.evaluate.in_memory import InMemoryModel, MakeGenerator

# IFEval's verifiers of these instructions tokenise with NLTK's Punkt model, which the harness would download.
NEEDS_PUNKT = frozenset({"length_constraints:number_sentences", "change_case:capital_word_frequency"})

# What the harness seeds before it builds prompts and answers, by its own defaults; and langdetect, which IFEval asks.
SEEDS = {"python": 0, "numpy": 1234, "torch": 1234, "worked_examples": 1234, "langdetect": 0}

WIN_RATE = "win_rate"

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation found.

    Attributes:
        predictions: One per item.
        left_out: Items that could not be scored, each with its reason; they count nowhere.
        truncated: Answers that used all the tokens that they were allowed, by task that generates; of those in
            `predictions`.
        shortened: Items whose prompts did not fit into the model and lost their beginning, by task that has any.
        tasks: By task: version, metric, filter, items, revision of its data, seed of its sample, the hashes of its
            prompts and of their template, and of a judged one what is to be told about the judging.
        not_run: By task and language, why its data (or its judge) could not be had here; empty unless such tasks were
            to be skipped.
        no_room: By task and language, why its answers do not fit into this model; empty as `not_run` is.
        noise: What repeating the generating tasks changed (see `noise`); None: they ran once.
    """

    predictions: tuple[Prediction, ...]
    left_out: tuple[str, ...]
    truncated: dict[str, int]
    shortened: dict[str, int]
    tasks: dict[str, dict[str, Any]]
    not_run: dict[str, str]
    no_room: dict[str, str]
    noise: dict[str, Any] | None = None


@dataclass(frozen=True)
class _Run:
    """One harness task as it is run: for which ability and language, on which documents.

    `key` names it uniquely: one task may count for two abilities or languages.
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
    revision: dict[str, Any]

    @property
    def label(self) -> str:
        """Name and language, as the record has them; the tasks of a group share it."""
        return f"{self.name}/{self.language}"


def evaluate_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    evaluation: Evaluation,
    *,
    languages: Sequence[str],
    split: str = "report",
    base_folder: Path = Path(),
    skip_missing: bool = False,
    log: Path | None = None,
    verdicts: Path | None = None,
    make_generator: MakeGenerator | None = None,
    on_progress: OnProgress | None = None,
    on_judged: OnProgress | None = None,
) -> Evaluated:
    """Score a model on the tasks of a study.

    Args:
        model: In the precision that it is to be evaluated in; left as it is.
        tokenizer: The model's own.
        evaluation: The tasks; `worldbook` is English in task ability, and each of `languages` in language ability.
        languages: BCP-47 tags of the study's languages besides English.
        split: worldbook's split.
        base_folder: What the paths of YAML tasks and data files are relative to.
        skip_missing: Leave out tasks whose data (or a service that they need) cannot be had here, and those whose
            answers do not fit into the model, perhaps all.
        log: A file that answers of this model are kept in as they come, so that the same evaluation goes on from
            them after an interruption; None: they are not kept.
        verdicts: A file that a judge's verdicts are kept in, for any number of models; None: they are not kept.
        make_generator: Makes another engine for generation, such as vLLM, when it is needed; None: the model itself.
        on_progress: Called with the items so far and in all.
        on_judged: Called with a judge's verdicts so far and in all, of one judged task after the other; the items are
            done then.

    Raises:
        EvaluationError: A task cannot be loaded, has no such metric, has answers that do not fit into the model, or
            scores outside [0, 1]; or the judge gives no verdicts.
    """
    from lingraft.evaluate.in_memory import Batching, InMemoryModel

    runs, not_run = _build(evaluation, languages, split, base_folder, skip_missing=skip_missing)
    no_room = _no_room(runs, model, tokenizer, skip_missing=skip_missing)
    runs = [run for run in runs if run.label not in no_room]
    if not runs and not skip_missing:
        raise EvaluationError("no task is left to evaluate.")
    generating = [run for run in runs if run.task.config.output_type == "generate_until"]
    again = [run for run in generating if not run.is_judged]
    repeated = [runs, *[again] * (evaluation.repeats - 1)] if again else [runs]
    answers = AnswerLog(log)
    count = ItemCount(sum(len(run.documents) for own in repeated for run in own), on_progress)
    judge = AnswerJudge([ENGLISH, *languages, *(run.language for run in runs)])
    rounds = []
    shortened: dict[str, int] = {}
    for repeat, own in enumerate(repeated):
        with quiet():
            lm = InMemoryModel(
                model,
                tokenizer,
                Batching(evaluation.batch_size, evaluation.tokens_per_batch, repeat),
                answers,
                count,
                chat=evaluation.apply_chat_template,
                make_generator=make_generator,
            )
        samples = _run_harness(lm, tokenizer, evaluation, own) if own else {}
        shortened = shortened or _count_shortened(own, samples, lm.shortened)
        rounds.append([one for run in own for one in _predictions(run, samples[run.key], judge, lm.ended)])
    judged: dict[str, Judged] = {}
    for run in runs:
        if run.is_judged:
            rounds[0], judged[run.label] = _judge(run, rounds[0], evaluation, verdicts, on_judged)
    predictions = rounds[0]
    return Evaluated(
        predictions=tuple(predictions),
        left_out=(
            *(reason for run in runs for reason in run.left_out),
            *(f"{label}: {reason}" for label, one in judged.items() for reason in one.left_out),
        ),
        truncated=_count_truncated(generating, predictions),
        shortened=shortened,
        tasks=_describe(runs, predictions, judged),
        not_run=not_run,
        no_room=no_room,
        noise=noise_floor(rounds) if len(rounds) > 1 else None,
    )


def runs_of(evaluation: Evaluation, languages: Sequence[str], split: str, base_folder: Path) -> list[_Run]:
    """Return the tasks of an evaluation as they will be run, with their documents; see `evaluate_model`.

    Raises:
        EvaluationError: A task cannot be loaded, or has no such metric.
    """
    return _build(evaluation, languages, split, base_folder, skip_missing=False)[0]


def _build(
    evaluation: Evaluation, languages: Sequence[str], split: str, base_folder: Path, *, skip_missing: bool
) -> tuple[list[_Run], dict[str, str]]:
    runs: list[_Run] = []
    not_run: dict[str, str] = {}
    hub_out_of_reach = False
    for ability, entry in entries(evaluation):
        if is_worldbook(entry):
            wanted = languages if ability == "language_ability" else (ENGLISH,)
            runs.extend(_build_worldbook(ability, entry, wanted, split))
            continue
        try:
            problem = judge_problem(entry, evaluation)
            if problem is not None:
                raise NotRunnableError(
                    f"the task {entry.task} cannot be run: {problem}", problem, is_hub_out_of_reach=False
                )
            tasks = load_tasks(entry, base_folder, hub_out_of_reach=hub_out_of_reach)
            with quiet():
                runs.extend(_build_harness(ability, entry, tasks, base_folder))
        except NotRunnableError as error:
            if not skip_missing:
                raise
            hub_out_of_reach = hub_out_of_reach or error.is_hub_out_of_reach
            not_run[f"{label_of(entry)}/{entry.language or ENGLISH}"] = error.reason
    return runs, not_run


def _no_room(
    runs: Sequence[_Run],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    skip_missing: bool,
) -> dict[str, str]:
    """Return the tasks whose answers do not fit into the model, before any other is generated for in vain."""
    from lingraft.evaluate.in_memory import room_problem

    found = {}
    for run in runs:
        if run.task.config.output_type == "generate_until":
            problem = room_problem(run.task.config.generation_kwargs or {}, model, tokenizer)
            if problem is not None:
                found[run.label] = problem
    if found and not skip_missing:
        label, problem = next(iter(found.items()))
        raise EvaluationError(f"the task {label}: {problem}")
    return found


def _build_worldbook(
    ability: Ability, entry: EvaluationTask, languages: Sequence[str], split: str
) -> Iterator[_Run]:
    from lingraft.data.worldbook import VERSION
    from lingraft.evaluate.worldbook_tasks import SCORE, worldbook_task

    family = entry.task.partition(":")[2]
    for name in (family,) if family else FAMILIES:
        for language in (entry.language,) if entry.language else languages:
            with quiet():
                task = worldbook_task(name, language, split, entry.limit, entry.max_new_tokens)
            label = f"worldbook:{name}"
            yield _Run(
                key=_key(ability, label, language, task),
                ability=ability,
                name=label,
                language=language,
                task=task,
                metric=SCORE,
                filter=filter_of(entry, task),
                documents=tuple(range(len(task.eval_docs))),
                left_out=(),
                cluster=None,
                is_own=False,
                is_judged=False,
                revision={"data": {"worldbook": VERSION, "split": split}, "sample": None},
            )


def _build_harness(
    ability: Ability, entry: EvaluationTask, tasks: Sequence[ConfigurableTask], base_folder: Path
) -> Iterator[_Run]:
    label, language = label_of(entry), entry.language or ENGLISH
    cluster = None if entry.cluster is None else Expression(entry.cluster, f"the task {entry.task}: cluster")
    for task in tasks:
        if entry.max_new_tokens is not None and task.config.output_type == "generate_until":
            task.set_config("generation_kwargs", {"max_gen_toks": entry.max_new_tokens}, update=True)
        task.set_config("num_fewshot", task.config.num_fewshot or 0)
        documents = _chosen(len(task.eval_docs), entry.limit, entry.sample)
        scorable, left_out = _without_punkt(label, task, documents)
        if not scorable:
            reason = left_out[0] if left_out else "its data set is empty."
            raise EvaluationError(f"the task {entry.task}: no item can be scored: {reason}")
        yield _Run(
            key=_key(ability, label, language, task),
            ability=ability,
            name=label,
            language=language,
            task=task,
            metric=metric_of(entry, task),
            filter=filter_of(entry, task),
            documents=scorable,
            left_out=left_out,
            cluster=cluster,
            is_own=entry.task in OWN_TASKS,
            is_judged=entry.task == ALPACA_EVAL,
            revision={"data": data_revision(entry, task, base_folder), "sample": entry.sample},
        )


def _chosen(count: int, limit: int | None, seed: int | None) -> tuple[int, ...]:
    """Return the numbers of the documents that are used, in order; parallel sets of one length give the same ones."""
    if limit is None or limit >= count:
        return tuple(range(count))
    return tuple(range(limit) if seed is None else sorted(random.Random(seed).sample(range(count), limit)))


def _without_punkt(
    name: str, task: ConfigurableTask, documents: Sequence[int]
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Leave out IFEval's items that need NLTK's sentence data where these are absent; never score them 0."""
    rows = task.eval_docs
    if "instruction_id_list" not in rows.column_names or _has_punkt():
        return tuple(documents), ()
    needy = {i for i in documents if NEEDS_PUNKT & set(rows[i]["instruction_id_list"])}
    reason = "needs NLTK's punkt_tab, which is not installed (python -m nltk.downloader punkt_tab)"
    left_out = tuple(f"{name}: item {rows[i].get('key', i)}: {reason}" for i in sorted(needy))
    return tuple(i for i in documents if i not in needy), left_out


def _has_punkt() -> bool:
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab/english/")
    except LookupError:
        return False
    return True


def _key(ability: Ability, name: str, language: str, task: ConfigurableTask) -> str:
    return f"{ability}|{name}|{language}|{task.config.task}"


def _run_harness(
    lm: InMemoryModel, tokenizer: PreTrainedTokenizerBase, evaluation: Evaluation, runs: Sequence[_Run]
) -> dict[str, list[dict[str, Any]]]:
    """Run all tasks in one call, so that the harness batches answers across tasks; return samples by task."""
    from langdetect import DetectorFactory
    from lm_eval.evaluator import simple_evaluate  # it asks git for the commit of whatever folder we are in

    # Seeded here, because the harness's IFEval identifies languages by sampling.
    DetectorFactory.seed = SEEDS["langdetect"]
    template, is_fallback = chat_template(tokenizer)
    given = tokenizer.chat_template
    if is_fallback:
        tokenizer.chat_template = template
    for run in runs:
        run.task.set_config("task", run.key)
    try:
        with quiet(), patch("lm_eval.evaluator.get_git_commit_hash", return_value=None):
            results = simple_evaluate(
                model=lm,
                tasks=[run.task for run in runs],
                samples={run.key: list(run.documents) for run in runs},
                apply_chat_template=evaluation.apply_chat_template,
                bootstrap_iters=0,
                log_samples=True,
                task_manager=file_manager(),
                random_seed=SEEDS["python"],
                numpy_random_seed=SEEDS["numpy"],
                torch_random_seed=SEEDS["torch"],
                fewshot_random_seed=SEEDS["worked_examples"],
            )
    finally:
        tokenizer.chat_template = given
    samples: dict[str, list[dict[str, Any]]] = results["samples"]
    return samples


def _predictions(
    run: _Run, samples: Sequence[dict[str, Any]], judge: AnswerJudge, ended: Mapping[str, bool]
) -> Iterator[Prediction]:
    for sample in samples:
        if sample["filter"] == run.filter:  # a task may score the same answers through several filters
            prediction = _prediction(run, sample)
            if run.task.config.output_type == "generate_until":
                has_ended = ended[request_key(_arguments(sample)[0])]
                prediction = judge.judged(prediction, sample["doc"], ended=has_ended)
            yield prediction


def _arguments(sample: dict[str, Any]) -> list[list[Any]]:
    """Return the prompt and settings (or the context and continuation) of each of a sample's requests.

    The harness names them in what it gives out.
    """
    given = sample["arguments"]
    requests = given.values() if isinstance(given, dict) else given
    return [list(one.values()) if isinstance(one, dict) else list(one) for one in requests]


def shortened_sentence(task: str, count: int) -> str:
    """Return what is to be told of a task, by its name and language, some of whose prompts did not fit."""
    return f"{task}: {count} prompts are longer than the model can read; they lost their beginning."


def _count_shortened(
    runs: Sequence[_Run], samples: Mapping[str, Sequence[dict[str, Any]]], shortened: Set[str]
) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for run in runs:
        own = {
            sample["doc_id"]
            for sample in samples[run.key]
            if any(request_key(one) in shortened for one in _arguments(sample))
        }
        counts[run.label] += len(own)
    return dict(+counts)


def _prediction(run: _Run, sample: dict[str, Any]) -> Prediction:
    from lingraft.evaluate.worldbook_tasks import cluster_of, verdict

    is_generated = run.task.config.output_type == "generate_until"
    # As it was said: a filter may leave a number of it, or nothing.
    response = _text(sample["resps"][0] if is_generated else sample["filtered_resps"])
    common: dict[str, Any] = {
        "ability": run.ability,
        "task": run.name,
        "language": run.language,
        "prompt": without_marks(str(_arguments(sample)[0][0]))[0].text,
        "response": response,
        "reference": str(sample["target"]),
        "score": _score(run, sample),
    }
    row = sample["doc"].get("item") if run.name.startswith("worldbook:") else None
    if row is None:
        item = _item(run, sample["doc_id"])
        return Prediction(cluster=_cluster(run, sample, item), item=item, **common)
    found, group = verdict(row, response), cluster_of(row)
    return Prediction(
        cluster=group,
        item=group,
        form=found.form,
        content=found.content,
        chrf=found.chrf,
        wrong_language=found.wrong_language,
        language_judged=True,
        **common,
    )


def _item(run: _Run, number: int) -> str:
    return f"{run.key.rpartition('|')[2]}/{number}"


def _cluster(run: _Run, sample: dict[str, Any], item: str) -> str:
    """Return what items that share content have in common: by the entry, else by our own task, else the item alone."""
    if run.cluster is not None:
        return str(run.cluster(sample["doc"], sample["doc_id"]))
    return str(sample["doc"].get("cluster", item)) if run.is_own else item


def _text(responses: Any) -> str:
    first = responses[0] if isinstance(responses, list) and responses else responses
    return first if isinstance(first, str) else str(responses)


def _score(run: _Run, sample: dict[str, Any]) -> float:
    """Return the item's score; a list of yes and no (IFEval's instructions of one prompt) counts by its mean."""
    value = sample.get(run.metric)
    if isinstance(value, list) and value and all(isinstance(one, bool) for one in value):
        return sum(value) / len(value)
    is_number = isinstance(value, (bool, int, float)) or getattr(value, "ndim", None) == 0
    if not is_number or not 0.0 <= float(value) <= 1.0:  # type: ignore[arg-type]
        raise EvaluationError(
            f"the task {run.name}: its metric {run.metric!r} is {value!r} for item {sample['doc_id']}; a score must be "
            "one number per item in [0, 1] (one of a whole set, such as f1 or bleu, is none). Name another one "
            "with `metric:`."
        )
    return float(value)  # type: ignore[arg-type]


def _judge(
    run: _Run,
    predictions: Sequence[Prediction],
    evaluation: Evaluation,
    verdicts: Path | None,
    on_judged: OnProgress | None,
) -> tuple[list[Prediction], Judged]:
    """Put a judge's preferences in the place of a task's scores; items without a verdict are left out."""
    assert evaluation.judge is not None  # else the task would not have been built
    reference = [
        Output(_item(run, row), document["instruction"], document["output"])
        for row, document in enumerate(run.task.eval_docs)
    ]
    own = [one for one in predictions if _belongs(one, run)]
    with tempfile.TemporaryDirectory() as folder:
        scored, judged = judge_predictions(
            own,
            reference,
            Judge.of(evaluation.judge),
            cache=verdicts or Path(folder) / "verdicts.jsonl",
            on_progress=on_judged,
        )
    others = [one for one in predictions if not _belongs(one, run)]
    return [*others, *scored], judged


def _count_truncated(runs: Sequence[_Run], predictions: Sequence[Prediction]) -> dict[str, int]:
    return {run.label: sum(bool(p.truncated) for p in predictions if _belongs(p, run)) for run in runs}


def _belongs(prediction: Prediction, run: _Run) -> bool:
    return (prediction.ability, prediction.task, prediction.language) == (run.ability, run.name, run.language)


def _describe(
    runs: Sequence[_Run], predictions: Sequence[Prediction], judged: Mapping[str, Judged]
) -> dict[str, dict[str, Any]]:
    """Return what each task is, by name and language; the tasks of a group are pooled."""
    pooled: dict[str, list[_Run]] = {}
    for run in runs:
        pooled.setdefault(run.label, []).append(run)
    described = {}
    for name, parts in pooled.items():
        prompts = [p.prompt for p in predictions if _belongs(p, parts[0])]
        data = [part.revision["data"] for part in parts]
        described[name] = {
            "version": str(parts[0].task.VERSION),
            "metric": WIN_RATE if parts[0].is_judged else parts[0].metric,
            "filter": parts[0].filter,
            "items": len(prompts),
            "prompts": fingerprint_of(sha256("\0".join(prompts).encode()).hexdigest()),
            "template": fingerprint_of([_template(part.task) for part in parts]),
            "data": data[0] if all(one == data[0] for one in data) else data,
            "sample": parts[0].revision["sample"],
        }
        if parts[0].is_judged:
            described[name]["judged"] = judged[name].to_json()
    return described


def _template(task: ConfigurableTask) -> dict[str, Any]:
    """Return what makes a task's prompts and answers of its documents; code stands for itself."""
    config = task.config
    return {
        "text": _source(config.doc_to_text),
        "choice": _source(config.doc_to_choice),
        "target": _source(config.doc_to_target),
        "description": _source(config.description),
        "delimiters": [config.target_delimiter, config.fewshot_delimiter],
        "worked_examples": config.num_fewshot,
        "generation": config.generation_kwargs,
    }


def _source(part: Any) -> Any:
    if isinstance(part, partial):
        return [_source(part.func), list(part.args), part.keywords]
    if not callable(part):
        return part
    return inspect.getsource(part if inspect.isroutine(part) else type(part))
