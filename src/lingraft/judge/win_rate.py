"""Win rate of a model's answers over a reference's, by a judge behind any OpenAI-compatible endpoint.

AlpacaEval's way: for each instruction a judge sees both outputs and names the better one. The order in which they
are shown moves judges, so each pair is shown both ways and the preferences are averaged; what the order does is
reported. Answers are made before, verdicts are kept (`verdict_cache`), and a stopped run goes on with the question that
it stopped at.

Source: Li et al. 2023, AlpacaEval; Zheng et al. 2023, arXiv 2306.05685 (position bias, and both orders against it).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from statistics import fmean

from lingraft.config.schema import JudgeChoice
from lingraft.endpoint import Key
from lingraft.errors import EvaluationError
from lingraft.intervals.macro_mean import Difference, Interval, macro_mean, paired_difference
from lingraft.judge.budget import Ledger, Prices, Tokens
from lingraft.judge.client import ChatClient, Endpoint, key_from_environment
from lingraft.judge.prompt import PROMPT_VERSION, Question, prompt_hash
from lingraft.judge.runner import (
    OnProgress,
    RequestOptions,
    RequestOutcome,
    count_earlier_answers,
    request_verdicts,
)
from lingraft.judge.verdict_cache import Verdict, open_cache
from lingraft.records import fingerprint_of
from lingraft.text.language_tags import ENGLISH

ALPACA_EVAL = "alpaca_eval"
_SHOWN_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class Output:
    """What a model wrote for an instruction; `item` is unique in its file, `output` may be empty."""

    item: str
    instruction: str
    output: str


@dataclass(frozen=True, slots=True)
class Judge:
    """Who judges, how, and for how much.

    Attributes:
        endpoint: Where and which model.
        both_orders: Show each pair both ways, and average; else one way, drawn by the instruction.
        options: How each question is put.
        prices: Of a million tokens; None: cost is not reported.
        budget: What all verdicts of this comparison may cost, those of earlier runs included; None: no limit.
    """

    endpoint: Endpoint
    both_orders: bool = True
    options: RequestOptions = field(default_factory=RequestOptions)
    prices: Prices | None = None
    budget: float | None = None

    @classmethod
    def of(cls, choice: JudgeChoice) -> Judge:
        """Return the judge that a study file or a command chose; raise ConfigError where its URL cannot be used."""
        return cls(
            Endpoint(choice.url, choice.model, choice.timeout, choice.attempts),
            both_orders=choice.both_orders,
            options=RequestOptions(choice.max_tokens, choice.logprobs, choice.at_once),
            prices=None
            if choice.price_in is None or choice.price_out is None
            else Prices(choice.price_in, choice.price_out),
            budget=choice.budget,
        )

    def key_of(self, question: Question) -> str:
        """Return what a verdict is kept by: all that it depends on.

        The address is part of it: servers of one's own give different models the same name.
        """
        texts = [question.instruction, question.first, question.second]
        options = [self.options.max_tokens, self.options.logprobs]
        served = [self.endpoint.url.rstrip("/"), self.endpoint.model]
        return fingerprint_of([*served, PROMPT_VERSION, *options, *texts])


@dataclass(frozen=True, slots=True)
class Preference:
    """The judge's preference on one item.

    Attributes:
        task: As `macro_mean.Scored` has it.
        language: BCP-47 tag of the instruction.
        cluster: The item: instructions are independent.
        item: Of the answer.
        row: Place of the instruction in the reference, from 0.
        score: Preference for the answer over the reference's output, in [0, 1]; 0.5 is a tie.
        when_first: The preference where the answer was shown first; None: it was not.
        when_second: The preference where the answer was shown second; None: it was not.
        characters: Length of the answer.
        reference_characters: Length of the reference's output.
    """

    task: str
    language: str
    cluster: str
    item: str
    row: int
    score: float
    when_first: float | None
    when_second: float | None
    characters: int
    reference_characters: int


@dataclass(frozen=True, slots=True)
class Usage:
    """What the verdicts took.

    Attributes:
        verdicts: Verdicts that the items rest on.
        new: Those asked for in this run; the others were kept from before.
        unparseable: Those that named no output; their items are left out.
        weighted: Those from the letters' probabilities; the others are from the letter alone.
        tokens: Of all these verdicts, of earlier answers to their questions that named no output, and of requests
            that were lost.
        cost: Of these tokens, in the currency of the prices; None: no prices were given.
        uncounted: Verdicts whose tokens the endpoint did not count: the most that they can be was taken.
        excess: How many times the most that a request can use the endpoint counted, at the worst; 1: never more.
    """

    verdicts: int
    new: int
    unparseable: int
    weighted: int
    tokens: Tokens
    cost: float | None
    uncounted: int
    excess: int


@dataclass(frozen=True, slots=True)
class JudgeDescription:
    """Which judge gave the verdicts, and how it was asked (see `Endpoint`, `Judge` and `RequestOptions`).

    Attributes:
        answered_as: Models that answered, as the endpoint says.
        key_from: Environment variable of the key; None: no key was sent.
        prompt: Fingerprint of the question's wording.
        not_taken: What the endpoint did not take, so that requests went without it.
    """

    url: str
    model: str
    answered_as: tuple[str, ...]
    key_from: str | None
    prompt_version: int
    prompt: str
    both_orders: bool
    logprobs: bool
    max_tokens: int
    not_taken: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MeanCharacters:
    """Mean length of the answers and of the reference's outputs on the judged items, in characters."""

    answers: float
    reference: float


