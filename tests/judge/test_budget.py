"""What a judge's tokens cost, and that the budget holds."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

import pytest
from judge_server import (
    ANSWERS,
    JudgeServer,
    Request,
    Response,
    failure,
    first_then,
    outputs,
    prefers_longer,
    verdict,
)

from lingraft.judge.budget import BudgetReachedError, Prices
from lingraft.judge.client import most_tokens
from lingraft.judge.prompt import SYSTEM, Question
from lingraft.judge.win_rate import Judged


def test_the_cost_is_the_tokens_times_the_prices(judged: Callable[..., Judged]) -> None:
    asking = judged(prices=Prices(2.5, 10.0)).usage
    assert (asking.tokens.read, asking.tokens.written, asking.uncounted) == (800, 8, 0)
    assert asking.cost == pytest.approx(800 * 2.5e-6 + 8 * 10e-6)


def test_without_usage_the_most_that_it_can_be_is_taken_and_told(
    judged: Callable[..., Judged], judge_server: JudgeServer
) -> None:
    judge_server.behaviour = lambda _: verdict("A", usage=False)
    asking = judged(prices=Prices(1.0, 1.0)).usage
    sent = sum(len(m["content"].encode()) for one in judge_server.requests for m in one.body["messages"])
    assert asking.uncounted == 8
    assert asking.tokens.read == sent + 8 * 64
    assert asking.tokens.written == 8 * 8


@pytest.mark.parametrize("at_once", [1, 4])
def test_the_budget_is_never_exceeded_and_a_larger_one_goes_on(
    judged: Callable[..., Judged], judge_server: JudgeServer, at_once: int
) -> None:
    answers, reference = outputs(*(["answer"] * 20)), outputs(*(["reference"] * 20))

    def expensive(asked: Request) -> Response:
        read = sum(len(one["content"].encode()) for one in asked.body["messages"])  # a token for each byte
        return verdict("A") if read < 0 else Response(verdict("A").body | {"usage": usage(read + 64, 8)})

    def usage(read: int, written: int) -> dict[str, int]:
        counts["read"] += read
        counts["written"] += written
        return {"prompt_tokens": read, "completion_tokens": written}

    counts: Counter[str] = Counter()
    judge_server.behaviour = expensive
    prices = Prices(1000.0, 2000.0)
    with pytest.raises(
        BudgetReachedError, match=r"budget of 20 .* \d+ of 40 verdicts are there and kept: raise the budget"
    ):
        judged(answers, reference, prices=prices, budget=20.0, at_once=at_once)
    assert 15 < (counts["read"] * 1000 + counts["written"] * 2000) / 1e6 <= 20
    first = len(judge_server.requests)
    with pytest.raises(BudgetReachedError):
        judged(answers, reference, prices=prices, budget=20.0, at_once=at_once)  # what was spent counts
    assert len(judge_server.requests) == first
    found = judged(answers, reference, prices=prices, budget=1000.0, at_once=at_once)
    assert len(judge_server.requests) == 40
    assert found.usage.cost == pytest.approx((counts["read"] * 1000 + counts["written"] * 2000) / 1e6)


def test_a_retried_question_reserves_its_cost_anew_each_time(
    judged: Callable[..., Judged], judge_server: JudgeServer
) -> None:
    lost = threading.Event()

    def silent(asked: Request) -> Response:
        lost.wait(5)
        return prefers_longer(asked)

    prices = Prices(1000.0, 1000.0)
    most = prices.of(most_tokens(SYSTEM + Question("Say 0.", "long enough", "middle").text(), 8))
    judge_server.behaviour = silent
    with pytest.raises(BudgetReachedError, match="could be exceeded by the next question"):
        judged(ANSWERS[:1], prices=prices, budget=2.5 * most, at_once=1, timeout_seconds=0.2)
    lost.set()
    assert len(judge_server.requests) == 2  # both may have been billed in full
    judge_server.requests.clear()
    judge_server.behaviour = first_then(*[failure(500)] * 5)  # failures that were answered are not billed
    with pytest.raises(BudgetReachedError, match=f"{2 * most:.4f} are spent"):  # by the run before
        judged(ANSWERS[:1], prices=prices, budget=2.5 * most, at_once=1)
    found = judged(ANSWERS[:1], prices=prices, budget=4.5 * most, at_once=1)
    assert len(judge_server.requests) == 7
    assert found.usage.cost == pytest.approx(2 * most + 0.202)
