"""`lingraft evaluate`: score models on a suite, or on single tasks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lingraft import stopping
from lingraft.cli.options import (
    AnsweringOption,
    BackendOption,
    BatchSizeOption,
    ChatOption,
    DataDirOption,
    JsonOption,
    LimitOption,
    MaxNewTokensOption,
    PrecisionOption,
    SuiteOption,
    TaskOption,
    TrustOption,
)
from lingraft.cli.output import (
    check_same_options,
    checked_backend,
    checked_precision,
    print_json,
    print_message,
    print_result,
    print_table,
    quieten_loading,
    recorded_inputs,
    tags_of,
    write_record,
)
from lingraft.errors import EXIT_ANSWER_IS_NO, EXIT_CANNOT_TELL, ConfigError, ModelError
from lingraft.models.model_names import model_problem

if TYPE_CHECKING:
    from lingraft.config.schema import JudgeChoice
    from lingraft.evaluate.results import ModelDifferences
    from lingraft.stage import Json
    from lingraft.study.evaluation import ModelEvaluation
    from lingraft.study.limits import LimitResult


def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]M1 [[NAME=]M2]",
            help="Folder, hub id, embedded:NAME or LoRA adapter; M2 is compared with M1. NAME is what tables call it.",
        ),
    ],
    suite: SuiteOption = "quick",
    languages: Annotated[
        list[str] | None,
        typer.Option(
            "--languages",
            "--language",
            metavar="TAG,...",
            help="Languages besides English, such as de,th. Repeatable.",
        ),
    ] = None,
    task: TaskOption = None,
    data_dir: DataDirOption = None,
    limit: LimitOption = None,
    batch_size: BatchSizeOption = None,
    max_new_tokens: MaxNewTokensOption = None,
    repeat: Annotated[
        int,
        typer.Option(min=1, help="Generate this many times in other batches, to measure the noise floor."),
    ] = 1,
    precision: PrecisionOption = "auto",
    backend: BackendOption = None,
    processes: AnsweringOption = None,
    judge_url: Annotated[
        str | None,
        typer.Option(help="AlpacaEval's judge: base URL of its endpoint; see `lingraft judge`."),
    ] = None,
    judge_model: Annotated[
        str | None, typer.Option(help="AlpacaEval's judge: its name at the endpoint.")
    ] = None,
    judge_max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Most tokens of a verdict; default: 8. A judge that reasons first needs more."
        ),
    ] = None,
    one_order: Annotated[
        bool, typer.Option("--one-order", help="Judge each pair in one order only, for half the cost.")
    ] = False,
    price_in: Annotated[
        float | None, typer.Option(help="Price of a million input tokens of the judge.")
    ] = None,
    price_out: Annotated[
        float | None, typer.Option(help="Price of a million output tokens of the judge.")
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help="Stop before the verdicts on a model cost more.")
    ] = None,
    chat: ChatOption = True,
    trust_remote_code: TrustOption = False,
    margin: Annotated[
        float,
        typer.Option(help="Of two models: a change up to this, from 0 to 1, counts as none."),
    ] = 0.01,
    fail_below: Annotated[
        float | None,
        typer.Option(
            metavar="DIFFERENCE",
            help="Of two models, such as -0.01: exit with 1 where an ability fell by more, with 3 where these items "
            "cannot tell.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder of results; default: runs/evaluate/MODEL-SUITE.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Score one model, or two on the same items, and print every task's score with n and interval.

    Writes predictions.parquet and record.json. A task whose data are missing is named with the places where they were
    looked for, and the others run. Exit code: 0 done, 1 an ability fell below --fail-below, 2 wrong input or no task
    can run, 3 a task of --task was run in no language, or whether an ability fell below --fail-below is undecided.
    The judge's key is read from LINGRAFT_JUDGE_KEY, else from OPENAI_API_KEY.
    """
    stopping.keeps(f"the answers so far are kept; {stopping.GOES_ON}")
    # Wrong options and names are refused before anything heavy is imported.
    asked_precision = checked_precision(precision)
    if not 0 <= margin <= 1:
        raise ConfigError(f"--margin {margin}: it must lie between 0 and 1.")
    _check_fail_below(fail_below, models)
    from lingraft.study.cell_names import named_models

    named = named_models(models)
    models = [one.value for one in named]
    engine = checked_backend(backend)
    judge = _judge(
        judge_url,
        judge_model,
        max_tokens=judge_max_tokens,
        both_orders=False if one_order else None,
        price_in=price_in,
        price_out=price_out,
        budget=budget,
    )
    _check_models(models)

    from lingraft.cli.progress import StepBars
    from lingraft.data.chat_format import CHAT_IDENTITY
    from lingraft.evaluate.running import shortfalls
    from lingraft.evaluate.shown_names import names_of_records, renamed
    from lingraft.records import fingerprint_of, to_json
    from lingraft.report.notes import gathered, holds_for
    from lingraft.stage import RECORD, libraries
    from lingraft.study.evaluation import (
        FORMAT,
        EvaluationOptions,
        PrintedComparison,
        PrintedEvaluation,
        ask,
        compare,
        evaluate_into,
        evaluations,
        folder_names,
        limits_of,
    )
    from lingraft.study.execute import Executor
    from lingraft.study.store import Store

    quieten_loading()
    wanted = EvaluationOptions(
        suite=suite,
        tasks=tuple(task or ()),
        languages=tuple(tags_of(languages)),
        data_dir=data_dir,
        limit=limit,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        repeat=repeat,
        precision=asked_precision,
        backend=engine,
        chat=chat,
        judge=judge,
    )
    asked = ask(wanted, trust_remote_code=trust_remote_code, processes=processes)
    for note in asked.notes:
        print_message(f"! {note}", "yellow")
    options = asked.to_json()
    labels = [one.label for one in named]
    titles = dict(zip(labels, (one.name for one in named), strict=True))
    names = folder_names(labels)
    folder = output or Path("runs") / "evaluate" / f"{'+'.join(names)}-{suite}"
    stages = evaluations(models, asked.questions, labels, trust_remote_code=trust_remote_code)
    fingerprints = {stage.label: stage.fingerprint for stage in stages}
    folders = [folder] if len(models) == 1 else [folder / name for name in names]
    for own, stage, path in zip(folders, stages, models, strict=True):
        _prepare(own, {"model": path, **options}, {stage.label: stage.fingerprint})
    if len(models) == 2:
        _prepare(folder, {"models": models, **options}, fingerprints)
    inputs: dict[str, Json] = {
        **options,
        "manifest": fingerprint_of(asked.questions.manifest),
        "language_notes": asked.language_notes,
        "chat_format": CHAT_IDENTITY,
        "libraries": libraries(("lm_eval", "torch", "transformers")),
    }
    evaluated = []
    with Store(folder) as store, StepBars() as bars:
        for own, stage, path in zip(folders, stages, models, strict=True):
            model = evaluate_into(own, stage, Executor(store, bars))
            evaluated.append(model)
            of_model: dict[str, Json] = {
                "model": path,
                "name": titles[stage.label],
                "model_identity": stage.model.identity,
                "evaluations": {stage.label: stage.fingerprint},
            }
            write_record(own / RECORD, "evaluate", of_model | inputs, to_json(model.printed()))
    fell_short = {
        one.model: [
            *(f"{name}: not run: {reason}" for name, reason in one.record.no_room.items()),
            *shortfalls(one.scores),
        ]
        for one in evaluated
    }
    shown_names = names_of_records(one.record.tasks for one in evaluated)
    for line, of in gathered(renamed(fell_short, shown_names)).items():
        print_message(f"! {holds_for(of, len(evaluated))}: {line}", "yellow")
    found = PrintedEvaluation(
        format=FORMAT,
        folder=str(folder),
        precision=asked.options.precision,
        models={model.model: model.printed() for model in evaluated},
        paths=dict(zip(labels, models, strict=True)),
    )
    compared = None
    limits: dict[str, LimitResult] = {}
    if len(models) == 2:
        compared = compare(evaluated[0], evaluated[1], (names[0], names[1]), margin)
        if fail_below is not None:
            limits = limits_of(compared, asked.questions, -fail_below)
        found = PrintedComparison(**vars(found), **vars(compared), limits=limits)
        of_models: dict[str, Json] = {
            "models": models,
            "names": list(titles.values()),
            "evaluations": fingerprints,
        }
        write_record(folder / RECORD, "evaluate", of_models | inputs, to_json(compared))
    if json:
        print_json(to_json(found))
    else:
        _print(evaluated, compared, titles, shown_names)
        for name, one in limits.items():
            print_result(_limit_sentence(name, one))
        print_result(f"Computed in {found.precision}.")
        print_result(
            f"Predictions and {RECORD} are in {folder}. To read answers: lingraft show predictions {folder}"
        )
    answers = {one.answer for one in limits.values()}
    if "broken" in answers:
        raise typer.Exit(EXIT_ANSWER_IS_NO)
    if "undecided" in answers or (task and any(model.unscored_tasks for model in evaluated)):
        raise typer.Exit(EXIT_CANNOT_TELL)


