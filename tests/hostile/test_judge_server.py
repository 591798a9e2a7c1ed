"""Whatever a judge's server sends: one line, bounded time and memory, budget and verdicts kept, no key on disk."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from judge_server import (
    ANSWERS,
    JudgeServer,
    Request,
    Response,
    failure,
    outputs,
    prefers_longer,
    running_server,
    verdict,
)
from judge_server import settings as judge_settings

from lingraft.endpoint import retry_after
from lingraft.errors import LingraftError
from lingraft.judge.budget import BudgetReachedError, Prices
from lingraft.judge.win_rate import Judged, judge_answers
from lingraft.records import to_json

KEY = "lj-0123456789abcdef"


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("LINGRAFT_JUDGE_KEY", KEY)


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with running_server() as running:
        yield running


@pytest.fixture
def judged(server: JudgeServer, tmp_path: Path) -> Callable[..., Judged]:
    def run(number: int = 1, **changes: Any) -> Judged:
        changes = {"at_once": 1, "attempts": 2} | changes
        reference = outputs(*["middle"] * len(ANSWERS))
        return judge_answers(
            ANSWERS[:number],
            reference,
            judge_settings(server, **changes),
            cache=tmp_path / "verdicts.jsonl",
            sleep=lambda _: None,
        )

    return run


@contextmanager
def raw_server(make: Callable[[], Callable[[socket.socket], None]]) -> Iterator[str]:
    """A server that reads a request's head and then calls what `make` returns for this connection, again and again."""
    listening = socket.create_server(("127.0.0.1", 0))
    listening.settimeout(0.05)
    ends = threading.Event()

    def serve(connection: socket.socket) -> None:
        with connection:
            connection.recv(65536)
            send = make()
            while not ends.is_set():
                try:
                    send(connection)
                except OSError:
                    return

    def accept() -> None:
        while not ends.is_set():
            try:
                connection, _ = listening.accept()
            except TimeoutError:
                continue
            connection.settimeout(5)
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    finally:
        ends.set()
        thread.join()
        listening.close()


def drips_its_head(connection: socket.socket) -> None:
    connection.sendall(b"H")
    time.sleep(0.05)


