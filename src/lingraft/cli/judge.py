"""`lingraft judge`: how often a judge prefers a model's answers to a reference's outputs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lingraft.cli.output import check_folder, print_json, print_result, write_record

if TYPE_CHECKING:
    from collections.abc import Callable

    from lingraft.judge.length_control import LengthControlled
    from lingraft.judge.win_rate import Judged, Output


def judge(
    answers: Annotated[
        Path, typer.Argument(help="The answers: instruction and output in each row, or predictions.parquet.")
    ],
    judge_url: Annotated[
        str, typer.Option(help="What stands before /chat/completions, such as https://api.openai.com/v1.")
    ],
    judge_model: Annotated[str, typer.Option(help="The judge, as the endpoint names it.")],
    reference: Annotated[
        Path | None,
        typer.Option(help="The reference's outputs; default: AlpacaEval's 805, from the hub."),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="File that verdicts are kept in; default: ANSWERS.verdicts.jsonl.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Answers, from the first on.")] = None,
    one_order: Annotated[
        bool, typer.Option("--one-order", help="Show each pair one way only, for half the cost.")
    ] = False,
    logprobs: Annotated[
        bool, typer.Option("--logprobs/--no-logprobs", help="Weigh verdicts by the letters' probabilities.")
    ] = True,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens that the judge may write.")] = 8,
    price_in: Annotated[float | None, typer.Option(help="Price of a million tokens read.")] = None,
    price_out: Annotated[float | None, typer.Option(help="Price of a million tokens written.")] = None,
    budget: Annotated[float | None, typer.Option(help="Stop before all verdicts cost more.")] = None,
    at_once: Annotated[int, typer.Option(min=1, help="Questions under way at a time.")] = 4,
    timeout: Annotated[float, typer.Option(help="Seconds of silence after which a question is lost.")] = 60.0,
    attempts: Annotated[int, typer.Option(min=1, help="How often one question is sent at most.")] = 6,
    length_controlled: Annotated[
        bool, typer.Option("--length-controlled", help="Print the length-controlled win rate, too.")
    ] = False,
    length_data: Annotated[
        Path | None, typer.Option(help="Its data, AlpacaEval's df_gamed.csv; default: from the hub.")
    ] = None,
    items: Annotated[Path | None, typer.Option(help="Write the preference on each item as Parquet.")] = None,
    record: Annotated[Path | None, typer.Option(help="Write the result and what it is of as JSON.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Let a model behind an OpenAI-compatible endpoint compare answers with a reference's outputs.

    The key is read from LINGRAFT_JUDGE_KEY, else from OPENAI_API_KEY.
    """
    from functools import partial

    from lingraft.cli.progress import StepBars
    from lingraft.config.load import judge_choice
    from lingraft.evaluate.predictions import write_rows
    from lingraft.judge.win_rate import Judge, Preference, judge_answers

    for path in (items, record):
        check_folder(path)
    chosen = Judge.of(
        judge_choice(
            judge_url,
            judge_model,
            both_orders=not one_order,
            logprobs=logprobs,
            max_tokens=max_tokens,
            price_in=price_in,
            price_out=price_out,
            budget=budget,
            at_once=at_once,
            timeout=timeout,
            attempts=attempts,
        )
    )
    own, other = _read(answers, reference, limit)
    data = _length_data(other, length_data) if length_controlled or length_data else None
    kept = cache or answers.with_name(f"{answers.name}.verdicts.jsonl")
    with StepBars() as bars:
        judged = judge_answers(
            own, other, chosen, cache=kept, on_progress=partial(bars.progressed, "verdicts")
        )
        controlled = _length_controlled(judged, data, partial(bars.progressed, "length control"))
    result = _result(judged, controlled)
    if items is not None:
        write_rows(items, judged.preferences, Preference)
    if record is not None:
        write_record(record, "judge", _inputs(answers, reference), result)
    if json:
        print_json(result)
        return
    _print(judged, controlled, kept)


def _read(
    answers: Path, reference: Path | None, limit: int | None
) -> tuple[tuple[Output, ...], tuple[Output, ...]]:
    from lingraft.evaluate.tasks.alpaca_eval.task import read_outputs, reference_outputs

    other = reference_outputs(data=reference)
    return read_outputs(answers, other)[:limit], other


def _length_data(reference: tuple[Output, ...], data: Path | None) -> Path:
    """Return the file that the length control needs, or say what is missing before anything is paid for."""
    from lingraft.judge.length_control import check_package, check_reference, gamed_data

    check_package()
    check_reference(reference)
    return gamed_data(data)


def _length_controlled(
    judged: Judged, data: Path | None, on_progress: Callable[[int, int], None]
) -> LengthControlled | None:
    from lingraft.judge.length_control import length_controlled

    return None if data is None else length_controlled(judged.preferences, data, on_progress=on_progress)


def _inputs(answers: Path, reference: Path | None) -> dict[str, Any]:
    from lingraft.records import hash_file

    files = {"answers": answers} | ({} if reference is None else {"reference": reference})
    return {name: {"file": str(path), "hash": hash_file(path)} for name, path in files.items()}


def _result(judged: Judged, controlled: LengthControlled | None) -> dict[str, Any]:
    from dataclasses import asdict

    return {**judged.to_json(), "length_controlled": None if controlled is None else asdict(controlled)}


def _print(judged: Judged, controlled: LengthControlled | None, cache: Path) -> None:
    for line in (*_scores(judged, controlled), *_asking(judged)):
        print_result(line)
    for reason in judged.left_out[:3]:
        print_result(f"  {reason}")
    if len(judged.left_out) > 3:
        print_result(f"  ... and {len(judged.left_out) - 3} more")
    print_result(f"Verdicts are kept in {cache}.")


def _scores(judged: Judged, controlled: LengthControlled | None) -> list[str]:
    from lingraft.report.judging import order_clause

    rate, (own, other) = judged.win_rate, judged.mean_characters
    ties = len(judged.preferences) - judged.wins - judged.losses
    lines = [
        f"Win rate {rate.value:.1%} ({rate.low:.1%} to {rate.high:.1%}), n = {rate.n} of {judged.reference_items}: "
        f"{judged.wins} wins, {judged.losses} losses, {ties} ties"
    ]
    if controlled is not None:
        lines.append(
            f"Length-controlled {controlled.value:.1%} ({controlled.low:.1%} to {controlled.high:.1%}), "
            f"alpaca-eval {controlled.package}"
            + (", far from the plain one: doubtful" if controlled.is_extreme else "")
        )
    lines.append(f"Mean length {own:.0f} characters, the reference's {other:.0f}")
    order = order_clause(judged.to_json())
    lines.append(order[0].upper() + order[1:])
    return lines


def _asking(judged: Judged) -> list[str]:
    from lingraft.report.judging import asking_clause

    asking = judged.asking
    lines = [f"Judge {', '.join(judged.judge['answered_as'])}: {asking_clause(judged.to_json())}"]
    if asking.uncounted:
        lines.append(
            f"{asking.uncounted} verdicts came without a count of tokens: the most that they can be was taken"
        )
    if judged.judge["not_taken"]:
        lines.append(f"The endpoint does not take: {', '.join(judged.judge['not_taken'])}")
    if judged.left_out:
        lines.append(
            f"{len(judged.left_out)} items are left out; {asking.unparseable} verdicts name neither A nor B:"
        )
    return lines
