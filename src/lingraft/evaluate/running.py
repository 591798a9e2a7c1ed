"""Evaluate a model in memory with lm-evaluation-harness: worldbook's tasks, harness tasks, a user's YAML tasks.

The harness builds the requests, generates and scores; what comes back is one prediction per item (`scoring`).
Intervals are ours. Nothing is printed: progress is reported through a callback.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lingraft.config.schema import Evaluation
from lingraft.data.chat_template import chat_template
from lingraft.errors import EvaluationError
from lingraft.evaluate.answer_faults import AnswerFaults
from lingraft.evaluate.answers import AnswerLog, ItemCount, request_key
from lingraft.evaluate.lm_eval_compat import Sample, quiet, run_tasks
from lingraft.evaluate.loading import file_manager
from lingraft.evaluate.manifest import Manifest, chat_identity, manifest_of
from lingraft.evaluate.noise import noise_floor
from lingraft.evaluate.own_task import answer_room
from lingraft.evaluate.predictions import Prediction
from lingraft.evaluate.results import NoiseFloor, Scores
from lingraft.evaluate.scoring import judged, predictions_of
from lingraft.evaluate.shown_names import names_in_files, names_in_keys, renamed
from lingraft.evaluate.task_records import TaskRecord
from lingraft.evaluate.task_runs import SEEDS, Run, build_runs, template_of
from lingraft.judge.win_rate import Judge, Judged
from lingraft.records import canonical_json, fingerprint_of
from lingraft.text.language_tags import ENGLISH

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lingraft.evaluate.in_memory import InMemoryModel, OnAnswer
    from lingraft.models.answering import Answering
    from lingraft.models.server import ServerGenerator

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
        spelled_prompts: Items whose prompts or answers spell control tokens, which the model reads as text, by task.
        tasks: By task and language, how it was asked and scored.
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
    spelled_prompts: dict[str, int]
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
    base_folder: Path = Path(),
    precision: str | None = None,
    skip_missing: bool = False,
    trust_remote_code: bool = False,
    answers: AnswerLog | None = None,
    verdicts: Path | None = None,
    resolved: Mapping[str, Any] | None = None,
    answering: Answering | None = None,
    server: ServerGenerator | None = None,
    on_progress: OnProgress | None = None,
    on_judged: OnProgress | None = None,
    on_answer: OnAnswer | None = None,
) -> Evaluated:
    """Score a model on the tasks of a study.

    Args:
        model: In the precision that it is to be evaluated in; left as it is.
        tokenizer: The model's own.
        evaluation: The tasks; `worldbook` is English in task ability, and in language ability each of `languages` and
            of the evaluation's own.
        languages: BCP-47 tags of the languages besides English that are trained: language ability is the mean over
            them; any other language counts as a further one.
        base_folder: What the paths of YAML tasks and data files are relative to.
        precision: Name of the arithmetic that the model is evaluated in; None: the type of its weights.
        skip_missing: Leave out tasks whose data (or a service that they need) cannot be had here, and those whose
            answers do not fit into the model, perhaps all.
        trust_remote_code: Run the Python code that YAML tasks name.
        answers: Of this model, kept as they come, so that the same evaluation goes on from them after an interruption;
            None: they are not kept.
        verdicts: A file that a judge's verdicts are kept in, for any number of models; None: they are not kept.
        resolved: The identity of the manifest that the evaluation is known by; its tasks must still be the same.
        answering: Who answers; None: the model itself, in this process. Else the model may be without weights.
        server: Generates, and scores where it is asked to, in place of `answering`; None: there is none.
        on_progress: Called with the items so far and in all.
        on_judged: Called with a judge's verdicts so far and in all, of one judged task after the other; the items are
            done then.
        on_answer: Called with task and language, the prompt and the answer, of the first answers of each task that
            generates, also of those that an interrupted evaluation had.

    Raises:
        EvaluationError: A task cannot be loaded, has no such metric, has answers that do not fit into the model, or
            scores outside [0, 1]; or the judge gives no verdicts.
    """
    from lingraft.evaluate.in_memory import needs_transformers, room_problem

    runs, not_run = build_runs(
        evaluation,
        languages,
        base_folder,
        skip_missing=skip_missing,
        trust_remote_code=trust_remote_code,
    )
    manifest = manifest_of(
        runs,
        evaluation,
        precision=precision or str(model.dtype).removeprefix("torch."),
        chat=chat_identity(tokenizer, evaluation),
    )
    if resolved is not None and canonical_json(manifest.identity["tasks"]) != canonical_json(
        resolved["tasks"]
    ):
        raise EvaluationError(
            "the tasks are not those that were looked up before: a file of a task or of its data was changed since. "
            "Run the same command again."
        )
    for run in runs:
        if (limit := answer_room(run.task, tokenizer)) is not None:
            run.task.set_config("generation_kwargs", {"max_gen_toks": limit}, update=True)
    # Before any other task is generated for in vain.
    for run in runs:
        if server is not None and run.generates and needs_transformers(settings_of(run)):
            raise EvaluationError(
                f"the task {run.label}: its generation settings {settings_of(run)} are more than a server is asked "
                "for; take `backend: transformers` (--backend transformers), or leave the task out."
            )
    no_room = {
        run.label: problem
        for run in runs
        if run.generates and (problem := room_problem(settings_of(run), model, tokenizer)) is not None
    }
    if no_room and not skip_missing:
        label, problem = next(iter(no_room.items()))
        raise EvaluationError(f"the task {label}: {problem}")
    runs = [run for run in runs if run.label not in no_room]
    if not runs and not skip_missing:
        raise EvaluationError("no task is left to evaluate.")
    rounds, truncated_prompts, spelled_prompts = _answer(
        runs,
        model,
        tokenizer,
        evaluation,
        languages,
        manifest,
        answers or AnswerLog(),
        answering,
        server,
        on_progress,
        on_answer,
    )
    verdicts_of: dict[str, Judged] = {}
    for run in runs:
        if run.is_judged:
            assert evaluation.judge is not None  # else the task would not have been built
            judge = Judge.of(evaluation.judge)
            rounds[0], verdicts_of[run.label] = judged(run, rounds[0], judge, verdicts, on_judged)
    predictions = rounds[0]
    return Evaluated(
        predictions=tuple(predictions),
        left_out=(
            *(reason for run in runs for reason in run.left_out),
            *(f"{label}: {reason}" for label, one in verdicts_of.items() for reason in one.left_out),
        ),
        truncated={
            run.label: sum(bool(one.truncated) for one in predictions if run.has(one))
            for run in runs
            if run.generates
        },
        truncated_prompts=truncated_prompts,
        spelled_prompts=spelled_prompts,
        tasks=_describe(runs, predictions, verdicts_of, manifest),
        manifest=manifest,
        not_run=not_run,
        no_room=no_room,
        noise=noise_floor(rounds) if len(rounds) > 1 else None,
    )


def settings_of(run: Run) -> Mapping[str, Any]:
    """Return how a task generates, as the harness has it."""
    settings: Mapping[str, Any] = run.task.config.generation_kwargs or {}
    return settings


def _answer(
    runs: Sequence[Run],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    evaluation: Evaluation,
    languages: Sequence[str],
    manifest: Manifest,
    answers: AnswerLog,
    answering: Answering | None,
    server: ServerGenerator | None,
    on_progress: OnProgress | None,
    on_answer: OnAnswer | None,
) -> tuple[list[list[Prediction]], dict[str, int], dict[str, int]]:
    """Return the predictions of each round, and by task how many prompts of the first one were truncated.

    The first round runs every task; each repeat runs those that generate and that no judge scores, in other batches.
    """
    from lingraft.evaluate.in_memory import Batching, InMemoryModel

    again = [run for run in runs if run.generates and not run.is_judged]
    runs_of_rounds = [runs, *[again] * (evaluation.repeats - 1)] if again else [runs]
    count = ItemCount(sum(len(run.documents) for own in runs_of_rounds for run in own), on_progress)
    faults = AnswerFaults([ENGLISH, *languages, *(run.language for run in runs)])
    asked = manifest.asked
    rounds: list[list[Prediction]] = []
    truncated_prompts: Counter[str] = Counter()
    spelled_prompts: Counter[str] = Counter()
    shown = names_in_files(names_in_keys(run.key for run in runs))
    labels = {run.key: renamed(run.label, shown) for run in runs}

    def tell(key: str, prompt: str, answer: str) -> None:
        if on_answer is not None:
            on_answer(labels[key], prompt, answer)

    backend = evaluation.backend if isinstance(evaluation.backend, str) else "transformers"
    for repeat, own in enumerate(runs_of_rounds):
        with quiet():
            lm = InMemoryModel(
                model,
                tokenizer,
                Batching(evaluation.batch_size, evaluation.tokens_per_batch, repeat, backend),
                answers,
                count,
                chat=evaluation.apply_chat_template,
                answering=answering,
                server=server,
                on_answer=tell if repeat == 0 else None,
            )
        samples = samples_of(lm, tokenizer, evaluation, own) if own else {}
        rounds.append(
            [
                prediction
                for run in own
                for prediction in predictions_of(run, samples[run.key], faults, lm.ended, asked[run.key])
            ]
        )
        if repeat == 0:
            truncated_prompts, spelled_prompts = (
                Counter(
                    run.label
                    for run in own
                    for sample in samples[run.key]
                    if sample.filter == run.filter
                    and any(request_key(request) in noted for request in sample.requests)
                )
                for noted in (lm.truncated_prompts, lm.spelled_prompts)
            )
    return rounds, dict(truncated_prompts), dict(spelled_prompts)


def samples_of(
    lm: InMemoryModel, tokenizer: PreTrainedTokenizerBase, evaluation: Evaluation, runs: Sequence[Run]
) -> dict[str, list[Sample]]:
    """Return samples by task. All tasks run in one call, so that the harness batches answers across tasks."""
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
            fewshot_random_seed=SEEDS["few_shot_examples"],
        )
    finally:
        tokenizer.chat_template = given


def shortfalls(found: Scores | Evaluated) -> list[str]:
    """Return what is reported of items that could not be scored, prompts that did not fit, and control tokens."""
    said = []
    if found.left_out:
        are = "1 item is" if len(found.left_out) == 1 else f"{len(found.left_out)} items are"
        counts = "counts" if len(found.left_out) == 1 else "count"
        said.append(f"{are} left out and {counts} nowhere, such as {found.left_out[0].rstrip('.')}.")
    for task, count in found.truncated_prompts.items():
        said.append(f"{task}: {count} prompts are longer than the model can read; they lost their beginning.")
    for task, count in found.spelled_prompts.items():
        said.append(f"{task}: {count} items spell control tokens of the model, which are read as text.")
    return said


def _describe(
    runs: Sequence[Run],
    predictions: Sequence[Prediction],
    verdicts: Mapping[str, Judged],
    manifest: Manifest,
) -> dict[str, TaskRecord]:
    """Return what each task is, by name and language; the tasks of a group are pooled."""
    pooled: dict[str, list[Run]] = {}
    for run in runs:
        pooled.setdefault(run.label, []).append(run)
    described = {}
    for label, parts in pooled.items():
        first = parts[0]
        prompts = [one.prompt for one in predictions if first.has(one)]
        data = tuple(part.data for part in parts)
        described[label] = TaskRecord(
            version=str(first.task.VERSION),
            metric=WIN_RATE if first.is_judged else first.metric,
            filter=first.filter,
            items=len(prompts),
            prompts=fingerprint_of(sha256("\0".join(prompts).encode()).hexdigest()),
            template=fingerprint_of([template_of(part.task) for part in parts]),
            data=data[:1] if all(one == data[0] for one in data) else data,
            sample=first.sample,
            settings=manifest.settings_of(label),
            judged=verdicts[label].record if first.is_judged else None,
        )
    return described