class DripsItsBody:
    def __init__(self) -> None:
        self.begun = False

    def __call__(self, connection: socket.socket) -> None:
        connection.sendall(b" " if self.begun else b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n")
        self.begun = True
        time.sleep(0.05)


def informs_for_ever(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n")
    time.sleep(0.05)


@pytest.mark.parametrize("make", [lambda: drips_its_head, DripsItsBody, lambda: informs_for_ever])
def test_a_reply_that_drips_is_lost_after_the_timeout(
    judged: Callable[..., Judged], monkeypatch: pytest.MonkeyPatch, make: Any
) -> None:
    monkeypatch.setattr("lingraft.endpoint.CONNECT_SECONDS", 0.2)
    started = time.monotonic()
    with raw_server(make) as url, pytest.raises(LingraftError, match=r"no answer within 0\.4 s") as error:
        judged(url=url, timeout_seconds=0.4, attempts=2)
    assert time.monotonic() - started < 30
    assert "failed 2 times in a row" in str(error.value)


class Endless:
    def __init__(self, head: bytes) -> None:
        self.head, self.sent = head, 0

    def __call__(self, connection: socket.socket) -> None:
        piece = self.head or b" " * 2**20
        self.head = b""
        connection.sendall(piece)
        self.sent += len(piece)


def test_an_endless_body_is_not_read(judged: Callable[..., Judged]) -> None:
    endless = Endless(b"HTTP/1.1 200 OK\r\nContent-Length: 5000000000\r\n\r\n")
    tracemalloc.start()
    try:
        with (
            raw_server(lambda: endless) as url,
            pytest.raises(LingraftError, match="more than 1 MB, which is no verdict"),
        ):
            judged(url=url)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 40 * 2**20
    assert endless.sent < 64 * 2**20


def test_an_endless_body_of_an_error_is_not_read(judged: Callable[..., Judged]) -> None:
    endless = Endless(b"HTTP/1.1 400 Bad\r\nContent-Length: 5000000000\r\n\r\n")
    with raw_server(lambda: endless) as url, pytest.raises(LingraftError, match="more than 1 MB"):
        judged(url=url)
    assert endless.sent < 64 * 2**20


def test_a_packed_reply_is_not_unpacked(judged: Callable[..., Judged]) -> None:
    bomb = gzip.compress(b" " * 2**26)
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(bomb)}\r\n\r\n".encode()
    with (
        raw_server(lambda: Endless(head + bomb)) as url,
        pytest.raises(LingraftError, match=r"packs its reply \(gzip\)"),
    ):
        judged(url=url)


DEEP = "[" * 100_000
BODIES = {
    "deep": DEEP,
    "deep in a field": '{"choices": [{"message": {"content": "A"}}], "x": ' + DEEP,
    "a number of 5,000 digits": '{"choices": ' + "9" * 5000 + "}",
    "digits in a field": '{"choices": [{"message": {"content": "A"}}], "created": ' + "9" * 5000 + "}",
    "infinity": "Infinity",
    "not a number": '{"choices": NaN}',
    "null": "null",
    "a list": "[]",
    "a text": '"A"',
    "a stream": 'data: {"choices": []}\n\ndata: [DONE]\n\n',
    "half a character": '{"choices": "\\ud800"}',
    "nothing": "",
    "a page": "<html>\x1b[2J</html>",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_reply_that_is_none_is_one_line(
    judged: Callable[..., Judged], server: JudgeServer, body: str
) -> None:
    server.behaviour = lambda _: Response(body)
    with pytest.raises(LingraftError) as error:
        judged()
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 1000
    assert "\x1b" not in str(error.value)


@pytest.mark.parametrize(
    "value", ["inf", "-inf", "nan", "1e400", "Fri, 31 Dec 99999 23:59:59 GMT", "\udcff", "", "soon"]
)
def test_a_wait_that_cannot_be_is_bounded(value: str) -> None:
    seconds = retry_after(value)
    assert seconds is None or seconds >= 0


@pytest.mark.parametrize("wait", ["inf", "1e400"])
def test_a_server_that_wants_for_ever_is_not_waited_for(
    judged: Callable[..., Judged], server: JudgeServer, wait: str
) -> None:
    server.behaviour = lambda _: failure(429, Retry_After=wait)
    with pytest.raises(LingraftError, match="wants us to wait inf s"):
        judged()


ECHOES = {
    "whole": KEY,
    "upper case": KEY.upper(),
    "its beginning": KEY[:12] + "...",
    "its end": "..." + KEY[-9:],
    "between words": f"Bearer {KEY}, {KEY}",
}


@pytest.mark.parametrize("echo", ECHOES.values(), ids=ECHOES)
@pytest.mark.parametrize("place", ["content", "model", "error", "location"])
def test_an_echo_of_the_key_reaches_neither_disk_nor_message(
    judged: Callable[..., Judged], server: JudgeServer, tmp_path: Path, echo: str, place: str
) -> None:
    answers = {
        "content": verdict(echo),
        "model": verdict("A", model=echo),
        "error": failure(401, echo),
        "location": failure(307, "", Location=f"http://other/{echo}"),
    }
    server.behaviour = lambda _: answers[place]
    try:
        shown = json.dumps(to_json(judged()))
    except LingraftError as error:
        shown = str(error)
    kept = tmp_path / "verdicts.jsonl"
    everything = (shown + (kept.read_text(encoding="utf-8") if kept.exists() else "")).lower()
    for start in range(len(KEY) - 7):
        assert KEY[start : start + 8] not in everything
    assert "***" in everything


def test_half_a_character_anywhere_loses_no_verdict(
    judged: Callable[..., Judged], server: JudgeServer
) -> None:
    server.behaviour = lambda asked: (
        verdict("\udc80 A \ud800", model="m\ud800") if "short" in asked.question else prefers_longer(asked)
    )
    found = judged(4)
    assert found.win_rate.n == 3
    before = len(server.requests)
    assert judged(4).win_rate == found.win_rate
    assert len(server.requests) == before + 2  # of the item whose verdicts named nothing


def billed(read: object, written: object) -> Response:
    counts = {"usage": {"prompt_tokens": read, "completion_tokens": written}}
    return Response(verdict("A").body | counts)


COUNTS = [-5, -1, 10**12, "5", None, [1], {"a": 1}, True, 1.5, "∞"]


@pytest.mark.parametrize("count", COUNTS, ids=repr)
@pytest.mark.parametrize("name", ["prompt_tokens", "completion_tokens"])
def test_a_count_that_cannot_be_lets_no_question_through_the_budget(
    judged: Callable[..., Judged], server: JudgeServer, name: str, count: object
) -> None:
    server.behaviour = lambda _: billed(count, 1) if name == "prompt_tokens" else billed(1, count)
    most = 1200.0  # more than one question can use, in tokens, and less than two
    with pytest.raises(BudgetReachedError):
        judged(4, prices=Prices(1e6, 1e6), budget=most)
    assert len(server.requests) == 1


def test_a_bill_above_the_most_is_told_and_later_requests_reserve_as_much(
    judged: Callable[..., Judged], server: JudgeServer
) -> None:
    server.behaviour = lambda _: billed(100, 800)
    found = judged(4, prices=Prices(0.0, 1e6))
    assert found.usage.excess == 100
    assert found.usage.tokens.written == 8 * 800


def test_a_bill_above_the_most_breaks_a_budget_once(
    judged: Callable[..., Judged], server: JudgeServer
) -> None:
    server.behaviour = lambda _: billed(100, 800)
    for _ in range(3):  # an earlier run's bills are remembered
        with pytest.raises(
            BudgetReachedError, match=r"800\.0000 are spent\. 1 of 8 verdicts are there and kept"
        ):
            judged(4, prices=Prices(0.0, 1e6), budget=900)
    assert len(server.requests) == 1


def test_what_requests_were_lost_stays_in_the_budget_of_the_next_run(
    judged: Callable[..., Judged], server: JudgeServer, tmp_path: Path
) -> None:
    def hangs_up(asked: Request) -> Response:
        raise ConnectionAbortedError

    assert judged(1).usage.verdicts == 2
    server.behaviour = hangs_up
    with pytest.raises(LingraftError, match="failed 2 times"):
        judged(2, prices=Prices(0.0, 1e6))
    server.behaviour = prefers_longer
    found = judged(2, prices=Prices(0.0, 1e6))
    assert found.usage.tokens.written == 4 * 1 + 2 * 8
    assert found.usage.verdicts == 4


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec=None, categories=None), max_size=20)
    | st.sampled_from(["A", "B", "assistant", KEY, "\x1b[2J"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "choices",
                    "message",
                    "content",
                    "logprobs",
                    "top_logprobs",
                    "token",
                    "logprob",
                    "usage",
                    "prompt_tokens",
                    "completion_tokens",
                    "model",
                    "error",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)
COMPLETION = st.fixed_dictionaries(
    {
        "choices": st.lists(
            st.fixed_dictionaries({"message": st.fixed_dictionaries({"content": JSON})}) | JSON, max_size=2
        )
    },
    optional={"usage": JSON, "model": JSON, "error": JSON, "logprobs": JSON},
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=JSON | COMPLETION, status=st.sampled_from([200, 200, 200, 201, 204, 400, 404, 418, 422]))
def test_any_reply_is_a_verdict_or_one_line(
    judged: Callable[..., Judged], server: JudgeServer, tmp_path: Path, body: object, status: int
) -> None:
    (tmp_path / "verdicts.jsonl").unlink(missing_ok=True)
    server.behaviour = lambda _: Response(json.dumps(body), status)
    try:
        shown = json.dumps(to_json(judged(attempts=1)))
    except LingraftError as error:
        shown = str(error)
        assert len(shown.splitlines()) == 1
    kept = tmp_path / "verdicts.jsonl"
    assert KEY not in shown + (kept.read_text(encoding="utf-8") if kept.exists() else "")
    assert "\x1b" not in shown
