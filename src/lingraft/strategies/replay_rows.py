"""Rows for generative replay: prompts are drawn or sampled, a model answers them, what is degenerate is dropped.

Rows are made in chunks whose borders depend on nothing but the row numbers, and every row draws by its own seed. So
fewer rows are the first of more, an interrupted run ends with the rows of an undisturbed one, and cells that replay
different shares share the answers. They are kept in `<cache>/replay-<fingerprint>/`.
"""

from __future__ import annotations

import gc
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from lingraft.claims import CLAIMS, claim_when_free
from lingraft.config.schema import Backend
from lingraft.data.chat_format import CHAT_IDENTITY, chat_format
from lingraft.data.degeneration import degeneration
from lingraft.data.example import UNDETERMINED_LANGUAGE, Example, Message, Origin
from lingraft.errors import DataError
from lingraft.models.answering import Answering, Continue, InThisProcess
from lingraft.models.context_length import at_most, context_length
from lingraft.models.empty_turn import empty_user_turn
from lingraft.models.engine import Engine, ModelFiles, engine_for
from lingraft.models.generation import (
    BATCH_SIZE,
    Ending,
    Sampling,
    TokenPrompt,
    answer_ending,
    planned_batches,
)
from lingraft.models.generation_log import GenerationLog
from lingraft.models.loading import load_tokenizer, model_content_hash
from lingraft.models.same_model import check_same_model
from lingraft.models.server import ServerGenerator
from lingraft.models.server_engine import engine_of
from lingraft.models.workers import answered_by
from lingraft.records import canonical_json, fingerprint_of, remove_temporaries, write_json_atomically

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lingraft.models.compute import Compute

SELF = "self"
PROMPT_SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=256)
"""How prompts are sampled from an empty user turn: from the model's own distribution, as Magpie does."""

_LIBRARIES = ("lingraft", "torch", "transformers", "tokenizers")
_LARGEST_CHUNK = 256
# A model that never ends an answer must not go through a million prompts.
_TRIES_PER_ROW, _TRIES_AT_LEAST = 4, 64


@dataclass(frozen=True, slots=True)
class ReplaySettings:
    """How rows are generated."""

    sampling: Sampling  # of the answers
    seed: int  # of all draws
    compute: Compute  # what the model answers on, and in which type its weights are held
    backend: Backend = "transformers"  # what generates
    batch_size: int = BATCH_SIZE  # rows generated together by transformers; a server chooses its own
    trust_remote_code: bool = False  # run Python code that the model brings along
    workers: int = 1  # processes that answer; rows do not depend on it

    @property
    def engine(self) -> str:
        """What generates, as records and fingerprints have it."""
        return "transformers" if isinstance(self.backend, str) else engine_of(self.backend)


@dataclass(frozen=True, slots=True)
class ReplayRows:
    """Generated rows, in the order in which they were made."""

    # The prompts with the model's answers; `origin` says of which model and with which settings.
    examples: tuple[Example, ...]
    dropped: dict[str, int]  # prompts and answers before the last row that were not taken, by reason
    origin: Origin  # the origin of every row


