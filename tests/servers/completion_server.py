"""A stand-in for a server of completions: the protocol of vLLM, or OpenAI's alone, over a small model in memory.

What it says is computed here, token by token, by the model alone; `behaviour` may say something else in its place.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch


@dataclass(frozen=True)
class Response:
    """What the server sends back; `body` is sent as it is where it is text, else as JSON."""

    body: Any
    status: int = 200


Behaviour = Callable[[Mapping[str, Any]], Response | None]


class CompletionServer(ThreadingHTTPServer):
    """Serves a model.

    Attributes:
        ids: Whether it takes prompts as token ids, and fields beyond OpenAI's.
        echo: Whether it gives log-probabilities of prompts.
        listed: What it says of its models.
        version: What /version says; None: there is no such page.
        behaviour: Called with each request's body; what it returns is sent, None: what the model says.
        requests: Bodies of all requests.
        keys: `Authorization` of all requests.
    """

    daemon_threads = True

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.model, self.tokenizer = model, tokenizer
        self.ids = self.echo = True
        self.listed: Any = [{"id": "served", "owned_by": "vllm", "max_model_len": 4096}]
        self.version: str | None = "0.33.0"
        self.behaviour: Behaviour = lambda _: None
        self.requests: list[Mapping[str, Any]] = []
        self.keys: list[str | None] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that did not wait for their answer."""

    @torch.inference_mode()
    def complete(self, body: Mapping[str, Any]) -> Response:
        prompt = body["prompt"]
        if isinstance(prompt, list) and not self.ids:
            return Response({"detail": "prompt must be a string."}, 400)
        if not self.ids and set(body) & {"stop_token_ids", "return_token_ids", "add_special_tokens"}:
            return Response({"detail": "Unexpected fields"}, 422)
        if body.get("echo") and not self.echo:
            return Response({"detail": "Unsupported fields: echo, logprobs"}, 422)
        ids = list(prompt) if isinstance(prompt, list) else self.tokenizer.encode(prompt)
        ends = set(body.get("stop_token_ids") or ()) | {self.tokenizer.eos_token_id}
        said: list[int] = []
        while len(said) < body["max_tokens"] and not (said and said[-1] in ends):
            logits = self.model(input_ids=torch.tensor([[*ids, *said]])).logits[0, -1]
            said.append(int(logits.argmax()))
            text = self.tokenizer.decode(said, skip_special_tokens=True)
            stops = [text.index(stop) for stop in body.get("stop") or () if stop in text]
            if stops:
                break
        text = self.tokenizer.decode(said, skip_special_tokens=True)
        stops = [text.index(stop) for stop in body.get("stop") or () if stop in text]
        choice: dict[str, Any] = {
            "index": 0,
            "text": text[: min(stops)] if stops else text,
            "finish_reason": "stop" if stops or said[-1] in ends else "length",
        }
        if body.get("return_token_ids"):
            choice["token_ids"] = said
        if body.get("echo"):
            every = torch.tensor([[*ids, *said]])
            shares = self.model(input_ids=every).logits[0].log_softmax(dim=-1)[:-1]
            own = shares.gather(1, every[0, 1:, None])[:, 0].tolist()
            best = [{"best": value} for value in shares.max(dim=1).values.tolist()]
            choice["logprobs"] = {"token_logprobs": [None, *own], "top_logprobs": [None, *best]}
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(said)}
        return Response({"model": body["model"], "choices": [choice], "usage": usage})


@contextmanager
def serving(model: Any, tokenizer: Any) -> Iterator[CompletionServer]:
    server = CompletionServer(model, tokenizer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: CompletionServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append(body)
            self.server.keys.append(self.headers["Authorization"])
            answer = self.server.behaviour(body) or self.server.complete(body)
        self.send(answer)

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            listed = self.server.listed
            self.send(listed if isinstance(listed, Response) else Response({"data": listed}))
        elif self.path == "/version" and self.server.version is not None:
            self.send(Response({"version": self.server.version}))
        else:
            self.send(Response({"detail": "Not Found"}, 404))

    def send(self, answer: Response) -> None:
        content = (answer.body if isinstance(answer.body, str) else json.dumps(answer.body)).encode()
        self.send_response(answer.status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Print nothing."""
