"""`lingraft evaluate`: score models on a suite, or on single tasks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lingraft.cli.output import (
    checked_precision,
    print_json,
    print_result,
    print_table,
    quieten_loading,
    standard_error,
    write_record,
)
from lingraft.errors import ConfigError, EvaluationError, escape_control_characters
from lingraft.text.language_tags import ENGLISH

if TYPE_CHECKING:
    from lingraft.config.schema import Evaluation, JudgeChoice
    from lingraft.evaluate.predictions import Prediction
    from lingraft.evaluate.running import Evaluated
    from lingraft.evaluate.selection import Chosen
    from lingraft.models.compute import Compute

RECORD = "record.json"
PREDICTIONS = "predictions.parquet"
MANIFEST = "manifest.json"
VERDICTS = "verdicts.jsonl"  # stays: it was paid for
_BACKENDS = ("transformers", "vllm")
_NO_JUDGE = {"max_tokens": None, "both_orders": True, "price_in": None, "price_out": None, "budget": None}
_LOG = re.compile(r"answers-[0-9a-f]{16}\.jsonl")
_TAG = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*")


def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="M1 [M2]",
            help="Folders, hub ids, embedded:NAME, or folders of LoRA adapters; M2 against M1.",
        ),
    ],
    suite: Annotated[str, typer.Option(help="Which tasks: see `lingraft ls suites`.")] = "quick",
    languages: Annotated[
        str, typer.Option(metavar="TAG,...", help="Languages beside English, such as de,th.")
    ] = "",
    task: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[TAG=]NAME",
            help="Only this one; of the suite, any harness task, or a YAML file. Repeatable.",
        ),
    ] = None,
    data_dir: Annotated[
        str | None,
        typer.Option(help="Folder of local copies of the data sets; what it lacks comes from the hub."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Items of each task.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Most answers generated together; default: as many as fit.")
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Longest answer of every task that generates; default: each task's own."),
    ] = None,
    repeat: Annotated[
        int, typer.Option(min=1, help="Generate so many times, in other batches: the noise floor.")
    ] = 1,
    precision: Annotated[
        str, typer.Option(help="auto, bf16 or float32; auto: bf16 where it is clearly faster here.")
    ] = "auto",
    backend: Annotated[
        str, typer.Option(help="What generates: transformers, or vllm (the extra of this name).")
    ] = "transformers",
    judge_url: Annotated[
        str | None,
        typer.Option(help="For AlpacaEval: what stands before /chat/completions; see `lingraft judge`."),
    ] = None,
    judge_model: Annotated[
        str | None, typer.Option(help="For AlpacaEval: the judge, as the endpoint names it.")
    ] = None,
    judge_max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Tokens that the judge may write; default: 8. One that reasons first needs more."
        ),
    ] = None,
    one_order: Annotated[
        bool, typer.Option("--one-order", help="Judge each pair one way only, for half the cost.")
    ] = False,
    price_in: Annotated[
        float | None, typer.Option(help="Price of a million tokens that the judge reads.")
    ] = None,
    price_out: Annotated[
        float | None, typer.Option(help="Price of a million tokens that the judge writes.")
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help="Stop before the verdicts on one model cost more.")
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat/--no-chat", help="Put prompts through the chat template.")
    ] = True,
    output: Annotated[
        Path | None, typer.Option(help="Folder of results; default: runs/evaluate/MODEL-SUITE.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Score one model, or two on the same items, and print every task's score with n and interval.

    Writes predictions.parquet and record.json. A task whose data cannot be had is named with where they were looked
    for, and the others run; exit code 2 where none can. The judge's key is read from LINGRAFT_JUDGE_KEY, else from
    OPENAI_API_KEY.
    """
    from lingraft.config.schema import UNCOMPARED_JUDGE_FIELDS
    from lingraft.evaluate.selection import language_notes
    from lingraft.models.compute import compute_for

    quieten_loading()
    asked_precision = checked_precision(precision)
    _check(models, backend)
    judge = _judge(
        judge_url,
        judge_model,
        max_tokens=judge_max_tokens,
        both_orders=not one_order,
        price_in=price_in,
        price_out=price_out,
        budget=budget,
    )
    chosen = _choose(suite, task or [], languages, data_dir, limit)
    notes = language_notes(chosen.evaluation, chosen.evaluation, _languages(chosen.evaluation))
    for note in notes:
        _say(note)
    compute = compute_for(asked_precision)
    asked = {
        "suite": suite,
        "tasks": sorted(task or []),
        "languages": _tags(languages),
        "data_dir": data_dir,
        "limit": limit,
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "repeat": repeat,
        "precision": compute.precision,
        "backend": backend,
        "chat": chat,
        "judge": None if judge is None else judge.model_dump(exclude=UNCOMPARED_JUDGE_FIELDS),
    }
    names = _names(models)
    folder = output or Path("runs") / "evaluate" / f"{'+'.join(names)}-{suite}"
    folders = [folder] if len(models) == 1 else [folder / name for name in names]
    evaluation = _answering_up_to(max_new_tokens, chosen.evaluation).model_copy(
        update={
            "batch_size": batch_size,
            "repeats": repeat,
            "backend": backend,
            "precision": compute.precision,
            "apply_chat_template": chat,
            "judge": judge,
        }
    )
    manifest = _manifest(evaluation, compute.precision)
    for model, own in zip(models, folders, strict=True):
        _prepare(own, {"model": model, **asked}, manifest)
    if len(models) == 2:
        _prepare(folder, {"models": models, **asked}, manifest)
    asked |= {"manifest": manifest, "language_notes": notes}
    results, predictions, logs = [], [], []
    told: set[str] = set()
    for model, own in zip(models, folders, strict=True):
        result, found, log = _evaluate(model, evaluation, compute, {"model": model, **asked}, own, told)
        results.append(result)
        predictions.append(found)
        logs.append(log)
    for result, log in zip(results, logs, strict=True):
        _delete_answers(log, keep=_lacks_verdicts(result))
    places = {model: f"{name}/{PREDICTIONS}" for model, name in zip(models, names, strict=True)}
    _finish(models, results, predictions, {"models": models, **asked}, places, folder, as_json=json)


