"""Generation and likelihoods by a server that speaks OpenAI's completions, such as vLLM's or SGLang's.

The server is the user's (`server`), or is started for each model and ended after it (`command`). Each prompt is a
request of its own, with its own seed and limit, so the server batches as it likes and an answer that came is kept.
Prompts are sent as token ids where the server takes them, else as text with its special tokens; what a server takes is
found out once, before the first prompt. Nothing heavy is imported before there is something to ask.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from lingraft import endpoint as service_endpoint
from lingraft.config.schema import ServerChoice
from lingraft.endpoint import Connection, Retry, Service, UnreachableError, key_of
from lingraft.errors import ConfigError, EvaluationError, in_one_line

if TYPE_CHECKING:
    from types import TracebackType

    from openai import APIStatusError
    from transformers import PreTrainedTokenizerBase

    from lingraft.models.answering import Answering, Held
    from lingraft.models.generation import Ending, Generated, Sampling, TokenPrompt

SERVER = Service(
    "server", "/completions", "http://localhost:8000/v1", ("LINGRAFT_SERVER_KEY", "OPENAI_API_KEY")
)
_MOST_BODY_BYTES = 2**28
_PROBE = "The capital of France is"
_SEEDS = 2**31  # servers keep seeds in 32 bits, or in a double
_VERSION_SECONDS = 120.0  # `vllm --version` imports torch
_END_SECONDS = 20.0
_STEP_SECONDS = 0.5
_GREEDY_NATS = 1e-5  # by which another token may be likelier than a greedy one, in a reply's decimals
_NOT_TAKEN = (400, 404, 415, 422, 501)
_OTHER_FORM = (AttributeError, LookupError, TypeError, ValueError, RecursionError)
# Where engines say their version, and what they are called unless their list of models says it.
_VERSIONS = (
    ("/version", "version", "vllm"),
    ("/server_info", "version", "sglang"),
    ("/get_server_info", "version", "sglang"),
    ("/props", "build_info", "llama.cpp"),
    ("/info", "version", "tgi"),
)

# A server that has the model agrees on nearly all tokens, also where it computes in few bits.
_CHECKED_PROMPTS, _CHECKED_TOKENS = 8, 16
_FEWEST_TOKENS, _FEWEST_CHARACTERS = 0.9, 0.7
_NEAR_BEST = 0.25  # standard deviations of the logits: rounding may choose another token among those

Answer = TypeVar("Answer")
Asked = TypeVar("Asked")


class ServerEndpoint(service_endpoint.Endpoint):
    """A server's endpoint."""

    __slots__ = ()
    service: ClassVar[Service] = SERVER


@dataclass(frozen=True, slots=True)
class Listed:
    """A model that a server lists.

    Attributes:
        id: Its name in requests.
        root: Where the server has it from; "": it does not say.
        owner: Who is said to own it; vLLM and SGLang name themselves.
        longest: Tokens of prompt and answer together; None: it does not say.
    """

    id: str
    root: str
    owner: str
    longest: int | None


@dataclass(frozen=True, slots=True)
class _Takes:
    """What a server takes.

    Attributes:
        ids: Prompts as token ids; else text.
        extras: Fields beyond OpenAI's: end tokens, and to answer in ids.
        added: Tokens that it puts before a text.
    """

    ids: bool
    extras: bool
    added: int = 0


@dataclass(frozen=True, slots=True)
class _Session:
    """A server that is ready: its endpoint, what it takes, and the longest that it reads (None: unknown)."""

    endpoint: ServerEndpoint
    takes: _Takes
    longest: int | None


