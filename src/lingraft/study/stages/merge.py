"""The stage `merge`: a LoRA adapter's base with the adapter merged into it, as a whole model."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from lingraft.models.adapters import load_merged
from lingraft.models.checkpoints import save_checkpoint
from lingraft.records import flush_folder
from lingraft.stage import (
    CHECKPOINT,
    MODEL_LIBRARIES,
    GivenModel,
    Json,
    Needs,
    StageSpec,
    Work,
    Workplace,
    libraries,
    machine,
)

HISTORY = "lingraft.json"
"""What a model that lingraft wrote was taught (see `adapt.history`); a merged adapter's is the adapter's own."""


@dataclass(frozen=True, eq=False)
class Merge(StageSpec):
    """A whole model made of a LoRA adapter and its base, in float32.

    Attributes:
        adapter: Given by the adapter's folder.
        trust_remote_code: Run Python code that the base brings along.
    """

    kind: ClassVar[str] = "merge"
    is_discardable: ClassVar[bool] = True

    adapter: GivenModel
    trust_remote_code: bool = False

    @property
    def inputs(self) -> Mapping[str, Json]:
        """The adapter with its base."""
        return {
            "adapter": self.adapter.identity,
            "libraries": libraries((*MODEL_LIBRARIES, "peft")),
        }

    @property
    def needs(self) -> Needs:
        """The base in float32, in memory and on disk."""
        size = 4 * self.adapter.parameters or None
        return Needs(memory_bytes=size, disk_bytes=size)

    def work(self, place: Workplace) -> Work:
        """Write the merged model."""
        folder = place.model(self.adapter)
        model, tokenizer = load_merged(str(folder), trust_remote_code=self.trust_remote_code)
        save_checkpoint(model, tokenizer, place.folder / CHECKPOINT)
        if (folder / HISTORY).is_file():
            shutil.copyfile(folder / HISTORY, place.folder / CHECKPOINT / HISTORY)
        flush_folder(place.folder / CHECKPOINT)
        return Work({}, machine())
