"""Evaluate a model in memory with lm-evaluation-harness: worldbook's tasks, harness tasks, a user's YAML tasks.

The harness builds the requests, generates and scores; what comes back is one prediction per item. Intervals are
ours (`statistics`). Nothing is printed: the harness's own progress and log lines are kept down, and progress is
told through a callback.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lingraft.config.schema import Evaluation
from lingraft.data.chat_template import chat_template
from lingraft.data.control_tokens import without_marks
from lingraft.errors import EvaluationError
from lingraft.evaluate.answer_faults import AnswerJudge
from lingraft.evaluate.answers import AnswerLog, ItemCount, request_key
from lingraft.evaluate.lm_eval_compat import quiet, run_tasks
from lingraft.evaluate.loading import file_manager
from lingraft.evaluate.manifest import Manifest, chat_identity, manifest_of
from lingraft.evaluate.noise import noise_floor
from lingraft.evaluate.predictions import Prediction
from lingraft.evaluate.results import NoiseFloor, TaskRecord
from lingraft.evaluate.task_runs import (
    SEEDS,
    Run,
    build_runs,
    item_and_cluster,
    item_of_document,
    template_of,
)
from lingraft.evaluate.tasks.alpaca_eval.task import judge_predictions
from lingraft.judge.win_rate import Judge, Judged, Output
from lingraft.records import fingerprint_of
from lingraft.text.language_tags import ENGLISH

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lingraft.evaluate.in_memory import InMemoryModel, MakeGenerator

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
        truncated_prompts: Items whose prompts did not fit into the model and lost their beginning, by task.
        tasks: By task and language, what it is and how it was run.
        not_run: By task and language, why its data (or its judge) could not be had here; empty unless such tasks were
            to be skipped.
        no_room: By task and language, why its answers do not fit into this model; empty as `not_run` is.
        manifest: What was asked, and how.
        noise: What repeating the generating tasks changed (see `noise`); None: they ran once.
    """

    predictions: tuple[Prediction, ...]
    left_out: tuple[str, ...]
    truncated: dict[str, int]
    truncated_prompts: dict[str, int]
    tasks: dict[str, TaskRecord]
    not_run: dict[str, str]
    no_room: dict[str, str]
    manifest: Manifest
    noise: NoiseFloor | None = None


def evaluate_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    evaluation: Evaluation,
    *,
    languages: Sequence[str],
    split: str = "report",
    base_folder: Path = Path(),
    precision: str | None = None,
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
        evaluation: The tasks; `worldbook` is English in task ability, and in language ability each of `languages` and
            of the evaluation's own.
        languages: BCP-47 tags of the languages besides English that are trained: language ability is the mean over
            them; any other language counts as a further one.
        split: worldbook's split.
        base_folder: What the paths of YAML tasks and data files are relative to.
        precision: Name of the arithmetic that the model is evaluated in; None: the type of its weights.
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

    runs, not_run = build_runs(evaluation, languages, split, base_folder, skip_missing=skip_missing)
    manifest = manifest_of(
        runs,
        evaluation,
        precision=precision or str(model.dtype).removeprefix("torch."),
        chat=chat_identity(tokenizer, evaluation),
        split=split,
    )
    asked = manifest.asked
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
    truncated_prompts: dict[str, int] = {}
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
        truncated_prompts = truncated_prompts or _count_truncated_prompts(own, samples, lm.truncated_prompts)
        rounds.append(
            [one for run in own for one in _predictions(run, samples[run.key], judge, lm.ended, asked)]
        )
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
        truncated_prompts=truncated_prompts,
        tasks=_describe(runs, predictions, judged, manifest),
        manifest=manifest,
        not_run=not_run,
        no_room=no_room,
        noise=noise_floor(rounds) if len(rounds) > 1 else None,
    )