@dataclass(frozen=True, kw_only=True)
class JudgeRecord:
    """A model's answers against a reference's, summed up.

    Attributes:
        win_rate: Mean preference for the answers, in [0, 1], with a 95 % interval over items; 0.5: as good as the
            reference. Its n counts the items that were judged.
        wins: Items on which the answer is preferred.
        losses: Items on which the reference's output is preferred.
        ties: The other items.
        left_out: Items without a verdict, each with its reason; they count nowhere.
        identical: Items whose two outputs are the same text: ties, which nobody is asked about.
        order_effect: Preference for an answer when it is shown first minus when it is shown second, in [-1, 1]; 0: the
            order does not matter, 1: what is shown first always wins. None where each pair was shown one way only.
        contradictory: Items on which the two orders name different outputs; None as above.
        reference_items: Instructions of the reference; those without an answer were not judged.
        mean_characters: Lengths of what was judged.
        usage: What the verdicts took.
        judge: Who gave them.
    """

    win_rate: Interval
    wins: int
    losses: int
    ties: int
    left_out: tuple[str, ...]
    identical: int
    order_effect: Difference | None
    contradictory: int | None
    reference_items: int
    mean_characters: MeanCharacters
    usage: Usage
    judge: JudgeDescription


@dataclass(frozen=True, kw_only=True)
class Judged(JudgeRecord):
    """The same with what each item contributes.

    Attributes:
        preferences: One per item.
    """

    preferences: tuple[Preference, ...]

    @property
    def record(self) -> JudgeRecord:
        """All but the single preferences."""
        return JudgeRecord(**{one.name: getattr(self, one.name) for one in fields(JudgeRecord)})


@dataclass(frozen=True, slots=True)
class _Pair:
    """An answer and the reference's output to the same instruction, which stands in `row` of the reference."""

    answer: Output
    reference: Output
    row: int

    @property
    def is_identical(self) -> bool:
        return self.answer.output == self.reference.output

    def questions(self, *, both_orders: bool) -> dict[bool, Question]:
        """Return the questions of the pair by whether the answer is shown first; none where there is no choice."""
        if self.is_identical:
            return {}
        instruction, own, other = self.answer.instruction, self.answer.output, self.reference.output
        shown = {True: Question(instruction, own, other), False: Question(instruction, other, own)}
        drawn = int(fingerprint_of(instruction), 16) % 2 == 0
        return shown if both_orders else {drawn: shown[drawn]}


