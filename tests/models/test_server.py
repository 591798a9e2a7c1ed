"""Generation and likelihoods by a server: its answers are the model's own, and whatever else it says is one line."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from completion_server import CompletionServer, Response, serving

from lingraft.config.load import backend_of
from lingraft.config.schema import ServerChoice
from lingraft.data.chat_format import chat_format
from lingraft.data.example import Message
from lingraft.errors import ConfigError, EvaluationError, LingraftError
from lingraft.models.answering import InThisProcess
from lingraft.models.completions import models_at
from lingraft.models.generation import (
    Ending,
    Sampling,
    TokenPrompt,
    TransformersGenerator,
    answer_ending,
    generate,
)
from lingraft.models.loading import load_model, load_tokenizer
from lingraft.models.same_model import check_same_model
from lingraft.models.server import ServerGenerator
from lingraft.models.server_engine import check_server, engine_of, scores_likelihoods
from lingraft.models.started_server import StartedServer

QUESTIONS = ["Say a.", "What is the weekday after Monday, and what comes before it?", "Why?", "Ja?", "Two"]


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return load_tokenizer(tiny_model)


def moved(tiny_model: Path, seed: int) -> Any:
    """Return the tiny model, moved so that answers differ and some of them end."""
    loaded: Any = load_model(tiny_model)
    with torch.no_grad():
        torch.manual_seed(seed)
        for parameter in loaded.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return loaded


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    return moved(tiny_model, 1)


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> list[TokenPrompt]:
    format_ = chat_format(tokenizer)
    return [
        TokenPrompt(tuple(format_.prompt_ids([Message("user", text)])), 2**59 + seed, 4 + 3 * seed)
        for seed, text in enumerate(QUESTIONS)
    ]


@pytest.fixture
def server(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[CompletionServer]:
    """A server of the model; no key is set, no proxy stands between, and waits take no time."""
    for name in ("OPENAI_API_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setattr("lingraft.endpoint._FIRST_WAIT_SECONDS", 0.01)
    with serving(model, tokenizer) as running:
        yield running


@pytest.fixture
def generator(server: CompletionServer, tiny_model: Path, tokenizer: Any) -> Callable[..., ServerGenerator]:
    def make(noted: Callable[[str], None] = lambda _: None, **options: Any) -> ServerGenerator:
        choice = ServerChoice(**{"server": server.url, "attempts": 2, **options})
        return ServerGenerator(choice, tiny_model, tokenizer, noted=noted)

    return make


@pytest.mark.parametrize("reads_ids", [True, False])
@pytest.mark.parametrize("at_once", [1, 4])
def test_greedy_answers_are_those_of_transformers(
    server: CompletionServer,
    generator: Callable[..., ServerGenerator],
    model: Any,
    tokenizer: Any,
    tiny_model: Path,
    prompts: list[TokenPrompt],
    reads_ids: bool,
    at_once: int,
) -> None:
    server.ids = reads_ids
    own = TransformersGenerator(model, tokenizer)
    ending = answer_ending(tiny_model, tokenizer)
    free = own.continue_batch(prompts, Sampling(), ending)
    stop = next(one.text[2:4] for one in free if len(one.text) > 5)
    with generator(at_once=at_once) as engine:
        for asked in (ending, Ending(ending.tokens, (stop,))):
            wanted = own.continue_batch(prompts, Sampling(), asked)
            found = engine.continue_batch(prompts, Sampling(), asked)
            assert [(one.text, one.ended) for one in found] == [(one.text, one.ended) for one in wanted]
            if not asked.texts:
                assert [one.tokens for one in found] == [one.tokens for one in wanted]
        assert {one.ended for one in wanted} == {True, False}
    sent = server.requests[-len(prompts) :]
    assert sorted(one["max_tokens"] for one in sent) == [4, 7, 10, 13, 16]
    assert all(isinstance(one["prompt"], list) == reads_ids for one in sent)
    assert {one["seed"] for one in sent} == {one.seed % 2**31 for one in prompts}
    assert server.keys[-1] is None


def test_sampling_and_the_key_are_sent(
    server: CompletionServer,
    generator: Callable[..., ServerGenerator],
    prompts: list[TokenPrompt],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LINGRAFT_SERVER_KEY", "secret-of-the-server")
    generator().continue_batch(prompts[:1], Sampling(0.7, 0.9), Ending(frozenset({2})))
    last = server.requests[-1]
    assert (last["temperature"], last["top_p"], last["stop_token_ids"]) == (0.7, 0.9, [2])
    assert server.keys[-1] == "Bearer secret-of-the-server"


def test_a_thought_is_no_answer(
    server: CompletionServer,
    generator: Callable[..., ServerGenerator],
    prompts: list[TokenPrompt],
    tokenizer: Any,
) -> None:
    thoughts = tokenizer.convert_tokens_to_ids("x"), tokenizer.convert_tokens_to_ids("z")
    server.ids = False
    server.behaviour = lambda _: Response({"choices": [{"text": "xabzyes", "finish_reason": "stop"}]})
    found = generator().continue_batch(prompts[:1], Sampling(), Ending(frozenset({2}), (), thoughts))
    assert (found[0].text, found[0].ended) == ("yes", True)


def test_likelihoods_are_those_of_the_model(
    server: CompletionServer,
    generator: Callable[..., ServerGenerator],
    model: Any,
    prompts: list[TokenPrompt],
) -> None:
    pairs = [(one.ids, (5, 6, 7)[: 1 + place % 3]) for place, one in enumerate(prompts)]
    with torch.inference_mode():
        best = int(model(input_ids=torch.tensor([prompts[0].ids])).logits[0, -1].argmax())
        pairs.append((prompts[0].ids, (best,)))
        pairs.append(((5,) * 900, (6, 7)))  # longer than is read
        wanted = []
        for context, said in pairs:
            whole = [*context, *said][-600 + 1 :]
            shares = model(input_ids=torch.tensor([whole])).logits[0].log_softmax(dim=-1)[-len(said) - 1 : -1]
            own = shares.gather(1, torch.tensor(said)[:, None])[:, 0]
            wanted.append((float(own.sum()), bool((own >= shares.max(dim=1).values).all())))
    assert scores_likelihoods(generator().choice)
    found = dict(generator().scores(pairs, 600))
    for place, (value, is_greedy) in enumerate(wanted):
        assert found[place][0] == pytest.approx(value, abs=1e-4)
        assert found[place][1] == is_greedy
    assert [one for _, one in wanted].count(True) == 1


def test_a_server_of_another_model_is_found_out(
    generator: Callable[..., ServerGenerator],
    server: CompletionServer,
    tiny_model: Path,
    model: Any,
    tokenizer: Any,
    prompts: list[TokenPrompt],
) -> None:
    asked = [one.ids for one in prompts]
    for reads_ids in (True, False):
        server.ids = reads_ids
        check_same_model(generator(), InThisProcess(model, tokenizer), asked)
        rounded = moved(tiny_model, 1).to(torch.bfloat16)  # the same model in another precision
        check_same_model(generator(), InThisProcess(rounded, tokenizer), asked)
        other = InThisProcess(moved(tiny_model, 2), tokenizer)
        with pytest.raises(EvaluationError, match="serves another model than") as error:
            check_same_model(generator(), other, asked)
        assert server.url in str(error.value)


@pytest.mark.parametrize(
    ("response", "says"),
    [
        (Response({"error": {"message": "bad key"}}, 401), ("answers 401", "LINGRAFT_SERVER_KEY")),
        (Response({"message": "The model `x` does not exist"}, 404), ("answers 404", "'served'")),
        (Response("<html>Sign in</html>"), ("no JSON", "<html>Sign in")),
        (Response('{"choices": [{"text": "al'), ("no JSON",)),
        (Response({"choices": []}), ("choices[0].text",)),
        (Response({"choices": [{"message": {"content": "chat"}}]}), ("choices[0].text",)),
        (Response({"choices": [{"text": "a"}, {"text": "b"}]}), ("one prompt with 2 continuations",)),
        (Response({"detail": "out of memory"}, 500), ("failed 2 times in a row", "500: out of memory")),
        (Response({"detail": "too long"}, 400), ("answers 400", "too long")),
    ],
)
def test_what_a_server_answers_wrongly_is_one_clear_line(
    server: CompletionServer,
    generator: Callable[..., ServerGenerator],
    prompts: list[TokenPrompt],
    response: Response,
    says: tuple[str, ...],
) -> None:
    def later(body: Mapping[str, Any]) -> Response | None:
        return response if body["max_tokens"] > 1 else None

    for behaviour in (lambda _: response, later):
        server.behaviour = behaviour
        with pytest.raises(EvaluationError) as error:
            generator().continue_batch(prompts, Sampling(), Ending(frozenset({2})))
        message = str(error.value)
        assert message.startswith(f"the server at {server.url}/completions ")
        assert "\n" not in message
        for part in says:
            assert part in message


def test_answers_that_came_before_a_failure_are_given_and_what_may_pass_is_tried_again(
    server: CompletionServer, generator: Callable[..., ServerGenerator], prompts: list[TokenPrompt]
) -> None:
    fails = [False, True, True, False, True, True]
    seen = iter(fails)
    server.behaviour = lambda body: (
        Response({"detail": "busy"}, 503) if body["max_tokens"] > 1 and next(seen) else None
    )
    kept = {}
    with pytest.raises(EvaluationError, match="the same command goes on from there"):  # noqa: PT012
        for place, one in generator(at_once=1, attempts=3).continue_each(
            prompts, Sampling(), Ending(frozenset({2}))
        ):
            kept[place] = one
            if len(kept) == 2:
                seen = iter([True] * 9)
    assert list(kept) == [0, 1]  # the second at the third attempt


def test_a_context_that_is_too_short_is_named_before_anything_is_asked(
    server: CompletionServer, generator: Callable[..., ServerGenerator], prompts: list[TokenPrompt]
) -> None:
    server.listed = [{"id": "served", "max_model_len": 30}]
    with pytest.raises(EvaluationError, match=r"reads 30 tokens.*--max-model-len"):
        generator().continue_batch(prompts, Sampling(), Ending(frozenset({2})))
    assert [one["max_tokens"] for one in server.requests] == [1]  # the probe alone


def test_the_model_is_the_one_that_is_listed_named_or_asked_for(
    server: CompletionServer,
    generator: Callable[..., ServerGenerator],
    prompts: list[TokenPrompt],
    tiny_model: Path,
) -> None:
    def name(listed: Any, **options: Any) -> str:
        server.listed = listed
        generator(**options).continue_batch(prompts[:1], Sampling(), Ending(frozenset({2})))
        return str(server.requests[-1]["model"])

    two = [{"id": "a"}, {"id": "b", "root": str(tiny_model)}]
    assert name([{"id": "a"}]) == "a"
    assert name(two) == "b"
    assert name(two, model="c") == "c"
    assert name(two, model="{model}") == str(tiny_model)
    assert name(Response("none", 404)) == str(tiny_model)
    with pytest.raises(EvaluationError, match=r"lists 2 models.*add `model`, one of a, x"):
        name([{"id": "a"}, {"id": "x"}])
    with pytest.raises(EvaluationError, match="which is no list"):
        name("none")


def test_engine_and_version_are_said_by_the_server_or_given(server: CompletionServer) -> None:
    def engine(**options: Any) -> str:
        engine_of.cache_clear()
        scores_likelihoods.cache_clear()
        return engine_of(ServerChoice(server=server.url, **options))

    assert engine() == "vllm 0.33.0; likelihoods too"
    assert engine(likelihoods="transformers") == "vllm 0.33.0"
    assert engine(version="sglang 0.5") == "sglang 0.5; likelihoods too"
    server.echo = False
    assert engine() == "vllm 0.33.0"
    with pytest.raises(ConfigError, match=r"does not offer the log-probabilities.*likelihoods: transformers"):
        engine(likelihoods="server")
    server.version = None
    with pytest.raises(ConfigError, match="does not say which engine it is: add"):
        engine()
    server.listed = Response("<html>", 200)
    with pytest.raises(EvaluationError, match="no JSON"):
        engine()
    with pytest.raises(EvaluationError, match="cannot be reached"):
        engine_of(ServerChoice(server="http://127.0.0.1:9/v1"))


def test_a_commands_version_is_that_of_its_package_or_program(tmp_path: Path) -> None:
    python = sys.executable
    assert engine_of(ServerChoice(command=f"{python} -m torch.serve {{model}} {{port}}")) == (
        f"torch {torch.__version__}; {python} -m torch.serve {{model}} {{port}}"
    )
    program = tmp_path / "engine"
    program.write_text("#!/bin/sh\necho engine v1.2.3-rc1 of today\n")
    program.chmod(0o755)
    assert engine_of(ServerChoice(command=f"{program} {{model}} {{port}}")).startswith("engine 1.2.3-rc1; ")
    program.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(ConfigError, match="says a version; add `version`"):
        engine_of(ServerChoice(command=f"{program}  {{model}} {{port}}"))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("vllm", "command: 'vllm serve {model} --port {port}'"),
        ("tgi", "choose transformers, generate, {server: URL}"),
        ({"server": "localhost:8000"}, "begins with http://"),
        ({"server": "http://user:word@host/v1"}, "LINGRAFT_SERVER_KEY"),
        ({"command": "vllm serve --port {port}"}, "must hold {model}"),
        ({"command": "vllm serve '{model} {port}"}, "cannot be split into words"),
        ({"command": "no-such-program {model} {port}"}, "no program 'no-such-program'"),
        ({"server": "http://a/v1", "command": "a {model} {port}"}, "give backend.server"),
        ({}, "give backend.server"),
        ({"sever": "http://a/v1"}, "backend.sever is not a field. Did you mean 'server'"),
        ({"server": "http://a/v1", "at_once": 0}, "backend.at_once is 0"),
    ],
)
def test_a_wrong_choice_is_refused_before_anything_is_asked(given: Any, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_server(backend_of(given, "backend"))  # type: ignore[arg-type]
    assert says in str(error.value)


def test_a_server_that_runs_serves_one_model() -> None:
    with pytest.raises(ConfigError, match=r"serves one model.*let one be started for each"):
        check_server(ServerChoice(server="http://a/v1"), of_many=True)
    check_server(ServerChoice(server="http://a/v1", model="{model}"), of_many=True)
    check_server(ServerChoice(server="http://a/v1"))


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("echo starting; echo unknown flag --port >&2; exit 3", ("ended with code 3", "unknown flag --port")),
        ("sleep 60 & echo $! > $1/child; sleep 60", ("did not answer within 1 s",)),
    ],
)
def test_a_server_that_does_not_start_is_ended_with_all_that_it_started(
    script: str, says: tuple[str, ...], tmp_path: Path, tokenizer: Any, prompts: list[TokenPrompt]
) -> None:
    choice = ServerChoice(command=f"sh -c '{script}' sh {{model}} {{port}}", start_timeout=1)
    with (
        pytest.raises(LingraftError) as error,
        ServerGenerator(choice, tmp_path, tokenizer) as engine,
    ):
        engine.continue_batch(prompts, Sampling(), Ending(frozenset({2})))
    for part in says:
        assert part in str(error.value)
    if (tmp_path / "child").exists():
        assert_ends(int((tmp_path / "child").read_text()))


def assert_ends(child: int) -> None:
    for _ in range(100):
        stat = Path(f"/proc/{child}/stat")
        if not stat.exists() or " Z " in stat.read_text():
            return
        time.sleep(0.05)
    os.kill(child, 9)
    pytest.fail("what the server started still runs")


LOADING = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    asked = 0
    def do_GET(self):
        Handler.asked += 1
        self.send_response(503 if Handler.asked < 3 else 200)
        self.end_headers()
        self.wfile.write(b'{"data": [{"id": "loaded"}]}')
http.server.HTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
"""