def check_server(choice: ServerChoice, *, of_many: bool = False) -> None:
    """Refuse a server that cannot be one, before anything is read; none is asked.

    Args:
        choice: The server.
        of_many: Whether it is to serve several models, one after the other.

    Raises:
        ConfigError: Its URL or key is none, its program is not installed, or it serves one model alone.
    """
    key_of(SERVER)
    if choice.server is not None:
        ServerEndpoint(choice.server, choice.model or "", choice.timeout, choice.attempts)
        if of_many and "{model}" not in (choice.model or ""):
            raise ConfigError(
                f"the server at {choice.server} serves one model, and several are evaluated; let one be started for "
                "each: {command: 'vllm serve {model} --port {port}'}. For one that loads whatever folder it is asked "
                "for: add `model: '{model}'`."
            )
    else:
        program = _words(choice)[0]
        if shutil.which(program) is None:
            raise ConfigError(
                f"command {choice.command!r}: there is no program {program!r} here; install it, or write its path."
            )


@lru_cache
def engine_of(choice: ServerChoice) -> str:
    """Return engine, version and what else of a server decides answers, as records and fingerprints have it.

    The version is what `version` says; else a server is asked for it, and the program of a command with `--version`.

    Raises:
        ConfigError: It cannot be found out.
        EvaluationError: The server cannot be reached, does not take the key, or is none.
    """
    if choice.version is not None:
        name = choice.version
    elif choice.server is not None:
        name = _asked_version(choice, choice.server)
    else:
        name = _version_of_program(choice)
    parts = [name, *([choice.command] if choice.command else [])]
    return "; ".join([*parts, *(["likelihoods too"] if scores_likelihoods(choice) else [])])


@lru_cache
def scores_likelihoods(choice: ServerChoice) -> bool:
    """Return whether a server scores likelihood tasks: as `likelihoods` says, with `auto` where it offers that.

    A server that is yet to be started (`command`) is not known to offer it.

    Raises:
        ConfigError: `likelihoods: server`, and the server does not offer it.
        EvaluationError: See `engine_of`.
    """
    if choice.likelihoods == "transformers" or (choice.server is None and choice.likelihoods == "auto"):
        return False
    if choice.server is None:
        return True  # found out when it has started
    name = choice.model
    if name is None:
        listed = models_at(choice, choice.server)
        name = listed[0].id if len(listed) == 1 else None
    reason = "its model is only known when it is asked"
    if name is not None and "{model}" not in name:
        endpoint = ServerEndpoint(choice.server, name, choice.timeout, choice.attempts)
        reason = _why_no_likelihoods(endpoint)
    if reason and choice.likelihoods == "server":
        raise ConfigError(
            f"{endpoint_of(choice, choice.server).place} does not offer the log-probabilities of prompts in "
            f"token ids (`echo` with `logprobs`): {reason}; write `likelihoods: transformers`."
        )
    return not reason


def endpoint_of(choice: ServerChoice, url: str) -> ServerEndpoint:
    """Return the endpoint of a server whose model is not known yet."""
    return ServerEndpoint(url, choice.model or "", choice.timeout, choice.attempts)


def _words(choice: ServerChoice) -> list[str]:
    return shlex.split(choice.command or "")


def _connection(endpoint: ServerEndpoint) -> Connection:
    return Connection(endpoint, key_of(SERVER), most_bytes=_MOST_BODY_BYTES, too_much="answer")


def models_at(choice: ServerChoice, url: str) -> list[Listed]:
    """Return the models that a server lists; none, where it has no list.

    Raises:
        EvaluationError: It cannot be reached, does not take the key, or answers with what is no list of models.
    """
    import openai

    connection = _connection(endpoint_of(choice, url))
    try:
        response = connection.exchange(
            lambda: connection.client.models.with_raw_response.list(extra_headers=connection.headers)
        )
        if isinstance(response, Retry):
            raise EvaluationError(f"{connection.place} does not list its models: {response.reason}.")
        body = response.text
    except openai.APIStatusError as error:
        if error.status_code < 500 and error.status_code not in (404, 405, 501):
            raise connection.refusal(error) from None
        return []
    finally:
        connection.close()
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        raise connection.no_json(body) from None
    try:
        return [
            Listed(
                str(one["id"]),
                str(one.get("root") or ""),
                str(one.get("owned_by") or ""),
                one.get("max_model_len") if isinstance(one.get("max_model_len"), int) else None,
            )
            for one in data["data"]
        ]
    except _OTHER_FORM:
        raise EvaluationError(
            f"{connection.place} lists its models as {connection.clean(body)!r}, which is no list."
        ) from None


