"""A chat model behind an OpenAI-compatible endpoint: one question at a time, sent again until it is answered.

Requests and replies are those of the `openai` client. Its own retries are off: they reserve no budget, cannot be
stopped, disregard a `Retry-After` above a minute, and wait for a server that is not there. The key comes from the
environment and goes into the header of requests to the endpoint: no record, log or message holds it.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from threading import Event, Thread
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from lingraft.errors import ConfigError, EvaluationError, escape_control_characters
from lingraft.judge.budget import NOTHING, Ledger, Tokens

if TYPE_CHECKING:
    import httpx
    from openai import APIStatusError, Omit

Sent = TypeVar("Sent")

KEY_VARIABLES = ("LINGRAFT_JUDGE_KEY", "OPENAI_API_KEY")
_CONNECT_SECONDS = 10.0
_FIRST_WAIT_SECONDS = 1.0
_LONGEST_WAIT_SECONDS = 60.0
_LONGEST_RETRY_AFTER_SECONDS = 600.0  # a server that wants more is not waited for
_SHOWN_CHARACTERS = 200
_READ_CHARACTERS = 10_000  # of what is cleaned to be shown
_TEMPLATE_TOKENS = 64  # what a chat template may put around two messages
_MOST_COUNTED = 10**9  # tokens; an endpoint that counts more does not count
_BODY_BYTES, _BODY_BYTES_PER_TOKEN = 2**20, 2**13  # of a reply: its tokens come with five alternatives each
_MOST_BODY_BYTES = 2**26
_KEY_CHARACTERS = 8  # so many of the key in a row are not shown
_OTHER_FORM = (AttributeError, TypeError, ValueError, OverflowError, RecursionError)
_PER_QUESTION = (400, 413, 422)  # statuses that may concern one question alone, such as one that is too long
_PASSING = (408, 409, 425, 429)  # and all from 500 on
_OPTIONAL = {  # what some models do not take, and how their refusal names it
    "max_tokens": "Use 'max_completion_tokens'",
    "logprobs": "logprobs",
    "temperature": "temperature",
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint, its model, and how long and how often it is tried.

    Attributes:
        url: What stands before /chat/completions, such as https://api.openai.com/v1.
        model: As the endpoint names it.
        timeout_seconds: How long a whole request may take before it counts as lost.
        attempts: How often one question is sent at most.
    """

    url: str
    model: str
    timeout_seconds: float = 60.0
    attempts: int = 6

    def __post_init__(self) -> None:
        import httpx

        shown = re.sub(r"//[^/@]*@", "//***@", self.url).partition("?")[0]
        try:
            parts = httpx.URL(self.url)
            is_url = (
                parts.scheme in ("http", "https")
                and bool(parts.host)
                and (parts.port is None or 0 < parts.port < 65536)
            )
        except (httpx.InvalidURL, ValueError):  # such as a port out of range, or a host that is no name
            is_url = False
        if not is_url:
            raise ConfigError(
                f"the judge's URL {shown!r} is none: it begins with http:// or https:// and is "
                "what stands before /chat/completions, such as https://api.openai.com/v1."
            )
        if parts.username or parts.password or parts.query:
            raise ConfigError(
                f"the judge's URL {shown!r} must hold neither a user nor a query, which records would show: "
                f"put the key into {KEY_VARIABLES[0]}."
            )


