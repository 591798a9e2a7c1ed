"""A judge that could answer no question is known before models answer for it."""

from __future__ import annotations

from typing import Any

import pytest
from judge_server import Behaviour, JudgeServer, Response, failure, prefers_longer, verdict

from lingraft.config.schema import Evaluation, JudgeChoice
from lingraft.study.reach import judge_failure

LISTED = {"data": [{"id": "other"}, {"id": "judge-2026"}]}


def found(server: JudgeServer, *, may_ask: bool, **options: Any) -> str | None:
    choice = JudgeChoice(**({"url": server.url, "model": "judge"} | options))
    return judge_failure(Evaluation(judge=choice), may_ask=may_ask)


@pytest.mark.parametrize("may_ask", [False, True])
def test_a_judge_that_nobody_is_is_refused(judge_server: JudgeServer, may_ask: bool) -> None:
    said = found(judge_server, may_ask=may_ask, url="http://127.0.0.1:9/v1")
    assert said is not None
    assert "cannot be reached" in said


@pytest.mark.parametrize(
    ("behaviour", "says"),
    [
        (lambda _: failure(401, "wrong key"), "no key was sent"),
        (lambda _: failure(404, "unknown model"), "no model 'judge'"),
        (lambda _: failure(400, "unknown model"), "unknown model"),
        (lambda _: Response("<html>"), "no JSON"),
        (lambda _: failure(301, "moved", Location="http://elsewhere/v1"), "http://elsewhere/v1"),
        (lambda _: failure(429, "later"), None),
        (lambda _: failure(503, "later"), None),
        (lambda _: verdict("?"), None),
    ],
)
def test_one_letter_says_whether_it_answers(
    judge_server: JudgeServer, behaviour: Behaviour, says: str | None
) -> None:
    judge_server.behaviour = behaviour
    said = found(judge_server, may_ask=True)
    assert (said is None) if says is None else (said is not None and says in said)
    assert len(judge_server.requests) == 1


@pytest.mark.parametrize(
    ("models", "model", "says"),
    [
        (None, "judge", None),
        (Response(LISTED), "judge-2026", None),
        (Response(LISTED), "judge", None),  # another name of it
        (Response(LISTED), "gpt-9", "lists no model 'gpt-9' (it has other, judge-2026)"),
        (Response({"error": "no"}, 401), "judge", "no key was sent"),
        (Response("<html>"), "judge", None),
        (Response({"data": [3]}), "judge", None),
        (Response({"data": []}), "judge", None),
        (Response("[" * 100_000), "judge", None),
        (Response({}, 500), "judge", None),
    ],
)
@pytest.mark.parametrize("why", ["may not ask", "budget"])
def test_with_a_budget_nothing_is_spent(
    judge_server: JudgeServer, models: Response | None, model: str, says: str | None, why: str
) -> None:
    judge_server.models, judge_server.behaviour = models, prefers_longer
    limits = {"budget": 1, "price_in": 1, "price_out": 1} if why == "budget" else {}
    said = found(judge_server, may_ask=why == "budget", model=model, **limits)
    assert (said is None) if says is None else (said is not None and says in said)
    assert judge_server.requests == []