def _asked_version(choice: ServerChoice, url: str) -> str:
    import httpx
    import openai

    listed = models_at(choice, url)
    owner = listed[0].owner.casefold() if listed else ""
    root = re.sub(r"/v\d+/*$", "", url.rstrip("/"))
    connection = _connection(endpoint_of(choice, url))
    try:
        for path, field, engine in _VERSIONS:
            with suppress(openai.APIError, *_OTHER_FORM):
                found = connection.exchange(
                    lambda path=path: connection.client.get(  # type: ignore[misc]
                        root + path, cast_to=httpx.Response, options={"headers": connection.headers}
                    )
                )
                if isinstance(found, httpx.Response):
                    version = json.loads(found.text)[field]
                    if isinstance(version, str) and version:
                        return (
                            f"{owner if owner in ('vllm', 'sglang') else engine} {connection.clean(version)}"
                        )
    finally:
        connection.close()
    raise ConfigError(
        f"{connection.place} does not say which engine it is: add its name and version, such as `version: vllm 0.33.0` "
        "(--backend version='vllm 0.33.0'); records and fingerprints have it."
    )


def _version_of_program(choice: ServerChoice) -> str:
    """Return what a command's program is, and its version: that of its Python package, else what `--version` says."""
    check_server(choice)
    program, *others = _words(choice)
    name, python = Path(program).name, None
    if name.startswith("python") and others[:1] == ["-m"] and len(others) > 1:
        name, python = others[1].partition(".")[0], program
    else:
        with suppress(OSError), Path(shutil.which(program) or program).open("rb") as file:
            first = file.readline(4096)  # of a package's script: the Python that has the package
            python = first[2:].decode(errors="replace").strip() if b"python" in first[:4096] else None
    code = "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))"
    ways = [[*shlex.split(python), "-c", code, name]] if python else []
    for asked in (*ways, [program, "--version"]):
        with suppress(OSError, subprocess.TimeoutExpired):
            found = subprocess.run(  # the user's own command
                asked, capture_output=True, text=True, timeout=_VERSION_SECONDS, check=False
            )
            version = re.search(r"\d+(?:\.\d+)+[\w.+-]*", found.stdout if found.returncode == 0 else "")
            if version is not None:
                return f"{name} {version[0]}"
    raise ConfigError(
        f"command {choice.command!r}: neither a package {name!r} nor `{program} --version` says a version; add "
        f"`version`, such as `version: {name} 1.0` (--backend version='{name} 1.0')."
    )


def _why_no_likelihoods(endpoint: ServerEndpoint) -> str:
    """Return why a server cannot score prompts; "": it can."""
    import openai

    connection = _connection(endpoint)
    prompt = [5, 6, 7]  # any vocabulary has them
    try:
        reply = connection.until_answered(
            lambda: connection.exchange(lambda: _completion(connection, endpoint, prompt, **_SCORING))
        )
        _log_probabilities(reply.text, len(prompt), connection)
    except openai.APIStatusError as error:
        if error.status_code not in _NOT_TAKEN and error.status_code < 500:
            raise connection.refusal(error) from None
        return f"{error.status_code}: {connection.reason_of(error)}"
    except EvaluationError as error:
        return in_one_line(error)
    finally:
        connection.close()
    return ""


_SCORING: dict[str, Any] = {"max_tokens": 1, "temperature": 0.0, "echo": True, "logprobs": 1}


def _completion(connection: Connection, endpoint: ServerEndpoint, prompt: Any, **options: Any) -> Any:
    return connection.client.completions.with_raw_response.create(
        model=endpoint.model, prompt=prompt, extra_headers=connection.headers, **options
    )


