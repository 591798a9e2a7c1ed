"""OpenAI's completions and lists of models, as servers that generate speak them: requests, and replies that are read.

Nothing heavy is imported before there is something to ask.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from lingraft import endpoint as service_endpoint
from lingraft.config.schema import ServerChoice
from lingraft.endpoint import Connection, Retry, Service, key_of
from lingraft.errors import EvaluationError

SERVER = Service(
    "server", "/completions", "http://localhost:8000/v1", ("LINGRAFT_SERVER_KEY", "OPENAI_API_KEY")
)
_MOST_BODY_BYTES = 2**28
NOT_TAKEN = (400, 404, 415, 422, 501)
"""Statuses that say a form of request is not known."""
OTHER_FORM = (AttributeError, LookupError, TypeError, ValueError, RecursionError)
"""What reading a reply of another form raises."""
_TOKEN_IDS = 2**31  # larger numbers are none
_NO_LIST = (404, 405, 500, 501)
_AT_ONCE_SECONDS = 30.0  # in which a server says what it is
SCORING: dict[str, Any] = {"max_tokens": 1, "temperature": 0.0, "echo": True, "logprobs": 1}
"""Options of a request whose prompt is scored."""


class ServerEndpoint(service_endpoint.Endpoint):
    """A server's endpoint."""

    __slots__ = ()
    service: ClassVar[Service] = SERVER

    @property
    def uses_proxy(self) -> bool:
        """Not for a server of this machine, such as one that was started."""
        import httpx

        return httpx.URL(self.url).host not in ("localhost", "127.0.0.1", "::1")


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


def endpoint_of(choice: ServerChoice, url: str) -> ServerEndpoint:
    """Return the endpoint of a server whose model is not known yet, for what it answers at once."""
    return ServerEndpoint(url, choice.model or "", min(choice.timeout, _AT_ONCE_SECONDS), choice.attempts)


def connection_to(endpoint: ServerEndpoint) -> Connection:
    """Return a connection, with the key of the environment."""
    return Connection(endpoint, key_of(SERVER), most_bytes=_MOST_BODY_BYTES, too_much="answer")


def models_at(choice: ServerChoice, url: str) -> list[Listed]:
    """Return the models that a server lists; none, where it has no list.

    Raises:
        EvaluationError: It cannot be reached, does not take the key, is not ready in all its `attempts`, or answers
            with what is no list of models.
    """
    connection = connection_to(endpoint_of(choice, url))
    try:
        return connection.until_answered(lambda: ask_for_models(connection))
    finally:
        connection.close()


def ask_for_models(connection: Connection) -> list[Listed] | Retry:
    """Return the models that a server lists (none, where it has no list), or why it is to be asked again.

    Raises:
        EvaluationError: It cannot be reached, does not take the key, or answers with what is no list of models.
    """
    import openai

    try:
        response = connection.exchange(
            lambda: connection.client.models.with_raw_response.list(extra_headers=connection.headers)
        )
    except openai.APIStatusError as error:
        if error.status_code in _NO_LIST:
            return []
        return connection.failure(error)
    if isinstance(response, Retry):
        return response
    body = response.text
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
    except OTHER_FORM:
        raise EvaluationError(
            f"{connection.place} lists its models as {connection.clean(body)!r}, which is no list."
        ) from None


def completion(connection: Connection, endpoint: ServerEndpoint, prompt: Any, **options: Any) -> Any:
    """Return the raw response to a request for a completion."""
    return connection.client.completions.with_raw_response.create(
        model=endpoint.model, prompt=prompt, extra_headers=connection.headers, **options
    )


def only_choice(body: str, connection: Connection) -> tuple[dict[str, Any], dict[str, Any]]:
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


def token_ids_of(choice: Mapping[str, Any]) -> list[int] | None:
    """Return the tokens that a server says it wrote; None: it says none."""
    found = choice.get("token_ids")
    if isinstance(found, list) and all(type(one) is int and 0 <= one < _TOKEN_IDS for one in found):
        return found
    return None


def log_probabilities(
    body: str, tokens: int, connection: Connection
) -> tuple[list[float | None], list[float]]:
    """Return of each token of a prompt its log-probability (nats; None of the first), and the highest in its place.

    Raises:
        EvaluationError: The reply has them not, or of another number of tokens.
    """
    choice, _ = only_choice(body, connection)
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
    except OTHER_FORM:
        raise EvaluationError(
            f"{connection.place} answers with log-probabilities that are no numbers: {connection.clean(body)!r}."
        ) from None
    if any(value is None or math.isnan(value) for value in values[1:]):
        raise EvaluationError(f"{connection.place} answers without the log-probability of some token.")
    return values, highest