def make_replay(
    folder: Path,
    wanted: int,
    settings: ReplaySettings,
    cache: Path,
    *,
    source: str = SELF,
    pool: Sequence[Example] | None = None,
    name: str | None = None,
    answered: bool = True,
    on_progress: Callable[[int, int], None] | None = None,
    noted: Callable[[str], None] = lambda _: None,
) -> ReplayRows:
    """Let a model answer prompts until there are `wanted` rows, or go on with what an earlier call left in `cache`.

    Reasons for dropping are `empty`, `looping` and `truncated` (see `data.degeneration`) of answers, the same with
    `prompt_` of sampled prompts, `repeated` (a prompt that was there before), `refused` (by the chat template),
    `too_long` (prompt and answer may exceed the model's context) and `tools` (calls are not generated). There are
    fewer rows than wanted where the pool is at its end, or after 4 * wanted + 64 prompts.

    Args:
        folder: Of the model that answers.
        wanted: Rows.
        settings: How they are generated.
        cache: Where the answers are kept.
        source: What the prompts are, for the provenance.
        pool: Rows whose last answer is made anew, in this order; None: prompts are sampled from the model itself,
            from an empty user turn.
        name: The model's name for the provenance; None: the hash of its weights.
        answered: Whether the prompts are answered; else their last turn stays as it is, and is dropped for no reason.
        on_progress: Called with the rows that are done and wanted.
        noted: Called with a sentence where a log was damaged, or another process generates the same rows.

    Raises:
        ModelError: The model cannot be loaded, or its chat template has no user turn to sample prompts from.
    """
    weights = model_content_hash(folder)
    provenance: dict[str, str | int | float | bool] = {
        "prompts": source,
        "temperature": settings.sampling.temperature,
        "top_p": settings.sampling.top_p,
        "max_new_tokens": settings.sampling.max_new_tokens,
        "seed": settings.seed,
        "backend": settings.engine,
        "precision": settings.compute.inference_precision,
    }
    if source == SELF:
        provenance |= {
            "prompt_temperature": PROMPT_SAMPLING.temperature,
            "prompt_top_p": PROMPT_SAMPLING.top_p,
            "prompt_max_new_tokens": PROMPT_SAMPLING.max_new_tokens,
        }
    origin = Origin("generative_replay", name or f"sha256:{weights[:16]}", provenance)
    pool_hash = hashlib.sha256()
    for example in pool or ():
        pool_hash.update(f"{_turns(example)}\n".encode())
    decides = {
        "weights": weights,
        "settings": origin.settings,
        "batch_size": settings.batch_size,
        "pool": None if pool is None else pool_hash.hexdigest(),
        "chat": CHAT_IDENTITY,
        "libraries": {library: version(library) for library in _LIBRARIES},
    }
    work = cache / f"replay-{fingerprint_of(decides)}"
    work.mkdir(parents=True, exist_ok=True)
    # Several stages may want the same rows: those that come later wait, and read them.
    with claim_when_free(cache / CLAIMS / work.name, "the log of generated rows", noted) as held:
        remove_temporaries(work)
        write_json_atomically(work / "settings.json", decides)
        logs = GenerationLog(work / "prompts.jsonl", held), GenerationLog(work / "answers.jsonl", held)
        for log in logs:
            if log.damage is not None:
                noted(log.damage)
        with _Model(folder, settings, noted) as model:
            prompts = _Sampled(model, logs[0]) if pool is None else _Given(pool)
            answers = _Answers(model, logs[1]) if answered else _Unanswered(model, logs[1])
            made = _take(wanted, prompts, answers, origin, on_progress)
    del model, prompts, answers
    gc.collect()  # the model: training is about to load another
    return made


def _take(
    wanted: int,
    prompts: _Given | _Sampled,
    answers: _Answers,
    origin: Origin,
    on_progress: Callable[[int, int], None] | None,
) -> ReplayRows:
    """Take the first `wanted` rows that are fit to train on; what comes after the last one is not counted."""
    taken: list[Example] = []
    dropped: Counter[str] = Counter()
    seen: set[bytes] = set()
    most = _TRIES_PER_ROW * wanted + _TRIES_AT_LEAST
    chunks = _chunks(prompts.total, answers.unit)
    while len(taken) < wanted and (needed := _needed(chunks, wanted - len(taken), most)):
        asked: list[dict[int, Example | str]] = []  # by chunk and number a prompt, or why it is not taken
        for (start, end), found in zip(needed, prompts.of(needed), strict=True):
            chunk: dict[int, Example | str] = {}
            for number, prompt in zip(range(start, end), found, strict=True):
                chunk[number] = prompt
                if isinstance(prompt, Example):
                    key = hashlib.sha256(_turns(prompt).encode()).digest()
                    if key in seen:
                        chunk[number] = "repeated"
                    seen.add(key)
            asked.append(chunk)

        def report_part(answered: int, before: int = len(taken), rows: int = sum(map(len, asked))) -> None:
            # As if all that is missing came from these chunks.
            if on_progress is not None:
                on_progress(before + int((wanted - before) / (rows + 1) * answered), wanted)

        replies = answers.to(asked, report_part)
        for number, prompt in (item for chunk in asked for item in chunk.items()):
            if len(taken) == wanted:
                break
            reply = replies[number] if isinstance(prompt, Example) else _Reply(reason=prompt)
            if isinstance(prompt, str) or reply.reason is not None:
                dropped[str(reply.reason)] += 1
            else:
                turns = (*prompt.messages[:-1], Message("assistant", reply.text))
                taken.append(replace(prompt, messages=turns, origin=origin))
        if on_progress is not None:
            on_progress(len(taken), wanted)
    return ReplayRows(tuple(taken), dict(dropped), origin)


