"""Put questions to a judge, several at once, and keep each verdict as soon as it is there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice

from lingraft.errors import EvaluationError
from lingraft.judge.budget import BudgetReachedError, Ledger
from lingraft.judge.client import ChatClient, QuestionRefusedError, most_tokens
from lingraft.judge.prompt import ALTERNATIVES, SYSTEM, Question, first_preference
from lingraft.judge.verdict_cache import Verdict, VerdictCache

OnProgress = Callable[[int, int], None]
_MOST_REFUSALS = 5  # so many and not one verdict: it is not the questions, but a wrong model's name, say
_SHOWN_CHARACTERS = 200  # of an answer that the cache keeps


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """How each question is put."""

    max_tokens: int = 8  # of the answer
    logprobs: bool = True  # ask for the letters' probabilities
    at_once: int = 4  # requests under way at a time


@dataclass(frozen=True, slots=True)
class RequestOutcome:
    """What requests gave beside the verdicts.

    Attributes:
        refused: Questions that the endpoint does not take, by key, with its reason.
        new: Verdicts that were not there before.
    """

    refused: dict[str, str]
    new: int


def count_earlier_answers(
    questions: Mapping[str, Question], cache: VerdictCache, ledger: Ledger, options: RequestOptions
) -> None:
    """Count what the requests of earlier runs for these questions took, also those that were lost."""
    for key, question in questions.items():
        most = most_tokens(SYSTEM + question.text(), options.max_tokens)
        for verdict in cache.paid_before(key):
            ledger.settle(most, verdict.tokens or most)


def request_verdicts(
    questions: Mapping[str, Question],
    client: ChatClient,
    cache: VerdictCache,
    options: RequestOptions,
    on_progress: OnProgress,
) -> RequestOutcome:
    """Put those questions that the cache has no verdict for.

    However this ends, the answers that were under way are waited for and kept.

    Raises:
        BudgetReachedError: The next question could cost more than is left.
        EvaluationError: The endpoint cannot be used, or takes no question at all.
    """
    missing = {key: question for key, question in questions.items() if key not in cache}
    refused: dict[str, str] = {}
    under_way: dict[Future[Verdict], str] = {}
    todo = iter(missing.items())
    with ThreadPoolExecutor(options.at_once) as pool:
        try:
            while True:
                for key, question in islice(todo, options.at_once - len(under_way)):
                    under_way[pool.submit(_verdict, client, cache, key, question, options)] = key
                if not under_way:
                    break
                for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                    key = under_way.pop(future)
                    try:
                        cache.append(key, future.result())
                    except QuestionRefusedError as error:
                        refused[key] = str(error)
                        if len(refused) == _MOST_REFUSALS and not _kept(missing, cache):
                            raise EvaluationError(
                                f"not one of {len(refused)} questions was taken: {next(iter(refused.values()))}"
                            ) from None
                    on_progress(_kept(questions, cache) + len(refused), len(questions))
        except BudgetReachedError as error:
            raise BudgetReachedError(
                f"{error} {_kept(questions, cache)} of {len(questions)} verdicts are there and kept: raise the "
                "budget (--budget, or the judge's `budget` in a study file), and the same command goes on."
            ) from None
        finally:
            client.stop()
            for future, key in under_way.items():
                if future.exception() is None:
                    cache.append(key, future.result())
    return RequestOutcome(refused, _kept(missing, cache))


def _kept(keys: Iterable[str], cache: VerdictCache) -> int:
    return sum(key in cache for key in keys)


def _verdict(
    client: ChatClient, cache: VerdictCache, key: str, question: Question, options: RequestOptions
) -> Verdict:
    reply = client.ask(
        SYSTEM,
        question.text(),
        alternatives=ALTERNATIVES if options.logprobs else 0,
        on_lost=lambda tokens: cache.append_lost(key, tokens),
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
