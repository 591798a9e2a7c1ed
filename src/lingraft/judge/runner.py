"""Put questions to a judge, several at once, and keep each verdict as soon as it is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice

from lingraft.errors import EvaluationError
from lingraft.judge.budget import BudgetReachedError, Ledger
from lingraft.judge.client import ChatClient, QuestionRefusedError, most_tokens
from lingraft.judge.prompt import ALTERNATIVES, Question, first_preference
from lingraft.judge.verdict_cache import Verdict, VerdictCache

OnProgress = Callable[[int, int], None]
_REFUSALS_THAT_TELL = 5  # so many and not one verdict: it is not the questions
_SHOWN_CHARACTERS = 200  # of an answer that the cache keeps


@dataclass(frozen=True, slots=True)
class Manner:
    """How each question is put.

    Attributes:
        max_tokens: Longest answer.
        logprobs: Whether to ask for the letters' probabilities.
        at_once: Questions under way at a time.
    """

    max_tokens: int = 8
    logprobs: bool = True
    at_once: int = 4


@dataclass(frozen=True, slots=True)
class Asked:
    """What asking found beside the verdicts.

    Attributes:
        refused: Questions that the endpoint does not take, by key, with its reason.
        new: Verdicts that were not there before.
    """

    refused: dict[str, str]
    new: int


def ask_all(
    questions: Mapping[str, Question],
    client: ChatClient,
    cache: VerdictCache,
    ledger: Ledger,
    manner: Manner,
    on_progress: OnProgress | None = None,
) -> Asked:
    """Put those questions that the cache has no verdict for.

    However this ends, the answers that were under way are waited for and kept.

    Raises:
        BudgetReachedError: The next question could cost more than is left.
        EvaluationError: The endpoint cannot be used, or takes no question at all.
    """
    open_ones = {key: question for key, question in questions.items() if key not in cache}
    _count_kept(questions, cache, ledger, manner)
    refused: dict[str, str] = {}
    under_way: dict[Future[Verdict], str] = {}
    todo = iter(open_ones.items())
    with ThreadPoolExecutor(manner.at_once) as pool:
        try:
            while _fill(under_way, todo, pool, client, manner):
                for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                    _take(future, under_way.pop(future), cache, refused)
                    _check_refusals(refused, open_ones, cache)
                    if on_progress is not None:
                        on_progress(_done(questions, cache) + len(refused), len(questions))
        except BudgetReachedError as error:
            raise BudgetReachedError(
                f"{error} {_done(questions, cache)} of {len(questions)} verdicts are there and kept: raise the "
                "budget (--budget, or the judge's `budget` in a study file), and the same command goes on."
            ) from None
        finally:
            client.stop()
            for future, key in under_way.items():
                if future.exception() is None:
                    cache.append(key, future.result())
    return Asked(refused, _done(open_ones, cache))


def _done(questions: Mapping[str, Question], cache: VerdictCache) -> int:
    return sum(key in cache for key in questions)


def _count_kept(
    questions: Mapping[str, Question], cache: VerdictCache, ledger: Ledger, manner: Manner
) -> None:
    """Count what answers of earlier runs took."""
    for key, question in questions.items():
        for verdict in cache.paid_before(key):
            ledger.count(verdict.tokens or most_tokens(question.messages(), manner.max_tokens))


def _fill(
    under_way: dict[Future[Verdict], str],
    todo: Iterator[tuple[str, Question]],
    pool: ThreadPoolExecutor,
    client: ChatClient,
    manner: Manner,
) -> bool:
    """Put as many questions as may be under way at a time; return whether any is."""
    for key, question in islice(todo, manner.at_once - len(under_way)):
        under_way[pool.submit(_ask, client, question, manner)] = key
    return bool(under_way)


def _ask(client: ChatClient, question: Question, manner: Manner) -> Verdict:
    reply = client.ask(
        question.messages(),
        max_tokens=manner.max_tokens,
        alternatives=ALTERNATIVES if manner.logprobs else 0,
    )
    first, weighted = first_preference(reply)
    tokens = reply.tokens
    return Verdict(
        first=first,
        weighted=weighted,
        text=reply.text[:_SHOWN_CHARACTERS],
        model=reply.model,
        read=None if tokens is None else tokens.read,
        written=None if tokens is None else tokens.written,
    )


def _take(future: Future[Verdict], key: str, cache: VerdictCache, refused: dict[str, str]) -> None:
    try:
        cache.append(key, future.result())
    except QuestionRefusedError as error:
        refused[key] = str(error)


def _check_refusals(refused: Mapping[str, str], asked: Mapping[str, Question], cache: VerdictCache) -> None:
    """Stop where nothing but refusals comes back: a wrong model's name may be told so, too."""
    if len(refused) >= _REFUSALS_THAT_TELL and not _done(asked, cache):
        raise EvaluationError(
            f"not one of {len(refused)} questions was taken: {next(iter(refused.values()))}"
        )