def test_a_server_that_is_still_loading_is_waited_for_and_its_port_is_free_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # no way to this machine
    monkeypatch.setattr("lingraft.models.started_server._STEP_SECONDS", 0.05)
    (tmp_path / "server.py").write_text(LOADING)
    choice = ServerChoice(
        command=f"{sys.executable} {tmp_path}/server.py {{model}} {{port}}", start_timeout=30, timeout=5
    )
    started = StartedServer(choice, tmp_path)
    try:
        started.wait_until_ready()
        assert [one.id for one in models_at(choice, started.url)] == ["loaded"]
    finally:
        started.stop()
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", int(started.url.split(":")[2].split("/")[0])))


def test_a_server_ends_when_the_process_that_started_it_is_killed(tmp_path: Path) -> None:
    launcher = """
import sys, time
from pathlib import Path
from lingraft.config.schema import ServerChoice
from lingraft.models.started_server import StartedServer
line = "sh -c 'sleep 120 & echo $! > $1/child; wait' sh {model} {port}"
started = StartedServer(ServerChoice(command=line), Path(sys.argv[1]))
print("started", flush=True)
time.sleep(120)
"""
    process = subprocess.Popen([sys.executable, "-c", launcher, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"started\n"
        child = tmp_path / "child"
        while process.poll() is None and (not child.exists() or not child.read_text()):
            time.sleep(0.02)
        time.sleep(1)  # the one that watches has begun
        process.kill()
        process.wait()
    assert_ends(int(child.read_text()))


def test_a_server_that_cuts_prompts_is_refused(
    server: CompletionServer, generator: Callable[..., ServerGenerator], prompts: list[TokenPrompt]
) -> None:
    def cut(body: Mapping[str, Any]) -> Response | None:
        if body["max_tokens"] == 1:  # the probe
            return None
        usage = {"prompt_tokens": 20, "completion_tokens": 1}
        return Response({"choices": [{"text": "a", "finish_reason": "stop"}], "usage": usage})

    server.behaviour = cut
    for reads_ids in (True, False):
        server.ids = reads_ids
        with pytest.raises(EvaluationError, match=r"read 20 of the \d+ tokens of a prompt.*longer context"):
            generator().continue_batch(prompts[1:2], Sampling(), Ending(frozenset({2})))
    server.listed = [{"id": "served", "max_model_len": 30}]
    with pytest.raises(EvaluationError, match="reads 30 tokens, and the longest prompt"):
        list(generator().scores([(prompts[1].ids, (5, 6))], 600))


def test_tokens_that_the_model_does_not_know_are_those_of_another(
    server: CompletionServer,
    generator: Callable[..., ServerGenerator],
    model: Any,
    tokenizer: Any,
    prompts: list[TokenPrompt],
) -> None:
    for tokens in ([10**6], []):
        choice = {"text": "", "token_ids": tokens, "finish_reason": "stop"}
        server.behaviour = lambda _, choice=choice: Response({"choices": [choice]})  # type: ignore[misc]
        with pytest.raises(EvaluationError, match="serves another model than"):
            check_same_model(generator(), InThisProcess(model, tokenizer), [one.ids for one in prompts])


def test_who_stops_does_not_wait_for_replies(
    server: CompletionServer, generator: Callable[..., ServerGenerator], prompts: list[TokenPrompt]
) -> None:
    goes_on = threading.Event()
    first = threading.Event()

    def slow(body: Mapping[str, Any]) -> Response | None:
        if body["max_tokens"] > 1:  # no probe
            if first.is_set():
                goes_on.wait(30)
            first.set()
        return None

    server.behaviour = slow
    started = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012
            for _ in generator(at_once=4).continue_each(prompts, Sampling(), Ending(frozenset({2}))):
                raise KeyboardInterrupt
        assert time.monotonic() - started < 10
    finally:
        goes_on.set()


def test_generate_in_batches_takes_a_server_too(
    generator: Callable[..., ServerGenerator], prompts: list[TokenPrompt]
) -> None:
    engine = generator()
    found: dict[int, Any] = {}
    for batch in generate(engine, prompts, Sampling(), Ending(frozenset({2}))):
        found |= batch
    assert found == dict(engine.continue_each(prompts, Sampling(), Ending(frozenset({2}))))
