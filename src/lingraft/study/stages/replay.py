"""The stage `replay`: rows that a model generates to be replayed, as a data set of its own.

`lingraft replay` makes it. In a study the same rows are made where a phase mixes them in, and kept in the run's cache.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import ClassVar

from lingraft.data.chat_format import CHAT_IDENTITY
from lingraft.data.example import UNDETERMINED_LANGUAGE, Example
from lingraft.errors import DataError
from lingraft.records import fingerprint_of, write_text_atomically
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
    """

    kind: ClassVar[str] = "replay"
    resumable: ClassVar[bool] = True

    model: Model
    rows: int
    settings: ReplaySettings
    source: str = SELF
    pool: Sequence[Example] | None = None

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
            "backend": made.backend,
            "precision": made.compute.precision,
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
        width = self.settings.compute.held.itemsize
        return Needs("accelerator", width * self.model.parameters or None, 0)

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
            on_progress=partial(place.progressed, unit="rows"),
        )
        if not made.examples:
            dropped = ", ".join(f"{reason} {count}" for reason, count in sorted(made.dropped.items()))
            raise DataError(
                f"{self.source}: none of the answers of {self.label} is fit to train on "
                f"({dropped or 'nothing'}); raise --max-new-tokens, or give other prompts."
            )
        lines = (json.dumps(row_of(example), ensure_ascii=False) for example in made.examples)
        write_text_atomically(place.folder / ROWS, "".join(f"{line}\n" for line in lines))
        result = {
            "asked": self.rows,
            "rows": len(made.examples),
            "shortfall": self.rows - len(made.examples),
            "dropped": dict(sorted(made.dropped.items())),
            "origin": asdict(made.origin),
        }
        return Work(result, machine(self.settings.compute))


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