@dataclass(frozen=True, slots=True)
class Key:
    """The key that requests are signed with, and its environment variable; "": none, as for local servers."""

    variable: str = ""
    value: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class WrittenToken:
    """One token of an answer, and the likeliest ones in its place with their log probabilities (nats)."""

    token: str
    likeliest: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model answered.

    Attributes:
        text: The answer.
        model: Which model answered, as the endpoint says.
        written: The answer's tokens with their alternatives; empty where the endpoint gives none.
        tokens: As the endpoint counted them; None: it did not.
    """

    text: str
    model: str
    written: tuple[WrittenToken, ...]
    tokens: Tokens | None


class QuestionRefusedError(EvaluationError):
    """The endpoint does not take this one question, such as one that is longer than its context."""


class _UnusableReplyError(Exception):
    """A reply that is not read to its end; the openai client hands it on as the cause of its own error."""


@dataclass(frozen=True, slots=True)
class _Retry:
    """A failure that may pass: its reason, and how long the server wants us to wait (None: it does not say)."""

    reason: str
    wait_seconds: float | None = None
    counts: bool = True  # as one of the attempts


def key_from_environment(environment: Mapping[str, str] = os.environ) -> Key:
    """Return the key in LINGRAFT_JUDGE_KEY, else in OPENAI_API_KEY; a variable that is set and empty means none.

    Raises:
        ConfigError: It cannot stand in a header. The message does not show it.
    """
    variable = next((name for name in KEY_VARIABLES if name in environment), "")
    value = environment.get(variable, "").strip()
    if not value:
        return Key()
    if not value.isascii() or not value.isprintable() or " " in value:
        raise ConfigError(
            f"{variable}: the key holds characters that no key has, such as spaces or line ends."
        )
    return Key(variable, value)


def most_tokens(prompt: str, max_tokens: int) -> Tokens:
    """Return what a question can use at most: no byte-level tokenizer makes more tokens than there are bytes."""
    return Tokens(len(prompt.encode()) + _TEMPLATE_TOKENS, max_tokens)


def retry_after(value: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks for, given as a number or as a date."""
    if value is None:
        return None
    with suppress(ValueError):  # then it is a date
        return max(0.0, float(value))
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):  # no date, or one far from any calendar
        return None


