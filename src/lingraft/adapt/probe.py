"""The stage `probe`: what a model says of its own accord, before it is trained.

It answers a few plain English questions, which tells whether it was tuned on instructions at all, and it writes prompts
from an empty user turn (Magpie, arXiv 2406.08464): these stand for the instructions that it was tuned on where nobody
knows them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from lingraft.data.chat_format import CHAT_IDENTITY, chat_format
from lingraft.data.degeneration import degeneration
from lingraft.data.example import Example, Message
from lingraft.data.filters import OTHERS
from lingraft.data.language_id import LanguageIdentifier
from lingraft.errors import ModelError
from lingraft.models.context_length import at_most, context_length
from lingraft.models.empty_turn import empty_user_turn
from lingraft.models.generation import (
    Ending,
    Generator,
    Sampling,
    TokenPrompt,
    TransformersGenerator,
    answer_ending,
    generate,
)
from lingraft.models.generation_log import GenerationLog
from lingraft.models.loading import load_model, load_tokenizer
from lingraft.records import fingerprint_of, to_json, write_text_atomically
from lingraft.stage import (
    MODEL_LIBRARIES,
    FinishedStage,
    Json,
    Model,
    Needs,
    StageSpec,
    Work,
    Workplace,
    libraries,
    machine,
    stages_of,
)
from lingraft.text.language_tags import ENGLISH

if TYPE_CHECKING:
    from lingraft.models.compute import Compute

OWN_PROMPTS = "own_prompts.jsonl"
SOURCE = "prompts sampled from the model"
_LOGS = ("questions.log", "prompts.log")
_QUESTIONS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "How many days does a week have?",
    "Name three animals that can fly.",
    "Why is the sky blue? Answer in one sentence.",
    "Give a synonym of the word big.",
    "What do bees make?",
    "Which is heavier, a stone or a feather?",
)
_ANSWERS = Sampling(max_new_tokens=64)
# A prompt that is cut off there still says what kind of instruction it is: DES against six sets moved by at most 0.01
# from 128 tokens to 64, by up to 0.05 from these to 32 (200 prompts of SmolLM2-135M-Instruct).
_PROMPTS = Sampling(temperature=1.0, max_new_tokens=64)
_BATCH = 64  # short rows


@dataclass(frozen=True, kw_only=True)
class Probed:
    """What a model said.

    Attributes:
        questions: Plain English questions that it was asked.
        answered: Of these, the ones that it answered with words; whether rightly is not judged.
        faults: Of the others, what became of them: `empty`, or `looping` (it says the same again and again).
        prompts: Prompts that it wrote.
        dropped: Prompts that were no use, by reason: `empty`, `looping`, `repeated`.
        reason: Why it writes no prompts; None: it does, or was not asked to.
    """

    questions: int
    answered: int
    faults: dict[str, int]
    prompts: int
    dropped: dict[str, int]
    reason: str | None

    @property
    def follows_instructions(self) -> bool:
        """Whether it answered at least half of the questions."""
        return 2 * self.answered >= self.questions


@dataclass(frozen=True, eq=False)
class Probe(StageSpec):
    """A model's answers to a few questions, and prompts of its own; interrupted, it goes on from what it has said.

    Needs: the weights in the type that answers are generated in. Keys and values are not in it.

    Attributes:
        model: Who is asked.
        prompts: How many prompts it is to write; 0: none.
        compute: What it computes on.
        trust_remote_code: Run Python code that the model brings along.
    """

    kind: ClassVar[str] = "probe"
    continues: ClassVar[tuple[str, ...]] = _LOGS

    model: Model
    prompts: int
    compute: Compute
    trust_remote_code: bool = False

    @property
    def inputs(self) -> Mapping[str, Json]:
        """The model, what it is asked and how it answers."""
        return {
            "model": self.model.identity,
            "questions": list(_QUESTIONS),
            "prompts": self.prompts,
            "tokens": [_ANSWERS.max_new_tokens, _PROMPTS.max_new_tokens],
            "precision": self.compute.precision,
            "chat": CHAT_IDENTITY,
            "libraries": libraries(MODEL_LIBRARIES),
        }

    @property
    def parents(self) -> tuple[StageSpec, ...]:
        """The stage that made the model."""
        return stages_of(self.model)

    @property
    def needs(self) -> Needs:
        """The weights in the type that answers are generated in."""
        return Needs("accelerator", self.compute.held.itemsize * self.model.parameters or None, 0)

    def work(self, place: Workplace) -> Work:
        """Ask it, and write its prompts, one JSON text a line."""
        folder = place.model(self.model)
        speaker = _Speaker(folder, self.compute, self.trust_remote_code)
        questions = {
            number: TokenPrompt(tuple(speaker.chat.prompt_ids([Message("user", question)])))
            for number, question in enumerate(_QUESTIONS)
        }
        said = speaker.say(GenerationLog(place.folder / _LOGS[0]), questions, _ANSWERS, speaker.ending)
        # One that was cut off is an answer: only its beginning was asked for.
        faults = Counter(
            fault
            for one in said
            if (fault := degeneration(speaker.chat.answer_in(one), ended=True)) is not None
        )
        written: dict[str, None] = {}
        dropped: Counter[str] = Counter()
        reason = None
        try:
            opening, ending = (
                empty_user_turn(speaker.tokenizer, speaker.ending) if self.prompts else ((), None)
            )
        except ModelError as error:
            reason, ending = str(error), None
        if ending is not None:
            longest = at_most(_PROMPTS.max_new_tokens, speaker.room(len(opening)))
            asked = {
                number: TokenPrompt(opening, int(fingerprint_of(["prompt", number])[:15], 16), longest)
                for number in range(self.prompts)
            }
            log = GenerationLog(place.folder / _LOGS[1])
            for text in speaker.say(log, asked, _PROMPTS, ending, partial(place.progressed, unit="prompts")):
                prompt_fault = degeneration(text, ended=True)
                if prompt_fault is None and text.strip() not in written:
                    written[text.strip()] = None
                else:
                    dropped[prompt_fault or "repeated"] += 1
        write_text_atomically(
            place.folder / OWN_PROMPTS, "".join(f"{json.dumps(one, ensure_ascii=False)}\n" for one in written)
        )
        found = Probed(
            questions=len(_QUESTIONS),
            answered=len(_QUESTIONS) - faults.total(),
            faults=dict(sorted(faults.items())),
            prompts=len(written),
            dropped=dict(sorted(dropped.items())),
            reason=reason,
        )
        return Work(to_json(found), machine(self.compute))


def own_prompts(probed: FinishedStage, known: frozenset[str] | None) -> tuple[Example, ...]:
    """Return the prompts that a model wrote, as rows without an answer.

    Their language is what the identifier says; short ones count as English. Those in a language that is not known are
    left out.

    Args:
        probed: The stage.
        known: BCP-47 primary tags of the languages that the encoder knows; None: it does not say.
    """
    identifier = LanguageIdentifier(OTHERS)
    lines = probed.artefact(OWN_PROMPTS).read_text(encoding="utf-8").split("\n")
    rows = []
    for number, line in enumerate(filter(None, lines)):
        text = json.loads(line)
        language = identifier.identify(text) or ENGLISH
        if known is None or language in known:
            name = f"own-{number}"
            rows.append(Example(name, (Message("user", text),), language, name, SOURCE))
    return tuple(rows)


class _Speaker:
    """A model that is loaded when it first has to say something."""

    def __init__(self, folder: Path, compute: Compute, trust_remote_code: bool) -> None:
        self.tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
        self.chat = chat_format(self.tokenizer)
        self.ending = answer_ending(folder, self.tokenizer)
        self._folder, self._compute, self._trust = folder, compute, trust_remote_code
        self._generator: Generator | None = None

    def room(self, used: int) -> int | None:
        """Return how many tokens the model reads besides those that are used; None: any number."""
        length = context_length(self._folder, trust_remote_code=self._trust)
        return None if length is None else length - used

    def say(
        self,
        log: GenerationLog,
        prompts: Mapping[int, TokenPrompt],
        sampling: Sampling,
        ending: Ending,
        on_progress: Callable[[int, int], None] = lambda *_: None,
    ) -> list[str]:
        """Return the continuation of each prompt; those in the log are not made again."""
        if any(number not in log for number in prompts):
            generator = self._generator = self._generator or self._load()
            batches = generate(
                generator, list(prompts.values()), sampling, ending, lambda place: place in log
            )
            for batch in batches:
                log.append(batch)
                on_progress(sum(number in log for number in prompts), len(prompts))
        return [log[number].text for number in prompts]

    def _load(self) -> Generator:
        model = load_model(self._folder, dtype=self._compute.held, trust_remote_code=self._trust)
        model.to(self._compute.device)  # type: ignore[arg-type]
        return TransformersGenerator(model, self.tokenizer, _BATCH)
