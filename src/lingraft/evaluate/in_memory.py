"""The harness's model interface over a model that is already in memory, with batches of our own.

The harness's class pads a fixed number of requests of one task to a batch and computes for all of them until the
longest answer is done. Here requests of all tasks share batches of a token budget, rows leave when they have ended
(`models.generation`), contexts are read once (`likelihood`), and answers are kept as they come (`answers`). Settings
beyond greedy search and plain sampling, such as beams, go the harness's own way.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.utils import normalize_gen_kwargs

from lingraft.data.chat_format import chat_format
from lingraft.data.chat_template import chat_template
from lingraft.data.control_tokens import TEXT_START, ControlTokens, without_marks
from lingraft.data.example import Message
from lingraft.data.special_tokens import special_tokens
from lingraft.errors import ModelError
from lingraft.evaluate.answers import AnswerLog, ItemCount, request_key, request_keys
from lingraft.evaluate.likelihood import Pair, Score, continuation_scores
from lingraft.evaluate.lm_eval_compat import longest_input, model_class, quiet
from lingraft.evaluate.task_runs import SEEDS
from lingraft.models.answering import Answering, Continue, Held, InThisProcess, OnDemand
from lingraft.models.engine import Engine, engine_for
from lingraft.models.generation import (
    Ending,
    Generated,
    Sampling,
    TokenPrompt,
    chat_ending,
    planned_batches,
)
from lingraft.models.same_model import check_same_model
from lingraft.models.server import ServerGenerator
from lingraft.models.server_engine import scores_likelihoods
from lingraft.models.token_ids import check_token_ids, embedding_rows, padding_id

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lingraft.data.example import Role

_OWN_SETTINGS = {"do_sample", "temperature", "top_p", "until", "max_gen_toks"}
_MOST_ROWS = 1024
LONGEST_ANSWER = 256  # the harness's, where a task's settings say nothing

OnAnswer = Callable[[str, str, str], None]
_FIRST = 3  # answers of a task that are shown while others are awaited


@dataclass(frozen=True, slots=True)
class Batching:
    """How requests are put together.

    Attributes:
        most_rows: Answers generated together; None: as many as the tokens allow.
        tokens: Of a batch, padding and what may be generated included.
        repeat: Number of the run of the same requests: each gives other neighbours and, where answers are drawn,
            other draws. 0: sorted by length.
        backend: `generate`: never by continuous batching.
    """

    most_rows: int | None
    tokens: int
    repeat: int = 0
    backend: str = "transformers"


def room_problem(
    settings: Mapping[str, Any], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> str | None:
    """Return why answers by these settings do not fit into the model beside a prompt, None where they do."""
    limit = normalize_gen_kwargs(settings, LONGEST_ANSWER)["max_gen_toks"]
    room = longest_input(model, tokenizer)
    if limit < room:
        return None
    return (
        f"its answers may have {limit} tokens, but prompt and answer together have room for {room} in this model; set "
        "its `max_new_tokens` (--max-new-tokens)."
    )


def needs_transformers(settings: Mapping[str, Any]) -> bool:
    """Return whether a task's settings are more than greedy search and plain sampling, such as beams."""
    wanted = normalize_gen_kwargs(settings, LONGEST_ANSWER)
    is_greedy_by_name = wanted["do_sample"] and float(wanted.get("temperature", 1.0)) <= 0
    return is_greedy_by_name or not set(wanted) <= _OWN_SETTINGS


