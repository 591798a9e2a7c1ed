"""The stage `replay`: rows that a model generates to be replayed, as a data set of its own.

`lingraft replay` makes it. In a study the same rows are made where a phase mixes them in, and kept in the run's cache.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import ClassVar

from pydantic import JsonValue

from lingraft.data.chat_format import CHAT_IDENTITY
from lingraft.data.example import UNDETERMINED_LANGUAGE, Example, Message
from lingraft.data.row_sequence import MadeWhenAsked
from lingraft.errors import DataError
from lingraft.records import fingerprint_of, to_json, write_text_atomically
from lingraft.representation.prompts import Prompt, read_prompts
from lingraft.stage import (
    MODEL_LIBRARIES,
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
from lingraft.strategies.replay_rows import SELF, ReplaySettings, make_replay

ROWS = "rows.jsonl"


@dataclass(frozen=True)
class ReplayResult:
    """What was generated.

    Attributes:
        asked: Rows that were asked for.
        rows: Rows that were made.
        shortfall: The difference: the prompts were at their end, or too many answers were dropped.
        dropped: Prompts and answers that were not taken, by reason.
        origin: Of every row.
    """

    asked: int
    rows: int
    shortfall: int
    dropped: dict[str, int]
    origin: dict[str, JsonValue]

    @property
    def reasons(self) -> str:
        """What was dropped, in words."""
        return ", ".join(f"{reason} {count}" for reason, count in self.dropped.items()) or "nothing"


@dataclass(frozen=True, eq=False)
class Replay(StageSpec):
    """Prompts with a model's answers; with more rows it goes on from those that are in the cache.

    Needs: the weights in the type that answers are generated in. Keys and values are not in it.

    Attributes:
        model: Who answers.
        rows: Wanted.
        settings: How they are generated.
        source: What the prompts are, for the provenance.
        pool: Rows whose last answer is made anew, in this order; None: the model samples its own prompts.
        answered: Whether the prompts are answered; else they are the rows.
    """

    kind: ClassVar[str] = "replay"

    model: Model
    rows: int
    settings: ReplaySettings
    source: str = SELF
    pool: Sequence[Example] | None = None
    answered: bool = True

    @property
    def inputs(self) -> Mapping[str, Json]:
        """The model, the prompts, and how they are answered."""
        made = self.settings
        pool = None
        if self.pool is not None:
            pool = fingerprint_of([[asdict(one) for one in row.messages] for row in self.pool])
        return {
            "model": self.model.identity,
            "name": self.label,
            "rows": self.rows,
            "source": self.source,
            "pool": pool,
            "sampling": asdict(made.sampling),
            "seed": made.seed,
            "batch_size": made.batch_size,
            "backend": made.engine,
            "precision": made.compute.precision,
            "chat": CHAT_IDENTITY,
            "libraries": libraries(MODEL_LIBRARIES),
            **({} if self.answered else {"answered": False}),
        }

    @property
    def parents(self) -> tuple[StageSpec, ...]:
        """The stage that made the model."""
        return stages_of(self.model)

    @property
    def needs(self) -> Needs:
        """The weights in the type that answers are generated in: once on an accelerator, else once a process."""
        compute = self.settings.compute
        models = self.settings.workers if compute.device.type == "cpu" else 1
        return Needs("accelerator", models * compute.held.itemsize * self.model.parameters or None, 0)

    def work(self, place: Workplace) -> Work:
        """Generate the rows, and write them in the format `messages` with where they came from."""
        made = make_replay(
            place.model(self.model),
            self.rows,
            self.settings,
            place.cache,
            source=self.source,
            pool=self.pool,
            name=self.label,
            answered=self.answered,
            on_progress=partial(place.progressed, unit="rows"),
            noted=place.watcher.noted,
        )
        rows = len(made.examples)
        dropped = dict(sorted(made.dropped.items()))
        result = ReplayResult(self.rows, rows, self.rows - rows, dropped, asdict(made.origin))
        if not rows:
            raise DataError(
                f"{self.source}: none of the answers of {self.label} is fit to train on ({result.reasons}); raise "
                "--max-new-tokens, or give other prompts."
            )
        written = [
            one if self.answered else replace(one, messages=one.messages[:-1]) for one in made.examples
        ]
        lines = (json.dumps(row_of(example), ensure_ascii=False) for example in written)
        write_text_atomically(place.folder / ROWS, "".join(f"{line}\n" for line in lines))
        return Work(to_json(result), machine(self.settings.compute))


def rows_to_answer(source: str) -> Sequence[Example]:
    """Return the prompts of a source as rows whose answers are to be made; of a large source they stay on disk."""

    def row(place: int, prompt: Prompt) -> Example:
        number = place + 1
        messages = (*prompt.messages, Message("assistant", ""))
        return Example(str(number), messages, prompt.language, prompt.group or f"prompt-{number}", source)

    return MadeWhenAsked(read_prompts(source), row)


def row_of(example: Example) -> dict[str, Json]:
    """Return an example as a row in the format `messages`, with where it came from."""
    messages = [one.to_template() | ({} if one.supervised else {"weight": 0}) for one in example.messages]
    language = {} if example.language == UNDETERMINED_LANGUAGE else {"language": example.language}
    return {
        "id": example.id,
        "messages": messages,
        **language,
        "group": example.group,
        "origin": asdict(example.origin),
    }
