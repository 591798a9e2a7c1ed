"""Requests, retries, refusals and the key, against a real HTTP server."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from judge_server import (
    ANSWERS,
    JudgeServer,
    Request,
    Response,
    failure,
    first_then,
    prefers_longer,
    verdict,
)

from lingraft.cli.main import _run
from lingraft.errors import ConfigError, EvaluationError
from lingraft.judge.budget import Prices
from lingraft.judge.client import Endpoint, key_from_environment
from lingraft.judge.win_rate import Judged
from lingraft.records import to_json


def test_passing_failures_are_waited_for_twice_as_long_each_time(
    judged: Callable[..., Judged], judge_server: JudgeServer
) -> None:
    judge_server.behaviour = first_then(failure(500), failure(503), failure(429), failure(529))
    waits: list[float] = []
    found = judged(ANSWERS[:1], at_once=1, sleep=waits.append)
    assert waits == [1, 2, 4, 8]
    assert (found.win_rate.value, len(judge_server.requests)) == (1.0, 6)


def test_retry_after_is_obeyed_in_seconds_and_as_a_date(
    judged: Callable[..., Judged], judge_server: JudgeServer
) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    judge_server.behaviour = first_then(failure(429, Retry_After="7"), failure(503, Retry_After=date))
    waits: list[float] = []
    judged(ANSWERS[:1], at_once=1, sleep=waits.append)
    assert waits == [7, pytest.approx(99, abs=2)]


def test_a_server_that_wants_an_hour_is_not_waited_for(
    judged: Callable[..., Judged], judge_server: JudgeServer
) -> None:
    judge_server.behaviour = lambda _: failure(429, "slow down", Retry_After="3600")
    with pytest.raises(EvaluationError, match=r"wait 3600 s \(429: slow down\)"):
        judged(at_once=1)


def test_an_error_ends_the_waits_of_the_other_requests(
    judged: Callable[..., Judged], judge_server: JudgeServer
) -> None:
    both = threading.Barrier(2)

    def one_waits_one_fails(asked: Request) -> Response:
        both.wait(10)
        return failure(429, Retry_After="300") if asked.output("A") == "middle" else failure(401)

    judge_server.behaviour = one_waits_one_fails
    started = time.monotonic()
    with pytest.raises(EvaluationError, match="answers 401"):
        judged(ANSWERS[:1], at_once=2, sleep=None)
    assert time.monotonic() - started < 60


def test_a_server_that_keeps_failing_is_given_up_after_so_many_attempts(
    judged: Callable[..., Judged], judge_server: JudgeServer
) -> None:
    judge_server.behaviour = lambda _: failure(500, "overloaded")
    with pytest.raises(EvaluationError, match="failed 3 times in a row, last: 500: overloaded"):
        judged(ANSWERS[:1], attempts=3, at_once=1)
    assert len(judge_server.requests) == 3


def test_a_server_that_says_nothing_is_asked_again_after_the_timeout(
    judged: Callable[..., Judged], judge_server: JudgeServer
) -> None:
    def slow_at_first(asked: Request) -> Response:
        if len(judge_server.requests) == 1:
            time.sleep(0.6)
        return prefers_longer(asked)

    judge_server.behaviour = slow_at_first
    found = judged(ANSWERS[:1], timeout_seconds=0.2, at_once=1, prices=Prices(1.0, 1.0))
    assert len(judge_server.requests) == 3
    assert found.usage.tokens.written == 8 + 2  # the lost one may have been billed: as much as it may write


PLACE = r"the judge at http://127\.0\.0\.1:\d+/v1/chat/completions "


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (
            failure(401, "bad key"),
            PLACE + r"answers 401 \(bad key\): no key was sent; put it into LINGRAFT_JUDGE_KEY",
        ),
        (failure(403, "not yours"), PLACE + r"answers 403 \(not yours\): no key was sent"),
        (
            failure(404, "no such model"),
            PLACE + r"answers 404 \(no such model\): either it has no model 'judge'",
        ),
        (failure(429, "insufficient_quota: pay"), PLACE + r"answers 429 \(insufficient_quota: pay\)"),
        (failure(418), PLACE + r"answers 418 \(no\)"),
        (
            failure(307, "", Location="http://other"),
            PLACE + r"answers 307 .* redirects to http://other; give that",
        ),
        (Response("<html>\nHello"), PLACE + r"answers with what is no JSON: '<html> Hello'"),
        (Response(""), PLACE + r"answers with what is no JSON: ''"),
        (
            Response({"choices": []}),
            PLACE + r"answers without choices\[0\]\.message\.content: '\{\"choices\": \[\]\}'",
        ),
        (Response({"error": {"message": "busy"}}), PLACE + r"answers without choices.*busy"),
        (Response([1]), PLACE + r"answers without choices"),
        (Response({"choices": {"0": "A"}}), PLACE + r"answers without choices"),
        (Response({"choices": [{"text": "A"}]}), PLACE + r"answers without choices"),
        (Response("Not found", 404), PLACE + r"answers 404 \(Not found\)"),
        (Response({"detail": "no"}, 404), PLACE + r"answers 404 \(no\)"),
    ],
)
def test_what_cannot_pass_is_one_clear_line_at_once(
    judged: Callable[..., Judged], judge_server: JudgeServer, answer: Response, says: str
) -> None:
    judge_server.behaviour = lambda _: answer
    with pytest.raises(EvaluationError, match=says) as error:
        judged(at_once=1)
    assert len(str(error.value).splitlines()) == 1
    assert len(judge_server.requests) == 1


def test_an_endpoint_that_is_not_there_is_an_error_at_once(judged: Callable[..., Judged]) -> None:
    with pytest.raises(EvaluationError, match=r"cannot be reached: \[Errno \d+\] Connection refused"):
        judged(url="http://127.0.0.1:9/v1")


def test_a_connection_that_is_lost_after_there_was_one_is_made_again(
    judged: Callable[..., Judged], judge_server: JudgeServer
) -> None:
    def hangs_up_on_the_second(asked: Request) -> Response:
        if len(judge_server.requests) == 2:
            raise ConnectionAbortedError
        return prefers_longer(asked)

    judge_server.behaviour = hangs_up_on_the_second
    assert judged(ANSWERS[:1], at_once=1).win_rate.value == 1.0
    assert len(judge_server.requests) == 3


@pytest.mark.parametrize(
    ("named", "refuses", "without"),
    [
        ("logprobs", "logprobs", "top_logprobs"),
        ("temperature", "temperature", "temperature"),
        ("'max_tokens' is not supported. Use 'max_completion_tokens' instead.", "max_tokens", "max_tokens"),
    ],
)
def test_what_an_endpoint_does_not_take_is_left_out_and_told(
    judged: Callable[..., Judged], judge_server: JudgeServer, named: str, refuses: str, without: str
) -> None:
    judge_server.behaviour = lambda asked: (
        failure(400, named) if refuses in asked.body else prefers_longer(asked)
    )
    found = judged(at_once=1)
    assert found.win_rate.n == 4
    assert len(judge_server.requests) == 1 + 8
    assert without not in judge_server.requests[-1].body
    assert found.judge.not_taken == (refuses,)
    if refuses == "max_tokens":
        assert judge_server.requests[-1].body["max_completion_tokens"] == 8


def test_a_question_that_is_too_long_is_left_out_with_its_reason(
    judged: Callable[..., Judged], judge_server: JudgeServer
) -> None:
    judge_server.behaviour = lambda asked: (
        failure(400, "too long") if "longest" in asked.question else prefers_longer(asked)
    )
    found = judged()
    assert found.win_rate.n == 3
    assert re.fullmatch(f"row 2: {PLACE}refuses the question \\(400: too long\\)", found.left_out[0])


def test_an_endpoint_that_takes_no_question_at_all_is_an_error(
    judged: Callable[..., Judged], judge_server: JudgeServer
) -> None:
    judge_server.behaviour = lambda _: failure(400, "model_not_found")
    with pytest.raises(EvaluationError, match=r"not one of 5 questions was taken: .*400: model_not_found"):
        judged(at_once=1)
    assert len(judge_server.requests) == 5


@pytest.mark.parametrize(
    ("environment", "variable", "value"),
    [
        ({}, "", ""),
        ({"OPENAI_API_KEY": "sk-1"}, "OPENAI_API_KEY", "sk-1"),
        ({"OPENAI_API_KEY": "sk-1", "LINGRAFT_JUDGE_KEY": "lj-2\n"}, "LINGRAFT_JUDGE_KEY", "lj-2"),
        ({"OPENAI_API_KEY": "sk-1", "LINGRAFT_JUDGE_KEY": ""}, "", ""),
    ],
)
def test_the_key_comes_from_the_environment(environment: dict[str, str], variable: str, value: str) -> None:
    key = key_from_environment(environment)
    assert (key.variable, key.value) == (variable, value)
    assert not value or value not in repr(key)


STEERS = "evil\x1b[2J\u202e\x07"


def test_what_a_server_says_cannot_steer_the_terminal(
    command: list[str], judge_server: JudgeServer, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    judge_server.behaviour = lambda _: verdict("A", model=STEERS)
    assert _run(command) == 0
    assert r"Judge evil\x1b[2J\u202e\x07: 8 verdicts" in capfd.readouterr().out
    for failing in (
        failure(401, STEERS),
        failure(307, "", Location="http://other/?\x1b[2J"),
        Response(STEERS),
    ):
        judge_server.behaviour = lambda _, failing=failing: failing  # type: ignore[misc]
        assert _run([*command, "--cache", str(tmp_path / "other.jsonl")]) == 2
        printed = capfd.readouterr().err
        assert r"\x1b" in printed
        assert not {"\x1b", "\x07", "\u202e"} & set(printed)


def test_a_key_that_no_header_can_hold_is_refused_without_being_shown() -> None:
    with pytest.raises(ConfigError, match="LINGRAFT_JUDGE_KEY") as error:
        key_from_environment({"LINGRAFT_JUDGE_KEY": "secret\nX-Other: 1"})
    assert "secret" not in str(error.value)


def test_the_key_is_sent_and_stands_nowhere_else(
    judged: Callable[..., Judged], judge_server: JudgeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("LINGRAFT_JUDGE_KEY", "lj-secret")
    found = judged(cache=tmp_path / "kept.jsonl")
    assert {one.headers["Authorization"] for one in judge_server.requests} == {"Bearer lj-secret"}
    assert found.judge.key_from == "LINGRAFT_JUDGE_KEY"
    assert "lj-secret" not in json.dumps(to_json(found)) + (tmp_path / "kept.jsonl").read_text()
    judge_server.behaviour = lambda asked: failure(401, f"you sent {asked.headers['Authorization']}")
    with pytest.raises(EvaluationError, match=r"Bearer \*\*\*\): the key in LINGRAFT_JUDGE_KEY is not taken"):
        judged(cache=tmp_path / "other.jsonl")


def test_a_redirect_takes_neither_the_question_nor_the_key_to_another_host(
    judged: Callable[..., Judged],
    judge_server: JudgeServer,
    other_server: JudgeServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LINGRAFT_JUDGE_KEY", "lj-secret")
    elsewhere = f"http://localhost:{other_server.server_port}/v1/chat/completions"
    for status in (301, 302, 307, 308):
        judge_server.behaviour = lambda _, status=status: failure(status, "", Location=elsewhere)  # type: ignore[misc]
        with pytest.raises(
            EvaluationError, match=f"answers {status} .* redirects to {elsewhere}; give that URL"
        ):
            judged(at_once=1)
    assert other_server.requests == []


def test_nothing_of_the_environment_but_the_key_is_sent(
    judged: Callable[..., Judged], judge_server: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_BASE_URL"):
        monkeypatch.setenv(name, "http://secret.example/v1")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Gateway: secret\nauthorization: Bearer secret")
    judged(ANSWERS[:1])
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
    monkeypatch.setenv("LINGRAFT_JUDGE_KEY", "")  # none, whatever the other variable holds
    judged(ANSWERS[1:2])
    assert len(judge_server.requests) == 4
    assert not re.search("secret|sk-other", repr([dict(one.headers) for one in judge_server.requests]))
    assert all("Authorization" not in one.headers for one in judge_server.requests)


@pytest.mark.parametrize("count", ["1e400", "-5000", "1" + "0" * 400, "NaN"])
def test_a_count_of_tokens_that_cannot_be_is_no_count(
    judged: Callable[..., Judged], judge_server: JudgeServer, count: str
) -> None:
    usage = f'{{"prompt_tokens": {count}, "completion_tokens": 1}}'
    body = f'{{"choices": [{{"message": {{"content": "A"}}}}], "usage": {usage}}}'
    judge_server.behaviour = lambda _: Response(body)
    found = judged(ANSWERS[:1], prices=Prices(1.0, 1.0))
    assert found.usage.uncounted == found.usage.verdicts == 2
    assert found.usage.tokens.read > 0


def test_an_answer_is_kept_without_the_key_and_without_halves_of_characters(
    judged: Callable[..., Judged], judge_server: JudgeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LINGRAFT_JUDGE_KEY", "lj-secret")
    judge_server.behaviour = lambda asked: (
        verdict("you sent lj-secret \ud83d") if "long enough" in asked.question else prefers_longer(asked)
    )
    found = judged(ANSWERS[:2], cache=tmp_path / "kept.jsonl")
    assert found.left_out == ("row 0: the verdict 'you sent *** ?' names neither A nor B",)
    assert "lj-secret" not in (tmp_path / "kept.jsonl").read_text(encoding="utf-8")


def test_requests_go_through_the_proxy_of_the_environment(
    judged: Callable[..., Judged], judge_server: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", judge_server.url.removesuffix("/v1"))
    assert judged(ANSWERS[:1], url="http://judge.invalid/v1").win_rate.value == 1.0
    assert {one.path for one in judge_server.requests} == {"http://judge.invalid/v1/chat/completions"}
    monkeypatch.setenv("HTTP_PROXY", "gopher://proxy.invalid")
    with pytest.raises(EvaluationError, match="through the proxy that the environment names"):
        judged(url="http://judge.invalid/v1")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("api.example.org/v1", "http://"),
        ("ftp://example.org", "'ftp://example.org'"),
        ("http://", "is none"),
        ("http://[::1", "is none"),
        ("http://example.org:99999", "is none"),
        ("http://999.1.1.1/v1", "is none"),
        ("http://xn--a/v1", "is none"),
        ("http://[v1.x]/v1", "is none"),
        ("http://example.org/\x7f", "is none"),
        ("https://me:secret@example.org/v1", "neither a user nor a query"),
        ("https://example.org/v1?key=secret", "neither a user nor a query"),
    ],
)
def test_a_url_that_is_none_or_holds_secrets_is_refused(url: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as error:
        Endpoint(url, "judge")
    assert "secret" not in str(error.value)