class InMemoryModel(model_class()):  # type: ignore[misc]
    """The harness's own Hugging Face model, with its bars off, and batches, progress and a log of our own.

    Args:
        model: Evaluated as it is.
        tokenizer: The model's own.
        batching: See there.
        answers: Where answers are kept; what is in it is not asked again.
        count: Notified of every answer.
        chat: Whether prompts go through the chat template, which then writes all special tokens: the tokenizer
            adds none, as in training.
        answering: Who answers; None: the model itself, in this process. Else the model may be without weights.
        server: Generates, and scores where it is asked to, in place of `answering`; None: there is none.
        on_answer: Called with the name of the task, the prompt and the answer, of the first answers of each task that
            generates.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batching: Batching,
        answers: AnswerLog,
        count: ItemCount,
        *,
        chat: bool,
        answering: Answering | None = None,
        server: ServerGenerator | None = None,
        on_answer: OnAnswer | None = None,
    ) -> None:
        super().__init__(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=batching.most_rows or 8,  # for what goes the harness's own way
            backend="causal",
            add_bos_token=False if chat else None,
        )
        self._rows = embedding_rows(model)
        pad = padding_id(tokenizer, self._rows)
        if pad != tokenizer.pad_token_id:
            own: Any = copy.deepcopy(tokenizer)  # what goes the harness's own way pads by it
            own.pad_token = own.convert_ids_to_tokens(pad)
            self.tokenizer = own
        self._batching, self._answers, self._count = batching, answers, count
        self._answering = answering or InThisProcess(model, tokenizer)
        self._server, self._is_checked = server, False
        self._on_answer, self._shown = on_answer, Counter[str]()
        self._chat = chat_format(tokenizer) if chat else None
        self._control = ControlTokens(tokenizer, str(tokenizer.chat_template or ""))
        self.ended: dict[str, bool] = {}
        """Whether each answer was ended by the model itself or a stop text, by `request_key`; else it was cut off.

        Of several answers to the same request, the first."""
        self.truncated_prompts: set[str] = set()
        """Requests, by `request_key`, whose prompts did not fit into the model and lost their beginning."""
        self.spelled_prompts: set[str] = set()
        """Requests, by `request_key`, that spell control tokens of the model, which it reads as text."""

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return the prompt exactly as training renders it, with marks that `tok_encode` reads; see `ChatFormat`."""
        chat = self._chat or chat_format(self.tokenizer)
        turns = [Message(cast("Role", turn["role"]), turn["content"]) for turn in chat_history]
        if add_generation_prompt:
            return chat.prompt(turns)
        return chat.begun(turns[:-1], turns[-1].content)  # an answer whose first words the task gives

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **_: Any,
    ) -> list[int]:
        """Return the token ids of a text; see HFLM. What a task says is never a control token.

        Without a chat template a prompt may begin with the token that begins texts; all else of it is text.
        """
        if self._chat is not None:
            ids = self._chat.encode(string)
        else:
            marked = self._as_text(string)
            said = self._control.encode(marked)
            bare = list(super().tok_encode(string, add_special_tokens=False))
            if said == bare and TEXT_START not in marked:
                ids = list(super().tok_encode(string, add_special_tokens))
            else:  # between what the tokenizer puts around any text
                is_begun = add_special_tokens is None and marked.startswith(self._begin_token or "\0")
                around = list(super().tok_encode("a", False if is_begun else add_special_tokens))
                alone = list(super().tok_encode("a", add_special_tokens=False))
                start = next(at for at in range(len(around)) if around[at : at + len(alone)] == alone)
                ids = [*around[:start], *said, *around[start + len(alone) :]]
        return ids[-left_truncate_len:] if left_truncate_len else ids

    @property
    def _begin_token(self) -> str | None:
        """As the harness looks for it."""
        return None if self.prefix_token_id is None else str(self.tokenizer.decode(self.prefix_token_id))

    def _as_text(self, string: str) -> str:
        """Return a text that went through no chat template with marks, but for the token that it begins with."""
        begin = self._begin_token or ""
        begin = begin if string.startswith(begin) else ""
        return begin + self._control.protected(string[len(begin) :])

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Score whole texts; see HFLM. They go through no chat template."""
        if self._chat is not None:
            asked = [copy.copy(one) for one in requests]
            for one in asked:
                one.arguments = (self._chat.as_text(one.args[0]),)
            requests = asked
        return list(super().loglikelihood_rolling(requests, disable_tqdm))

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:  # noqa: ARG002
        """Answer; see HFLM."""
        keys = request_keys(requests, self._batching.repeat)
        groups = self._grouped(requests, keys)
        self._begin(requests, keys)
        missing = {place for place, key in enumerate(keys) if key not in self._answers}
        if missing & {place for _, prompts in groups for place in prompts}:
            self._generate(requests, keys, groups)
        others = [place for place in sorted(missing) if keys[place] not in self._answers]
        if others:
            self._generate_as_harness(requests, keys, others)
        for request, key in zip(requests, keys, strict=True):
            self.ended.setdefault(request_key(request.args), self._answers[key]["ended"])
        said = [str(self._answers[key]["text"]) for key in keys]
        return said if self._chat is None else [self._chat.answer_in(one) for one in said]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[Score]:  # noqa: ARG002
        """Score; see HFLM."""
        keys = request_keys(requests, 0)
        self._begin(requests, keys)
        pairs = [self.pair(*request.args) for request in requests]
        for request, pair in zip(requests, pairs, strict=True):
            self._check((*pair.context, *pair.continuation), request)
        self.truncated_prompts |= {
            request_key(request.args)
            for request, pair in zip(requests, pairs, strict=True)
            if len(pair.context) + len(pair.continuation) - 1 > self.max_length  # the last token is not read
        }
        for scores in self._scored(pairs, lambda place: keys[place] in self._answers):
            self._keep(requests, keys, {place: list(score) for place, score in scores.items()})
        return [tuple(self._answers[key]) for key in keys]

    def score_tokens(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Score]:
        """Score windows of a text, for HFLM's perplexities."""
        found: dict[int, Score] = {}
        for scores in self._scored([Pair(tuple(context), tuple(said)) for context, said in pairs]):
            found |= scores
        return [found[place] for place in range(len(pairs))]

    def _scored(self, pairs: Sequence[Pair], is_done: Callable[[int], bool] = lambda _: False) -> Any:
        if self._server is not None and scores_likelihoods(self._server.choice):
            return self._scored_by(self._server, pairs, is_done)
        if self._server is not None:
            self._server.stop()  # the model needs the memory
        return continuation_scores(
            self._answering,
            pairs,
            max_length=self.max_length,
            tokens_per_batch=self._batching.tokens,
            is_done=is_done,
        )

    def _scored_by(
        self, server: ServerGenerator, pairs: Sequence[Pair], is_done: Callable[[int], bool]
    ) -> Iterator[dict[int, Score]]:
        places = [place for place in range(len(pairs)) if not is_done(place)]
        if not places:
            return
        with self._beside(server, [pairs[place].context for place in places]):
            asked = [(pairs[place].context, pairs[place].continuation) for place in places]
            for number, score in server.scores(asked, self.max_length):
                yield {places[number]: score}

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",  # noqa: ARG002 - the harness's default
        left_truncate_len: int | None = None,
        truncation: bool = False,  # noqa: ARG002
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return token ids and mask of several texts, padded on the left; see HFLM and `tok_encode`."""
        rows = [self.tok_encode(text, left_truncate_len=left_truncate_len) for text in strings]
        width, pad = max(map(len, rows)), self.tokenizer.pad_token_id or 0
        ids = [[pad] * (width - len(row)) + row for row in rows]
        mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
        return torch.tensor(ids), torch.tensor(mask)

    def pair(self, context: str, continuation: str) -> Pair:
        """Return the tokens of a context and a continuation; the beginning token stands for an empty context."""
        if self._chat is not None:
            continuation = self._chat.continuation(context, continuation)
        if context:
            return Pair(*map(tuple, self.encode_pair(context, continuation)))
        ids = self.tok_encode(continuation, add_special_tokens=False)
        start = 1 if ids[0] == self.prefix_token_id else 0
        return Pair((self.prefix_token_id,), tuple(ids[start:]))

    def _check(self, ids: Sequence[int], request: Instance) -> None:
        """Refuse tokens that the model does not know, before anything is answered."""
        where = f"a prompt of the task {request.task_name}" if request.task_name else "a prompt"
        check_token_ids(ids, self._rows, self.tokenizer, where)
        first, *others = (one for one in request.args if isinstance(one, str))
        marked = [first if self._chat else self._as_text(first), *map(self._control.protected, others)]
        if any(TEXT_START in one for one in marked):
            self.spelled_prompts.add(request_key(request.args))

    def _begin(self, requests: Sequence[Instance], keys: Sequence[str]) -> None:
        self._count.expect(requests)
        for request, key in zip(requests, keys, strict=True):
            if key in self._answers:
                self._show(request, self._answers[key])
                self._count.answered(request)

    def _keep(self, requests: Sequence[Instance], keys: Sequence[str], found: Mapping[int, Any]) -> None:
        new = [place for place in sorted(found) if keys[place] not in self._answers]
        self._answers.append({keys[place]: found[place] for place in new})
        for place in new:
            self._show(requests[place], found[place])
            self._count.answered(requests[place])

    def _show(self, request: Instance, answer: Any) -> None:
        """Report an answer, where it is among the first that its task generates."""
        task = str(request.task_name)
        if self._on_answer is None or not isinstance(answer, Mapping) or self._shown[task] >= _FIRST:
            return
        self._shown[task] += 1
        said = str(answer["text"])
        said = said if self._chat is None else self._chat.answer_in(said)
        self._on_answer(task, without_marks(request.args[0])[0].text, said)

    def _grouped(
        self, requests: Sequence[Instance], keys: Sequence[str]
    ) -> list[tuple[tuple[Sampling, Ending], dict[int, TokenPrompt]]]:
        """Return what can share batches, by place; requests with settings that are not ours are in no group.

        Prompts that lose their beginning are noted, also those that go the harness's own way, which cuts alike.
        """
        groups: dict[tuple[Sampling, Ending], dict[int, TokenPrompt]] = {}
        for place, request in enumerate(requests):
            text, settings = request.args
            wanted = normalize_gen_kwargs(settings, self.max_gen_toks)
            limit = wanted["max_gen_toks"]
            ids, room = tuple(self.tok_encode(text)), self.max_length - limit
            self._check(ids, request)
            if len(ids) > room:
                self.truncated_prompts.add(request_key(request.args))
            temperature = float(wanted.get("temperature", 1.0)) if wanted["do_sample"] else 0.0
            if not needs_transformers(settings):
                sampling = (
                    Sampling(temperature, float(wanted.get("top_p", 1.0))) if temperature else Sampling()
                )
                prompt = TokenPrompt(ids[-room:], int(keys[place][:15], 16), limit)
                groups.setdefault((sampling, self._ending(wanted["until"])), {})[place] = prompt
        return list(groups.items())

    def _ending(self, until: Sequence[str]) -> Ending:
        """Return what ends an answer: the tokens that end any of the model's, and the task's texts."""
        special = {self.tokenizer.convert_ids_to_tokens(one): one for one in special_tokens(self.tokenizer)}
        named = self.model.generation_config.eos_token_id
        own = (
            chat_ending(named, self.tokenizer)
            if self._chat is not None
            else Ending(frozenset(named if isinstance(named, list) else [] if named is None else [named]))
        )
        found = {*own.tokens, self.eot_token_id, *(special[text] for text in until if text in special)}
        tokens = frozenset(int(token) for token in found if token is not None)
        if not tokens:
            raise ModelError("the model names no end token; set `eos_token` in its tokenizer_config.json.")
        texts = tuple(sorted({text for text in until if text and text not in special}))
        return Ending(tokens, texts, own.thoughts)

    def _generate(
        self,
        requests: Sequence[Instance],
        keys: Sequence[str],
        groups: Sequence[tuple[tuple[Sampling, Ending], dict[int, TokenPrompt]]],
    ) -> None:
        if self._server is not None:
            self._generate_by(self._server, requests, keys, groups)
            return
        most, tokens = self._batching.most_rows or _MOST_ROWS, self._batching.tokens
        name = engine_for(self._answering.model.device, self._batching.backend)
        engine = Engine(name, most, own_defaults=True, tokens_per_batch=tokens)
        batches, places = [], []  # of all groups, so that no worker waits for the last batch of one
        for (sampling, ending), prompts in groups:
            own, asked = list(prompts), list(prompts.values())
            for rows in planned_batches(
                asked,
                sampling,
                most,
                lambda row, own=own: keys[own[row]] in self._answers,  # type: ignore[misc]
                # By continuous batching rows begin as others end: what is asked for need not fit at once.
                tokens_per_batch=None if name == "continuous" and not sampling.temperature else tokens,
                shuffle=self._batching.repeat or None,
            ):
                batches.append(Continue(engine, tuple(asked[row] for row in rows), sampling, ending))
                places.append([own[row] for row in rows])
        for number, answers in self._answering.answers(batches):
            found = zip(places[number], answers, strict=True)
            self._keep(requests, keys, {place: asdict(one) for place, one in found})

    def _generate_by(
        self,
        server: ServerGenerator,
        requests: Sequence[Instance],
        keys: Sequence[str],
        groups: Sequence[tuple[tuple[Sampling, Ending], dict[int, TokenPrompt]]],
    ) -> None:
        with self._beside(server, [one.ids for _, prompts in groups for one in prompts.values()]):
            for (sampling, ending), prompts in groups:
                places, asked = list(prompts), list(prompts.values())
                missing = planned_batches(
                    asked,
                    sampling,
                    1,  # a row is asked for by itself
                    lambda row, places=places: keys[places[row]] in self._answers,  # type: ignore[misc]
                    shuffle=self._batching.repeat or None,
                )
                rows = [row for (row,) in missing]
                for number, one in server.continue_each([asked[row] for row in rows], sampling, ending):
                    self._keep(requests, keys, {places[rows[number]]: asdict(one)})

    @contextmanager
    def _beside(self, server: ServerGenerator, prompts: Sequence[Sequence[int]]) -> Iterator[None]:
        """Leave the memory to a server that is started, and check that another one has the model."""
        if not server.is_ours and not self._is_checked:
            check_same_model(server, self._answering, prompts)
            self._is_checked = True
        if server.is_ours and isinstance(self._answering, OnDemand):
            self._answering.give_up()
        yield

    def _generate_as_harness(
        self, requests: Sequence[Instance], keys: Sequence[str], places: Sequence[int]
    ) -> None:
        asked = tuple(tuple(self._ended(requests[place]).args) for place in places)
        batch = AsHarness(asked, self._batching, chat=self._chat is not None)
        ((_, answers),) = self._answering.answers([batch])
        for place, text in zip(places, answers, strict=True):
            tokens = len(self.tok_encode(text, add_special_tokens=False))
            limit = normalize_gen_kwargs(requests[place].args[1], self.max_gen_toks)["max_gen_toks"]
            self._keep(requests, keys, {place: asdict(Generated(text, tokens, ended=tokens < limit))})

    def _ended(self, request: Instance) -> Instance:
        """Return a request whose stop texts hold what closes an answer, where the harness knows the end token alone."""
        if self._chat is None:
            return request
        text, settings = request.args
        closing = self.tokenizer.convert_ids_to_tokens(sorted(self._chat.endings - {self.eot_token_id}))
        stops = [*normalize_gen_kwargs(settings)["until"], *closing]
        changed = copy.copy(request)
        changed.arguments = (text, {**settings, "until": stops})
        return changed


@dataclass(frozen=True, slots=True)
class AsHarness:
    """Requests that go the harness's own way, as prompts with settings: a `Batch`, which is not divided."""

    requests: tuple[tuple[str, Mapping[str, Any]], ...]
    batching: Batching
    chat: bool

    def __call__(self, held: Held) -> list[str]:
        """Return the answers."""
        template, is_fallback = chat_template(held.tokenizer)
        if is_fallback:  # as in the process that asks
            held.tokenizer.chat_template = template
        with quiet():
            lm = InMemoryModel(
                held.model,
                held.tokenizer,
                self.batching,
                AnswerLog(),
                ItemCount(len(self.requests), None),
                chat=self.chat,
            )
            torch.manual_seed(SEEDS["torch"])  # as the harness does
            asked = [Instance("generate_until", {}, one, 0) for one in self.requests]
            said: list[str] = super(InMemoryModel, lm).generate_until(asked, disable_tqdm=True)
        return said
