"""A real HTTP server on this machine that behaves as a judge's API does, or as badly as a test wants."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from lingraft.judge.client import Endpoint
from lingraft.judge.runner import RequestOptions
from lingraft.judge.win_rate import Judge, Output

OUTPUT = r"<output {letter} (?P<mark>\w+)>\n(?P<text>.*?)\n</output {letter} (?P=mark)>"


@dataclass(frozen=True)
class Request:
    """One request as the server saw it."""

    path: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]

    @property
    def question(self) -> str:
        return str(self.body["messages"][1]["content"])

    def output(self, letter: str) -> str:
        found = re.search(OUTPUT.format(letter=letter), self.question, re.DOTALL)
        assert found is not None
        return found["text"]


@dataclass(frozen=True)
class Response:
    """What the server sends back; `body` is sent as it is where it is text, else as JSON."""

    body: Any
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


Behaviour = Callable[[Request], Response]


def verdict(
    letter: str | None, *, logprobs: Mapping[str, float] | None = None, usage: bool = True, **more: Any
) -> Response:
    """Return a completion of one letter, with the log probabilities of the tokens in its place."""
    choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": letter}}
    if logprobs is not None:
        top = [{"token": token, "logprob": value} for token, value in logprobs.items()]
        choice["logprobs"] = {"content": [{"token": letter, "logprob": -0.1, "top_logprobs": top}]}
    counted = {"usage": {"prompt_tokens": 100, "completion_tokens": 1}} if usage else {}
    return Response({"model": "judge-2026", "choices": [choice], **counted, **more})


def prefers_longer(asked: Request) -> Response:
    return verdict("A" if len(asked.output("A")) > len(asked.output("B")) else "B")


def prefers_first(asked: Request) -> Response:
    return verdict("A")


class JudgeServer(ThreadingHTTPServer):
    """The server; `behaviour` may be replaced while it runs."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behaviour: Behaviour = prefers_longer
        self.requests: list[Request] = []
        self.lock = threading.Lock()
        self.models: Response | None = (
            None  # what it answers to who asks which models it has; None: no such page
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def questions(self) -> list[str]:
        return [one.question for one in self.requests]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that did not wait for their answer."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: JudgeServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked = Request(self.path, dict(self.headers), body)
        with self.server.lock:
            self.server.requests.append(asked)
        answer = self.server.behaviour(asked)
        content = answer.body if isinstance(answer.body, str) else json.dumps(answer.body)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content.encode())))
        self.end_headers()
        self.wfile.write(content.encode())

    def do_GET(self) -> None:
        answer = self.server.models or Response("", 404)
        content = answer.body if isinstance(answer.body, str) else json.dumps(answer.body)
        self.send_response(answer.status)
        self.send_header("Content-Length", str(len(content.encode())))
        self.end_headers()
        self.wfile.write(content.encode())

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Write no log."""


@contextmanager
def running_server() -> Iterator[JudgeServer]:
    server = JudgeServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def outputs(*texts: str) -> list[Output]:
    return [Output(f"row {number}", f"Say {number}.", text) for number, text in enumerate(texts)]


REFERENCE = outputs("middle", "middle", "middle", "middle")
ANSWERS = outputs("long enough", "short", "longest of all", "s")


def settings(server: JudgeServer, **changes: Any) -> Judge:
    """Return a judge at the test's server; changes are of the judge, or of how it is reached."""
    endpoint: dict[str, Any] = {
        name: changes.pop(name) for name in ("url", "timeout_seconds", "attempts") if name in changes
    }
    options: dict[str, Any] = {
        name: changes.pop(name) for name in ("max_tokens", "logprobs", "at_once") if name in changes
    }
    return Judge(
        Endpoint(**({"url": server.url, "model": "judge"} | endpoint)),
        options=RequestOptions(**options),
        **changes,
    )


def first_then(*answers: Response) -> Behaviour:
    """Return a behaviour that gives these answers first, and then prefers the longer output."""
    left = list(answers)
    return lambda asked: left.pop(0) if left else prefers_longer(asked)


def failure(status: int, message: str = "no", **headers: str) -> Response:
    return Response(
        {"error": {"message": message}},
        status,
        {name.replace("_", "-"): value for name, value in headers.items()},
    )


def names_nothing_at_first(text: str, times: int) -> Behaviour:
    """Return a behaviour that so often answers a question with this text with no letter."""
    left = [verdict("?")] * times
    return lambda asked: left.pop() if left and text in asked.question else prefers_longer(asked)


def write_rows_to(path: Path, rows: list[Output]) -> Path:
    lines = (json.dumps({"instruction": one.instruction, "output": one.output}) for one in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path