def _needed(chunks: Iterator[tuple[int, int]], missing: int, most: int) -> list[tuple[int, int]]:
    """Take the next chunks that are asked for certain: a row is at most one of those that are missing.

    Their batches are answered together, so that all processes have work.
    """
    found: list[tuple[int, int]] = []
    while not found or found[-1][1] - found[0][0] < missing:
        start, end = next(chunks, (most, most))
        if start >= most:
            break
        found.append((start, end))
    return found


def _chunks(total: int | None, unit: int) -> Iterator[tuple[int, int]]:
    """Yield the borders of chunks of rows: a quarter of what is before, but at least `unit`, at most 256 rows.

    Large ones are answered sooner, because rows of like lengths stand together; small ones are less beyond what is
    wanted.
    """
    start = 0
    while total is None or start < total:
        size = max(unit, min(start // 4, _LARGEST_CHUNK) // unit * unit)
        end = start + size if total is None else min(start + size, total)
        yield start, end
        start = end


def _turns(example: Example) -> str:
    """Return what is said before the answer, as text that differs where the turns differ."""
    turns = [[one.role, one.content, one.details] for one in example.messages[:-1]]
    return canonical_json([turns, example.tools, *([example.fold_system] if example.fold_system else [])])


def _seed(settings: ReplaySettings, purpose: str, number: int) -> int:
    """Return the seed of a row's draws, below 2**60."""
    return int(fingerprint_of([settings.seed, purpose, number])[:15], 16)


class _Model:
    """The model that answers; loaded when there is something to generate, and gone with the context."""

    def __init__(self, folder: Path, settings: ReplaySettings, noted: Callable[[str], None]) -> None:
        self.settings = settings
        self._folder, self._trust, self._noted = folder, settings.trust_remote_code, noted
        self._is_checked = False
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(folder, trust_remote_code=self._trust)
        self.ending = answer_ending(folder, self.tokenizer)
        self.context_length = context_length(folder, trust_remote_code=self._trust)
        self._open = ExitStack()

    def __enter__(self) -> _Model:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @property
    def batch_size(self) -> int:
        """Rows of a batch."""
        settings = self.settings
        return settings.batch_size if isinstance(settings.backend, str) else ServerGenerator.batch_size

    @cached_property
    def _server(self) -> ServerGenerator | None:
        backend = self.settings.backend
        if isinstance(backend, str):
            return None
        return self._open.enter_context(
            ServerGenerator(backend, self._folder, self.tokenizer, noted=self._noted)
        )

    @cached_property
    def _answering(self) -> Answering:
        compute = self.settings.compute
        files = ModelFiles(self._folder, compute.held, self._trust)
        return self._open.enter_context(
            answered_by(self.settings.workers, files, compute.device, self._noted)
        )

    def continue_into(
        self,
        log: GenerationLog,
        chunks: Sequence[Mapping[int, TokenPrompt]],
        sampling: Sampling,
        ending: Ending,
        on_batch: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Continue the prompts whose numbers are missing in the log; report how many of them it has.

        A batch has prompts of one chunk.
        """
        numbers: list[list[int]] = []  # of each batch
        batches: list[Continue] = []
        name = engine_for(self.settings.compute.device, str(self.settings.backend))
        # By continuous batching a chunk is a batch: rows begin as others end.
        is_continuous = name == "continuous" and not sampling.temperature
        engine = Engine(name, _LARGEST_CHUNK if is_continuous else self.batch_size)
        for chunk in chunks:
            own, prompts = list(chunk), list(chunk.values())
            for rows in planned_batches(
                prompts,
                sampling,
                engine.batch_size,
                lambda row, own=own: own[row] in log,  # type: ignore[misc]
            ):
                numbers.append([own[row] for row in rows])
                batches.append(Continue(engine, tuple(prompts[row] for row in rows), sampling, ending))
        if not batches:
            return
        if self._server is not None:
            missing = [number for own in numbers for number in own if number not in log]
            by_number = {number: one for chunk in chunks for number, one in chunk.items()}
            asked = [by_number[number] for number in missing]
            self._check(self._server, asked)
            for place, answer in self._server.continue_each(asked, sampling, ending):
                log.append({missing[place]: answer})
                on_batch(sum(number in log for chunk in chunks for number in chunk))
            return
        for place, answers in self._answering.answers(batches):
            log.append(dict(zip(numbers[place], answers, strict=True)))
            on_batch(sum(number in log for chunk in chunks for number in chunk))

    def _check(self, server: ServerGenerator, asked: Sequence[TokenPrompt]) -> None:
        """Refuse a server that runs and has another model; the model is read for it once, and not kept."""
        if not server.is_ours and not self._is_checked:
            files = ModelFiles(self._folder, self.settings.compute.held, self._trust)
            check_same_model(server, InThisProcess(*files.load()), [one.ids for one in asked])
            self._is_checked = True


class _Given:
    """Prompts that are there already."""

    def __init__(self, pool: Sequence[Example]) -> None:
        self._pool = pool
        self.total: int | None = len(pool)

    def of(self, chunks: Sequence[tuple[int, int]]) -> Iterator[Sequence[Example | str]]:
        """Return the rows of each chunk, whose answers do not count."""
        return ([self._pool[number] for number in range(start, end)] for start, end in chunks)


class _Sampled:
    """Prompts that the model writes itself, from an empty user turn."""

    def __init__(self, model: _Model, log: GenerationLog) -> None:
        self._model, self._log = model, log
        self.total: int | None = None
        self._opening, self._ending = empty_user_turn(model.tokenizer, model.ending)

    def of(self, chunks: Sequence[tuple[int, int]]) -> Iterator[Sequence[Example | str]]:
        """Return the prompts of each chunk, or why one is none."""
        length = self._model.context_length
        room = None if length is None else length - len(self._opening)
        longest = at_most(PROMPT_SAMPLING.max_new_tokens, room)
        requests = [
            {
                number: TokenPrompt(self._opening, _seed(self._model.settings, "prompt", number), longest)
                for number in range(start, end)
            }
            for start, end in chunks
        ]
        self._model.continue_into(self._log, requests, PROMPT_SAMPLING, self._ending)
        return ([self._prompt(number) for number in range(start, end)] for start, end in chunks)

    def _prompt(self, number: int) -> Example | str:
        found = self._log[number]
        reason = degeneration(found.text, ended=found.ended)
        if reason is not None:
            return f"prompt_{reason}"
        turns = (Message("user", found.text.strip()), Message("assistant", ""))
        return Example(f"self-{number}", turns, UNDETERMINED_LANGUAGE, f"self-{number}", SELF)


@dataclass(frozen=True, slots=True)
class _Reply:
    """An answer, or why there is none to train on."""

    text: str = ""
    reason: str | None = None


class _Answers:
    """The model's answers, kept in a log."""

    def __init__(self, model: _Model, log: GenerationLog) -> None:
        self._model, self._log = model, log

    @property
    def unit(self) -> int:
        """Rows of the smallest chunk."""
        return self._model.batch_size

    def to(
        self, chunks: Sequence[Mapping[int, Example | str]], on_batch: Callable[[int], None]
    ) -> dict[int, _Reply]:
        """Return the reply to each prompt that is one."""
        replies: dict[int, _Reply] = {}
        requests: list[dict[int, TokenPrompt]] = []
        for chunk in chunks:
            requests.append({})
            for number, prompt in chunk.items():
                if isinstance(prompt, Example):
                    encoded = self._encode(prompt, number)
                    if isinstance(encoded, str):
                        replies[number] = _Reply(reason=encoded)
                    else:
                        requests[-1][number] = encoded
        sampling = self._model.settings.sampling
        self._model.continue_into(self._log, requests, sampling, self._model.ending, on_batch)
        chat = chat_format(self._model.tokenizer)
        for number in (number for own in requests for number in own):
            found = self._log[number]
            said = chat.answer_in(found.text)
            replies[number] = _Reply(said.strip(), degeneration(said, ended=found.ended))
        return replies

    def _encode(self, prompt: Example, number: int) -> TokenPrompt | str:
        if prompt.tools:
            return "tools"
        try:
            chat = chat_format(self._model.tokenizer)
            ids = chat.prompt_ids(prompt.messages[:-1], fold_system=prompt.fold_system)
        except DataError:
            return "refused"
        longest = self._model.context_length
        if longest is not None and len(ids) + self._model.settings.sampling.max_new_tokens > longest:
            return "too_long"
        return TokenPrompt(tuple(ids), _seed(self._model.settings, "answer", number))


class _Unanswered(_Answers):
    """Answers for those who want the prompts alone."""

    def to(
        self, chunks: Sequence[Mapping[int, Example | str]], on_batch: Callable[[int], None]
    ) -> dict[int, _Reply]:
        """Return no words for each prompt."""
        asked = [(number, prompt) for chunk in chunks for number, prompt in chunk.items()]
        on_batch(len(asked))
        return {number: _Reply() for number, prompt in asked if isinstance(prompt, Example)}