def _check(models: list[str], backend: str) -> None:
    if len(models) > 2:
        raise ConfigError(f"{len(models)} models: name one, or two to compare.")
    if len(set(models)) < len(models):
        raise ConfigError(f"{models[0]}: stands twice; name another model to compare it with.")
    if backend not in _BACKENDS:
        raise ConfigError(f"--backend {backend!r}: there are {' and '.join(_BACKENDS)}.")
    if backend == "vllm":
        _check_vllm(models)


def _check_vllm(models: list[str]) -> None:
    """Refuse, before anything is loaded, what vLLM does not generate with."""
    from lingraft.models.adapters import ADAPTER_CONFIG
    from lingraft.models.vllm import check_vllm

    adapters = [one for one in models if (Path(one).expanduser() / ADAPTER_CONFIG).is_file()]
    if adapters:
        raise ConfigError(
            f"--backend vllm: {adapters[0]} is an adapter, and vLLM reads whole models; merge it into its base and "
            "save that, or take --backend transformers."
        )
    check_vllm()


def _judge(url: str | None, model: str | None, **options: Any) -> JudgeChoice | None:
    """Return the judge that was named; its address and key are looked at before anything is answered."""
    from lingraft.config.load import judge_choice
    from lingraft.judge.client import key_from_environment
    from lingraft.judge.win_rate import Judge

    if url is None and model is None and options == _NO_JUDGE:
        return None
    if options["max_tokens"] is None:
        del options["max_tokens"]  # the study file's default
    if url is None or model is None:
        raise ConfigError(
            "--judge-url and --judge-model belong together, and other options of the judge need them."
        )
    choice = judge_choice(url, model, **options)
    Judge.of(choice)
    key_from_environment()
    return choice


