"""`lingraft judge`: how often a judge prefers a model's answers to a reference's outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lingraft import stopping
from lingraft.cli.output import check_folder, print_json, print_result, shown_message, write_record

_LISTED = 3  # items that are left out, with their reasons; all are in the object


def judge(
    answers: Annotated[
        str,
        typer.Argument(
            metavar="[NAME=]ANSWERS",
            help="The answers: instruction and output in each row, or predictions.parquet.",
        ),
    ],
    judge_url: Annotated[
        str, typer.Option(help="Base URL of the endpoint, such as https://api.openai.com/v1.")
    ],
    judge_model: Annotated[str, typer.Option(help="Name of the judge at the endpoint.")],
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="[NAME=]FILE", help="Outputs of the reference; default: AlpacaEval's 805, from the hub."
        ),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Cache file of the verdicts; default: ANSWERS.verdicts.jsonl.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Judge only the first answers.")] = None,
    one_order: Annotated[
        bool, typer.Option("--one-order", help="Judge each pair in one order only, for half the cost.")
    ] = False,
    logprobs: Annotated[
        bool, typer.Option("--logprobs/--no-logprobs", help="Weight verdicts by the letters' probabilities.")
    ] = True,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a verdict.")] = 8,
    price_in: Annotated[float | None, typer.Option(help="Price of a million input tokens.")] = None,
    price_out: Annotated[float | None, typer.Option(help="Price of a million output tokens.")] = None,
    budget: Annotated[float | None, typer.Option(help="Stop before the verdicts cost more.")] = None,
    at_once: Annotated[int, typer.Option(min=1, help="Concurrent requests.")] = 4,
    timeout: Annotated[
        float, typer.Option(help="Seconds without a whole reply after which a request fails.")
    ] = 60.0,
    attempts: Annotated[int, typer.Option(min=1, help="Most attempts of one request.")] = 6,
    length_control: Annotated[
        bool, typer.Option("--length-controlled", help="Print the length-controlled win rate, too.")
    ] = False,
    length_data: Annotated[
        Path | None, typer.Option(help="Its data, AlpacaEval's df_gamed.csv; default: from the hub.")
    ] = None,
    items: Annotated[Path | None, typer.Option(help="Write the preference on each item as Parquet.")] = None,
    record: Annotated[Path | None, typer.Option(help="Write the result and its inputs as JSON.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Let a model behind an OpenAI-compatible endpoint compare answers with a reference's outputs.

    The key is read from LINGRAFT_JUDGE_KEY, else from OPENAI_API_KEY.
    """
    stopping.keeps(f"the verdicts so far are kept; {stopping.GOES_ON}")
    from dataclasses import asdict
    from functools import partial

    from lingraft.cli.progress import StepBars
    from lingraft.config.load import judge_choice
    from lingraft.config.named import all_named
    from lingraft.config.paths import user_path
    from lingraft.evaluate.predictions import write_rows
    from lingraft.evaluate.tasks.alpaca_eval.task import read_outputs, reference_outputs
    from lingraft.judge.length_control import check_package, check_reference, gamed_data, length_controlled
    from lingraft.judge.win_rate import Judge, Preference, judge_answers
    from lingraft.records import hash_file, to_json
    from lingraft.report.judging import order_clause, usage_clause

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
    sets = all_named([answers] if reference is None else [answers, reference])
    own_file, *others = (user_path(one.value) for one in sets)
    other = reference_outputs(data=others[0] if others else None)
    own = read_outputs(own_file, other)[:limit]
    data = None
    if length_control or length_data:  # what is missing is said before anything is paid for
        check_package()
        check_reference(other)
        data = gamed_data(length_data)
    kept = cache or own_file.with_name(f"{own_file.name}.verdicts.jsonl")
    with StepBars() as bars:
        judged = judge_answers(
            own, other, chosen, cache=kept, on_progress=partial(bars.progressed, "verdicts")
        )
        controlled = None
        if data is not None:
            on_progress = partial(bars.progressed, "length control")
            controlled = length_controlled(judged.preferences, data, on_progress=on_progress)
    result = to_json(judged.record) | {
        "length_controlled": None if controlled is None else asdict(controlled)
    }
    if items is not None:
        write_rows(items, judged.preferences, Preference)
    if record is not None:
        inputs = {
            kind: {"file": one.value, "name": one.name, "hash": hash_file(user_path(one.value))}
            for kind, one in zip(("answers", "reference"), sets, strict=False)
        }
        write_record(record, "judge", inputs, result)
    if json:
        print_json(result)
        return
    rate, usage, lengths = judged.win_rate, judged.usage, judged.mean_characters
    against = f" against {sets[1].name}" if others else ""
    whose = f" of {sets[0].name}{against}:" if others or sets[0].is_given else ""
    print_result(
        f"Win rate{shown_message(whose)} {rate.value:.1%} ({rate.low:.1%} to {rate.high:.1%}), n = {rate.n} of "
        f"{judged.reference_items}: {judged.wins} wins, {judged.losses} losses, {judged.ties} ties"
    )
    if controlled is not None:
        doubt = ", far from the plain one: doubtful" if controlled.is_extreme else ""
        print_result(
            f"Length-controlled {controlled.value:.1%} ({controlled.low:.1%} to {controlled.high:.1%}), "
            f"alpaca-eval {controlled.package}{doubt}"
        )
    print_result(f"Mean length {lengths.answers:.0f} characters, the reference's {lengths.reference:.0f}")
    order = order_clause(judged)
    print_result(order[0].upper() + order[1:])
    print_result(f"Judge {', '.join(judged.judge.answered_as)}: {usage_clause(judged)}")
    if usage.uncounted:
        print_result(
            f"{usage.uncounted} verdicts came without a count of tokens: the most that they can be was taken"
        )
    if usage.excess > 1:
        print_result(
            f"The endpoint counted up to {usage.excess} times the tokens that a request can use: see what it bills"
        )
    if judged.judge.not_taken:
        print_result(f"The endpoint does not take: {', '.join(judged.judge.not_taken)}")
    if judged.left_out:
        print_result(
            f"{len(judged.left_out)} items are left out; {usage.unparseable} verdicts name neither A nor B:"
        )
    for reason in judged.left_out[:_LISTED]:
        print_result(f"  {reason}")
    if len(judged.left_out) > _LISTED:
        print_result(f"  ... and {len(judged.left_out) - _LISTED} more")
    print_result(f"Verdicts are kept in {kept}.")