def _check_fail_below(fail_below: float | None, models: list[str]) -> None:
    """Refuse a difference that no loss has, or one of a single model."""
    if fail_below is None:
        return
    if not -1 <= fail_below <= 0:
        hint = (
            f" To allow a loss of {fail_below:g}: --fail-below -{fail_below:g}."
            if 0 < fail_below <= 1
            else ""
        )
        raise ConfigError(
            f"--fail-below {fail_below:g}: is the lowest difference that is accepted, from -1 to 0.{hint}"
        )
    if len(models) != 2:
        raise ConfigError("--fail-below: needs two models, M1 and M2, whose difference it judges.")


def _limit_sentence(name: str, limit: LimitResult) -> str:
    ability = name.replace("_", " ").capitalize()
    if limit.low is None or limit.high is None:
        return f"{ability}: undecided whether it fell below {-limit.limit:+g}: the two models share no item of it."
    interval = f"the 95 % interval of the difference is [{limit.low:+.3f}, {limit.high:+.3f}]"
    if limit.answer == "held":
        return f"{ability}: held: it did not fall below {-limit.limit:+g}; {interval}."
    if limit.answer == "broken":
        return f"{ability}: broken: it fell below {-limit.limit:+g}; {interval}."
    return f"{ability}: undecided whether it fell below {-limit.limit:+g}; {interval}. Evaluate more items."