def _choose(suite: str, only: list[str], languages: str, data_dir: str | None, limit: int | None) -> Chosen:
    from lingraft.evaluate.checks import name_problem
    from lingraft.evaluate.selection import choose_tasks, entries

    chosen = choose_tasks(suite, only, languages=_tags(languages), data_dir=data_dir, limit=limit)
    own = [entry for _, entry in entries(chosen.evaluation) if entry.name is None]  # not of the catalogue
    problems = [
        f"{entry.task}: {problem}" for entry in own if (problem := name_problem(entry, Path())) is not None
    ]
    if problems:
        raise ConfigError("\n".join(problems))
    for one in chosen.missing:
        task, _, language = one.rpartition("/")
        _say(f"{one}: {task} has no {language}; it is left out.")
    return chosen


def _answering_up_to(max_new_tokens: int | None, evaluation: Evaluation) -> Evaluation:
    """Set the longest answer of all tasks; None: each keeps its own."""
    if max_new_tokens is None:
        return evaluation
    abilities = {
        ability: tuple(one.model_copy(update={"max_new_tokens": max_new_tokens}) for one in own)
        for ability, own in (
            ("task_ability", evaluation.task_ability),
            ("language_ability", evaluation.language_ability),
        )
    }
    return evaluation.model_copy(update=abilities)


def _tags(languages: str) -> list[str]:
    from lingraft.text.language_tags import canonical_tag

    given = [tag.strip() for tag in languages.split(",") if tag.strip()]
    tags = [canonical_tag(tag) or tag for tag in given]
    wrong = [tag for tag in tags if not _TAG.fullmatch(tag)]
    if wrong:
        raise ConfigError(f"--languages {languages!r}: {wrong[0]!r} is no BCP-47 tag such as de or zh-Hant.")
    return list(dict.fromkeys(tags))


def _names(models: list[str]) -> list[str]:
    """Return what the models' folders are called: the last part of each name, numbered where two are alike."""
    names = [re.sub(r"[^\w.+-]+", "-", _last_part(model)) for model in models]
    return names if len(set(names)) == len(names) else [f"{name}-{i}" for i, name in enumerate(names, 1)]


def _last_part(model: str) -> str:
    folder = Path(model).expanduser()
    return folder.resolve().name if folder.is_dir() else model.removeprefix("embedded:").rpartition("/")[2]


def _manifest(evaluation: Evaluation, precision: str) -> str:
    """Return the fingerprint of what is asked and how, but for the models' own chat templates."""
    from lingraft.evaluate.manifest import HAS_TEMPLATE, NO_TEMPLATE, manifest_of
    from lingraft.evaluate.task_runs import build_runs

    runs, _ = build_runs(evaluation, _languages(evaluation), "report", Path(), skip_missing=True)
    chat = HAS_TEMPLATE if evaluation.apply_chat_template else NO_TEMPLATE
    return manifest_of(runs, evaluation, precision=precision, chat=chat, split="report").fingerprint


def _languages(evaluation: Evaluation) -> list[str]:
    """Return the languages besides English: a command trains none, so that each counts as one of its own."""
    return sorted({entry.language or ENGLISH for entry in evaluation.language_ability})


def _prepare(folder: Path, asked: dict[str, Any], manifest: str) -> None:
    """Make the folder of results; refuse to write over those of something else.

    Of the same options, what is asked may have changed (sentence data were installed), and of the same manifest how the
    options were written.
    """
    from lingraft.records import read_json

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--output {folder}: cannot be made ({error.strerror}: {error.filename})."
        ) from None
    if not (folder / RECORD).exists():
        return
    try:
        before = read_json(folder / RECORD)["inputs"]
    except (ValueError, KeyError, TypeError):
        raise ConfigError(
            f"--output {folder}: its {RECORD} is none of `lingraft evaluate`; name another."
        ) from None
    changed = [key for key, value in asked.items() if before.get(key) != value]
    is_same = before.get("manifest") == manifest and not {"model", "models"} & set(changed)
    if changed and not is_same:
        told = ", ".join(f"{key} {before.get(key)!r}, not {asked[key]!r}" for key in changed)
        raise ConfigError(f"--output {folder}: was made with {told}; name another folder, or delete it.")