def _only_choice(body: str, connection: Connection) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the one choice in a reply, and its counts of tokens.

    Raises:
        EvaluationError: It is no reply to one prompt.
    """
    try:
        reply = json.loads(body)
    except (ValueError, RecursionError):
        raise connection.no_json(body) from None
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise EvaluationError(
            f"{connection.place} answers without choices[0].text: {connection.clean(body)!r}."
        )
    if len(choices) != 1:
        raise EvaluationError(f"{connection.place} answers one prompt with {len(choices)} continuations.")
    if not isinstance(choices[0].get("text"), str):
        raise EvaluationError(
            f"{connection.place} answers without choices[0].text: {connection.clean(body)!r}."
        )
    usage = reply.get("usage")
    return choices[0], usage if isinstance(usage, dict) else {}


def _log_probabilities(
    body: str, tokens: int, connection: Connection
) -> tuple[list[float | None], list[float]]:
    """Return of each token of a prompt its log-probability (nats; None of the first), and the highest in its place.

    Raises:
        EvaluationError: The reply has them not, or of another number of tokens.
    """
    choice, _ = _only_choice(body, connection)
    found = choice.get("logprobs")
    if not isinstance(found, dict) or not isinstance(found.get("token_logprobs"), list):
        raise EvaluationError(f"{connection.place} answers without log-probabilities.")
    own, best = found["token_logprobs"], found.get("top_logprobs") or []
    if len(own) not in (tokens, tokens + 1):
        raise EvaluationError(
            f"{connection.place} answers with {len(own)} log-probabilities for a prompt of {tokens} tokens."
        )
    try:
        values = [None if one is None else float(one) for one in own[:tokens]]
        highest = [
            max((float(one) for one in (best[place] or {}).values()), default=-math.inf)
            if place < len(best)
            else -math.inf
            for place in range(tokens)
        ]
    except _OTHER_FORM:
        raise EvaluationError(
            f"{connection.place} answers with log-probabilities that are no numbers: {connection.clean(body)!r}."
        ) from None
    if any(value is None or math.isnan(value) for value in values[1:]):
        raise EvaluationError(f"{connection.place} answers without the log-probability of some token.")
    return values, highest


class ServerGenerator:
    """A server as an engine; a context manager that ends what it started.

    Its seeds are per row too, but its kernels add up in an order that depends on the load: two runs may differ in
    rounding.

    Args:
        choice: Which server.
        folder: Of the model that it must serve.
        tokenizer: The model's own.
        noted: Called with a sentence that the user should read.
        names: Further names of the model, by which a server may list it.
    """

    batch_size = 256

    def __init__(
        self,
        choice: ServerChoice,
        folder: Path,
        tokenizer: PreTrainedTokenizerBase,
        *,
        noted: Callable[[str], None] = lambda _: None,
        names: Sequence[str] = (),
    ) -> None:
        self.choice = choice
        self.folder, self._tokenizer, self._noted, self._names = folder, tokenizer, noted, names
        self._session: _Session | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._log: Path | None = None
        self._exit_code: int | None = None
        self._reads_otherwise = False

    def __enter__(self) -> ServerGenerator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def place(self) -> str:
        """What messages call it."""
        return self._ready().endpoint.place

    @property
    def is_ours(self) -> bool:
        """Whether the server is started for the model, and so takes memory beside it."""
        return self.choice.server is None

    def stop(self) -> None:
        """End the server that was started, if one was; the next prompt starts it again."""
        self._session = None
        process, self._process = self._process, None
        if process is not None:
            for sign, seconds in ((signal.SIGTERM, _END_SECONDS), (signal.SIGKILL, None)):
                with suppress(ProcessLookupError):  # with all that it started
                    os.killpg(process.pid, sign)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(seconds)
                    break
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        if self._log is not None:
            self._log.unlink(missing_ok=True)
            self._log = None

    def continue_batch(
        self, prompts: Sequence[TokenPrompt], sampling: Sampling, ending: Ending
    ) -> list[Generated]:
        """Return one continuation per prompt, in order."""
        found = dict(self.continue_each(prompts, sampling, ending))
        return [found[place] for place in range(len(prompts))]

    def continue_each(
        self, prompts: Sequence[TokenPrompt], sampling: Sampling, ending: Ending
    ) -> Iterator[tuple[int, Generated]]:
        """Yield each prompt's place and continuation, as they come.

        Those that are under way when one fails are waited for and yielded before its error is raised.

        Raises:
            EvaluationError: The server cannot be used, reads less than a prompt with its answer, or serves another
                model.
        """
        session = self._ready()
        longest = max((len(one.ids) + one.limit(sampling) for one in prompts), default=0)
        if session.longest is not None and longest > session.longest:
            raise EvaluationError(
                f"{session.endpoint.place} reads {session.longest} tokens, and the longest prompt with its answer has "
                f"{longest}: start it with that many (vLLM: --max-model-len {longest}; SGLang: --context-length "
                f"{longest}), or allow shorter answers."
            )
        connection = _connection(session.endpoint)
        options = self._options(session, sampling, ending)

        def ask(prompt: TokenPrompt) -> Generated:
            body = self._sent(
                connection,
                session,
                prompt.ids,
                **options,
                max_tokens=prompt.limit(sampling),
                seed=prompt.seed % _SEEDS,
            )
            return self._said(body, prompt.limit(sampling), ending, connection)

        yield from self._each(prompts, ask, connection)

    def scores(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], max_length: int
    ) -> Iterator[tuple[int, tuple[float, bool]]]:
        """Yield each pair's place, the log-probability of its continuation (nats), and whether that is greedy.

        What is longer than `max_length` loses its beginning.

        Raises:
            EvaluationError: The server cannot be used, or offers no such thing.
        """
        session = self._ready()
        connection = _connection(session.endpoint)
        most = min(max_length, session.longest or max_length) - 1  # one token is always generated

        def ask(pair: tuple[Sequence[int], Sequence[int]]) -> tuple[float, bool]:
            ids = [*pair[0], *pair[1]][-most:]
            count = min(len(pair[1]), len(ids) - 1)
            body = self._sent(
                connection, replace(session, takes=_Takes(ids=True, extras=False)), ids, **_SCORING
            )
            own, best = _log_probabilities(body, len(ids), connection)
            scored = list(zip(own[-count:], best[-count:], strict=True))
            is_greedy = all(high <= (one or 0.0) + _GREEDY_NATS for one, high in scored)
            return math.fsum(one or 0.0 for one, _ in scored), is_greedy

        yield from self._each(pairs, ask, connection)

    def first_words(
        self, prompts: Sequence[Sequence[int]], tokens: int
    ) -> list[tuple[list[int] | None, str]]:
        """Return what the server says after each prompt, greedily: its tokens (None: it has none), and text."""
        session = self._ready()
        connection = _connection(session.endpoint)
        options = {"max_tokens": tokens, "temperature": 0.0, **self._extras(session, ())}
        said = []
        for ids in prompts:
            choice, _ = _only_choice(self._sent(connection, session, ids, **options), connection)
            found = choice.get("token_ids")
            said.append(([int(one) for one in found] if isinstance(found, list) else None, choice["text"]))
        connection.close()
        return said

    def _each(
        self, asked: Sequence[Asked], ask: Callable[[Asked], Answer], connection: Connection
    ) -> Iterator[tuple[int, Answer]]:
        """Ask all, so many at once, and yield places and answers as they come; then the first error is raised."""
        under_way: dict[Future[Answer], int] = {}
        todo = iter(enumerate(asked))
        failed: BaseException | None = None
        with ThreadPoolExecutor(self.choice.at_once) as pool:
            try:
                while True:
                    room = 0 if failed else self.choice.at_once - len(under_way)
                    for place, one in islice(todo, room):
                        under_way[pool.submit(ask, one)] = place
                    if not under_way:
                        break
                    for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                        place = under_way.pop(future)
                        error = future.exception()
                        if error is None:
                            yield place, future.result()
                        elif failed is None:
                            failed = error
                            connection.stop()
                if failed is not None:
                    raise failed
            finally:
                connection.stop()
                connection.close()  # requests that nobody waits for any more end now

    def _sent(self, connection: Connection, session: _Session, ids: Sequence[int], **options: Any) -> str:
        """Return the body of the reply to a prompt."""
        import openai

        prompt: Any = list(ids) if session.takes.ids else self._text(ids, session.takes)

        def send() -> str | Retry:
            try:
                found = connection.exchange(
                    lambda: _completion(connection, session.endpoint, prompt, **options)
                )
            except openai.APIStatusError as error:
                return connection.failure(error)
            return found if isinstance(found, Retry) else str(found.text)

        try:
            return connection.until_answered(send)
        except EvaluationError as error:
            if self._process is not None and self._process.poll() is not None:
                raise EvaluationError(f"{error} {self._last_words()}") from None
            raise

    def _text(self, ids: Sequence[int], takes: _Takes) -> str:
        """Return the text that a server reads as a prompt's tokens, as far as that can be had."""
        beginning = self._tokenizer.bos_token_id
        own = list(ids)
        if takes.added and own[:1] == [beginning]:  # the server adds it
            own = own[1:]
        text = str(self._tokenizer.decode(own, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        if not self._reads_otherwise and self._tokenizer.encode(text, add_special_tokens=False) != own:
            self._reads_otherwise = True
            self._noted(
                "the server takes prompts as text, and some read as other tokens than training's, such as "
                f"{' '.join(text.split())[-60:]!r}: take a server that reads token ids (vLLM, SGLang)."
            )
        return text

    def _extras(self, session: _Session, ends: Sequence[int]) -> dict[str, Any]:
        if not session.takes.extras:
            return {}
        return {
            "extra_body": {
                "stop_token_ids": sorted(ends),
                "return_token_ids": True,
                "add_special_tokens": False,
            }
        }

    def _options(self, session: _Session, sampling: Sampling, ending: Ending) -> dict[str, Any]:
        options: dict[str, Any] = {"temperature": sampling.temperature}
        if sampling.temperature > 0:
            options["top_p"] = sampling.top_p
        stops = list(ending.texts)
        if (
            not session.takes.extras
        ):  # an end token as its text; a server that does not write it cannot end there
            stops += [str(self._tokenizer.convert_ids_to_tokens(one)) for one in sorted(ending.tokens)]
        if stops:
            options["stop"] = (
                stops if session.takes.extras else stops[:4]
            )  # OpenAI's most; others are cut off here
        return options | self._extras(session, sorted(ending.tokens))

    def _said(self, body: str, limit: int, ending: Ending, connection: Connection) -> Generated:
        """Return the continuation in a reply."""
        from lingraft.models.generation import finished

        choice, usage = _only_choice(body, connection)
        is_ended = choice.get("finish_reason") == "stop"
        ids = choice.get("token_ids")
        if isinstance(ids, list) and all(type(one) is int for one in ids):
            found = finished(ids, ending, self._tokenizer)
        else:
            text = connection.without_key(choice["text"])
            said = self._tokenizer.encode(text, add_special_tokens=False)
            found = finished(said, ending, self._tokenizer)
            has_thoughts = ending.thoughts is not None and set(ending.thoughts) & set(said)
            has_end = bool(ending.tokens & set(said))
            if not has_thoughts and not has_end:  # the very text, whatever tokens it is made of
                stops = [text.index(stop) for stop in ending.texts if stop in text]
                found = replace(found, text=text[: min(stops)] if stops else text, ended=bool(stops))
            count = usage.get("completion_tokens")
            found = replace(
                found, tokens=count if type(count) is int and 0 <= count <= limit else found.tokens
            )
        return replace(found, ended=found.ended or is_ended)

    def _ready(self) -> _Session:
        """Return the server when it answers, started where it is ours."""
        if self._session is None:
            url = self.choice.server or self._start()
            listed = models_at(self.choice, url)
            name = self._name(listed, url)
            endpoint = ServerEndpoint(url, name, self.choice.timeout, self.choice.attempts)
            longest = next((one.longest for one in listed if one.id == name), None)
            self._session = _Session(endpoint, self._found_out(endpoint), longest)
        return self._session

    def _name(self, listed: Sequence[Listed], url: str) -> str:
        """Return what the model is called at the server.

        Raises:
            EvaluationError: It lists several, and none of them is this one.
        """
        if self.choice.model is not None:
            return self.choice.model.replace("{model}", str(self.folder))
        if len(listed) == 1:
            return listed[0].id
        own = {str(self.folder), *self._names}
        found = [one.id for one in listed if {one.id, one.root} & own]
        if found or not listed or self.is_ours:
            return found[0] if found else str(self.folder)
        names = ", ".join(one.id for one in listed[:8])
        raise EvaluationError(
            f"{endpoint_of(self.choice, url).place} lists {len(listed)} models and none that is called {self.folder}: "
            f"add `model`, one of {names} (--backend model={listed[0].id})."
        )

    def _found_out(self, endpoint: ServerEndpoint) -> _Takes:
        """Ask the server for one token in ever plainer ways; return what it takes.

        Raises:
            EvaluationError: It takes none of them.
        """
        import openai

        ids = self._tokenizer.encode(_PROBE)
        refused: APIStatusError | None = None
        connection = _connection(endpoint)
        try:
            for takes in (_Takes(True, True), _Takes(True, False), _Takes(False, True), _Takes(False, False)):
                session = _Session(endpoint, takes, None)
                prompt: Any = ids if takes.ids else _PROBE
                options = self._extras(session, ())

                def send(prompt: Any = prompt, options: dict[str, Any] = options) -> Any:
                    try:
                        return connection.exchange(
                            lambda: _completion(
                                connection, endpoint, prompt, max_tokens=1, temperature=0.0, **options
                            )
                        )
                    except openai.APIStatusError as error:
                        if error.status_code in _NOT_TAKEN:
                            return error
                        return connection.failure(error)

                found = connection.until_answered(send)
                if isinstance(found, openai.APIStatusError):
                    refused = found
                    continue
                _, usage = _only_choice(found.text, connection)
                read = usage.get("prompt_tokens")
                if takes.ids:
                    if read in (None, len(ids)):
                        return takes
                    continue  # it read something else in them
                bare = len(self._tokenizer.encode(_PROBE, add_special_tokens=False))
                added = read - bare if type(read) is int else len(ids) - bare
                return replace(takes, added=max(0, added))
        finally:
            connection.close()
        assert refused is not None  # text alone, without extras, is either taken or refused
        raise connection.refusal(refused)

    def _start(self) -> str:
        """Start the server of the model, wait until it answers, and return its URL.

        Raises:
            EvaluationError: It ends, or does not answer in time.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words = [
            one.replace("{model}", str(self.folder)).replace("{port}", str(port))
            for one in _words(self.choice)
        ]
        file, name = tempfile.mkstemp(prefix="lingraft-server-", suffix=".log")
        self._log = Path(name)
        try:
            self._process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )
        except OSError as error:
            raise EvaluationError(f"{shlex.join(words)}: cannot be started ({error.strerror}).") from None
        finally:
            os.close(file)
        ends = time.monotonic() + self.choice.start_timeout
        url = f"http://localhost:{port}/v1"
        while self._process.poll() is None and time.monotonic() < ends:
            with (
                suppress(OSError, UnreachableError),
                socket.create_connection(("localhost", port), timeout=_STEP_SECONDS),
            ):
                models_at(self.choice, url)
                return url
            time.sleep(_STEP_SECONDS)
        words_of = self._last_words()
        has_ended = self._process.poll() is not None
        self.stop()
        problem = (
            f"it ended with code {self._exit_code}"
            if has_ended
            else f"it did not answer within {self.choice.start_timeout:g} s (its `start_timeout`)"
        )
        raise EvaluationError(f"the server {shlex.join(words)!r}: {problem}. {words_of}")

    def _last_words(self) -> str:
        """Return the last line that the server wrote."""
        self._exit_code = None if self._process is None else self._process.poll()
        lines = [] if self._log is None else self._log.read_text(errors="replace").strip().splitlines()
        return f"Its last line: {lines[-1].strip()[-300:]}" if lines else "It wrote nothing."


@dataclass(frozen=True, slots=True)
class _Alike:
    """How many of the tokens that a server said are greedy ones of a model in memory: a `Batch`."""

    rows: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]

    def __call__(self, held: Held) -> list[int]:
        """Return of each row how many of its tokens have the highest logit, or one so near that rounding decides."""
        import torch

        untyped: Any = held.model
        found = []
        with torch.inference_mode():
            for prompt, said in self.rows:
                if not said:
                    found.append(0)
                    continue
                ids = torch.tensor([[*prompt, *said]], device=untyped.device)
                logits = untyped(input_ids=ids[:, :-1], use_cache=False).logits[0, len(prompt) - 1 :].float()
                own = logits.gather(1, ids[0, len(prompt) :, None])[:, 0]
                is_near = logits.max(dim=1).values - own <= _NEAR_BEST * logits.std(dim=1)
                found.append(int(is_near.sum()))
        return found


def check_same_model(server: ServerGenerator, answering: Answering, prompts: Sequence[Sequence[int]]) -> None:
    """Refuse a server that serves another model: what it says after a few prompts must be what the model says.

    Of tokens, nine in ten must be those that the model finds likeliest after the tokens before them, or as good as
    likeliest. Of a server that says no tokens, texts are compared up to where they first differ: seven in ten
    characters must be alike, as rounding may choose another token once, and all after it follows.

    Args:
        server: What will be asked.
        answering: The model.
        prompts: Of what will be asked; the shortest are taken.

    Raises:
        EvaluationError: They are not.
    """
    from lingraft.models.answering import Continue
    from lingraft.models.engine import Engine
    from lingraft.models.generation import Ending, Sampling, TokenPrompt

    shortest = [tuple(one) for one in sorted(prompts, key=len)[:_CHECKED_PROMPTS]]
    said = server.first_words(shortest, _CHECKED_TOKENS)
    if all(tokens is not None for tokens, _ in said):
        rows = tuple((ids, tuple(tokens or ())) for ids, (tokens, _) in zip(shortest, said, strict=True))
        ((_, near),) = answering.answers([_Alike(rows)])
        total, alike, kind, fewest = sum(len(one) for _, one in rows), sum(near), "tokens", _FEWEST_TOKENS
    else:
        end = answering.tokenizer.eos_token_id
        asked = tuple(TokenPrompt(one) for one in shortest)
        sampling = Sampling(max_new_tokens=_CHECKED_TOKENS)
        ending = Ending(frozenset([0 if end is None else int(end)]))
        batch = Continue(Engine(own_defaults=True), asked, sampling, ending)
        ((_, own),) = answering.answers([batch])
        pairs = [(text, one.text) for (_, text), one in zip(said, own, strict=True)]
        total = sum(max(map(len, pair)) for pair in pairs)
        alike = sum(
            len(list(takewhile(lambda two: two[0] == two[1], zip(*pair, strict=False)))) for pair in pairs
        )
        kind, fewest = "characters", _FEWEST_CHARACTERS
    if alike < fewest * total:
        raise EvaluationError(
            f"{server.place} serves another model than {server.folder}: of {total} {kind} that it wrote after "
            f"{len(shortest)} prompts, {alike} are that model's. Serve that folder, or let it be started for "
            "each model: {command: 'vllm serve {model} --port {port}'}."
        )