class ChatClient:
    """Sends questions to an endpoint, from any number of threads; a context manager that closes its connections.

    Passing failures (429, 408, 5xx, silence, a lost connection) are waited for and retried, each
    time twice as long, from 1 to 60 seconds, or as long as `Retry-After` says. What cannot pass (a wrong key, an
    unknown model, an answer that is none) is an error at once. A redirect is not followed.

    Whatever a server sends takes bounded time and memory: a request `timeout_seconds` in all, a reply 1 MB and 8 kB
    for each token that it may have.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        key: Key,
        ledger: Ledger,
        *,
        max_tokens: int,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        import httpx
        import openai

        self._endpoint, self._key, self._ledger = endpoint, key, ledger
        self._max_tokens = max_tokens
        self._most_bytes = min(_BODY_BYTES + max_tokens * _BODY_BYTES_PER_TOKEN, _MOST_BODY_BYTES)
        self._stopping = Event()
        self._sleep = sleep or self._stopping.wait
        self._place = f"the judge at {endpoint.url.rstrip('/')}/chat/completions"
        self._reached = False
        self._not_taken: set[str] = set()
        # The openai client would take a key, an organisation and a project from the environment, whatever the endpoint.
        self._headers: dict[str, str | Omit] = {
            "Authorization": f"Bearer {key.value}" if key.value else openai.omit,
            "OpenAI-Organization": openai.omit,
            "OpenAI-Project": openai.omit,
            "Accept-Encoding": "identity",  # the size of what is packed is known too late
        }
        try:
            self._client = openai.OpenAI(
                api_key="in the headers",
                base_url=endpoint.url,
                max_retries=0,
                timeout=httpx.Timeout(endpoint.timeout_seconds, connect=_CONNECT_SECONDS),
                # A redirected POST becomes a GET, or takes the key elsewhere.
                http_client=openai.DefaultHttpxClient(
                    follow_redirects=False, event_hooks={"response": [self._bound]}
                ),
            )
            self._client._custom_headers = {}  # OPENAI_CUSTOM_HEADERS may hold a secret of another endpoint
        except (ImportError, ValueError) as error:
            raise EvaluationError(
                f"{self._place} cannot be reached through the proxy that the environment names: {error}"
            ) from None

    def __enter__(self) -> ChatClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        self._client.close()

    @property
    def not_taken(self) -> tuple[str, ...]:
        """What the endpoint did not take, so that requests went without it or under another name."""
        return tuple(sorted(self._not_taken))

    def stop(self) -> None:
        """Let no question be sent again, and end every wait; those that are under way come back."""
        self._stopping.set()

    def ask(
        self, system: str, question: str, *, alternatives: int = 0, on_lost: Callable[[Tokens], None]
    ) -> Reply:
        """Return the model's answer.

        Args:
            system: What stands before the conversation.
            question: The user's turn.
            alternatives: How many likeliest tokens to ask for at each position; 0: none.
            on_lost: Called with what a request used that was not answered but may have been billed.

        Raises:
            QuestionRefusedError: The endpoint does not take this question.
            BudgetReachedError: The question could cost more than is left.
            EvaluationError: The endpoint cannot be used, or failed `attempts` times.
        """
        attempt = 1
        while True:
            found = self._send(system, question, alternatives, on_lost)
            if isinstance(found, Reply):
                return found
            if not found.counts:
                continue
            if attempt == self._endpoint.attempts:
                raise EvaluationError(
                    f"{self._place} failed {attempt} times in a row, last: {found.reason}. What it answered is kept: "
                    "the same command goes on from there."
                )
            wait = found.wait_seconds
            if wait is None:
                wait = min(_FIRST_WAIT_SECONDS * 2 ** (attempt - 1), _LONGEST_WAIT_SECONDS)
            elif wait > _LONGEST_RETRY_AFTER_SECONDS:
                raise EvaluationError(
                    f"{self._place} wants us to wait {wait:.0f} s ({found.reason}): run the same command again then."
                )
            self._sleep(wait)
            if self._stopping.is_set():
                raise EvaluationError(f"stopped while waiting for {self._place}.")
            attempt += 1

    def check(self, *, may_cost: bool) -> None:
        """Refuse an endpoint that could answer no question: with one word, or by its list of models.

        Failures that may pass are none, and so is an endpoint that lists no models.

        Args:
            may_cost: Whether a question may be asked.

        Raises:
            EvaluationError: It cannot be reached, does not take the key, or has no such model.
        """
        import openai

        if may_cost:
            found = self._send("Answer with one letter.", "Write the letter m.", 0, lambda _: None)
            while isinstance(found, _Retry) and not found.counts:
                found = self._send("Answer with one letter.", "Write the letter m.", 0, lambda _: None)
            return
        try:
            response = self._in_time(
                lambda: self._client.models.with_raw_response.list(extra_headers=self._headers)
            )
            listed = [] if response is None else [str(one["id"]) for one in json.loads(response.text)["data"]]
        except openai.APIStatusError as error:
            if error.status_code in (401, 403):
                self._failure(error, ())
            return
        except openai.APIConnectionError as error:
            reason = self._clean(str(error.__cause__ or error))
            raise EvaluationError(f"{self._place} cannot be reached: {reason}.") from None
        except (*_OTHER_FORM, LookupError):
            return
        model = self._endpoint.model.casefold()
        if listed and not any(model in one.casefold() or one.casefold() in model for one in listed):
            names = self._clean(", ".join(listed))
            raise EvaluationError(f"{self._place} lists no model {self._endpoint.model!r} (it has {names}).")

    def _send(
        self, system: str, question: str, alternatives: int, on_lost: Callable[[Tokens], None]
    ) -> Reply | _Retry:
        """Send a question once, without what the endpoint does not take, and count what that took."""
        import httpx
        import openai

        sent = [
            one for one in _OPTIONAL if one not in self._not_taken and (alternatives or one != "logprobs")
        ]
        most = most_tokens(system + question, self._max_tokens)
        reserved = self._ledger.reserve(most)
        used, reply = most, None  # as much, where it is not known whether a request was billed
        try:
            response = self._in_time(
                lambda: self._client.chat.completions.with_raw_response.create(
                    model=self._endpoint.model,
                    messages=[{"role": "system", "content": system}, {"role": "user", "content": question}],
                    temperature=0 if "temperature" in sent else openai.omit,
                    max_tokens=self._max_tokens if "max_tokens" in sent else openai.omit,
                    max_completion_tokens=openai.omit if "max_tokens" in sent else self._max_tokens,
                    logprobs=True if "logprobs" in sent else openai.omit,
                    top_logprobs=alternatives if "logprobs" in sent else openai.omit,
                    extra_headers=self._headers,
                )
            )
            if response is None:
                return _Retry(f"no answer within {self._endpoint.timeout_seconds:g} s (its `timeout`)")
            self._reached = True
            reply = self._read(response.parse, response.text)
            used = reply.tokens or most
            return reply
        except openai.APIStatusError as error:
            self._reached, used = True, NOTHING
            return self._failure(error, sent)
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            if isinstance(cause, _UnusableReplyError):
                raise EvaluationError(f"{self._place} {cause}") from None
            if isinstance(cause, httpx.TimeoutException) and not isinstance(cause, httpx.ConnectTimeout):
                return _Retry(f"no answer within {self._endpoint.timeout_seconds:g} s (its `timeout`)")
            no_connection = isinstance(cause, (httpx.ConnectError, httpx.ConnectTimeout))
            is_lost = isinstance(cause, (httpx.NetworkError, httpx.RemoteProtocolError))
            if no_connection or not is_lost:
                used = NOTHING
            reason = self._clean(str(cause) or type(cause).__name__)
            if isinstance(cause, httpx.ConnectTimeout):
                reason = f"no connection within {_CONNECT_SECONDS:.0f} s"
            if not self._reached and (no_connection or not is_lost):
                raise EvaluationError(f"{self._place} cannot be reached: {reason}.") from None
            return _Retry(reason)
        finally:
            self._ledger.settle(most, used, reserved=reserved)
            if reply is None and used != NOTHING:
                on_lost(used)

    def _in_time(self, send: Callable[[], Sent]) -> Sent | None:
        """Return what `send` returns; None: it took longer than a request may.

        The limits of httpx are for each piece of a reply, and one that drips never reaches them. The thread that is
        left behind ends with its connection: at the next piece of the body, or when the client is closed.
        """
        sent: Future[Sent] = Future()

        def run() -> None:
            try:
                sent.set_result(send())
            except BaseException as error:  # raised where it is waited for
                sent.set_exception(error)

        Thread(target=run, daemon=True).start()
        try:
            return sent.result(_CONNECT_SECONDS + self._endpoint.timeout_seconds)
        except TimeoutError:
            return None

    def _bound(self, response: httpx.Response) -> None:
        """Read a reply, up to its largest size and for as long as a request may take."""
        import httpx

        packed = response.headers.get("Content-Encoding", "identity")
        if packed.lower() not in ("identity", ""):
            raise _UnusableReplyError(
                f"packs its reply ({self._clean(packed)}), although it was asked not to."
            )
        ends = time.monotonic() + self._endpoint.timeout_seconds
        content = bytearray()
        for piece in cast("Iterator[bytes]", response.stream):
            content += piece
            if len(content) > self._most_bytes:
                raise _UnusableReplyError(
                    f"answers with more than {self._most_bytes >> 20} MB, which is no verdict."
                )
            if time.monotonic() > ends:
                raise httpx.ReadTimeout("the reply took too long", request=response.request)
        cast("httpx.SyncByteStream", response.stream).close()
        response.stream = httpx.ByteStream(bytes(content))

    def _failure(self, error: APIStatusError, sent: Sequence[str]) -> _Retry:
        """Return why a question is to be sent again, or raise what stands in the way."""
        status, body = error.status_code, error.body
        if isinstance(body, Mapping):
            body = body.get("message", body.get("detail", body))
        reason = self._clean(str(body or error.response.reason_phrase or "no reason given"))
        if status in _PER_QUESTION:
            named = [one for one in sent if _OPTIONAL[one] in reason]
            if not named:
                raise QuestionRefusedError(
                    f"{self._place} refuses the question ({status}: {reason})."
                ) from None
            self._not_taken.add(named[0])
            return _Retry(reason, counts=False)
        if (status in _PASSING or status >= 500) and "insufficient_quota" not in error.response.text:
            return _Retry(f"{status}: {reason}", retry_after(error.response.headers.get("Retry-After")))
        advice = "see what it says, and run the same command again."
        if status in (401, 403) and self._key.variable:
            advice = f"the key in {self._key.variable} is not taken."
        elif status in (401, 403):
            advice = f"no key was sent; put it into {KEY_VARIABLES[0]}."
        elif status == 404:
            advice = (
                f"either it has no model {self._endpoint.model!r}, or the URL is not what stands before "
                "/chat/completions, such as https://api.openai.com/v1."
            )
        elif 300 <= status < 400:
            target = self._clean(error.response.headers.get("Location", "nowhere"))
            advice = f"it redirects to {target}; give that URL."
        raise EvaluationError(f"{self._place} answers {status} ({reason}): {advice}") from None

    def _read(self, parse: Callable[[], object], body: str) -> Reply:
        """Return the reply in a response's body; the openai client does not check that it has the form of its type."""
        completion: Any = None
        try:
            completion = parse()
            choice = completion.choices[0]
            text = choice.message.content
        except (AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
            if isinstance(completion, str) or isinstance(error, (ValueError, RecursionError)):
                raise EvaluationError(
                    f"{self._place} answers with what is no JSON: {self._clean(body)!r}; is the URL what "
                    "stands before /chat/completions?"
                ) from None
            raise EvaluationError(
                f"{self._place} answers without choices[0].message.content: {self._clean(body)!r}."
            ) from None
        tokens: Tokens | None = None
        written: tuple[WrittenToken, ...] = ()
        with suppress(*_OTHER_FORM):  # an endpoint that does not count
            counts = completion.usage.prompt_tokens, completion.usage.completion_tokens
            if all(type(count) is int and 0 <= count <= _MOST_COUNTED for count in counts):
                tokens = Tokens(*counts)
        with suppress(*_OTHER_FORM):  # none, or in another form
            written = tuple(
                WrittenToken(
                    str(one.token), tuple((str(o.token), float(o.logprob)) for o in one.top_logprobs)
                )
                for one in choice.logprobs.content
            )
        served = getattr(completion, "model", None)
        return Reply(
            text=self._without_key(text) if isinstance(text, str) else "",  # null: reasoning used all tokens
            model=self._clean(served) if isinstance(served, str) else self._endpoint.model,
            written=written,
            tokens=tokens,
        )

    def _clean(self, text: str) -> str:
        """Return a server's words in one line, truncated, without the key and unable to steer a terminal."""
        line = self._without_key(escape_control_characters(" ".join(text[:_READ_CHARACTERS].split())))
        return (line if len(line) <= _SHOWN_CHARACTERS else f"{line[:_SHOWN_CHARACTERS]}…").rstrip(".")

    def _without_key(self, text: str) -> str:
        """Return a server's words without the key or long parts of it, and without halves of characters."""
        whole, key = text.encode(errors="replace").decode(), self._key.value
        parts = {
            key[start : start + _KEY_CHARACTERS] for start in range(max(1, len(key) - _KEY_CHARACTERS + 1))
        }
        anywhere = "|".join(re.escape(part) for part in parts if part)
        # Looked ahead, so that parts which overlap are found as one.
        places = list(re.finditer(f"(?i)(?=({anywhere}))", whole)) if anywhere else []
        characters = list(whole)
        for place in places:
            characters[slice(*place.span(1))] = "\0" * len(place[1])
        return re.sub("\0+", "***", "".join(characters)) if places else whole
