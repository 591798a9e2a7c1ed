"""A service behind an OpenAI-compatible endpoint: one request at a time, sent again until it is answered.

A judge and a server that generates are spoken to by this. Requests and replies are those of the `openai` client. Its
own retries are off: they cannot be stopped, disregard a `Retry-After` above a minute, and wait for a server that is not
there. The key comes from the environment and goes into the header of requests to the endpoint: no record, log or
message holds it.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

from lingraft.errors import ConfigError, EvaluationError, escape_control_characters

if TYPE_CHECKING:
    import httpx
    from openai import APIStatusError, Omit

Sent = TypeVar("Sent")

CONNECT_SECONDS = 10.0
_FIRST_WAIT_SECONDS = 1.0
_LONGEST_WAIT_SECONDS = 60.0
_LONGEST_RETRY_AFTER_SECONDS = 600.0  # a server that wants more is not waited for
_SHOWN_CHARACTERS = 200
_READ_CHARACTERS = 10_000  # of what is cleaned to be shown
_KEY_CHARACTERS = 8  # so many of the key in a row are not shown
_PASSING = (408, 409, 425, 429)  # statuses that may pass, and all from 500 on


@dataclass(frozen=True, slots=True)
class Service:
    """What an endpoint is for, as messages say it.

    Attributes:
        name: What it is called, such as `judge`.
        path: What requests add to its URL, such as /chat/completions.
        example: Such a URL.
        keys: Environment variables that may hold its key, the first that is set counts.
        goes_on: What becomes of the answers so far when it fails.
    """

    name: str
    path: str
    example: str
    keys: tuple[str, ...]
    goes_on: str = "What it answered is kept: the same command goes on from there."


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint, its model, and how long and how often it is tried.

    Attributes:
        url: What stands before the service's path, such as https://api.openai.com/v1.
        model: As the endpoint names it.
        timeout_seconds: How long a whole request may take before it counts as lost.
        attempts: How often one request is sent at most.
    """

    service: ClassVar[Service]

    url: str
    model: str
    timeout_seconds: float = 60.0
    attempts: int = 6

    def __post_init__(self) -> None:
        import httpx

        name, path = self.service.name, self.service.path
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
                f"the {name}'s URL {shown!r} is none: it begins with http:// or https:// and is "
                f"what stands before {path}, such as {self.service.example}."
            )
        if parts.username or parts.password or parts.query:
            raise ConfigError(
                f"the {name}'s URL {shown!r} must hold neither a user nor a query, which records would show: "
                f"put the key into {self.service.keys[0]}."
            )

    @property
    def uses_proxy(self) -> bool:
        """Whether it is asked through the proxy that the environment names, if it names one."""
        return True

    @property
    def place(self) -> str:
        """What messages call it."""
        return f"the {self.service.name} at {self.url.rstrip('/')}{self.service.path}"


@dataclass(frozen=True, slots=True)
class Key:
    """The key that requests are signed with, and its environment variable; "": none, as for local servers."""

    variable: str = ""
    value: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Retry:
    """A failure that may pass.

    Attributes:
        reason: What is shown of it.
        wait_seconds: How long the server wants us to wait; None: it does not say.
        counts: Whether it counts as one of the attempts.
        may_be_billed: Whether the request may have been answered, and the answer lost.
    """

    reason: str
    wait_seconds: float | None = None
    counts: bool = True
    may_be_billed: bool = False


class UnreachableError(EvaluationError):
    """No request came through to the endpoint."""


class _UnusableReplyError(Exception):
    """A reply that is not read to its end; the openai client hands it on as the cause of its own error."""


def key_of(service: Service, environment: Mapping[str, str] = os.environ) -> Key:
    """Return the key of a service; a variable that is set and empty means none.

    Raises:
        ConfigError: It cannot stand in a header. The message does not show it.
    """
    variable = next((name for name in service.keys if name in environment), "")
    value = environment.get(variable, "").strip()
    if not value:
        return Key()
    if not value.isascii() or not value.isprintable() or " " in value:
        raise ConfigError(
            f"{variable}: the key holds characters that no key has, such as spaces or line ends."
        )
    return Key(variable, value)


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