def _no_room(
    runs: Sequence[Run],
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


def _run_harness(
    lm: InMemoryModel, tokenizer: PreTrainedTokenizerBase, evaluation: Evaluation, runs: Sequence[Run]
) -> dict[str, list[dict[str, Any]]]:
    """Run all tasks in one call, so that the harness batches answers across tasks; return samples by task."""
    from langdetect import DetectorFactory

    # Seeded here, because the harness's IFEval identifies languages by sampling.
    DetectorFactory.seed = SEEDS["langdetect"]
    template, is_fallback = chat_template(tokenizer)
    given = tokenizer.chat_template
    if is_fallback:
        tokenizer.chat_template = template
    for run in runs:
        run.task.set_config("task", run.key)
    try:
        return run_tasks(
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


def _predictions(
    run: Run,
    samples: Sequence[dict[str, Any]],
    judge: AnswerJudge,
    ended: Mapping[str, bool],
    asked: Mapping[str, Mapping[str, str]],
) -> Iterator[Prediction]:
    for sample in samples:
        if sample["filter"] == run.filter:  # a task may score the same answers through several filters
            prediction = _prediction(run, sample, asked)
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


def truncated_prompts_sentence(task: str, count: int) -> str:
    """Return what is to be told of a task, by its name and language, some of whose prompts did not fit."""
    return f"{task}: {count} prompts are longer than the model can read; they lost their beginning."


def _count_truncated_prompts(
    runs: Sequence[Run], samples: Mapping[str, Sequence[dict[str, Any]]], truncated_prompts: Set[str]
) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for run in runs:
        own = {
            sample["doc_id"]
            for sample in samples[run.key]
            if any(request_key(one) in truncated_prompts for one in _arguments(sample))
        }
        counts[run.label] += len(own)
    return dict(+counts)


def _prediction(run: Run, sample: dict[str, Any], asked: Mapping[str, Mapping[str, str]]) -> Prediction:
    from lingraft.evaluate.tasks.worldbook.task import verdict

    is_generated = run.task.config.output_type == "generate_until"
    # As it was said: a filter may leave a number of it, or nothing.
    response = _text(sample["resps"][0] if is_generated else sample["filtered_resps"])
    item, cluster = item_and_cluster(run, sample["doc_id"], sample["doc"])
    common: dict[str, Any] = {
        "item": item,
        "cluster": cluster,
        "asked": asked[run.key][item],
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
        return Prediction(**common)
    found = verdict(row, response)
    return Prediction(
        form=found.form,
        content=found.content,
        chrf=found.chrf,
        wrong_language=found.wrong_language,
        language_judged=True,
        **common,
    )


def _text(responses: Any) -> str:
    first = responses[0] if isinstance(responses, list) and responses else responses
    return first if isinstance(first, str) else str(responses)


def _score(run: Run, sample: dict[str, Any]) -> float:
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
    run: Run,
    predictions: Sequence[Prediction],
    evaluation: Evaluation,
    verdicts: Path | None,
    on_judged: OnProgress | None,
) -> tuple[list[Prediction], Judged]:
    """Put a judge's preferences in the place of a task's scores; items without a verdict are left out."""
    assert evaluation.judge is not None  # else the task would not have been built
    reference = [
        Output(item_of_document(run, row), document["instruction"], document["output"])
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


def _count_truncated(runs: Sequence[Run], predictions: Sequence[Prediction]) -> dict[str, int]:
    return {run.label: sum(bool(p.truncated) for p in predictions if _belongs(p, run)) for run in runs}


def _belongs(prediction: Prediction, run: Run) -> bool:
    return (prediction.ability, prediction.task, prediction.language) == (run.ability, run.name, run.language)


def _describe(
    runs: Sequence[Run],
    predictions: Sequence[Prediction],
    judged: Mapping[str, Judged],
    manifest: Manifest,
) -> dict[str, TaskRecord]:
    """Return what each task is, by name and language; the tasks of a group are pooled."""
    pooled: dict[str, list[Run]] = {}
    for run in runs:
        pooled.setdefault(run.label, []).append(run)
    described = {}
    for name, parts in pooled.items():
        prompts = [p.prompt for p in predictions if _belongs(p, parts[0])]
        data = [part.revision["data"] for part in parts]
        described[name] = TaskRecord(
            version=str(parts[0].task.VERSION),
            metric=WIN_RATE if parts[0].is_judged else parts[0].metric,
            filter=parts[0].filter,
            items=len(prompts),
            prompts=fingerprint_of(sha256("\0".join(prompts).encode()).hexdigest()),
            template=fingerprint_of([template_of(part.task) for part in parts]),
            data=data[0] if all(one == data[0] for one in data) else data,
            sample=parts[0].revision["sample"],
            request=manifest.request_of(name),
            judged=judged[name].record if parts[0].is_judged else None,
        )
    return described