def _check_models(models: list[str]) -> None:
    """Check names and folders alone, which takes no time.

    Raises:
        ConfigError: There are more than two, or one twice.
        ModelError: There can be no such model.
    """
    if len(models) > 2:
        raise ConfigError(f"{len(models)} models: name one, or two to compare.")
    if len(set(models)) < len(models):
        raise ConfigError(f"{models[0]}: is named twice; name another model to compare it with.")
    for model in models:
        if (problem := model_problem(model)) is not None:
            raise ModelError(problem)


def _judge(url: str | None, model: str | None, **options: float | bool | None) -> JudgeChoice | None:
    """Return the judge that was named; its address and key are checked before anything is answered."""
    from lingraft.config.load import judge_choice
    from lingraft.judge.client import key_from_environment
    from lingraft.judge.win_rate import Judge

    given = {
        key: value for key, value in options.items() if value is not None
    }  # else the study file's default
    if url is None and model is None and not given:
        return None
    if url is None or model is None:
        raise ConfigError(
            "--judge-url and --judge-model belong together, and other options of the judge need them."
        )
    choice = judge_choice(url, model, **given)
    Judge.of(choice)
    key_from_environment()
    return choice


def _prepare(folder: Path, options: dict[str, Json], evaluations: dict[str, str]) -> None:
    """Make the folder of results; refuse to write over those of something else, or into the folder of a study.

    Of the same options, what is asked may have changed (sentence data were installed), and of the same evaluations how
    the options were written.
    """
    from lingraft.config.paths import make_named_folder
    from lingraft.stage import RECORD
    from lingraft.study.result import STUDY

    if (folder / STUDY).exists():  # beside its result, predictions would hide those of its cells
        raise ConfigError(f"--output {folder}: is the run folder of a study; name another folder.")
    make_named_folder(folder, argument="--output")
    before = recorded_inputs(folder / RECORD)
    if before is None and (folder / RECORD).exists():
        raise ConfigError(
            f"--output {folder}: its {RECORD} was not written by `lingraft evaluate`; name another folder."
        )
    if before is not None and before.get("evaluations") != evaluations:
        check_same_options(f"--output {folder}", before, options)


def _print(
    models: list[ModelEvaluation],
    compared: ModelDifferences | None,
    titles: Mapping[str, str],
    names: Mapping[str, str],
) -> None:
    from lingraft.evaluate.common_items import unpaired_sentence
    from lingraft.evaluate.shown_names import renamed
    from lingraft.report.evaluation import difference_table, score_table
    from lingraft.report.judging import order_clause, usage_clause
    from lingraft.report.notes import equal_task_notes, noise_sentence
    from lingraft.report.signs import legend

    compared = renamed(compared, names)
    records = [renamed(one.record, names) for one in models]
    asked = [renamed(list(one.task_scores), names) for one in models]
    for one, record, own in zip(models, records, asked, strict=True):
        scores = record.scores
        print_table(score_table(scores, own), titles[one.model])
        if scores.noise is not None:
            print_result(noise_sentence([scores.noise]))
        for name, task in record.tasks.items():
            if (judged := task.judged) is not None:
                who = ", ".join(judged.judge.answered_as)
                print_result(f"{name}: judged by {who}; {order_clause(judged)}; {usage_clause(judged)}.")
    if compared is None:
        values = {name: records[0].scores.tasks[name].value for name in asked[0]}
        same = {name: value if value in (0, 1) else None for name, value in values.items()}
        for note in equal_task_notes(same, "models"):
            print_result(note)
        return
    first, second = models
    print_table(difference_table(compared), f"{titles[second.model]} - {titles[first.model]}, paired")
    for margin in {difference.margin for difference in compared.differences.values()}:
        print_result(legend("Difference", margin))
    equal = {name: difference.all_scores for name, difference in compared.differences.items()}
    for note in equal_task_notes(equal, "these models"):
        print_result(note)
    for name in sorted(set(records[0].tasks) ^ set(records[1].tasks)):
        print_result(f"{name}: was asked of one of the two models only, and is not compared.")
    for name, count in compared.unpaired.items():
        is_judged = records[0].tasks[name].judged is not None
        print_result(unpaired_sentence(name, count, judged=is_judged))
    for problem in compared.not_paired.values():
        print_result(problem)
