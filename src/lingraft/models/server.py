"""Generation and likelihoods by a server that speaks OpenAI's completions, such as vLLM's or SGLang's.

The server is the user's (`server`), or is started for each model and ended after it (`command`). Each prompt is a
request of its own, with its own seed and limit, so the server batches as it likes and an answer that came is kept.
Prompts are sent as token ids where the server takes them, else as text with its special tokens; what a server takes is
found out once, before the first prompt. Nothing heavy is imported before there is something to ask.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lingraft.config.schema import ServerChoice
from lingraft.endpoint import Connection, Retry
from lingraft.errors import EvaluationError
from lingraft.models.completions import (
    NOT_TAKEN,
    SCORING,
    Listed,
    ServerEndpoint,
    completion,
    connection_to,
    endpoint_of,
    log_probabilities,
    models_at,
    only_choice,
    token_ids_of,
)
from lingraft.models.started_server import StartedServer

if TYPE_CHECKING:
    from types import TracebackType

    from openai import APIStatusError
    from transformers import PreTrainedTokenizerBase

    from lingraft.models.generation import Ending, Generated, Sampling, TokenPrompt

_PROBE = "The capital of France is"
_MOST_STOPS = 4  # OpenAI's
_SEEDS = 2**31  # servers keep seeds in 32 bits, or in a double
# By which another library may read a text as fewer tokens: so many, or one in so many.
_SLACK_TOKENS, _SLACK_SHARE = 8, 50
_GREEDY_NATS = 1e-5  # by which another token may be likelier than a greedy one, in a reply's decimals
Answer = TypeVar("Answer")
Asked = TypeVar("Asked")


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

    def check_room(self, tokens: int) -> None:
        """Refuse so many tokens of a prompt and its answer where the server says that it reads fewer.

        Raises:
            EvaluationError: It does.
        """
        if self.longest is not None and tokens > self.longest:
            raise EvaluationError(
                f"{self.endpoint.place} reads {self.longest} tokens, and the longest prompt with its answer has "
                f"{tokens}: start it with that many (vLLM: --max-model-len {tokens}; SGLang: --context-length "
                f"{tokens}), or allow shorter answers."
            )


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
        self._started: StartedServer | None = None
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
        started, self._started = self._started, None
        if started is not None:
            started.stop()

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
        session.check_room(max((len(one.ids) + one.limit(sampling) for one in prompts), default=0))
        connection = connection_to(session.endpoint)
        options = self._options(session, sampling, ending)

        def ask(prompt: TokenPrompt) -> Generated:
            limit = prompt.limit(sampling)
            written, count = self._written(prompt.ids, session.takes)
            body = self._sent(
                connection, session, written, **options, max_tokens=limit, seed=prompt.seed % _SEEDS
            )
            choice, usage = only_choice(body, connection)
            read = usage.get("prompt_tokens")
            if type(read) is int and 0 < read < count:
                raise EvaluationError(
                    f"{session.endpoint.place} read {read} of the {count} tokens of a prompt, and answered without "
                    "the others: start it with a longer context (vLLM: --max-model-len; llama.cpp: --ctx-size)."
                )
            return self._said(choice, usage, limit, ending, connection)

        yield from self._each(prompts, ask, connection)

    def scores(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], max_length: int
    ) -> Iterator[tuple[int, tuple[float, bool]]]:
        """Yield each pair's place, the log-probability of its continuation (nats), and whether that is greedy.

        What is longer than `max_length` loses its beginning.

        Raises:
            EvaluationError: The server cannot be used, offers no such thing, or reads less than the model.
        """
        session = self._ready()
        if session.longest is not None and session.longest < max_length:
            longest = max((len(context) + len(said) for context, said in pairs), default=0)
            session.check_room(min(longest + 1, max_length))
        connection = connection_to(session.endpoint)
        most = max_length - 1  # one token is always generated

        def ask(pair: tuple[Sequence[int], Sequence[int]]) -> tuple[float, bool]:
            ids = [*pair[0], *pair[1]][-most:]
            count = min(len(pair[1]), len(ids) - 1)
            body = self._sent(connection, session, ids, **SCORING)
            own, best = log_probabilities(body, len(ids), connection)
            scored = list(zip(own[-count:], best[-count:], strict=True))
            is_greedy = all(high <= (one or 0.0) + _GREEDY_NATS for one, high in scored)
            return math.fsum(one or 0.0 for one, _ in scored), is_greedy

        yield from self._each(pairs, ask, connection)

    def first_words(
        self, prompts: Sequence[Sequence[int]], tokens: int
    ) -> list[tuple[list[int] | None, str]]:
        """Return what the server says after each prompt, greedily: its tokens (None: it has none), and text."""
        session = self._ready()
        connection = connection_to(session.endpoint)
        options = {"max_tokens": tokens, "temperature": 0.0, **self._extras(session, ())}
        said = []
        for ids in prompts:
            written, _ = self._written(ids, session.takes)
            choice, _ = only_choice(self._sent(connection, session, written, **options), connection)
            said.append((token_ids_of(choice), str(choice["text"])))
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

    def _sent(
        self, connection: Connection, session: _Session, prompt: str | list[int], **options: Any
    ) -> str:
        """Return the body of the reply to a prompt."""
        import openai

        def send() -> str | Retry:
            try:
                found = connection.exchange(
                    lambda: completion(connection, session.endpoint, prompt, **options)
                )
            except openai.APIStatusError as error:
                return connection.failure(error)
            return found if isinstance(found, Retry) else str(found.text)

        try:
            return connection.until_answered(send)
        except EvaluationError as error:
            if self._started is not None and self._started.has_ended:
                raise EvaluationError(f"{error} The server has ended. {self._started.last_words}") from None
            raise

    def _written(self, ids: Sequence[int], takes: _Takes) -> tuple[str | list[int], int]:
        """Return a prompt as the server takes it, and how many tokens it must read at least.

        A text is one that is read as the prompt's tokens, as far as that can be had.
        """
        if takes.ids:
            return list(ids), len(ids)
        own = list(ids)
        if takes.added and own[:1] == [self._tokenizer.bos_token_id]:  # the server adds it
            own = own[1:]
        text = str(self._tokenizer.decode(own, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        read = self._tokenizer.encode(text, add_special_tokens=False)
        if not self._reads_otherwise and read != own:
            self._reads_otherwise = True
            self._noted(
                "the server takes prompts as text, and some read as other tokens than training's, such as "
                f"{' '.join(text.split())[-60:]!r}: take a server that reads token ids (vLLM, SGLang)."
            )
        return text, len(read) - max(_SLACK_TOKENS, len(read) // _SLACK_SHARE)

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
        if not session.takes.extras:  # an end token as its text; a server that writes none cannot end there
            stops += [str(self._tokenizer.convert_ids_to_tokens(one)) for one in sorted(ending.tokens)]
        if stops:  # what a server does not take is cut off here
            options["stop"] = stops if session.takes.extras else stops[:_MOST_STOPS]
        return options | self._extras(session, sorted(ending.tokens))

    def _said(
        self,
        choice: Mapping[str, Any],
        usage: Mapping[str, Any],
        limit: int,
        ending: Ending,
        connection: Connection,
    ) -> Generated:
        """Return the continuation in a reply's choice."""
        from lingraft.models.generation import finished

        is_ended = choice.get("finish_reason") == "stop"
        ids = token_ids_of(choice)
        if ids is not None:
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
            if self.choice.server is None:
                self._started = StartedServer(self.choice, self.folder)
                self._started.wait_until_ready()
            url = self.choice.server or self._started.url  # type: ignore[union-attr]
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
        connection = connection_to(endpoint)
        try:
            for takes in (_Takes(True, True), _Takes(True, False), _Takes(False, True), _Takes(False, False)):
                session = _Session(endpoint, takes, None)
                prompt: Any = ids if takes.ids else _PROBE
                options = self._extras(session, ())

                def send(prompt: Any = prompt, options: dict[str, Any] = options) -> Any:
                    try:
                        return connection.exchange(
                            lambda: completion(
                                connection, endpoint, prompt, max_tokens=1, temperature=0.0, **options
                            )
                        )
                    except openai.APIStatusError as error:
                        if error.status_code in NOT_TAKEN:
                            return error
                        return connection.failure(error)

                found = connection.until_answered(send)
                if isinstance(found, openai.APIStatusError):
                    refused = found
                    continue
                _, usage = only_choice(found.text, connection)
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