def _evaluate(
    model: str,
    evaluation: Evaluation,
    compute: Compute,
    asked: dict[str, Any],
    folder: Path,
    told: set[str],
) -> tuple[dict[str, Any], tuple[Prediction, ...], Path]:
    """Evaluate one model, or go on where this was interrupted, and write what was found; the record last.

    Returns:
        The result, the predictions, and where the answers are kept. They stay until all models are done: the same
        command then answers nothing again, of a model that was finished before an interruption either.
    """
    from lingraft.cli.log_lines import log_lines
    from lingraft.cli.progress import StepBars
    from lingraft.data.chat_format import CHAT_IDENTITY
    from lingraft.evaluate.predictions import write_predictions
    from lingraft.evaluate.running import evaluate_model, truncated_prompts_sentence
    from lingraft.models.adapters import load_merged, merged_content_hash
    from lingraft.models.loading import model_folder
    from lingraft.models.vllm import VllmGenerator
    from lingraft.records import fingerprint_of, write_json_atomically

    inputs = {
        **asked,
        "chat_format": CHAT_IDENTITY,
        "model_hash": merged_content_hash(model),
        "libraries": _libraries(),
    }
    # An answer is kept by prompt and settings; what else decides it is the model and how it is asked.
    decides = {key: inputs[key] for key in ("model_hash", "chat_format", "precision", "backend", "libraries")}
    log = folder / f"answers-{fingerprint_of(decides)}.jsonl"
    log_lines().at(f"loading {model}")
    loaded, tokenizer = load_merged(model, dtype=compute.held)
    loaded.to(compute.device)  # type: ignore[arg-type]

    def vllm() -> VllmGenerator:
        return VllmGenerator(model_folder(model), tokenizer, dtype=compute.held, trust_remote_code=False)

    with StepBars() as bars:
        found = evaluate_model(
            loaded,
            tokenizer,
            evaluation,
            languages=_languages(evaluation),
            precision=asked["precision"],
            skip_missing=True,
            log=log,
            verdicts=folder / VERDICTS,
            make_generator=vllm if evaluation.backend == "vllm" else None,
            on_progress=lambda done, total: bars.progressed(model, done, total),
            on_judged=lambda done, total: bars.progressed(f"{model}, verdicts", done, total),
        )
    _tell_not_run(model, found, asked, told)
    for task, count in found.truncated_prompts.items():
        _say(f"{model}: {truncated_prompts_sentence(task, count)}")
    if not found.predictions:
        raise EvaluationError("none of the tasks can be run here.")
    result = _result(found)
    (folder / RECORD).unlink(missing_ok=True)  # of an earlier run of the same
    write_predictions(folder / PREDICTIONS, found.predictions)
    write_json_atomically(folder / MANIFEST, found.manifest.to_json())
    write_record(folder / RECORD, "evaluate", inputs, result)
    return result, found.predictions, log


def _lacks_verdicts(result: dict[str, Any]) -> bool:
    """Return whether a judge named no output on some item, which the next run asks again."""
    return any(task["judged"]["asking"]["unparseable"] for task in result["tasks"].values() if task["judged"])


def _delete_answers(log: Path, *, keep: bool) -> None:
    """Delete what answers were kept in, of earlier options or weights, too; `keep`: but not this log itself."""
    for path in log.parent.glob("answers-*.jsonl"):
        is_ours = _LOG.fullmatch(path.name) is not None  # the folder may hold the user's own files
        if is_ours and not (keep and path == log):
            path.unlink()


def _tell_not_run(model: str, found: Evaluated, asked: dict[str, Any], told: set[str]) -> None:
    """Say of each task that could not be run why, and where its data were looked for; what is in `told` was said."""
    from lingraft.evaluate.catalogue import data_places
    from lingraft.judge.win_rate import ALPACA_EVAL

    for one, reason in found.no_room.items():
        _say(f"{model}: {one}: not run: {reason}")
    for one, reason in found.not_run.items():
        task, _, language = one.rpartition("/")
        line = f"{one}: not run: {reason.rstrip('.')}."
        if task != ALPACA_EVAL or asked["judge"] is not None:  # else it lacks a judge, not its data
            line += f" Its data: {data_places(task, language, asked['data_dir'])}."
        if line not in told:
            _say(line)
        told.add(line)


