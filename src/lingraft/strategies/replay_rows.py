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

from lingraft.config.schema import Backend
from lingraft.data.chat_format import CHAT_IDENTITY, chat_format
from lingraft.data.degeneration import degeneration
from lingraft.data.example import UNDETERMINED_LANGUAGE, Example, Message, Origin
from lingraft.errors import DataError
from lingraft.models.answering import InThisProcess
from lingraft.models.context_length import at_most, context_length
from lingraft.models.empty_turn import empty_user_turn
from lingraft.models.generation import (
    BATCH_SIZE,
    Ending,
    Generated,
    Generator,
    Sampling,
    TokenPrompt,
    TransformersGenerator,
    answer_ending,
    generate,
)
from lingraft.models.generation_log import GenerationLog, locked
from lingraft.models.loading import load_model, load_tokenizer, model_content_hash
from lingraft.models.server import ServerGenerator, check_same_model, engine_of
from lingraft.records import canonical_json, fingerprint_of, write_json_atomically

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

    @property
    def engine(self) -> str:
        """What generates, as records and fingerprints have it."""
        return self.backend if isinstance(self.backend, str) else engine_of(self.backend)


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
        noted: Called with a sentence where a log was damaged.

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
    with locked(work):
        write_json_atomically(work / "settings.json", decides)
        logs = GenerationLog(work / "prompts.jsonl"), GenerationLog(work / "answers.jsonl")
        for log in logs:
            if log.damage is not None:
                noted(log.damage)
        with ExitStack() as ends:
            model = _Model(folder, settings, ends, noted)
            prompts = _Sampled(model, logs[0]) if pool is None else _Given(pool)
            answers = _Answers(model, logs[1]) if answered else _Unanswered(model, logs[1])
            made = _take(wanted, prompts, answers, origin, on_progress)
    del model, prompts
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
    for start, end in _chunks(prompts.total, answers.unit):
        if len(taken) == wanted or start >= _TRIES_PER_ROW * wanted + _TRIES_AT_LEAST:
            break
        chunk: dict[int, Example | str] = {}  # a prompt, or why it is not taken
        for number, prompt in zip(range(start, end), prompts.between(start, end), strict=True):
            chunk[number] = prompt
            if isinstance(prompt, Example):
                key = hashlib.sha256(_turns(prompt).encode()).digest()
                if key in seen:
                    chunk[number] = "repeated"
                seen.add(key)

        def report_part(answered: int, before: int = len(taken), rows: int = end - start) -> None:
            # As if all that is missing came from this chunk.
            if on_progress is not None:
                on_progress(before + int((wanted - before) / (rows + 1) * answered), wanted)

        replies = answers.to(chunk, report_part)
        for number, prompt in chunk.items():
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
    """The model that answers; loaded when there is something to generate."""

    def __init__(
        self, folder: Path, settings: ReplaySettings, ends: ExitStack, noted: Callable[[str], None]
    ) -> None:
        self.settings = settings
        self._ends, self._noted, self._is_checked = ends, noted, False
        self._folder, self._trust = folder, settings.trust_remote_code
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(folder, trust_remote_code=self._trust)
        self.ending = answer_ending(folder, self.tokenizer)
        self.context_length = context_length(folder, trust_remote_code=self._trust)

    @cached_property
    def generator(self) -> Generator:
        compute, backend = self.settings.compute, self.settings.backend
        if not isinstance(backend, str):
            server = ServerGenerator(backend, self._folder, self.tokenizer, noted=self._noted)
            return self._ends.enter_context(server)
        model = load_model(self._folder, dtype=compute.held, trust_remote_code=self._trust)
        model.to(compute.device)  # type: ignore[arg-type]
        return TransformersGenerator(model, self.tokenizer, self.settings.batch_size)

    def continue_into(
        self,
        log: GenerationLog,
        prompts: Mapping[int, TokenPrompt],
        sampling: Sampling,
        ending: Ending,
        on_batch: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Continue the prompts whose numbers are missing in the log; report how many of them it has."""
        numbers = list(prompts)
        if all(number in log for number in numbers):
            return
        batches: Iterator[dict[int, Generated]]
        generator = self.generator
        if isinstance(generator, ServerGenerator):
            missing = [place for place, number in enumerate(numbers) if number not in log]
            asked = [prompts[numbers[place]] for place in missing]
            self._check(generator, asked)
            answers = generator.continue_each(asked, sampling, ending)
            batches = ({missing[place]: one} for place, one in answers)
        else:
            batches = generate(
                generator, list(prompts.values()), sampling, ending, lambda place: numbers[place] in log
            )
        for batch in batches:
            log.append({numbers[place]: one for place, one in batch.items()})
            on_batch(sum(number in log for number in numbers))

    def _check(self, server: ServerGenerator, asked: Sequence[TokenPrompt]) -> None:
        """Refuse a server that runs and has another model; the model is read for it once, and not kept."""
        if not server.is_ours and not self._is_checked:
            held = self.settings.compute.held
            model = load_model(self._folder, dtype=held, trust_remote_code=self._trust)
            check_same_model(server, InThisProcess(model, self.tokenizer), [one.ids for one in asked])
            self._is_checked = True


class _Given:
    """Prompts that are there already."""

    def __init__(self, pool: Sequence[Example]) -> None:
        self._pool = pool
        self.total: int | None = len(pool)

    def between(self, start: int, end: int) -> Iterator[Example]:
        """Return the rows of a chunk, whose answers do not count."""
        return (self._pool[number] for number in range(start, end))


class _Sampled:
    """Prompts that the model writes itself, from an empty user turn."""

    def __init__(self, model: _Model, log: GenerationLog) -> None:
        self._model, self._log = model, log
        self.total: int | None = None
        self._opening, self._ending = empty_user_turn(model.tokenizer, model.ending)

    def between(self, start: int, end: int) -> Iterator[Example | str]:
        """Return the prompts of a chunk, or why one is none."""
        length = self._model.context_length
        room = None if length is None else length - len(self._opening)
        longest = at_most(PROMPT_SAMPLING.max_new_tokens, room)
        requests = {
            number: TokenPrompt(self._opening, _seed(self._model.settings, "prompt", number), longest)
            for number in range(start, end)
        }
        self._model.continue_into(self._log, requests, PROMPT_SAMPLING, self._ending)
        for number in requests:
            found = self._log[number]
            reason = degeneration(found.text, ended=found.ended)
            if reason is None:
                turns = (Message("user", found.text.strip()), Message("assistant", ""))
                yield Example(f"self-{number}", turns, UNDETERMINED_LANGUAGE, f"self-{number}", SELF)
            else:
                yield f"prompt_{reason}"


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
        settings = self._model.settings
        return settings.batch_size if isinstance(settings.backend, str) else ServerGenerator.batch_size

    def to(self, prompts: Mapping[int, Example | str], on_batch: Callable[[int], None]) -> dict[int, _Reply]:
        """Return the reply to each prompt that is one."""
        encoded = {
            number: self._encode(prompt, number)
            for number, prompt in prompts.items()
            if isinstance(prompt, Example)
        }
        requests = {number: one for number, one in encoded.items() if isinstance(one, TokenPrompt)}
        sampling = self._model.settings.sampling
        self._model.continue_into(self._log, requests, sampling, self._model.ending, on_batch)
        replies = {number: _Reply(reason=one) for number, one in encoded.items() if isinstance(one, str)}
        chat = chat_format(self._model.tokenizer)
        for number in requests:
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

    def to(self, prompts: Mapping[int, Example | str], on_batch: Callable[[int], None]) -> dict[int, _Reply]:
        """Return no words for each prompt."""
        on_batch(len(prompts))
        return {number: _Reply() for number, prompt in prompts.items() if isinstance(prompt, Example)}