class Connection:
    """Sends requests to an endpoint, from any number of threads, and says of each failure whether it may pass.

    Passing failures (429, 408, 5xx, silence, a lost connection) are waited for and retried, each time twice as long,
    from 1 to 60 seconds, or as long as `Retry-After` says. What cannot pass (a wrong key, an unknown model, an answer
    that is none) is an error at once. A redirect is not followed.

    Whatever a server sends takes bounded time and memory: a request the endpoint's `timeout_seconds` in all, a reply
    `most_bytes`.

    Attributes:
        client: What requests are made with.
        headers: What every request carries.
        place: What messages call the endpoint.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        key: Key,
        *,
        most_bytes: int,
        too_much: str,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        """Make a connection.

        Args:
            endpoint: Where to.
            key: For its headers.
            most_bytes: Of a reply.
            too_much: What a longer one is not, such as `verdict`.
            sleep: Waits so many seconds; None: until `stop` at most.
        """
        import httpx
        import openai

        self._endpoint, self._key = endpoint, key
        self._most_bytes, self._too_much = most_bytes, too_much
        self._stopping = Event()
        self._sleep = sleep or self._stopping.wait
        self._reached = False
        self._waited_for: set[Future[Any]] = set()
        self.place = endpoint.place
        # The openai client would take a key, an organisation and a project from the environment, whatever the endpoint.
        self.headers: dict[str, str | Omit] = {
            "Authorization": f"Bearer {key.value}" if key.value else openai.omit,
            "OpenAI-Organization": openai.omit,
            "OpenAI-Project": openai.omit,
            "Accept-Encoding": "identity",  # the size of what is packed is known too late
        }
        try:
            self.client = openai.OpenAI(
                api_key="in the headers",
                base_url=endpoint.url,
                max_retries=0,
                timeout=httpx.Timeout(endpoint.timeout_seconds, connect=CONNECT_SECONDS),
                # A redirected POST becomes a GET, or takes the key elsewhere.
                http_client=openai.DefaultHttpxClient(
                    follow_redirects=False,
                    event_hooks={"response": [self._bound]},
                    trust_env=endpoint.uses_proxy,
                ),
            )
            self.client._custom_headers = {}  # OPENAI_CUSTOM_HEADERS may hold a secret of another endpoint
        except (ImportError, ValueError) as error:
            raise EvaluationError(
                f"{self.place} cannot be reached through the proxy that the environment names: {error}"
            ) from None

    def close(self) -> None:
        """Close all connections; who waits for a reply gets an EvaluationError."""
        self.client.close()
        for sent in tuple(self._waited_for):
            with suppress(InvalidStateError):  # it came just now
                sent.set_exception(EvaluationError(f"stopped while waiting for {self.place}."))

    def stop(self) -> None:
        """Let no request be sent again, and end every wait; those that are under way come back."""
        self._stopping.set()

    def until_answered(self, send: Callable[[], Sent | Retry]) -> Sent:
        """Return what `send` returns when that is no `Retry`, waiting in between.

        Raises:
            EvaluationError: The endpoint cannot be used, or failed `attempts` times.
        """
        attempt = 1
        while True:
            found = send()
            if not isinstance(found, Retry):
                return found
            if not found.counts:
                continue
            if attempt == self._endpoint.attempts:
                raise EvaluationError(
                    f"{self.place} failed {attempt} times in a row, last: {found.reason}. "
                    f"{self._endpoint.service.goes_on}"
                )
            wait = found.wait_seconds
            if wait is None:
                wait = min(_FIRST_WAIT_SECONDS * 2 ** (attempt - 1), _LONGEST_WAIT_SECONDS)
            elif wait > _LONGEST_RETRY_AFTER_SECONDS:
                raise EvaluationError(
                    f"{self.place} wants us to wait {wait:.0f} s ({found.reason}): run the same command again then."
                )
            self._sleep(wait)
            if self._stopping.is_set():
                raise EvaluationError(f"stopped while waiting for {self.place}.")
            attempt += 1

    def exchange(self, send: Callable[[], Sent]) -> Sent | Retry:
        """Return what `send` receives, or why the request is to be sent again.

        Raises:
            openai.APIStatusError: The endpoint answered with a status that is none of success; see `failure`.
            UnreachableError: No request ever came through, and this one did not.
            EvaluationError: It answered with what cannot be read.
        """
        import httpx
        import openai

        lost = Retry(
            f"no answer within {self._endpoint.timeout_seconds:g} s (its `timeout`)", may_be_billed=True
        )
        try:
            response = self._in_time(send)
        except openai.APIStatusError:
            self._reached = True
            raise
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            if isinstance(cause, _UnusableReplyError):
                raise EvaluationError(f"{self.place} {cause}") from None
            if isinstance(cause, httpx.TimeoutException) and not isinstance(cause, httpx.ConnectTimeout):
                return lost
            no_connection = isinstance(cause, (httpx.ConnectError, httpx.ConnectTimeout))
            is_lost = isinstance(cause, (httpx.NetworkError, httpx.RemoteProtocolError))
            reason = self.clean(str(cause) or type(cause).__name__)
            if isinstance(cause, httpx.ConnectTimeout):
                reason = f"no connection within {CONNECT_SECONDS:.0f} s"
            if not self._reached and (no_connection or not is_lost):
                raise UnreachableError(f"{self.place} cannot be reached: {reason}.") from None
            return Retry(reason, may_be_billed=is_lost and not no_connection)
        if response is None:
            return lost
        self._reached = True
        return response

    def failure(self, error: APIStatusError) -> Retry:
        """Return why a request that was answered with an error is to be sent again, or raise what stands in the way."""
        status, reason = error.status_code, self.reason_of(error)
        if (status in _PASSING or status >= 500) and "insufficient_quota" not in error.response.text:
            return Retry(f"{status}: {reason}", retry_after(error.response.headers.get("Retry-After")))
        raise self.refusal(error) from None

    def refusal(self, error: APIStatusError) -> EvaluationError:
        """Return what an error status means, with advice."""
        status, reason, service = error.status_code, self.reason_of(error), self._endpoint.service
        advice = "see what it says, and run the same command again."
        if status in (401, 403) and self._key.variable:
            advice = f"the key in {self._key.variable} is not taken."
        elif status in (401, 403):
            advice = f"no key was sent; put it into {service.keys[0]}."
        elif status == 404:
            advice = (
                f"either it has no model {self._endpoint.model!r}, or the URL is not what stands before "
                f"{service.path}, such as {service.example}."
            )
        elif 300 <= status < 400:
            target = self.clean(error.response.headers.get("Location", "nowhere"))
            advice = f"it redirects to {target}; give that URL."
        return EvaluationError(f"{self.place} answers {status} ({reason}): {advice}")

    def reason_of(self, error: APIStatusError) -> str:
        """Return what an answer with an error status says, cleaned."""
        body = error.body
        if isinstance(body, Mapping):
            body = body.get("message", body.get("detail", body))
        return self.clean(str(body or error.response.reason_phrase or "no reason given"))

    def no_json(self, body: str) -> EvaluationError:
        """Return the error of a reply that is no JSON."""
        return EvaluationError(
            f"{self.place} answers with what is no JSON: {self.clean(body)!r}; is the URL what "
            f"stands before {self._endpoint.service.path}?"
        )

    def _in_time(self, send: Callable[[], Sent]) -> Sent | None:
        """Return what `send` returns; None: it took longer than a request may.

        The limits of httpx are for each piece of a reply, and one that drips never reaches them. The thread that is
        left behind ends with its connection: at the next piece of the body, or when the client is closed.
        """
        sent: Future[Sent] = Future()

        def run() -> None:
            settle: Callable[[Any], None]
            value: Any
            try:
                settle, value = sent.set_result, send()
            except BaseException as error:  # raised where it is waited for
                settle, value = sent.set_exception, error
            with suppress(InvalidStateError):  # `close` has ended it
                settle(value)

        self._waited_for.add(sent)
        Thread(target=run, daemon=True).start()
        try:
            return sent.result(CONNECT_SECONDS + self._endpoint.timeout_seconds)
        except TimeoutError:
            return None
        finally:
            self._waited_for.discard(sent)

    def _bound(self, response: httpx.Response) -> None:
        """Read a reply, up to its largest size and for as long as a request may take."""
        import httpx

        packed = response.headers.get("Content-Encoding", "identity")
        if packed.lower() not in ("identity", ""):
            raise _UnusableReplyError(
                f"packs its reply ({self.clean(packed)}), although it was asked not to."
            )
        ends = time.monotonic() + self._endpoint.timeout_seconds
        content = bytearray()
        for piece in cast("Iterator[bytes]", response.stream):
            content += piece
            if len(content) > self._most_bytes:
                raise _UnusableReplyError(
                    f"answers with more than {self._most_bytes >> 20} MB, which is no {self._too_much}."
                )
            if time.monotonic() > ends:
                raise httpx.ReadTimeout("the reply took too long", request=response.request)
        cast("httpx.SyncByteStream", response.stream).close()
        response.stream = httpx.ByteStream(bytes(content))

    def clean(self, text: str) -> str:
        """Return a server's words in one line, truncated, without the key and unable to steer a terminal."""
        line = self.without_key(escape_control_characters(" ".join(text[:_READ_CHARACTERS].split())))
        return (line if len(line) <= _SHOWN_CHARACTERS else f"{line[:_SHOWN_CHARACTERS]}…").rstrip(".")

    def without_key(self, text: str) -> str:
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
