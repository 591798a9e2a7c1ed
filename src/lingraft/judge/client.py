"""A chat model behind an OpenAI-compatible endpoint: one question at a time, sent again until it is answered.

Each request reserves its most expensive outcome of the budget before it is sent; see `endpoint` for what is retried.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar

from lingraft import endpoint as service_endpoint
from lingraft.endpoint import Connection, Key, Retry, Service, UnreachableError, key_of
from lingraft.errors import EvaluationError
from lingraft.judge.budget import NOTHING, Ledger, Tokens

if TYPE_CHECKING:
    from openai import APIStatusError

JUDGE = Service(
    "judge", "/chat/completions", "https://api.openai.com/v1", ("LINGRAFT_JUDGE_KEY", "OPENAI_API_KEY")
)
_TEMPLATE_TOKENS = 64  # what a chat template may put around two messages
_MOST_COUNTED = 10**9  # tokens; an endpoint that counts more does not count
_BODY_BYTES, _BODY_BYTES_PER_TOKEN = 2**20, 2**13  # of a reply: its tokens come with five alternatives each
_MOST_BODY_BYTES = 2**26
_OTHER_FORM = (AttributeError, TypeError, ValueError, OverflowError, RecursionError)
_PER_QUESTION = (400, 413, 422)  # statuses that may concern one question alone, such as one that is too long
_OPTIONAL = {  # what some models do not take, and how their refusal names it
    "max_tokens": "Use 'max_completion_tokens'",
    "logprobs": "logprobs",
    "temperature": "temperature",
}


class Endpoint(service_endpoint.Endpoint):
    """A judge's endpoint."""

    __slots__ = ()
    service: ClassVar[Service] = JUDGE


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


def key_from_environment(environment: Mapping[str, str] = os.environ) -> Key:
    """Return the judge's key; see `key_of`."""
    return key_of(JUDGE, environment)


def most_tokens(prompt: str, max_tokens: int) -> Tokens:
    """Return what a question can use at most: no byte-level tokenizer makes more tokens than there are bytes."""
    return Tokens(len(prompt.encode()) + _TEMPLATE_TOKENS, max_tokens)


class ChatClient:
    """Sends questions to an endpoint, from any number of threads; a context manager that closes its connections.

    See `Connection` for what is retried. A reply may have 1 MB and 8 kB for each token that it may have.
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
        self._endpoint, self._ledger = endpoint, ledger
        self._max_tokens = max_tokens
        self._not_taken: set[str] = set()
        self._connection = Connection(
            endpoint,
            key,
            most_bytes=min(_BODY_BYTES + max_tokens * _BODY_BYTES_PER_TOKEN, _MOST_BODY_BYTES),
            too_much="verdict",
            sleep=sleep,
        )
        self._client = self._connection.client
        self._place = self._connection.place

    def __enter__(self) -> ChatClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        self._connection.close()

    @property
    def not_taken(self) -> tuple[str, ...]:
        """What the endpoint did not take, so that requests went without it or under another name."""
        return tuple(sorted(self._not_taken))

    def stop(self) -> None:
        """Let no question be sent again, and end every wait; those that are under way come back."""
        self._connection.stop()

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
        return self._connection.until_answered(lambda: self._send(system, question, alternatives, on_lost))

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
            while isinstance(found, Retry) and not found.counts:
                found = self._send("Answer with one letter.", "Write the letter m.", 0, lambda _: None)
            return
        try:
            response = self._connection.exchange(
                lambda: self._client.models.with_raw_response.list(extra_headers=self._connection.headers)
            )
            listed = (
                []
                if isinstance(response, Retry)
                else [str(one["id"]) for one in json.loads(response.text)["data"]]
            )
        except openai.APIStatusError as error:
            if error.status_code in (401, 403):
                raise self._connection.refusal(error) from None
            return
        except (*_OTHER_FORM, LookupError):
            return
        model = self._endpoint.model.casefold()
        if listed and not any(model in one.casefold() or one.casefold() in model for one in listed):
            names = self._connection.clean(", ".join(listed))
            raise EvaluationError(f"{self._place} lists no model {self._endpoint.model!r} (it has {names}).")

    def _send(
        self, system: str, question: str, alternatives: int, on_lost: Callable[[Tokens], None]
    ) -> Reply | Retry:
        """Send a question once, without what the endpoint does not take, and count what that took."""
        import openai

        sent = [
            one for one in _OPTIONAL if one not in self._not_taken and (alternatives or one != "logprobs")
        ]
        most = most_tokens(system + question, self._max_tokens)
        reserved = self._ledger.reserve(most)
        used, reply = most, None  # as much, where it is not known whether a request was billed
        try:
            response = self._connection.exchange(
                lambda: self._client.chat.completions.with_raw_response.create(
                    model=self._endpoint.model,
                    messages=[{"role": "system", "content": system}, {"role": "user", "content": question}],
                    temperature=0 if "temperature" in sent else openai.omit,
                    max_tokens=self._max_tokens if "max_tokens" in sent else openai.omit,
                    max_completion_tokens=openai.omit if "max_tokens" in sent else self._max_tokens,
                    logprobs=True if "logprobs" in sent else openai.omit,
                    top_logprobs=alternatives if "logprobs" in sent else openai.omit,
                    extra_headers=self._connection.headers,
                )
            )
            if isinstance(response, Retry):
                used = most if response.may_be_billed else NOTHING
                return response
            reply = self._read(response.parse, response.text)
            used = reply.tokens or most
            return reply
        except openai.APIStatusError as error:
            used = NOTHING
            return self._failure(error, sent)
        except UnreachableError:
            used = NOTHING
            raise
        finally:
            self._ledger.settle(most, used, reserved=reserved)
            if reply is None and used != NOTHING:
                on_lost(used)

    def _failure(self, error: APIStatusError, sent: Sequence[str]) -> Retry:
        """Return why a question is to be sent again, or raise what stands in the way."""
        status, reason = error.status_code, self._connection.reason_of(error)
        if status not in _PER_QUESTION:
            return self._connection.failure(error)
        named = [one for one in sent if _OPTIONAL[one] in reason]
        if not named:
            raise QuestionRefusedError(f"{self._place} refuses the question ({status}: {reason}).") from None
        self._not_taken.add(named[0])
        return Retry(reason, counts=False)

    def _read(self, parse: Callable[[], object], body: str) -> Reply:
        """Return the reply in a response's body; the openai client does not check that it has the form of its type."""
        completion: Any = None
        try:
            completion = parse()
            choice = completion.choices[0]
            text = choice.message.content
        except (AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
            if isinstance(completion, str) or isinstance(error, (ValueError, RecursionError)):
                raise self._connection.no_json(body) from None
            raise EvaluationError(
                f"{self._place} answers without choices[0].message.content: {self._connection.clean(body)!r}."
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
            # null: reasoning used all tokens
            text=self._connection.without_key(text) if isinstance(text, str) else "",
            model=self._connection.clean(served) if isinstance(served, str) else self._endpoint.model,
            written=written,
            tokens=tokens,
        )
