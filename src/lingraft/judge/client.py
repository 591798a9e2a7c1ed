"""A chat model behind an OpenAI-compatible endpoint: POST {url}/chat/completions, asked again until it answers.

The key comes from the environment and goes nowhere but into the request's header: no record, log or message holds it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Event
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit

from lingraft.errors import ConfigError, EvaluationError, escape_control_characters
from lingraft.judge.budget import Ledger, Tokens
from lingraft.judge.chat_reply import Reply, retry_after, tokens_of, told_reason, written_tokens

if TYPE_CHECKING:
    from requests import PreparedRequest, Response

KEY_VARIABLES = ("LINGRAFT_JUDGE_KEY", "OPENAI_API_KEY")
_CONNECT_SECONDS = 10.0
_FIRST_WAIT_SECONDS = 1.0
_LONGEST_WAIT_SECONDS = 60.0
_LONGEST_ASKED_WAIT_SECONDS = 600.0  # a server that wants more is not waited for
_SHOWN_CHARACTERS = 200
_TEMPLATE_TOKENS = 64  # what a chat template may put around two messages
_PER_QUESTION = (400, 413, 422)  # statuses that may concern one question alone, such as one that is too long
_PASSING = (408, 409, 425, 429)  # and all from 500 on

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Which model, where, and how patiently it is asked.

    Attributes:
        url: What stands before /chat/completions, such as https://api.openai.com/v1.
        model: As the endpoint names it.
        timeout_seconds: Longest silence before a request counts as lost.
        attempts: How often one question is sent at most.
    """

    url: str
    model: str
    timeout_seconds: float = 60.0
    attempts: int = 6

    def __post_init__(self) -> None:
        parts = _parts(self.url)
        if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(
                f"the judge's URL {_without_user(self.url)!r} is none: it begins with http:// or https:// and is "
                "what stands before /chat/completions, such as https://api.openai.com/v1."
            )
        if parts.username or parts.password or parts.query:
            raise ConfigError(
                f"the judge's URL {_without_user(self.url)!r} must hold neither a user nor a query, which records "
                f"would show: put the key into {KEY_VARIABLES[0]}."
            )


@dataclass(frozen=True, slots=True)
class Key:
    """The key that requests are signed with.

    Attributes:
        variable: Environment variable that it came from; "": there is none, as for local servers.
        value: The secret; not part of the representation.
    """

    variable: str = ""
    value: str = field(default="", repr=False)


class QuestionRefusedError(EvaluationError):
    """The endpoint does not take this one question, such as one that is longer than its context."""


@dataclass(frozen=True, slots=True)
class _Again:
    """Why a question is to be sent again, and how long the server wants us to wait."""

    reason: str
    wait_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class _Adaptation:
    """What some models do not take: how their refusal names it, and the request without it."""

    field: str
    refusal: str
    change: Callable[[dict[str, Any]], dict[str, Any]]


_ADAPTATIONS = (
    _Adaptation(
        "max_tokens",
        "Use 'max_completion_tokens'",
        lambda body: {("max_completion_tokens" if k == "max_tokens" else k): v for k, v in body.items()},
    ),
    _Adaptation("logprobs", "logprobs", lambda body: {k: v for k, v in body.items() if "logprobs" not in k}),
    _Adaptation(
        "temperature", "temperature", lambda body: {k: v for k, v in body.items() if k != "temperature"}
    ),
)


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