def _result(found: Evaluated) -> dict[str, Any]:
    from lingraft.evaluate.scores import task_scores
    from lingraft.evaluate.task_runs import SEEDS
    from lingraft.records import to_json

    return {
        "scores": task_scores(found.predictions),
        "tasks": to_json(found.tasks),
        "left_out": list(found.left_out),
        "truncated": found.truncated,
        "truncated_prompts": found.truncated_prompts,
        "not_run": found.not_run | found.no_room,
        "noise": to_json(found.noise),
        "seeds": SEEDS | {"bootstrap": 0},
    }


def _libraries() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("lm_eval", "torch", "transformers")}


def _finish(
    models: list[str],
    results: list[dict[str, Any]],
    predictions: list[tuple[Prediction, ...]],
    inputs: dict[str, Any],
    places: dict[str, str],
    folder: Path,
    *,
    as_json: bool,
) -> None:
    """Print what was found; of two models also the differences, which get a record of their own."""
    whole: dict[str, Any] = {
        "models": dict(zip(models, results, strict=True)),
        "folder": str(folder),
        "precision": inputs["precision"],
    }
    if len(models) == 2:
        compared = _compared(results, predictions)
        whole |= compared
        write_record(folder / RECORD, "evaluate", inputs, compared | {"predictions": places})
    if as_json:
        print_json(whole)
        return
    for model, result in zip(models, results, strict=True):
        _print_scores(model, result)
    if len(models) == 2:
        _print_differences(models, results, compared)
    print_result(f"Computed in {inputs['precision']}.")
    print_result(f"Predictions and {RECORD} are in {folder}: see `lingraft show predictions`.")


def _compared(
    results: list[dict[str, Any]], predictions: list[tuple[Prediction, ...]]
) -> dict[str, dict[str, Any]]:
    """Compare two models on the items that both were asked alike."""
    from lingraft.evaluate.common_items import common_items
    from lingraft.evaluate.scores import task_differences
    from lingraft.evaluate.task_records import read_task_records

    both = set(results[0]["tasks"]) & set(results[1]["tasks"])
    common = common_items(
        [[one for one in own if f"{one.task}/{one.language}" in both] for own in predictions],
        [read_task_records(result["tasks"]) for result in results],
    )
    return {
        "differences": task_differences(*common.models),
        "unpaired": common.unpaired,
        "not_paired": common.refused,
    }


def _print_scores(model: str, result: dict[str, Any]) -> None:
    from lingraft.report.evaluation import score_table
    from lingraft.report.judging import asking_clause, order_clause
    from lingraft.report.tables import noise_sentence

    print_table(score_table(result["scores"]), model)
    if result["noise"] is not None:
        print_result(noise_sentence([result["noise"]]))
    for name, told in result["tasks"].items():
        if judged := told["judged"]:
            who = ", ".join(judged["judge"]["answered_as"])
            print_result(f"{name}: judged by {who}; {order_clause(judged)}; {asking_clause(judged)}.")
    for line in result["left_out"][:1]:
        print_result(f"{len(result['left_out'])} items are left out, such as {line}.")


def _print_differences(
    models: list[str], results: list[dict[str, Any]], compared: dict[str, dict[str, Any]]
) -> None:
    from lingraft.evaluate.common_items import unpaired_sentence
    from lingraft.report.evaluation import task_difference_table

    print_table(task_difference_table(compared["differences"]), f"{models[1]} - {models[0]}, paired")
    for task in sorted(set(results[0]["tasks"]) ^ set(results[1]["tasks"])):
        print_result(f"{task}: was asked of one of the two models only, and is not compared.")
    for task, count in compared["unpaired"].items():
        print_result(unpaired_sentence(task, count, judged=bool(results[0]["tasks"][task]["judged"])))
    for problem in compared["not_paired"].values():
        print_result(problem)


def _say(message: str) -> None:
    standard_error().print(
        escape_control_characters(f"! {message}"),
        markup=False,
        highlight=False,
        style="yellow",
        soft_wrap=True,
    )