def judge_answers(
    answers: Sequence[Output],
    reference: Sequence[Output],
    judge: Judge,
    *,
    cache: Path,
    language: str = ENGLISH,
    key: Key | None = None,
    sleep: Callable[[float], object] | None = None,
    on_progress: OnProgress | None = None,
) -> Judged:
    """Let a judge compare a model's answers with a reference's outputs to the same instructions.

    Args:
        answers: The model's; matched with the reference by the text of the instruction.
        reference: The reference's; may hold more instructions than were answered.
        judge: Who judges, and how.
        cache: File that verdicts are kept in, made where it is absent.
        language: BCP-47 tag of the instructions.
        key: For the endpoint; None: from the environment.
        sleep: Waits between attempts; None: real time.
        on_progress: Called with the verdicts so far and in all.

    Raises:
        EvaluationError: An answer has no counterpart, the endpoint cannot be used, the budget is reached, or not one
            item has a verdict.
    """
    pairs = _paired(answers, reference)
    signed_with = key_from_environment() if key is None else key
    shown = [pair.questions(both_orders=judge.both_orders) for pair in pairs]
    questions = {judge.key_of(question): question for both in shown for question in both.values()}
    ledger = Ledger(judge.prices, judge.budget)
    client = ChatClient(judge.endpoint, signed_with, ledger, max_tokens=judge.options.max_tokens, sleep=sleep)
    with open_cache(cache) as kept, client:
        count_earlier_answers(questions, kept, ledger, judge.options)
        outcome = request_verdicts(questions, client, kept, judge.options, on_progress or (lambda *_: None))
        verdicts = {one: kept[one] for one in questions if one in kept}
    judged = [
        _preference(
            pair, {order: judge.key_of(one) for order, one in both.items()}, verdicts, outcome, language
        )
        for pair, both in zip(pairs, shown, strict=True)
    ]
    preferences = tuple(one for one in judged if isinstance(one, Preference))
    left_out = tuple(one for one in judged if isinstance(one, str))
    if not preferences:
        raise EvaluationError(f"not one of {len(pairs)} items has a verdict: {left_out[0]}.")
    effect, contradictory = _order_effect(preferences)
    wins = sum(one.score > 0.5 for one in preferences)
    losses = sum(one.score < 0.5 for one in preferences)
    return Judged(
        win_rate=macro_mean(preferences),
        wins=wins,
        losses=losses,
        ties=len(preferences) - wins - losses,
        preferences=preferences,
        left_out=left_out,
        identical=sum(pair.is_identical for pair in pairs),
        order_effect=effect,
        contradictory=contradictory,
        reference_items=len(reference),
        mean_characters=MeanCharacters(
            answers=fmean(one.characters for one in preferences),
            reference=fmean(one.reference_characters for one in preferences),
        ),
        usage=Usage(
            verdicts=len(verdicts),
            new=outcome.new,
            unparseable=sum(one.first is None for one in verdicts.values()),
            weighted=sum(one.weighted for one in verdicts.values()),
            tokens=ledger.used,
            cost=ledger.cost_of(ledger.used),
            uncounted=sum(one.tokens is None for one in verdicts.values()),
            excess=ledger.excess,
        ),
        judge=JudgeDescription(
            url=judge.endpoint.url,
            model=judge.endpoint.model,
            answered_as=tuple(sorted({one.model for one in verdicts.values()})),
            key_from=signed_with.variable or None,
            prompt_version=PROMPT_VERSION,
            prompt=prompt_hash(),
            both_orders=judge.both_orders,
            logprobs=judge.options.logprobs,
            max_tokens=judge.options.max_tokens,
            not_taken=client.not_taken,
        ),
    )


def _paired(answers: Sequence[Output], reference: Sequence[Output]) -> list[_Pair]:
    """Match answers with the reference by the text of the instruction, which must be unique in both."""
    rows = _rows_by_instruction(reference, "the reference")
    _rows_by_instruction(answers, "the answers")
    pairs = []
    for answer in answers:
        row = rows.get(answer.instruction)
        if row is None:
            raise EvaluationError(
                f"the answers: {answer.item}: the reference has no output for its instruction "
                f"{_truncated(answer.instruction)}; is it the reference that was answered?"
            )
        pairs.append(_Pair(answer, reference[row], row))
    if not pairs:
        raise EvaluationError("there are no answers to judge.")
    return pairs


def _rows_by_instruction(outputs: Sequence[Output], whose: str) -> dict[str, int]:
    rows: dict[str, int] = {}
    for row, one in enumerate(outputs):
        if one.instruction in rows:
            earlier = outputs[rows[one.instruction]].item
            raise EvaluationError(
                f"{whose}: {one.item}: has the instruction of {earlier}, {_truncated(one.instruction)}; keep one."
            )
        rows[one.instruction] = row
    return rows


def _truncated(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…")


def _preference(
    pair: _Pair,
    keys: Mapping[bool, str],
    verdicts: Mapping[str, Verdict],
    outcome: RequestOutcome,
    language: str,
) -> Preference | str:
    """Return the preference on a pair, or why there is none: with one order alone the order would count."""
    found: dict[bool, float] = {}  # by whether the answer is shown first
    for answer_first, key in keys.items():
        if key in outcome.refused:
            return f"{pair.answer.item}: {outcome.refused[key].rstrip('.')}"
        first = verdicts[key].first
        if first is None:
            return f"{pair.answer.item}: the verdict {_truncated(verdicts[key].text)} names neither A nor B"
        found[answer_first] = first if answer_first else 1 - first
    return Preference(
        task=ALPACA_EVAL,
        language=language,
        cluster=pair.answer.item,
        item=pair.answer.item,
        row=pair.row,
        score=fmean(found.values()) if found else 0.5,
        when_first=found.get(True),
        when_second=found.get(False),
        characters=len(pair.answer.output),
        reference_characters=len(pair.reference.output),
    )


def _order_effect(preferences: Sequence[Preference]) -> tuple[Difference | None, int | None]:
    """Return what the order does, and on how many items it decides, over the items that were shown both ways."""
    shown = [
        (replace(one, score=one.when_first), replace(one, score=one.when_second))
        for one in preferences
        if one.when_first is not None and one.when_second is not None
    ]
    if not shown:
        return None, None
    effect = paired_difference([second for _, second in shown], [first for first, _ in shown])
    return effect, sum((first.score - 0.5) * (second.score - 0.5) < 0 for first, second in shown)