class ChatClient:
    """Sends questions to an endpoint, from any number of threads; a context manager that closes its connections.

    Passing failures (429, 408, 5xx, silence, a lost connection once there was one) are waited for and asked again, each
    time twice as long, from 1 to 60 seconds, or as long as `Retry-After` says. What cannot pass (a wrong key, an
    unknown model, an answer that is none) is an error at once.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        key: Key,
        ledger: Ledger,
        *,
        connections: int = 1,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        import requests
        from requests.adapters import HTTPAdapter

        self._endpoint, self._key, self._ledger = endpoint, key, ledger
        self._stopping = Event()
        self._sleep = sleep or self._stopping.wait
        self._url = f"{endpoint.url.rstrip('/')}/chat/completions"
        self._session = requests.Session()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_maxsize=connections))
        self._reached = False
        self._adaptations: set[str] = set()

    def __enter__(self) -> ChatClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        self._session.close()

    @property
    def adaptations(self) -> tuple[str, ...]:
        """What the endpoint did not take, so that requests went without it or under another name."""
        return tuple(sorted(self._adaptations))

    def stop(self) -> None:
        """Let no question be sent again, and end every wait; those that are under way come back."""
        self._stopping.set()

    def ask(self, messages: Messages, *, max_tokens: int, alternatives: int = 0) -> Reply:
        """Return the model's answer.

        Args:
            messages: Role and content of each turn.
            max_tokens: Longest answer.
            alternatives: How many likeliest tokens to ask for at each position; 0: none.

        Raises:
            QuestionRefusedError: The endpoint does not take this question.
            BudgetReachedError: The question could cost more than is left.
            EvaluationError: The endpoint cannot be used, or failed `attempts` times.
        """
        body: dict[str, Any] = {"model": self._endpoint.model, "messages": list(messages)}
        body |= {"temperature": 0, "max_tokens": max_tokens}
        if alternatives:
            body |= {"logprobs": True, "top_logprobs": alternatives}
        most = most_tokens(messages, max_tokens)
        last = ""
        for attempt in range(1, self._endpoint.attempts + 1):
            found = self._adapted(body, most)
            if isinstance(found, Reply):
                return found
            last = found.reason
            if attempt < self._endpoint.attempts:
                self._wait(attempt, found)
        raise EvaluationError(
            f"the judge at {self._url} failed {self._endpoint.attempts} times in a row, last: {last}. What "
            "it answered is kept: the same command goes on from there."
        )

    def _wait(self, attempt: int, failure: _Again) -> None:
        doubled = min(_FIRST_WAIT_SECONDS * 2 ** (attempt - 1), _LONGEST_WAIT_SECONDS)
        if (failure.wait_seconds or 0) > _LONGEST_ASKED_WAIT_SECONDS:
            raise EvaluationError(
                f"the judge at {self._url} wants us to wait {failure.wait_seconds:.0f} s ({failure.reason}): run the "
                "same command again then."
            )
        self._sleep(doubled if failure.wait_seconds is None else failure.wait_seconds)
        if self._stopping.is_set():
            raise EvaluationError(f"stopped while waiting for the judge at {self._url}.")

    def _adapted(self, body: dict[str, Any], most: Tokens) -> Reply | _Again:
        """Send a question in the form that the endpoint takes, which its refusals tell."""
        while True:
            sent = body
            for known in _ADAPTATIONS:
                sent = known.change(sent) if known.field in self._adaptations else sent
            try:
                return self._attempt(sent, most)
            except QuestionRefusedError as refusal:
                named = [
                    one.field for one in _ADAPTATIONS if one.field in sent and one.refusal in str(refusal)
                ]
                if not named:
                    raise
                self._adaptations.add(named[0])

    def _attempt(self, body: dict[str, Any], most: Tokens) -> Reply | _Again:
        import requests

        self._ledger.reserve(most)
        used = most  # where it is not known whether a request was billed
        try:
            response = self._session.post(
                self._url,
                json=body,
                timeout=(_CONNECT_SECONDS, self._endpoint.timeout_seconds),
                allow_redirects=False,  # a redirected POST becomes a GET, or takes the key elsewhere
                auth=self._sign,  # not a header: requests would put a .netrc entry in its place
            )
            self._reached = True
            used = Tokens()
            found = self._read(response)
            if isinstance(found, Reply):
                used = found.tokens or most
            return found
        except requests.ConnectTimeout:
            used = Tokens()
            return self._lost(f"no connection within {_CONNECT_SECONDS:.0f} s", passing=self._reached)
        except requests.Timeout:
            return _Again(f"no answer within {self._endpoint.timeout_seconds:g} s (its `timeout`)")
        except requests.RequestException as error:
            breaks_off = self._reached or "timed out" in str(error)  # in the middle of an answer
            used = most if breaks_off else Tokens()
            return self._lost(_reason(error), passing=breaks_off)
        finally:
            self._ledger.settle(most, used)

    def _lost(self, reason: str, *, passing: bool) -> _Again:
        if not passing:
            raise EvaluationError(f"the judge at {self._url} cannot be reached: {self._clean(reason)}.")
        return _Again(self._clean(reason))

    def _sign(self, request: PreparedRequest) -> PreparedRequest:
        if self._key.value:
            request.headers["Authorization"] = f"Bearer {self._key.value}"
        return request

    def _read(self, response: Response) -> Reply | _Again:
        status = response.status_code
        if 200 <= status < 300:
            return self._reply(response)
        told = self._clean(told_reason(response))
        if status in _PER_QUESTION:
            raise QuestionRefusedError(f"the judge at {self._url} refuses the question ({status}: {told}).")
        if (status in _PASSING or status >= 500) and "insufficient_quota" not in response.text:
            return _Again(f"{status}: {told}", retry_after(response.headers.get("Retry-After")))
        raise EvaluationError(
            f"the judge at {self._url} answers {status} ({told}): {self._advice(status, response)}"
        )

    def _advice(self, status: int, response: Response) -> str:
        if status in (401, 403):
            if not self._key.variable:
                return f"no key was sent; put it into {KEY_VARIABLES[0]}."
            return f"the key in {self._key.variable} is not taken."
        if status == 404:
            return (
                f"either it has no model {self._endpoint.model!r}, or the URL is not what stands before "
                "/chat/completions, such as https://api.openai.com/v1."
            )
        if 300 <= status < 400:
            return (
                f"it redirects to {self._clean(response.headers.get('Location', 'nowhere'))}; give that URL."
            )
        return "see what it says, and run the same command again."

    def _reply(self, response: Response) -> Reply:
        import requests

        try:
            content = response.json()
        except requests.JSONDecodeError:
            raise EvaluationError(
                f"the judge at {self._url} answers with what is no JSON: {self._clean(response.text)!r}; is the URL "
                "what stands before /chat/completions?"
            ) from None
        try:
            choice = content["choices"][0]
            text = choice["message"]["content"]
        except (KeyError, IndexError, TypeError):
            raise EvaluationError(
                f"the judge at {self._url} answers without choices[0].message.content: "
                f"{self._clean(response.text)!r}."
            ) from None
        served = content.get("model")
        return Reply(
            text=text if isinstance(text, str) else "",  # null where a reasoning model used all its tokens
            model=self._clean(served) if isinstance(served, str) else self._endpoint.model,
            written=written_tokens(choice.get("logprobs")),
            tokens=tokens_of(content.get("usage")),
        )

    def _clean(self, text: str) -> str:
        """Return a server's words in one line, shortened, without the key and unable to steer a terminal."""
        line = escape_control_characters(" ".join(text.split()))
        if self._key.value:
            line = line.replace(self._key.value, "***")
        return (line if len(line) <= _SHOWN_CHARACTERS else f"{line[:_SHOWN_CHARACTERS]}…").rstrip(".")


def most_tokens(messages: Messages, max_tokens: int) -> Tokens:
    """Return what a question can use at most: no byte-level tokenizer makes more tokens than there are bytes."""
    read = sum(len(message["content"].encode()) for message in messages)
    return Tokens(read + _TEMPLATE_TOKENS, max_tokens)


def _parts(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port  # out of range
    except ValueError:
        return None
    return parts


def _without_user(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//***@", url).partition("?")[0]


def _reason(error: Exception) -> str:
    """Return the innermost cause of a failed connection: what requests wraps around it says no more."""
    found = re.search(r"\[Errno [-\d]+\] [^'\")]+", str(error))
    return found[0] if found else f"{type(error).__name__}: {error}"
